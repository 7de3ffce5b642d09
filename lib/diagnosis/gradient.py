"""Gradient indifference: does a more typical action lie nearer to its category's prototype?

Per category and layer, the correlation between human typicality and the cosine of each row to its category's prototype;
neutral rows of the foundation enter both poles with typicality 0 (section 3, analysis 2). The published recipe keeps the
rows that make up the prototype; a row is always near a mean that contains it, which alone gives a correlation of about
.2, so the arm ``without_prototypes`` leaves them out.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.sampling import FOLDS, Sampling
from lib.diagnosis.tidy import MINIMUM_ROWS, mean_of, missing, null_row, row, table, unusable
from lib.paper import CATEGORIES, FOUNDATIONS
from lib.stats import pearson, permutations, spearman, standard


def gradient(
    representation: np.ndarray, subset: pd.DataFrame, *, sampling: Sampling, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Correlate typicality with nearness to the prototype for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, polarity, typicality``.
        sampling: of intervals, folds and typicality shuffles.
        arm: label of the representation.

    Returns:
        Columns ``category`` and ``tidy.MEASURED``; metrics ``spearman`` and ``pearson``, for every category and ``all``
        (their mean). Every representation comes with ``without_prototypes`` and, with shuffles, with ``shuffled`` and
        ``shuffled_without_prototypes`` (typicality permuted before the prototype is made, so it shows what the procedure
        finds in nothing). The published one also comes, fold by fold, with ``held_out`` (metrics ``rest 0``, ``fold 0``,
        ...; see :func:`peaks`) and, for ``all``, with ``overall_spearman``: one correlation over the rows of all categories,
        each with its own prototype, as the released code also reports.
    """
    reason = unusable(representation)
    weights = sampling.weights(subset["action"].to_numpy())
    fold = sampling.folds(subset["action"].to_numpy())
    mean = np.zeros(1) if reason else representation.mean(axis=0, dtype=np.float64)
    without, null, null_without = (
        named(name, arm) for name in ("without_prototypes", "shuffled", "shuffled_without_prototypes")
    )
    records: list[tuple] = []
    by_key: dict[tuple[str, str], list[np.ndarray]] = {}
    pooled: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index, category in enumerate(CATEGORIES):
        member, typicality = members(subset, category)
        if why := reason or _cannot(typicality):
            keys = ((arm, "spearman"), (arm, "pearson"), (without, "spearman"))
            records += [missing((category, *key), n=len(typicality), reason=why) for key in keys]
            continue
        rows, own, rest = (representation[member] - mean).astype(np.float32), weights[:, member], typicality != 1.0
        nearness = nearness_to(rows, ~rest[None])[:, 0]
        pooled.append((nearness, typicality, own))
        measured = {
            (arm, "spearman"): spearman(nearness, typicality, own),
            (arm, "pearson"): pearson(nearness, typicality, own),
        }
        n = {arm: len(rows), without: int(rest.sum())}
        if len(np.unique(typicality[rest])) > 1:
            measured[without, "spearman"] = spearman(nearness[rest], typicality[rest], own[:, rest])
        else:
            why = "all rows but the prototype's are equally typical"
            records.append(missing((category, without, "spearman"), n=n[without], reason=why))
        for key, values in measured.items():
            records.append(row((category, *key), values, n=n[key[0]]))
            by_key.setdefault(key, []).append(values)
        if sampling.shuffles:
            actions = subset.loc[member, "action"].to_numpy()
            orders = np.array(list(permutations(actions, sampling.shuffles, sampling.seed + index)))
            draws = shuffled_spearman(rows, typicality, orders)
            for name, of, values in zip((null, null_without), (arm, without), draws, strict=True):
                if (of, "spearman") in measured:
                    observed = measured[of, "spearman"][0]
                    records.append(null_row((category, name, "spearman"), values, n=n[of], observed=observed))
                    by_key.setdefault((name, "spearman"), []).append(values)
        if arm == PUBLISHED:
            records += _by_fold(category, rows, typicality=typicality, fold=fold[member])
    # Means over categories share resamples and permutations with the single rows, so their intervals are joint.
    means = {key: mean_of(values) for key, values in by_key.items()}
    for (name, metric), values in means.items():
        if name in (null, null_without):
            observed = means[arm if name == null else without, metric][0]
            records.append(null_row(("all", name, metric), values, n=len(subset), observed=observed))
        else:
            records.append(row(("all", name, metric), values, n=len(subset)))
    if arm == PUBLISHED and pooled:
        nearness, typicality = (np.concatenate(part) for part in list(zip(*pooled, strict=True))[:2])
        overall = spearman(nearness, typicality, np.concatenate([own for *_, own in pooled], axis=1))
        records.append(row(("all", arm, "overall_spearman"), overall, n=len(nearness)))
    if not by_key:
        why = reason or "no category has a gradient"
        records += [
            missing(("all", *key), n=len(subset), reason=why) for key in ((arm, "spearman"), (without, "spearman"))
        ]
    return table("category", records)


def members(subset: pd.DataFrame, category: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows take part in a category's gradient, [rows] boolean, and the typicality of those that do."""
    foundation, pole = divmod(CATEGORIES.index(category), 2)
    chosen = subset["polarity"].isin([("virtue", "vice")[pole], "neutral"])
    member = (chosen & (subset["foundation"] == FOUNDATIONS[foundation])).to_numpy()
    return member, subset.loc[member, "typicality"].to_numpy(float)


def nearness_to(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return cosines of all rows to every weighted sum of them, [rows, draws], for weights [draws, rows]; 0 for zeros."""
    sums = weights.astype(rows.dtype) @ rows
    norms = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(sums, axis=1)
    return rows @ sums.T / np.maximum(norms, 1e-12)


def shuffled_spearman(rows: np.ndarray, typicality: np.ndarray, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistic with typicality permuted by every one of ``orders``, [shuffles, rows].

    Twice [shuffles]: with the prototype's own rows, and without them.
    """
    permuted = typicality[orders]
    nearness = nearness_to(rows, (permuted == 1.0).astype(float)).T
    with_own = (standard(rankdata(nearness, axis=1)) * standard(rankdata(permuted, axis=1))).mean(axis=1)
    # Every permutation leaves out the same number of rows, so the rest has the shape [shuffles, rest].
    rest = permuted != 1.0
    shape = (len(orders), int(rest[0].sum()))
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
    spearmans = gradients[(gradients["metric"] == "spearman") & (gradients["category"] != "all")]
    published = spearmans[spearmans["arm"] == PUBLISHED].dropna(subset="value").reset_index(drop=True)
    best = published.loc[published.groupby("category", sort=False)["value"].idxmax()]
    of_folds = gradients[gradients["arm"] == "held_out"].dropna(subset="value").reset_index(drop=True)
    part = of_folds["metric"].str.extract(r"(?P<part>rest|fold) (?P<split>\d+)")
    keys = ["category", "split", "layer"]
    wide = of_folds.join(part).pivot(index=keys, columns="part", values="value").reset_index()
    wide = wide.reindex(columns=[*keys, "rest", "fold"]).dropna()
    chosen = wide.loc[wide.groupby(["category", "split"])["rest"].idxmax()].groupby("category", sort=False)
    layers, values = chosen["layer"].agg(lambda layer: layer.mode()[0]), chosen["fold"].mean()
    held_out = pd.DataFrame({"layer": layers, "value": values}).reset_index().assign(arm="held_out")
    columns = ["category", "arm", "layer", "value", "ci_low", "ci_high"]
    return pd.concat([best, held_out], ignore_index=True)[columns]


def _by_fold(category: str, rows: np.ndarray, *, typicality: np.ndarray, fold: np.ndarray) -> list[tuple]:
    records = []
    typical = (fold != np.arange(FOLDS)[:, None]) & (typicality == 1.0)
    nearness = nearness_to(rows, typical.astype(float))
    for name in range(FOLDS):
        for metric, part in (("rest", fold != name), ("fold", fold == name)):
            label, n = f"{metric} {name}", int(part.sum())
            if typical[name].sum() < MINIMUM_ROWS or len(np.unique(typicality[part])) < 2:
                why = "a fold has no prototype or only one typicality"
                records.append(missing((category, "held_out", label), n=n, reason=why))
                continue
            value = spearman(nearness[part, name], typicality[part], np.ones((1, n)))
            records.append(row((category, "held_out", label), value, n=n))
    return records


def _cannot(typicality: np.ndarray) -> str:
    if (typicality == 1.0).sum() < MINIMUM_ROWS:
        return f"the category has fewer than {MINIMUM_ROWS} typical rows"
    return "all rows are equally typical" if len(np.unique(typicality)) < 2 else ""
