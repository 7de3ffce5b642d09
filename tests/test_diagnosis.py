"""Planted geometry is recovered, nothing is found in nothing, and each analysis agrees with another way of computing it."""

import os
import signal
from types import SimpleNamespace

import hdbscan
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib import failures
from lib.diagnosis import categorical, controls, dimensional, gradient, layers, linear, matrices, structural, verdicts
from lib.foundations import CATEGORIES, FOUNDATIONS, category_of
from lib.parameters import Pooling

DRAWS, PERMUTATIONS = 50, 40


def planted(strength, seed=0, per_cell=30, width=24, opposite=-1.0, first_token=0.0):
    """Rows with a known geometry: a direction a foundation, virtue at +typicality, vice at opposite * typicality.

    ``first_token`` adds one large direction in proportion to one over the length, as mean pooling over a first-token
    outlier does.
    """
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(width, width)))[0][: len(FOUNDATIONS)]
    outlier = generator.normal(size=width)
    records, rows = [], []
    for f, foundation in enumerate(FOUNDATIONS):
        for polarity, sign in (("virtue", 1.0), ("vice", opposite), ("neutral", 0.0)):
            for typicality in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0) if polarity != "neutral" else (0.0,):
                for _ in range(per_cell):
                    length = int(generator.integers(5, 30))
                    row = strength * sign * typicality * directions[f] + generator.normal(size=width) * 0.3
                    rows.append(row + first_token / length * outlier)
                    category = "" if polarity == "neutral" else category_of(foundation, polarity)
                    action = f"action {len(records)}"
                    records.append((action, foundation, polarity, typicality, category, typicality == 1.0, length))
    columns = ["action", "foundation", "polarity", "typicality", "category", "is_prototype", "length"]
    return np.array(rows), pd.DataFrame(records, columns=columns)


def value(table, **chosen):
    for column, wanted in chosen.items():
        table = table[table[column] == wanted]
    return table["value"].mean()


# --------------------------------------------------------------------------------------- categorical


def test_opposites_that_point_apart_are_found_apart():
    x, subset = planted(3.0)
    table = categorical.categorical(x, subset, DRAWS, PERMUTATIONS, 0)
    own = table[(table["arm"] == "published") & (table["metric"] == "opposing_cosine")]
    assert (own["ci_high"] < -0.8).all()
    assert abs(value(table, arm="shuffled")) < 0.4
    assert value(table, arm="split_half") > 0.9


def test_near_neighbours_are_found_near_and_still_separable():
    x, subset = planted(3.0, opposite=0.3)
    table = categorical.categorical(x, subset, DRAWS, PERMUTATIONS, 0)
    assert value(table, arm="published", metric="opposing_cosine") > 0.5
    assert categorical.separability(x, subset, DRAWS, 0, 0)["value"].min() > 0.75


def test_cosines_equal_the_formula():
    x, subset = planted(1.0)
    table = categorical.categorical(x, subset, 2, 2, 0)
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
    raw = categorical.categorical(x, subset, 2, 2, 0)
    removed = controls.without_length(x, subset["length"].to_numpy())
    without = categorical.categorical(removed, subset, 2, 2, 0, arm="length_removed")
    assert value(raw, arm="published", metric="opposing_cosine") > 0.9
    assert abs(value(without, metric="opposing_cosine")) < 0.5
    assert categorical.separability(x, subset, 20, 0, 0)["value"].mean() == pytest.approx(0.5, abs=0.1)


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
        table = categorical.separability(x, subset, 2, 40, seed)
        p += table["p"].dropna().tolist()
        values.append(value(table, arm="auc", foundation="all"))
    assert np.mean(np.array(p) < 0.05) < 0.2
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)


def test_areas_of_columns_equal_scikit_learn_within_strata():
    generator = np.random.default_rng(0)
    positive, scores = generator.random((60, 3)) < 0.4, np.round(generator.normal(size=(60, 3)), 1)
    one = categorical.aucs(positive, scores, np.zeros(60))
    assert one == pytest.approx([roc_auc_score(positive[:, k], scores[:, k]) for k in range(3)])
    strata = np.repeat([0, 1], 30)
    ones = np.ones((1, 60))
    by_stratum = [categorical.weighted_auc(positive[:, k], scores[:, k], ones, strata)[0] for k in range(3)]
    assert categorical.aucs(positive, scores, strata) == pytest.approx(by_stratum)


# ------------------------------------------------------------------------------------------ gradient


def test_a_planted_gradient_is_found_and_equals_scipy():
    x, subset = planted(3.0)
    table = gradient.gradient(x, subset, DRAWS, PERMUTATIONS, 0)
    assert (table[table["arm"] == "published"]["ci_low"] > 0.5).all()
    centred = x - x.mean(axis=0)
    member = ((subset["foundation"] == "care-harm") & subset["polarity"].isin(["vice", "neutral"])).to_numpy()
    rows, typicality = centred[member], subset.loc[member, "typicality"].to_numpy()
    prototype = rows[typicality == 1].mean(axis=0)
    nearness = rows @ prototype / np.linalg.norm(rows, axis=1) / np.linalg.norm(prototype)
    found = value(table, category="harm", arm="published", metric="spearman")
    assert found == pytest.approx(spearmanr(nearness, typicality)[0])


def test_a_prototype_that_contains_its_rows_fakes_a_gradient_and_leaving_them_out_removes_it():
    x, subset = planted(0.0, per_cell=12, width=100)
    table = gradient.gradient(x, subset, DRAWS, PERMUTATIONS, 0)
    assert 0.1 < value(table, arm="published", metric="spearman") < 0.5
    assert value(table, arm="without_prototypes") == pytest.approx(0, abs=0.08)
    assert value(table, arm="shuffled") == pytest.approx(value(table, arm="published", metric="spearman"), abs=0.1)


def test_the_null_has_the_same_offset_as_what_it_is_a_null_of():
    x, subset = planted(0.0, per_cell=12, width=100)
    table = gradient.gradient(x, subset, DRAWS, PERMUTATIONS, 0)
    assert value(table, arm="shuffled", category="all") > 0.1
    assert value(table, arm="shuffled_without_prototypes", category="all") == pytest.approx(0, abs=0.05)
    null = table[table["arm"].str.startswith("shuffled")]
    assert (null["p"] < 0.05).mean() < 0.3, "nothing is found in nothing"
    found = gradient.gradient(planted(3.0)[0], planted(3.0)[1], DRAWS, PERMUTATIONS, 0)
    assert (found.loc[found["arm"].str.startswith("shuffled"), "p"] < 0.05).all()


def test_the_peak_over_layers_pays_for_being_a_maximum():
    tables = []
    for layer in range(8):
        x, subset = planted(0.0, seed=layer, per_cell=10)
        tables.append(gradient.gradient(x, subset, 2, 2, 0).assign(layer=layer))
    peaks = gradient.peaks(pd.concat(tables)).groupby("arm")["value"].mean()
    assert peaks["published"] > 0.2
    assert peaks["held_out"] == pytest.approx(0, abs=0.06)
    one = gradient.peaks(gradient.gradient(*planted(3.0), 2, 2, 0).assign(layer=4))
    assert one["value"].min() > 0.5
    assert set(one["layer"]) == {4}


def test_the_mean_over_categories_has_a_joint_interval():
    x, subset = planted(1.0)
    table = gradient.gradient(x, subset, 200, 0, 0).query("arm == 'published' and metric == 'spearman'")
    whole, single = table[table["category"] == "all"], table[table["category"] != "all"]
    assert whole["value"].item() == pytest.approx(single["value"].mean())
    width = (whole["ci_high"] - whole["ci_low"]).item()
    assert width < 0.6 * (single["ci_high"] - single["ci_low"]).mean()


# ---------------------------------------------------------------------------------------- structural


def blobs(seed=0, rows=200):
    generator = np.random.default_rng(seed)
    centres = np.eye(5, 8) * 15
    x = np.concatenate([centre + generator.normal(size=(rows, 8)) for centre in centres])
    foundation = np.repeat(FOUNDATIONS, rows)
    polarity = generator.choice(["virtue", "vice", "neutral"], len(x))
    subset = pd.DataFrame({"action": [f"a{i}" for i in range(len(x))], "foundation": foundation, "polarity": polarity})
    return x, subset


def test_clusters_equal_those_of_the_hdbscan_package():
    generator = np.random.default_rng(3)
    x = np.concatenate([blobs()[0], generator.uniform(-15, 15, (300, 8))])
    reduced = PCA(0.95, svd_solver="full").fit_transform(x - x.mean(axis=0))
    # Prim's algorithm gives the exact spanning tree; the package's default, Boruvka's on trees, differs in a few labels.
    oracle = hdbscan.HDBSCAN(min_cluster_size=100, min_samples=20, algorithm="prims_kdtree", approx_min_span_tree=False)
    expected = oracle.fit_predict(reduced)
    points = structural.components(x)
    found = structural.hdbscan_labels(matrices.distances(points))
    assert points.shape == reduced.shape
    assert adjusted_rand_score(expected, found) == pytest.approx(1.0)
    assert ((expected < 0) == (found < 0)).all()


def test_clusters_with_ties_and_duplicates_equal_those_of_the_whole_matrix():
    generator = np.random.default_rng(4)
    x = np.concatenate([generator.normal(size=(300, 2)), generator.integers(-4, 4, (500, 2)) * 3.0])
    x = np.concatenate([x, x[:200], x[700:]])
    samples = structural.MIN_SAMPLES + 1  # scikit-learn counts a point as its own neighbour
    whole = HDBSCAN(structural.MIN_CLUSTER_SIZE, min_samples=samples, algorithm="brute", copy=True).fit_predict(x)
    assert whole.max() > 0
    assert adjusted_rand_score(whole, structural.hdbscan_labels(matrices.distances(x))) == pytest.approx(1.0)


def test_planted_clusters_follow_foundations_and_not_polarities():
    table = structural.structural(*blobs(), DRAWS, PERMUTATIONS, 0)
    assert value(table, target="foundation", arm="published", metric="adjusted_rand") > 0.95
    assert value(table, target="polarity", arm="published", metric="adjusted_rand") == pytest.approx(0, abs=0.02)
    assert value(table, target="foundation", arm="shuffled") == pytest.approx(0, abs=0.02)


def test_mostly_noise_scores_high_over_clustered_points_and_low_over_all():
    x, subset = blobs(rows=110)
    generator = np.random.default_rng(1)
    noise = generator.uniform(-40, 40, (4000, 8))
    more = pd.DataFrame(
        {
            "action": [f"n{i}" for i in range(4000)],
            "foundation": generator.choice(FOUNDATIONS, 4000),
            "polarity": generator.choice(["virtue", "vice", "neutral"], 4000),
        }
    )
    table = structural.structural(np.concatenate([x, noise]), pd.concat([subset, more]), 5, 5, 0)
    assert value(table, target="all", metric="coverage") < 0.3
    assert value(table, target="foundation", arm="published", metric="adjusted_rand") > 0.5
    assert value(table, target="foundation", arm="all_points") < 0.1


def test_the_index_equals_scikit_learn():
    generator = np.random.default_rng(0)
    labels, found = generator.integers(0, 5, 300), generator.integers(-1, 4, 300)
    found[:100] = labels[:100]
    table = structural.contingency(labels, found, np.ones((1, 300)))
    assert structural.adjusted_rand(table)[0] == pytest.approx(adjusted_rand_score(labels, found))


def test_components_from_the_covariance_give_the_labels_of_the_full_decomposition():
    x = np.concatenate([blobs()[0] @ np.random.default_rng(0).normal(size=(8, 30)), np.zeros((20, 30))])
    full = PCA(0.95, svd_solver="full").fit_transform(x - x.mean(axis=0))
    expected = HDBSCAN(100, min_samples=21, algorithm="brute", copy=True).fit_predict(full)
    points = structural.components(x)
    found = structural.hdbscan_labels(matrices.distances(points))
    assert points.shape == full.shape
    assert adjusted_rand_score(expected, found) == 1.0


def test_clusters_of_wide_rows_with_a_large_mean_equal_those_of_the_full_decomposition_in_float64():
    generator = np.random.default_rng(5)
    spread = np.arange(1, 901) ** -0.6
    x = np.concatenate([blobs()[0] @ generator.normal(size=(8, 900)), generator.normal(size=(300, 900)) * 40 * spread])
    x = (x + 1e4 * (np.arange(900) == 3)).astype(np.float32)
    exact = x.astype(np.float64)
    full = PCA(0.95, svd_solver="full").fit_transform(exact - exact.mean(axis=0))
    oracle = hdbscan.HDBSCAN(min_cluster_size=100, min_samples=20, algorithm="prims_kdtree", approx_min_span_tree=False)
    points = structural.components(x)
    assert points.shape == full.shape
    expected, found = oracle.fit_predict(full), structural.hdbscan_labels(matrices.distances(points))
    assert expected.max() > 0
    assert adjusted_rand_score(expected, found) == 1.0


def test_a_part_of_the_points_is_clustered_as_if_there_were_no_others():
    x, _ = blobs()
    kept = np.flatnonzero(np.random.default_rng(0).random(len(x)) < 0.8)
    between = matrices.distances(x)
    alone = structural.hdbscan_labels(matrices.distances(x[kept]))
    np.testing.assert_array_equal(structural.hdbscan_labels(between, kept), alone)
    assert alone.max() > 0


def test_distances_equal_those_taken_pair_by_pair():
    points = np.random.default_rng(0).normal(size=(matrices.BLOCK + 90, 30)) + 1e3
    between = matrices.distances(points)
    np.testing.assert_allclose(between, cdist(points, points), rtol=1e-6, atol=1e-5)
    assert (between == between.T).all()


def test_what_a_card_would_compute_is_what_the_processor_does():
    """PyTorch's way, which a card takes, tried on the processor."""
    card, x = torch.device("cpu"), blobs()[0] @ np.random.default_rng(0).normal(size=(8, 30))
    np.testing.assert_allclose(matrices.covariance(x, card), matrices.covariance(x), rtol=1e-4, atol=1e-4)
    here, there = structural.components(x), structural.components(x, device=card)
    assert here.shape == there.shape
    np.testing.assert_allclose(matrices.distances(there, card), matrices.distances(here), atol=1e-3)
    found = structural.structural(*blobs(), 5, 5, 0, device=card)
    pd.testing.assert_frame_equal(found, structural.structural(*blobs(), 5, 5, 0))


def test_repeated_actions_widen_the_null():
    x, subset = blobs()
    again = np.repeat(np.arange(0, len(x), 5), 5)  # five rows an action, all with its labels
    x, subset = x[again], subset.iloc[again].reset_index(drop=True)
    found = structural.hdbscan_labels(
        matrices.distances(structural.components(x + np.random.default_rng(0).normal(size=x.shape) * 0.1))
    )
    polarity = structural.labelings(subset)["polarity"]
    by_action = structural.shuffled_index(polarity, found, subset["action"].to_numpy(), 100, 0)
    by_row = structural.shuffled_index(polarity, found, np.arange(len(x)), 100, 0)
    assert by_action.std() > 1.5 * by_row.std()


def test_the_supervised_bound_reaches_what_is_there_and_clusters_are_stable():
    table = structural.structural(*blobs(), DRAWS, PERMUTATIONS, 0)
    assert value(table, target="foundation", arm="supervised") > 0.95
    assert value(table, target="polarity", arm="supervised") == pytest.approx(0, abs=0.05)
    assert value(table, arm="stability") > 0.95


def test_all_noise_is_not_computed_rather_than_perfect():
    x = np.random.default_rng(0).normal(size=(400, 30))
    table = structural.structural(x, blobs(rows=80)[1], 5, 5, 0)
    assert value(table, metric="coverage") == 0
    undefined = table[table["arm"].isin(["published", "stability"]) & (table["metric"] == "adjusted_rand")]
    assert undefined["value"].isna().all()
    assert undefined["reason"].str.startswith("not computed").all()
    assert (table.loc[table["arm"] == "all_points", "value"] == 0).all()


# --------------------------------------------------------------------------------------- dimensional


def test_the_ridge_path_equals_refitting_with_scikit_learn():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 8)) * np.arange(1, 9) + 1000, generator.normal(size=(60, 3))
    x[:, 3] = 5.0
    sums = linear.moments(x - x[0], y)
    penalties = np.array([0.001, 0.1, 10.0])
    coefficients, intercepts = linear.ridge_path(sums, penalties)
    for k, penalty in enumerate(penalties):
        oracle = make_pipeline(StandardScaler(), Ridge(alpha=penalty * 60)).fit(x, y)
        np.testing.assert_allclose((x - x[0]) @ coefficients[k] + intercepts[k], oracle.predict(x), atol=1e-8)
    assert (coefficients[:, 3] == 0).all(), "a feature that does not vary drops out"


def test_errors_from_sums_equal_errors_from_rows():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(90, 12)), generator.normal(size=(90, 3))
    coefficients, intercepts = linear.ridge_path(linear.moments(x[:60], y[:60]))
    found = linear.squared_errors(linear.moments(x[60:], y[60:]), coefficients, intercepts)
    residuals = y[60:] - (x[60:] @ coefficients + intercepts[:, None])
    np.testing.assert_allclose(found, (residuals**2).sum(axis=1))


def test_held_out_ridge_equals_a_nested_search_with_scikit_learn():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(120, 6)).astype(np.float32)
    y = x[:, :2] * 0.5 + generator.normal(size=(120, 2))
    fold = linear.grouped_folds(np.arange(120) // 2, 0)
    assert all(len(set(fold[2 * g : 2 * g + 2])) == 1 for g in range(60)), "a group lies in one fold"
    expected = np.empty_like(y)
    for outer in range(5):
        train, errors = fold != outer, []
        for penalty in linear.PENALTIES:
            missed = 0.0
            for inner in set(range(5)) - {outer}:
                fit, check = train & (fold != inner), fold == inner
                model = make_pipeline(StandardScaler(), Ridge(alpha=penalty * fit.sum())).fit(x[fit], y[fit])
                missed += ((model.predict(x[check]) - y[check]) ** 2).sum()
            errors.append(missed)
        best = linear.PENALTIES[int(np.argmin(errors))]
        model = make_pipeline(StandardScaler(), Ridge(alpha=best * train.sum())).fit(x[train], y[train])
        expected[fold == outer] = model.predict(x[fold == outer])
    np.testing.assert_allclose(linear.ridge_held_out(x, y, fold), expected, atol=1e-4)


def test_the_discriminant_equals_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    x = generator.normal(size=(4, 9))[labels] * 0.8 + generator.normal(size=(400, 9))
    fold = linear.grouped_folds(np.arange(400), 0)
    expected = np.empty(400, dtype=int)
    for name in range(5):
        train = fold != name
        # Standardised by the spread within classes, scikit-learn's shrinkage has the identity as its target.
        within = x[train] - np.stack([x[train & (labels == c)].mean(axis=0) for c in range(4)])[labels[train]]
        scale = within.std(axis=0)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=linear.SHRINKAGE).fit(
            x[train] / scale, labels[train]
        )
        expected[fold == name] = model.predict(x[fold == name] / scale)
    assert (linear.discriminant_held_out(x, labels, fold) == expected).mean() > 0.99


def test_more_dimensions_than_rows_is_no_obstacle():
    x, vectors, actions, topics = probe_data(0.1, rows=90, width=200)
    table = dimensional.ridge(x, vectors, actions, topics, 5, 0)
    assert value(table, target="all", arm="ridge") > 0.2
    probe = dimensional.published(x, vectors, actions, 5, 0)
    adjusted = probe[probe["metric"] == "adjusted_r2"]
    assert adjusted["value"].isna().all()
    assert "18 test rows are too few for 200 dimensions" in adjusted["reason"].item()


def test_r_squared_equals_scikit_learn():
    generator = np.random.default_rng(0)
    truth, predicted = generator.normal(size=(50, 3)), generator.normal(size=(50, 3))
    found = dimensional.weighted_r2(truth, predicted, np.ones((1, 50)))[0]
    np.testing.assert_allclose(found, r2_score(truth, predicted, multioutput="raw_values"))


def probe_data(noise, rows=900, width=20):
    generator = np.random.default_rng(0)
    vectors = np.zeros((rows, len(CATEGORIES)))
    vectors[np.arange(rows), generator.integers(0, len(CATEGORIES), rows)] = generator.choice([0.25, 0.5, 1.0], rows)
    x = vectors @ generator.normal(size=(len(CATEGORIES), width)) + noise * generator.normal(size=(rows, width))
    topics = pd.Series(vectors.argmax(axis=1) // 2).astype(str).to_numpy()
    return x, vectors, np.array([f"a{i}" for i in range(rows)]), topics


def test_a_linear_code_is_read_and_shuffled_labels_are_not():
    x, vectors, actions, topics = probe_data(0.2)
    table = dimensional.ridge(x, vectors, actions, topics, DRAWS, 0)
    assert value(table, target="all", arm="ridge") > 0.8
    probe = dimensional.published(x, vectors, actions, DRAWS, 0)
    r2 = value(probe, target="all", metric="r2")
    assert r2 > 0.5
    n, p = probe["n"].iloc[0], value(probe, metric="predictors")
    assert (n, p) == (180, 20)
    assert value(probe, target="all", metric="adjusted_r2") == pytest.approx(1 - (1 - r2) * (n - 1) / (n - p - 1))
    assert value(table, target="all", arm="shuffled") < 0.01
    assert 0.05 < value(table, target="all", arm="shuffled_within_foundations") < 0.6, "topic alone explains a part"


def test_rows_of_one_action_never_help_each_other():
    x, vectors, actions, topics = probe_data(50.0, rows=200)
    twice = tuple(np.concatenate([part, part]) for part in (x, vectors, actions, topics))
    table = dimensional.ridge(*twice, DRAWS, 0)
    assert value(table, target="all", arm="ridge") < 0.05


# ------------------------------------------------------------------------------- degenerate and verdicts


@pytest.mark.parametrize("damage", ["no prototypes", "no variance", "not finite", "no rows"])
def test_degenerate_input_is_reported_and_never_a_zero(damage):
    x, subset = planted(1.0, per_cell=8)
    if damage == "no prototypes":
        kept = ~((subset["category"] == "harm") & (subset["typicality"] == 1.0)).to_numpy()
        x, subset = x[kept], subset[kept].reset_index(drop=True)
    if damage == "no variance":
        x = np.ones_like(x)
    if damage == "not finite":
        x[3, 3] = np.nan
    if damage == "no rows":
        x, subset = x[:0], subset[:0]
    actions, vectors = subset["action"].to_numpy(), np.zeros((len(x), 10))
    tables = {
        "categorical": categorical.categorical(x, subset, 3, 3, 0),
        "separability": categorical.separability(x, subset, 3, 3, 0),
        "gradient": gradient.gradient(x, subset, 3, 3, 0),
        "structural": structural.structural(x, subset, 3, 3, 0),
        "ridge": dimensional.ridge(x, vectors, actions, actions, 3, 0),
        "probe": dimensional.published(x, vectors, actions, 3, 0),
    }
    for name, table in tables.items():
        undefined = table[table["value"].isna()]
        assert undefined["reason"].str.startswith("not computed, because").all(), name
        assert (table.loc[table["value"].notna(), "reason"] == "").all(), name
        assert table["value"].isna().all() or damage == "no prototypes", name
    if damage == "no prototypes":
        bad = tables["gradient"].query("category == 'harm'")
        assert bad["value"].isna().all()
        assert tables["categorical"].query("foundation == 'care-harm'")["value"].isna().all()
        assert tables["categorical"].query("foundation == 'all' and arm == 'published'")["value"].notna().all()
        assert np.isfinite(value(tables["gradient"], category="care", arm="published"))


def test_a_pole_without_rows_is_reported():
    x, subset = planted(1.0, per_cell=8)
    kept = (subset["category"] != "cheating").to_numpy()
    table = categorical.separability(x[kept], subset[kept].reset_index(drop=True), 3, 0, 0).set_index("foundation")
    assert np.isnan(table.loc["fairness-cheating", "value"])
    assert "a pole has too few rows" in table.loc["fairness-cheating", "reason"]
    assert table.loc["all", "value"] > 0.5


def test_constant_labels_have_no_r_squared():
    x, vectors, actions, topics = probe_data(0.2)
    vectors[:, 4] = 0.0
    table = dimensional.ridge(x, vectors, actions, topics, 3, 0, nulls=False).set_index("target")
    assert np.isnan(table.loc[CATEGORIES[4], "value"])
    assert table.loc[CATEGORIES[4], "reason"].startswith("not computed, because")
    assert table.loc["all", "value"] > 0.5


def test_equally_typical_rows_have_no_gradient():
    x, subset = planted(1.0, per_cell=8)
    only = (subset["typicality"] == 1.0).to_numpy()
    found = gradient.gradient(x[only], subset[only], 3, 3, 0)
    assert found["value"].isna().all()
    assert found.loc[found["category"] != "all", "reason"].str.contains("equally typical").all()


PEOPLE = pd.DataFrame({"dimension": "mean", "metric": ["spearman", "r2"], "value": [0.5, 0.3]})


class Store:
    """Pooled residual streams in memory, as ``lib.store.ActivationStore`` gives them."""

    def __init__(self, pooled, index):
        self.pooled, self.index = pooled, index
        self.poolings, self.layers, self.width = list(pooled), *next(iter(pooled.values())).shape[::2]
        self.actions = index["action"].tolist()

    def rows_of(self, actions):
        return pd.Index(self.index["action"]).get_indexer(list(actions))

    def read(self, layer, pooling, rows):
        return self.pooled[pooling][layer][rows]


def a_model(strength, first_token=0.0, layers_=2, seed=0):
    """A store, annotations and subset whose activations hold the planted geometry; the text of an action holds none."""
    rows, subset = planted(strength, per_cell=40, first_token=first_token)
    generator = np.random.default_rng(seed)
    subset["action"] = [f"{word} {index}" for index, word in enumerate(generator.choice(list("abcdefgh"), len(subset)))]
    vectors = np.zeros((len(subset), len(CATEGORIES)))
    for index, (category, typicality) in enumerate(zip(subset["category"], subset["typicality"], strict=True)):
        if category:
            vectors[index, CATEGORIES.index(category)] = typicality
    ids = [f"id{index}" for index in range(len(subset))]
    annotations = pd.DataFrame(vectors, columns=list(CATEGORIES)).assign(id=ids, action=subset["action"])
    annotations["foundations"] = [[foundation] for foundation in subset["foundation"]]
    pooled = {
        name: np.stack([rows + generator.normal(size=rows.shape) * 0.1 for _ in range(layers_)]).astype(np.float32)
        for name in ("mean", "last")
    }
    index = pd.DataFrame({"action": subset["action"], "tokens": subset["length"]})
    columns = ["id", "foundation", "polarity", "typicality", "is_prototype"]
    return Store(pooled, index), annotations, subset.assign(id=ids)[columns]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_whole_diagnosis_finds_planted_geometry(pooling):
    tables = layers.diagnose(*a_model(4.0), "planted", pooling, 40, 40, 2, 10_000, 0)
    verdict = verdicts.verdicts(tables, PEOPLE).set_index("kind")["verdict"]
    assert (verdict.loc[["categorical", "gradient", "dimensional"]] == verdicts.NOT_INDIFFERENT).all()
    assert verdicts.verdicts(tables, PEOPLE).set_index("kind")["ceiling"].dropna().to_dict() == {
        "gradient": 0.5,
        "dimensional": 0.3,
    }
    for kind, table in tables.items():
        assert set(table["layer"]) == {0, 1}, kind
        unknown = {part for arm in table["arm"] for part in arm.split(", ")} - set(controls.ARMS)
        assert not unknown, f"{kind}: arms without a stated reason: {unknown}"
        null = table.dropna(subset="p")
        assert (null["p_corrected"] >= null["p"] - 1e-12).all()
    used = {part for table in tables.values() for arm in table["arm"] for part in arm.split(", ")}
    assert set(controls.ARMS) - set(Pooling.__args__) <= used, "every control that is listed is there"


def test_processes_side_by_side_find_what_one_finds(monkeypatch):
    inputs = a_model(4.0)
    alone = layers.diagnose(*inputs, "planted", "mean", 10, 10, 1, 10_000, 0)
    monkeypatch.setattr(layers, "processes", lambda _: 2)
    together = layers.diagnose(*inputs, "planted", "mean", 10, 10, 1, 10_000, 0)
    for kind, table in alone.items():
        pd.testing.assert_frame_equal(table, together[kind])


class DeadlyStore(Store):
    def read(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_diagnosis_as_missing_memory_does(monkeypatch):
    store, annotations, subset = a_model(4.0)
    monkeypatch.setattr(layers, "processes", lambda _: 2)
    with pytest.raises(RuntimeError) as raised:
        layers.diagnose(
            DeadlyStore(store.pooled, store.index), annotations, subset, "killed", "mean", 5, 5, 1, 10_000, 0
        )
    assert type(raised.value).__name__ in failures.MEMORY_ERRORS


def test_there_are_as_many_processes_as_cores_and_memory_allow(monkeypatch):
    def available(gigabytes):
        return lambda: SimpleNamespace(available=gigabytes * 1e9)

    inputs = SimpleNamespace(large=True, subset=range(16_135), actions=range(25_000), store=SimpleNamespace(width=4096))
    monkeypatch.setattr(layers, "cpu_count", lambda: 2)
    monkeypatch.setattr(layers.psutil, "virtual_memory", available(7.3))
    assert layers.processes(inputs) == 2
    monkeypatch.setattr(layers.psutil, "virtual_memory", available(2))
    assert layers.processes(inputs) == 1
    monkeypatch.setattr(layers, "cpu_count", lambda: 64)
    monkeypatch.setattr(layers.psutil, "virtual_memory", available(500))
    assert layers.processes(inputs) == layers.DIAGNOSIS_PROCESSES
    inputs.large = False
    assert layers.processes(inputs) == 1


def test_a_damaged_layer_is_reported_and_the_others_are_analysed():
    store, annotations, subset = a_model(4.0, layers_=3)
    for pooled in store.pooled.values():
        pooled[0], pooled[1] = 7.0, np.nan
    tables = layers.diagnose(store, annotations, subset, "damaged", "mean", 10, 10, 3, 10_000, 0)
    for kind, table in tables.items():
        bad = table[(table["layer"] < 2) & (table["pooling"] != "none")]
        assert bad["value"].isna().all(), kind
        assert bad["reason"].str.startswith("not computed, because the layer").all(), kind
        assert table.loc[table["layer"] == 2, "value"].notna().any(), kind
    verdict = verdicts.verdicts(tables, PEOPLE).set_index("kind")
    assert (verdict.loc[["categorical", "gradient", "dimensional"], "layer"] == 2).all()
    assert set(gradient.peaks(tables["gradient"])["layer"]) == {2}


@pytest.mark.parametrize("first_token", [0.0, 300.0])
def test_the_whole_diagnosis_finds_nothing_in_nothing(first_token):
    """Also where a large first token and length dominate: high cosines, and still no moral content."""
    tables = layers.diagnose(*a_model(0.0, first_token), "nothing", "mean", 40, 40, 2, 10_000, 0)
    assert set(verdicts.verdicts(tables, PEOPLE)["verdict"]) == {verdicts.INDIFFERENT}


def test_words_only_knows_words_and_nothing_else():
    actions = ["helping a friend", "a friend helping", "hurting a friend", ""]
    found = controls.words_only(actions, 16, 0)
    np.testing.assert_allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    assert (found[3] == 0).all()
    np.testing.assert_array_equal(found, controls.words_only(actions, 16, 0))


def test_correction_for_many_tests_equals_its_definition():
    p = np.array([0.001, 0.02, 0.03, 0.5])
    frame = pd.DataFrame({"model": "m", "layer": range(4), "pooling": "mean", "category": "care", "arm": "shuffled"})
    found = layers.corrected(frame.assign(metric="spearman", p=p))["p_corrected"]
    expected = np.minimum.accumulate((p * 4 / np.arange(1, 5))[::-1])[::-1]
    np.testing.assert_allclose(found, expected)


@pytest.mark.pipeline
def test_the_demo_models_come_out_right(demo_run):
    """The known answer: only the models trained on the labels are told from their nulls, by a wide margin."""
    tables = {path.parent.name: pd.read_parquet(path) for path in demo_run.glob("diagnosis/*/verdicts.parquet")}
    assert len(tables) == 6
    by_kind = {name: table.set_index("kind") for name, table in tables.items()}
    for size in ("small", "large"):
        moral = by_kind[f"moral-{size}"]
        for kind in ("categorical", "gradient", "structural", "dimensional"):
            assert moral.loc[kind, "verdict"] == verdicts.NOT_INDIFFERENT
            for other in ("indifferent", "untrained"):
                naive = by_kind[f"{other}-{size}"]
                assert naive.loc[kind, "verdict"] == verdicts.INDIFFERENT, f"{other}-{size}, {kind}"
                assert moral.loc[kind, "ci_low"] > naive.loc[kind, "ci_high"], f"{other}-{size}, {kind}"
