"""The claims ledger: every claim beside what a run measured, and what becomes of it.

The rules are these, and nothing else decides. A claim is *held* by a measurement, *refuted* by it, or *open*:

* ``above``, ``below``: held where the whole 95% interval lies on the claimed side of the value, refuted where it lies on the
  other side, else open.
* ``near``: held where the 90% interval lies inside the value's tolerance (two one-sided tests at 5%), refuted where it lies
  wholly outside, else open. ``equivalent``: the same around zero, within the margin of the comparison.
* ``different``: held where the 90% interval lies wholly beyond the margin, refuted where it lies inside, else open.
* ``equals``: held by the same number, refuted by another one; for counts alone, which have no error.
* ``signal``: held where stage 03 decided *signal beyond words*, refuted by *equivalent to words*, else open.

A measurement without an interval leaves every claim but a count open. Then the outcome is, in this order,

* *not run*: the run measured nothing for it; the reason is given.
* *not comparable*: the claim is about another model, judge, protocol, layers, prompts, data or number of models, as its gates
  say; what differs is named. ``here`` says what the same rule would decide on the run's own terms; without any judge, nothing.
* *differs*: the measurement refutes the claim.
* *inconclusive*: it leaves the claim open; or it holds it, the claim needs a control, and none ran or one was not beaten.
* *explained by a control*: it holds the claim, and a control explains it: one without the claimed cause that meets the claim
  as well and is not beaten; or, for a claim that something is weak, a bound that lies below the claimed one too.
* *reproduced*: it holds the claim and nothing of the above applies.

A control is *beaten* where the paired difference, ours minus the control's, lies on the claimed side of zero with its whole
95% interval. It takes every control that ran to be beaten, not the weakest.

An outcome is about one run. Its ``standing`` says whether that run can find anything: one on the demo's annotations checks
the instrument, and none of its outcomes is a finding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.run.files import CompanionError, resolve

GATES = ("data", "model", "models", "layers", "prompts", "judge", "protocol")
"""Columns of claims and names of facts: what a claim is about, and what a run was. ``any`` asks that there is one at all."""

COLUMNS = (
    "id", "paper", "group", "stage", "statement", "relation", "value", "tolerance", "metric", "where", "control", *GATES,
)  # fmt: skip
RELATIONS = ("above", "below", "near", "equals", "equivalent", "different", "signal")
OF_MARGIN = ("equivalent", "different")
FILE, SCIENTIFIC = "file counts", "scientific"
GROUPS = (FILE, SCIENTIFIC)
NEEDS = ("", "beaten", "bound", "shared")
"""Control that a claim needs: none; one without the claimed cause, to be beaten; an upper bound, to lie above the claimed one;
another reader of the same representations, to find the same."""

EVIDENCE = (
    "id", "ours", "ci_low", "ci_high", "n", "control_name", "control_value", "control_low", "control_high", "contrast",
    "contrast_low", "contrast_high", "ceiling", "margin", "found", "reason",
)  # fmt: skip
"""Columns of evidence. A claim has a row per control, all with the same measurement; intervals are 95% ones, or 90% where two
one-sided tests read them (``near``, ``equivalent``, ``different``). ``contrast`` is ours minus the control's, paired;
``margin`` is that of the comparison, ``found`` a decision of stage 03; ``reason`` says why nothing was measured."""
TEXTS = ("id", "control_name", "found", "reason")

REPRODUCED = "reproduced"
EXPLAINED = "explained by a control"
DIFFERS = "differs"
INCONCLUSIVE = "inconclusive"
NOT_COMPARABLE = "not comparable"
NOT_RUN = "not run"
OUTCOMES = (REPRODUCED, EXPLAINED, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE, NOT_RUN)

HELD, REFUTED, OPEN = "held", "refuted", "open"
OF_STAGE_03 = {"signal beyond words": HELD, "equivalent to words": REFUTED}
"""Decision of stage 03 -> what it makes of a claim that there is signal; any other leaves it open."""

DEMO_STANDING = "check of the instrument, not a finding"
FINDING = "finding about this run's models and data"


class ClaimError(CompanionError):
    """The table of claims or the evidence is not what it should be."""


def read_claims(path: str | Path) -> pd.DataFrame:
    """Read the published claims; empty gates and controls are empty texts.

    Raises:
        ClaimError: a column is missing, an id occurs twice, or a relation, a group or a control is unknown.
    """
    gates = ["paper", "control", *GATES]
    claims = pd.read_csv(resolve(path), dtype=dict.fromkeys(gates, str)).fillna(dict.fromkeys(gates, ""))
    if missing := [column for column in COLUMNS if column not in claims]:
        raise ClaimError(f"{path} lacks the column {missing[0]!r}; expected {', '.join(COLUMNS)}")
    if claims["id"].duplicated().any():
        raise ClaimError(f"{path}: id {claims.loc[claims['id'].duplicated(), 'id'].iloc[0]!r} occurs twice")
    for column, known in (("relation", RELATIONS), ("group", GROUPS), ("control", NEEDS)):
        if unknown := sorted(set(claims[column]) - set(known)):
            raise ClaimError(f"{path}: unknown {column} {unknown[0]!r}; known: {', '.join(filter(None, known))}")
    return claims


def met(relation: str, measured: tuple[float, float, float], *, value: float, tolerance: float) -> str:
    """Say whether a measurement holds a claim, refutes it or leaves it open, by the rules above.

    Args:
        relation: one of ``RELATIONS``.
        measured: value, lower and upper end of its interval; NaN ends are no interval.
        value: the published value; zero for ``equivalent`` and ``different``.
        tolerance: of ``near``; the margin for ``equivalent`` and ``different``; not read otherwise.
    """
    point, low, high = measured
    if relation == "equals":
        return HELD if point == value else REFUTED
    above, below = low > value, high < value
    inside = value - tolerance < low and high < value + tolerance
    outside = low > value + tolerance or high < value - tolerance
    sides = {"above": (above, below), "below": (below, above), "different": (outside, inside)}
    held, refuted = sides.get(relation, (inside, outside))
    return HELD if held else REFUTED if refuted else OPEN


def weigh(rows: pd.DataFrame) -> dict[str, str]:
    """Decide on one claim, its gates aside.

    Args:
        rows: the claim joined with its evidence, one row per control.

    Returns:
        ``here``, the outcome; ``against``, the control that explains or withstands, if one does.
    """
    claim = rows.iloc[0]
    relation, against = claim["relation"], ""
    if pd.isna(claim["ours"]):
        return {"here": NOT_RUN, "against": against}
    limit = {"value": claim["value"], "tolerance": claim["margin" if relation in OF_MARGIN else "tolerance"]}
    outcome = met(relation, (claim["ours"], claim["ci_low"], claim["ci_high"]), **limit)
    if relation == "signal":
        outcome = OF_STAGE_03.get(claim["found"], OPEN)
    if outcome != HELD:
        return {"here": DIFFERS if outcome == REFUTED else INCONCLUSIVE, "against": against}
    controls = rows.dropna(subset=["control_name"])
    stood = {str(row["control_name"]): _stood(row, limit) for _, row in controls.iterrows()}
    for outcome in (EXPLAINED, INCONCLUSIVE):
        if names := [name for name, verdict in stood.items() if verdict == outcome]:
            return {"here": outcome, "against": ", ".join(names)}
    return {"here": INCONCLUSIVE if claim["control"] and not stood else REPRODUCED, "against": against}


def _stood(row: pd.Series, limit: Mapping[str, float]) -> str:
    """Return what one control leaves of a claim that our measurement holds."""
    relation = "above" if row["relation"] == "signal" else row["relation"]
    control = met(relation, (row["control_value"], row["control_low"], row["control_high"]), **limit)
    if row["control"] == "bound":
        # What cannot exceed the claimed bound says nothing of a weakness below it.
        return {HELD: EXPLAINED, REFUTED: REPRODUCED, OPEN: INCONCLUSIVE}[control]
    if row["control"] == "shared":
        # What one reader finds and another does not is the reader's.
        return {HELD: REPRODUCED, REFUTED: EXPLAINED, OPEN: INCONCLUSIVE}[control]
    contrast = (row["contrast"], row["contrast_low"], row["contrast_high"])
    if relation in ("above", "below") and met(relation, contrast, value=0, tolerance=0) == HELD:
        return REPRODUCED
    if control == HELD:
        return EXPLAINED
    return INCONCLUSIVE if row["control"] == "beaten" else REPRODUCED


def differences(claim: pd.Series, facts: Mapping[str, str]) -> str:
    """Name what a claim is about that this run was not; empty where they agree."""
    asked = {gate: claim[gate] for gate in GATES if claim[gate]}
    other = {gate: facts.get(gate, "") for gate, value in asked.items() if not _agree(value, facts.get(gate, ""))}
    return "; ".join(f"{gate}: {have or 'none'} instead of {asked[gate]}" for gate, have in other.items())


def _agree(asked: str, have: str) -> bool:
    return bool(have) if asked == "any" else asked == have


def ledger(
    claims: pd.DataFrame, evidence: pd.DataFrame, *, facts: Mapping[str, str] | None = None, demo: bool = False
) -> pd.DataFrame:
    """Join claims with a run's evidence and decide on every claim.

    Args:
        claims: as :func:`read_claims` returns it.
        evidence: columns ``EVIDENCE``; a claim has one row, or one per control.
        facts: what the run was, by the names ``GATES``; an absent or empty one agrees with no gate.
        demo: whether the run is on the demo's annotations.

    Returns:
        One row per claim, in the order of ``claims``: its columns, its evidence (beside the control that decided, or the
        strongest one), ``decision`` (one of ``OUTCOMES``), ``here`` (the same without the gates), ``against``, ``standing``,
        and ``reason`` for what is *not run* or *not comparable*.

    Raises:
        ClaimError: evidence for an unknown claim.
    """
    if unknown := sorted(set(evidence["id"]) - set(claims["id"])):
        raise ClaimError(f"evidence for a claim that is not in the table: {unknown[0]!r}")
    joined = claims.merge(evidence.reindex(columns=list(EVIDENCE)), on="id", how="left", validate="one_to_many")
    joined = joined.astype(dict.fromkeys(set(EVIDENCE) - set(TEXTS), float))
    rows = [_decided(part, facts or {}) for _, part in joined.groupby("id", sort=False)]
    table = pd.DataFrame(rows, columns=[*joined.columns, "decision", "here", "against"]).reset_index(drop=True)
    not_run = table["decision"] == NOT_RUN
    table["standing"] = np.where(not_run, "nothing measured", DEMO_STANDING if demo else FINDING)
    return table


def _decided(rows: pd.DataFrame, facts: Mapping[str, str]) -> pd.Series:
    outcome = weigh(rows)
    # Beside the measurement stands the control that decided, or else the one nearest to it.
    named = rows[rows["control_name"].astype(str).isin(outcome["against"].split(", "))]
    shown = (named if len(named) else rows).sort_values("contrast", key=abs).iloc[0].copy()
    other = differences(shown, facts)
    decision, reason = outcome["here"], shown["reason"] if isinstance(shown["reason"], str) else ""
    if decision == NOT_RUN:
        reason = reason or "this run has no measurement for it"
    elif other:
        decision, reason = NOT_COMPARABLE, other
        if shown["judge"] and not facts.get("judge"):
            outcome["here"] = NOT_COMPARABLE
    elif decision == INCONCLUSIVE and not reason:
        reason = _open(shown, outcome["against"])
    return pd.Series({**shown, "reason": reason, "decision": decision, **outcome})


def _open(shown: pd.Series, against: str) -> str:
    if against:
        return f"not beyond {against}"
    if pd.isna(shown["ci_low"]):
        return "the measurement has no interval"
    return "no control ran" if pd.isna(shown["control_name"]) and shown["control"] else "the interval leaves it open"


def settings(published: pd.DataFrame, used: Mapping[str, Any]) -> pd.DataFrame:
    """Say of every published setting whether a run followed it.

    Args:
        published: ``data/published_settings.csv``: ``stage, setting, value, parameter, code, where``; ``parameter`` is a
            profile's key, or empty where ``code`` names the module that holds it as a constant.
        used: the run's parameters by name.

    Returns:
        The published columns, ``ours`` and ``followed``: "as published", "changed", or "fixed in <module>".
    """
    ours = [used.get(name) if isinstance(name, str) else None for name in published["parameter"]]
    followed = [
        f"fixed in {row.code}" if value is None else "as published" if _same(row.value, value) else "changed"
        for row, value in zip(published.itertuples(), ours, strict=True)
    ]
    return published.assign(ours=["" if value is None else str(value) for value in ours], followed=followed)


def _same(published: Any, ours: Any) -> bool:
    try:
        return float(published) == float(ours)
    except (TypeError, ValueError):
        return str(published) == str(ours)


def summary(table: pd.DataFrame, group: str = SCIENTIFIC) -> str:
    """Count the outcomes of a group of claims, most favourable first, as one line of text."""
    decided = table.loc[table["group"] == group, "decision"]
    return " · ".join(f"{(decided == name).sum()} {name}" for name in OUTCOMES)
