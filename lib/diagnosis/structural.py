"""Structural indifference: do unsupervised clusters follow moral labels?

Centred vectors, PCA to 95% of variance, HDBSCAN (min_cluster_size 100, min_samples 20, Euclidean), then the adjusted Rand
index against foundations, polarities and both (section 3, analysis 3). The published index counts only points that are not
noise, so a layer that is almost all noise can score high; over all points stands beside it, with the coverage.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import HDBSCAN
from threadpoolctl import threadpool_limits

from lib.diagnosis import linear, matrices
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.sampling import FOLDS, Sampling
from lib.diagnosis.tidy import cosine_row, missing, null_row, row, table, unusable

MIN_CLUSTER_SIZE = 100
MIN_SAMPLES = 20
EXPLAINED = 0.95
TARGETS = ("foundation", "polarity", "foundation and polarity")
RESAMPLES = 3
"""Draws of four fifths of the actions that are clustered anew."""


def components(
    representation: np.ndarray, *, covariance: np.ndarray | None = None, device: torch.device | None = None
) -> np.ndarray:
    """Return the principal components that explain 95% of the variance, [rows, components], as published.

    They come from the eigenvectors of the covariance, which span what the published full decomposition spans.

    Args:
        representation: [rows, width].
        covariance: as :func:`matrices.covariance`, for callers that have it already.
        device: a GPU, as :func:`matrices.gpu`, or None.
    """
    covariance = matrices.covariance(representation, device) if covariance is None else covariance
    variances, directions = matrices.eigenvectors(covariance, device)
    explained = np.cumsum(variances[::-1].clip(0), dtype=np.float64)
    count = int(np.searchsorted(explained, EXPLAINED * explained[-1], side="right")) + 1
    return matrices.centred(representation) @ directions[:, ::-1][:, :count]


# One thread: with more, OpenBLAS 0.3.31 crashes on the distances of 16,135 points in 2,000 dimensions.
@threadpool_limits.wrap(limits=1, user_api="blas")
def hdbscan_labels(points: np.ndarray) -> np.ndarray:
    """Return the labels of HDBSCAN with an exact spanning tree, [rows], -1 for noise; ``points`` are [rows, components].

    scikit-learn counts a point as its own first neighbour, the package that the paper used does not: hence one more sample.
    """
    clustering = HDBSCAN(
        MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES + 1, metric="euclidean", algorithm="brute", copy=False
    )
    return clustering.fit_predict(points)


def structural(
    representation: np.ndarray,
    subset: pd.DataFrame,
    *,
    sampling: Sampling,
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
        sampling: of intervals and label shuffles; the clustering itself stays fixed.
        arm: label of the representation.
        resampled: whether to add ``stability`` for the published representation.
        features: what the classifier of ``discriminant`` reads; by default made of the representation.
        covariance: of the representation, as :func:`matrices.covariance`; by default computed here.
        device: a GPU for the products of matrices, or None.

    Returns:
        Columns ``target`` and ``tidy.MEASURED``. Metric ``adjusted_rand`` for each target: over points that are not noise as
        published, in the arm ``all_points`` over all, and in ``across_actions`` over all without pairs of one action, which
        an annotation of several foundations, or several annotations, put at one point. For ``target`` = ``all`` also
        ``coverage`` (share of points that are not noise), ``clusters`` and ``components``. With shuffles come the nulls
        ``shuffled`` and ``shuffled_all_points``, and ``discriminant``; with the published representation ``stability``.
    """
    if reason := unusable(representation) or _too_few(len(representation)):
        names = [(target, name, "adjusted_rand") for target in TARGETS for name in (arm, named("all_points", arm))]
        keys = [*names, ("all", arm, "coverage")]
        return table("target", [missing(key, n=len(subset), reason=reason) for key in keys])
    points = components(representation, covariance=covariance, device=device)
    clusters = hdbscan_labels(points)
    kept, codes = clusters >= 0, pd.factorize(clusters)[0]
    counts = {"coverage": kept.mean(), "clusters": len(np.unique(clusters[kept])), "components": points.shape[1]}
    records = [row(("all", arm, metric), np.array([float(value)]), n=len(codes)) for metric, value in counts.items()]
    for target, labels in labelings(subset).items():
        records += compared(target, labels, clusters=codes, kept=kept, subset=subset, sampling=sampling, arm=arm)
    fold = sampling.folds(subset["action"].to_numpy())
    if sampling.shuffles:
        read = linear.features(representation) if features is None else features
        records += _discriminant(read, subset, sampling=sampling, fold=fold, arm=named("discriminant", arm))
    if arm == PUBLISHED and resampled:
        records.append(_stability(points, clusters, fold))
    return table("target", records)


def labelings(subset: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the three labelings as integers [rows]: 5 foundations, 3 polarities, 15 combinations."""
    both = subset["foundation"] + " " + subset["polarity"]
    columns = (subset["foundation"], subset["polarity"], both)
    return {target: pd.factorize(values, sort=True)[0] for target, values in zip(TARGETS, columns, strict=True)}


def adjusted_rand(labels: np.ndarray, clusters: np.ndarray, actions: np.ndarray | None = None) -> float:
    """Return the adjusted Rand index (Hubert and Arabie, 1985) of labels and clusters, integers from 0, [rows].

    With ``actions``, integers from 0, [rows], pairs of rows of one action do not count. scikit-learn's index, which cannot
    leave out pairs, takes ten times as long, and resamples and shuffles ask for thousands.
    """

    repeated = np.zeros(len(labels), bool) if actions is None else np.bincount(actions)[actions] > 1

    def together(codes: np.ndarray) -> float:
        sizes = np.bincount(codes)
        pairs = float((sizes * (sizes - 1)).sum()) / 2
        if repeated.any():
            in_action = codes[repeated] * (actions.max() + 1) + actions[repeated]
            sizes = np.unique(in_action, return_counts=True)[1]
            pairs -= float((sizes * (sizes - 1)).sum()) / 2
        return pairs

    if len(labels) < 2:
        return float("nan")
    both, all_pairs = together(labels * (clusters.max() + 1) + clusters), together(np.zeros_like(labels))
    of_labels, of_clusters = together(labels), together(clusters)
    expected, highest = of_labels * of_clusters / max(all_pairs, 1), (of_labels + of_clusters) / 2
    return 1.0 if highest == expected else (both - expected) / (highest - expected)


def compared(
    target: str,
    labels: np.ndarray,
    *,
    clusters: np.ndarray,
    kept: np.ndarray,
    subset: pd.DataFrame,
    sampling: Sampling,
    arm: str,
) -> list[tuple]:
    """Return the index of one target over points that are not noise (``kept``) and over all, with intervals and nulls."""
    actions = subset["action"].to_numpy()
    halves, of_action, everything = sampling.halves(actions), pd.factorize(actions)[0], np.ones_like(kept)
    records = []
    for name, null, chosen in (
        (arm, "shuffled", kept),
        (named("all_points", arm), "shuffled_all_points", everything),
    ):
        key, n = (target, name, "adjusted_rand"), int(chosen.sum())
        if not n:
            records.append(missing(key, n=0, reason="every point is noise"))
            continue
        values = [adjusted_rand(labels[rows], clusters[rows]) for rows in (chosen, *(halves & chosen))]
        records.append(cosine_row(key, np.array(values), n=n, reason="one point is left"))
        if sampling.shuffles:
            key = (target, named(null, arm), "adjusted_rand")
            draws = [adjusted_rand(labels[order][chosen], clusters[chosen]) for order in sampling.orders(actions)]
            records.append(null_row(key, np.array(draws), n=n, observed=values[0]))
    across = [adjusted_rand(labels[rows], clusters[rows], of_action[rows]) for rows in (everything, *halves)]
    key = (target, named("across_actions", arm), "adjusted_rand")
    return [*records, cosine_row(key, np.array(across), n=len(labels), reason="there is one action")]


def _stability(points: np.ndarray, clusters: np.ndarray, fold: np.ndarray) -> tuple:
    """Agreement, over all points in both, of the clusters with those of a part of the actions, in the same components.

    The mean of ``RESAMPLES`` values; so few have no interval.
    """
    values = []
    for left_out in range(RESAMPLES):
        kept = fold != left_out
        again = hdbscan_labels(points[kept]) if not _too_few(int(kept.sum())) else np.full(int(kept.sum()), -1)
        if (again >= 0).any() and (clusters[kept] >= 0).any():
            values.append(adjusted_rand(clusters[kept] + 1, again + 1))
    if not values:
        return missing(("all", "stability", "adjusted_rand"), n=len(fold), reason="there are no clusters")
    return row(("all", "stability", "adjusted_rand"), np.array([np.mean(values)]), n=len(fold))


def _discriminant(
    features: linear.Features, subset: pd.DataFrame, *, sampling: Sampling, fold: np.ndarray, arm: str
) -> list[tuple]:
    """Return the index of labels that a discriminant predicts for actions it was not fitted to; predictions stay fixed."""
    records, halves = [], sampling.halves(subset["action"].to_numpy())
    for target, labels in labelings(subset).items():
        key, n = (target, arm, "adjusted_rand"), len(labels)
        to_fit = [len(np.unique(labels[fold != name])) for name in np.unique(fold)]
        if len(to_fit) < FOLDS or min(to_fit) < 2:
            records.append(missing(key, n=n, reason="there is one label only or too few actions"))
            continue
        predicted = linear.discriminant_held_out(features, labels, fold)
        values = [adjusted_rand(labels[rows], predicted[rows]) for rows in (np.full(n, True), *halves)]
        records.append(cosine_row(key, np.array(values), n=n, reason="there is one row"))
    return records


def _too_few(rows: int) -> str:
    return "" if rows >= MIN_CLUSTER_SIZE else f"{rows} rows are fewer than the smallest cluster ({MIN_CLUSTER_SIZE})"
