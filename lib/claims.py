"""The claims ledger: every claim of the paper beside what a run found and the control that could explain it.

The rules are these, and nothing else decides a verdict. A claim *holds* for a measurement when the whole 95% interval
lies on the claimed side (``above``, ``below``), when the interval meets the published value within its tolerance
(``near``), when the value is the published one (``equals``), or when the equivalence test rejected a difference
beyond its margin (``equivalent``: the interval lies inside the margin). Then the verdict is

* *not run* when the run measured nothing for it; the reason is given;
* *differs* when the claim does not hold for our measurement;
* *reproduced but explained by a control* when it holds, and for the control as well, unless our whole interval lies
  beyond the control's on the claimed side (``above``, ``below``);
* *reproduced* otherwise.

A verdict is about one run. Its ``standing`` says whether that run can find anything: one on the demo's annotations
checks the instrument, and none of its verdicts is a finding.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import failures, files, runs
from lib.parameters import ParameterError
from lib.profiles import load_profile

COLUMNS = ("id", "stage", "statement", "relation", "value", "tolerance", "metric", "where")
RELATIONS = ("above", "below", "near", "equals", "equivalent")
EVIDENCE = (
    "id", "ours", "ci_low", "ci_high", "n", "control", "control_value", "control_low", "control_high", "ceiling",
    "margin", "reason",
)  # fmt: skip
"""Columns of evidence; ``margin`` is an equivalence test's, ``reason`` says why nothing was run."""

REPRODUCED = "reproduced"
EXPLAINED = "reproduced but explained by a control"
DIFFERS = "differs"
NOT_RUN = "not run"

DEMO_STANDING = "check of the instrument, not a finding"
FINDING = "finding about this run's models and data"


class ClaimError(ValueError):
    """The table of claims or the evidence is not what it should be."""


def read_claims(path: str | Path) -> pd.DataFrame:
    """Read the published claims.

    Raises:
        ClaimError: a column is missing, an id occurs twice or a relation is unknown.
    """
    claims = pd.read_csv(runs.resolve(path))
    if missing := [column for column in COLUMNS if column not in claims]:
        raise ClaimError(f"{path} lacks the column {missing[0]!r}; expected {', '.join(COLUMNS)}")
    if claims["id"].duplicated().any():
        raise ClaimError(f"{path}: id {claims.loc[claims['id'].duplicated(), 'id'].iloc[0]!r} occurs twice")
    unknown = claims.loc[~claims["relation"].isin(RELATIONS), "relation"]
    if len(unknown):
        raise ClaimError(f"{path}: unknown relation {unknown.iloc[0]!r}; known: {', '.join(RELATIONS)}")
    return claims


def holds(relation: str, value: float, tolerance: float, measured: tuple[float, float, float]) -> bool:
    """Say whether a claim holds for a measurement.

    Args:
        relation: one of ``RELATIONS``.
        value: the published value; for ``equivalent`` zero.
        tolerance: for ``near`` and as slack for ``above`` and ``below``; for ``equivalent`` the margin.
        measured: value, lower and upper end of its 95% interval. Missing ends are taken as the value.
    """
    point, low, high = measured
    low = point if np.isnan(low) else low
    high = point if np.isnan(high) else high
    match relation:
        case "above":
            return bool(low > value - tolerance)
        case "below":
            return bool(high < value + tolerance)
        case "near":
            return bool(low <= value + tolerance and high >= value - tolerance)
        case "equals":
            return bool(point == value)
        case "equivalent":
            return bool(low > value - tolerance and high < value + tolerance)
    raise ClaimError(f"unknown relation {relation!r}")


def verdict(row: pd.Series) -> str:
    """Return the verdict on one row of the joined table, by the rules above."""
    if pd.isna(row["ours"]):
        return NOT_RUN
    tolerance = row["margin"] if row["relation"] == "equivalent" else row["tolerance"]
    claim = (row["relation"], row["value"], tolerance)
    if not holds(*claim, (row["ours"], row["ci_low"], row["ci_high"])):
        return DIFFERS
    control = (row["control_value"], row["control_low"], row["control_high"])
    if pd.isna(control[0]) or not holds(*claim, control):
        return REPRODUCED
    return REPRODUCED if _beyond(row) else EXPLAINED


def _beyond(row: pd.Series) -> bool:
    """Say whether our interval lies wholly on the claimed side of the control's; both need one."""
    if row["relation"] == "above":
        return bool(row["ci_low"] > row["control_high"])
    if row["relation"] == "below":
        return bool(row["ci_high"] < row["control_low"])
    return False


def ledger(claims: pd.DataFrame, evidence: pd.DataFrame, demo: bool = False) -> pd.DataFrame:
    """Join claims with a run's evidence and give every claim its verdict.

    Args:
        claims: as :func:`read_claims` returns it.
        evidence: columns ``EVIDENCE``, at most one row a claim.
        demo: whether the run is on the demo's annotations.

    Returns:
        One row a claim, in the order of ``claims``, with the columns ``verdict`` and ``standing``. A claim without
        evidence is *not run*.

    Raises:
        ClaimError: evidence for an unknown claim, or twice for one.
    """
    if unknown := sorted(set(evidence["id"]) - set(claims["id"])):
        raise ClaimError(f"evidence for a claim that is not in the table: {unknown[0]!r}")
    if evidence["id"].duplicated().any():
        raise ClaimError(f"evidence twice for {evidence.loc[evidence['id'].duplicated(), 'id'].iloc[0]!r}")
    joined = claims.merge(evidence.reindex(columns=EVIDENCE), on="id", how="left")
    numbers = ["ours", "ci_low", "ci_high", "n", "control_value", "control_low", "control_high", "ceiling", "margin"]
    joined[numbers] = joined[numbers].astype(float)
    joined["verdict"] = joined.apply(verdict, axis=1)
    nothing = (joined["verdict"] == NOT_RUN) & joined["reason"].isna()
    joined["reason"] = joined["reason"].astype(object).where(~nothing, "this run has no measurement for it")
    joined["standing"] = DEMO_STANDING if demo else FINDING
    joined.loc[joined["verdict"] == NOT_RUN, "standing"] = "nothing measured"
    return joined


def settings(published: pd.DataFrame, used: Mapping[str, Any]) -> pd.DataFrame:
    """Say of every published setting whether a run followed it.

    Args:
        published: ``data/published_settings.csv``: ``stage, setting, value, parameter, code, where``; ``parameter`` is a
            profile's key, or empty where ``code`` names the module that holds it as a constant.
        used: the run's parameters by name.

    Returns:
        The published columns, ``ours`` and ``followed``: "as published", "changed", or "fixed in <module>".
    """
    table = published.copy()
    ours = [used.get(name) if isinstance(name, str) else None for name in table["parameter"]]
    table["ours"] = ["" if value is None else str(value) for value in ours]
    table["followed"] = [
        f"fixed in {row.code}" if value is None else "as published" if _same(row.value, value) else "changed"
        for row, value in zip(table.itertuples(), ours, strict=True)
    ]
    return table


def _same(published: Any, ours: Any) -> bool:
    try:
        return float(published) == float(ours)
    except (TypeError, ValueError):
        return str(published) == str(ours)


def summary(table: pd.DataFrame) -> str:
    """Count the verdicts, most favourable first, as one line of text."""
    counts = table["verdict"].value_counts()
    return " · ".join(f"{counts.get(name, 0)} {name}" for name in (REPRODUCED, EXPLAINED, DIFFERS, NOT_RUN))


def main() -> int:
    """Print where a profile's claims are, how many got which verdict, and what is missing and why.

    Returns:
        0, or 1 if something is missing; it is listed in ``runs/<run>/missing.csv`` too.
    """
    try:
        profile = load_profile(sys.argv[1])
    except ParameterError as error:
        sys.exit(str(error))
    run = runs.resolve(f"runs/{profile.run}")
    if (run / "claims" / "manifest.json").exists():
        print(f"{runs.short(run / 'claims' / 'claims.csv')}: {summary(pd.read_csv(run / 'claims' / 'claims.csv'))}")
        for notice in runs.read_manifest(run / "claims")["notices"]:
            print(notice)
    gaps = failures.missing(profile)
    (run / "missing.csv").unlink(missing_ok=True)
    if len(gaps):
        files.write_text_atomically(run / "missing.csv", gaps.to_csv(index=False))
        print(f"{runs.short(run / 'missing.csv')}: {len(gaps)} results are missing")
        for gap in gaps.itertuples():
            print(f"  {gap.stage}{f' of {gap.model}' if gap.model else ''}: {gap.reason} ({gap.log})")
    return int(len(gaps) > 0)


if __name__ == "__main__":
    sys.exit(main())
