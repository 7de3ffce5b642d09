"""What made a result: hashes of files and of the code that a notebook uses."""

import ast
import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
"""The project root: relative paths start here, wherever the notebook or the command was started."""


def resolve(path: str | Path) -> Path:
    """Return ``path`` if absolute, else the path below the project root."""
    return (PROJECT / path).resolve()


def short(path: str | Path) -> str:
    """Write ``path`` relative to the project root, for output that is the same on every machine."""
    return os.path.relpath(resolve(path), PROJECT)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the sha256 of a value's JSON text, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def notebook_code(notebook: str) -> str:
    """Return the code cells of a notebook as one text, without outputs."""
    cells = json.loads((PROJECT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def modules_used_by(notebook: str) -> list[Path]:
    """Return the modules of ``lib`` that a notebook imports, directly or through others, without the figures."""
    waiting = _imports(notebook_code(notebook))
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and path.parent.name != "figures":
            found.add(path)
            waiting += _imports(path.read_text(encoding="utf-8"))
    return sorted(found)


def code_hash(notebook: str) -> str:
    """Return one hash of the code of ``lib`` that a notebook uses; drawing code does not count."""
    return sha256_of_json({short(path): _syntax_hash(path) for path in modules_used_by(notebook)})


@cache
def _syntax_hash(path: Path) -> str:
    # The syntax tree, not the text: comments and layout change no result.
    return hashlib.sha256(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode()).hexdigest()


def _imports(source: str) -> list[Path]:
    paths = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "lib"]
        else:
            continue
        for name in names:
            base = PROJECT.joinpath(*name.split("."))
            paths += [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()]
    return paths
