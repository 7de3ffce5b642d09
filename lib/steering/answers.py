"""The files of answers: what a line of one says, how they are read, and how one prompt's answers are shown to a reader.

A file ``<arm>.jsonl`` holds the answers of one arm as JSON lines, each with the receipt that says how it was made. What judges
answers or counts them needs no model and none of its packages; :mod:`lib.steering.answering` makes them.
"""

import html
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lib.run.files import short
from lib.steering.prompts import Line, TextFileError, read_lines

CONDITION = ["arm", "layer", "strength"]
"""Columns that tell apart the conditions under which prompts were answered. The baseline has no layer and no strength; an
arm without a layer has several at once, as its receipts say."""

DRAWS = ["replicate", "sample"]
"""Columns that tell apart the answers of one condition to one prompt: the draw of the arm, and the draw of the answer."""


class Answer(Line):
    """One line of a file of answers.

    The baseline has no layer and no strength; no ``layer`` in another arm means several at once, which the receipt names.
    ``response`` is what a reader sees, empty where there is nothing to see; ``thought`` what the model wrote before it, None
    where it did not think. ``finished`` is false where the limit of tokens cut the answer or a thought was never closed.
    Answers of another program, to be judged like these, may leave out what has a default.
    """

    id: str
    dimension: str
    prompt: str
    protocol: Literal["careful", "published"] = "careful"
    arm: str
    layer: int | None
    strength: float | None
    replicate: int = 0
    sample: int = 0
    response: str
    thought: str | None = None
    finished: bool = True
    receipt: dict[str, Any]


def read_answers(directory: Path, arms: Collection[str]) -> pd.DataFrame:
    """Read the answers of ``arms`` from ``directory``, one ``<arm>.jsonl`` each.

    Returns:
        One row per answer, arm by arm in the order given; columns as the keys of :class:`Answer`.

    Raises:
        TextFileError: an arm has no answers, a line lacks a key or is of another arm, or two conditions, replicates or
            samples did not answer the same prompts. An empty answer is an answer.
    """
    there = sorted(file.stem for file in directory.glob("*.jsonl") if file.stat().st_size)
    if missing := [arm for arm in arms if arm not in there]:
        raise TextFileError(
            f"arm {missing[0]!r} has no answers in {short(directory)} (there: {', '.join(there) or 'none'}). "
            "Run notebook 07_steering with this arm in `arms`."
        )
    of_arm = {arm: read_lines(directory / f"{arm}.jsonl", Answer) for arm in arms}
    for arm, frame in of_arm.items():
        if strangers := set(frame["arm"]) - {arm}:
            raise TextFileError(f"{arm}.jsonl holds answers of arm {min(strangers)!r}")
    answers = pd.concat(of_arm.values(), ignore_index=True).astype({"layer": "Int64", "strength": float})
    for _, part in answers.groupby([*CONDITION, *DRAWS], sort=False, dropna=False):
        name, ids = _name(part.iloc[0]), part["id"]
        if ids.duplicated().any():
            raise TextFileError(f"{name} answers {ids[ids.duplicated()].iloc[0]} twice")
        if others := set(answers["id"]) - set(ids):
            raise TextFileError(f"{name} did not answer {min(others)}, which another condition did")
    return answers


def side_by_side(answers: pd.DataFrame, key: str) -> str:
    """Return the prompt with the id ``key`` and the answers of every condition to it as a Markdown table, for reading.

    Raises:
        TextFileError: no answer to this prompt.
    """
    rows = answers[answers["id"] == key]
    if rows.empty:
        raise TextFileError(f"no answers to {key!r}; ids look like {answers['id'].iloc[0]!r}")
    cells = [html.escape(text).replace("|", "&#124;").replace("\n", "<br>") for text in rows["response"]]
    names = [_name(row) for _, row in rows.iterrows()]
    lines = [f"| {name} | {text or '*(empty)*'} |" for name, text in zip(names, cells, strict=True)]
    prompt = html.escape(rows["prompt"].iloc[0]).replace("\n", "<br>")
    title = f"**{key}, {rows['dimension'].iloc[0]}.** {prompt}"
    return "\n".join([title, "", "| arm | answer |", "|---|---|", *lines])


def _name(row: pd.Series) -> str:
    parts = [row["arm"]]
    if not pd.isna(row["strength"]):
        where = "several layers" if pd.isna(row["layer"]) else f"layer {row['layer']}"
        parts += [where, f"s = {row['strength']:g}"]
    parts += [f"{draw} {row[draw]}" for draw in DRAWS if row[draw]]
    return ", ".join(parts)
