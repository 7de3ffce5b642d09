"""From numbers to verdicts: is a model indifferent, by the paper's measure and by the careful one?

The paper reads indifference from a low number alone. The careful reading asks whether the measure exceeds what the same
procedure gives without moral content: a model is called indifferent only where it does not.
"""

import pandas as pd

COLUMNS = [
    "kind", "published_measure", "published_value", "ours", "careful_measure", "layer", "careful", "ci_low", "ci_high",
    "null_measure", "null", "null_high", "ceiling", "verdict",
]  # fmt: skip

INDIFFERENT = "indifferent: not above its null"
NOT_INDIFFERENT = "not indifferent: above its null"
UNDECIDED = "not computed"


def verdicts(tables: dict[str, pd.DataFrame], ceiling: float | None = None) -> pd.DataFrame:
    """Return one row for each kind of indifference.

    Args:
        tables: as ``lib.diagnosis.layers.diagnose`` returns them.
        ceiling: R squared of one annotator's vector for another's, where it is known.

    Returns:
        Columns ``COLUMNS``. ``ours`` is the published measure; ``careful`` with its 95% interval is taken at the layer where
        its mean is highest, against ``null`` at the same layer. The layer is chosen by the careful measure itself, which
        favours the model; the null's upper end is its maximum over all layers, so that choice is paid for.
    """
    rows = [
        _row(tables["categorical"], "categorical", "mean cosine of opposing prototypes, middle layers", "often above 0.5",
             _middle(_mean_over(tables["categorical"], "foundation", "published", "opposing_cosine")),
             ("foundation", "auc, last", "auc"), "area under the curve, last token", ("foundation", "auc, length_only", "auc"), "length alone", None),
        _row(tables["gradient"], "gradient", "peak Spearman over layers", "below 0.55",
             _peak(tables["gradient"], "published", "spearman"),
             ("category", "without_prototypes", "spearman"), "Spearman without the prototypes' rows", ("category", "shuffled", "spearman"),
             "typicality shuffled", None),
        _row(tables["structural"], "structural", "peak adjusted Rand index for polarity", "at best about 0.5",
             _peak(tables["structural"].query("target == 'polarity'"), "published", "adjusted_rand"),
             ("target", "all_points", "adjusted_rand"), "adjusted Rand index over all points", ("target", "shuffled", "adjusted_rand"),
             "labels shuffled", None),
        _row(tables["dimensional"].query("target != 'all'"), "dimensional", "best adjusted R squared", "0.26",
             _peak(tables["dimensional"].query("target == 'all'"), "published", "adjusted_r2"),
             ("target", "ridge, last", "r2"), "R squared of ridge, grouped, last token", ("target", "shuffled", "r2"), "labels shuffled", ceiling),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(
    table: pd.DataFrame, kind: str, measure: str, published: str, ours: float,
    careful: tuple[str, str, str], careful_name: str, null: tuple[str, str, str], null_name: str, ceiling: float | None,
) -> tuple:  # fmt: skip
    measured, nothing = _mean_over(table, *careful), _mean_over(table, *null)
    if measured["value"].isna().all() or nothing["value"].isna().all():
        missing = float("nan")
        return (
            kind,
            measure,
            published,
            ours,
            careful_name,
            pd.NA,
            *[missing] * 3,
            null_name,
            missing,
            missing,
            ceiling,
            UNDECIDED,
        )
    layer = measured["value"].idxmax()
    here = measured.loc[layer]
    null_high = nothing["ci_high"].max()
    decision = NOT_INDIFFERENT if here["ci_low"] > null_high else INDIFFERENT
    return (
        kind, measure, published, ours, careful_name, layer, here["value"], here["ci_low"], here["ci_high"],
        null_name, nothing.loc[layer, "value"], null_high, ceiling, decision,
    )  # fmt: skip


def _mean_over(table: pd.DataFrame, label: str, arm: str, metric: str) -> pd.DataFrame:
    """Mean of value and interval ends over categories, by layer: a conservative interval of the mean."""
    chosen = table[(table["arm"] == arm) & (table["metric"] == metric) & (table[label] != "all")]
    return chosen.groupby("layer")[["value", "ci_low", "ci_high"]].mean()


def _middle(by_layer: pd.DataFrame) -> float:
    layers = len(by_layer)
    return float(by_layer["value"].iloc[layers // 3 : max(layers // 3 + 1, (2 * layers + 2) // 3)].mean())


def _peak(table: pd.DataFrame, arm: str, metric: str) -> float:
    return float(table[(table["arm"] == arm) & (table["metric"] == metric)]["value"].max())
