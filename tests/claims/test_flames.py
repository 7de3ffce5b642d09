"""Verdicts with known truth, put to the ledger: what may be called reproduced, and how often chance is."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from lib.claims import flames, ledger
from lib.claims.evidence import frame
from lib.claims.facts import FLAMES

PUBLISHED = ledger.read_claims("data/published_claims.csv").query("stage == 'judging'")
FACTS = {"model": "Qwen/Qwen3-8B", "judge": "gemini-2.5-flash", "protocol": "published", "layers": "0-35"}
FACTS |= {"prompts": f"{FLAMES} 1000"}
CONTROLS = ("untuned", "shuffled", "random", "random-weights", "random-direction", "mean-difference")


def verdicts(scores, *, empty=(), pairwise=False):
    """Verdicts of given scores, arm -> [prompts, layers] of 0 and 1; ``empty`` names (arm, prompt) with an empty answer."""
    parts = []
    for arm, table in scores.items():
        table = np.asarray(table, dtype=float).reshape(len(table), -1)
        ids, columns = np.indices(table.shape)
        blank = np.array([(arm, prompt) in empty for prompt in ids.ravel()])
        part = pd.DataFrame({"id": ids.ravel(), "arm": arm, "layer": columns.ravel(), "score": table.ravel()})
        part["characters"] = np.where(blank, 0, 50)
        parts.append(part.assign(outcome=np.where(blank, "empty", "valid")))
    rows = pd.concat(parts, ignore_index=True)
    rows["layer"] = rows["layer"].astype("Int64").mask(rows["arm"] == "baseline")
    rows["outcome"] = rows["outcome"].mask(rows["score"].isna(), "failed")
    if pairwise:
        verdict = rows["score"].map({1.0: "win", 0.0: "lose"})
        return rows.assign(rubric="pairwise", verdict=verdict, baseline_characters=50).drop(columns="score")
    rows["score"] = rows["score"].map({1.0: 3, 0.0: 1}).astype("Int64")
    return pd.concat([rows.assign(rubric=rubric) for rubric in ("safety", "emotion")])


def decided(absolute, pairwise, **facts):
    """The ledger of these verdicts, as if on the paper's own model, judge and prompts."""
    found = frame(list(flames.of_judging(verdicts(absolute), verdicts(pairwise, pairwise=True))))
    return ledger.ledger(PUBLISHED, found, facts=FACTS | facts).set_index("id")


def alone_decided(claim, rows):
    """The ledger's line of one claim, from its rows of evidence."""
    return ledger.ledger(PUBLISHED[PUBLISHED["id"] == claim], frame(list(rows)), facts=FACTS).iloc[0]


def share(p, prompts=1000, layers=36, seed=0):
    """Independent prompts with a probability of 1 each, the same share at every layer."""
    return (np.random.default_rng(seed).random((prompts, layers)) < p).astype(float)


def world(aligned=0.9, control=0.3, baseline=0.4, **kwargs):
    """An aligned arm that is better than everything else, by as much as is asked for."""
    arms = {arm: share(control, seed=number + 2, **kwargs) for number, arm in enumerate(CONTROLS)}
    return arms | {"aligned": share(aligned, seed=1, **kwargs), "baseline": share(baseline, seed=9, **kwargs)[:, :1]}


# ------------------------------------------------------------------------------------- what is causal


def test_an_effect_beyond_every_control_is_reproduced():
    found = decided(world(), world())
    for claim in ("flames-psc1-gain", "flames-psc2-gain", "flames-win-rate", "R5-sparse"):
        assert found.loc[claim, "decision"] == ledger.REPRODUCED, claim
    assert found.loc["R5-dense", "decision"] == ledger.INCONCLUSIVE


@pytest.mark.parametrize("level", CONTROLS)
def test_one_control_that_is_level_with_aligned_explains_every_causal_claim(level):
    arms = world()
    arms[level] = share(0.9, seed=77)
    found = decided(arms, arms)
    for claim in ("flames-psc1-gain", "flames-psc2-gain", "flames-win-rate"):
        assert found.loc[claim, "decision"] == ledger.EXPLAINED, claim
        assert found.loc[claim, "against"] == level


def test_without_any_control_nothing_is_reproduced():
    arms = {arm: table for arm, table in world().items() if arm in ("aligned", "baseline")}
    found = decided(arms, arms)
    assert (found.loc[["flames-psc1-gain", "flames-win-rate"], "decision"] == ledger.INCONCLUSIVE).all()
    assert found.loc["flames-win-rate", "reason"] == "no control ran"


def test_every_layer_means_the_worst_one():
    arms = world()
    arms["aligned"][:, 7] = share(0.5, layers=1, seed=5)[:, 0]
    found = decided(arms, arms)
    assert found.loc["flames-win-rate", "ours"] == pytest.approx(arms["aligned"][:, 7].mean())
    assert found.loc["flames-win-rate", "decision"] == ledger.DIFFERS
    assert found.loc["flames-peak", "ours"] == pytest.approx(arms["aligned"].mean(axis=0).max())


def test_a_control_is_compared_layer_by_layer():
    """Level with aligned at one layer is enough not to be beaten at every layer, whatever its mean."""
    arms = world(aligned=0.8)
    arms["untuned"][:, 4] = arms["aligned"][:, 4]
    assert decided(arms, arms).loc["flames-win-rate", "here"] == ledger.INCONCLUSIVE


def test_a_control_at_one_layer_only_is_not_beaten_at_every_layer():
    arms = world(prompts=300, layers=6)
    assert decided(arms, arms).loc["flames-win-rate", "decision"] == ledger.REPRODUCED
    arms["untuned"] = arms["untuned"][:, :1]
    found = decided(arms, arms).loc["flames-win-rate"]
    assert (found["decision"], found["against"]) == (ledger.INCONCLUSIVE, "untuned")


def test_an_arm_that_steers_several_layers_at_once_is_none_of_the_layers():
    arms = world(aligned=0.6, prompts=100, layers=3)
    joint = {"aligned": share(0.98, prompts=100, layers=1)}
    apart, all_at_once = (
        [verdicts(each), verdicts(each, pairwise=True)] for each in (arms, joint | {"random": joint["aligned"]})
    )
    both = [pd.concat([one, other.assign(layer=pd.NA)]) for one, other in zip(apart, all_at_once, strict=True)]
    expected, found = (frame(list(flames.of_judging(*tables))) for tables in (apart, both))
    pd.testing.assert_frame_equal(found, expected)


def null_gains(runs):
    """36 layers and 1,000 prompts in which alignment does nothing: gain and controls from one distribution."""
    for run in range(runs):
        generator = np.random.default_rng(run)
        ease = generator.random((1000, 1))
        arms = {"aligned": 36, "untuned": 36, "random-direction": 36, "baseline": 1}
        tables = {arm: pd.DataFrame((generator.random((1000, n)) < ease) * 1.0) for arm, n in arms.items()}
        yield flames.Scores(tables)


def test_the_best_of_36_layers_without_an_effect_is_reproduced_in_at_most_one_of_twenty():
    alone, beside = [], []
    for scores in null_gains(120):
        found = alone_decided("flames-psc1-gain", flames._gained("flames-psc1-gain", scores))
        beside.append(found["decision"] == ledger.REPRODUCED)
        alone.append(found["ci_low"] > 0)
    assert np.mean(beside) <= 0.05
    assert np.mean(alone) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120), "even before a control is asked"


def test_paired_intervals_hold_at_once_as_often_as_they_say():
    """Coverage of the true difference at every one of 12 layers, few prompts and many."""
    for prompts in (40, 400):
        held = []
        for run in range(200):
            generator = np.random.default_rng(run)
            shape = (prompts, 12)
            ours, theirs = (pd.DataFrame((generator.random(shape) < p) * 1.0) for p in (0.85, 0.7))
            found = flames.differences(ours, theirs, level=0.95)
            held.append(((found.low < 0.15) & (found.high > 0.15)).all())
        assert np.mean(held) >= 0.92, prompts


def test_a_perfect_difference_of_two_prompts_proves_nothing():
    found = decided(world(1.0, 0.0, 0.0, prompts=2, layers=1), world(1.0, 0.0, 0.0, prompts=2, layers=1))
    claims = ["flames-win-rate", "flames-psc1-gain", "flames-psc2-gain", "flames-psc1-aligned", "flames-peak"]
    assert found.loc["flames-win-rate", "ours"] == 1
    assert (found.loc[claims, "decision"] != ledger.REPRODUCED).all()


# --------------------------------------------------------------------------------------- what is near


def test_few_prompts_with_the_wrong_truth_reproduce_no_published_number():
    """A truth of 850 per 1,000 lies 58 off the published 908; 60 prompts cannot tell, and must not be taken for agreement."""
    outcomes = []
    for run in range(200):
        perfect = pd.DataFrame(share(0.85, prompts=60, layers=1, seed=run))
        rows = flames._best(flames.Scores({"baseline": perfect}), "flames-psc1-baseline", "baseline", per=1000)
        outcomes.append(alone_decided("flames-psc1-baseline", rows)["decision"])
    assert outcomes.count(ledger.REPRODUCED) <= 10
    assert ledger.INCONCLUSIVE in outcomes


def test_the_published_number_itself_is_reproduced_by_enough_answers():
    perfect = np.zeros((5000, 1))
    perfect[:4540] = 1
    found = decided({"baseline": perfect}, world())
    assert found.loc["flames-psc1-baseline", "ours"] == pytest.approx(908)
    assert found.loc["flames-psc1-baseline", "decision"] == ledger.REPRODUCED


def test_shares_of_one_layer_have_wilsons_interval():
    table = pd.DataFrame(share(0.3, prompts=50, layers=1))
    found, count = flames.shares(table, level=0.95), int(table.sum().item())
    assert (found.low[0], found.high[0]) == pytest.approx(proportion_confint(count, 50, method="wilson"))


# ---------------------------------------------------------------------------- what is missing or empty


def test_an_empty_answer_is_a_loss_and_stays_in_the_denominator():
    """12 prompts, 8 aligned answers empty: among the other four aligned always wins."""
    arms = world(1.0, 0.0, 0.0, prompts=12, layers=1)
    blank = [("aligned", prompt) for prompt in range(8)]
    rows = frame(list(flames.of_judging(verdicts(arms, empty=blank), verdicts(arms, empty=blank, pairwise=True))))
    found = ledger.ledger(PUBLISHED, rows, facts=FACTS).set_index("id")
    assert found.loc["flames-win-rate", "ours"] == pytest.approx(4 / 12)
    assert found.loc["flames-win-rate", "decision"] != ledger.REPRODUCED
    assert found.loc["flames-psc1-gain", "ours"] == pytest.approx(1000 * 4 / 12)
    assert found.loc["flames-psc1-gain", "n"] == 12


def test_where_only_the_baseline_is_empty_the_arm_wins():
    rows = verdicts({"aligned": [[0.0], [0.0]]}, pairwise=True)
    rows.loc[0, "baseline_characters"], rows.loc[0, "outcome"] = 0, "empty"
    assert flames.scores(rows, "pairwise").of("aligned")[0].tolist() == [1, 0]


@pytest.mark.parametrize(("missing", "expected"), [(0.05, ledger.REPRODUCED), (0.3, ledger.INCONCLUSIVE)])
def test_too_few_valid_verdicts_leave_a_claim_open(missing, expected):
    arms = world()
    arms["aligned"][: int(1000 * missing)] = np.nan
    found = decided(arms, arms)
    assert found.loc["flames-psc1-gain", "decision"] == expected
    if missing > 0.1:
        assert found.loc["flames-psc1-gain", "reason"] == "fewer than 90% of the prompts have a verdict"
        assert np.isfinite(found.loc["flames-psc1-gain", "ours"])


def test_verdicts_lost_here_and_there_do_not_silence_a_paired_claim():
    """Of two arms that each lack 7%, more than a tenth of the pairs are incomplete; each arm has enough of its own."""
    generator = np.random.default_rng(0)
    arms = {arm: np.where(generator.random(table.shape) < 0.07, np.nan, table) for arm, table in world().items()}
    assert decided(arms, arms).loc["flames-psc1-gain", "decision"] == ledger.REPRODUCED


@pytest.mark.parametrize(("missing", "share_"), [(0.05, 0.95), (0.3, None)])
def test_the_published_protocol_counts_a_failed_call_against_the_arm_unless_too_many_fail(missing, share_):
    table = np.ones((100, 1))
    table[: int(100 * missing)] = np.nan
    rows = verdicts({"aligned": table}, pairwise=True).assign(protocol="published")
    rows["verdict"] = rows["verdict"].fillna("tie")
    found = flames.shares(flames.scores(rows, "pairwise").of("aligned"), level=0.95)
    assert np.isnan(found.low[0]) if share_ is None else found.value[0] == pytest.approx(share_)


def test_no_valid_verdict_is_no_evidence():
    arms = {arm: np.full_like(table, np.nan) for arm, table in world(prompts=20).items()}
    found = decided(arms, arms)
    assert (found.loc[list(flames.CLAIMS), "decision"] == ledger.NOT_RUN).all()
    assert (found.loc[list(flames.CLAIMS), "reason"] != "").all()


def test_orders_samples_and_replicates_of_a_prompt_are_one_observation():
    one = verdicts({"aligned": share(0.5, prompts=30, layers=2)}, pairwise=True)
    twice = pd.concat([one.assign(order="baseline first"), one.assign(order="arm first")])
    for rows in (one, twice):
        found = flames.shares(flames.scores(rows, "pairwise").of("aligned"), level=0.95)
        assert found.n == 30
        assert found.low == pytest.approx(flames.shares(flames.scores(one, "pairwise").of("aligned"), level=0.95).low)


# -------------------------------------------------------------------------------- the layer of the peak


def test_the_peak_is_at_layer_11_only_where_it_stands_out():
    arms = world(aligned=0.6)
    assert decided(arms, arms).loc["flames-peak-layer", "decision"] == ledger.INCONCLUSIVE
    arms["aligned"][:, 11] = share(0.8, layers=1, seed=3)[:, 0]
    assert decided(arms, arms).loc["flames-peak-layer", "decision"] == ledger.REPRODUCED
    arms["aligned"][:, 30] = share(0.95, layers=1, seed=4)[:, 0]
    assert decided(arms, arms).loc["flames-peak-layer", "decision"] == ledger.DIFFERS
    one = {arm: table[:, :5] for arm, table in arms.items()}
    assert decided(one, one).loc["flames-peak-layer", "decision"] == ledger.NOT_RUN


# ----------------------------------------------------------------------------------------- protocols


def test_numbers_are_of_the_published_protocol_and_causes_of_the_careful_one():
    careful, published = world(prompts=50, layers=2), world(aligned=0.1, prompts=50, layers=2, baseline=1.0)
    absolute, pairwise = (
        pd.concat([verdicts(arms, **how).assign(protocol=name) for name, arms in protocols.items()])
        for how in ({}, {"pairwise": True})
        for protocols in [{"careful": careful, "published": published}]
    )
    rows = {row["id"]: row for row in flames.of_judging(absolute, pairwise)}
    assert rows["flames-psc1-baseline"]["ours"] == 1000
    assert rows["flames-peak"]["ours"] == pytest.approx(published["aligned"].mean(axis=0).max())
    best = (careful["aligned"] - careful["baseline"]).mean(axis=0).max()
    assert rows["flames-psc1-gain"]["ours"] == pytest.approx(1000 * best)


def test_every_claim_of_a_judge_is_spoken_to():
    arms = world(prompts=20)
    rows = flames.of_judging(verdicts(arms), verdicts(arms, pairwise=True))
    ids = PUBLISHED.loc[PUBLISHED["stage"] == "judging", "id"]
    assert {row["id"] for row in rows} == set(flames.CLAIMS) == set(ids)


def test_arms_that_share_no_layer_are_not_compared():
    steered = {arm: pd.DataFrame({layer: [1.0, 0.0]}) for layer, arm in enumerate(("aligned", "random-direction"))}
    (row,) = flames._steered("R5-sparse", flames.Scores(steered), "aligned")
    assert row == {"id": "R5-sparse", "reason": "no layer was steered by both aligned and random-direction"}
