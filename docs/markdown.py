"""Tables as Markdown, for the book, the README and the findings."""

from collections.abc import Iterable
from typing import Any


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table; cells are Markdown, in which a bar and an angle bracket mean themselves."""
    header = list(header)
    cells = [[str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    lines = [" | ".join(row) for row in [header, *cells]]
    return "\n".join([f"| {lines[0]} |", "|" + "---|" * len(header), *(f"| {line} |" for line in lines[1:])])
