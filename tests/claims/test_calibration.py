"""The calibration of claims, in small: what is drawn is what was stated, and truth is told from chance."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import aligned_worlds, calibrate_claims, compared_worlds, judged_worlds
from benchmarks.calibrate_claims import MODULES, RESULT, sentences
from benchmarks.claim_rates import OUTCOMES, decided, summary
from benchmarks.judged_worlds import CLAIMS, WORLDS, Size, draw, run, truths
from lib.claims import flames
from lib.claims.ledger import DIFFERS, EXPLAINED, REPRODUCED
from lib.claims.rows import measured

BY_NAME = {world.name: world for world in WORLDS}
PEAK = flames.PUBLISHED_PEAK


def test_drawn_shares_are_the_stated_ones_and_a_prompt_is_as_hard_for_every_arm():
    world = BY_NAME["as published, 5% lost"]
    absolute, pairwise = draw(world, 4_000, PEAK + 1, seed=0)
    safe = flames.scores(absolute, "safety")
    assert safe.of("baseline").mean().item() == pytest.approx(world.baseline.safety, abs=0.02)
    assert safe.of("aligned").mean().to_numpy() == pytest.approx(world.aligned.safety, abs=0.02)
    assert safe.of("shuffled").mean().to_numpy() == pytest.approx(world.control.safety, abs=0.02)
    assert safe.of("aligned").isna().to_numpy().mean() == pytest.approx(0.05, abs=0.005)
    assert safe.of("aligned")[0].corr(safe.of("shuffled")[1]) > 0.1
    wins = flames.scores(pairwise, "pairwise").of("aligned").mean()
    assert wins[PEAK] == pytest.approx(world.aligned.peak, abs=0.025)
    assert wins[0] == pytest.approx(world.aligned.wins, abs=0.025)


def test_the_truth_of_a_claim_counts_what_a_control_does_as_well():
    held = {
        name: {claim for claim, (_, holds) in truths(world, 36).items() if holds} for name, world in BY_NAME.items()
    }
    baseline = {"flames-psc1-baseline", "flames-psc2-baseline"}
    assert held["nothing"] == set()
    assert held["every steering helps"] == baseline | {"flames-peak-layer"}
    assert held["as published"] == set(CLAIMS["id"]) - {"R5-dense"}
    assert held["at the limit"] == {"flames-psc1-gain", "flames-psc2-gain", "flames-peak-layer", "R5-sparse"}


def test_what_is_measured_of_a_world_is_what_many_prompts_approach():
    """Estimates of 8,000 prompts, beside the stated truth, for every claim."""
    world = BY_NAME["as published"]
    truth = truths(world, 12)
    rows = pd.DataFrame(flames.of_judging(*draw(world, 8_000, 12, seed=1))).drop_duplicates("id").set_index("id")
    for claim, (value, _) in truth.items():
        unit = flames.PER if "psc" in claim else 1
        assert rows.loc[claim, "ours"] / unit == pytest.approx(value / unit, abs=0.025), claim


def test_a_cause_is_found_with_enough_prompts_and_never_where_a_control_does_as_well():
    runs = pd.concat(
        [
            run(BY_NAME[name], Size(1_000, 1), seed)
            for name in ("as published", "every steering helps")
            for seed in range(8)
        ]
    )
    gains = runs[runs["claim"] == "flames-psc2-gain"].groupby("world")["outcome"]
    assert (gains.get_group("as published") == REPRODUCED).mean() > 0.8
    assert (gains.get_group("every steering helps") == EXPLAINED).all()
    assert runs.loc[runs["holds"], "covers"].mean() > 0.8


def test_rates_count_outcomes_and_leave_missing_intervals_out():
    runs = pd.DataFrame({"outcome": [REPRODUCED, REPRODUCED, EXPLAINED, EXPLAINED], "covers": [1.0, 0.0, np.nan, 1.0]})
    about = {"size": "60 prompts", "claim": "flames-peak", "world": "nothing", "holds": False}
    (row,) = summary(runs.assign(**about)).to_dict("records")
    assert [row[outcome] for outcome in OUTCOMES] == [0.5, 0.5, 0, 0]
    assert (row["runs"], row["coverage"]) == (4, pytest.approx(2 / 3))


def test_the_sentences_name_the_worst_error_and_what_is_seldom_found():
    rows = [("flames-peak", False, 0.02), ("flames-psc1-gain", False, 0.04), ("flames-psc1-gain", True, 0.9)]
    rows += [("flames-peak", True, 0.25), ("flames-peak", True, 0.1)]
    table = pd.DataFrame(rows, columns=["claim", "holds", REPRODUCED])
    said = sentences(table.assign(size="60 prompts", world="w", runs=200, coverage=[0.97, np.nan, 0.95, 0.93, 0.99]))
    assert "in 4.0% (1.7% to 7.7%) of 200 runs at most (flames-psc1-gain, world *w*, 60 prompts)" in said
    assert "and in 3.0% on average" in said
    assert "1 of 2 claims are *reproduced* in 80% of runs or more in the world and at the size that suit them" in said
    assert "Hardly ever, although true and at the largest size, flames-peak (*w*, 10%)." in said
    assert "less often even there: flames-peak 25%." in said
    assert "held the truth in 96.0% of runs" in said


def test_an_interval_covers_its_truth_or_not_and_a_missing_one_is_neither():
    truth = {"flames-psc1-gain": (5.0, True), "alignment-gradient": (5.0, True), "R5-dense": (0.0, False)}
    evidence = [
        measured("flames-psc1-gain", {"value": 3.0, "low": 1.0, "high": 5.0, "n": 9}),
        measured("alignment-gradient", {"value": 3.0, "low": 1.0, "high": 4.0, "n": 9}),
        measured("R5-dense", {"value": 3.0, "low": np.nan, "high": np.nan, "n": 9}),
        measured("flames-peak", {"value": 3.0, "low": 1.0, "high": 4.0, "n": 9}),
    ]
    found = decided(evidence, truth).set_index("claim")
    assert list(found.index) == list(truth)
    np.testing.assert_array_equal(found["covers"], [1, 0, np.nan])


# ------------------------------------------------------------------------------- latents and models


def test_latents_that_follow_typicality_more_are_a_gain_unless_a_control_follows_it_as_well():
    by_name = {world.name: world for world in aligned_worlds.WORLDS}
    runs = {
        name: pd.concat([aligned_worlds.run(by_name[name], aligned_worlds.Size(400), seed) for seed in range(4)])
        for name in ("every arm gains", "alignment gains", "nothing")
    }
    assert (runs["alignment gains"]["outcome"] == REPRODUCED).mean() > 0.8
    assert (runs["every arm gains"]["outcome"] == EXPLAINED).mean() > 0.8
    assert not runs["nothing"]["outcome"].isin([REPRODUCED, EXPLAINED]).any()
    assert runs["alignment gains"]["covers"].mean() > 0.7


def test_a_change_of_four_margins_is_seen_among_the_papers_models_and_none_where_nothing_changes():
    by_name = {world.name: world for world in compared_worlds.WORLDS}
    outcomes = {
        name: compared_worlds.run(by_name[name], compared_worlds.SIZE, 0).set_index("claim")["outcome"]
        for name in ("nothing changes, models alike", "a change of four margins")
    }
    same, changed = outcomes.values()
    assert (same.drop("R3-tuning") == REPRODUCED).all()
    assert (changed.drop("R3-tuning") == DIFFERS).all()
    assert (same["R3-tuning"], changed["R3-tuning"]) == (DIFFERS, REPRODUCED)


def test_the_committed_rates_are_of_these_worlds():
    table = pd.read_csv(RESULT)
    named = {(module.__name__, world.name) for module in MODULES for world in module.WORLDS}
    assert len(named) == sum(len(module.WORLDS) for module in MODULES)
    assert set(table["world"]) == {name for _, name in named}
    assert set(table["size"]) == {str(size) for module in MODULES for size in module.SIZES}
    of_judged = table[table["size"] == str(judged_worlds.SIZES[-1])].set_index(["world", "claim"])["holds"]
    stated = {(world.name, claim): holds for world in WORLDS for claim, (_, holds) in truths(world, 36).items()}
    assert of_judged.to_dict() == stated
    assert np.allclose(table[list(OUTCOMES)].sum(axis=1), 1, atol=1e-3)


def test_a_calibration_goes_on_with_the_rates_that_are_kept(tmp_path, monkeypatch):
    world, size = compared_worlds.WORLDS[0], compared_worlds.SIZE
    few = SimpleNamespace(run=compared_worlds.run, WORLDS=[world, compared_worlds.WORLDS[3]], SIZES=(size,))
    monkeypatch.setattr(calibrate_claims, "MODULES", (few,))
    monkeypatch.setattr(calibrate_claims, "RESULT", tmp_path / "rates.csv")
    monkeypatch.setattr(calibrate_claims, "identity", lambda: "now")
    monkeypatch.setattr(sys, "argv", ["calibrate_claims.py", "--runs", "2", "--processes", "1"])
    assert calibrate_claims.main() == 0
    whole = pd.read_csv(tmp_path / "rates.csv")
    assert set(whole["world"]) == {each.name for each in few.WORLDS}
    asked = []
    few.run = lambda *of: asked.append(of[0].name) or compared_worlds.run(*of)
    whole.loc[whole["world"] == world.name, "code"] = "before"
    whole.to_csv(tmp_path / "rates.csv", index=False)
    assert calibrate_claims.main() == 0
    assert asked == [world.name] * 2
    again = pd.read_csv(tmp_path / "rates.csv").sort_values(["world", "claim"], ignore_index=True)
    pd.testing.assert_frame_equal(again, whole.assign(code="now").sort_values(["world", "claim"], ignore_index=True))
