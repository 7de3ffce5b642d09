"""Rows of evidence: how a table's values, intervals and controls become one row for one claim."""

from typing import Any

import pandas as pd

from lib.claims import EVIDENCE

Row = dict[str, Any]

CEILINGS = {"gradient-peak": "spearman", "dimensional-best": "r2"}
"""Claims that compare with people, and the metric of agreement between people that bounds them."""


def frame(rows: list[Row]) -> pd.DataFrame:
    """Return evidence rows as a frame with all columns."""
    return pd.DataFrame(rows).reindex(columns=list(EVIDENCE))


def with_ceiling(rows: pd.DataFrame, ceiling: pd.DataFrame | None) -> pd.DataFrame:
    """Fill in how well people agree with one another, for the claims that compare a model with people.

    Args:
        rows: evidence, columns ``EVIDENCE``.
        ceiling: ``vectors/ceiling.parquet`` (``dimension, metric, value, ...``; the dimension "mean" is over the ten),
            or ``None`` where it is not there.

    Returns:
        A copy; a claim keeps no ceiling where none was measured.
    """
    rows = rows.copy()
    if ceiling is None:
        return rows
    for claim, metric in CEILINGS.items():
        value = ceiling.loc[(ceiling["metric"] == metric) & (ceiling["dimension"] == "mean"), "value"]
        rows.loc[rows["id"] == claim, "ceiling"] = value.item()
    return rows


def count_row(claim: str, count: int) -> Row:
    """Return a count, which has no interval."""
    return {"id": claim, "ours": count, "n": count}


def interval_row(claim: str, rows: pd.DataFrame) -> Row:
    """Return the mean of values and of the ends of their intervals."""
    means = rows[["value", "ci_low", "ci_high"]].mean()
    return {
        "id": claim,
        "ours": means["value"],
        "ci_low": means["ci_low"],
        "ci_high": means["ci_high"],
        "n": rows["n"].max(),
    }


def control_of(rows: pd.DataFrame) -> Row:
    """Return the part of a row that says what a control found, from its rows."""
    means = rows[["value", "ci_low", "ci_high"]].mean()
    return {"control_value": means["value"], "control_low": means["ci_low"], "control_high": means["ci_high"]}


def mean_row(claim: str, rows: pd.DataFrame, control: str) -> Row:
    """Mean over layers and foundations; the mean of the intervals' ends is a conservative interval of the mean."""
    ours = rows[(rows["arm"] == "published")].dropna(subset=["value"])
    if ours.empty:
        return {"id": claim, "reason": rows["reason"].iloc[0] if len(rows) else "not measured"}
    against = rows[rows["arm"] == control]
    return interval_row(claim, ours) | ({"control": control, **control_of(against)} if len(against) else {})


def peak_row(claim: str, rows: pd.DataFrame, control: str, ceiling: str = "") -> Row:
    """Return the largest published value, beside the largest of a control and of a ceiling, each an arm's name."""
    ours = rows[rows["arm"] == "published"].dropna(subset=["value"])
    if ours.empty:
        reasons = rows.loc[rows["reason"] != "", "reason"]
        return {"id": claim, "reason": reasons.iloc[0] if len(reasons) else "not measured"}
    row = interval_row(claim, ours.nlargest(1, "value"))
    against = rows[rows["arm"] == control].dropna(subset=["value"])
    if len(against):
        row |= {"control": control, **control_of(against.nlargest(1, "value"))}
    above = rows[rows["arm"] == ceiling]
    return row | ({"ceiling": above["value"].max()} if len(above) else {})


def best_row(claim: str, rows: pd.DataFrame, against: pd.DataFrame) -> Row:
    """Return the largest value of some rows, beside the largest of an untuned arm."""
    if rows["value"].isna().all():
        return {"id": claim, "reason": "no valid verdict"}
    row = interval_row(claim, rows.nlargest(1, "value"))
    return row | ({"control": "untuned", **control_of(against.nlargest(1, "value"))} if len(against) else {})
