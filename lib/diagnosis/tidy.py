"""Rows of the diagnosis tables: one shape for a number with its interval, and for one that could not be computed."""

import numpy as np
import pandas as pd

from lib.statistics import interval, interval_around, permutation_p

MEASURED = ["arm", "metric", "value", "ci_low", "ci_high", "n", "p", "reason"]
"""Columns of every analysis after the one that names its category, foundation or target.

``p`` stands in the rows of a null: how often it is as extreme as the measured value. ``reason`` says why a value is
missing.
"""

MINIMUM_ROWS = 5
"""A prototype of fewer rows than this is not computed."""


def row(label: str, arm: str, metric: str, values: np.ndarray, n: int) -> tuple:
    """Return a row from a value and its resamples, [draws + 1]; a value that is not finite gets a reason."""
    reason = "" if np.isfinite(values[0]) else "not computed, because the values do not vary"
    return (label, arm, metric, float(values[0]), *interval(values[1:]), n, float("nan"), reason)


def cosine_row(label: str, arm: str, metric: str, values: np.ndarray, n: int) -> tuple:
    """Return a row from a cosine and its resamples, [draws + 1], with ``statistics.interval_around``, within -1 to 1."""
    low, high = np.clip(interval_around(values[0], values[1:]), -1, 1)
    return (label, arm, metric, float(values[0]), float(low), float(high), n, float("nan"), "")


def null_row(
    label: str, arm: str, metric: str, null: np.ndarray, n: int, observed: float, two_sided: bool = False
) -> tuple:
    """Return a row from draws of a null, [draws]: their mean, the middle 95%, and p of the observed value."""
    finite = null[np.isfinite(null)]
    if len(finite) == 0:
        return missing(label, arm, metric, n, "not computed, because no draw of the null is defined")
    p = permutation_p(observed, null, two_sided)
    return (label, arm, metric, float(finite.mean()), *interval(finite), n, p, "")


def missing(label: str, arm: str, metric: str, n: int, reason: str) -> tuple:
    """Return the row of a value that was not computed."""
    return (label, arm, metric, *[float("nan")] * 3, n, float("nan"), reason)


def table(label: str, records: list[tuple]) -> pd.DataFrame:
    """Bring rows into a frame whose first column is ``label``."""
    return pd.DataFrame(records, columns=[label, *MEASURED])


def unusable(representation: np.ndarray) -> str:
    """Say why a layer cannot be analysed at all; empty if it can."""
    if len(representation) == 0:
        return "not computed, because there are no rows"
    if not np.isfinite(representation).all():
        return "not computed, because the layer holds values that are not finite"
    if np.ptp(representation, axis=0).max() == 0:
        return "not computed, because the layer does not vary"
    return ""


def mean_of(values: list[np.ndarray]) -> np.ndarray:
    """Return the mean over categories of values with resamples, [draws + 1]; categories without a value are left out."""
    defined = [line for line in values if np.isfinite(line[0])]
    if not defined:
        return np.full(1, np.nan)
    # A resample can leave a category without rows; then the others' mean stands for it.
    with np.errstate(invalid="ignore"):
        stacked = np.array(defined)
        present = np.isfinite(stacked)
        return np.where(present, stacked, 0).sum(axis=0) / present.sum(axis=0)
