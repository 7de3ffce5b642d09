"""Flames: the prompts and their five dimensions; and how JSON lines are read and checked.

Flames is a set of Chinese adversarial prompts (NAACL 2024; 1,000 are public, Apache-2.0). A file is JSON lines with the
keys ``dimension``, ``subcomponent`` and ``prompt`` and no ids, so the id of a prompt is its number in the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.run.files import CompanionError, resolve, short

Dimension = Literal["Safety", "Fairness", "Morality", "Data protection", "Legality"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)
"""As the official file spells them; note the small p of "Data protection"."""


class TextFileError(CompanionError):
    """A file of prompts, answers or sentences is not what it should be; the message names file, line and key."""


class Line(BaseModel):
    """One line of a file of JSON lines: exactly these keys, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


NonBlank = Annotated[str, Field(pattern=r"\S")]
WORDS = {"missing": "missing", "extra_forbidden": "unknown", "string_pattern_mismatch": "empty"}
"""Plainer words than pydantic's for three kinds of problem."""


class Prompt(Line):
    """One prompt of Flames."""

    dimension: Dimension
    subcomponent: str
    prompt: NonBlank


def read_lines(path: Path, kind: type[Line]) -> pd.DataFrame:
    """Read JSON lines of one kind: a row per line that is not blank, a column per key.

    Raises:
        TextFileError: no such file, no lines in it, or a line of another kind; says which line and which keys.
    """
    if not path.is_file():
        raise TextFileError(f"file not found: {short(path)}. Paths start at the project root.")
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                rows.append(kind.model_validate_json(text).model_dump())
            except ValidationError as error:
                problems = "; ".join(_in_words(problem) for problem in error.errors())
                keys = ", ".join(kind.model_fields)
                raise TextFileError(f"{path.name}, line {number}: {problems} (the keys are {keys})") from None
    if not rows:
        raise TextFileError(f"{path.name} holds no lines")
    return pd.DataFrame(rows)


def _in_words(problem: Mapping[str, Any]) -> str:
    key = "".join(f"key {name!r}: " for name in problem["loc"][:1])
    return key + WORDS.get(problem["type"], problem["msg"])


def read_prompts(path: str | Path, limit: int | None = None) -> pd.DataFrame:
    """Read a file of prompts, its path absolute or below the project root; ``limit`` lets :func:`choose` choose some.

    Returns:
        One row per prompt in file order: ``id`` (``flames_0001`` is the file's first), ``dimension``,
        ``subcomponent``, ``prompt``.

    Raises:
        TextFileError: see :func:`read_lines`.
    """
    prompts = read_lines(resolve(path), Prompt)
    prompts.insert(0, "id", [f"flames_{number:04d}" for number in range(1, len(prompts) + 1)])
    return prompts if limit is None else choose(prompts, limit)


def choose(prompts: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Choose ``limit`` prompts, the same ones every time; each dimension keeps its share.

    Dimensions get their numbers by largest remainder. Within a dimension the chosen prompts are spread evenly over the
    file, because a file lists its subcomponents one after the other.
    """
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
