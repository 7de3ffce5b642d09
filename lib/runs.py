"""Run directories, manifests and typed notebook parameters.

A result is worth keeping only when one can say what made it. Every stage therefore writes into its own
directory, and a ``manifest.json``, written last, states its identity: parameters, hashes of inputs, package
versions and code. A stage whose manifest matches is read, not computed again; one that differs is refused,
and the field that differs is named. ``plan.json``, written first, holds the same identity, so an interrupted
stage goes on from the tables it already has and never mixes them with those of another identity. A finished
stage whose manifest has been removed (Snakemake does so when an input is newer) is computed afresh.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown

from lib.files import locked, write_parquet, write_text_atomically
from lib.identity import MismatchError, identity_of, refuse_difference
from lib.parameters import STAGES, build, check_names, parameters
from lib.provenance import (
    PROJECT,
    code_hash,
    command_for,
    machine_class,
    modules_used_by,
    notebook_code,
    provenance_text,
    resolve,
    sha256_of,
    sha256_of_file,
    short,
)

__all__ = [
    "PROJECT", "MismatchError", "MissingStageError", "Stage", "build", "check_names", "code_hash", "modules_used_by",
    "notebook_code", "open_stage", "parameters", "resolve", "sha256_of", "sha256_of_file", "short",
]  # fmt: skip

DEMO_ANNOTATIONS = "data/demo/annotations.tsv"
"""A run on this file is the demo, and says so."""


class MissingStageError(FileNotFoundError):
    """An earlier stage's results are needed and not there."""


@dataclass
class Stage:
    """One stage of one run: where its results lie, what they were made from, and whether they are complete."""

    name: str
    run_dir: Path
    directory: Path
    inputs: dict[str, Path]
    identity: dict[str, Any]
    complete: bool
    command: str
    started: float = field(default_factory=time.monotonic)

    def inputs_table(self) -> pd.DataFrame:
        """Return one row per input: its name, its path below the project root, the start of its sha256."""
        hashes = self.identity["inputs"]
        rows = [(name, short(path), hashes[name][:12]) for name, path in self.inputs.items()]
        return pd.DataFrame(rows, columns=["input", "path", "sha256"])

    def table(self, name: str, function: Callable[..., pd.DataFrame], *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Read the table ``name`` of this stage, or compute it with ``function`` and write it first.

        The frame returned has always been read back from the file, so a run that computes and one that
        reads see the same values and types.
        """
        path = self.directory / name
        if not path.exists():
            self._require_unfinished(name)
            write_parquet(path, self._marked(function(*args, **kwargs)))
        return pd.read_parquet(path)

    def tables(
        self, names: list[str], function: Callable[..., Mapping[str, pd.DataFrame]], *args: Any
    ) -> list[pd.DataFrame]:
        """Read several tables that one ``function`` computes together, in the order of the mapping it returns."""
        if not all((self.directory / name).exists() for name in names):
            self._require_unfinished(names[0])
            for name, frame in zip(names, function(*args).values(), strict=True):
                write_parquet(self.directory / name, self._marked(frame))
        return [pd.read_parquet(self.directory / name) for name in names]

    def folder(self, name: str, function: Callable[..., None], *args: Any, **kwargs: Any) -> Path:
        """Return the folder ``name`` of this stage; ``function(folder, ...)`` fills it if it is not there."""
        path = self.directory / name
        if not path.exists():
            self._require_unfinished(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
            try:
                function(temporary, *args, **kwargs)
                temporary.chmod(0o755)
                os.replace(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return path

    def finish(self) -> pd.DataFrame:
        """Write the manifest, say where the results are, and return them as a table (output, sha256)."""
        if not self.complete:
            outputs = {name: sha256_of_file(self.directory / name) for name in self._files()}
            manifest = {
                "stage": self.name,
                "identity": self.identity,
                "outputs": outputs,
                "notices": self.notices(),
                "machine": machine_class(),
                "wall_seconds": round(time.monotonic() - self.started, 2),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            _write_plan(self.directory, self.name, self.identity, finished=True)
            write_text_atomically(self.directory / "manifest.json", json.dumps(manifest, indent=1))
            self.complete = True
        print(f"results: {short(self.directory)}")
        for notice in self.notices():
            print(notice)
        outputs = read_manifest(self.directory)["outputs"]
        return pd.DataFrame([(name, value[:12]) for name, value in outputs.items()], columns=["output", "sha256"])

    def provenance(self) -> Markdown:
        """Return what made this stage's results, as text for the end of its notebook, from the manifest.

        Versions, hashes, seed, machine class, wall time and the exact command that makes them again.
        """
        return Markdown(provenance_text(read_manifest(self.directory), self.command))

    def is_demo(self) -> bool:
        """Say whether this run is on the demo's annotations, so that nothing in it is a finding."""
        vectors = _read_plan(self.run_dir / STAGES["01_moral_vectors"].directory)
        used = vectors["identity"]["inputs"].get("annotations") if vectors else None
        return used == sha256_of_file(PROJECT / DEMO_ANNOTATIONS)

    def notices(self) -> list[str]:
        """Return what every reader of this run's results must know, from the identity of its moral vectors."""
        vectors = _read_plan(self.run_dir / STAGES["01_moral_vectors"].directory)
        if vectors is None:
            return []
        found = []
        if self.is_demo():
            found.append("Demo data: a check of the instrument, not a finding.")
        agreement = vectors["identity"]["parameters"]["agreement"]
        if agreement != "action-agree":
            found.append(f"{agreement} stood in for action-agree: the same scale, a different question.")
        return found

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame with the run's notices in ``attrs``, which parquet keeps: no table leaves without them."""
        marked = frame.copy(deep=False)
        marked.attrs["notices"] = self.notices()
        return marked

    def _files(self) -> list[str]:
        ours = (file for file in self.directory.rglob("*") if file.is_file())
        names = (file.relative_to(self.directory).as_posix() for file in ours)
        # Logs hold times; they belong to a stage but are none of its results.
        aside = ("plan.json", "manifest.json")
        return sorted(n for n in names if n not in aside and not n.startswith("logs/") and "/." not in f"/{n}")

    def _require_unfinished(self, name: str) -> None:
        if self.complete:
            raise MismatchError(
                f"{short(self.directory)} is marked complete but {name} is not there. "
                f"Remove {short(self.directory)} and run notebook {self.name} again."
            )


def open_stage(
    name: str, parameters: Any, inputs: Mapping[str, str | Path], facts: Mapping[str, Any] | None = None
) -> Stage:
    """Open the directory of a stage, to read its results or to compute them.

    Args:
        name: notebook name, a key of ``STAGES``.
        parameters: the dataclass that :func:`parameters` returned.
        inputs: name -> file or directory. A directory that another stage writes must be complete.
        facts: anything else that decides the results, such as the commit of a model on a hub.

    Raises:
        MissingStageError: an input is not there; says which notebook makes it.
        MismatchError: the directory holds results of another identity; names the field that differs.
    """
    started = time.monotonic()
    directory = stage_directory(name, parameters)
    paths = {key: resolve(path) for key, path in inputs.items()}
    for key, path in paths.items():
        _require_input(key, path, resolve(parameters.run_dir))
    identity = identity_of(name, parameters, paths, facts or {})
    with locked(directory):
        complete = (directory / "manifest.json").exists()
        plan = _read_plan(directory)
        if complete:
            refuse_difference(directory, read_manifest(directory)["identity"], identity)
        elif plan and not plan["finished"]:
            refuse_difference(directory, plan["identity"], identity)
        else:
            if plan:
                shutil.rmtree(directory)
            _write_plan(directory, name, identity, finished=False)
    command = command_for(name, asdict(parameters))
    return Stage(name, resolve(parameters.run_dir), directory, paths, identity, complete, command, started)


def _read_plan(directory: Path) -> dict[str, Any] | None:
    path = directory / "plan.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    if directory.exists() and any(file.name != "manifest.json" for file in directory.rglob("*") if file.is_file()):
        raise MismatchError(
            f"{short(directory)} holds files but no plan.json, so they are not results of this project. "
            "Use another run directory, or move them away."
        )
    return None


def _write_plan(directory: Path, name: str, identity: Mapping[str, Any], finished: bool) -> None:
    plan = {"stage": name, "identity": identity, "finished": finished}
    write_text_atomically(directory / "plan.json", json.dumps(plan, indent=1))


def stage_directory(name: str, parameters: Any) -> Path:
    """Return the directory below the run's directory into which a stage writes."""
    model = getattr(parameters, "model", "")
    return resolve(parameters.run_dir) / STAGES[name].directory.format(model=model)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a finished stage."""
    return json.loads((directory / "manifest.json").read_text(encoding="utf-8"))


def _require_input(key: str, path: Path, run: Path) -> None:
    if not path.is_relative_to(run):
        if not path.exists():
            raise MissingStageError(f"input {key!r} not found: {short(path)}. Paths start at the project root.")
        return
    root = next((p for p in (path, *path.parents) if _stage_writing(p, run)), None)
    maker = _stage_writing(root, run) if root else None
    if not path.exists() or (root is not None and not (root / "manifest.json").exists()):
        state = "not there" if not path.exists() else "not finished"
        raise MissingStageError(f"{key} ({short(path)}) is {state}. Run notebook {maker} first, with the same run_dir.")


def _stage_writing(path: Path, run: Path) -> str | None:
    if not path.is_relative_to(run) or path == run:
        return None
    below = path.relative_to(run).parts
    for name, stage in STAGES.items():
        pattern = Path(stage.directory).parts
        if len(below) == len(pattern) and all(
            "{" in part or part == own for part, own in zip(pattern, below, strict=True)
        ):
            return name
    return None
