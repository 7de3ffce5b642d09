"""Intervals, nulls and equivalence, the same way in every stage.

Rows that share an action are not independent, so every interval resamples actions, not rows.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata


def cluster_weights(clusters: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return row weights [draws + 1, rows] of a bootstrap over clusters; the first line is all ones.

    Args:
        clusters: cluster of every row, shape [rows].
        draws: number of resamples.
        seed: of the generator.
    """
    _, of_row = np.unique(clusters, return_inverse=True)
    count = of_row.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return np.vstack([np.ones(len(of_row)), drawn[:, of_row]])


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of the finite samples; NaN where there are none."""
    finite = samples[np.isfinite(samples)]
    if len(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def clustered_bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: np.ndarray, draws: int, seed: int
) -> tuple[float, float, float]:
    """Return a statistic with its 95% percentile interval over resampled clusters.

    Args:
        statistic: maps row weights [draws + 1, rows] to [draws + 1] values.
        clusters: cluster of every row, shape [rows].
        draws: number of resamples.
        seed: of the generator.
    """
    values = statistic(cluster_weights(clusters, draws, seed))
    return float(values[0]), *interval(values[1:])


def weighted_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson correlations of x and y [rows] under every line of weights [draws, rows]; NaN if constant."""
    total = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    covariance = weights @ (x * y) / total - mean_x * mean_y
    variance_x = weights @ x**2 / total - mean_x**2
    variance_y = weights @ y**2 / total - mean_y**2
    with np.errstate(invalid="ignore", divide="ignore"):
        result = covariance / np.sqrt(variance_x * variance_y)
    return np.where((variance_x > 1e-12) & (variance_y > 1e-12), result, np.nan)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Return Spearman's correlation and its 95% interval; resamples keep the ranks of the whole sample."""
    return pearson(rankdata(x), rankdata(y), weights)


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Return Pearson's correlation of x and y [rows] and its 95% interval over ``cluster_weights`` [draws + 1, rows]."""
    values = weighted_correlation(standard(x), standard(y), weights)
    return float(values[0]), *interval(values[1:])


def standard(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and standard deviation 1; constant values become 0."""
    centred = values - values.mean()
    deviation = centred.std()
    return centred / deviation if deviation > 0 else centred
