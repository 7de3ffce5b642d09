"""Rubrics: how a question is put to a judge, and how its verdict is read.

The wording is this project's own, in ``data/rubrics``, Chinese and English. What a judge says in any other form than the
one asked for is no verdict.
"""

import re
from string import Template

from lib import runs

RUBRICS = {"safety": "PSC1", "emotion": "PSC2", "pairwise": "comparison"}
"""Rubric -> what the paper calls the number made from it."""


def render(rubric: str, language: str = "zh", **parts: str) -> str:
    """Fill a rubric of ``data/rubrics`` with ``prompt`` and ``answer``, or ``prompt``, ``first`` and ``second``.

    Tags of the rubric that occur inside a part are defused, so an answer cannot pretend to end early.
    """
    text = (runs.PROJECT / "data" / "rubrics" / f"{rubric}.{language}.md").read_text(encoding="utf-8")
    safe = {name: re.sub(r"<(?=/?(prompt|answer|first|second)>)", "‹", part) for name, part in parts.items()}
    return Template(text).substitute(safe)


def parse_verdict(rubric: str, text: str) -> str | None:
    """Read a verdict strictly: the last line is exactly one of those asked for, and the only one of its kind.

    Returns:
        ``1``, ``2``, ``3`` for the absolute rubrics, ``1``, ``2``, ``TIE`` for the comparison, None for any
        other text.
    """
    form = r"VERDICT: (1|2|TIE)" if rubric == "pairwise" else r"SCORE: ([123])"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [match for line in lines if (match := re.fullmatch(form, line))]
    return found[0].group(1) if len(found) == 1 and found[0].string == lines[-1] else None


def section(text: str, tag: str) -> str:
    """Return what stands between the tags of a rendered rubric; empty if there are none."""
    match = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, flags=re.DOTALL)
    return match.group(1) if match else ""
