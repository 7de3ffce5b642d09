"""From evidence whose truth is known to rates: what every module of worlds shares."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from lib.claims.evidence import frame
from lib.claims.ledger import DIFFERS, EXPLAINED, GATES, INCONCLUSIVE, REPRODUCED, ledger, read_claims
from lib.claims.rows import Row

PUBLISHED = read_claims("data/published_claims.csv").assign(**dict.fromkeys(GATES, ""))
"""The claims without their gates: a drawn world is about no model, no judge and no data."""

OUTCOMES = (REPRODUCED, EXPLAINED, DIFFERS, INCONCLUSIVE)
WHERE = ["size", "claim", "world", "holds"]

NEGLIGIBLE = 1e-9
"""By this much rounding may move an interval's end."""


def ungated(claims: Iterable[str]) -> pd.DataFrame:
    """Return these claims as the ledger reads them, without gates."""
    return PUBLISHED[PUBLISHED["id"].isin(list(claims))]


def decided(evidence: Iterable[Row], truths: Mapping[str, tuple[float, bool]]) -> pd.DataFrame:
    """Decide on claims whose truth is known.

    Args:
        evidence: rows about these claims, and perhaps others.
        truths: claim -> what it measures, were there endlessly much data, and whether it is true and no control explains it.

    Returns:
        Columns ``claim, outcome, holds, covers``, a row per claim. ``covers`` says whether the interval holds what the claim
        measures; it is missing where there is no interval.
    """
    found = frame(list(evidence))
    table = ledger(ungated(truths), found[found["id"].isin(truths)]).set_index("id")
    rows = []
    for claim, (value, holds) in truths.items():
        outcome, low, high = table.loc[claim, ["here", "ci_low", "ci_high"]]
        inside = float(low - NEGLIGIBLE <= value <= high + NEGLIGIBLE)
        rows.append((claim, outcome, holds, np.nan if np.isnan(low) else inside))
    return pd.DataFrame(rows, columns=["claim", "outcome", "holds", "covers"])


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return rates per claim, world and size: columns ``WHERE``, ``runs``, one per outcome, and ``coverage``.

    ``coverage`` is the share of intervals that hold what the claim would measure with endlessly much data.
    """
    by_world = runs.groupby(WHERE, sort=False)
    table = by_world.agg(runs=("outcome", "size"), coverage=("covers", "mean"))
    shares = by_world["outcome"].value_counts(normalize=True).unstack().reindex(columns=list(OUTCOMES)).fillna(0.0)
    return table.join(shares).reset_index()
