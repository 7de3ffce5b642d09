"""Categorical indifference: are opposing categories near neighbours?

The prototype of a category is the mean centred representation of its typical rows (typicality 1). The paper reports the
cosine of opposing prototypes and the mean cosine of all pairs (section 3, analysis 1). A cosine is not separability, so the
cross-validated area under the curve of virtue against vice stands beside it.
"""

from itertools import combinations, product

import numpy as np
import pandas as pd

from lib.diagnosis import linear
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.sampling import FOLDS, Sampling
from lib.diagnosis.tidy import MINIMUM_ROWS, cosine_row, mean_of, missing, null_row, row, table, unusable
from lib.paper import CATEGORIES, FOUNDATIONS

ALL_PAIRS = list(combinations(range(len(CATEGORIES)), 2))
CROSS_PAIRS = [(2 * i, 2 * j + 1) for i, j in product(range(len(FOUNDATIONS)), repeat=2) if i != j]


def prototypes(
    centred: np.ndarray, categories: np.ndarray, *, weights: np.ndarray | None = None, minimum: int = MINIMUM_ROWS
) -> np.ndarray:
    """Return the weighted mean of the rows of every category, [draws, 10, width]; NaN for a category with too few rows.

    Args:
        centred: centred representation of the typical rows, [rows, width].
        categories: name of each row's category, [rows].
        weights: [draws, rows]; by default one draw in which every row counts once.
        minimum: rows that a prototype needs.
    """
    weights = np.ones((1, len(centred))) if weights is None else weights
    result = np.full((len(weights), len(CATEGORIES), centred.shape[1]), np.nan)
    for index, category in enumerate(CATEGORIES):
        member = categories == category
        if member.sum() >= minimum:
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
    representation: np.ndarray, subset: pd.DataFrame, *, sampling: Sampling, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Compare prototypes for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, category, is_prototype``, one line per row.
        sampling: of intervals; shuffles, and as many random halves, only for the published arm.
        arm: label of the representation.

    Returns:
        Columns ``foundation`` and ``tidy.MEASURED``. ``metric`` is ``opposing_cosine`` (a foundation; ``all``: their mean)
        or ``mean_cosine`` (``foundation`` is ``all``: the mean of all 45 pairs). The published arm comes with the arms
        ``shuffled``, ``cross_foundation``, ``random_pair`` and ``split_half``.
    """
    typical = subset["is_prototype"].to_numpy(bool)
    if reason := unusable(representation) or ("" if typical.any() else "no category has a prototype"):
        names = [(name, "opposing_cosine") for name in (*FOUNDATIONS, "all")] + [("all", "mean_cosine")]
        records = [missing((name, arm, metric), n=int(typical.sum()), reason=reason) for name, metric in names]
        return table("foundation", records)
    rows = representation[typical].astype(np.float64) - representation.mean(axis=0, dtype=np.float64)
    categories = subset.loc[typical, "category"].to_numpy(object)
    actions = subset.loc[typical, "action"].to_numpy()
    matrix = cosines(prototypes(rows, categories, weights=sampling.weights(actions)))
    counts = {name: int(np.isin(categories, name.split("-")).sum()) for name in FOUNDATIONS}
    records = _opposing(matrix, arm, counts)
    records.append(_mean_of_pairs(matrix, ALL_PAIRS, arm=arm, metric="mean_cosine", n=len(rows)))
    if arm == PUBLISHED:
        cross = _mean_of_pairs(matrix, CROSS_PAIRS, arm="cross_foundation", metric="opposing_cosine", n=len(rows))
        orders = np.array(list(sampling.orders(actions)))
        records += [cross, *_shuffled(rows, categories, orders=orders, observed=matrix[0], counts=counts)]
        distinct = np.random.default_rng(sampling.seed).random((sampling.shuffles, len(np.unique(actions)))) < 0.5
        first = distinct[:, pd.factorize(actions)[0]].astype(float)
        records += _halves(rows, categories, first=first, counts=counts)
    return table("foundation", records)


def separability(
    representation: np.ndarray, subset: pd.DataFrame, *, sampling: Sampling, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Cross-validate virtue against vice per foundation for one layer, grouped by action.

    Scores are held-out predictions of closed-form ridge. Pairs of a virtue and a vice are compared within their fold only:
    scores of different folds have different origins, which would push the area of a worthless score below 0.5.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, polarity``.
        sampling: of folds, intervals and shuffles, each shuffle cross-validated anew. Intervals keep the scores fixed, so
            they leave out what comes from fitting and are too narrow (a nominal 95% covers .85 to .89): the decisions
            rest on those of :mod:`lib.diagnosis.gains`, which refit.
        arm: label of the representation.

    Returns:
        Columns as :func:`categorical`, metric ``auc`` for each foundation and ``all`` (their mean), arm ``auc`` and, with
        shuffles, ``shuffled``; 0.5 is chance.
    """
    reason = unusable(representation)
    weights = sampling.weights(subset["action"].to_numpy())
    fold = sampling.folds(subset["action"].to_numpy())
    name, null = named("auc", arm), named("shuffled", arm)
    records: list[tuple] = []
    areas: list[np.ndarray] = []
    nulls: list[np.ndarray] = []
    total = 0
    for foundation in FOUNDATIONS:
        chosen = ((subset["foundation"] == foundation) & (subset["polarity"] != "neutral")).to_numpy()
        virtue, n = (subset.loc[chosen, "polarity"] == "virtue").to_numpy(), int(chosen.sum())
        if why := reason or _too_few(virtue, fold[chosen]):
            records.append(missing((foundation, name, "auc"), n=n, reason=why))
            continue
        orders = sampling.orders(subset.loc[chosen, "action"].to_numpy())
        labels = np.stack([virtue, *(virtue[order] for order in orders)], axis=1)
        targets = np.where(labels, 1.0, -1.0)
        blocks = np.arange(targets.shape[1])
        scores = linear.ridge_held_out(representation[chosen], targets, fold=fold[chosen], blocks=blocks)
        areas.append(weighted_auc(virtue, scores[:, 0], weights[:, chosen], fold[chosen]))
        records.append(row((foundation, name, "auc"), areas[-1], n=n))
        if sampling.shuffles:
            ones = np.ones((1, n))
            columns = zip(labels.T[1:], scores.T[1:], strict=True)
            nulls.append(np.concatenate([weighted_auc(*column, ones, fold[chosen]) for column in columns]))
            records.append(null_row((foundation, null, "auc"), nulls[-1], n=n, observed=areas[-1][0]))
        total += n
    if not areas:
        why = reason or "every foundation lacks a pole"
        return table("foundation", [*records, missing(("all", name, "auc"), n=0, reason=why)])
    records.append(row(("all", name, "auc"), mean_of(areas), n=total))
    if sampling.shuffles:
        records.append(null_row(("all", null, "auc"), mean_of(nulls), n=total, observed=mean_of(areas)[0]))
    return table("foundation", records)


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
    return "a pole has too few rows for every fold to hold both" if sum(both) < FOLDS else ""


def _opposing(matrix: np.ndarray, arm: str, counts: dict[str, int]) -> list[tuple]:
    pairs = [matrix[:, 2 * index, 2 * index + 1] for index in range(len(FOUNDATIONS))]
    whole, key = mean_of(pairs), (arm, "opposing_cosine")
    why = f"a pole has fewer than {MINIMUM_ROWS} typical rows or its prototype is zero"
    records = [
        cosine_row((name, *key), values, n=counts[name], reason=why)
        for name, values in zip(FOUNDATIONS, pairs, strict=True)
    ]
    why = "no foundation has two prototypes"
    return [*records, cosine_row(("all", *key), whole, n=sum(counts.values()), reason=why)]


def _mean_of_pairs(matrix: np.ndarray, pairs: list[tuple[int, int]], *, arm: str, metric: str, n: int) -> tuple:
    values = mean_of([matrix[:, i, j] for i, j in pairs])
    return cosine_row(("all", arm, metric), values, n=n, reason="no two categories have prototypes")


def _shuffled(
    rows: np.ndarray, categories: np.ndarray, *, orders: np.ndarray, observed: np.ndarray, counts: dict[str, int]
) -> list[tuple]:
    shuffled = categories[orders]
    means = np.full((len(orders), len(CATEGORIES), rows.shape[1]), np.nan)
    for index, category in enumerate(CATEGORIES):
        member = (shuffled == category).astype(float)
        if member[0].sum() >= MINIMUM_ROWS:  # a permutation moves labels and keeps their number
            means[:, index] = member @ rows / member[0].sum()
    null = cosines(means)
    return [
        null_row(
            (name, "shuffled", "opposing_cosine"), null[:, 2 * index, 2 * index + 1], n=counts[name],
            observed=observed[2 * index, 2 * index + 1], two_sided=True,
        )
        for index, name in enumerate(FOUNDATIONS)
    ]  # fmt: skip


def _halves(rows: np.ndarray, categories: np.ndarray, *, first: np.ndarray, counts: dict[str, int]) -> list[tuple]:
    """Cosines of the means of two random halves of the actions: within a pole, and over both poles together.

    ``first``, [draws, rows], is 1 for the rows of the first half.
    """
    records = []
    for foundation in FOUNDATIONS:
        poles = [categories == pole for pole in foundation.split("-")]
        for arm, groups in (("split_half", poles), ("random_pair", [poles[0] | poles[1]])):
            key, n = (foundation, arm, "opposing_cosine"), counts[foundation]
            if min(pole.sum() for pole in poles) < 2 * MINIMUM_ROWS:
                why = f"a pole has fewer than {2 * MINIMUM_ROWS} typical rows"
                records.append(missing(key, n=n, reason=why))
                continue
            values = np.concatenate([_between_halves(rows[group], first[:, group]) for group in groups])
            records.append(null_row(key, values, n=n, observed=float("nan")))
    return records


def _between_halves(rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    halves = np.stack([first @ rows, (1 - first) @ rows], axis=1)
    return cosines(halves)[:, 0, 1]
