"""The ledger of claims as Markdown, for the book and the README."""

import pandas as pd

from docs.markdown import markdown_table
from lib.claims.ledger import DEMO_STANDING, NOT_RUN, SCIENTIFIC, summary

WORDED = {"equivalent": "no difference", "different": "a difference", "signal": "signal beyond words"}
"""Relation of a claim -> how it is written where its value says nothing."""


def ledger_page(table: pd.DataFrame) -> str:
    """Return the ledger as Markdown: measured claims paper by paper; what was not run folded below."""
    not_run = table[(table["group"] == SCIENTIFIC) & (table["decision"] == NOT_RUN)]
    return (
        f"{headline(table)}\n\n{claims_part(table)}\n\n"
        f"<details><summary>{len(not_run)} claims that this run could not speak to, and why</summary>\n\n"
        f"{reasons_table(not_run)}\n\n</details>\n"
    )


def claims_part(table: pd.DataFrame) -> str:
    """Return the measured scientific claims as Markdown, a table for each paper."""
    measured = table[(table["group"] == SCIENTIFIC) & (table["decision"] != NOT_RUN)]
    parts = measured.groupby(measured["paper"].astype(str), sort=False)
    return "\n\n".join(f"**arXiv {paper}**\n\n{claims_table(part)}" for paper, part in parts)


def headline(table: pd.DataFrame) -> str:
    """Return how many scientific claims met each decision, and what that is worth."""
    return f"{summary(table)}." + (" On the demo: a check of the instrument, not a finding." if is_demo(table) else "")


def is_demo(table: pd.DataFrame) -> bool:
    """Say whether a ledger is the demo's."""
    return bool((table["standing"] == DEMO_STANDING).any())


def claims_table(measured: pd.DataFrame) -> str:
    """Return measured claims as a Markdown table: claim, paper, ours, control, ceiling, decision, and the same on our terms."""
    rows = []
    for row in measured.itertuples():
        outcomes = (f"*{row.decision}*", "" if row.here == row.decision else row.here)
        rows.append((row.statement, paper_value(row), ours(row), control(row), number(row.ceiling), *outcomes))
    header = ("claim", "paper", "ours (interval)", "control", "ceiling", "decision", "on this run's own terms")
    return markdown_table(header, rows)


def reasons_table(claims: pd.DataFrame) -> str:
    """Return claims as a Markdown table with what was counted, if anything, the decision and its reason."""
    rows = [
        (
            row.statement,
            paper_value(row),
            number(row.ours),
            f"*{row.decision}*",
            "" if pd.isna(row.reason) else row.reason,
        )
        for row in claims.itertuples()
    ]
    return markdown_table(("claim", "paper", "ours", "decision", "why"), rows)


def paper_value(row: "pd.Series[float]") -> str:
    """Write a claim's relation and value: "above 0.5", "no difference"."""
    if row.relation in WORDED:
        return WORDED[row.relation]
    words = {"equals": "", "near": "about "}.get(row.relation, f"{row.relation} ")
    return f"{words}{number(row.value)}"


def ours(row: "pd.Series[float]") -> str:
    """Write what was measured for a claim, with its interval."""
    return number(row.ours) + ("" if pd.isna(row.ci_low) else f" ({number(row.ci_low)} to {number(row.ci_high)})")


def control(row: "pd.Series[float]") -> str:
    """Write what the control of a claim measured."""
    return "" if pd.isna(row.control_value) else f"{row.control_name}: {number(row.control_value)}"


def number(value: float) -> str:
    """Write a number with three digits, a whole one in full; nothing where it is missing."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
