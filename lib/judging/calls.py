"""What a judge was asked, what came back and what it cost, on disk: nothing is lost by a kill, nothing is asked twice.

Every judge has a folder, its log root. ``calls.jsonl`` in it is the record of every call: a line when the judge is asked, and
one when the reply, or an error, is there. Verdicts are read from it, and so is what has been spent of a budget, in this
session and in all before it. Inspect's own logs lie beside it, to be read with ``inspect view``.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, Self

from inspect_ai.event import ModelEvent
from inspect_ai.log import transcript
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from tqdm.auto import tqdm

from lib.judging.judges import JudgingError, without_keys
from lib.judging.rubrics import parse_verdict
from lib.run.files import locked

REPLY_TOKENS = 80
"""Tokens that a reply is estimated at: a sentence and the verdict."""

STOPPED = {"content_filter": "refused", "max_tokens": "truncated", "model_length": "truncated"}
"""Why a reply ended -> its outcome, whatever it says."""


class Verdict(NamedTuple):
    """What became of a question: one of :data:`lib.judging.win_rates.OUTCOMES` and, of a valid one, what the judge said."""

    outcome: str
    said: str | None = None


class Calls:
    """The record of one judge's calls, open while it is asked; one process at a time.

    The budget is what one judge may be asked at most in a run, however often the run is begun again. A call is admitted if it,
    all calls in flight and all that was ever spent stay within the budget. A call in flight counts
    as its estimate, :func:`cost_of`; so does one that a kill cut off, because it may have been paid for.

    Attributes:
        calls, tokens: asked and spent so far, in all sessions; ``reserved`` are the tokens estimated for calls without an
            answer.
        refused: questions that the budget did not admit since this was opened.
        verdicts: key of a question -> what came of it last.
        error: the last call's that failed.
    """

    def __init__(self, folder: Path, *, max_calls: int | None = None, max_tokens: int | None = None) -> None:
        self.path = folder / "calls.jsonl"
        self.max_calls, self.max_tokens = max_calls or math.inf, max_tokens or math.inf
        self.calls = self.tokens = self.reserved = self.refused = 0
        self.verdicts: dict[str, Verdict] = {}
        self.error = ""
        self.bar: tqdm | None = None

    def __enter__(self) -> Self:
        """Read what is there, cut off half a line that a kill left, and go on behind it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.path.parent)
        self._lock.acquire()
        whole = self.read()
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        return self

    def __exit__(self, *error: object) -> None:
        """Close the record; every line is on disk already."""
        self._file.close()
        self._lock.release()

    def read(self) -> int:
        """Read the record from the start, line by line; return the bytes of its whole lines."""
        whole = 0
        for line in self.path.open("rb") if self.path.exists() else ():
            if line.endswith(b"\n"):
                whole += len(line)
                self._count(json.loads(line))
        return whole

    def admit(self, key: str, request: str) -> bool:
        """Say whether the question may be asked, and reserve its cost."""
        cost = cost_of(request)
        if self.calls >= self.max_calls or self.tokens + self.reserved + cost > self.max_tokens:
            self.refused += 1
            return False
        self._write({"key": key, "reserved": cost})
        return True

    def settle(self, key: str, request: str, **found: Any) -> None:
        """Write down the end of a call: ``tokens`` it cost, ``outcome``, ``said``, and ``reply`` or ``error``."""
        self._write({"key": key, "reserved": -cost_of(request), **found})
        if self.bar:
            self.bar.update()

    def refuse(self, pending: int, tokens: int) -> None:
        """Refuse to begin what will not fit into the budget.

        Raises:
            JudgingError: says what is needed and which parameter to raise.
        """
        for name, more, spent, limit in (
            ("calls", pending, self.calls, self.max_calls),
            ("tokens", tokens, self.tokens + self.reserved, self.max_tokens),
        ):
            if more and more + spent > limit:
                before = f" after {spent:,} in earlier sessions" if spent else ""
                raise JudgingError(
                    f"judging needs about {more:,} {name}{before}, and the budget is {limit:,}: nobody was asked. "
                    f"Raise `judge_{name}`, or judge fewer prompts, layers or arms."
                )

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        self.reserved += line["reserved"]
        if "outcome" not in line:
            self.calls += 1
            return
        self.tokens += line["tokens"]
        self.error = line.get("error", self.error)
        self.verdicts[line["key"]] = Verdict(line["outcome"], line.get("said"))


def cost_of(request: str) -> int:
    """Estimate the tokens of a request and its reply."""
    return tokens_of(request) + REPLY_TOKENS


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text: one for each character beyond ASCII, one for four others, rounded up."""
    wide = len(re.sub(r"[\x00-\x7f]", "", text))
    return wide + math.ceil((len(text) - wide) / 4)


# ---------------------------------------------------------------------------------- as Inspect asks


@solver
def ask(calls: Calls) -> Solver:
    """Solver: put the question to the judge, unless the budget is used up, and write down what came back."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        key, request = str(state.sample_id), state.input_text
        if not calls.admit(key, request):
            state.completed = True
            return state
        before = state.output
        try:
            state = await generate(state)
        except Exception as error:
            if state.output is before:
                raise _failed(calls, key, request, error) from None
            # A reply came, but Inspect found no message in it.
        spent = state.output.usage.total_tokens if state.output.usage else cost_of(request)
        verdict = verdict_of(state.metadata["rubric"], state.output, levels=state.metadata["levels"])
        calls.settle(key, request, tokens=spent, **verdict._asdict(), reply=state.output.completion)
        return state

    return solve


def _failed(calls: Calls, key: str, request: str, error: Exception) -> JudgingError:
    """Write down a call that brought no reply, and return its error without keys, which Inspect would log three times over."""
    for event in transcript().events:
        if isinstance(event, ModelEvent):
            event.error, event.traceback, event.traceback_ansi, event.call = None, None, None, None
    message = f"{type(error).__name__}: {without_keys(str(error))}"
    calls.settle(key, request, tokens=0, outcome="failed", error=message)
    return JudgingError(message)


@scorer(metrics=[mean()])
def verdict() -> Scorer:
    """Scorer, for those who read Inspect's logs: 1 for a verdict in the form asked for, else 0."""

    async def score(state: TaskState, target: Target) -> Score:
        outcome, said = verdict_of(state.metadata["rubric"], state.output, levels=state.metadata["levels"])
        return Score(value=float(outcome == "valid"), answer=said, metadata={"outcome": outcome})

    return score


def verdict_of(rubric: str, output: ModelOutput, *, levels: str) -> Verdict:
    """Read a judge's output; its thoughts, which Inspect or the text itself keeps apart, are no part of the verdict."""
    if output.empty:  # it has no stop_reason either
        return Verdict("invalid")
    said = parse_verdict(rubric, output.completion, levels=levels)
    outcome = STOPPED.get(output.stop_reason, "valid" if said else "invalid")
    return Verdict(outcome, said if outcome == "valid" else None)
