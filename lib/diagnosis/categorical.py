"""Categorical indifference: are opposing categories near neighbours?

The prototype of a category is the mean centred representation of its typical rows (typicality 1). The paper reports the
cosine of opposing prototypes and the mean cosine of all pairs (section 3, analysis 1). A cosine is not separability, so the
cross-validated area under the curve of virtue against vice stands beside it.
"""

from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lib.diagnosis import linear
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.tidy import MINIMUM_ROWS, cosine_row, mean_of, missing, null_row, row, table, unusable
from lib.foundations import CATEGORIES, FOUNDATIONS
from lib.statistics import cluster_weights, permutations

ALL_PAIRS = list(combinations(range(len(CATEGORIES)), 2))
CROSS_PAIRS = [(2 * i, 2 * j + 1) for i, j in product(range(len(FOUNDATIONS)), repeat=2) if i != j]


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
    products = vectors @ vectors.transpose(0, 2, 1)
    norms = np.sqrt(products.diagonal(axis1=1, axis2=2))
    norms = np.where(norms > 1e-12, norms, np.nan)
    return products / (norms[:, :, None] * norms[:, None, :])


def categorical(
    representation: np.ndarray, subset: pd.DataFrame, draws: int, shuffles: int, seed: int, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Compare prototypes for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, category, is_prototype``, one line a row.
        draws: bootstrap resamples of actions.
        shuffles: draws of the label shuffle and of the random halves; only for the published arm.
        seed: of both.
        arm: label of the representation.

    Returns:
        Columns ``foundation`` and ``tidy.MEASURED``. ``metric`` is ``opposing_cosine`` (a foundation; ``all``: their mean)
        or ``mean_cosine`` (``foundation`` is ``all``: the mean of all 45 pairs). The published arm comes with the arms
        ``shuffled``, ``cross_foundation``, ``random_pair`` and ``split_half``.
    """
    typical = subset["is_prototype"].to_numpy(bool)
    reason = unusable(representation)
    if reason or not typical.any():
        reason = reason or "not computed, because no category has a prototype"
        names = [(name, "opposing_cosine") for name in (*FOUNDATIONS, "all")] + [("all", "mean_cosine")]
        records = [missing(name, arm, metric, int(typical.sum()), reason) for name, metric in names]
        return table("foundation", records)
    rows = representation[typical].astype(np.float64) - representation.mean(axis=0, dtype=np.float64)
    categories = subset.loc[typical, "category"].to_numpy(object)
    actions = subset.loc[typical, "action"].to_numpy()
    matrix = cosines(prototypes(rows, categories, cluster_weights(actions, draws, seed)))
    counts = {name: int(np.isin(categories, name.split("-")).sum()) for name in FOUNDATIONS}
    records = _opposing(matrix, arm, counts)
    records.append(_mean_of_pairs(matrix, ALL_PAIRS, arm, "mean_cosine", len(rows)))
    if arm == PUBLISHED:
        records.append(_mean_of_pairs(matrix, CROSS_PAIRS, "cross_foundation", "opposing_cosine", len(rows)))
        records += _shuffled(rows, categories, actions, matrix[0], counts, shuffles, seed)
        records += _halves(rows, categories, actions, counts, shuffles, seed)
    return table("foundation", records)


def separability(
    representation: np.ndarray | linear.Features,
    subset: pd.DataFrame,
    draws: int,
    shuffles: int,
    seed: int,
    arm: str = PUBLISHED,
) -> pd.DataFrame:
    """Cross-validate virtue against vice per foundation for one layer, grouped by action.

    Scores are held-out predictions of closed-form ridge. Pairs of a virtue and a vice are compared within their fold only:
    scores of different folds have different origins, which would push the area of a worthless score below 0.5.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, polarity``.
        draws: bootstrap resamples of actions; the scores stay fixed, so near chance, where most of the spread comes from
            fitting, the interval is too narrow and the shuffle is the one to compare with.
        shuffles: draws of the label shuffle, each cross-validated anew; 0 for none.
        seed: of folds, resamples and shuffles.
        arm: label of the representation.

    Returns:
        Columns as :func:`categorical`, metric ``auc`` for each foundation and ``all`` (their mean), arm ``auc`` and, with
        shuffles, ``shuffled``; 0.5 is chance.
    """
    read = linear.features(representation)
    reason = unusable(read.values)
    weights = cluster_weights(subset["action"].to_numpy(), draws, seed)
    fold = linear.grouped_folds(subset["action"].to_numpy(), seed)
    name, null = named("auc", arm), named("shuffled", arm)
    records: list[tuple] = []
    found: list[np.ndarray] = []
    nulls: list[np.ndarray] = []
    total = 0
    for foundation in FOUNDATIONS:
        chosen = ((subset["foundation"] == foundation) & (subset["polarity"] != "neutral")).to_numpy()
        virtue, n = (subset.loc[chosen, "polarity"] == "virtue").to_numpy(), int(chosen.sum())
        if why := reason or _too_few(virtue, fold[chosen]):
            records.append(missing(foundation, name, "auc", n, why))
            continue
        orders = permutations(subset.loc[chosen, "action"].to_numpy(), shuffles, seed)
        labels = np.stack([virtue, *(virtue[order] for order in orders)], axis=1)
        targets = np.where(labels, 1.0, -1.0)
        scores = linear.ridge_held_out(read[chosen], targets, fold[chosen], np.arange(targets.shape[1]))
        found.append(weighted_auc(virtue, scores[:, 0], weights[:, chosen], fold[chosen]))
        records.append(row(foundation, name, "auc", found[-1], n))
        if shuffles:
            nulls.append(aucs(labels[:, 1:], scores[:, 1:], fold[chosen]))
            records.append(null_row(foundation, null, "auc", nulls[-1], n, found[-1][0]))
        total += n
    if not found:
        why = reason or "not computed, because every foundation lacks a pole"
        return table("foundation", [*records, missing("all", name, "auc", 0, why)])
    records.append(row("all", name, "auc", mean_of(found), total))
    if shuffles:
        records.append(null_row("all", null, "auc", mean_of(nulls), total, mean_of(found)[0]))
    return table("foundation", records)


def aucs(positive: np.ndarray, scores: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Return the area under the curve of every column, [k], of labels and scores [rows, k]; pairs within strata only."""
    won, pairs = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for stratum in np.unique(strata):
        inside = strata == stratum
        of_positives = positive[inside].sum(axis=0)
        ranks = (rankdata(scores[inside], axis=0) * positive[inside]).sum(axis=0)
        won += ranks - of_positives * (of_positives + 1) / 2
        pairs += of_positives * (inside.sum() - of_positives)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan)


def weighted_auc(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, strata: np.ndarray | None = None
) -> np.ndarray:
    """Return the area under the curve under every line of weights, [draws]; ties count half.

    Args:
        positive: [rows], boolean.
        scores: [rows], higher means positive.
        weights: [draws, rows].
        strata: [rows]; only rows of the same stratum are compared.
    """
    strata = np.zeros(len(scores), dtype=int) if strata is None else strata
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for stratum in np.unique(strata):
        inside = strata == stratum
        _, level = np.unique(scores[inside], return_inverse=True)
        order = np.argsort(level, kind="stable")
        starts = np.searchsorted(level[order], np.arange(level.max() + 1))
        own = weights[:, inside]
        of_positives = np.add.reduceat((own * positive[inside])[:, order], starts, axis=1)
        of_negatives = np.add.reduceat((own * ~positive[inside])[:, order], starts, axis=1)
        below = np.cumsum(of_negatives, axis=1) - of_negatives / 2
        won += (of_positives * below).sum(axis=1)
        pairs += of_positives.sum(axis=1) * of_negatives.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan)


def _too_few(virtue: np.ndarray, fold: np.ndarray) -> str:
    both = [len(np.unique(virtue[fold == name])) == 2 for name in np.unique(fold)]
    if len(both) < linear.FOLDS or sum(both) < linear.FOLDS:
        return "not computed, because a pole has too few rows for every fold to hold both"
    return ""


def _opposing(matrix: np.ndarray, arm: str, counts: dict[str, int]) -> list[tuple]:
    records, found = [], []
    for index, foundation in enumerate(FOUNDATIONS):
        values = matrix[:, 2 * index, 2 * index + 1]
        if not np.isfinite(values[0]):
            why = f"not computed, because a pole has fewer than {MINIMUM_ROWS} typical rows or its prototype is zero"
            records.append(missing(foundation, arm, "opposing_cosine", counts[foundation], why))
            continue
        found.append(values)
        records.append(cosine_row(foundation, arm, "opposing_cosine", values, counts[foundation]))
    if found:
        return [*records, cosine_row("all", arm, "opposing_cosine", mean_of(found), sum(counts.values()))]
    why = "not computed, because no foundation has two prototypes"
    return [*records, missing("all", arm, "opposing_cosine", sum(counts.values()), why)]


def _mean_of_pairs(matrix: np.ndarray, pairs: list[tuple[int, int]], arm: str, metric: str, n: int) -> tuple:
    values = mean_of([matrix[:, i, j] for i, j in pairs])
    if not np.isfinite(values[0]):
        return missing("all", arm, metric, n, "not computed, because no two categories have prototypes")
    return cosine_row("all", arm, metric, values, n)


def _shuffled(
    rows: np.ndarray, categories: np.ndarray, actions: np.ndarray, observed: np.ndarray,
    counts: dict[str, int], shuffles: int, seed: int,
) -> list[tuple]:  # fmt: skip
    shuffled = categories[np.array(list(permutations(actions, shuffles, seed)))]
    means = np.full((shuffles, len(CATEGORIES), rows.shape[1]), np.nan)
    for index, category in enumerate(CATEGORIES):
        member = (shuffled == category).astype(float)
        if shuffles and member[0].sum() >= MINIMUM_ROWS:  # a permutation moves labels and keeps their number
            means[:, index] = member @ rows / member[0].sum()
    null = cosines(means)
    return [
        null_row(
            name, "shuffled", "opposing_cosine", null[:, 2 * index, 2 * index + 1], counts[name],
            observed[2 * index, 2 * index + 1], two_sided=True,
        )
        for index, name in enumerate(FOUNDATIONS)
    ]  # fmt: skip


def _halves(
    rows: np.ndarray, categories: np.ndarray, actions: np.ndarray, counts: dict[str, int], shuffles: int, seed: int
) -> list[tuple]:
    """Cosines of the means of two random halves of the actions: within a pole, and over both poles together."""
    first = np.random.default_rng(seed).random((shuffles, len(np.unique(actions)))) < 0.5
    first = first[:, pd.factorize(actions)[0]].astype(float)
    records = []
    for foundation in FOUNDATIONS:
        poles = [categories == pole for pole in foundation.split("-")]
        if min(pole.sum() for pole in poles) < 2 * MINIMUM_ROWS:
            why = f"not computed, because a pole has fewer than {2 * MINIMUM_ROWS} typical rows"
            records += [
                missing(foundation, arm, "opposing_cosine", counts[foundation], why)
                for arm in ("split_half", "random_pair")
            ]
            continue
        within = np.concatenate([_between_halves(rows[pole], first[:, pole]) for pole in poles])
        either = poles[0] | poles[1]
        across = _between_halves(rows[either], first[:, either])
        for arm, values in (("split_half", within), ("random_pair", across)):
            records.append(null_row(foundation, arm, "opposing_cosine", values, counts[foundation], float("nan")))
    return records


def _between_halves(rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    halves = np.stack([first @ rows, (1 - first) @ rows], axis=1)
    return cosines(halves)[:, 0, 1]
