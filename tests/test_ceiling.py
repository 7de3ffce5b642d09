"""The human ceiling: known answers, an oracle over explicit pairs, and shuffled annotators."""

from itertools import permutations

import krippendorff
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from lib import ceiling, social_chemistry
from lib.foundations import CATEGORIES


def judged(items=200, annotators=5, noise=0.0, seed=0):
    """Vectors of items whose annotators agree but for a share of random answers."""
    generator = np.random.default_rng(seed)
    item = np.repeat(np.arange(items), annotators)
    truth = generator.choice(ceiling.LEVELS, (items, len(CATEGORIES)))[item]
    wrong = generator.random(truth.shape) < noise
    values = np.where(wrong, generator.choice(ceiling.LEVELS, truth.shape), truth)
    return pd.DataFrame(values, columns=list(CATEGORIES)), pd.Series(item)


def value(frame, metric, dimension="mean"):
    return frame.set_index(["dimension", "metric"]).loc[(dimension, metric), "value"]


def test_annotators_who_always_agree_give_one():
    found = ceiling.ceiling(*judged(), draws=20, seed=0)
    assert found["value"].to_numpy() == pytest.approx(1.0)
    assert (found["n"] == 200).all()


def test_shuffled_annotators_give_nothing():
    vectors, items = judged(items=600)
    shuffled = pd.Series(np.random.default_rng(1).permutation(items))
    found = ceiling.ceiling(vectors, shuffled, draws=50, seed=0)
    assert np.abs(found.loc[found["dimension"] == "mean", "value"]).max() < 0.02
    assert ((found["ci_low"] < 0.03) & (found["ci_high"] > -0.03)).all()


def test_half_random_answers_give_a_quarter_of_the_variance():
    """Two annotators who both give the true answer half the time correlate by a quarter."""
    found = ceiling.ceiling(*judged(items=4000, noise=0.5), draws=20, seed=0)
    assert value(found, "explainable_variance") == pytest.approx(0.25, abs=0.02)
    assert value(found, "r2") == pytest.approx(0.0625, abs=0.02)


def test_values_equal_those_over_all_written_out_pairs():
    vectors, items = judged(items=40, annotators=4, noise=0.3)
    found = ceiling.ceiling(vectors, items, draws=5, seed=0)
    pairs = [pair for _, rows in items.groupby(items).indices.items() for pair in permutations(rows, 2)]
    left, right = (vectors["care"].to_numpy()[list(side)] for side in zip(*pairs, strict=True))
    assert value(found, "spearman", "care") == pytest.approx(spearmanr(left, right).statistic)
    assert value(found, "explainable_variance", "care") == pytest.approx(pearsonr(left, right).statistic)
    answers = vectors["care"].to_numpy().reshape(40, 4).T
    alpha = krippendorff.alpha(reliability_data=answers, level_of_measurement="interval")
    assert value(found, "krippendorff_alpha", "care") == pytest.approx(alpha)


def test_resampled_alpha_equals_the_package_on_repeated_items():
    vectors, items = judged(items=30, annotators=3, noise=0.4)
    counts = ceiling.level_counts(vectors["harm"].to_numpy(), items.to_numpy())
    drawn = np.random.default_rng(2).integers(0, 3, 30)
    repeated = np.repeat(counts, drawn, axis=0)
    expected = krippendorff.alpha(value_counts=repeated, value_domain=ceiling.LEVELS, level_of_measurement="interval")
    assert ceiling.alphas(counts, drawn[None].astype(float))[0] == pytest.approx(expected)


def test_items_count_the_same_whatever_their_number_of_annotators():
    vectors, items = judged(items=100, annotators=5, noise=0.5)
    many = pd.DataFrame(np.random.default_rng(3).choice(ceiling.LEVELS, (50, 10)), columns=list(CATEGORIES))
    both = pd.concat([vectors, many], ignore_index=True), pd.concat([items, pd.Series([100] * 50)], ignore_index=True)
    few, more = (
        value(ceiling.ceiling(*data, draws=5, seed=0), "explainable_variance") for data in ((vectors, items), both)
    )
    assert more == pytest.approx(few, abs=0.03)


def test_too_few_items_and_constant_dimensions_say_why():
    vectors, items = judged(items=10)
    assert ceiling.ceiling(vectors, items, 5, 0)["reason"].str.contains("10 items have several annotators").all()
    vectors, items = judged()
    found = ceiling.ceiling(vectors.assign(care=0.0), items, 5, 0)
    silent = found[found["dimension"] == "care"]
    assert silent["value"].isna().all()
    assert silent["reason"].str.contains("no annotator departs").all()
    assert np.isfinite(value(found, "spearman"))


def test_a_file_without_m_has_no_ceiling():
    rows = pd.DataFrame({"action": ["a"], "rot-moral-foundations": ["care-harm"]})
    several, items = social_chemistry.by_several(rows)
    assert len(several) == len(items) == 0
    empty = pd.DataFrame(columns=list(CATEGORIES), dtype=float)
    assert ceiling.ceiling(empty, items, 5, 0)["reason"].str.contains("0 items").all()
