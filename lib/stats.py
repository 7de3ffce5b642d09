"""Intervals, nulls and equivalence, the same way in every stage.

Rows that share an action are not independent, so every interval resamples actions and every permutation moves whole
actions, not rows.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats import rankdata


def cluster_weights(clusters: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return row weights [draws + 1, rows] of a bootstrap over clusters; the first line is all ones. They are read-only.

    ``clusters`` holds the cluster of every row, [rows]; ``draws`` is the number of resamples.
    """
    if len(clusters) == 0:
        return np.ones((draws + 1, 0))
    of_row, distinct = pd.factorize(clusters, sort=True)
    return _weights(of_row.tobytes(), len(distinct), draws, seed)


@lru_cache(maxsize=4)
def _weights(of_row: bytes, count: int, draws: int, seed: int) -> np.ndarray:
    """Draw once what the analyses of every layer weight their rows with."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    rows = np.frombuffer(of_row, dtype=np.intp)
    weights = np.ones((draws + 1, len(rows)))
    weights[1:] = drawn[:, rows]
    weights.flags.writeable = False
    return weights


def half_samples(clusters: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return the rows of random halves of the clusters, boolean [draws, rows].

    Half of the clusters, drawn without replacement, vary about all of them as all vary about the population, so the standard
    deviation of a statistic over halves is its standard error (Politis, Romano and Wolf, 1999: of n clusters, b drawn vary by
    (n - b) / b as much). No row occurs twice, as it does in a bootstrap, where a row and its copy agree by construction.
    """
    of_row, distinct = pd.factorize(clusters, sort=True)
    ranks = np.random.default_rng(seed).random((draws, len(distinct))).argsort(axis=1)
    return (ranks < len(distinct) // 2)[:, of_row]


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of the finite samples; NaN where there are none."""
    finite = samples[np.isfinite(samples)]
    if len(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def interval_around(value: float, samples: np.ndarray, *, error: float = 0.05) -> tuple[float, float]:
    """Return the normal interval around value that misses with probability ``error``; NaN for fewer than two samples.

    For statistics that resampling itself shifts: a mean of resampled rows is noisier than the mean of the rows, so the
    cosine of two means is smaller in every resample, and percentiles would lie beside the value they should enclose.
    """
    finite = samples[np.isfinite(samples)]
    if len(finite) < 2 or not np.isfinite(value):
        return float("nan"), float("nan")
    half = float(stats.norm.isf(error / 2) * finite.std(ddof=1))
    return float(value) - half, float(value) + half


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


def permutations(clusters: np.ndarray, draws: int, seed: int | np.random.Generator) -> Iterator[np.ndarray]:
    """Yield row orders, [rows], that move whole clusters to the places of clusters of the same size.

    ``labels[order]`` then gives every cluster, such as the rows of one action, the labels of another one, so labels that agree
    within a cluster still do. A permutation of rows would break them up, and the null would be too narrow.
    """
    generator = np.random.default_rng(seed)
    codes = pd.factorize(clusters)[0]
    by_cluster = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    blocks = [by_cluster[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)]
    for _ in range(draws):
        order = np.empty(len(codes), dtype=np.intp)
        for block in blocks:
            order[block] = block[generator.permutation(len(block))]
        yield order


def permutation_p(value: float, null: np.ndarray, two_sided: bool = False) -> float:
    """Return the share of null draws at least as high as ``value``, or as far from their mean; counts itself once."""
    finite = null[np.isfinite(null)]
    if len(finite) == 0 or not np.isfinite(value):
        return float("nan")
    centre = finite.mean() if two_sided else 0.0
    as_extreme = np.abs(finite - centre) >= abs(value - centre) if two_sided else finite >= value
    return float((1 + as_extreme.sum()) / (1 + len(finite)))


def weighted_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson correlations of x and y [rows] under every line of weights [draws, rows]; NaN if constant."""
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = weights @ x / total, weights @ y / total
        covariance = weights @ (x * y) / total - mean_x * mean_y
        variance_x = weights @ x**2 / total - mean_x**2
        variance_y = weights @ y**2 / total - mean_y**2
        result = covariance / np.sqrt(variance_x * variance_y)
    return np.where((variance_x > 1e-12) & (variance_y > 1e-12), result, np.nan)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's correlations under every line of weights [draws, rows]; resamples keep the whole sample's ranks."""
    return pearson(rankdata(x), rankdata(y), weights)


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlations of x and y [rows] under every line of weights [draws, rows]."""
    return weighted_correlation(standard(x), standard(y), weights)


def standard(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and standard deviation 1 along the last axis; constant values become 0."""
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = centred.std(axis=-1, keepdims=True)
    return centred / np.where(deviation > 0, deviation, 1)


def equivalence(
    estimate: float, standard_error: float, margin: float, degrees_of_freedom: float = np.inf
) -> tuple[float, float, float]:
    """Two one-sided tests: is a difference smaller than ``margin``?

    Args:
        estimate: of the difference.
        standard_error: of the estimate.
        margin: differences smaller than this, in the same unit, count as none.
        degrees_of_freedom: of Student's t; infinity for the normal distribution.

    Returns:
        The ends of the 90% interval, which lies inside the margin exactly when both tests reject at 5%, and the larger of
        the two p-values.
    """
    t = stats.t(degrees_of_freedom)
    half = t.ppf(0.95) * standard_error
    with np.errstate(divide="ignore", invalid="ignore"):
        below = t.sf(np.divide(estimate + margin, standard_error))
        above = t.sf(np.divide(margin - estimate, standard_error))
    return estimate - half, estimate + half, float(max(below, above))
