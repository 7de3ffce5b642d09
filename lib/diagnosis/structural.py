"""Structural indifference: do unsupervised clusters follow moral labels?

Centred vectors, PCA to 95% of variance, HDBSCAN (min_cluster_size 100, min_samples 20, Euclidean), then the adjusted Rand
index against foundations, polarities and both (section 3, analysis 3). The published index counts only points that are not
noise, so a layer that is almost all noise can score high; over all points stands beside it, with the coverage.
"""

import numpy as np
import pandas as pd
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.diagnosis.controls import PUBLISHED
from lib.statistics import cluster_weights, interval

MIN_CLUSTER_SIZE = 100
MIN_SAMPLES = 20
EXPLAINED = 0.95
TARGETS = ("foundation", "polarity", "foundation and polarity")
COLUMNS = ["target", "arm", "metric", "value", "ci_low", "ci_high", "n", "reason"]


def cluster(representation: np.ndarray) -> tuple[np.ndarray, int]:
    """Cluster one layer as published.

    Returns:
        Labels [rows], -1 for noise, and the number of principal components kept. scikit-learn counts a point as its own
        neighbour, so its ``min_samples`` is one more than the published one; its spanning tree is exact.
    """
    reduced = PCA(EXPLAINED, svd_solver="full").fit_transform(representation - representation.mean(axis=0))
    model = HDBSCAN(MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES + 1, algorithm="brute", copy=True)
    return model.fit_predict(reduced), reduced.shape[1]


def structural(
    representation: np.ndarray, subset: pd.DataFrame, draws: int, permutations: int, seed: int, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Compare clusters with labels for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, polarity``.
        draws: bootstrap resamples of actions.
        permutations: draws of the label shuffle; only for the published arm.
        seed: of both.
        arm: label of the representation.

    Returns:
        Columns ``target, arm, metric, value, ci_low, ci_high, n, reason``. Metric ``adjusted_rand`` for each target; for
        ``target`` = ``all`` also ``coverage`` (share of points that are not noise), ``clusters`` and ``components``.
    """
    if reason := _cannot(representation):
        return pd.DataFrame(
            [(target, arm, "adjusted_rand", np.nan, np.nan, np.nan, len(subset), reason) for target in TARGETS],
            columns=COLUMNS,
        )
    found, components = cluster(representation)
    actions = pd.factorize(subset["action"])[0]
    kept = found >= 0
    records: list[tuple] = [
        ("all", arm, "coverage", float(kept.mean()), np.nan, np.nan, len(found), ""),
        ("all", arm, "clusters", float(len(set(found[kept]))), np.nan, np.nan, len(found), ""),
        ("all", arm, "components", float(components), np.nan, np.nan, len(found), ""),
    ]
    for index, (target, labels) in enumerate(labelings(subset).items()):
        none = "" if kept.any() else "not computed, because every point is noise"
        value = _index(labels[kept], found[kept], actions[kept], draws, seed)
        records.append((target, arm, "adjusted_rand", *value, int(kept.sum()), none))
        if arm == PUBLISHED:
            value = _index(labels, found, actions, draws, seed)
            records.append((target, "all_points", "adjusted_rand", *value, len(found), ""))
            generator = np.random.default_rng([seed, index])
            one = np.ones((1, len(found)))
            tables = [_contingency(generator.permutation(labels), found, one) for _ in range(permutations)]
            null = adjusted_rand(np.concatenate(tables))
            records.append((target, "shuffled", "adjusted_rand", float(null.mean()), *interval(null), len(found), ""))
    return pd.DataFrame(records, columns=COLUMNS)


def supervised(representation: np.ndarray, subset: pd.DataFrame, draws: int, seed: int, folds: int = 5) -> pd.DataFrame:
    """Return the adjusted Rand index of held-out predictions with the labels known: an upper bound for clustering."""
    actions = pd.factorize(subset["action"])[0]
    records = []
    for target, labels in labelings(subset).items():
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        splits = GroupKFold(folds, shuffle=True, random_state=seed)
        predicted = cross_val_predict(model, representation, labels, groups=actions, cv=splits)
        value = _index(labels, predicted, actions, draws, seed)
        records.append((target, "supervised", "adjusted_rand", *value, len(labels), ""))
    return pd.DataFrame(records, columns=COLUMNS)


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


def _contingency(labels: np.ndarray, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
    clusters = found - found.min()
    shape = (labels.max() + 1, clusters.max() + 1)
    cells = np.zeros((len(labels), shape[0] * shape[1]))
    cells[np.arange(len(labels)), labels * shape[1] + clusters] = 1
    return (weights @ cells).reshape(len(weights), *shape)


def _index(
    labels: np.ndarray, found: np.ndarray, actions: np.ndarray, draws: int, seed: int
) -> tuple[float, float, float]:
    """Index with its interval over resampled actions; the clustering itself stays fixed."""
    if len(labels) == 0:
        return (float("nan"),) * 3
    values = adjusted_rand(_contingency(labels, found, cluster_weights(actions, draws, seed)))
    return float(values[0]), *interval(values[1:])


def _cannot(representation: np.ndarray) -> str:
    if not np.isfinite(representation).all():
        return "not computed, because the layer holds values that are not finite"
    if np.ptp(representation, axis=0).max() == 0:
        return "not computed, because the layer does not vary"
    if len(representation) < MIN_CLUSTER_SIZE:
        return (
            f"not computed, because {len(representation)} rows are fewer than the smallest cluster ({MIN_CLUSTER_SIZE})"
        )
    return ""
