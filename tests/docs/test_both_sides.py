"""The chapter *Both sides* speaks of every scientific claim once, and says what the ledgers say."""

import pandas as pd
import pytest

from docs import findings
from docs.both_sides import QUESTIONS, both_sides
from lib.claims.ledger import SCIENTIFIC
from lib.run.files import PROJECT


@pytest.fixture(scope="module")
def ledgers():
    finding = findings.committed().table("claims", "claims")
    return finding, pd.read_csv(PROJECT / "figures" / "claims.csv")


def test_every_scientific_claim_belongs_to_one_question():
    published = pd.read_csv(PROJECT / "data" / "published_claims.csv")
    asked = [claim for question in QUESTIONS for claim in question.claims]
    assert sorted(asked) == sorted(published.loc[published["group"] == SCIENTIFIC, "id"])


def test_the_chapter_says_what_both_ledgers_say(ledgers):
    finding, demo = (ledger.copy() for ledger in ledgers)
    finding.loc[finding["id"] == "R1-distinguish", ["here", "ours", "ci_low", "ci_high"]] = ["one", 0.25, 0.125, 0.5]
    demo.loc[demo["id"] == "R1-distinguish", "here"] = "two"
    (line,) = [
        line for line in both_sides(finding, demo).splitlines() if "virtue of a foundation from its vice" in line
    ]
    assert line.startswith("| 2601.05437 |")
    assert "| *one* | 0.25 (0.125 to 0.5); untrained twin:" in line
    assert line.endswith("| *two* |")


def test_a_claim_that_was_not_run_says_why(ledgers):
    finding, demo = ledgers
    (line,) = [line for line in both_sides(finding, demo).splitlines() if "Probes of one ethical framework" in line]
    reason = finding.set_index("id").loc["P1-subspaces", "reason"]
    assert line.count(f"*not run*: {reason}") == 2
