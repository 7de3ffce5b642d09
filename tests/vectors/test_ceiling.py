"""The ceiling: known answers, explicit pairs, shuffled annotators, and an oracle sent through the real sampling."""

from itertools import permutations

import krippendorff
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import adjusted_rand_score, r2_score, roc_auc_score

from lib.paper import CATEGORIES, FOUNDATIONS
from lib.vectors import ceiling, moral_vectors, social_chemistry


def judged(items=200, annotators=5, noise=0.0, seed=0):
    """Vectors of items whose annotators agree but for a share of random answers."""
    generator = np.random.default_rng(seed)
    item = np.repeat(np.arange(items), annotators)
    truth = generator.choice(ceiling.LEVELS, (items, len(CATEGORIES)))[item]
    wrong = generator.random(truth.shape) < noise
    values = np.where(wrong, generator.choice(ceiling.LEVELS, truth.shape), truth)
    return pd.DataFrame(values, columns=list(CATEGORIES)), pd.Series(item)


def agreed(vectors, items):
    return ceiling.tabulated(ceiling.agreement(vectors, items, draws=20, seed=0))


def value(frame, metric, dimension="mean"):
    return frame.set_index(["dimension", "metric"]).loc[(dimension, metric), "value"]


def test_annotators_who_always_agree_give_one():
    found = agreed(*judged())
    assert found["value"].to_numpy() == pytest.approx(1.0)
    assert (found["n"] == 200).all()


def test_shuffled_annotators_give_nothing():
    vectors, items = judged(items=600)
    shuffled = pd.Series(np.random.default_rng(1).permutation(items))
    found = agreed(vectors, shuffled)
    assert np.abs(found.loc[found["dimension"] == "mean", "value"]).max() < 0.02
    assert ((found["ci_low"] < 0.03) & (found["ci_high"] > -0.03)).all()


def test_half_random_answers_give_a_quarter_of_the_variance():
    """Two annotators who both give the true answer half the time correlate by a quarter."""
    found = agreed(*judged(items=4000, noise=0.5))
    assert value(found, "r2") == pytest.approx(0.25, abs=0.02)
    assert value(found, "annotator_r2") == pytest.approx(0.0625, abs=0.02)


def test_values_equal_those_over_all_written_out_pairs():
    vectors, items = judged(items=40, annotators=4, noise=0.3)
    found = agreed(vectors, items)
    pairs = [pair for _, rows in items.groupby(items).indices.items() for pair in permutations(rows, 2)]
    left, right = (vectors["care"].to_numpy()[list(side)] for side in zip(*pairs, strict=True))
    assert value(found, "annotator_spearman", "care") == pytest.approx(spearmanr(left, right).statistic)
    assert value(found, "r2", "care") == pytest.approx(pearsonr(left, right).statistic)
    answers = vectors["care"].to_numpy().reshape(40, 4).T
    alpha = krippendorff.alpha(reliability_data=answers, level_of_measurement="interval")
    assert value(found, "krippendorff_alpha", "care") == pytest.approx(alpha)


def test_items_count_the_same_whatever_their_number_of_annotators():
    vectors, items = judged(items=100, annotators=5, noise=0.5)
    many = pd.DataFrame(np.random.default_rng(3).choice(ceiling.LEVELS, (50, 10)), columns=list(CATEGORIES))
    both = pd.concat([vectors, many], ignore_index=True), pd.concat([items, pd.Series([100] * 50)], ignore_index=True)
    few, more = (value(agreed(*data), "r2") for data in ((vectors, items), both))
    assert more == pytest.approx(few, abs=0.03)


def test_too_few_items_and_constant_dimensions_say_why():
    vectors, items = judged(items=10)
    assert agreed(vectors, items)["reason"].str.contains("10 items have enough annotators").all()
    vectors, items = judged()
    found = agreed(vectors.assign(care=0.0), items)
    silent = found[found["dimension"] == "care"]
    assert silent["value"].isna().all()
    assert silent["reason"].str.contains("annotators do not vary").all()
    assert np.isfinite(value(found, "annotator_spearman"))


def test_a_file_without_m_has_no_ceiling():
    rows = pd.DataFrame({"action": ["a"], "rot-moral-foundations": ["care-harm"]})
    several, items = social_chemistry.by_several(rows)
    assert len(several) == len(items) == 0
    empty = pd.DataFrame(columns=list(CATEGORIES), dtype=float)
    assert agreed(empty, items)["reason"].str.contains("0 items").all()


# ------------------------------------------------------------------------------ the oracle, in a world with known opinion


def opinions(count, generator):
    """Opinion on every item, and how often its annotators name each foundation, [items, 5]."""
    topic = np.full((count, 5), 0.04)
    topic[np.arange(count), generator.integers(0, 5, count)] += 0.8
    return generator.normal(size=count) * 1.2, topic


def annotated(opinion, topic, spread, generator):
    """One annotator's vector of every item: judgment and agreement scatter about the opinion."""
    judgment = np.clip(np.round(opinion + spread * generator.normal(size=len(opinion))), -2, 2)
    agreement = np.clip(np.round(2 + 0.7 * np.abs(opinion) + 0.8 * generator.normal(size=len(opinion))), 0, 4)
    named = (generator.random((len(opinion), 1)) > topic.cumsum(axis=1)).sum(axis=1).clip(0, 4)
    actions = [f"action {index}" for index in range(len(opinion))]
    rows = {"action": actions, "rot-moral-foundations": np.array(FOUNDATIONS)[named]}
    cleaned = pd.DataFrame(rows | {"action-moral-judgment": judgment, "agreement": agreement})
    return moral_vectors.vectorise(cleaned, "action-agree")


def sent_through_the_pipeline(spread, seed, count=12_000):
    """Scores of an oracle that knows the opinion, by the real explosion and subset and by scipy and scikit-learn."""
    generator = np.random.default_rng(seed)
    opinion, topic = opinions(count, generator)
    names = list(CATEGORIES)
    known = np.mean([annotated(opinion, topic, spread, generator)[names] for _ in range(60)], axis=0)
    labels = annotated(opinion, topic, spread, generator)
    subset = moral_vectors.draw_subset(moral_vectors.explode(labels, 0))
    said = known[subset["id"].str[-6:].astype(int)]
    typicality, pole = subset["typicality"].to_numpy(), subset["polarity"].to_numpy()
    scores = {"r2": r2_score(labels[names], known), "auc": [], "spearman": [], "spearman_without_prototypes": []}
    for index, foundation in enumerate(FOUNDATIONS):
        here = (subset["foundation"] == foundation).to_numpy()
        poles = here & (pole != "neutral")
        virtue, vice = said[:, 2 * index], said[:, 2 * index + 1]
        scores["auc"].append(roc_auc_score(pole[poles] == "virtue", (virtue - vice)[poles]))
        for column, other in ((virtue, "vice"), (vice, "virtue")):
            member = here & (pole != other)
            scores["spearman"].append(spearmanr(column[member], typicality[member]).statistic)
            member &= typicality < 1
            scores["spearman_without_prototypes"].append(spearmanr(column[member], typicality[member]).statistic)
    return {metric: np.mean(values) for metric, values in scores.items()}, subset


@pytest.mark.parametrize("annotators", [5, 50])
@pytest.mark.parametrize("spread", [0.4, 1.0])
def test_the_ceiling_is_what_an_oracle_reaches_in_the_real_sampling(spread, annotators):
    truth, subset = sent_through_the_pipeline(spread, seed=1)
    generator = np.random.default_rng(2)
    count = 2500 if annotators == 5 else 300
    opinion, topic = opinions(count, generator)
    items = np.repeat(np.arange(count), annotators)
    judged_rows = annotated(opinion[items], topic[items], spread, generator)
    found = ceiling.measure_ceiling(judged_rows, pd.Series(items), subset=subset, draws=10, seed=0)
    for metric, score in truth.items():
        here = found.set_index(["dimension", "metric"]).loc[("mean", metric)]
        error = (here["ci_high"] - here["ci_low"]) / 2
        assert here["value"] == pytest.approx(score, abs=max(0.03, 1.5 * error)), metric
    assert value(found, "annotator_r2") < value(found, "r2") ** 1.5
    ends = found[["ci_low", "value", "ci_high"]].dropna().to_numpy()
    assert (np.diff(ends, axis=1) >= 0).all()


def test_annotators_who_agree_leave_nothing_to_miss():
    generator = np.random.default_rng(3)
    opinion, topic = opinions(400, generator)
    once = annotated(opinion, (topic > 0.5).astype(float), 0.5, generator)
    items = np.repeat(np.arange(400), 5)
    subset = moral_vectors.draw_subset(moral_vectors.explode(once, 0))
    same = once.iloc[items].reset_index(drop=True)
    found = ceiling.measure_ceiling(same, pd.Series(items), subset=subset, draws=5, seed=0)
    assert found["value"].to_numpy() == pytest.approx(1.0, abs=1e-6)
    mixed = pd.Series(generator.permutation(items))
    nothing = ceiling.measure_ceiling(same, mixed, subset=subset, draws=5, seed=0)
    means = nothing[nothing["dimension"] == "mean"].set_index("metric")["value"]
    assert means["auc"] == pytest.approx(0.5, abs=0.1)
    assert abs(means["spearman"]) < 0.15
    assert nothing.loc[nothing["metric"] == "adjusted_rand", "value"].abs().max() < 0.05


def test_the_line_through_two_panels_ends_at_the_oracle():
    """For a mean of j annotators with the spread s about an opinion of variance 1, the correlation is known."""
    reached = [np.array(0.8 / np.sqrt(1 + 0.7 / count)) for count in (ceiling.PANEL / 2, ceiling.PANEL)]
    assert ceiling.extrapolated(*reached) == pytest.approx(0.8)
    assert ceiling.extrapolated(np.array([-0.1, 0.001]), np.array([0.02, 0.02])).tolist() == [0.02, 0.04]


def test_weighted_scores_equal_those_of_repeated_rows():
    generator = np.random.default_rng(4)
    x, y = generator.integers(0, 6, 80), generator.integers(0, 4, 80)
    times = generator.integers(1, 5, 80)
    long_x, long_y = np.repeat(x, times), np.repeat(y, times)
    expected = spearmanr(long_x, long_y).statistic
    assert ceiling.weighted_spearman(x, y, times.astype(float)) == pytest.approx(expected)
    many = np.tile(long_x, 200), np.tile(long_y, 200)
    found = ceiling.weighted_rand(x, y, times / times.sum())
    assert found == pytest.approx(adjusted_rand_score(*many), abs=1e-4)
