"""Which share of a stage's work this process does: all of it, or one part of several side by side.

:mod:`lib.parts` says how a stage is split. The environment says which part this is, not a parameter, because a part
leaves the results what they are.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

VARIABLE = "COMPANION_PART"
"""Environment variable that names the part, such as ``2-of-4``."""

Item = TypeVar("Item")


class Part(NamedTuple):
    """Part ``number`` of ``of``, counted from 1."""

    number: int
    of: int


def current() -> Part | None:
    """Return which part this process is; None for the whole.

    Raises:
        ValueError: the variable is not like ``2-of-4``.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    number, _, of = text.partition("-of-")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ValueError(f"{VARIABLE} should be like 2-of-4, got {text!r}")
    return Part(int(number), int(of))


def share(items: Sequence[Item]) -> list[Item]:
    """Return this process's share of ``items``: every n-th one in a part, all of them in the whole."""
    part = current()
    return list(items) if part is None else list(items)[part.number - 1 :: part.of]
