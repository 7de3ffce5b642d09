"""The human ceiling: how well one annotator's moral vector predicts another's of the same judgment.

Labels are one worker's opinion, so no model can agree with them better than people do with each other. Social-Chemistry-101
gave some rules of thumb to 5 or 50 workers; pairs of these say what agreement to expect. Every item counts the same, however
many workers it had.
"""

import krippendorff
import numpy as np
import pandas as pd

from lib.foundations import CATEGORIES
from lib.statistics import cluster_weights, interval

LEVELS = np.array([0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0])
"""Every value that a dimension of a moral vector can take."""

METRICS = ("spearman", "r2", "explainable_variance", "krippendorff_alpha")
COLUMNS = ["dimension", "metric", "value", "ci_low", "ci_high", "n", "reason"]
MINIMUM_ITEMS = 20


def ceiling(vectors: pd.DataFrame, items: pd.Series, draws: int, seed: int) -> pd.DataFrame:
    """Measure agreement between annotators, dimension by dimension.

    Args:
        vectors: the ten categories of every annotation, values of ``LEVELS``, [rows, 10].
        items: what a row's worker was asked to judge, [rows]; rows of one item are by different workers.
        draws: bootstrap resamples of items.
        seed: of the resamples.

    Returns:
        Columns ``COLUMNS``, one row a dimension (and ``mean``, over the ten) and metric: ``spearman`` of two annotators;
        ``r2``, the variance of one that a linear reading of the other explains; ``explainable_variance``, what the mean of
        infinitely many annotators would explain of one (their Pearson correlation); ``krippendorff_alpha`` at interval
        level (Krippendorff, 2011). ``n`` is the number of items with at least two annotators. ``reason`` says why a value
        is missing.
    """
    codes, _ = pd.factorize(items)
    several = np.bincount(codes)[codes] >= 2 if len(codes) else np.zeros(0, dtype=bool)
    codes, distinct = pd.factorize(codes[several])
    count = len(distinct)
    if count < MINIMUM_ITEMS:
        why = f"not computed, because {count} items have several annotators, fewer than {MINIMUM_ITEMS}"
        missing = [(name, metric, *[np.nan] * 3, count, why) for name in (*CATEGORIES, "mean") for metric in METRICS]
        return pd.DataFrame(missing, columns=COLUMNS)
    weights = cluster_weights(np.arange(count), draws, seed)
    found = {}
    for category in CATEGORIES:
        counts = level_counts(vectors.loc[several, category].to_numpy(), codes)
        found |= {(category, metric): values for metric, values in _agreement(counts, weights).items()}
    for metric in METRICS:
        stacked = np.array([found[category, metric] for category in CATEGORIES])
        defined = stacked[np.isfinite(stacked[:, 0])]
        found["mean", metric] = defined.mean(axis=0) if len(defined) else np.full(draws + 1, np.nan)
    records = []
    for (name, metric), values in found.items():
        why = "" if np.isfinite(values[0]) else "not computed, because no annotator departs from one value"
        records.append((name, metric, values[0], *interval(values[1:]), count, why))
    return pd.DataFrame(records, columns=COLUMNS)


def level_counts(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Count how many annotators gave an item each of ``LEVELS``, [items, 7], from values and item numbers [rows]."""
    counts = np.zeros((items.max() + 1, len(LEVELS)))
    np.add.at(counts, (items, np.searchsorted(LEVELS, values)), 1)
    return counts


def pair_tables(counts: np.ndarray) -> np.ndarray:
    """Return the share of each pair of levels among all ordered pairs of an item's annotators, [items, 7, 7].

    Args:
        counts: as :func:`level_counts`, at least two annotators an item.
    """
    pairs = counts[:, :, None] * counts[:, None, :]
    # Nobody is paired with himself.
    pairs -= np.eye(counts.shape[1]) * counts[:, :, None]
    total = counts.sum(axis=1)
    return pairs / (total * (total - 1))[:, None, None]


def table_correlation(tables: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of symmetric tables of shares [draws, k, k] under scores [draws, k]; NaN if constant."""
    margin = tables.sum(axis=2)
    mean = (margin * scores).sum(axis=1)
    variance = (margin * scores**2).sum(axis=1) - mean**2
    covariance = np.einsum("dij,di,dj->d", tables, scores, scores) - mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 1e-12, covariance / variance, np.nan)


def alphas(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Krippendorff's alpha at interval level under every line of item weights [draws, items], shape [draws].

    From coincidences that are summed once an item, so that resamples cost no second pass; equal to the krippendorff
    package, which takes one set of items at a time.
    """
    annotators = counts.sum(axis=1)
    per_item = pair_tables(counts) * annotators[:, None, None]
    coincidences = np.einsum("di,ijk->djk", weights, per_item)
    margin = coincidences.sum(axis=2)
    total = margin.sum(axis=1)
    distance = (LEVELS[:, None] - LEVELS) ** 2
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = np.einsum("di,dj,ij->d", margin, margin, distance)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan)


def _agreement(counts: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    tables = np.einsum("di,ijk->djk", weights, pair_tables(counts)) / weights.sum(axis=1)[:, None, None]
    margin = tables.sum(axis=2)
    midranks = np.cumsum(margin, axis=1) - margin / 2
    pearson = table_correlation(tables, np.broadcast_to(LEVELS, margin.shape))
    alpha = alphas(counts, weights)
    if np.isfinite(alpha[0]):
        alpha[0] = krippendorff.alpha(value_counts=counts, value_domain=LEVELS, level_of_measurement="interval")
    return {
        "spearman": table_correlation(tables, midranks),
        "r2": np.sign(pearson) * pearson**2,
        "explainable_variance": pearson,
        "krippendorff_alpha": alpha,
    }
