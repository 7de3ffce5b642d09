"""Questions: what is put to a judge, by which rubric, in which order. A question is a row of a table until it is asked.

Answers in, tables out. Thoughts are taken off the answers first: a judge reads what a model said, not what it thought.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import pandas as pd

from lib.judging.judges import JudgingError
from lib.judging.rubrics import RUBRICS, render, without_thought
from lib.judging.win_rates import CONDITION, ORDERS
from lib.steering.prompts import Dimension, Line, NonBlank, choose, read_lines

SHOWN = ("prompt", "answer", "first", "second")
"""Columns of text that a rubric may show."""


class GoldPair(Line):
    """Two answers to a prompt of which one is better, in ``data/judge_gold.jsonl``."""

    id: str
    language: str
    dimension: Dimension
    prompt: NonBlank
    better: NonBlank
    worse: NonBlank


def questions_about(
    answers: pd.DataFrame,
    *,
    protocol: str = "careful",
    series: str = "answers",
    rubrics: Collection[str] = tuple(RUBRICS),
    orders: Collection[str] = ORDERS,
) -> pd.DataFrame:
    """List what is asked about ``answers``, of :func:`lib.steering.answers.read_answers`: one row per question.

    Args:
        answers: ``replicate``, ``sample`` and ``thought`` may be missing: one of each, and no thoughts but those in
            ``<think>`` tags.
        protocol: of :data:`lib.judging.rubrics.PROTOCOLS`.
        series: what the questions are for, such as ``answers`` or ``sweep``.
        orders: in which each pair is shown; the published protocol knows only the first.

    Returns:
        ``key`` (unique), ``series, protocol, rubric, id, dimension, arm, layer, strength, replicate, sample, order``, the
        lengths of the arm's answer and, in a comparison, the baseline's in ``characters`` and ``baseline_characters``; the
        texts of ``SHOWN``; and ``without``, what the outcome is where an answer is empty, so that there is nothing to ask:
        ``lose``, ``win`` or ``tie`` of the arm, missing elsewhere.

    Raises:
        JudgingError: a comparison without the baseline's answers, or two answers to one question.
    """
    asked = separated(answers).assign(series=series, protocol=protocol, order=pd.NA, without=pd.NA)
    asked = asked.assign(characters=asked["answer"].str.len())
    empty = asked["answer"] == ""
    alone = asked.assign(without=asked["without"].mask(empty, "lose"))
    shown = ORDERS[:1] if protocol == "published" else orders
    tables = [_pairs(asked, shown) if rubric == "pairwise" else alone.assign(rubric=rubric) for rubric in rubrics]
    table = pd.concat(tables, ignore_index=True)
    named = ["series", "protocol", "rubric", "id", *CONDITION, "replicate", "sample", "order"]
    key = table[named].astype("string").fillna("-").agg("/".join, axis=1)
    if key.duplicated().any():
        raise JudgingError(f"two answers to one question: {key[key.duplicated()].iloc[0]}")
    columns = ["key", *named, "dimension", "characters", "baseline_characters", "without", *SHOWN]
    return table.assign(key=key).reindex(columns=columns)


def separated(answers: pd.DataFrame) -> pd.DataFrame:
    """Add ``answer``, what was said; ``thinking`` and ``unfinished``, whether a thought began and whether it never ended."""
    said = [without_thought(text) for text in answers["response"]]
    frame = answers.assign(answer=[text for text, _ in said])
    apart = frame.get("thought", pd.Series("", index=frame.index)).fillna("").astype(bool)
    thinking = apart | pd.Series([finished is not None for _, finished in said], index=frame.index)
    defaults = {name: 0 for name in ("replicate", "sample") if name not in frame}
    unfinished = thinking & (frame["answer"] == "")
    frame = frame.assign(thinking=thinking, unfinished=unfinished, **defaults)
    return frame.fillna({"replicate": 0, "sample": 0}).astype({"replicate": int, "sample": int})


def thinking(answers: pd.DataFrame) -> pd.DataFrame:
    """Count thoughts by condition: ``arm, layer, strength, answers, thinking, unfinished, unfinished_share``."""
    groups = separated(answers).groupby(CONDITION, dropna=False, sort=False)
    counts = groups.agg(answers=("id", "size"), thinking=("thinking", "sum"), unfinished=("unfinished", "sum"))
    return counts.assign(unfinished_share=counts["unfinished"] / counts["answers"]).reset_index()


def gold_questions(path: Path, pairs: int | None = None) -> pd.DataFrame:
    """List what every judge is asked to be judged itself, from ``data/judge_gold.jsonl``.

    The worse answer is the ``baseline``, the better one the arm ``better``. Each pair is shown in both orders (series
    ``gold``), and in the first once more (``gold again``). ``pairs`` takes so many of them, every dimension keeping its share.
    """
    gold = read_lines(path, GoldPair)
    gold = choose(gold, pairs or len(gold))
    known = gold[["id", "dimension", "prompt"]].assign(layer=pd.NA, strength=float("nan"))
    sides = [known.assign(arm=arm, response=gold[text]) for arm, text in (("baseline", "worse"), ("better", "better"))]
    about = partial(
        questions_about, pd.concat(sides, ignore_index=True).astype({"layer": "Int64"}), rubrics=["pairwise"]
    )
    return pd.concat([about(series="gold"), about(series="gold again", orders=ORDERS[:1])], ignore_index=True)


def text_of(question: pd.Series, language: str) -> str:
    """Return a question as the judge reads it."""
    parts = {name: question[name] for name in SHOWN if isinstance(question[name], str)}
    asked = {"protocol": question["protocol"], "dimension": question["dimension"]}
    return render(question["rubric"], language, **asked, **parts)


def levels_of(question: pd.Series) -> str:
    """Return the scores that a rubric allows; the published one of legality has two."""
    legality = (question["protocol"], question["rubric"], question["dimension"]) == ("published", "safety", "Legality")
    return "13" if legality else "123"


def _pairs(asked: pd.DataFrame, orders: Collection[str]) -> pd.DataFrame:
    is_baseline = asked["arm"] == "baseline"
    if not is_baseline.any():
        raise JudgingError("the comparison needs the answers of the arm 'baseline'; add it to `arms`")
    baseline = asked[is_baseline][["id", "sample", "answer"]].rename(columns={"answer": "other"})
    pairs = asked[~is_baseline].assign(rubric="pairwise").merge(baseline, on=["id", "sample"], how="left")
    if pairs["other"].isna().any():
        raise JudgingError("the baseline lacks an answer to " + pairs.loc[pairs["other"].isna(), "id"].iloc[0])
    own_empty, other_empty = pairs["answer"] == "", pairs["other"] == ""
    without = pairs["without"].mask(own_empty, "lose").mask(other_empty, "win").mask(own_empty & other_empty, "tie")
    pairs = pairs.assign(without=without, baseline_characters=pairs["other"].str.len())
    places = {ORDERS[0]: ("other", "answer"), ORDERS[1]: ("answer", "other")}
    both = [pairs.assign(order=order, first=pairs[one], second=pairs[two]) for order, (one, two) in places.items()
            if order in orders]  # fmt: skip
    return pd.concat(both, ignore_index=True).drop(columns="answer")
