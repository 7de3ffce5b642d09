"""What made a result, and what decides it: parameters, inputs, packages and code.

Results of one identity are never read as those of another, and the reader is told which field differs. The identity alone
decides; when a file was written never does. Code that decides no number is in no identity: comments, docstrings, what draws
(``figures.py``, ``plotting.py``, a notebook's ``publish``), how a stage runs (``lib/run``; the values of parameters and the
hashes of inputs count instead) and everything in ``workflow/``.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.run.files import PROJECT, CompanionError, files_below, sha256_of_file, short
from lib.run.keys import Parameters

PACKAGES = (
    "torch", "transformers", "nnsight", "tokenizers", "numpy", "pandas", "scipy", "scikit-learn",
    "statsmodels", "zarr", "inspect-ai",
)  # fmt: skip
"""Packages whose version can change a number; their versions are part of a stage's identity."""


class MismatchError(CompanionError):
    """A stage directory does not hold what its manifest says, or files that are no results of this project."""


def identity_of(
    notebook: str, parameters: Parameters, inputs: Mapping[str, Path], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the identity of a stage's results; of ``inputs`` the hashes count, ``facts`` is anything else that decides them."""
    return {
        "parameters": identifying_parameters(parameters),
        "inputs": {key: sha256_of(path) for key, path in inputs.items()},
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "facts": dict(facts),
        "code": code_hash(notebook_code(notebook)),
    }


def identifying_parameters(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters that decide a stage's results: all but where it writes and what it shows."""
    return parameters.model_dump(exclude={"run_dir", "show_content", *parameters.PATHS})


def difference(made_with: Mapping[str, Any], asked: Mapping[str, Any], within: str = "") -> str | None:
    """Say in which field two identities, or their parts ``within`` a field, differ first; None if they are the same."""
    for key in sorted(asked.keys() | made_with.keys()):
        there, here = made_with.get(key), asked.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            if said := difference(there, here, f"{within}{key}."):
                return said
        elif there != here:
            return f"made with {within}{key} = {_brief(there)}, but {_brief(here)} is asked for"
    return None


def _brief(value: Any) -> str:
    """A value as it is written; of a hash the first digits."""
    is_hash = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return f"{value[:12]}..." if is_hash else repr(value)


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
    if (path / "manifest.json").exists():
        content = read_manifest(path)
        return sha256_of_json({"outputs": content["outputs"], "parameters": content["identity"]["parameters"]})
    return sha256_of_json({name: sha256_of_file(path / name) for name in files_below(path)})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a finished stage.

    Raises:
        MismatchError: it is damaged.
    """
    file = directory / "manifest.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise MismatchError(
            f"{short(file)} is damaged ({error}). `make verify PROFILE=...`, with the run's profile, takes away what is "
            "damaged; then the same command makes it again."
        ) from None


def machine_class() -> str:
    """Describe this machine without naming it: system, CPU, cores and accelerator."""
    torch = sys.modules.get("torch")  # a stage that never imported it used no accelerator
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    accelerator = ", ".join(f"{gpus.count(name)} x {name}" for name in sorted(set(gpus))) or "no accelerator"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {accelerator}"


def provenance_text(manifest: Mapping[str, Any], notebook: str, parameters: Parameters) -> str:
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
        "machine": manifest["machine"],
        "wall time": f"{manifest['wall_seconds']:.1f} s",
        "finished": manifest["finished"],
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    values = shlex.quote(json.dumps(parameters.model_dump(), ensure_ascii=False))
    command = f".venv/bin/papermill notebooks/{notebook}.ipynb {notebook}.executed.ipynb --cwd notebooks -y {values}"
    return f"| provenance | |\n|---|---|\n{table}\n\nMade again from the project root by\n\n```bash\n{command}\n```\n"


def notebook_code(notebook: str) -> str:
    """Return the code cells of a notebook as one text, without outputs and without the parameters' cell."""
    cells = json.loads((PROJECT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in code if "parameters" not in cell["metadata"].get("tags", []))


def modules_used_by(code: str) -> list[Path]:
    """Return the modules of ``lib`` that decide what ``code`` computes: what it imports, directly or through others."""
    waiting = _imports(code)
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if (
            path not in reached
            and path.name not in ("figures.py", "plotting.py")
            and path.parent != PROJECT / "lib" / "run"
        ):
            reached.add(path)
            waiting += _imports(path.read_text(encoding="utf-8"))
    return sorted(reached)


def code_hash(code: str) -> str:
    """Return one hash of what decides the numbers that ``code``, a notebook's, computes: itself and what it uses of ``lib``."""
    modules = {short(path): syntax_hash(path.read_text(encoding="utf-8")) for path in modules_used_by(code)}
    return sha256_of_json(modules | {"notebook": syntax_hash(code)})


@lru_cache(maxsize=256)
def syntax_hash(source: str) -> str:
    """Return a hash of what a source text computes: of its syntax tree, without docstrings and without what only shows."""
    tree = _Computing().visit(ast.parse(source))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


class _Computing(ast.NodeTransformer):
    """Takes from a syntax tree what computes nothing: bare strings, names and attributes, ``publish(...)``, ``print(...)``."""

    SHOWS = ("publish", "print", "display")

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        shows = isinstance(called, ast.Name) and called.id in self.SHOWS
        return None if shows or isinstance(node.value, ast.Constant | ast.Name | ast.Attribute) else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        node.names = [name for name in node.names if name.name not in ("figures", "publish")]
        return node if node.names else None


def _imports(source: str) -> list[Path]:
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    bases = [name.replace(".", "/") for name in names if name.split(".")[0] == "lib"]
    paths = [PROJECT / f"{base}{suffix}" for base in bases for suffix in (".py", "/__init__.py")]
    return [path for path in paths if path.exists()]
