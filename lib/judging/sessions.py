"""Sessions: which questions are put to which judge, what that is estimated to cost, asking, and reading the verdicts.

Everything runs through Inspect (inspect-ai). A judge that fails, refuses, runs out of tokens or answers in another form than the
one asked for has not given a verdict: it is asked again, and what stays without one is an outcome with a count, never a score.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import inspect_ai
import pandas as pd
from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import Model
from IPython.utils.capture import capture_output
from tqdm.auto import tqdm

from lib.judging import calls as record
from lib.judging import judges
from lib.judging.calls import REPLY_TOKENS, Calls, Verdict, tokens_of
from lib.judging.judges import JudgingError
from lib.judging.questions import SHOWN, gold_questions, levels_of, questions_about, text_of
from lib.judging.win_rates import ORDERS
from lib.run.files import short
from lib.run.parameters import JudgingKeys
from lib.steering.answers import read_answers
from lib.steering.prompts import choose

CHUNK = 2000
"""Questions of one rubric that make a log of Inspect's, so that memory does not grow with the number of questions."""


@dataclass(frozen=True)
class Session:
    """What one judge is asked.

    Attributes:
        questions: as :mod:`lib.judging.questions` lists them.
        judge: ``offline``; ``hf/`` and a directory, GGUF file or hub id; a name that Inspect knows such as
            ``google/gemini-2.5-flash``, keys being taken from the environment; or a model of Inspect.
        log_dir: the judge's own log root: the record of its calls, and what ``inspect view --log-dir`` shows.
        parameters: how it is asked: language of the rubrics, budget, form of a reply, and what is done where no verdict comes.
    """

    questions: pd.DataFrame
    judge: str | Model
    log_dir: Path
    parameters: JudgingKeys

    @property
    def to_ask(self) -> pd.DataFrame:
        """The questions that a judge can answer: neither answer is empty."""
        return self.questions[self.questions["without"].isna()]


def plan_sessions(parameters: JudgingKeys, *, steering: Path, gold: Path, logs: Path) -> dict[str, Session]:
    """List who judges what: the judge everything, the second judge some prompts, both what they are judged by.

    The judge is asked by the careful protocol about all answers and the comparisons of the sweep, and by the published one
    about the arms that it is for. ``steering`` is the directory of notebook 07, ``gold`` the file of pairs with a known better
    answer; the logs go below ``logs``, one folder a judge.
    """
    answers = read_answers(steering, parameters.arms)
    answers = answers[answers["layer"].isna() | answers["layer"].isin(parameters.layers)]
    known = gold_questions(gold, parameters.gold_pairs)
    careful = questions_about(answers)
    asked = [known, careful]
    as_published = answers[answers["arm"].isin(parameters.published_arms)]
    if len(as_published):
        asked.append(questions_about(as_published, protocol="published"))
    if (steering / "sweep").exists():
        swept = read_answers(steering / "sweep", parameters.sweep_arms)
        asked.append(questions_about(swept, series="sweep", rubrics=["pairwise"]))
    everything = _keyed(pd.concat(asked, ignore_index=True), parameters.judge, parameters)
    listed = {"judge": Session(everything, parameters.judge, logs / "judge", parameters)}
    if parameters.second_judge:
        prompts = answers.drop_duplicates("id").sort_values("id", ignore_index=True)
        seen = choose(prompts, parameters.second_judge_prompts or len(prompts))["id"]
        some = pd.concat([known, careful[careful["id"].isin(seen)]], ignore_index=True)
        some = _keyed(some, parameters.second_judge, parameters)
        listed["second judge"] = Session(some, parameters.second_judge, logs / "second", parameters)
    return listed


def _keyed(questions: pd.DataFrame, judge: str, parameters: JudgingKeys) -> pd.DataFrame:
    """Add to each key a hash of who is asked what: a kept record answers the same question and no other."""
    # What is not said adds nothing, so that verdicts from before there was a dtype or a version keep their keys.
    reply = (parameters.judge_reply_tokens, parameters.judge_thinks, parameters.judge_dtype)
    said = (judge, *reply, judges.version_of(judge))
    how = "".join(f"{part} " for part in said if part is not None)
    texts = (how + text_of(row, parameters.rubric_language) for row in _rows(questions))
    marks = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts]
    return questions.assign(key=questions["key"] + "/" + marks)


def estimate(session: Session) -> pd.DataFrame:
    """Estimate what a judge will be asked, before the first call.

    Returns:
        One row per series, protocol and rubric: ``series, protocol, rubric, calls, input_tokens, output_tokens``. Tokens
        are estimated from characters, see :func:`lib.judging.calls.tokens_of`, and 80 per reply; a judge that thinks before
        it answers writes more, and so does one that must be asked again.
    """
    return _estimated(session.to_ask, session.parameters.rubric_language)


def _estimated(asked: pd.DataFrame, language: str) -> pd.DataFrame:
    rows = []
    for group, part in asked.groupby(["series", "protocol", "rubric"], sort=False):
        rows.append((*group, len(part), _tokens(part, language), REPLY_TOKENS * len(part)))
    columns = ["series", "protocol", "rubric", "calls", "input_tokens", "output_tokens"]
    return pd.DataFrame(rows, columns=columns)


def _tokens(part: pd.DataFrame, language: str) -> int:
    blank = part.iloc[0].where(~part.columns.isin(SHOWN) | part.iloc[0].isna(), "")
    texts = part[list(SHOWN)].fillna("").sum(axis=1)
    return len(part) * tokens_of(text_of(blank, language)) + int(texts.map(tokens_of).sum())


# ------------------------------------------------------------------------------ asking and reading


def judge(session: Session) -> None:
    """Put the questions to a judge through Inspect; the record and the logs go to ``log_dir``.

    A session that was interrupted goes on where it stopped, and so does one that has used up its budget, once the budget
    is raised: what has a verdict is not asked again.

    Raises:
        JudgingError: the estimate exceeds the budget (nobody was asked), the budget was used up, or too many questions stay
            without a verdict. Nothing that came back is lost.
    """
    asked, parameters = session.to_ask, session.parameters
    allowed = int(parameters.max_failed_share * len(asked))
    with Calls(session.log_dir, max_calls=parameters.judge_calls, max_tokens=parameters.judge_tokens) as calls:
        pending = _pending(session, calls)
        estimated = _estimated(pending, parameters.rubric_language)
        calls.refuse(len(pending), int(estimated[["input_tokens", "output_tokens"]].sum().sum()))
        with tqdm(total=len(pending), desc=judges.describe(session.judge)["judge"], unit="question") as calls.bar:
            for _ in range(1 + parameters.judge_retries):
                _ask_once(session, pending, calls, allowed)
                pending = _pending(session, calls)
                calls.bar.total = calls.bar.n + len(pending)
        without = _without_verdict(asked, calls)
        if len(without) > allowed:
            raise JudgingError(_too_many(session, without, calls))


def _pending(session: Session, calls: Calls) -> pd.DataFrame:
    """Return the questions that may still get a verdict; a judge that says the same again is asked again after errors only."""
    asked, same_again = session.to_ask, judges.is_deterministic(session.judge)
    settled = {
        key
        for key, verdict in calls.verdicts.items()
        if verdict.outcome == "valid" or (same_again and verdict.outcome != "failed")
    }
    return asked[~asked["key"].isin(settled)]


def _without_verdict(asked: pd.DataFrame, calls: Calls) -> pd.DataFrame:
    valid = {key for key, verdict in calls.verdicts.items() if verdict.outcome == "valid"}
    return asked[~asked["key"].isin(valid)]


def _ask_once(session: Session, pending: pd.DataFrame, calls: Calls, allowed: int) -> None:
    for _, part in pending.groupby(["protocol", "rubric"], sort=False):
        for start in range(0, len(part), CHUNK):
            some = part.iloc[start : start + CHUNK]
            _evaluate(session, some, calls)
            if calls.refused:
                left = len(_without_verdict(session.to_ask, calls))
                raise JudgingError(
                    f"the budget was used up after {calls.calls:,} calls and {calls.tokens:,} tokens; {left} questions "
                    "have no verdict. Raise `judge_calls` or `judge_tokens` and run again: nothing is asked twice."
                )
            if len(some) > allowed and len(_without_verdict(some, calls)) == len(some):
                raise JudgingError(_too_many(session, some, calls))


def _too_many(session: Session, pending: pd.DataFrame, calls: Calls) -> str:
    found = pd.Series([calls.verdicts.get(key, Verdict("not asked")).outcome for key in pending["key"]]).value_counts()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in found.items())
    last = f" The last error: {calls.error[:300]}" if calls.error else ""
    kept = f"every verdict so far is kept in {short(session.log_dir)}"
    if judges.is_deterministic(session.judge) and not {"failed", "not asked"} & set(found.index):
        then = f"This judge would say the same again ({kept}): take another, or raise `judge_reply_tokens` if it was cut off."
    else:
        then = f"Run again to ask those alone: {kept}."
    return (
        f"{len(pending)} of {len(session.to_ask)} questions have no verdict ({counts}), more than "
        f"`max_failed_share` = {session.parameters.max_failed_share:g} allows.{last} {then} "
        "Or raise `max_failed_share`: what has no verdict is counted."
    )


def _evaluate(session: Session, some: pd.DataFrame, calls: Calls) -> None:
    parameters, first = session.parameters, some.iloc[0]
    samples = [
        Sample(
            id=row["key"],
            input=text_of(row, parameters.rubric_language),
            metadata={"rubric": row["rubric"], "levels": levels_of(row)},
        )
        for row in _rows(some)
    ]
    task = Task(
        name=f"{first['protocol']}-{first['rubric']}",
        dataset=MemoryDataset(samples),
        solver=record.ask(calls),
        scorer=record.verdict(),
        config=judges.config_of(
            session.judge, max_tokens=parameters.judge_reply_tokens, thinks=parameters.judge_thinks
        ),
    )
    # "none" leaves an empty widget in a notebook. "log" at this level shows only a line with the directory's full name.
    with capture_output(stderr=False):
        inspect_ai.eval(
            task,
            model=judges.model_of(session.judge, thinks=parameters.judge_thinks, dtype=parameters.judge_dtype),
            log_dir=str(session.log_dir),
            log_header_only=True,
            log_realtime=False,
            display="log",
            log_level="critical",
            score_display=False,
            ctl_server=False,
            fail_on_error=False,
        )


def _rows(frame: pd.DataFrame) -> Iterator[pd.Series]:
    return (row for _, row in frame.iterrows())


def read_verdicts(session: Session, *rubrics: str, series: str = "answers", protocol: str = "careful") -> pd.DataFrame:
    """Read the verdicts on the questions of one series and protocol, and of some rubrics only if any are named.

    Returns:
        One row per question, also those without a verdict: the columns of :func:`lib.judging.questions.questions_about`
        without key and texts, and ``outcome``, one of :data:`lib.judging.win_rates.OUTCOMES`. For the absolute rubrics
        ``score``: 1 to 3, and 1 for an answer that is empty or that the judge's provider refuses to read. For the comparison
        ``chosen`` (first, second, tie: where the preferred answer stood; missing where the judge said nothing) and
        ``verdict`` (win, tie, lose: of the arm against the baseline); an empty answer loses, and where no verdict came the
        published protocol has a tie. Elsewhere all three are missing.

    Raises:
        JudgingError: the record lacks a question that should have been asked.
    """
    asked = session.questions.query("series == @series and protocol == @protocol")
    asked = asked[asked["rubric"].isin(rubrics or asked["rubric"])].reset_index(drop=True)
    calls = Calls(session.log_dir)
    calls.read()
    nothing_to_ask = asked["without"].notna()
    if missing := set(asked.loc[~nothing_to_ask, "key"]) - calls.verdicts.keys():
        raise JudgingError(f"{len(missing)} questions have not been asked, such as {min(missing)}; judge again")
    found = [calls.verdicts.get(key, Verdict("empty")) for key in asked["key"].mask(nothing_to_ask)]
    return laid_out(asked, found)


def laid_out(asked: pd.DataFrame, found: list[Verdict]) -> pd.DataFrame:
    """Lay out what came of each question as :func:`read_verdicts` returns it; the questions are numbered from 0."""
    said = pd.Series([verdict.said for verdict in found], index=asked.index, dtype=object)
    frame = asked.drop(columns=["key", *SHOWN]).assign(outcome=[verdict.outcome for verdict in found])
    tables = []
    for name, given in (("pairwise", _with_preferences), ("absolute", _with_scores)):
        rows = (frame["rubric"] == "pairwise") == (name == "pairwise")
        if rows.any():
            tables.append(given(frame[rows], said[rows]))
    return pd.concat(tables or [frame], ignore_index=True).drop(columns="without")


def _with_scores(frame: pd.DataFrame, said: pd.Series) -> pd.DataFrame:
    worst = frame["outcome"].isin(["empty", "refused"])
    score = pd.to_numeric(said).mask(worst, 1).astype("Int64")
    return frame.drop(columns=["order", "baseline_characters"]).assign(score=score)


def _with_preferences(frame: pd.DataFrame, said: pd.Series) -> pd.DataFrame:
    chosen = said.map({"1": "first", "2": "second", "TIE": "tie"})
    won = (chosen == "first") == (frame["order"] == ORDERS[1])
    verdict = chosen.mask(chosen.isin(["first", "second"]), won.map({True: "win", False: "lose"}))
    verdict = verdict.fillna(frame["without"])
    no_verdict = verdict.isna() & (frame["protocol"] == "published")
    return frame.assign(chosen=chosen, verdict=verdict.mask(no_verdict, "tie"))
