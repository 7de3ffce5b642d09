"""From numbers to verdicts: is a model indifferent, by the paper's measure and by the careful one?

The paper reads indifference from a low number alone. The careful reading asks whether the measure exceeds what the same
procedure gives without moral content: a model is called indifferent only where it does not.
"""

from typing import NamedTuple

import pandas as pd

COLUMNS = [
    "kind", "published_measure", "published_value", "ours", "careful_measure", "layer", "careful", "ci_low", "ci_high",
    "null_measure", "null", "null_high", "ceiling", "verdict",
]  # fmt: skip

INDIFFERENT = "indifferent: not above its null"
NOT_INDIFFERENT = "not indifferent: above its null"
UNDECIDED = "not computed"


class Measure(NamedTuple):
    """One kind of indifference: which rows of its table are the published measure, the careful one and its null."""

    kind: str
    published: str
    published_value: str
    careful_name: str
    careful: tuple[str, str]
    null_name: str
    null: tuple[str, str]
    label: str


MEASURES = (
    Measure(
        "categorical", "mean cosine of opposing prototypes, middle layers", "often above 0.5",
        "area under the curve, last token", ("auc, last", "auc"), "length alone", ("auc, length_only", "auc"), "foundation",
    ),
    Measure(
        "gradient", "peak Spearman over layers", "below 0.55",
        "Spearman without the prototypes' rows", ("without_prototypes", "spearman"),
        "typicality shuffled", ("shuffled", "spearman"), "category",
    ),
    Measure(
        "structural", "peak adjusted Rand index, polarity", "at best about 0.5",
        "adjusted Rand index, polarity, all points", ("all_points", "adjusted_rand"),
        "labels shuffled", ("shuffled", "adjusted_rand"), "target",
    ),
    Measure(
        "dimensional", "best adjusted R squared", "0.26",
        "R squared of ridge, last token", ("ridge, last", "r2"),
        "labels shuffled within foundations", ("shuffled_within_foundations, last", "r2"), "target",
    ),
)  # fmt: skip
"""The four kinds, as arms and metrics of the tables of ``lib.diagnosis.layers.diagnose``."""


def verdicts(tables: dict[str, pd.DataFrame], ceiling: float | None = None) -> pd.DataFrame:
    """Return one row for each kind of indifference.

    Args:
        tables: as ``lib.diagnosis.layers.diagnose`` returns them.
        ceiling: R squared of one annotator's vector for another's, where it is known.

    Returns:
        Columns ``COLUMNS``. ``ours`` is the published measure; ``careful`` with its 95% interval is taken at the layer where
        its mean is highest. That layer is chosen by the measure itself, which favours the model; ``null_high`` is
        the null's upper end over all layers, so that the choice is paid for.
    """
    return pd.DataFrame([_row(tables[measure.kind], measure, ceiling) for measure in MEASURES], columns=COLUMNS)


def _row(table: pd.DataFrame, measure: Measure, ceiling: float | None) -> tuple:
    if measure.kind == "structural":
        table = table[table["target"] == "polarity"]
    ours = _published(table, measure)
    measured = _mean_over(table, measure.label, *measure.careful)
    nothing = _mean_over(table, measure.label, *measure.null)
    limit = ceiling if measure.kind == "dimensional" and ceiling is not None else float("nan")
    names = (measure.kind, measure.published, measure.published_value, ours, measure.careful_name)
    if measured["value"].isna().all() or nothing["value"].isna().all():
        missing = float("nan")
        return (*names, missing, missing, missing, missing, measure.null_name, missing, missing, limit, UNDECIDED)
    layer = measured["value"].idxmax()
    here, null_high = measured.loc[layer], nothing["ci_high"].max()
    decision = NOT_INDIFFERENT if here["ci_low"] > null_high else INDIFFERENT
    return (
        *names, float(layer), here["value"], here["ci_low"], here["ci_high"],
        measure.null_name, nothing.loc[layer, "value"], null_high, limit, decision,
    )  # fmt: skip


def _published(table: pd.DataFrame, measure: Measure) -> float:
    match measure.kind:
        case "categorical":
            by_layer = _mean_over(table, "foundation", "published", "opposing_cosine")["value"]
            return float(by_layer.iloc[middle(len(by_layer))].mean())
        case "dimensional":
            return _peak(table[table["target"] == "all"], "adjusted_r2")
        case "gradient":
            return _peak(table, "spearman")
        case _:
            return _peak(table, "adjusted_rand")


def middle(layers: int) -> slice:
    """Return the middle third of the layers, at least one."""
    start = layers // 3
    return slice(start, max(start + 1, layers - layers // 3))


def _mean_over(table: pd.DataFrame, label: str, arm: str, metric: str) -> pd.DataFrame:
    """Mean of value and interval ends over categories, by layer: a conservative interval of the mean."""
    chosen = table[(table["arm"] == arm) & (table["metric"] == metric) & (table[label] != "all")]
    return chosen.groupby("layer")[["value", "ci_low", "ci_high"]].mean()


def _peak(table: pd.DataFrame, metric: str) -> float:
    return float(table[(table["arm"] == "published") & (table["metric"] == metric)]["value"].max())
