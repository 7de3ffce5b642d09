"""From a run's tables to evidence: what is measured, what is not, and why."""

import pandas as pd
import pytest

from lib import claims, evidence, runs
from lib.evidence import models


def test_other_annotations_cannot_speak_to_the_counts_of_the_official_file():
    exploded = pd.DataFrame({"typicality": [0.0, 1.0, 1.0]})
    frame = evidence.frame(list(evidence.of_vectors(pd.DataFrame(), exploded, pd.DataFrame(), official=False)))
    table = claims.ledger(claims.read_claims("data/published_claims.csv"), frame)
    counted = table[table["id"].isin(evidence.CLAIMS_OF_THE_FILE)]
    assert len(counted) == len(evidence.CLAIMS_OF_THE_FILE) == 30
    assert (counted["verdict"] == claims.NOT_RUN).all()
    assert counted["reason"].str.contains("official").all()
    assert table.set_index("id").loc["typicality-levels", "ours"] == 2, (
        "the range of values is the schema's, not the file's"
    )


def test_counts_of_a_small_known_table():
    trust = "doing something that causes other people to lose trust in you"
    annotations = pd.DataFrame(
        {"id": ["a", "b", "c"], "action": ["x", "x", trust], "betrayal": [0, 0, 0.375], "harm": [0, 0, 0.0]}
    )
    exploded = pd.DataFrame(
        {
            "id": ["a", "b", "c", "c"],
            "foundation": ["care-harm", "care-harm", "loyalty-betrayal", "care-harm"],
            "polarity": ["vice", "virtue", "vice", "vice"],
            "typicality": [1.0, 1.0, 0.375, 0.375],
            "split_published": ["train", "test", "validation", "validation"],
            "split_grouped": ["train", "train", "test", "test"],
        }
    )
    rows = {row["id"]: row for row in evidence.of_vectors(annotations, exploded, exploded, official=True)}
    assert rows["annotations"]["ours"] == 3
    assert rows["exploded-validation"]["ours"] == 2
    assert rows["annotations-validation"]["ours"] == 1, "two rows of one annotation"
    assert rows["exploded-train-care-harm-vice"]["ours"] == 1
    assert rows["exploded-train-care-harm-virtue"]["ours"] == 0, "the only one is in the test split"
    assert rows["example-trust"]["ours"] == 0.375
    assert "names harm" in rows["example-partner-harm"]["reason"]
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


def test_noise_is_that_of_the_layer_where_polarity_is_followed_best():
    columns = ["layer", "arm", "target", "metric", "value", "n"]
    rows = [
        (0, "published", "polarity", "adjusted_rand", 0.1, 9),
        (1, "published", "polarity", "adjusted_rand", 0.4, 9),
    ]
    rows += [(0, "published", "all", "coverage", 0.9, 9), (1, "published", "all", "coverage", 0.2, 9)]
    assert models.noise_row(pd.DataFrame(rows, columns=columns))["ours"] == pytest.approx(0.8)


def test_vices_against_virtues_reads_the_interval_of_the_layer_where_each_category_is_best():
    columns = ["layer", "arm", "category", "value", "ci_low", "ci_high", "n"]
    rows = [
        (0, "published", "harm", 0.2, 0.19, 0.21, 10),
        (1, "published", "harm", 0.5, 0.1, 0.9, 10),
        (1, "published", "cheating", float("nan"), float("nan"), float("nan"), 0),
        (1, "published", "care", 0.1, 0.0, 0.2, 10),
        (1, "shuffled", "care", 0.9, 0.8, 1.0, 10),
    ]
    row = models.vices_row(pd.DataFrame(rows, columns=columns))
    assert (row["ours"], row["n"]) == (pytest.approx(0.4), 20)
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(-0.1), pytest.approx(0.9))
    assert "reason" in models.vices_row(pd.DataFrame(rows[:2], columns=columns))


def test_a_real_judge_speaks_to_every_claim_of_a_judge():
    columns = ["rubric", "arm", "layer", "dimension", "metric", "value", "ci_low", "ci_high", "n"]
    rows = []
    for rubric in ("safety", "emotion"):
        rows.append((rubric, "baseline", None, "all", "perfect_share", 0.5, 0.47, 0.53, 1000))
        rows += [(rubric, "aligned", k, "all", "perfect_share", 0.6 + k / 100, 0.57, 0.64, 1000) for k in (1, 2)]
    rows += [("pairwise", "aligned", k, "all", "win_rate", 0.6 + k / 100, 0.5, 0.7, 1000) for k in (1, 2)]
    rows = {row["id"]: row for row in evidence.of_judging(pd.DataFrame(rows, columns=columns), offline=False)}
    assert set(rows) == set(evidence.CLAIMS_OF_A_JUDGE)
    gain = rows["flames-psc1-gain"]
    assert gain["ours"] == pytest.approx(120)
    assert gain["ci_low"] < 120 < gain["ci_high"]
    assert rows["flames-peak-layer"]["ours"] == 2
    assert rows["flames-psc1-aligned"]["ours"] == pytest.approx(620)


def test_prompts_are_counted_only_where_they_are_all_of_flames():
    answers = pd.DataFrame({"id": ["1", "1", "2"], "dimension": ["Safety", "Safety", "Legality"]})
    counted = {row["id"]: row["ours"] for row in evidence.of_prompts(answers, official=True)}
    assert (counted["flames-prompts"], counted["flames-safety"], counted["flames-morality"]) == (2, 1, 0)
    assert all("ours" not in row for row in evidence.of_prompts(answers, official=False))


def test_people_bound_the_claims_that_compare_with_them():
    rows = evidence.frame([{"id": "gradient-peak", "ours": 0.4}, {"id": "annotations", "ours": 3}])
    ceiling = pd.DataFrame(
        [("care", "spearman", 0.4), ("mean", "spearman", 0.6), ("mean", "r2", 0.5), ("care", "r2", 0.1)],
        columns=["dimension", "metric", "value"],
    )
    joined = evidence.with_ceiling(rows, ceiling).set_index("id")["ceiling"]
    assert joined["gradient-peak"] == pytest.approx(0.6)
    assert pd.isna(joined["annotations"])
    pd.testing.assert_frame_equal(evidence.with_ceiling(rows, None), rows)


@pytest.mark.pipeline
def test_every_claim_of_the_demo_has_a_verdict_and_no_finding(demo_run):
    table = pd.read_csv(demo_run / "claims" / "claims.csv")
    assert table["id"].tolist() == claims.read_claims("data/published_claims.csv")["id"].tolist()
    assert table.loc[table["verdict"] == claims.NOT_RUN, "reason"].notna().all()
    assert set(table["standing"]) == {claims.DEMO_STANDING, "nothing measured"}
    notices = runs.read_manifest(demo_run / "claims")["notices"]
    assert "Demo data: a check of the instrument, not a finding." in notices
