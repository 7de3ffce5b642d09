"""Run a notebook headlessly, and keep the committed ones clean.

``python -m workflow.execution execute`` is what every Snakemake rule calls: papermill, with the promise that nothing is
left running when the command ends or is interrupted (a killed papermill can leave its kernel alive, holding a GPU).
``python -m workflow.execution commit`` writes the notebooks' first cells, executes the notebooks with these parameters,
which are the demo's, and stores them without what differs between machines.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from lib.run.files import PROJECT, CompanionError, resolve, short, write_text_atomically
from lib.run.profile import load_profile
from lib.run.stage import PART
from lib.run.table import STAGES
from workflow import report
from workflow.gpus import VISIBLE, reserved

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOISE = (
    "[IPKernelApp] WARNING | Kernel is running over TCP",
    "Input Notebook:",
    "Output Notebook:",
    "Executing notebook",
)
"""Lines of papermill and its kernel that say nothing about a run: kernels listen on this machine only."""

LINE = 120
"""Characters per line of a notebook's first cell."""

DRAWN_ELSEWHERE = ("pipeline.svg",)
"""Files of ``figures/`` that no notebook draws; this one is ``make graph``'s."""


# ------------------------------------------------------------------------------------------- running


def execute(
    notebook: Path, output: Path, *, parameters: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run ``notebook`` with papermill; return its exit status and what it wrote to stderr, noise left out.

    The executed notebook is written to ``output`` also when a cell fails, so the error can be read in place. Kernels
    and other descendants are ended with the command, however it ends.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), "--parameters_yaml"]
    command += [json.dumps(parameters), "--no-progress-bar", "--log-level", "WARNING"]
    return _run(command, environment or {})


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    _end_with_snakemake()
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | dict(environment),
    )
    try:
        for line in process.stderr or ():
            if not line.startswith(NOISE):
                sys.stderr.write(line)
                lines.append(line)
        return process.wait(), "".join(lines)
    finally:
        descendants = psutil.Process().children(recursive=True)
        for descendant in descendants:
            descendant.kill()
        psutil.wait_procs(descendants, timeout=10)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_with_snakemake() -> None:
    """Interrupt this process when the Snakemake that started it is gone: a killed one cannot end its jobs itself."""
    above = [each for each in psutil.Process().parents() if "snakemake" in each.cmdline()]

    def watch() -> None:
        while all(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in above):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if above:
        threading.Thread(target=watch, daemon=True).start()


def run_job(
    notebook: Path,
    output: Path,
    *,
    parameters: Mapping[str, Any],
    gpus: int = 0,
    attempt: int = 1,
    part: str = "",
) -> int:
    """Run ``notebook`` as one job of a run and return its exit status: it sees the GPUs it reserved and no others.

    Every attempt keeps its notebook and its log in the run's ``attempts``; ``output`` is there once a notebook has been
    executed whole. With ``part`` (such as ``2-of-4``) only that part of the shared work is done. A failure is recorded
    (:mod:`workflow.report`). A later attempt is for jobs that ran out of memory or were killed from outside; any other
    failure would only come again, so it is reported once more and not repeated.
    """
    failure = report.recorded(output)
    if attempt > 1 and failure and not failure["memory"]:
        print(f"{output.stem}: not tried again after {failure['error']}: {failure['message']}", file=sys.stderr)
        return 1
    report.forget(output)
    number = 1 + len(report.attempts(output))
    tried = output.parent.parent / "attempts" / f"{output.stem}.{number}.ipynb"
    log = tried.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    _write_log(log, f"attempt {number} began {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
    environment = {PART: part}
    with reserved(gpus) as visible, tempfile.TemporaryDirectory() as folder:
        if visible is not None:
            environment[VISIBLE] = visible
        if part:
            shared = up_to_shared(json.loads(notebook.read_text(encoding="utf-8")))
            notebook = Path(folder) / notebook.name
            notebook.write_text(json.dumps(shared), encoding="utf-8")
        status, stderr = execute(notebook, tried, parameters=parameters, environment=environment)
    _write_log(log, f"GPUs: {visible or 'none'}\n{stderr}exit status {status}\n")
    if status:
        report.record(output, tried, status, stderr)
        print(f"{output.stem}: failed, see {short(tried)} and {short(log)}", flush=True)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        os.replace(tried, output)
        print(f"{output.stem}: done, see {short(output)}", flush=True)
    return status


def _write_log(log: Path, text: str) -> None:
    with log.open("a", encoding="utf-8") as stream:
        stream.write(text)


def up_to_shared(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook up to and including its last cell tagged ``shared``: what every part of the stage runs.

    A part does its share of the work there (:func:`lib.run.stage.share`). What it makes lies where the whole notebook
    looks for it, so the whole notebook, run last, joins the parts and makes whatever one of them failed to make.

    Raises:
        CompanionError: no cell has the tag.
    """
    tagged = [n for n, cell in enumerate(notebook["cells"]) if "shared" in cell["metadata"].get("tags", [])]
    if not tagged:
        raise CompanionError("no cell of the notebook is tagged `shared`, so its stage cannot be run in parts")
    return notebook | {"cells": notebook["cells"][: tagged[-1] + 1]}


# ------------------------------------------------------------------------------- the committed notebooks


def first_cell(stage: str, values: Mapping[str, Any] | None = None) -> str:
    """Return the source of a notebook's first code cell: every parameter with its value and its description.

    ``values`` are the demo's by default. The text is as ``ruff format`` leaves it.
    """
    values = load_profile("profiles/demo.yaml").stage_parameters(stage) if values is None else values
    lines = ["# Parameters"]
    for name, field in STAGES[stage].parameters.model_fields.items():
        statement, comment = f"{name} = {values[name]!r}", f"# {field.description}"
        beside = f"{statement}  {comment}"
        lines += [beside] if len(beside) <= LINE else [comment, statement]
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "first_cell.py", "-"]
    text = "\n".join([*lines, ""])
    result = subprocess.run(command, cwd=PROJECT, input=text, capture_output=True, encoding="utf-8", check=True)
    return result.stdout.rstrip("\n")


def write_first_cell(stage: str) -> Path:
    """Write the first cell of a stage's committed notebook, and nothing else of it; return the notebook's path."""
    import nbformat  # not at the top: no job of a run needs it, and it may take a second

    path = PROJECT / "notebooks" / f"{STAGES[stage].notebook}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = first_cell(stage)
    write_text_atomically(path, nbformat.writes(notebook) + "\n")
    return path


def clean(notebook: "NotebookNode") -> "NotebookNode":
    """Remove what a run leaves in a notebook besides code and results: timings, papermill's notes, widget state."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
    return notebook


def is_progress(output: "NotebookNode") -> bool:
    """Say whether a cell's output is a progress bar, a widget or a line on stderr, which are no results."""
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        return True
    return output.output_type == "stream" and output.name == "stderr"


def commit() -> int:
    """Write the notebooks' first cells, execute them, and store them, cleaned, in ``notebooks/`` with their figures."""
    import nbformat

    started = time.time()
    beside = [PROJECT / "notebooks" / f"{name}.ipynb" for name in ("explore", "try")]
    for path in [*map(write_first_cell, STAGES), *beside]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / path.name
            status, _ = execute(path, output, parameters={})
            if status:
                return status
            notebook = clean(nbformat.read(output, as_version=4))
        write_text_atomically(path, nbformat.writes(notebook) + "\n")
    drawn = [path for path in resolve("runs/demo/figures").iterdir() if path.stat().st_mtime >= started]
    keep_figures(drawn, PROJECT / "figures")
    print(f"{len(STAGES) + len(beside)} notebooks in notebooks/, {len(drawn)} files of figures in figures/")
    return 0


def keep_figures(drawn: list[Path], folder: Path) -> None:
    """Copy the files that notebooks have ``drawn`` to ``folder`` and remove those that no notebook draws any more."""
    for path in drawn:
        shutil.copyfile(path, folder / path.name)
    for path in set(folder.iterdir()) - {folder / name for name in (*DRAWN_ELSEWHERE, *(path.name for path in drawn))}:
        path.unlink()


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("execute", help="run one notebook")
    one.add_argument("notebook", type=Path)
    one.add_argument("output", type=Path)
    one.add_argument("parameters", type=json.loads, help="JSON object")
    one.add_argument("--gpus", type=int, default=0, help="how many to reserve")
    one.add_argument("--attempt", type=int, default=1)
    one.add_argument("--part", default="", help="the part of the shared work to do, such as 2-of-4")
    commands.add_parser("commit", help="run all notebooks with the demo's parameters and store them")
    arguments = vars(parser.parse_args())
    if arguments.pop("command") == "commit":
        return commit()
    return run_job(**arguments)


if __name__ == "__main__":
    sys.exit(main())
