"""The categorical analysis recovers planted geometry and agrees with scikit-learn."""

import numpy as np
import pytest
from diagnosis.planted import DRAWS, PERMUTATIONS, planted, value
from sklearn.metrics import roc_auc_score

from lib.diagnosis import categorical, controls
from lib.diagnosis.sampling import Sampling
from lib.paper import FOUNDATIONS


def test_opposites_that_point_apart_are_found_apart():
    x, subset = planted(3.0)
    table = categorical.categorical(x, subset, sampling=Sampling(DRAWS, PERMUTATIONS, 0))
    own = table[(table["arm"] == "published") & (table["metric"] == "opposing_cosine")]
    assert (own["ci_high"] < -0.8).all()
    assert abs(value(table, arm="shuffled")) < 0.4
    assert value(table, arm="split_half") > 0.9


def test_near_neighbours_are_found_near_and_still_separable():
    x, subset = planted(3.0, opposite=0.3)
    table = categorical.categorical(x, subset, sampling=Sampling(DRAWS, PERMUTATIONS, 0))
    assert value(table, arm="published", metric="opposing_cosine") > 0.5
    assert categorical.separability(x, subset, sampling=Sampling(DRAWS, 0, 0))["value"].min() > 0.75


def test_cosines_equal_the_formula():
    x, subset = planted(1.0)
    table = categorical.categorical(x, subset, sampling=Sampling(2, 2, 0))
    centred = x - x.mean(axis=0)
    for foundation in FOUNDATIONS:
        a, b = (centred[(subset["category"] == c) & subset["is_prototype"]].mean(axis=0) for c in foundation.split("-"))
        expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        found = value(table, arm="published", metric="opposing_cosine", foundation=foundation)
        assert found == pytest.approx(expected)


def test_a_large_first_token_gives_high_cosines_with_no_signal_at_all():
    x, subset = planted(0.0, first_token=200.0)
    short = subset["typicality"] == 1.0
    outlier = x[short & (subset["length"] < 12)].mean(axis=0)
    x[short] += outlier  # typical actions are short: every prototype shifts the same way
    subset.loc[short, "length"] = 5
    raw = categorical.categorical(x, subset, sampling=Sampling(2, 2, 0))
    removed = controls.without_length(x, subset["length"].to_numpy())
    without = categorical.categorical(removed, subset, sampling=Sampling(2, 2, 0), arm="length_removed")
    assert value(raw, arm="published", metric="opposing_cosine") > 0.9
    assert abs(value(without, metric="opposing_cosine")) < 0.5
    assert categorical.separability(x, subset, sampling=Sampling(20, 0, 0))["value"].mean() == pytest.approx(
        0.5, abs=0.1
    )


def test_area_under_the_curve_equals_scikit_learn():
    generator = np.random.default_rng(0)
    positive, scores = generator.random(80) < 0.4, np.round(generator.normal(size=80), 1)
    weights = generator.integers(0, 3, (5, 80)).astype(float)
    found = categorical.weighted_auc(positive, scores, weights)
    assert found == pytest.approx([roc_auc_score(positive, scores, sample_weight=w) for w in weights])


def test_separability_finds_nothing_in_nothing():
    p, values = [], []
    for seed in range(6):
        x, subset = planted(0.0, seed=seed)
        table = categorical.separability(x, subset, sampling=Sampling(2, 40, seed))
        p += table["p"].dropna().tolist()
        values.append(value(table, arm="auc", foundation="all"))
    assert np.mean(np.array(p) < 0.05) < 0.2
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)


def test_areas_within_strata_are_means_of_scikit_learns_weighted_by_pairs():
    generator = np.random.default_rng(0)
    positive, scores = generator.random(60) < 0.4, np.round(generator.normal(size=60), 1)
    strata = np.repeat([0, 1], 30)
    parts = [(positive[strata == name], scores[strata == name]) for name in (0, 1)]
    areas = [roc_auc_score(*part) for part in parts]
    pairs = [labels.sum() * (~labels).sum() for labels, _ in parts]
    found = categorical.weighted_auc(positive, scores, np.ones((1, 60)), strata)[0]
    assert found == pytest.approx(np.average(areas, weights=pairs))


def test_prototypes_are_means_of_their_rows_and_need_as_many_as_asked_for():
    x, subset = planted(1.0, per_cell=2)
    typical = subset["is_prototype"].to_numpy()
    rows, categories = x[typical], subset.loc[typical, "category"].to_numpy(object)
    assert np.isnan(categorical.prototypes(rows, categories)).all()
    found = categorical.prototypes(rows, categories, minimum=1)[0]
    np.testing.assert_allclose(found[1], rows[categories == "harm"].mean(axis=0))


def test_a_pole_without_rows_is_reported():
    x, subset = planted(1.0, per_cell=8)
    kept = (subset["category"] != "cheating").to_numpy()
    table = categorical.separability(
        x[kept], subset[kept].reset_index(drop=True), sampling=Sampling(3, 0, 0)
    ).set_index("foundation")
    assert np.isnan(table.loc["fairness-cheating", "value"])
    assert "a pole has too few rows" in table.loc["fairness-cheating", "reason"]
    assert table.loc["all", "value"] > 0.5
