"""Rows of the diagnosis tables: one shape for a number with its interval, and for one that could not be computed."""

import numpy as np
import pandas as pd

from lib.stats import interval, interval_around, permutation_p

MEASURED = ["arm", "metric", "value", "ci_low", "ci_high", "n", "p", "reason"]
"""Columns of every analysis after the one that names its category, foundation or target.

``p`` stands in the rows of a null: how often it is as extreme as the measured value. ``reason`` says why a value is
missing.
"""

MINIMUM_ROWS = 5
"""A prototype of fewer rows than this is not computed."""


Key = tuple[str, str, str]
"""The category, foundation or target of a row, its arm and its metric."""


def row(key: Key, values: np.ndarray, *, n: int) -> tuple:
    """Return a row from a value and its resamples, [draws + 1]."""
    if not np.isfinite(values[0]):
        return missing(key, n=n, reason="the values do not vary")
    return (*key, float(values[0]), *interval(values[1:]), n, float("nan"), "")


def cosine_row(key: Key, values: np.ndarray, *, n: int, reason: str) -> tuple:
    """Return a row from a cosine, or another index of at most 1, and its resamples, [draws + 1].

    The interval is ``stats.interval_around``; ``reason`` says why the value is NaN.
    """
    if not np.isfinite(values[0]):
        return missing(key, n=n, reason=reason)
    low, high = np.clip(interval_around(values[0], values[1:]), -1, 1)
    return (*key, float(values[0]), float(low), float(high), n, float("nan"), "")


def null_row(key: Key, null: np.ndarray, *, n: int, observed: float, two_sided: bool = False) -> tuple:
    """Return a row from draws of a null, [draws]: their mean, the middle 95%, and p of the observed value."""
    finite = null[np.isfinite(null)]
    if len(finite) == 0:
        return missing(key, n=n, reason="no draw of the null is defined")
    return (*key, float(finite.mean()), *interval(finite), n, permutation_p(observed, null, two_sided), "")


def missing(key: Key, *, n: int, reason: str) -> tuple:
    """Return the row of a value that was not computed, because of ``reason``."""
    return (*key, *[float("nan")] * 3, n, float("nan"), f"not computed, because {reason}")


def table(label: str, records: list[tuple]) -> pd.DataFrame:
    """Bring rows into a frame whose first column is ``label``."""
    return pd.DataFrame(records, columns=[label, *MEASURED])


def unusable(representation: np.ndarray) -> str:
    """Say why a layer cannot be analysed at all; empty if it can."""
    if len(representation) == 0:
        return "there are no rows"
    if not np.isfinite(representation).all():
        return "the layer holds values that are not finite"
    return "the layer does not vary" if np.ptp(representation, axis=0).max() == 0 else ""


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
