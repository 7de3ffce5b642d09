"""Intervals and correlations against scipy, statsmodels and repeated sampling."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lib import statistics

RNG = np.random.default_rng(0)


def test_correlations_equal_scipy():
    x, y = RNG.normal(size=200), RNG.normal(size=200)
    y += 0.5 * x
    weights = statistics.cluster_weights(np.arange(200), 10, 0)
    assert statistics.pearson(x, y, weights)[0] == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    ties = np.round(y)
    assert statistics.spearman(x, ties, weights)[0] == pytest.approx(scipy.stats.spearmanr(x, ties)[0])


@given(st.integers(0, 2**31), st.integers(2, 30))
def test_weights_resample_whole_clusters(seed, clusters):
    of_row = np.random.default_rng(seed).integers(0, clusters, 60)
    weights = statistics.cluster_weights(of_row, 5, seed)
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

        _, low, high = statistics.clustered_bootstrap(mean, cluster, 200, trial)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_ignoring_clusters_would_be_too_sure():
    cluster = np.repeat(np.arange(30), 10)
    values = np.repeat(RNG.normal(size=30), 10)

    def mean(weights):
        return weights @ values / weights.sum(axis=1)

    clustered = statistics.clustered_bootstrap(mean, cluster, 500, 0)
    naive = statistics.clustered_bootstrap(mean, np.arange(300), 500, 0)
    assert clustered[2] - clustered[1] > 2 * (naive[2] - naive[1])


def test_a_constant_has_no_correlation():
    weights = statistics.cluster_weights(np.arange(20), 5, 0)
    assert np.isnan(statistics.pearson(np.ones(20), RNG.normal(size=20), weights)[0])


def test_an_interval_of_nothing_is_nothing():
    assert np.isnan(statistics.interval(np.array([np.nan]))).all()
