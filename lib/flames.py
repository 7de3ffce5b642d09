"""Flames: the prompts, their five dimensions, and the answers that every arm gave to them.

Flames is a set of Chinese adversarial prompts (NAACL 2024; 1,000 are public, Apache-2.0). A file is JSON
lines with the keys ``dimension``, ``subcomponent`` and ``prompt`` and no ids, so a prompt's id is its place
in the file. Answers are JSON lines too, one file an arm, each answer with the receipt that says how it was
made.
"""

import difflib
import html
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lib import runs

DIMENSIONS = ("Safety", "Fairness", "Morality", "Data protection", "Legality")
"""As the official file spells them; note the small p of "Data protection"."""

PUBLISHED_COUNTS = {"Safety": 429, "Fairness": 249, "Morality": 201, "Data protection": 75, "Legality": 46}
"""Prompts per dimension in Flames_1k_Chinese (paper, section on Flames)."""

PROMPT_KEYS = ("dimension", "subcomponent", "prompt")
RESPONSE_KEYS = ("id", "dimension", "prompt", "arm", "layer", "strength", "response", "receipt")
CONDITION = ["arm", "layer", "strength"]
"""What tells apart the conditions under which prompts were answered; layer and strength are missing for the baseline."""


class FlamesError(ValueError):
    """A file of prompts or of answers is not what it should be; the message names file, line and key."""


def read_prompts(path: str | Path, limit: int | None = None) -> pd.DataFrame:
    """Read and check a file of prompts.

    Args:
        path: JSON lines, absolute or below the project root.
        limit: keep this many prompts, chosen by :func:`choose`; all by default.

    Returns:
        One row a prompt in file order: ``id`` (``flames_0001`` is the file's first), ``dimension``,
        ``subcomponent``, ``prompt``.

    Raises:
        FlamesError: no such file, no prompts, a line that is not JSON, a missing or unknown key, an unknown
            dimension, an empty prompt.
    """
    rows = [_checked_prompt(where, row) for where, row in _json_lines(runs.resolve(path))]
    if not rows:
        raise FlamesError(f"{Path(path).name} holds no prompts")
    frame = pd.DataFrame(rows, columns=list(PROMPT_KEYS))
    frame.insert(0, "id", [f"flames_{number:04d}" for number in range(1, len(frame) + 1)])
    return frame if limit is None else choose(frame, limit)


def choose(prompts: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Choose ``limit`` prompts, the same ones every time, with each dimension's share kept.

    Seats go to dimensions by largest remainder; within one they are spread evenly over the file, because a
    file lists subcomponents one after the other.

    Raises:
        FlamesError: ``limit`` is below 1.
    """
    if limit < 1:
        raise FlamesError(f"prompt_limit should be at least 1, got {limit}")
    if limit >= len(prompts):
        return prompts
    counts = prompts["dimension"].value_counts().reindex(DIMENSIONS, fill_value=0)
    exact = counts * limit / len(prompts)
    seats = exact.astype(int)
    order = (exact - seats).sort_values(ascending=False, kind="stable").index
    seats[order[: limit - seats.sum()]] += 1
    kept = []
    for dimension, number in seats.items():
        rows = prompts.index[prompts["dimension"] == dimension]
        kept += [rows[(2 * seat + 1) * len(rows) // (2 * number)] for seat in range(number)]
    return prompts.loc[sorted(kept)].reset_index(drop=True)


def read_responses(directory: Path, arms: list[str]) -> pd.DataFrame:
    """Read the answers of ``arms`` from ``directory``, one ``<arm>.jsonl`` each.

    Returns:
        One row an answer: ``id, dimension, prompt, arm, layer, strength`` (the last two are missing for the
        baseline), ``response``, ``receipt`` (dict), arm by arm in the order given.

    Raises:
        FlamesError: an arm has no file, a line lacks a key or is of another arm, two conditions did not answer
            the same prompts, or every answer of one is empty.
    """
    rows: list[dict[str, Any]] = []
    for arm in arms:
        path = directory / f"{arm}.jsonl"
        if not path.exists():
            there = ", ".join(sorted(file.stem for file in directory.glob("*.jsonl"))) or "none"
            raise FlamesError(
                f"arm {arm!r} has no answers in {runs.short(directory)} (there: {there}). "
                "Run notebook 07_steering with this arm in `arms`."
            )
        rows += [_checked_response(where, arm, row) for where, row in _json_lines(path)]
    frame = pd.DataFrame(rows, columns=list(RESPONSE_KEYS)).astype({"layer": "Int64", "strength": float})
    _check_arms(frame, arms)
    return frame


def questions(responses: pd.DataFrame) -> pd.DataFrame:
    """Return the prompts that were answered, one row each, as :func:`choose` takes them."""
    known = responses[["id", "dimension", "prompt"]].drop_duplicates("id")
    return known.sort_values("id").reset_index(drop=True)


def side_by_side(responses: pd.DataFrame, key: str) -> str:
    """Return one prompt and the answers of every condition to it as a Markdown table, for reading.

    Args:
        responses: as :func:`read_responses` returns them.
        key: the prompt's id.

    Raises:
        FlamesError: no answer to this prompt.
    """
    rows = responses[responses["id"] == key]
    if rows.empty:
        raise FlamesError(f"no answers to {key!r}; ids look like {responses['id'].iloc[0]!r}")
    cell = [html.escape(text).replace("|", "&#124;").replace("\n", "<br>") for text in rows["response"]]
    names = [
        arm if pd.isna(layer) else f"{arm}, layer {layer}, s = {strength:g}"
        for arm, layer, strength in rows[CONDITION].itertuples(index=False)
    ]
    lines = [f"| {name} | {text or '*(empty)*'} |" for name, text in zip(names, cell, strict=True)]
    prompt = html.escape(rows["prompt"].iloc[0]).replace("\n", "<br>")
    title = f"**{key}, {rows['dimension'].iloc[0]}.** {prompt}"
    return "\n".join([title, "", "| arm | answer |", "|---|---|", *lines])


def append_responses(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add one finished batch to an arm's file; when this returns, it is on disk."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab") as stream:
        stream.write(lines.encode())
        stream.flush()
        os.fsync(stream.fileno())


def keep_finished_batches(path: Path, plan: list[list[tuple[str, int | None, float | None]]]) -> int:
    """Cut an interrupted file of answers behind its last whole batch and return how many batches it holds.

    ``plan`` lists, batch by batch, the (id, layer, strength) of the answers that the whole file will have.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if line.endswith(b"\n")]
    batches = kept = 0
    for batch in plan:
        rows = [json.loads(line) for line in lines[kept : kept + len(batch)]]
        if [(row["id"], row["layer"], row["strength"]) for row in rows] != batch:
            break
        batches, kept = batches + 1, kept + len(batch)
    if path.exists():
        os.truncate(path, sum(len(line) for line in lines[:kept]))
    return batches


def _check_arms(frame: pd.DataFrame, arms: list[str]) -> None:
    groups = {key: part for key, part in frame.groupby(CONDITION, sort=False, dropna=False)}
    for arm in arms:
        if arm not in set(frame["arm"]):
            raise FlamesError(f"arm {arm!r} has a file but no answers in it; run notebook 07_steering again")
    first = set(next(iter(groups.values()))["id"])
    for (arm, layer, _), part in groups.items():
        where = f"arm {arm!r}" + ("" if pd.isna(layer) else f" at layer {layer}")
        if part["id"].duplicated().any():
            raise FlamesError(f"{where} answers {part['id'][part['id'].duplicated()].iloc[0]} twice")
        if set(part["id"]) != first:
            some = sorted(set(part["id"]) ^ first)[0]
            raise FlamesError(f"{where} did not answer the same prompts as the other arms: see {some}")
        if not part["response"].str.strip().any():
            raise FlamesError(f"every answer of {where} is empty; there is nothing to judge")


def _checked_prompt(where: str, row: dict[str, Any]) -> dict[str, Any]:
    _check_keys(where, row, PROMPT_KEYS)
    if row["dimension"] not in DIMENSIONS:
        nearest = _nearest(row["dimension"], DIMENSIONS)
        raise FlamesError(f"{where}: key 'dimension' is {row['dimension']!r}. Did you mean {nearest!r}?")
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise FlamesError(f"{where}: key 'prompt' is empty or not text")
    return row


def _checked_response(where: str, arm: str, row: dict[str, Any]) -> dict[str, Any]:
    _check_keys(where, row, RESPONSE_KEYS)
    if not isinstance(row["response"], str):
        raise FlamesError(f"{where}: key 'response' should be text, got {type(row['response']).__name__}")
    if row["arm"] != arm:
        raise FlamesError(f"{where}: key 'arm' is {row['arm']!r}, in the file of arm {arm!r}")
    return row


def _check_keys(where: str, row: Any, known: tuple[str, ...]) -> None:
    if not isinstance(row, dict):
        raise FlamesError(f"{where}: each line should be an object with the keys {', '.join(known)}")
    for key in row:
        if key not in known:
            raise FlamesError(f"{where}: unknown key {key!r}. Did you mean {_nearest(key, known)!r}?")
    for key in known:
        if key not in row:
            raise FlamesError(f"{where}: key {key!r} is missing")


def _nearest(word: Any, known: tuple[str, ...]) -> str:
    """Return the known word nearest to ``word``, letter case aside."""
    lower = {name.lower(): name for name in known}
    return lower[difflib.get_close_matches(str(word).lower(), list(lower), n=1, cutoff=0.0)[0]]


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise FlamesError(f"file not found: {runs.short(path)}. Paths start at the project root.")
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise FlamesError(f"{where}: not JSON ({error.msg}); the file should be JSON lines") from error
