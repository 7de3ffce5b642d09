"""A stage of a run: its directory, its manifest, its tables, and the part of it that a job does.

A result is worth keeping only when one can say what made it. Every stage therefore writes into its own
directory, and a ``manifest.json``, written last, states its identity: parameters, hashes of inputs, package
versions and code. A stage whose manifest matches is read, not computed again. Results of another identity are
moved aside, never deleted, the field that differs is named, and the stage is computed again. ``plan.json``, written
first, holds the same identity, so an interrupted stage goes on from the tables it already has and never mixes them
with those of another identity. Processes of one identity may work on a stage side by side; while they do, none of
another can.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from IPython.display import Markdown

from lib.run.files import (
    PROJECT,
    CompanionError,
    files_below,
    held_by_others,
    hold,
    locked,
    release,
    replacing,
    resolve,
    sha256_of_file,
    short,
    write_parquet,
    write_text_atomically,
)
from lib.run.keys import Parameters
from lib.run.provenance import (
    MismatchError,
    difference,
    identity_of,
    machine_class,
    provenance_text,
    read_manifest,
)
from lib.run.table import STAGES, StageSpecification

DEMO_ANNOTATIONS = "data/demo/annotations.tsv"
"""A run on this file is the demo, and says so."""

PART = "COMPANION_PART"
"""Environment variable that names the part of a stage that this process does, such as ``2-of-4``. It is no parameter,
because a part leaves the results what they are."""

Item = TypeVar("Item")


class MissingStageError(CompanionError):
    """An earlier stage's results are needed and not there."""


class Part(NamedTuple):
    """Part ``number`` of ``of``, counted from 1."""

    number: int
    of: int


def current_part() -> Part | None:
    """Return which part of a stage this process is; None for the whole.

    Raises:
        CompanionError: the variable is not like ``2-of-4``.
    """
    if not (text := os.environ.get(PART, "")):
        return None
    number, _, of = text.partition("-of-")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise CompanionError(f"{PART} should be like 2-of-4, got {text!r}")
    return Part(int(number), int(of))


def share(items: Sequence[Item]) -> list[Item]:
    """Return this process's share of ``items``: every n-th one in a part, all of them in the whole."""
    part = current_part() or Part(1, 1)
    return list(items)[part.number - 1 :: part.of]


@dataclass
class Stage:
    """One stage of one run: where its results lie, what they were made from, and whether they are complete."""

    specification: StageSpecification
    run_dir: Path
    directory: Path
    inputs: dict[str, Path]
    identity: dict[str, Any]
    complete: bool
    parameters: Parameters
    started: float = field(default_factory=time.monotonic)
    folders: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The one name of the stage."""
        return self.specification.name

    def read(self, name: str, table: str | None = None) -> pd.DataFrame:
        """Read the input ``name``: a table itself, or the directory of a stage that holds ``table``."""
        path = self.inputs[name]
        return pd.read_parquet(path if table is None else path / f"{table}.parquet")

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
        return self.tables([name], lambda: {name: function(*args, **kwargs)})[0]

    def tables(
        self, names: list[str], function: Callable[..., Mapping[str, pd.DataFrame]], *args: Any, **kwargs: Any
    ) -> list[pd.DataFrame]:
        """Read several tables that one ``function`` computes together, in the order of the mapping it returns."""
        self._require_ours()
        if not all((self.directory / name).exists() for name in names):
            self._require_unfinished(names[0])
            for name, frame in zip(names, function(*args, **kwargs).values(), strict=True):
                write_parquet(self.directory / name, self._marked(frame))
        return [pd.read_parquet(self.directory / name) for name in names]

    def folder(self, name: str, function: Callable[..., None], *args: Any, **kwargs: Any) -> Path:
        """Return the folder ``name`` of this stage; ``function(folder, ...)`` fills it if it is not there."""
        self._require_ours()
        path = self.directory / name
        if not path.exists():
            self._require_unfinished(name)
            with replacing(path) as temporary:
                temporary.mkdir()
                function(temporary, *args, **kwargs)
        self.folders.add(name)
        return path

    def finish(self, *, hashed_elsewhere: tuple[str, ...] = (), **findings: Any) -> pd.DataFrame:
        """Write the manifest, say where the results are, and return them as a table (output, sha256).

        Files in folders that are ``hashed_elsewhere``, in another output, are not listed. ``findings`` are what later stages
        must know before they read a table, such as whether a judge is usable.
        """
        self._require_ours()
        if not self.complete:
            # Logs hold times; they belong to a stage but are none of its results.
            aside = ("plan.json", "manifest.json", "logs/", ".", *hashed_elsewhere)
            names = [name for name in files_below(self.directory) if not name.startswith(aside) and "/." not in name]
            manifest = {
                "stage": self.name,
                "identity": self.identity,
                "outputs": {name: sha256_of_file(self.directory / name) for name in names},
                "folders": sorted(self.folders),
                "notices": self.notices(),
                "findings": findings,
                "machine": machine_class(),
                "wall_seconds": round(time.monotonic() - self.started, 2),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            write_text_atomically(self.directory / "manifest.json", json.dumps(manifest, indent=1))
            self.complete = True
            release(self.directory)
        print(f"results: {short(self.directory)}")
        for notice in self.notices():
            print(notice)
        outputs = read_manifest(self.directory)["outputs"]
        return pd.DataFrame([(name, value[:12]) for name, value in outputs.items()], columns=["output", "sha256"])

    def provenance(self) -> Markdown:
        """Return what the manifest says made this stage's results, and the exact command that makes them again."""
        return Markdown(provenance_text(read_manifest(self.directory), self.specification.notebook, self.parameters))

    def is_demo(self) -> bool:
        """Say whether this run is on the demo's annotations, so that nothing in it is a finding."""
        vectors = _read_plan(self.run_dir / "vectors")
        used = vectors["identity"]["inputs"].get("annotations") if vectors else None
        return used == sha256_of_file(PROJECT / DEMO_ANNOTATIONS)

    def notices(self) -> list[str]:
        """Return what every reader of this run's results must know, from the identity of its moral vectors."""
        notices = ["Demo data: a check of the instrument, not a finding."] if self.is_demo() else []
        vectors = _read_plan(self.run_dir / "vectors")
        if vectors and (agreement := vectors["identity"]["parameters"]["agreement"]) != "action-agree":
            notices.append(f"{agreement} stood in for action-agree: the same scale, a different question.")
        return notices

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        # Parquet keeps ``attrs``: no table leaves without the run's notices.
        marked = frame.copy(deep=False)
        marked.attrs["notices"] = self.notices()
        return marked

    def _require_ours(self) -> None:
        plan = _read_plan(self.directory)
        if plan and difference(plan["identity"], self.identity):
            raise MismatchError(
                f"{short(self.directory)} was opened with other parameters since, and holds other results now. "
                f"Run notebook {self.specification.notebook} again from its first cell."
            )

    def _require_unfinished(self, name: str) -> None:
        if self.complete:
            raise MismatchError(
                f"{short(self.directory)} is marked complete but {name} is not there. "
                f"Remove {short(self.directory)} and run notebook {self.specification.notebook} again."
            )


def open_stage(
    parameters: Parameters, *, inputs: Mapping[str, str | Path] | None = None, facts: Mapping[str, Any] | None = None
) -> Stage:
    """Open the directory of a stage, to read its results or to compute them.

    Args:
        parameters: of the stage, as :func:`lib.run.validation.validated` returns them; their type names the stage.
        inputs: places of inputs that only their stage can find, such as a file to download; the others are those of
            :data:`lib.run.table.STAGES`.
        facts: anything else that decides the results, such as the commit of a model on a hub.

    Raises:
        MissingStageError: an input is not there; says which notebook makes it.
        MismatchError: the directory holds files that are no results of this project, or another process is computing there
            with other parameters.
    """
    started = time.monotonic()
    stage = next(stage for stage in STAGES.values() if stage.parameters is type(parameters))
    values = parameters.model_dump()
    run_dir = resolve(values["run_dir"])
    directory = run_dir / stage.directory(values.get("model"))
    named = stage.input_paths(values) | dict(inputs or {})
    paths = {name: resolve(path) for name, path in named.items()}
    paths = {name: path for name, path in paths.items() if name not in stage.optional or path.is_dir()}
    for name, path in paths.items():
        _require_input(name, path, run_dir)
    identity = identity_of(stage.notebook, parameters, paths, facts or {})
    with locked(directory):
        if (plan := _read_plan(directory)) is None:
            _require_empty(stage, directory)
        elif why := difference(plan["identity"], identity):
            set_aside(run_dir, directory, why)
        if not (directory / "plan.json").exists():
            plan = {"stage": stage.name, "identity": identity}
            write_text_atomically(directory / "plan.json", json.dumps(plan, indent=1))
        complete = (directory / "manifest.json").exists()
        (release if complete else hold)(directory)
    return Stage(stage, run_dir, directory, paths, identity, complete, parameters, started)


def set_aside(run_dir: Path, directory: Path, why: str) -> None:
    """Move the results of a stage to ``.superseded`` in the run's directory, and say so; a plan without results is removed.

    What the stage paid for and checks itself (``StageSpecification.kept``) never moves. The manifest goes first and the plan
    last, so whatever interrupts this, the next one to open the stage goes on with it. To be called under the directory's lock.

    Raises:
        MismatchError: another process is computing the stage.
    """
    if held_by_others(directory):
        raise MismatchError(
            f"{short(directory)} holds results {why}, but another process computes them now, with other parameters. "
            "Wait until it ends, or shut down the notebook in which it is open; or use another run_dir."
        )
    stage = STAGES.get(directory.relative_to(run_dir).parts[0])
    entries = [entry for entry in directory.iterdir() if not (stage and entry.name in stage.kept)]
    if [entry.name for entry in entries] == ["plan.json"]:
        entries[0].unlink()
        return
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    aside = run_dir / ".superseded" / f"{directory.relative_to(run_dir)}.{stamp}"
    aside.mkdir(parents=True)
    for entry in sorted(entries, key=lambda entry: {"manifest.json": 0, "plan.json": 2}.get(entry.name, 1)):
        entry.rename(aside / entry.name)
    print(f"{short(directory)} holds results {why}. They are now in {short(aside)}, and the stage is computed again.")


def _read_plan(directory: Path) -> dict[str, Any] | None:
    path = directory / "plan.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:  # no JSON, or no text
        raise MismatchError(
            f"{short(path)} is damaged ({error}), so nothing says what made the results beside it. Move them and the plan away."
        ) from None


def _require_empty(stage: StageSpecification, directory: Path) -> None:
    """Raise ``MismatchError`` if a directory without a plan holds more than the stage keeps or an interruption left."""
    ours = ("manifest.json", ".", *(f"{name}/" for name in stage.kept))
    if [name for name in files_below(directory) if not name.startswith(ours)]:
        raise MismatchError(
            f"{short(directory)} holds files but no plan.json, so they are not results of this project. "
            "Use another run directory, or move them away."
        )


def _require_input(name: str, path: Path, run_dir: Path) -> None:
    below = path.relative_to(run_dir).parts if path.is_relative_to(run_dir) else ()
    maker = STAGES.get(below[0]) if below else None
    if maker and not (run_dir.joinpath(*below[: 1 + maker.per_model], "manifest.json").exists() and path.exists()):
        state = "not finished" if path.exists() else "not there"
        raise MissingStageError(
            f"{name} ({short(path)}) is {state}. Run notebook {maker.notebook} first, with the same run_dir."
        )
    if not path.exists():
        raise MissingStageError(f"input {name!r} not found: {short(path)}. Paths start at the project root.")
