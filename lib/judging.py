"""Judging: absolute scores and comparisons of answers, by any model that Inspect knows, every verdict accounted for.

Three tasks of Inspect (inspect-ai): PSC1 (is the answer safe), PSC2 (does it sense feelings) and the
comparison of each arm with the baseline, in both orders, the judge not knowing which is which. A judge that
fails, refuses, runs out of tokens or answers anything but the form asked for has not given a verdict: that is
an outcome with a count, never a score or a tie. Numbers of the offline judge are plumbing: they say that the
road is passable.
"""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from inspect_ai import Task, eval_set
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.event import ModelEvent
from inspect_ai.log import EvalSample, read_eval_log, transcript
from inspect_ai.model import CachePolicy, GenerateConfig, Model
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from IPython.utils.capture import capture_output

from lib import runs
from lib.flames import CONDITION
from lib.judges import REPLY_TOKENS, Budget, JudgingError, Meter, model_name, tokens_of, without_keys
from lib.rubrics import RUBRICS, parse_verdict, render
from lib.verdicts import ORDERS

JUDGE_CONFIG = GenerateConfig(temperature=0.1, max_tokens=1024, max_retries=5, max_connections=20)
"""The published temperature. Retries are Inspect's alone: a second layer would multiply them.

What is in flight when judging is killed is paid twice, so connections are limited.
"""

LOG_BUFFER = 20
"""Verdicts that may be lost by a kill: Inspect writes its log after so many samples."""


# ---------------------------------------------------------------------------------- tasks of Inspect


@scorer(metrics=[mean()])
def verdict(rubric: str) -> Scorer:
    """Scorer: 1 for a verdict in the form asked for, else 0; the verdict is the score's answer."""

    async def score(state: TaskState, target: Target) -> Score:
        given = parse_verdict(rubric, state.output.completion)
        outcome = {"content_filter": "refused", "max_tokens": "truncated", "model_length": "truncated"}.get(
            state.output.stop_reason, "valid" if given else "invalid"
        )
        return Score(value=float(outcome == "valid"), answer=given, metadata={"outcome": outcome})

    return score


@solver
def ask(meter: Meter) -> Solver:
    """Solver: put the question to the judge, unless the budget is used up."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        request = state.input_text
        if not meter.admit(request):
            state.completed = True
            return state
        spent: int | None = 0
        try:
            state = await generate(state)
            spent = state.output.usage.total_tokens if state.output.usage else tokens_of(request) + REPLY_TOKENS
            calls = [event for event in transcript().events if isinstance(event, ModelEvent)]
            spent = None if calls and calls[-1].cache == "read" else spent
        except Exception as error:
            # A provider's message may repeat the key that it refuses, and Inspect would log it three times over.
            for event in transcript().events:
                if isinstance(event, ModelEvent):
                    event.error, event.traceback, event.traceback_ansi, event.call = None, None, None, None
            raise JudgingError(f"{type(error).__name__}: {without_keys(str(error))}") from None
        finally:
            meter.settle(request, spent)
        return state

    return solve


def requests(responses: pd.DataFrame, rubric: str) -> pd.DataFrame:
    """List what one rubric asks: a row a question to the judge, before anyone is asked.

    Args:
        responses: as :func:`lib.flames.read_responses` returns it.
        rubric: ``safety``, ``emotion`` or ``pairwise``.

    Returns:
        ``key`` (unique), ``id, dimension, arm, layer, strength, rubric``; for the absolute rubrics ``answer``; for the
        comparison ``order`` and, as shown to the judge, ``first`` and ``second``; ``prompt``; and the lengths
        of the arm's answer and the baseline's in ``characters`` and ``baseline_characters``.

    Raises:
        JudgingError: a comparison without the baseline's answers.
    """
    known = responses[["id", "dimension", *CONDITION, "prompt"]].assign(rubric=rubric)
    known["characters"] = responses["response"].str.len()
    if rubric != "pairwise":
        known["answer"] = responses["response"].str.strip()
        known["key"] = _keys(known)
        return known
    baseline = responses[responses["arm"] == "baseline"].set_index("id")["response"].str.strip()
    if baseline.empty:
        raise JudgingError("the comparison needs the answers of the arm 'baseline'; add it to `arms`")
    arms = known[known["arm"] != "baseline"]
    own, other = responses.loc[arms.index, "response"].str.strip(), arms["id"].map(baseline)
    arms = arms.assign(baseline_characters=other.str.len())
    orders = [(other, own), (own, other)]
    both = [arms.assign(order=o, first=f, second=s) for o, (f, s) in zip(ORDERS, orders, strict=True)]
    asked = pd.concat(both, ignore_index=True)
    asked["key"] = _keys(asked) + "/" + asked["order"].str.replace(" ", "-")
    return asked


def estimate(responses: pd.DataFrame, language: str = "zh", rubrics: tuple[str, ...] = tuple(RUBRICS)) -> pd.DataFrame:
    """Estimate what one judge will be asked, before the first call.

    Returns:
        One row a rubric: ``rubric, calls, input_tokens, output_tokens``. Tokens are estimated from characters, see
        :func:`lib.judges.tokens_of`, and 80 a reply; a judge that thinks before it answers writes more.
    """
    rows = []
    for rubric in rubrics:
        if responses.empty:
            rows.append((rubric, 0, 0, 0))
            continue
        asked = requests(responses, rubric)
        asked = asked[~_unanswerable(asked)]
        tokens = sum(tokens_of(text) for text in _rendered(asked, rubric, language))
        rows.append((rubric, len(asked), tokens, REPLY_TOKENS * len(asked)))
    return pd.DataFrame(rows, columns=["rubric", "calls", "input_tokens", "output_tokens"])


def judge(
    responses: pd.DataFrame,
    judge: str | Model,
    log_dir: Path,
    language: str = "zh",
    budget: Budget | None = None,
    rubrics: tuple[str, ...] = tuple(RUBRICS),
) -> None:
    """Put rubrics to a judge through Inspect; logs go to ``log_dir``.

    A run that was interrupted goes on from its logs and from Inspect's cache in ``log_dir/cache``: what has been
    answered is not paid again. So does one that has used up its budget, once the budget is raised.

    Args:
        responses: as :func:`lib.flames.read_responses` returns it.
        judge: ``offline``, a name that Inspect knows such as ``google/gemini-2.5-flash``, or a model of
            Inspect. Keys are taken from the environment by Inspect.
        log_dir: where ``inspect view --log-dir`` finds the logs.
        language: of the rubrics, ``zh`` or ``en``.
        budget: no limit by default.
        rubrics: all three by default.

    Raises:
        JudgingError: the estimate exceeds the budget (nobody was asked), the budget was used up, or a task did not end.
    """
    budget = budget or Budget()
    budget.refuse(estimate(responses, language, rubrics))
    name = model_name(judge) if isinstance(judge, str) else str(judge)
    meter = Meter(budget)
    tasks = [_task(requests(responses, rubric), rubric, language, meter, name) for rubric in rubrics]
    _import_async_backend()
    cache = {"INSPECT_CACHE_DIR": str(log_dir / "cache")}
    # "none" leaves an empty widget in a notebook. "log" at this level shows only a line with the directory's full name.
    with capture_output(stderr=False), patch.dict(os.environ, cache):
        done, _ = eval_set(
            [task for task in tasks if len(task.dataset)],
            log_dir=str(log_dir),
            model=name if isinstance(judge, str) else judge,
            display="log",
            log_level="critical",
            log_realtime=False,
            log_buffer=LOG_BUFFER,
            score_display=False,
            ctl_server=False,
            fail_on_error=False,
            retry_attempts=0,
            retry_immediate=False,
        )
    if meter.refused:
        # These logs would count as finished; the cache holds every reply that was paid for.
        for path in log_dir.glob("*.eval"):
            path.unlink()
        raise JudgingError(
            f"the budget was used up after {meter.calls:,} calls and {meter.tokens:,} tokens; {meter.refused} questions "
            "were not asked. Raise `judge_calls` or `judge_tokens` and run again: replies so far are not paid again."
        )
    if not done:
        raise JudgingError(f"judging did not end; run again to go on from the logs in {runs.short(log_dir)}")


def read_verdicts(responses: pd.DataFrame, log_dir: Path, rubric: str) -> pd.DataFrame:
    """Read one rubric's verdicts from Inspect's logs, one row a question, also those without a verdict.

    Returns:
        The columns of :func:`requests` without any text, and ``outcome`` (one of
        :data:`lib.verdicts.OUTCOMES`). For the absolute rubrics also ``score`` (1 to 3); for the comparison
        ``chosen`` (first, second, tie: where the preferred answer stood) and ``verdict`` (win, tie, lose: of
        the arm against the baseline). All three are missing unless the outcome is valid.

    Raises:
        JudgingError: the logs lack a question that should have been asked.
    """
    asked = requests(responses, rubric)
    samples = dict(_logged_samples(log_dir, rubric))
    to_judge = ~_unanswerable(asked)
    missing = set(asked.loc[to_judge, "key"]) - samples.keys()
    if missing:
        raise JudgingError(f"{len(missing)} questions are not in the logs, such as {sorted(missing)[0]}; judge again")
    read = [("empty", None) if not ok else _read(samples[key]) for key, ok in zip(asked["key"], to_judge, strict=True)]
    frame = asked.drop(columns=["key", "prompt", "answer", "first", "second"], errors="ignore")
    frame["outcome"], given = [outcome for outcome, _ in read], pd.Series([v for _, v in read], index=asked.index)
    if rubric != "pairwise":
        return frame.assign(score=pd.to_numeric(given).astype("Int64"))
    frame["chosen"] = given.map({"1": "first", "2": "second", "TIE": "tie"})
    arm_stood = frame["order"].map({"baseline first": "second", "arm first": "first"})
    won = np.where(frame["chosen"] == arm_stood, "win", "lose")
    return frame.assign(verdict=frame["chosen"].where(frame["chosen"].isna() | (frame["chosen"] == "tie"), won))


def absolute_table(responses: pd.DataFrame, log_dir: Path) -> pd.DataFrame:
    """Return the verdicts of both absolute rubrics, one under the other; see :func:`read_verdicts`."""
    return pd.concat([read_verdicts(responses, log_dir, name) for name in ("safety", "emotion")], ignore_index=True)


def _import_async_backend() -> None:
    """Import what Inspect runs on, which fails where nnsight has given every object a method ``save``."""
    if not hasattr(object, "save"):
        return
    from nnsight import save
    from nnsight._c import mount, unmount

    unmount("save")
    try:
        importlib.import_module("anyio._backends._asyncio")
    finally:
        mount(save, "save")


def _rendered(asked: pd.DataFrame, rubric: str, language: str) -> list[str]:
    parts = ["prompt", "first", "second"] if rubric == "pairwise" else ["prompt", "answer"]
    return [render(rubric, language, **row) for row in asked[parts].to_dict("records")]


def _task(asked: pd.DataFrame, rubric: str, language: str, meter: Meter, judge: str) -> Task:
    asked = asked[~_unanswerable(asked)]
    texts = zip(asked["key"], _rendered(asked, rubric, language), strict=True)
    # The rule costs nothing, so its replies need no cache.
    cache = None if judge.startswith("offline/") else CachePolicy(expiry=None, per_epoch=False)
    return Task(
        name=rubric,
        dataset=MemoryDataset([Sample(id=key, input=text) for key, text in texts]),
        solver=ask(meter),
        scorer=verdict(rubric),
        config=JUDGE_CONFIG.merge(GenerateConfig(cache=cache)),
    )


def _keys(frame: pd.DataFrame) -> pd.Series:
    places = [
        "" if pd.isna(layer) else f"/layer_{layer:02d}/strength_{strength:g}"
        for layer, strength in zip(frame["layer"], frame["strength"], strict=True)
    ]
    return frame["id"] + "/" + frame["arm"] + pd.Series(places, index=frame.index, dtype=str)


def _unanswerable(asked: pd.DataFrame) -> pd.Series:
    shown = [column for column in ("answer", "first", "second") if column in asked]
    return (asked[shown] == "").any(axis=1)


def _logged_samples(log_dir: Path, rubric: str) -> Iterator[tuple[str, EvalSample]]:
    for path in sorted(log_dir.glob(f"*_{rubric}_*.eval")):
        log = read_eval_log(str(path))
        if log.status == "success":
            yield from ((str(sample.id), sample) for sample in log.samples or [])


def _read(sample: EvalSample) -> tuple[str, str | None]:
    if sample.error or not sample.scores:
        return "failed", None
    score = sample.scores["verdict"]
    outcome = (score.metadata or {})["outcome"]
    return outcome, score.answer if outcome == "valid" else None
