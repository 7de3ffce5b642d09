"""Gradient indifference: does a more typical action lie nearer to its category's prototype?

Per category and layer, the correlation between human typicality and the cosine of each row to its category's prototype;
neutral rows of the foundation enter both poles with typicality 0 (section 3, analysis 2). The published recipe keeps the
rows that make up the prototype; a row is always near a mean that contains it, which alone gives a correlation of about
.2, so the arm ``without_prototypes`` leaves them out.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lib.diagnosis import linear
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.tidy import MINIMUM_ROWS, mean_of, missing, null_row, row, table, unusable
from lib.foundations import CATEGORIES, FOUNDATIONS
from lib.statistics import cluster_weights, pearson, permutations, spearman, standard


def gradient(
    representation: np.ndarray, subset: pd.DataFrame, draws: int, shuffles: int, seed: int, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Correlate typicality with nearness to the prototype for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, polarity, typicality``.
        draws: bootstrap resamples of actions.
        shuffles: draws of the typicality shuffle; 0 for none.
        seed: of both.
        arm: label of the representation.

    Returns:
        Columns ``category`` and ``tidy.MEASURED``; metrics ``spearman`` and ``pearson``, for every category and ``all``
        (their mean). Every representation comes with ``without_prototypes`` and, with shuffles, with ``shuffled`` and
        ``shuffled_without_prototypes`` (typicality permuted before the prototype is made, so it shows what the procedure
        finds in nothing). The published one also comes, fold by fold, with ``held_out`` (metrics ``rest 0``, ``fold 0``,
        ...; see :func:`peaks`).
    """
    reason = unusable(representation)
    weights = cluster_weights(subset["action"].to_numpy(), draws, seed)
    fold = linear.grouped_folds(subset["action"].to_numpy(), seed)
    mean = np.zeros(1) if reason else representation.mean(axis=0, dtype=np.float64)
    without, null, null_without = (
        named(name, arm) for name in ("without_prototypes", "shuffled", "shuffled_without_prototypes")
    )
    records: list[tuple] = []
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for index, category in enumerate(CATEGORIES):
        member, typicality = members(subset, category)
        if why := reason or _cannot(typicality):
            keys = ((arm, "spearman"), (arm, "pearson"), (without, "spearman"))
            records += [missing(category, *key, len(typicality), why) for key in keys]
            continue
        rows, own = (representation[member] - mean).astype(np.float32), weights[:, member]
        typical = typicality == 1.0
        nearness = to_prototype(rows, typical)
        measured = {
            (arm, "spearman"): (spearman(nearness, typicality, own), len(rows)),
            (arm, "pearson"): (pearson(nearness, typicality, own), len(rows)),
        }
        if len(np.unique(typicality[~typical])) > 1:
            values = spearman(nearness[~typical], typicality[~typical], own[:, ~typical])
            measured[without, "spearman"] = (values, int((~typical).sum()))
        else:
            why = "not computed, because all rows but the prototype's are equally typical"
            records.append(missing(category, without, "spearman", int((~typical).sum()), why))
        for key, (values, n) in measured.items():
            records.append(row(category, *key, values, n))
            found.setdefault(key, []).append(values)
        if shuffles:
            draw = shuffled_spearman(rows, typicality, subset.loc[member, "action"].to_numpy(), shuffles, seed + index)
            for name, key, values in zip((null, null_without), (arm, without), draw, strict=True):
                if (key, "spearman") in measured:
                    observed, n = measured[key, "spearman"]
                    records.append(null_row(category, name, "spearman", values, n, observed[0]))
                    found.setdefault((name, "spearman"), []).append(values)
        if arm == PUBLISHED:
            records += _by_fold(category, rows, typicality, fold[member])
    # Means over categories share resamples and permutations with the single rows, so their intervals are joint.
    means = {key: mean_of(values) for key, values in found.items()}
    for (name, metric), values in means.items():
        if name in (null, null_without):
            observed = means[arm if name == null else without, metric][0]
            records.append(null_row("all", name, metric, values, len(subset), observed))
        else:
            records.append(row("all", name, metric, values, len(subset)))
    if not found:
        why = reason or "not computed, because no category has a gradient"
        records += [missing("all", *key, len(subset), why) for key in ((arm, "spearman"), (without, "spearman"))]
    return table("category", records)


def members(subset: pd.DataFrame, category: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows take part in a category's gradient, [rows] boolean, and the typicality of those that do."""
    index = CATEGORIES.index(category)
    polarity = "virtue" if index % 2 == 0 else "vice"
    member = (
        (subset["foundation"] == FOUNDATIONS[index // 2]) & subset["polarity"].isin([polarity, "neutral"])
    ).to_numpy()
    return member, subset.loc[member, "typicality"].to_numpy(float)


def to_prototype(rows: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """Return the cosine of every row to the mean of the typical ones, shape [rows]; 0 for a row or mean of zeros."""
    return nearness_to(rows, typical[None].astype(float))[:, 0]


def nearness_to(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return cosines of all rows to every weighted sum of them, [rows, draws], for weights [draws, rows]."""
    sums = weights.astype(rows.dtype) @ rows
    norms = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(sums, axis=1)
    return rows @ sums.T / np.maximum(norms, 1e-12)


def shuffled_spearman(
    rows: np.ndarray, typicality: np.ndarray, actions: np.ndarray, shuffles: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistic under permuted typicality, [shuffles], with the prototype's own rows and without them."""
    orders = np.array(list(permutations(actions, shuffles, seed)))
    permuted = typicality[orders]
    nearness = nearness_to(rows, (permuted == 1.0).astype(float)).T
    with_own = (standard(rankdata(nearness, axis=1)) * standard(rankdata(permuted, axis=1))).mean(axis=1)
    # Every permutation leaves out as many rows, so the rest keeps the shape [shuffles, rest].
    rest = permuted != 1.0
    shape = (shuffles, int(rest[0].sum()))
    x, y = rankdata(nearness[rest].reshape(shape), axis=1), rankdata(permuted[rest].reshape(shape), axis=1)
    return with_own, (standard(x) * standard(y)).mean(axis=1)


def peaks(gradients: pd.DataFrame) -> pd.DataFrame:
    """Return the published headline, the maximum over layers, and one that pays for the maximum.

    A maximum over layers is optimistic. For each fifth of the actions, ``held_out`` chooses the layer on the other four
    fifths, whose typical rows also make the prototype, and reads the correlation on the fifth; the mean is reported.

    Args:
        gradients: of all layers, with the column ``layer``.

    Returns:
        Columns ``category, arm, layer, value, ci_low, ci_high``; arms ``published`` and ``held_out`` (the layer is the one
        chosen most often; no interval).
    """
    spearmans = gradients[(gradients["arm"] == PUBLISHED) & (gradients["metric"] == "spearman")].dropna(subset="value")
    records = []
    for category, part in spearmans[spearmans["category"] != "all"].groupby("category", sort=False):
        best = part.iloc[part["value"].argmax()]
        records.append((category, PUBLISHED, best["layer"], best["value"], best["ci_low"], best["ci_high"]))
        of_folds = gradients[(gradients["arm"] == "held_out") & (gradients["category"] == category)]
        wide = of_folds.pivot(index="layer", columns="metric", values="value")
        folds = [name.split()[1] for name in wide if name.startswith("fold")]
        pairs = [wide[[f"rest {name}", f"fold {name}"]].dropna() for name in folds]
        best_rest = [pair.iloc[:, 0].argmax() for pair in pairs if len(pair)]
        chosen = [
            (pair.index[best], pair.iloc[best, 1]) for pair, best in zip(filter(len, pairs), best_rest, strict=True)
        ]
        if chosen:
            layers, values = zip(*chosen, strict=True)
            records.append((category, "held_out", pd.Series(layers).mode()[0], np.mean(values), np.nan, np.nan))
    return pd.DataFrame(records, columns=["category", "arm", "layer", "value", "ci_low", "ci_high"])


def _by_fold(category: str, rows: np.ndarray, typicality: np.ndarray, fold: np.ndarray) -> list[tuple]:
    records = []
    typical = (fold != np.arange(linear.FOLDS)[:, None]) & (typicality == 1.0)
    nearness = nearness_to(rows, typical.astype(float))
    for name in range(linear.FOLDS):
        for metric, part in (("rest", fold != name), ("fold", fold == name)):
            label, n = f"{metric} {name}", int(part.sum())
            if typical[name].sum() < MINIMUM_ROWS or len(np.unique(typicality[part])) < 2:
                why = "not computed, because a fold has no prototype or only one typicality"
                records.append(missing(category, "held_out", label, n, why))
                continue
            value = spearman(nearness[part, name], typicality[part], np.ones((1, n)))
            records.append(row(category, "held_out", label, value, n))
    return records


def _cannot(typicality: np.ndarray) -> str:
    if (typicality == 1.0).sum() < MINIMUM_ROWS:
        return f"not computed, because the category has fewer than {MINIMUM_ROWS} typical rows"
    if len(np.unique(typicality)) < 2:
        return "not computed, because all rows are equally typical"
    return ""
