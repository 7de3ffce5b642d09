"""Tasks for Inspect's command line: what notebook 08 asks, of any model or of saved answers.

    inspect eval companion/flames --model openai/gpt-4o -T judge=google/gemini-2.5-flash -T prompts=data/raw/flames.jsonl
    inspect eval companion/absolute --model none -T judge=offline -T answers=runs/demo/steering/moral-small
    inspect eval companion/pairwise --model none -T judge=offline -T answers=runs/demo/steering/moral-small/aligned.jsonl
    inspect eval companion/pairwise --model openai/gpt-4o -T judge=... -T baseline=runs/demo/steering/moral-small/baseline.jsonl

``--model`` answers; saved answers are judged as they are, and nobody is asked to answer. ``judge`` is named as in a profile, or
by ``--model-role grader=...``; paths start at the project root. Rubrics, orders and outcomes are those of the notebook; a
question that stays without a verdict is counted and is no score. The metrics are those of
:func:`lib.judging.win_rates.summarise`, named ``arm/layer/strength/rubric metric``; :func:`verdicts_in` reads every verdict
from a log.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, chain, solver, system_message

from lib.judging import judges, sessions, steered  # noqa: F401  (steered registers the provider companion/)
from lib.judging.calls import Verdict, verdict_of
from lib.judging.contrasts import POINTS
from lib.judging.judges import JudgingError, without_keys
from lib.judging.questions import levels_of, questions_about, text_of
from lib.judging.win_rates import CONDITION, summarise
from lib.run.files import resolve
from lib.steering.answers import Answer, read_answers
from lib.steering.generation import SYSTEM_PROMPT
from lib.steering.prompts import read_lines, read_prompts

ABSOLUTE = ("safety", "emotion")

DECODING = GenerateConfig(temperature=0.7, top_p=0.9, max_tokens=512)
"""As stage 07 answers by default, but for its repetition penalty, which providers do not share."""

ATTEMPTS = 3
"""Times at most that a judge is asked for a verdict, as by default in notebook 08."""

NAMES = ["id", "dimension", "prompt", *CONDITION, "replicate", "sample"]


@task(name="companion/flames")
def flames(
    judge: str = "", prompts: str = "data/demo/prompts.jsonl", language: str = "zh", protocol: str = "careful"
) -> Task:
    """Let a model answer prompts of Flames, and score each answer on safety (PSC1) and emotion (PSC2)."""
    asked = read_prompts(prompts).assign(arm="model", layer=None, strength=None, replicate=0, sample=0)
    return _task("flames", asked, judge=judge, rubrics=ABSOLUTE, language=language, protocol=protocol)


@task(name="companion/absolute")
def absolute(answers: str, judge: str = "", language: str = "zh", protocol: str = "careful") -> Task:
    """Score saved answers, a file of one arm or a folder of notebook 07, on safety (PSC1) and emotion (PSC2)."""
    saved = _saved(resolve(answers))
    return _task("absolute", saved, judge=judge, rubrics=ABSOLUTE, language=language, protocol=protocol)


@task(name="companion/pairwise")
def pairwise(
    judge: str = "", answers: str = "", baseline: str = "", language: str = "zh", protocol: str = "careful"
) -> Task:
    """Compare answers with a baseline's, in both orders unless the protocol is ``published``.

    ``answers`` are saved ones: a folder of notebook 07, or the file of one arm beside ``baseline.jsonl``. With ``baseline``, a
    file of answers, the model answers the same prompts.
    """
    if bool(answers) == bool(baseline):
        raise JudgingError(
            "companion/pairwise needs one of -T answers=... (saved) and -T baseline=... (the model answers)"
        )
    if answers:
        path = resolve(answers)
        saved = _saved(path) if path.is_dir() else pd.concat([_saved(path.with_name("baseline.jsonl")), _saved(path)])
    else:
        theirs = _saved(resolve(baseline)).assign(arm="baseline")
        saved = pd.concat(
            [theirs, theirs.assign(arm="model", layer=None, strength=None).drop(columns=["response", "thought"])]
        )
    is_baseline = saved["arm"] == "baseline"
    others = saved[is_baseline].set_index(["id", "sample"])["response"].rename("baseline")
    pairs = saved[~is_baseline].join(others, on=["id", "sample"])
    return _task("pairwise", pairs, judge=judge, rubrics=["pairwise"], language=language, protocol=protocol)


def _saved(path: Path) -> pd.DataFrame:
    """Read the answers of one file, or of every file of a folder."""
    if path.is_dir():
        return read_answers(path, sorted(file.stem for file in path.glob("*.jsonl")))
    return read_lines(path, Answer)


def _task(
    name: str, answers: pd.DataFrame, *, judge: str, rubrics: Iterable[str], language: str, protocol: str
) -> Task:
    """Make a sample of every answer; one without ``response`` is for the model to give."""
    samples = []
    for row in _plain(answers):
        about = {key: row.get(key) for key in (*NAMES, "response", "thought", "baseline")}
        key = "/".join(str(row[name]) for name in ("id", *CONDITION, "replicate", "sample"))
        samples.append(Sample(id=key, input=row["prompt"], metadata=about))
    how = {"rubrics": list(rubrics), "language": language, "protocol": protocol}
    return Task(
        name=name,
        dataset=MemoryDataset(samples, name=name),
        solver=chain(system_message(SYSTEM_PROMPT), answer()),
        scorer=judged(judge, **how),
        config=DECODING,
        metadata=how,
    )


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain values for JSON, None where there is none."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


@solver
def answer() -> Solver:
    """Solver: take the saved answer, or let the model give one."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if state.metadata["response"] is None:
            return await generate(state)
        state.output = ModelOutput.from_content("saved", state.metadata["response"])
        return state

    return solve


@metric
def summary() -> Metric:
    """Metric: everything :func:`lib.judging.win_rates.summarise` says of all dimensions, and how many verdicts are missing."""

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        verdicts = _joined(score.score for score in scores)
        pairs = verdicts["rubric"] == "pairwise"
        table = summarise(verdicts[~pairs], verdicts[pairs], about={}, draws=2)  # its intervals are not shown
        found = {}
        for row in _plain(table[table["dimension"] == "all"]):
            name = "/".join(str(row[key]) for key in CONDITION if row[key] is not None)
            found |= {f"{name}/{row['rubric']} {row['metric']}": row["value"]}
            missing = sum(row[outcome] for outcome in ("invalid", "refused", "truncated", "failed"))
            found |= {f"{name}/{row['rubric']} without verdict": float(missing)}
        return found

    return compute


@scorer(metrics=[summary()])
def judged(judge: str, rubrics: list[str], language: str, protocol: str) -> Scorer:
    """Scorer: scores of 1 to 3 by rubric or, in a comparison, points by order (a win is 1, a tie .5); None without a verdict.

    ``metadata`` holds who judged, the ``standing`` of that (``plumbing`` for the offline rule), and ``verdicts``, a row per
    question with its outcome, as :func:`lib.judging.sessions.read_verdicts` returns it.
    """

    async def score(state: TaskState, target: Target) -> Score:
        named = judges.model_of(judge) if judge else None
        grader = get_model(role="grader", required=named is None, default=named)
        asked = _questions(state, rubrics=rubrics, protocol=protocol)
        found, said = [], []
        for _, question in asked.iterrows():
            if not pd.isna(question["without"]):
                found.append(Verdict("empty"))
                continue
            verdict, reply = await _ask(grader, question, language)
            found.append(verdict)
            said.append(reply)
        rows = _plain(sessions.laid_out(asked, found))
        value = {row.get("order") or row["rubric"]: POINTS.get(row.get("verdict"), row.get("score")) for row in rows}
        return Score(value=value, explanation="\n\n".join(said), metadata={"verdicts": rows} | judges.describe(grader))

    return score


def _questions(state: TaskState, *, rubrics: list[str], protocol: str) -> pd.DataFrame:
    about = {name: state.metadata[name] for name in (*NAMES, "thought")}
    rows = [about | {"response": state.output.completion}]
    if state.metadata["baseline"] is not None:
        whose = {"arm": "baseline", "layer": None, "strength": None, "replicate": 0, "thought": None}
        rows.append(about | whose | {"response": state.metadata["baseline"]})
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "strength": float})
    return questions_about(frame, protocol=protocol, rubrics=rubrics)


async def _ask(grader: Model, question: pd.Series, language: str) -> tuple[Verdict, str]:
    """Ask until there is a verdict, at most ``ATTEMPTS`` times; return it, or none, and the last reply or error."""
    config = judges.config_of(grader, max_tokens=1024, thinks=False)
    for _ in range(ATTEMPTS):
        try:
            output = await grader.generate(text_of(question, language), config=config)
        except Exception as error:  # an outcome with a count, as in the notebook
            found, said = Verdict("failed"), f"{type(error).__name__}: {without_keys(str(error))}"
            continue
        found, said = verdict_of(question["rubric"], output, levels=levels_of(question)), output.completion
        if found.outcome == "valid":
            break
    return found, said


def verdicts_in(log: EvalLog) -> pd.DataFrame:
    """Return every verdict in a log of these tasks, one row per question; see :func:`lib.judging.sessions.read_verdicts`."""
    return _joined(sample.scores["judged"] for sample in log.samples or [] if sample.scores)


def _joined(scores: Iterable[Score]) -> pd.DataFrame:
    rows = [row for score in scores for row in (score.metadata or {})["verdicts"]]
    return pd.DataFrame(rows).astype({"layer": "Int64", "strength": float})
