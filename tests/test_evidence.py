"""From a run's tables to evidence: what is measured, what is not, and why."""

import pandas as pd
import pytest

from lib import claims, evidence, runs


def test_other_annotations_cannot_speak_to_the_counts_of_the_official_file():
    frame = evidence.frame(list(evidence.of_vectors(pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), official=False)))
    table = claims.ledger(claims.read_claims("data/published_claims.csv"), frame)
    counted = table[table["id"].isin(evidence.CLAIMS_OF_THE_FILE)]
    assert len(counted) == 7
    assert (counted["verdict"] == claims.NOT_RUN).all()
    assert counted["reason"].str.contains("official").all()


def test_counts_of_a_small_known_table():
    annotations = pd.DataFrame({"id": ["a", "b", "c"], "action": ["x", "x", "y"]})
    exploded = pd.DataFrame(
        {
            "id": ["a", "b", "c", "c"],
            "split_published": ["train", "test", "validation", "validation"],
            "split_grouped": ["train", "train", "test", "test"],
        }
    )
    rows = {row["id"]: row for row in evidence.of_vectors(annotations, exploded, exploded, official=True)}
    assert rows["annotations"]["ours"] == 3
    assert rows["exploded-validation"]["ours"] == 2
    assert rows["shared-actions"]["ours"] == pytest.approx(1 / 3), (
        "one of three held-out rows repeats a training action"
    )
    assert rows["shared-actions"]["control_value"] == 0


def test_an_offline_judge_gives_no_evidence():
    rows = list(evidence.of_judging(pd.DataFrame(), offline=True))
    assert {row["id"] for row in rows} == set(evidence.CLAIMS_OF_A_JUDGE)
    assert all("plumbing" in row["reason"] for row in rows)


def test_aligned_is_put_beside_what_shuffled_labels_do():
    frame = pd.DataFrame(
        [
            ("aligned", "spearman minus untuned", "all", 0.2, 0.1, 0.3, 9),
            ("shuffled", "spearman minus untuned", "all", 0.25, 0.2, 0.3, 9),
            ("aligned", "opposing_similarity minus untuned", "all", float("nan"), float("nan"), float("nan"), 9),
        ],
        columns=["arm", "metric", "category", "value", "ci_low", "ci_high", "n"],
    )
    table = claims.ledger(
        claims.read_claims("data/published_claims.csv"), evidence.frame(list(evidence.of_alignment(frame)))
    ).set_index("id")
    assert table.loc["alignment-gradient", "verdict"] == claims.EXPLAINED
    assert table.loc["alignment-opposites", "verdict"] == claims.NOT_RUN


@pytest.mark.pipeline
def test_every_claim_of_the_demo_has_a_verdict_and_no_finding(demo_run):
    table = pd.read_csv(demo_run / "claims" / "claims.csv")
    assert table["id"].tolist() == claims.read_claims("data/published_claims.csv")["id"].tolist()
    assert table.loc[table["verdict"] == claims.NOT_RUN, "reason"].notna().all()
    notices = runs.read_manifest(demo_run / "claims")["notices"]
    assert "Demo data: a check of the instrument, not a finding." in notices
