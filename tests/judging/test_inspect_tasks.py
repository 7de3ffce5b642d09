"""The tasks of Inspect's command line: the notebook's numbers from saved answers, and any model asked and judged."""

import asyncio
import tomllib

import inspect_ai
import pandas as pd
import pytest
from inspect_ai._util.registry import registry_find, registry_info
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)

from lib.activations.models import open_model
from lib.judging import judges, tasks
from lib.judging.win_rates import CONDITION, ORDERS
from lib.run.files import PROJECT
from lib.run.judge_names import providers
from lib.sae import files
from lib.sae.model import SparseAutoencoder
from lib.steering import generation
from lib.steering.answering import append_answers
from lib.steering.interventions import Arm, Edit, Intervention

PROMPTS = 6


def evaluated(task, tmp_path, model="none/none", **options):
    (log,) = inspect_ai.eval(
        task,
        model=model,
        log_dir=str(tmp_path),
        display="none",
        score_display=False,
        ctl_server=False,
        log_realtime=False,
        **options,
    )
    assert log.status == "success", log.error
    metrics = {name: found.value for name, found in log.results.scores[0].metrics.items()}
    return metrics, tasks.verdicts_in(log), log


def fake(reply):
    """A model of Inspect that says `reply(request)`, raises it or, where that is None, replies without a message."""

    def said(input, tools, tool_choice, config):
        text = reply(input[-1].text)
        if isinstance(text, Exception):
            raise text
        output = ModelOutput(model="mockllm") if text is None else ModelOutput.from_content("mockllm", text)
        output.usage = ModelUsage(total_tokens=1)  # else Inspect counts tokens, for which it fetches a vocabulary
        return output

    return get_model("mockllm/fake", custom_outputs=said)


def saved(folder, **texts):
    for arm, text in texts.items():
        rows = [
            {"id": f"flames_{i:04d}", "dimension": "Safety", "prompt": f"第{i}个问题", "arm": arm, "receipt": {}}
            | {"layer": None if arm == "baseline" else 2, "strength": None if arm == "baseline" else 1.0}
            | {"response": text(i)}
            for i in range(1, PROMPTS + 1)
        ]
        append_answers(folder / f"{arm}.jsonl", rows)
    return folder


def test_inspect_finds_the_tasks_by_their_entry_point():
    entry = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    assert entry == {"companion": tasks.__name__}


def test_the_providers_that_a_profile_may_name_are_those_of_inspect():
    brought = registry_find(lambda info: info.type == "modelapi" and info.name.startswith("inspect_ai/"))
    assert providers() == sorted(registry_info(each).name.removeprefix("inspect_ai/") for each in brought)


def test_saved_answers_of_the_demo_give_the_win_rates_of_the_notebook(demo_run, tmp_path):
    model = next(path.name for path in (demo_run / "judging").iterdir() if (path / "summary.parquet").exists())
    answers = demo_run / "steering" / model / "aligned.jsonl"
    metrics, verdicts, log = evaluated(
        "companion/pairwise", tmp_path, task_args={"judge": "offline", "answers": str(answers)}
    )
    theirs = pd.read_parquet(demo_run / "judging" / model / "summary.parquet").query(
        "protocol == 'careful' and rubric == 'pairwise' and arm == 'aligned' and dimension == 'all'"
    )
    assert len(theirs) >= 5
    for row in theirs.itertuples():
        assert metrics[f"aligned/{row.layer}/{row.strength}/pairwise {row.metric}"] == pytest.approx(row.value)
    table = pd.read_parquet(demo_run / "judging" / model / "pairwise.parquet").query("arm == 'aligned'")
    keys = ["id", *CONDITION, "order"]
    both = [
        each.sort_values(keys)[[*keys, "dimension", "outcome", "verdict"]].to_numpy().tolist()
        for each in (verdicts, table)
    ]
    assert both[0] == both[1]
    assert {sample.scores["judged"].metadata["standing"] for sample in log.samples} == {"plumbing"}


def test_what_has_no_verdict_is_an_outcome_and_no_score(tmp_path):
    folder = saved(tmp_path / "answers", baseline=lambda i: "好", aligned=lambda i: "" if i == 1 else "不好")

    def reply(request):
        return RuntimeError("no connection") if "第2个" in request else "The first.\nVERDICT: 1"

    options = {"model_roles": {"grader": fake(reply)}}
    metrics, verdicts, log = evaluated(tasks.pairwise(answers=str(folder)), tmp_path, **options)
    counts = verdicts.groupby("id")["outcome"].agg(set).to_dict()
    assert counts["flames_0001"] == {"empty"}
    assert counts["flames_0002"] == {"failed"}
    assert set(verdicts["order"]) == set(ORDERS)
    name = "aligned/2/1.0/pairwise"
    # Five prompts count, of which the empty answer loses twice and the others are taken by their place.
    assert metrics[f"{name} win_rate"] == pytest.approx(4 / 10)
    assert metrics[f"{name} lose_rate"] == pytest.approx(6 / 10)
    assert metrics[f"{name} tie_rate"] == 0
    assert metrics[f"{name} position_bias"] == 1
    assert metrics[f"{name} without verdict"] == 2
    scores = {sample.id: sample.scores["judged"] for sample in log.samples}
    failed = next(score for key, score in scores.items() if "0002" in key)
    assert failed.value == {order: None for order in ORDERS}
    assert "no connection" in failed.explanation


def test_a_reply_without_a_message_is_no_verdict(tmp_path):
    folder = saved(tmp_path / "answers", baseline=lambda i: "好", aligned=lambda i: "不好")
    grader = fake(lambda request: None)
    verdicts = evaluated(tasks.pairwise(answers=str(folder)), tmp_path, model_roles={"grader": grader})[1]
    assert set(verdicts["outcome"]) == {"invalid"}


def test_a_model_is_asked_the_prompts_and_its_answers_are_scored(tmp_path):
    asked = []

    def answer(request):
        asked.append(request)
        return "<think>我理解</think>这很危险，你不能这样做。"

    metrics, verdicts, log = evaluated(tasks.flames("offline"), tmp_path, fake(answer), limit=4)
    assert len(asked) == 4
    assert metrics["model/safety perfect_share"] == 1, "the answer names the hazard and refuses"
    assert metrics["model/emotion perfect_share"] == 0
    assert set(verdicts["characters"]) == {len("这很危险，你不能这样做。")}, "thoughts are no part of an answer"
    assert log.samples[0].messages[0].role == "system"


def test_a_model_is_compared_with_a_saved_baseline(tmp_path):
    folder = saved(tmp_path / "answers", baseline=lambda i: "普通的回答。")
    model = fake(lambda request: "这很危险，你不能这样做。")
    task = tasks.pairwise("offline", baseline=str(folder / "baseline.jsonl"))
    metrics, verdicts, _ = evaluated(task, tmp_path, model)
    assert metrics["model/pairwise win_rate"] == 1
    assert len(verdicts) == 2 * PROMPTS
    published = tasks.pairwise("offline", baseline=str(folder / "baseline.jsonl"), protocol="published")
    assert set(evaluated(published, tmp_path, model)[1]["order"]) == {"baseline first"}


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(judges.JudgingError, match="needs one of -T answers"):
        tasks.pairwise("offline")


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_provider_steers_as_notebook_07_does(tiny_model, tmp_path, strength):
    folder = tmp_path / "layer_01"
    folder.mkdir()
    files.save(folder, SparseAutoencoder(32, 64, k=4), {"hook_name": "model.layers.1", "arm": "aligned"})
    steered = get_model(f"companion/{tiny_model}", autoencoder=str(folder), strength=strength, memoize=False)
    config = GenerateConfig(temperature=0.0, max_tokens=8, top_p=0.9)
    output = asyncio.run(steered.generate("Tell me.", config=config))
    arm = Arm(Intervention("aligned", (1,), strength), {1: Edit(files.load(folder).requires_grad_(False))})
    decoding = generation.Decoding(8, 0.0, 0.9, 1.1)
    (ours,), _ = generation.answer_batch(open_model(str(tiny_model)), arm, ["Tell me."], decoding=decoding, seed=0)
    assert output.metadata["receipt"] == ours["receipt"]
    assert output.completion == ours["response"]
    assert (output.metadata["receipt"]["relative_norm"] > 0) == (strength > 0)
    with pytest.raises(judges.JudgingError, match="one question"):
        asyncio.run(steered.generate([ChatMessageSystem(content="Be brief."), ChatMessageUser(content="Hi")]))
