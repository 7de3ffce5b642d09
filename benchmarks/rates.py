"""Shares of simulated runs with exact binomial intervals, as sentences and figures of the calibration show them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint


def exact(rate: Any, runs: Any) -> tuple[Any, Any]:
    """Return the ends of exact binomial 95% intervals, of one rate or of a column of them."""
    return proportion_confint(np.round(rate * runs), runs, method="beta")


def said(rate: float, runs: int) -> str:
    """Return a rate and its interval as text."""
    low, high = exact(rate, runs)
    return f"{rate:.1%} ({low:.1%} to {high:.1%})"


def bars(rate: pd.Series, runs: pd.Series) -> list[pd.Series]:
    """Return the lengths of error bars below and above the rates."""
    low, high = exact(rate, runs)
    return [rate - low, high - rate]


def age(codes: Iterable[str], now: str) -> str:
    """Return a sentence for rates that were not all made by the code of ``now``; nothing for the others."""
    return "" if set(codes) == {now} else " They were made by an earlier version of this code."
