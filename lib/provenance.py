"""What made a result: hashes of files and of the code that a notebook uses."""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
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


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, of a finished stage (its identity and its outputs), or of a directory's files.

    A stage's manifest also holds wall time and date; they are left out, so that computing the same thing again
    gives the same hash.
    """
    if path.is_file():
        return sha256_of_file(path)
    manifest = path / "manifest.json"
    if manifest.exists():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        return sha256_of_json({"outputs": content["outputs"], "parameters": content["identity"]["parameters"]})
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sha256_of_json({name: sha256_of_file(path / name) for name in names})


def machine_class() -> str:
    """Describe this machine without naming it: system, processor, cores and accelerator."""
    torch = sys.modules.get("torch")  # a stage that never imported it used no accelerator
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    accelerator = ", ".join(f"{cards.count(name)} x {name}" for name in sorted(set(cards))) or "no accelerator"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {accelerator}"


def command_for(notebook: str, parameters: Mapping[str, Any]) -> str:
    """Return the command that runs a notebook with these parameters, from the project root."""
    values = shlex.quote(json.dumps(parameters, ensure_ascii=False))
    return f".venv/bin/papermill notebooks/{notebook}.ipynb {notebook}.executed.ipynb --cwd notebooks -y {values}"


def provenance_text(manifest: Mapping[str, Any], command: str) -> str:
    """Write a stage's manifest as Markdown: versions, hashes, seed, machine class, wall time and the command."""
    identity = manifest["identity"]
    seed = identity["parameters"].get("seed")
    rows = {
        "stage": manifest["stage"],
        "companion": importlib.metadata.version("moral-indifference-companion"),
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in identity["packages"].items()),
        "code": f"sha256 {identity['code'][:16]}",
        "inputs": ", ".join(f"{name} {value[:12]}" for name, value in identity["inputs"].items()),
        "outputs": f"{len(manifest['outputs'])} files, sha256 {sha256_of_json(manifest['outputs'])[:16]}",
        "seed": "none used" if seed is None else seed,
        "machine": manifest.get("machine", "not recorded"),
        "wall time": f"{manifest['wall_seconds']:.1f} s",
        "finished": manifest["finished"],
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"| provenance | |\n|---|---|\n{table}\n\nMade again from the project root by\n\n```bash\n{command}\n```\n"


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
