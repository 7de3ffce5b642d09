"""Structural indifference: do unsupervised clusters follow moral labels?

Centred vectors, PCA to 95% of variance, HDBSCAN (min_cluster_size 100, min_samples 20, Euclidean), then the adjusted Rand
index against foundations, polarities and both (section 3, analysis 3). The published index counts only points that are not
noise, so a layer that is almost all noise can score high; over all points stands beside it, with the coverage.
"""

import numpy as np
import pandas as pd
import torch
from scipy.sparse import diags_array
from sklearn.cluster import HDBSCAN

from lib.diagnosis import linear, matrices
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.tidy import missing, null_row, row, table, unusable
from lib.statistics import cluster_weights, permutations

MIN_CLUSTER_SIZE = 100
MIN_SAMPLES = 20
EXPLAINED = 0.95
TARGETS = ("foundation", "polarity", "foundation and polarity")
RESAMPLES = 3
"""Draws of four fifths of the actions that are clustered anew."""


def components(
    representation: np.ndarray, covariance: np.ndarray | None = None, device: torch.device | None = None
) -> np.ndarray:
    """Return the principal components that explain 95% of the variance, [rows, components], as published.

    They come from the eigenvectors of the covariance, which span what the published full decomposition spans.

    Args:
        representation: [rows, width].
        covariance: as :func:`matrices.covariance`, for callers that have it already.
        device: a card, as :func:`matrices.card`, or None.
    """
    covariance = matrices.covariance(representation, device) if covariance is None else covariance
    variances, directions = matrices.eigenvectors(covariance, device)
    explained = np.cumsum(variances[::-1].clip(0), dtype=np.float64)
    count = int(np.searchsorted(explained, EXPLAINED * explained[-1], side="right")) + 1
    return matrices.centred(representation) @ directions[:, ::-1][:, :count]


def hdbscan_labels(between: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Return the labels of HDBSCAN with an exact spanning tree, [rows], -1 for noise.

    The hierarchy depends on distances only through the minimum spanning tree. In the order in which Prim's algorithm adds
    them, the points of a cluster are neighbours at every height, so scikit-learn is given a chain instead of the whole
    matrix: the same labels, ties included, in a fraction of the time.

    Args:
        between: distances of all points, as :func:`matrices.distances`.
        rows: the points to cluster, as if there were no others; by default all.
    """
    order, lengths = prim(between, core_distances(between, MIN_SAMPLES, rows), rows)
    chain = diags_array([lengths, lengths], offsets=[1, -1]).tocsr()
    labels = np.empty(len(order), dtype=int)
    # A point's core distance in the chain is its shorter edge, so one sample leaves the edges as they are.
    labels[order] = HDBSCAN(MIN_CLUSTER_SIZE, min_samples=1, metric="precomputed", copy=False).fit_predict(chain)
    return labels


def core_distances(between: np.ndarray, min_samples: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Return the distance of each of ``rows`` to its ``min_samples``-th neighbour among them, [rows].

    A point is not its own neighbour, as in the hdbscan package that the paper used.
    """
    places = np.arange(len(between))[rows]
    core = np.empty(len(places), dtype=between.dtype)
    for start in range(0, len(places), matrices.BLOCK):
        near = between[places[start : start + matrices.BLOCK]].take(places, axis=1)
        near.partition(min_samples, axis=1)
        core[start : start + matrices.BLOCK] = near[:, min_samples]
    return core


def prim(
    between: np.ndarray, core: np.ndarray, rows: np.ndarray | slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Grow the minimum spanning tree of mutual reachability of some points from the first of them.

    Mutual reachability is the largest of a distance and the core distances of its two ends. It is taken row by row as the
    tree grows, which costs less than a second matrix, and SciPy's algorithm would first sort all edges, which takes longer
    than everything else here. Distances of zero become the smallest positive number: a sparse matrix has no zeros.

    Args:
        between: distances of all points, symmetric.
        core: core distances of those that the tree spans, [rows].
        rows: which of all points these are; by default all.

    Returns:
        Places among ``rows`` in the order in which they join, [rows], and the length of the edge that brings each but the
        first, [rows - 1].
    """
    places = np.arange(len(between))[rows]
    nearest = np.full(len(core), np.inf, dtype=between.dtype)
    outside = np.ones(len(core), dtype=bool)
    order, lengths = np.zeros(len(core), dtype=np.intp), np.empty(len(core) - 1)
    for step in range(1, len(core)):
        last = order[step - 1]
        outside[last] = False
        reachability = np.maximum(np.maximum(between[places[last]][rows], core), core[last])
        np.minimum(nearest, reachability, out=nearest, where=outside)
        nearest[last] = np.inf
        order[step] = nearest.argmin()
        lengths[step - 1] = nearest[order[step]]
    return order, np.maximum(lengths, np.finfo(float).tiny)


def structural(
    representation: np.ndarray,
    subset: pd.DataFrame,
    draws: int,
    shuffles: int,
    seed: int,
    arm: str = PUBLISHED,
    resampled: bool = True,
    features: linear.Features | None = None,
    covariance: np.ndarray | None = None,
    device: torch.device | None = None,
) -> pd.DataFrame:
    """Compare clusters with labels for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, polarity``.
        draws: bootstrap resamples of actions; the clustering itself stays fixed.
        shuffles: draws of the label shuffle; 0 for none.
        seed: of both.
        arm: label of the representation.
        resampled: whether to add ``stability`` for the published representation.
        features: what the classifier of ``supervised`` reads; by default made of the representation.
        covariance: of the representation, as :func:`matrices.covariance`; by default taken anew.
        device: a card for the products of matrices, or None.

    Returns:
        Columns ``target`` and ``tidy.MEASURED``. Metric ``adjusted_rand`` for each target, over points that are not noise
        and, in the arm ``all_points``, over all; for ``target`` = ``all`` also ``coverage`` (share of points that are not
        noise), ``clusters`` and ``components``. With shuffles come the arms ``shuffled`` and ``supervised``, and for the
        published representation ``stability``.
    """
    if reason := unusable(representation) or _too_few(len(representation)):
        names = [(target, "adjusted_rand") for target in TARGETS] + [("all", "coverage")]
        return table("target", [missing(target, arm, metric, len(subset), reason) for target, metric in names])
    points = components(representation, covariance, device)
    between = matrices.distances(points, device)
    found = hdbscan_labels(between)
    actions = subset["action"].to_numpy()
    stability = [_stability(between, found, actions, seed)] if arm == PUBLISHED and resampled else []
    del between  # by far the largest array of a diagnosis
    weights = cluster_weights(actions, draws, seed)
    kept = found >= 0
    counts = {"coverage": kept.mean(), "clusters": len(np.unique(found[kept])), "components": points.shape[1]}
    records = [row("all", arm, metric, np.array([float(value)]), len(found)) for metric, value in counts.items()]
    for target, labels in labelings(subset).items():
        if kept.any():
            values = adjusted_rand(contingency(labels[kept], found[kept], weights[:, kept]))
            records.append(row(target, arm, "adjusted_rand", values, int(kept.sum())))
        else:
            records.append(missing(target, arm, "adjusted_rand", 0, "not computed, because every point is noise"))
        values = adjusted_rand(contingency(labels, found, weights))
        records.append(row(target, named("all_points", arm), "adjusted_rand", values, len(found)))
        if shuffles:
            null = shuffled_index(labels, found, actions, shuffles, seed)
            records.append(null_row(target, named("shuffled", arm), "adjusted_rand", null, len(found), values[0]))
    if shuffles:
        read = linear.features(representation) if features is None else features
        records += _supervised(read, subset, weights, seed, named("supervised", arm))
    return table("target", records + stability)


def labelings(subset: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the three labelings as integers [rows]: 5 foundations, 3 polarities, 15 combinations."""
    both = subset["foundation"] + " " + subset["polarity"]
    columns = (subset["foundation"], subset["polarity"], both)
    return {target: pd.factorize(values, sort=True)[0] for target, values in zip(TARGETS, columns, strict=True)}


def adjusted_rand(tables: np.ndarray) -> np.ndarray:
    """Return the adjusted Rand index of contingency tables [draws, labels, clusters], shape [draws]."""
    pairs = (tables * (tables - 1) / 2).sum(axis=(1, 2))
    of_labels, of_clusters = tables.sum(axis=2), tables.sum(axis=1)
    label_pairs = (of_labels * (of_labels - 1) / 2).sum(axis=1)
    cluster_pairs = (of_clusters * (of_clusters - 1) / 2).sum(axis=1)
    total = tables.sum(axis=(1, 2))
    expected = label_pairs * cluster_pairs / np.maximum(total * (total - 1) / 2, 1)
    highest = (label_pairs + cluster_pairs) / 2
    same = np.isclose(highest, expected)
    return np.where(same, 1.0, (pairs - expected) / np.where(same, 1, highest - expected))


def shuffled_index(labels: np.ndarray, found: np.ndarray, actions: np.ndarray, shuffles: int, seed: int) -> np.ndarray:
    """Return the index over all points under permuted labels, whole actions at a time, [shuffles]."""
    one = np.ones((1, len(found)))
    tables = [contingency(labels[order], found, one) for order in permutations(actions, shuffles, seed)]
    return adjusted_rand(np.concatenate(tables))


def contingency(labels: np.ndarray, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Count pairs of label and cluster under every line of weights [draws, rows], [draws, labels, clusters]."""
    clusters = pd.factorize(found)[0]
    shape = (labels.max() + 1, clusters.max() + 1)
    cells = np.zeros((len(labels), shape[0] * shape[1]))
    cells[np.arange(len(labels)), labels * shape[1] + clusters] = 1
    return (weights @ cells).reshape(len(weights), *shape)


def _stability(between: np.ndarray, found: np.ndarray, actions: np.ndarray, seed: int) -> tuple:
    """Agreement, over all points in both, of the clusters with those of a part of the actions, in the same components."""
    fold = linear.grouped_folds(actions, seed)
    values = []
    for left_out in range(RESAMPLES):
        kept = np.flatnonzero(fold != left_out)
        again = hdbscan_labels(between, kept) if not _too_few(len(kept)) else np.full(len(kept), -1)
        if (again >= 0).any() and (found[kept] >= 0).any():
            tables = contingency(pd.factorize(found[kept])[0], again, np.ones((1, len(again))))
            values.append(adjusted_rand(tables)[0])
    if not values:
        return missing("all", "stability", "adjusted_rand", len(found), "not computed, because there are no clusters")
    return row("all", "stability", "adjusted_rand", np.array([np.mean(values), *values]), len(found))


def _supervised(
    features: linear.Features, subset: pd.DataFrame, weights: np.ndarray, seed: int, arm: str
) -> list[tuple]:
    fold = linear.grouped_folds(subset["action"].to_numpy(), seed)
    records = []
    for target, labels in labelings(subset).items():
        if labels.max() == 0 or len(np.unique(fold)) < linear.FOLDS:
            why = "not computed, because there is one label only or too few actions"
            records.append(missing(target, arm, "adjusted_rand", len(labels), why))
            continue
        predicted = linear.discriminant_held_out(features, labels, fold)
        values = adjusted_rand(contingency(labels, predicted, weights))
        records.append(row(target, arm, "adjusted_rand", values, len(labels)))
    return records


def _too_few(rows: int) -> str:
    if rows < MIN_CLUSTER_SIZE:
        return f"not computed, because {rows} rows are fewer than the smallest cluster ({MIN_CLUSTER_SIZE})"
    return ""
