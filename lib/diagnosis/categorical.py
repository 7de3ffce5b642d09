"""Categorical indifference: are opposing categories near neighbours?

The prototype of a category is the mean centred representation of its typical rows (typicality 1). The paper reports the
cosine of opposing prototypes and the mean cosine of all pairs (section 3, analysis 1). A cosine is not separability, so the
cross-validated area under the curve of virtue against vice stands beside it.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.diagnosis.controls import PUBLISHED
from lib.foundations import CATEGORIES, FOUNDATIONS
from lib.statistics import cluster_weights, interval

MINIMUM_ROWS = 5
"""Fewer prototype rows than this and a category is not computed."""


def prototypes(centred: np.ndarray, categories: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weighted means of the rows of every category, [draws, 10, width]; NaN for a category with too few rows.

    Args:
        centred: centred representation of the typical rows, [rows, width].
        categories: name of each row's category, [rows].
        weights: [draws, rows].
    """
    result = np.full((len(weights), len(CATEGORIES), centred.shape[1]), np.nan)
    for index, category in enumerate(CATEGORIES):
        member = categories == category
        if member.sum() >= MINIMUM_ROWS:
            own = weights[:, member]
            with np.errstate(invalid="ignore"):
                result[:, index] = own @ centred[member] / own.sum(axis=1, keepdims=True)
    return result


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Return cosines between all pairs, [draws, k, k], of vectors [draws, k, width]; NaN for zero vectors."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(norms > 1e-12, vectors / norms, np.nan)
    return unit @ unit.transpose(0, 2, 1)


def categorical(
    representation: np.ndarray, subset: pd.DataFrame, draws: int, permutations: int, seed: int, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Compare prototypes for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, category, is_prototype``, one line a row.
        draws: bootstrap resamples of actions.
        permutations: draws of the label shuffle; only for the published arm.
        seed: of both.
        arm: label of the representation.

    Returns:
        Columns ``foundation, arm, metric, value, ci_low, ci_high, n, reason``. ``metric`` is ``opposing_cosine`` (a
        foundation) or ``mean_cosine`` (``foundation`` is ``all``: the mean of all 45 pairs). The published arm comes with
        the arms ``shuffled``, ``cross_foundation``, ``random_pair`` and ``split_half``.
    """
    centred = representation - representation.mean(axis=0)
    typical = subset["is_prototype"].to_numpy(bool)
    rows, categories = centred[typical], subset.loc[typical, "category"].to_numpy(object)
    n = {name: int(np.isin(categories, name.split("-")).sum()) for name in FOUNDATIONS}
    weights = cluster_weights(subset.loc[typical, "action"].to_numpy(), draws, seed) if len(rows) else np.ones((1, 0))
    matrix = cosines(prototypes(rows, categories, weights))
    records = [*_opposing(matrix, arm, n), _mean_pair(matrix, arm, len(rows))]
    if arm == PUBLISHED:
        generator = np.random.default_rng(seed)
        one = np.ones((1, len(rows)))
        shuffled = [prototypes(rows, generator.permutation(categories), one)[0] for _ in range(permutations)]
        null = cosines(np.array(shuffled))
        records += _null(null, "shuffled", n)
        records.append(_cross_foundation(matrix, len(rows)))
        records += _split_halves(rows, categories, generator, permutations, n)
    return pd.DataFrame(records, columns=["foundation", "arm", "metric", "value", "ci_low", "ci_high", "n", "reason"])


def separability(
    representation: np.ndarray, subset: pd.DataFrame, draws: int, seed: int, arm: str = "auc", folds: int = 5
) -> pd.DataFrame:
    """Cross-validate virtue against vice per foundation for one layer, grouped by action.

    Returns:
        Columns as :func:`categorical`, metric ``auc``: area under the curve of held-out logistic scores, with a clustered
        bootstrap interval; 0.5 is chance.
    """
    records = []
    for foundation in FOUNDATIONS:
        chosen = ((subset["foundation"] == foundation) & (subset["polarity"] != "neutral")).to_numpy()
        actions = subset.loc[chosen, "action"].to_numpy()
        virtue = (subset.loc[chosen, "polarity"] == "virtue").to_numpy()
        if min(virtue.sum(), (~virtue).sum()) < folds or len(np.unique(actions)) < folds:
            reason = "not computed, because a pole has too few rows"
            records.append((foundation, arm, "auc", np.nan, np.nan, np.nan, int(chosen.sum()), reason))
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        splits = GroupKFold(folds, shuffle=True, random_state=seed)
        rows = representation[chosen]
        scores = cross_val_predict(model, rows, virtue, groups=actions, cv=splits, method="decision_function")
        values = weighted_auc(virtue, scores, cluster_weights(actions, draws, seed))
        records.append((foundation, arm, "auc", values[0], *interval(values[1:]), int(chosen.sum()), ""))
    return pd.DataFrame(records, columns=["foundation", "arm", "metric", "value", "ci_low", "ci_high", "n", "reason"])


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the curve under every line of weights, [draws]; ties count half.

    Args:
        positive: [rows], boolean.
        scores: [rows], higher means positive.
        weights: [draws, rows].
    """
    _, level = np.unique(scores, return_inverse=True)
    starts = np.searchsorted(np.sort(level), np.arange(level.max() + 1))
    order = np.argsort(level, kind="stable")
    of_positives = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    of_negatives = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(of_negatives, axis=1) - of_negatives / 2
    total = of_positives.sum(axis=1) * of_negatives.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (of_positives * below).sum(axis=1) / total, np.nan)


def _opposing(matrix: np.ndarray, arm: str, n: dict[str, int]) -> list[tuple]:
    records = []
    for index, foundation in enumerate(FOUNDATIONS):
        values = matrix[:, 2 * index, 2 * index + 1]
        reason = (
            "" if np.isfinite(values[0]) else "not computed, because a pole has no prototype or a layer does not vary"
        )
        records.append((foundation, arm, "opposing_cosine", values[0], *interval(values[1:]), n[foundation], reason))
    return records


def _mean_pair(matrix: np.ndarray, arm: str, n: int) -> tuple:
    pairs = list(combinations(range(len(CATEGORIES)), 2))
    values = np.array([[line[i, j] for i, j in pairs] for line in matrix])
    finite = np.isfinite(values[0]).any()
    means = np.nanmean(values, axis=1) if finite else np.full(len(values), np.nan)
    reason = "" if finite else "not computed, because no two categories have prototypes"
    return ("all", arm, "mean_cosine", means[0], *interval(means[1:]), n, reason)


def _null(null: np.ndarray, arm: str, n: dict[str, int]) -> list[tuple]:
    records = []
    for index, foundation in enumerate(FOUNDATIONS):
        values = null[:, 2 * index, 2 * index + 1]
        records.append((foundation, arm, "opposing_cosine", _mean(values), *interval(values), n[foundation], ""))
    return records


def _cross_foundation(matrix: np.ndarray, n: int) -> tuple:
    pairs = [(2 * i, 2 * j + 1) for i in range(5) for j in range(5) if i != j]
    values = np.array([[line[i, j] for i, j in pairs] for line in matrix])
    means = np.nanmean(values, axis=1) if np.isfinite(values[0]).any() else np.full(len(values), np.nan)
    return ("all", "cross_foundation", "opposing_cosine", means[0], *interval(means[1:]), n, "")


def _split_halves(
    rows: np.ndarray, categories: np.ndarray, generator: np.random.Generator, draws: int, n: dict
) -> list[tuple]:
    records = []
    for foundation in FOUNDATIONS:
        within, across = [], []
        pools = [rows[categories == part] for part in foundation.split("-")]
        if min(len(pool) for pool in pools) < 2 * MINIMUM_ROWS:
            continue
        both = np.concatenate(pools)
        for _ in range(draws):
            for pool in pools:
                order = generator.permutation(len(pool))
                halves = [pool[order[: len(pool) // 2]].mean(axis=0), pool[order[len(pool) // 2 :]].mean(axis=0)]
                within.append(_cosine(*halves))
            order = generator.permutation(len(both))
            across.append(
                _cosine(both[order[: len(both) // 2]].mean(axis=0), both[order[len(both) // 2 :]].mean(axis=0))
            )
        for arm, values in (("split_half", np.array(within)), ("random_pair", np.array(across))):
            records.append((foundation, arm, "opposing_cosine", _mean(values), *interval(values), n[foundation], ""))
    return records


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms > 1e-12 else float("nan")


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
