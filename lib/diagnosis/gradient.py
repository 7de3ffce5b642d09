"""Gradient indifference: does a more typical action lie nearer to its category's prototype?

Per category and layer, the correlation between human typicality and the cosine of each row to its category's prototype;
neutral rows of the foundation enter both poles with typicality 0 (section 3, analysis 2). The published recipe keeps the
rows that make up the prototype; a row is always near a mean that contains it, which alone gives a correlation of about
.2, so the arm ``without_prototypes`` leaves them out.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lib.diagnosis.controls import PUBLISHED
from lib.foundations import CATEGORIES, FOUNDATIONS
from lib.statistics import cluster_weights, interval, pearson, spearman, standard

COLUMNS = ["category", "arm", "metric", "value", "ci_low", "ci_high", "n", "reason"]
MINIMUM_ROWS = 5


def gradient(
    representation: np.ndarray, subset: pd.DataFrame, draws: int, permutations: int, seed: int, arm: str = PUBLISHED
) -> pd.DataFrame:
    """Correlate typicality with nearness to the prototype for one layer.

    Args:
        representation: [rows, width], rows of the diagnosis subset.
        subset: columns ``action, foundation, polarity, typicality, category, is_prototype``.
        draws: bootstrap resamples of actions.
        permutations: draws of the typicality shuffle; only for the published arm.
        seed: of both.
        arm: label of the representation.

    Returns:
        Columns ``category, arm, metric, value, ci_low, ci_high, n, reason``; metrics ``spearman`` and ``pearson``.
        The published arm comes with ``without_prototypes`` and ``shuffled`` (typicality permuted before the prototype
        is made, so it shows what the procedure finds in nothing).
    """
    centred = representation - representation.mean(axis=0)
    records: list[tuple] = []
    for index, category in enumerate(CATEGORIES):
        foundation = FOUNDATIONS[index // 2]
        polarity = "virtue" if index % 2 == 0 else "vice"
        member = (subset["foundation"] == foundation) & subset["polarity"].isin([polarity, "neutral"])
        rows, part = centred[member.to_numpy()], subset[member]
        typicality = part["typicality"].to_numpy(float)
        typical = typicality == 1.0
        if reason := _cannot(rows, typicality, typical):
            records += [
                (category, arm, metric, np.nan, np.nan, np.nan, len(rows), reason) for metric in ("spearman", "pearson")
            ]
            continue
        actions = part["action"].to_numpy()
        nearness = to_prototype(rows, typical)
        weights = cluster_weights(actions, draws, seed)
        for metric, correlate in (("spearman", spearman), ("pearson", pearson)):
            records.append((category, arm, metric, *correlate(nearness, typicality, weights), len(rows), ""))
        if arm == PUBLISHED:
            rest = ~typical
            if len(np.unique(typicality[rest])) > 1:
                value = spearman(nearness[rest], typicality[rest], weights[:, rest])
                records.append((category, "without_prototypes", "spearman", *value, int(rest.sum()), ""))
            null = shuffled_spearman(rows, typicality, permutations, np.random.default_rng([seed, index]))
            records.append((category, "shuffled", "spearman", float(null.mean()), *interval(null), len(rows), ""))
    return pd.DataFrame(records, columns=COLUMNS)


def to_prototype(rows: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """Return the cosine of every row to the mean of the typical ones, shape [rows]."""
    prototype = rows[typical].mean(axis=0)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(prototype)
    return rows @ prototype / np.maximum(norms, 1e-12)


def shuffled_spearman(
    rows: np.ndarray, typicality: np.ndarray, permutations: int, generator: np.random.Generator
) -> np.ndarray:
    """Return the published statistic under permuted typicality, one value a permutation."""
    values = []
    for _ in range(permutations):
        permuted = generator.permutation(typicality)
        nearness = to_prototype(rows, permuted == 1.0)
        values.append(np.mean(standard(rankdata(nearness)) * standard(rankdata(permuted))))
    return np.array(values)


def peaks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the published headline, the maximum over layers, and a corrected one.

    A maximum over layers is optimistic. The corrected peak chooses the layer by the other categories' mean and reads this
    category's value there.

    Args:
        table: gradient of all layers, with the column ``layer``.

    Returns:
        Columns ``category, arm, layer, value, ci_low, ci_high``; arms ``published`` and ``layer_chosen_elsewhere``.
    """
    chosen = table[(table["arm"] == PUBLISHED) & (table["metric"] == "spearman")]
    wide = chosen.pivot(index="layer", columns="category", values="value")
    keyed = chosen.set_index(["category", "layer"])[["value", "ci_low", "ci_high"]]
    records = []
    for category in [name for name in CATEGORIES if name in wide and wide[name].notna().any()]:
        best = wide[category].idxmax()
        others = wide.drop(columns=category).mean(axis=1)
        elsewhere = others.idxmax() if others.notna().any() else best
        for arm, layer in ((PUBLISHED, best), ("layer_chosen_elsewhere", elsewhere)):
            records.append((category, arm, layer, *keyed.loc[(category, layer)]))
    return pd.DataFrame(records, columns=["category", "arm", "layer", "value", "ci_low", "ci_high"])


def _cannot(rows: np.ndarray, typicality: np.ndarray, typical: np.ndarray) -> str:
    if typical.sum() < MINIMUM_ROWS:
        return "not computed, because the category has no prototype"
    if len(np.unique(typicality)) < 2:
        return "not computed, because all rows are equally typical"
    if not np.isfinite(rows).all():
        return "not computed, because the layer holds values that are not finite"
    if np.allclose(rows, 0):
        return "not computed, because the layer does not vary"
    return ""
