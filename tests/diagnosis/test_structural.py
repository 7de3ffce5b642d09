"""Clusters equal those of the hdbscan package; the index equals scikit-learn's."""

from itertools import combinations

import hdbscan
import numpy as np
import pandas as pd
import pytest
import torch
from diagnosis.planted import DRAWS, PERMUTATIONS, blobs, value
from scipy.spatial.distance import cdist
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from lib.diagnosis import matrices, structural, tidy
from lib.diagnosis.sampling import Sampling
from lib.paper import FOUNDATIONS


def test_clusters_equal_those_of_the_hdbscan_package():
    generator = np.random.default_rng(3)
    x = np.concatenate([blobs()[0], generator.uniform(-15, 15, (300, 8))])
    reduced = PCA(0.95, svd_solver="full").fit_transform(x - x.mean(axis=0))
    # Prim's algorithm gives the exact spanning tree; the package's default, Boruvka's on trees, differs in a few labels.
    oracle = hdbscan.HDBSCAN(min_cluster_size=100, min_samples=20, algorithm="prims_kdtree", approx_min_span_tree=False)
    expected = oracle.fit_predict(reduced)
    points = structural.components(x)
    found = structural.hdbscan_labels(points)
    assert points.shape == reduced.shape
    assert adjusted_rand_score(expected, found) == pytest.approx(1.0)
    assert ((expected < 0) == (found < 0)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", ["duplicates", "rounded"])
def test_clusters_with_ties_equal_those_of_the_hdbscan_package_but_for_a_few_points(seed, ties):
    """Ties leave the spanning tree open; the package's own algorithms differ from one another by as many points."""
    generator = np.random.default_rng(seed)
    x = np.concatenate([blobs(seed)[0], generator.uniform(-15, 15, (300, 8))])
    x = np.concatenate([x, x[::3], x[::3]]) if ties == "duplicates" else np.round(x, 1)
    oracle = hdbscan.HDBSCAN(min_cluster_size=100, min_samples=20, algorithm="prims_kdtree", approx_min_span_tree=False)
    expected, found = oracle.fit_predict(x), structural.hdbscan_labels(x)
    assert found.max() == expected.max() == 4
    assert adjusted_rand_score(expected, found) > 0.997
    assert ((expected < 0) == (found < 0)).mean() > 0.999
    if seed < 3:
        assert adjusted_rand_score(expected, found) == pytest.approx(1.0)


def test_planted_clusters_follow_foundations_and_not_polarities():
    table = structural.structural(*blobs(), sampling=Sampling(DRAWS, PERMUTATIONS, 0))
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
    table = structural.structural(np.concatenate([x, noise]), pd.concat([subset, more]), sampling=Sampling(5, 5, 0))
    assert value(table, target="all", metric="coverage") < 0.3
    assert value(table, target="foundation", arm="published", metric="adjusted_rand") > 0.5
    assert value(table, target="foundation", arm="all_points") < 0.1


@pytest.mark.parametrize("share", [0, 1 / 3, 1])
def test_the_index_equals_scikit_learn(share):
    generator = np.random.default_rng(0)
    labels, found = generator.integers(0, 5, 300), generator.integers(0, 4, 300)
    found[: int(300 * share)] = labels[: int(300 * share)]
    assert structural.adjusted_rand(labels, found) == pytest.approx(adjusted_rand_score(labels, found))
    one = np.zeros(300, dtype=int)
    assert structural.adjusted_rand(labels, one) == adjusted_rand_score(labels, one) == 0
    assert structural.adjusted_rand(one, one) == adjusted_rand_score(one, one) == 1


def test_pairs_of_one_action_can_be_left_out():
    generator = np.random.default_rng(1)
    actions = generator.integers(0, 50, 120)
    labels, found = generator.integers(0, 3, 120), generator.integers(0, 4, 50)[actions]
    pairs = [pair for pair in combinations(range(120), 2) if actions[pair[0]] != actions[pair[1]]]
    same = np.array([(labels[i] == labels[j], found[i] == found[j]) for i, j in pairs])
    of_labels, of_found = same.sum(axis=0)
    expected = of_labels * of_found / len(pairs)
    by_hand = (same.all(axis=1).sum() - expected) / ((of_labels + of_found) / 2 - expected)
    assert structural.adjusted_rand(labels, found, actions) == pytest.approx(by_hand)
    assert structural.adjusted_rand(labels, found, np.arange(120)) == structural.adjusted_rand(labels, found)


def labelled(seed, *, effect, clusters=60, labels=3, actions=600):
    """Labels and clusters of rows, a third of whose actions have two; a share ``effect`` of the labels follows the cluster."""
    generator = np.random.default_rng(seed)
    action = np.repeat(np.arange(actions), 1 + (generator.random(actions) < 1 / 3))
    cluster = generator.integers(0, clusters, actions)[action]
    follows = generator.random(len(action)) < effect
    label = np.where(follows, cluster % labels, generator.integers(0, labels, actions)[action])
    subset = pd.DataFrame({"action": action.astype(str), "polarity": label.astype(str), "foundation": "f"})
    return cluster, subset


def table_of(clusters, subset, *, draws, seed=0):
    """The table of polarity for clusters that are given; the first tenth of the rows is noise."""
    kept = np.arange(len(clusters)) >= len(clusters) // 10
    labels = structural.labelings(subset)["polarity"]
    how = {"kept": kept, "subset": subset, "sampling": Sampling(draws, draws, seed), "arm": "published"}
    records = structural.compared("polarity", labels, clusters=clusters, **how)
    return tidy.table("target", records).set_index("arm")


@pytest.mark.parametrize("clusters", [5, 15, 60])
def test_clusters_without_labels_are_rarely_above_their_null(clusters):
    """The old interval, of a bootstrap, lay above the null in all of such worlds with 60 clusters."""
    above, significant, outside = [], [], []
    for seed in range(60):
        found = table_of(*labelled(seed, effect=0, clusters=clusters), draws=60, seed=seed)
        for arm, null in (("published", "shuffled"), ("all_points", "shuffled_all_points")):
            above.append(found.loc[arm, "ci_low"] > found.loc[null, "ci_high"])
            significant.append(found.loc[null, "p"] <= 0.05)
        outside += ((found["value"] < found["ci_low"]) | (found["value"] > found["ci_high"])).tolist()
    assert np.mean(above) <= 0.05
    assert 0.01 <= np.mean(significant) <= 0.1
    assert not any(outside)


def test_without_pairs_of_one_action_the_index_of_unrelated_labels_is_zero():
    """Two rows of an action lie in one cluster and mostly share their label, which alone gives an index above zero."""
    found = [table_of(*labelled(seed, effect=0), draws=1)["value"] for seed in range(100)]
    mean, error = pd.DataFrame(found).mean(), pd.DataFrame(found).sem()
    assert abs(mean["across_actions"]) < 3 * error["across_actions"]
    assert mean["all_points"] > 6 * error["all_points"]


@pytest.mark.parametrize(("effect", "clusters"), [(0.3, 5), (0.7, 15)])
def test_the_interval_of_the_index_covers_what_more_actions_would_give(effect, clusters):
    truth = np.mean(
        [
            table_of(*labelled(900 + i, effect=effect, clusters=clusters, actions=40_000), draws=1)["value"]
            for i in range(2)
        ],
        axis=0,
    )
    covered = []
    for seed in range(150):
        found = table_of(*labelled(seed, effect=effect, clusters=clusters), draws=60, seed=seed)
        covered.append((found["ci_low"] <= truth) & (truth <= found["ci_high"]))
    measured = pd.DataFrame(covered)[["published", "all_points", "across_actions"]].mean()
    assert (measured > 0.9).all()
    assert (measured < 0.995).all()


def test_components_from_the_covariance_give_the_labels_of_the_full_decomposition():
    x = np.concatenate([blobs()[0] @ np.random.default_rng(0).normal(size=(8, 30)), np.zeros((20, 30))])
    full = PCA(0.95, svd_solver="full").fit_transform(x - x.mean(axis=0))
    expected = HDBSCAN(100, min_samples=21, algorithm="brute", copy=True).fit_predict(full)
    points = structural.components(x)
    found = structural.hdbscan_labels(points)
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
    expected, found = oracle.fit_predict(full), structural.hdbscan_labels(points)
    assert expected.max() > 0
    assert adjusted_rand_score(expected, found) == 1.0


def test_what_a_gpu_would_compute_is_what_the_cpu_does():
    """PyTorch's way, which a GPU takes, tried on the CPU."""
    gpu, x = torch.device("cpu"), blobs()[0] @ np.random.default_rng(0).normal(size=(8, 30))
    np.testing.assert_allclose(matrices.covariance(x, gpu), matrices.covariance(x), rtol=1e-4, atol=1e-4)
    here, there = structural.components(x), structural.components(x, device=gpu)
    assert here.shape == there.shape
    np.testing.assert_allclose(cdist(there, there), cdist(here, here), atol=1e-3)
    found = structural.structural(*blobs(), sampling=Sampling(5, 5, 0), device=gpu)
    pd.testing.assert_frame_equal(found, structural.structural(*blobs(), sampling=Sampling(5, 5, 0)))


def test_repeated_actions_widen_the_null():
    x, subset = blobs()
    again = np.repeat(np.arange(0, len(x), 5), 5)  # five rows an action, all with its labels
    x, subset = x[again], subset.iloc[again].reset_index(drop=True)
    found = structural.hdbscan_labels(structural.components(x + np.random.default_rng(0).normal(size=x.shape) * 0.1))
    by_row = subset.assign(action=[f"row {index}" for index in range(len(x))])
    spread = []
    for rows in (subset, by_row):
        null = table_of(found - found.min(), rows, draws=100).loc["shuffled_all_points"]
        spread.append(null["ci_high"] - null["ci_low"])
    assert spread[0] > 1.5 * spread[1]


def test_every_null_has_as_many_draws_as_asked_for():
    cluster, subset = labelled(0, effect=0.9, clusters=5)
    for draws in (9, 49):
        found = table_of(cluster, subset, draws=draws)
        assert found.loc[["shuffled", "shuffled_all_points"], "p"].to_numpy() == pytest.approx(1 / (draws + 1))


def test_the_discriminant_finds_what_is_there_and_clusters_are_stable():
    table = structural.structural(*blobs(), sampling=Sampling(DRAWS, PERMUTATIONS, 0))
    assert value(table, target="foundation", arm="discriminant") > 0.95
    assert value(table, target="polarity", arm="discriminant") == pytest.approx(0, abs=0.05)
    assert value(table, arm="stability") > 0.95
    stability = table[table["arm"] == "stability"]
    assert stability[["ci_low", "ci_high"]].isna().all(axis=None), "three values have no 95% interval"
    inside = table.dropna(subset="ci_low")
    assert ((inside["ci_low"] <= inside["value"]) & (inside["value"] <= inside["ci_high"])).all()


def test_all_noise_is_not_computed_rather_than_perfect():
    x = np.random.default_rng(0).normal(size=(400, 30))
    table = structural.structural(x, blobs(rows=80)[1], sampling=Sampling(5, 5, 0))
    assert value(table, metric="coverage") == 0
    undefined = table[table["arm"].isin(["published", "stability"]) & (table["metric"] == "adjusted_rand")]
    assert undefined["value"].isna().all()
    assert undefined["reason"].str.startswith("not computed").all()
    assert (table.loc[table["arm"] == "all_points", "value"] == 0).all()


def test_too_few_rows_for_a_cluster_have_a_row_with_the_reason_in_both_arms():
    x, subset = blobs(rows=10)
    table = structural.structural(x, subset, sampling=Sampling(3, 3, 0))
    assert set(table["arm"]) == {"published", "all_points"}
    assert table["reason"].str.contains("fewer than the smallest cluster").all()


def test_a_label_of_one_fold_alone_has_no_discriminant():
    x, subset = blobs(rows=40)
    subset["polarity"] = "virtue"
    subset.loc[:4, ["polarity", "action"]] = ["vice", "one action"]
    table = structural.structural(x, subset, sampling=Sampling(3, 3, 0))
    missing = table[(table["arm"] == "discriminant") & (table["target"] == "polarity")]
    assert missing["value"].isna().all()
    assert "one label only" in missing["reason"].item()
