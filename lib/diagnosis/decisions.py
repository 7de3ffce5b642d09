"""From numbers to decisions: does a model hold more than its words, as much as they do, or can nobody tell?

The paper reads indifference from a low number alone. The careful reading asks what the model adds to words: the paired gain
of words + representation over words alone on held-out actions (:mod:`lib.diagnosis.measurement`). A lack of evidence is no
decision: a model equals its words only where the gain is shown to lie below a stated margin.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.diagnosis.controls import PUBLISHED, REPRESENTATIONS, named
from lib.diagnosis.measurement import BESIDE, OVER, WORDLIKE
from lib.run.parameters import DiagnosisKeys

COLUMNS = [
    "kind", "published_measure", "published_value", "ours", "careful_measure", "pooling", "layer", "words", "careful",
    "gain", "ci_low", "ci_high", "p", "margin", "equivalence_high", "control", "control_gain", "control_low", "ceiling",
    "reachable", "decision", *OVER,
]  # fmt: skip

SIGNAL = "signal beyond words"
EQUIVALENT = "equivalent to words"
UNDECIDED = "undecided"

LEVEL = 0.05

CAREFUL_POOLING = "last"
"""Where the figures by layer read: the token at which the model is about to complete the judgment."""


class Measure(NamedTuple):
    """One kind of indifference: its published measure, its careful one, and the rows of its table that figures show."""

    kind: str
    published: str
    published_value: str
    careful_name: str
    careful: str
    metric: str
    label: tuple[str, str]
    shuffled: str
    unit: str
    gain_unit: str
    ceiling: str = ""
    """Metric of the human ceiling that bounds the careful measure, if there is one."""

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of the measure's metric and label, of all arms."""
        column, label = self.label
        return table[(table["metric"] == self.metric) & (table[column] == label)]


MEASURES = (
    Measure(
        "categorical", "mean cosine of opposing prototypes, middle layers", "often above 0.5",
        "area under the curve of virtue against vice", "auc", "auc", ("foundation", "all"),
        "shuffled", "area under the curve (0.5 is chance)", "area under the curve",
    ),
    Measure(
        "gradient", "highest peak of Spearman over layers", "below 0.55",
        "Spearman of predicted typicality", "without_prototypes", "spearman", ("category", "all"),
        "shuffled_without_prototypes", "Spearman correlation", "Spearman", "spearman",
    ),
    Measure(
        "structural", "peak adjusted Rand index, polarity", "at best about 0.5",
        "nearest neighbours of the same polarity", "all_points", "adjusted_rand", ("target", "polarity"),
        "shuffled_all_points", "adjusted Rand index", "share of neighbours",
    ),
    Measure(
        "dimensional", "best R squared of the published probe", "0.26 (adjusted)",
        "R squared of ten dimensions", "ridge", "r2", ("target", "all"),
        "shuffled_within_foundations", "R squared", "R squared", "r2",
    ),
)  # fmt: skip
"""The four kinds, as arms and metrics of the tables of ``lib.diagnosis.layers.diagnose``."""

UNITS = {measure.kind: measure.unit for measure in MEASURES}
GAIN_UNITS = {measure.kind: measure.gain_unit for measure in MEASURES}


def margins(parameters: DiagnosisKeys) -> dict[str, float]:
    """Return kind -> the gain below which a model counts as equivalent to its words."""
    return {measure.kind: getattr(parameters, f"{measure.kind}_margin") for measure in MEASURES}


def decide(measured: pd.DataFrame, margins_: Mapping[str, float]) -> pd.DataFrame:
    """Decide on each kind of indifference from the measured gains alone.

    *Signal beyond words*: ``p`` is at most ``LEVEL``, and the gain over every wordlike control lies above 0. *Equivalent to
    words*: at every reading the gain's one-sided 95% upper bound lies below the margin; that every one has to needs no correction
    for their number (Berger, 1982), and a reading that could not be measured has no such bound. Anything else is *undecided*.

    Args:
        measured: as :func:`lib.diagnosis.measurement.measure` returns it.
        margins_: kind -> margin, in units of the kind's score.

    Returns:
        One row per kind with the columns of :func:`lib.diagnosis.measurement.measure` at the reading of the highest gain,
        ``margin`` and ``decision``; ``equivalence_high`` is the highest over readings.
    """
    rows = []
    for kind, margin in margins_.items():
        models = measured[(measured["kind"] == kind) & measured["layer"].notna()]
        measurable = models.dropna(subset=["gain"])
        if measurable.empty:
            rows.append({"kind": kind, "margin": margin, "control": "", "pooling": "", "decision": UNDECIDED})
            continue
        best, highest = measurable.loc[measurable["gain"].idxmax()], models["equivalence_high"].max()
        signal = best["p"] <= LEVEL and best["control_low"] > 0
        otherwise = EQUIVALENT if highest < margin else UNDECIDED
        decision = {"margin": margin, "equivalence_high": highest, "decision": SIGNAL if signal else otherwise}
        rows.append(best.to_dict() | decision)
    return pd.DataFrame(rows)


def decisions(
    measured: pd.DataFrame, tables: Mapping[str, pd.DataFrame], *, ceiling: pd.DataFrame, margins_: Mapping[str, float]
) -> pd.DataFrame:
    """Return the decisions beside what the paper measured and what annotators reach.

    Args:
        measured: as :func:`lib.diagnosis.measurement.measure` returns it.
        tables: kind -> table, as ``lib.diagnosis.layers.diagnose`` returns them.
        ceiling: what an oracle reaches that knows the mean opinion, as notebook 01 writes it.
        margins_: kind -> margin.

    Returns:
        Columns ``COLUMNS``, one row per kind. ``ours`` is the published measure on this model; ``words``, ``careful`` and their
        difference ``gain`` are of the careful one, where the gain is highest; ``reachable`` is ``careful`` as a share of the
        ceiling, missing where there is none.
    """
    decided = decide(measured, margins_).set_index("kind")
    records = [
        {
            "kind": measure.kind, "published_measure": measure.published, "published_value": measure.published_value,
            "ours": _published(tables[measure.kind], measure), "careful_measure": measure.careful_name,
            "ceiling": _limit(ceiling, measure.ceiling),
        }
        for measure in MEASURES
    ]  # fmt: skip
    table = pd.DataFrame(records).join(decided, on="kind").reindex(columns=COLUMNS)
    return table.assign(reachable=table["careful"] / table["ceiling"])


def sentence(row: pd.Series) -> str:
    """Say one decision in words, from the numbers of its row."""
    if pd.isna(row["gain"]):
        return f"{row['kind']}: undecided, because no problem has enough actions or no layer could be read."
    where = f"after layer {row['layer']:.0f} ({row['pooling'].replace('_', ' ')})"
    gain = f"{row['gain']:+z.3f} ({row['ci_low']:+z.3f} to {row['ci_high']:+z.3f})"
    return (
        f"{row['kind']}: {row['decision']}. {row['careful_measure'].capitalize()}: {row['words']:.3f} by words, "
        f"{row['careful']:.3f} with the model {where}; gain {gain}; with representations of other actions p {row['p']:.3f}; over "
        f"{(WORDLIKE | BESIDE).get(row['control'], row['control'])} {row['control_gain']:+z.3f}, at least "
        f"{row['control_low']:+z.3f}; at no layer more than {row['equivalence_high']:+z.3f} (margin {row['margin']:.3f})."
    )


def _limit(ceiling: pd.DataFrame, metric: str) -> float:
    limits = ceiling.loc[(ceiling["dimension"] == "mean") & (ceiling["metric"] == metric), "value"]
    return float(limits.iloc[0]) if len(limits) else np.nan


def _published(table: pd.DataFrame, measure: Measure) -> float:
    own = table[table["arm"] == PUBLISHED]
    match measure.kind:
        case "categorical":
            by_layer = own[(own["metric"] == "opposing_cosine") & (own["foundation"] == "all")].sort_values("layer")
            return by_layer["value"].iloc[middle(len(by_layer))].mean()
        case "gradient":
            return own.loc[own["metric"] == "spearman", "value"].max()
        case "structural":
            return measure.rows(own)["value"].max()
        case _:
            return own.loc[(own["metric"] == "r2") & (own["target"] == "all"), "value"].max()


def middle(layers: int) -> slice:
    """Return the middle third of the layers, at least one."""
    start = layers // 3
    return slice(start, max(start + 1, layers - layers // 3))


def with_ceiling(table: pd.DataFrame, ceiling: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Add the human ceiling to a table as rows of the arm ``ceiling``, label ``all``, the same at every layer.

    Args:
        table: of the gradient or the dimensions.
        ceiling: what an oracle reaches that knows the mean opinion, as notebook 01 writes it.
        metric: ``spearman`` or ``r2``.
    """
    limit = ceiling[(ceiling["dimension"] == "mean") & (ceiling["metric"] == metric)].dropna(subset="value")
    layers = table[["layer"]].drop_duplicates()
    rows = limit[["metric", "value", "ci_low", "ci_high", "n"]].merge(layers, how="cross")
    return pd.concat([table, rows.assign(arm="ceiling", **{table.columns[3]: "all"})], ignore_index=True)


def careful_rows(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the careful measure of a kind by layer and representation.

    Returns:
        The rows of the measure, of its label shuffle at ``CAREFUL_POOLING`` and of the ceiling, with two more columns:
        ``kind``, and ``representation``, which names what the measure reads, ``shuffled`` or ``ceiling``.
    """
    measure = next(measure for measure in MEASURES if measure.kind == kind)
    rows = measure.rows(table)
    names = {named(measure.careful, arm): arm for arm in REPRESENTATIONS} | {"ceiling": "ceiling"}
    names[named(measure.shuffled, CAREFUL_POOLING)] = "shuffled"
    return rows.assign(kind=kind, representation=rows["arm"].map(names)).dropna(subset="representation")
