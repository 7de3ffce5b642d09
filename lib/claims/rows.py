"""Rows of evidence: the few forms that the tables of all stages are brought into.

A row is a mapping with some of the columns of :data:`lib.claims.ledger.EVIDENCE`; its functions keep intervals honest.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

Row = dict[str, Any]
Measured = dict[str, float]
"""``value, low, high, n``."""

Z95 = norm.ppf(0.975)


def silent(claims: Iterable[str], reason: str) -> Iterator[Row]:
    """Yield a row without a measurement for every claim, with the reason."""
    return ({"id": claim, "reason": reason} for claim in claims)


def exact(claim: str, value: float, n: int, **more: Any) -> Row:
    """Return the row of a number that has no error, such as a count: its interval is the number."""
    return {"id": claim, "ours": value, "ci_low": value, "ci_high": value, "n": n, **more}


def mean(rows: pd.DataFrame, *, level: float = 0.95) -> Measured | None:
    """Return the mean of values and of the ends of their 95% intervals, which is wide enough; None without a value.

    At another level the half-widths are scaled as those of a normal distribution are.
    """
    rows = rows.dropna(subset=["value"])
    if rows.empty:
        return None
    value, low, high = rows[["value", "ci_low", "ci_high"]].mean()
    factor = norm.ppf((1 + level) / 2) / Z95
    low, high = value - factor * (value - low), value + factor * (high - value)
    return {"value": value, "low": low, "high": high, "n": float(rows["n"].max())}


def highest(rows: pd.DataFrame, *, level: float = 0.95) -> Measured | None:
    """Return the highest value and an interval of the highest true one; None without a value.

    The 95% intervals are widened until all rows hold at once (Bonferroni), because the highest was chosen among them.
    """
    rows = rows.dropna(subset=["value"])
    if rows.empty:
        return None
    factor = norm.ppf(1 - (1 - level) / (2 * len(rows))) / Z95
    low = rows["value"] - factor * (rows["value"] - rows["ci_low"])
    high = rows["value"] + factor * (rows["ci_high"] - rows["value"])
    return {"value": rows["value"].max(), "low": low.max(), "high": high.max(), "n": float(rows["n"].max())}


def difference(ours: Measured, theirs: Measured) -> Measured:
    """Return ours minus theirs with an interval from theirs and ours, as if independent (MOVER; Zou and Donner, 2008).

    Where both read the same rows this is too wide, which favours no claim.
    """
    value = ours["value"] - theirs["value"]
    low = value - np.hypot(ours["value"] - ours["low"], theirs["high"] - theirs["value"])
    high = value + np.hypot(ours["high"] - ours["value"], theirs["value"] - theirs["low"])
    return {"value": value, "low": low, "high": high, "n": min(ours["n"], theirs["n"])}


def measured(claim: str, ours: Measured | None, *, reason: str = "not measured", **more: Any) -> Row:
    """Return the row of a measurement, or of none with the reason."""
    if ours is None:
        return {"id": claim, "reason": reason}
    return {"id": claim, "ours": ours["value"], "ci_low": ours["low"], "ci_high": ours["high"], "n": ours["n"], **more}


def beside(
    row: Row, controls: dict[str, Measured | None], contrasts: dict[str, Measured] | None = None
) -> Iterator[Row]:
    """Yield the row once per control that was measured, with its value and, where there is one, the contrast to it."""
    there = {name: control for name, control in controls.items() if control is not None} if "ours" in row else {}
    for name, control in there.items():
        values = {f"control_{key}": control[key] for key in ("value", "low", "high")}
        if contrast := (contrasts or {}).get(name):
            names = {"contrast": "value", "contrast_low": "low", "contrast_high": "high"}
            values |= {column: contrast[key] for column, key in names.items()}
        yield row | {"control_name": name} | values
    if not there:
        yield row
