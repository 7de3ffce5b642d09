"""Intervals and correlations against scipy, statsmodels and repeated sampling."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import DescrStatsW

from lib import stats

RNG = np.random.default_rng(0)


def test_correlations_equal_scipy():
    x, y = RNG.normal(size=200), RNG.normal(size=200)
    y += 0.5 * x
    weights = stats.cluster_weights(np.arange(200), 10, 0)
    assert stats.pearson(x, y, weights)[0] == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    ties = np.round(y)
    assert stats.spearman(x, ties, weights)[0] == pytest.approx(scipy.stats.spearmanr(x, ties)[0])


@given(st.integers(0, 2**31), st.integers(2, 30))
def test_weights_resample_whole_clusters(seed, clusters):
    of_row = np.random.default_rng(seed).integers(0, clusters, 60)
    weights = stats.cluster_weights(of_row, 5, seed)
    assert (weights[0] == 1).all()
    for line in weights:
        assert all(len(set(line[of_row == c])) <= 1 for c in range(clusters))
    counts = [sum(line[of_row == c][0] for c in set(of_row)) for line in weights]
    assert set(counts) == {len(set(of_row))}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        generator = np.random.default_rng(trial)
        cluster = np.repeat(np.arange(40), 3)
        values = np.repeat(generator.normal(size=40), 3) + generator.normal(size=120) * 0.1

        def mean(weights, values=values):
            return weights @ values / weights.sum(axis=1)

        _, low, high = stats.clustered_bootstrap(mean, cluster, 200, trial)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_ignoring_clusters_would_be_too_sure():
    cluster = np.repeat(np.arange(30), 10)
    values = np.repeat(RNG.normal(size=30), 10)

    def mean(weights):
        return weights @ values / weights.sum(axis=1)

    clustered = stats.clustered_bootstrap(mean, cluster, 500, 0)
    naive = stats.clustered_bootstrap(mean, np.arange(300), 500, 0)
    assert clustered[2] - clustered[1] > 2 * (naive[2] - naive[1])


def test_a_constant_has_no_correlation():
    weights = stats.cluster_weights(np.arange(20), 5, 0)
    assert np.isnan(stats.pearson(np.ones(20), RNG.normal(size=20), weights)[0])


def test_an_interval_of_nothing_is_nothing():
    assert np.isnan(stats.interval(np.array([np.nan]))).all()


@given(st.integers(0, 2**31))
def test_permutations_move_whole_clusters(seed):
    generator = np.random.default_rng(seed)
    clusters = generator.integers(0, 25, 60)
    labels = clusters * 10
    for order in stats.permutations(clusters, 3, seed):
        assert sorted(order) == list(range(60))
        moved = labels[order]
        assert all(len(set(moved[clusters == c])) == 1 for c in set(clusters)), "labels that agreed still do"


def test_permuting_rows_instead_of_clusters_would_find_too_much():
    def share_rejected(of_rows):
        rejected = 0
        for trial in range(100):
            generator = np.random.default_rng(trial)
            cluster = np.repeat(np.arange(20), 8)
            x, y = (np.repeat(generator.normal(size=20), 8) for _ in range(2))
            units = np.arange(len(x)) if of_rows else cluster
            null = np.array([np.corrcoef(x, y[order])[0, 1] for order in stats.permutations(units, 59, trial)])
            rejected += stats.permutation_p(np.corrcoef(x, y)[0, 1], null, two_sided=True) <= 0.05
        return rejected / 100

    assert share_rejected(of_rows=False) < 0.12
    assert share_rejected(of_rows=True) > 0.3


def test_permutation_p_counts_the_observed_value():
    null = np.arange(99.0)
    assert stats.permutation_p(1000.0, null) == pytest.approx(0.01)
    assert stats.permutation_p(-5.0, null) == 1.0
    assert stats.permutation_p(49.0, null, two_sided=True) == 1.0
    assert np.isnan(stats.permutation_p(float("nan"), null))


def test_percentiles_of_a_cosine_of_means_lie_beside_it_and_the_centred_interval_is_as_wide_as_its_spread():
    generator = np.random.default_rng(0)
    width, rows, beside, measured, halves = 100, 60, 0, [], []
    truth = np.ones((2, width)) * 0.2
    for trial in range(100):
        weights = stats.cluster_weights(np.arange(rows), 100, trial)
        means = [weights @ (mean + generator.normal(size=(rows, width))) for mean in truth]
        values = (means[0] * means[1]).sum(axis=1) / np.prod(np.linalg.norm(means, axis=2), axis=0)
        low, high = stats.interval(values[1:])
        beside += high < values[0]
        low, high = stats.interval_around(values[0], values[1:])
        measured.append(values[0])
        halves.append((high - low) / 2 / 1.96)
    assert beside > 50
    assert np.mean(halves) == pytest.approx(np.std(measured), rel=0.5)


def test_equivalence_equals_statsmodels():
    generator = np.random.default_rng(0)
    for shift in (0.0, 0.3, 1.0):
        x = generator.normal(size=40) + shift
        expected = DescrStatsW(x).ttost_mean(-0.5, 0.5)[0]
        low, high, p = stats.equivalence(x.mean(), x.std(ddof=1) / 40**0.5, 0.5, 39)
        assert p == pytest.approx(expected)
        assert (low > -0.5 and high < 0.5) == (p < 0.05)
