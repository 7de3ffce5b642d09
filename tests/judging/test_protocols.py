"""The published protocol beside the careful one, thoughts apart, replicates and samples, and judges that are judged."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from inspect_ai.model import ContentReasoning, ContentText, ModelOutput

from lib.judging import contrasts, judges, quality, questions, rubrics, sessions, win_rates
from lib.judging.calls import Calls
from lib.judging.questions import questions_about
from lib.judging.sessions import Session
from lib.run.parameters import JudgingKeys
from lib.stats import cluster_weights
from lib.steering.prompts import DIMENSIONS
from tests.judging.test_tasks import GOLD, PROMPTS, WHO, always_first, fake, metric, responses_of
from tests.judging.test_win_rates import NO_SCORES, pairs, scores

ANY = JudgingKeys(layers=[2], judge_retries=0, max_failed_share=1)


def asked(table, judge, folder, **reading):
    session = Session(table, judge, folder, ANY)
    sessions.judge(session)
    return sessions.read_verdicts(session, **reading)


def test_the_published_protocol_shows_the_baseline_first_and_counts_a_failure_as_a_tie(tmp_path):
    seen = []

    def reply(request):
        seen.append(request)
        if "<first>" not in request:
            return RuntimeError("no connection") if len(seen) % 2 else "SCORE: 3"
        return RuntimeError("no connection") if "第3个" in request else "VERDICT: 2"

    table = questions_about(responses_of(), protocol="published")
    session = Session(table, fake(reply), tmp_path, ANY)
    sessions.judge(session)
    absolute = sessions.read_verdicts(session, "safety", "emotion", protocol="published")
    pairwise = sessions.read_verdicts(session, "pairwise", protocol="published")
    shown = [rubrics.section(request, "first") for request in seen if "<first>" in request]
    assert set(shown) == {"普通的回答。"}
    assert set(pairwise["order"]) == {"baseline first"}
    assert pairwise.loc[pairwise["outcome"] == "failed", "verdict"].tolist() == ["tie", "tie"]
    summary = win_rates.summarise(absolute, pairwise, about=WHO)
    assert metric(summary, "tie_rate")["value"] == pytest.approx(1 / PROMPTS)
    assert metric(summary, "win_rate")["value"] == pytest.approx(1 - 1 / PROMPTS)
    assert metric(summary, "win_rate")["n"] == PROMPTS
    share = summary[(summary["metric"] == "perfect_share") & (summary["dimension"] == "all")]
    assert (share["n"] == PROMPTS).all(), "a failure is no perfect score, and is not left out"
    assert share["value"].mean() == pytest.approx(0.5)
    named = [request for request in seen if rubrics.CHINESE["Legality"] in request.split("<prompt>")[0]]
    assert len(named) > 5
    safe = [request for request in named if "PSC1" in request]
    assert not any("SCORE: 2" in request for request in safe)


def test_both_protocols_of_a_run_are_kept_apart(tmp_path):
    both = pd.concat([questions_about(responses_of(), protocol=name) for name in rubrics.PROTOCOLS], ignore_index=True)
    session = Session(both, "offline", tmp_path, ANY)
    sessions.judge(session)
    tables = [
        pd.concat([sessions.read_verdicts(session, *names, protocol=protocol) for protocol in rubrics.PROTOCOLS])
        for names in (("safety", "emotion"), ("pairwise",))
    ]
    assert len(tables[0]) + len(tables[1]) == len(both)
    assert tables[1].groupby("protocol").size().to_dict() == {"careful": 4 * PROMPTS, "published": 2 * PROMPTS}
    tests = contrasts.contrasts(*tables)
    assert tests.groupby(["protocol", "rubric", "arm", "against", "test", "dimension"]).size().max() == 1
    legal = tables[0].query("protocol == 'published' and rubric == 'safety' and dimension == 'Legality'")
    assert set(legal["score"]) <= {1, 3}
    assert len(legal) > 3


def test_thoughts_of_answers_are_no_part_of_what_is_judged(tmp_path):
    seen = []

    def reply(request):
        seen.append(request)
        return always_first(request)

    texts = {"aligned": lambda i: f"<think>秘密{i}</think>好" if i > 3 else "<think>秘密，还没想完"}
    answers = responses_of(**texts)
    table = questions_about(answers)
    asked(table, fake(reply), tmp_path)
    assert not any("秘密" in request for request in seen)
    counts = questions.thinking(answers).set_index("arm")
    assert counts.loc["aligned", ["thinking", "unfinished"]].tolist() == [PROMPTS, 3]
    assert counts.loc["aligned", "unfinished_share"] == 3 / PROMPTS
    assert counts.loc["baseline", "thinking"] == 0
    assert (table["without"] == "lose").sum() == 4 * 3
    apart = responses_of(aligned=lambda i: "" if i <= 3 else "好")
    apart = apart.assign(thought=np.where(apart["arm"] == "aligned", "秘密", None), finished=True)
    pd.testing.assert_frame_equal(questions.thinking(apart), questions.thinking(answers))


def test_thoughts_of_a_judge_are_no_verdict_and_judges_are_told_not_to_think(tmp_path):
    def reply(request):
        verdict = "VERDICT: 2" if "<first>" in request else "SCORE: 1"
        thought = ContentReasoning(reasoning="VERDICT: 1\nSCORE: 3")
        return ModelOutput.from_content("fake", [thought, ContentText(text=verdict)])

    found = asked(questions_about(responses_of()), fake(reply), tmp_path)
    assert set(found["outcome"]) == {"valid"}
    assert set(found["score"].dropna()) == {1}
    assert set(found["chosen"].dropna()) == {"second"}
    quiet = {"max_tokens": 9, "thinks": False}
    assert judges.config_of("google/gemini-2.5-flash", **quiet).reasoning_tokens == 0
    assert judges.config_of("anthropic/claude-x", **quiet).reasoning_effort == "none"
    assert judges.config_of("openai-api/mine/x", **quiet).reasoning_effort is None, (
        "a word that its server may not know"
    )
    assert judges.config_of("google/gemini-2.5-flash", max_tokens=9, thinks=True).reasoning_tokens is None
    assert judges.config_of("offline", **quiet).max_tokens == 9


def several(replicates, effects, prompts=40, seed=0):
    """Comparisons of an arm in several replicates, each with a win probability of its own."""
    parts = [
        pairs(lambda *_, share=share: share, prompts=prompts, seed=seed + 7 * number).assign(replicate=number)
        for number, share in zip(range(replicates), effects, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def test_replicates_that_differ_widen_the_interval():
    def width(effects):
        row = metric(win_rates.summarise(NO_SCORES, several(3, effects), about=WHO, draws=400), "win_rate")
        return row["value"], row["ci_high"] - row["ci_low"]

    same, apart = width([0.5] * 3), width([0.1, 0.5, 0.9])
    assert same[0] == pytest.approx(apart[0], abs=0.1)
    assert apart[1] > 2 * same[1]


def test_several_answers_to_a_prompt_are_one_observation():
    once = pairs(lambda *_: 0.5, prompts=60)
    copies = pd.concat([once.assign(sample=number) for number in range(5)], ignore_index=True)
    rows = [metric(win_rates.summarise(NO_SCORES, frame, about=WHO, draws=400), "win_rate") for frame in (once, copies)]
    assert rows[0][["value", "ci_low", "ci_high"]].tolist() == pytest.approx(
        rows[1][["value", "ci_low", "ci_high"]].tolist()
    )
    score = scores([3] * 20 + [1] * 20, [3] * 30 + [1] * 10)
    more = pd.concat([score.assign(sample=number) for number in range(5)], ignore_index=True)
    one, five = (
        metric(win_rates.summarise(frame, once.head(0), about=WHO, draws=400), "perfect_share")
        for frame in (score, more)
    )
    assert five["ci_high"] - five["ci_low"] == pytest.approx(one["ci_high"] - one["ci_low"], rel=0.2)


def test_the_paired_difference_is_that_of_the_means_and_finds_nothing_where_nothing_is():
    generator = np.random.default_rng(0)
    found = []
    for number in range(150):
        # A hard prompt is hard for both arms.
        ease = generator.beta(0.5, 0.5, size=60)
        one, other = (
            pd.DataFrame({"id": range(60), "perfect": generator.random(60) < ease}).astype(float) for _ in range(2)
        )
        row = contrasts.paired_difference(one, other, draws=200, seed=number)
        assert row["value"] == pytest.approx(one["perfect"].mean() - other["perfect"].mean())
        found.append(row["p"])
    assert np.mean(np.array(found) < 0.05) < 0.11
    better = one.assign(perfect=np.maximum(one["perfect"], np.arange(60) % 4 == 0))
    assert contrasts.paired_difference(better, one, draws=400, seed=0)["ci_low"] > 0
    assert contrasts.paired_difference(one, one, draws=20, seed=0)["reason"] == "every prompt says the same"
    assert contrasts.paired_difference(one.head(1), one, draws=20, seed=0)["reason"]
    # A pair of arms is on the prompts that both have, by the same draws.
    few = contrasts.paired_difference(better.head(30), one, draws=200, seed=0)
    weights = cluster_weights(np.arange(30), 200, 0)
    gain = better["perfect"].to_numpy()[:30] - one["perfect"].to_numpy()[:30]
    assert few["n"] == 30
    assert few["ci_low"] == pytest.approx(np.percentile((weights @ gain / 30)[1:], 2.5))


def test_the_aligned_arm_is_put_beside_every_control_at_its_layer():
    frames = [
        pairs(lambda *_, share=share: share, prompts=50, seed=seed).assign(arm=arm, layer=layer)
        for seed, (arm, layer, share) in enumerate(
            [("aligned", 1, 0.5), ("aligned", 2, 0.9), ("untuned", 1, 0.5), ("untuned", 2, 0.5), ("random", 2, 0.9)]
        )
    ]
    table = contrasts.contrasts(NO_SCORES, pd.concat(frames).astype({"layer": "Int64"}), about={"usable": False})
    paired = table[table["test"] == "paired difference"].set_index(["against", "layer"])
    assert sorted(paired.index) == [("random", 2), ("untuned", 1), ("untuned", 2)]
    assert paired.loc[("untuned", 2), "ci_low"] > 0.2
    assert paired.loc[("untuned", 2), "p_holm"] == pytest.approx(2 * paired.loc[("untuned", 2), "p"])
    assert paired.loc[("random", 2), "ci_low"] < 0 < paired.loc[("random", 2), "ci_high"]
    assert not table["usable"].any()


def test_the_gold_pairs_are_many_mild_and_not_told_by_length():
    gold = questions.read_lines(GOLD, questions.GoldPair)
    assert len(gold) >= 60
    assert gold["id"].is_unique
    assert gold["prompt"].is_unique
    assert gold["language"].value_counts().min() >= 25
    assert gold["dimension"].value_counts().reindex(DIMENSIONS).min() >= 10
    longer = (gold["better"].str.len() > gold["worse"].str.len()).mean()
    assert 0.4 < longer < 0.6
    assert set(questions.gold_questions(GOLD)["without"].isna()) == {True}


def judge_that(prefers):
    """A judge that chooses by ``prefers(first, second, number of the call)``: 1, 2 or TIE."""
    calls = Counter()

    def reply(request):
        calls["n"] += 1
        first, second = rubrics.section(request, "first"), rubrics.section(request, "second")
        return f"VERDICT: {prefers(first, second, calls['n'])}"

    return fake(reply)


GOLD_PAIRS = questions.read_lines(GOLD, questions.GoldPair)
BETTER = {rubrics.defused(text.strip()) for text in GOLD_PAIRS["better"]}


@pytest.mark.parametrize(
    ("prefers", "usable", "expected"),
    [
        (lambda first, second, n: 1 if first in BETTER else 2, True, {"gold_agreement": 1, "position_bias": 0}),
        (lambda first, second, n: 1, False, {"gold_agreement": 0.5, "position_bias": 1, "retest_agreement": 1}),
        (lambda first, second, n: 2, False, {"gold_agreement": 0.5, "position_bias": -1}),
        (lambda first, second, n: "TIE", False, {"gold_agreement": 0}),
        (lambda first, second, n: "maybe", False, {"gold_agreement": 0, "verdicts": 0}),
        (lambda first, second, n: 2 if first in BETTER else 1, False, {"gold_agreement": 0, "position_bias": 0}),
    ],
    ids=["perfect", "first", "second", "ties", "nonsense", "contrary"],
)
def test_judges_are_judged(tmp_path, prefers, usable, expected):
    session = Session(questions.gold_questions(GOLD), judge_that(prefers), tmp_path, ANY)
    sessions.judge(session)
    gold, again = (sessions.read_verdicts(session, series=series) for series in ("gold", "gold again"))
    table = quality.judged(gold, again, about={"judge": "x"}, parameters=ANY)
    assert set(table["usable"]) == {usable}
    found = table.set_index("metric")["value"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert table.set_index("metric")["n"]["gold_agreement"] == 2 * len(GOLD_PAIRS)


def test_a_judge_that_changes_its_mind_is_not_usable(tmp_path):
    session = Session(questions.gold_questions(GOLD), "offline", tmp_path, ANY)
    sessions.judge(session)
    gold, again = (sessions.read_verdicts(session, series=series) for series in ("gold", "gold again"))
    gold = gold.assign(verdict="win", chosen=np.where(gold["order"] == "arm first", "first", "second"))
    again = again.assign(chosen=np.where(np.arange(len(again)) % 3 == 0, "first", "second"))
    table = quality.judged(gold, again, about={}, parameters=ANY).set_index("metric")
    assert table["value"]["retest_agreement"] == pytest.approx(2 / 3)
    assert table["within"].dropna().to_dict() == {
        "gold_agreement": True,
        "position_bias": True,
        "retest_agreement": False,
    }
    assert not table["usable"].any()


def test_a_long_record_is_read_line_by_line(tmp_path):
    import tracemalloc

    line = '{"key": "answers/careful/safety/%d", "reserved": 0, "tokens": 1, "outcome": "valid", "said": "3", "reply": "%s"}\n'
    with (tmp_path / "calls.jsonl").open("w") as stream:
        stream.writelines(line % (number, "x" * 2000) for number in range(20_000))
    tracemalloc.start()
    calls = Calls(tmp_path)
    calls.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(calls.verdicts) == 20_000
    assert peak < 0.3 * (tmp_path / "calls.jsonl").stat().st_size
