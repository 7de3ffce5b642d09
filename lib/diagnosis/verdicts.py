"""From numbers to verdicts: is a model indifferent, by the paper's measure and by the careful one?

The paper reads indifference from a low number alone. The careful reading asks whether the measure, at the last token,
exceeds what the same procedure gives without moral content: labels shuffled, length alone, words without a model. A model
is called indifferent only where it does not exceed the strongest of these.
"""

from typing import NamedTuple

import pandas as pd

from lib.diagnosis.controls import PUBLISHED, named

COLUMNS = [
    "kind", "published_measure", "published_value", "ours", "careful_measure", "layer", "careful", "ci_low", "ci_high",
    "null_measure", "null", "null_high", "ceiling", "verdict",
]  # fmt: skip

INDIFFERENT = "indifferent: not above its null"
NOT_INDIFFERENT = "not indifferent: above its null"
UNDECIDED = "not computed"

CAREFUL_POOLING = "last"
"""Where the careful measures read: the token at which the model is about to complete the judgment."""


class Measure(NamedTuple):
    """One kind of indifference: which rows of its table are the published measure, the careful one and its nulls."""

    kind: str
    published: str
    published_value: str
    careful_name: str
    careful: str
    metric: str
    nulls: dict[str, str]
    label: tuple[str, str]
    ceiling: str = ""
    """Metric of the human ceiling that bounds the careful measure, if there is one."""


MEASURES = (
    Measure(
        "categorical", "mean cosine of opposing prototypes, middle layers", "often above 0.5",
        "area under the curve", "auc", "auc",
        {
            "shuffled": "labels shuffled", "auc, length_only": "length alone",
            "auc, words_only": "words without a model",
        },
        ("foundation", "all"),
    ),
    Measure(
        "gradient", "highest peak of Spearman over layers", "below 0.55",
        "Spearman without the prototypes' rows", "without_prototypes", "spearman",
        {
            "shuffled_without_prototypes": "typicality shuffled", "without_prototypes, length_only": "length alone",
            "without_prototypes, words_only": "words without a model",
        },
        ("category", "all"), "spearman",
    ),
    Measure(
        "structural", "peak adjusted Rand index, polarity", "at best about 0.5",
        "adjusted Rand index, polarity, all points", "all_points", "adjusted_rand",
        {
            "shuffled": "labels shuffled", "all_points, length_only": "length alone",
            "all_points, words_only": "words without a model",
        },
        ("target", "polarity"),
    ),
    Measure(
        "dimensional", "best adjusted R squared", "0.26",
        "R squared of ridge", "ridge", "r2",
        {
            "shuffled_within_foundations": "labels shuffled within foundations", "ridge, length_only": "length alone",
            "ridge, words_only": "words without a model",
        },
        ("target", "all"), "r2",
    ),
)  # fmt: skip
"""The four kinds, as arms and metrics of the tables of ``lib.diagnosis.layers.diagnose``."""


def verdicts(tables: dict[str, pd.DataFrame], ceiling: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each kind of indifference.

    Args:
        tables: as ``lib.diagnosis.layers.diagnose`` returns them.
        ceiling: how well one annotator predicts another, as notebook 01 writes it.

    Returns:
        Columns ``COLUMNS``. ``ours`` is the published measure; ``careful`` with its 95% interval is taken at the layer where
        it is highest. That layer is chosen by the measure itself, which favours the model; ``null_high`` is the upper
        end of the strongest null over all layers, so that the choice is paid for, and ``null_measure`` says which it is.
    """
    return pd.DataFrame([_row(tables[measure.kind], measure, ceiling) for measure in MEASURES], columns=COLUMNS)


def _row(table: pd.DataFrame, measure: Measure, ceiling: pd.DataFrame) -> tuple:
    column, label = measure.label
    rows = table[(table["metric"] == measure.metric) & (table[column] == label)]
    pooling = CAREFUL_POOLING if (rows["arm"] == named(measure.careful, CAREFUL_POOLING)).any() else PUBLISHED
    measured = _by_layer(rows, named(measure.careful, pooling))
    nulls = {name: _null(rows, arm, pooling) for arm, name in measure.nulls.items()}
    nulls = {name: null for name, null in nulls.items() if null["ci_high"].notna().any()}
    people = ceiling[(ceiling["dimension"] == "mean") & (ceiling["metric"] == measure.ceiling)]["value"]
    limit = float(people.iloc[0]) if len(people) else float("nan")
    where = f"{measure.careful_name}, {pooling} token" if pooling == CAREFUL_POOLING else measure.careful_name
    names = (measure.kind, measure.published, measure.published_value, _published(table, measure), where)
    missing = float("nan")
    if measured["value"].isna().all() or not nulls:
        return (*names, missing, missing, missing, missing, "", missing, missing, limit, UNDECIDED)
    layer = measured["value"].idxmax()
    here = measured.loc[layer]
    strongest = max(nulls, key=lambda name: nulls[name]["ci_high"].max())
    null_high = nulls[strongest]["ci_high"].max()
    decision = NOT_INDIFFERENT if here["ci_low"] > null_high else INDIFFERENT
    return (
        *names, float(layer), here["value"], here["ci_low"], here["ci_high"],
        strongest, nulls[strongest].loc[layer, "value"], null_high, limit, decision,
    )  # fmt: skip


def _null(rows: pd.DataFrame, arm: str, pooling: str) -> pd.DataFrame:
    """A null on the careful representation where it shuffles labels, or one that reads no model."""
    return _by_layer(rows, arm if ", " in arm else named(arm, pooling))


def _published(table: pd.DataFrame, measure: Measure) -> float:
    own = table[table["arm"] == PUBLISHED]
    column, label = measure.label
    match measure.kind:
        case "categorical":
            by_layer = _by_layer(own[(own["metric"] == "opposing_cosine") & (own[column] == label)], PUBLISHED)["value"]
            return float(by_layer.iloc[middle(len(by_layer))].mean())
        case "dimensional":
            return float(own.loc[(own["metric"] == "adjusted_r2") & (own[column] == label), "value"].max())
        case "gradient":
            return float(own.loc[own["metric"] == "spearman", "value"].max())
        case _:
            return float(own.loc[(own["metric"] == "adjusted_rand") & (own[column] == label), "value"].max())


def middle(layers: int) -> slice:
    """Return the middle third of the layers, at least one."""
    start = layers // 3
    return slice(start, max(start + 1, layers - layers // 3))


def _by_layer(rows: pd.DataFrame, arm: str) -> pd.DataFrame:
    return rows[rows["arm"] == arm].set_index("layer")[["value", "ci_low", "ci_high"]].sort_index()
