"""Run a notebook headlessly, and keep the committed ones clean.

``python -m lib.notebooks execute`` is what every Snakemake rule calls: papermill, with the promise that nothing is
left running when the command ends or is interrupted (a killed papermill can leave its kernel alive, holding a GPU).
``python -m lib.notebooks commit`` executes the notebooks with their default parameters, which are the demo's, and
stores them without what differs between machines.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat
import psutil

from lib import accelerators, failures, files, parts, runs, shares
from lib.parameters import STAGES

NOISE = (
    "[IPKernelApp] WARNING | Kernel is running over TCP",
    "Input Notebook:",
    "Output Notebook:",
    "Executing notebook",
)
"""Lines of papermill and its kernel that say nothing about a run: kernels listen on this machine only."""


def execute(
    notebook: Path, output: Path, parameters: dict[str, Any], environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run ``notebook`` with papermill; return its exit status and what it said on the way, noise left out.

    The executed notebook is written to ``output`` also when a cell fails, so the error can be read in place. Kernels
    and other descendants are ended with the command, however it ends.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), "--parameters_yaml"]
    command += [json.dumps(parameters), "--no-progress-bar", "--log-level", "WARNING"]
    status, said = _run(command, environment or {})
    print(f"{notebook.stem}: {'failed, see' if status else 'done, see'} {runs.short(output)}", flush=True)
    return status, said


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    signal.signal(signal.SIGTERM, _interrupt)
    said: list[str] = []
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
                said.append(line)
        return process.wait(), "".join(said)
    finally:
        descendants = psutil.Process().children(recursive=True)
        for descendant in descendants:
            descendant.kill()
        psutil.wait_procs(descendants, timeout=10)


def run_job(
    notebook: Path,
    output: Path,
    parameters: dict[str, Any],
    log: Path,
    cards: int = 0,
    attempt: int = 1,
    part: Path | None = None,
) -> int:
    """Run ``notebook`` as one job of a run: with the cards it reserved and no others, a log, and a word on failure.

    With ``part``, a marker named like ``2-of-4``, only that part of the work is done and the marker is written.

    A later attempt is for jobs that ran out of memory or were killed from outside; any other failure would only fail
    again, so it is reported once more and not repeated.
    """
    before = failures.recorded(output)
    if attempt > 1 and before and not before["memory"]:
        print(f"{output.stem}: not tried again after {before['error']}: {before['message']}", file=sys.stderr)
        return 1
    log.parent.mkdir(parents=True, exist_ok=True)
    _write_log(log, f"attempt {attempt} began {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n", attempt == 1)
    failures.forget(output)
    environment = {shares.VARIABLE: part.name} if part else {}
    with accelerators.reserved(cards) as visible, tempfile.TemporaryDirectory() as folder:
        if visible is not None:
            environment[accelerators.VISIBLE] = visible
        if part and notebook.stem in parts.LAYERED:
            command = [sys.executable, "-m", "lib.sae.jobs", notebook.stem, json.dumps(parameters)]
            status, said = _run(command, environment)
        else:
            if part:
                parts.cut(notebook, Path(folder) / notebook.name)
                notebook = Path(folder) / notebook.name
            status, said = execute(notebook, output, parameters, environment)
    _write_log(log, f"cards: {visible or 'none'}\n{said}exit status {status}\n", new=False)
    if status:
        failures.record(output, status, said)
    elif part:
        files.write_text_atomically(part, "")
    return status


def _write_log(log: Path, text: str, new: bool) -> None:
    with log.open("w" if new else "a", encoding="utf-8") as stream:
        stream.write(text)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what a run leaves in a notebook besides code and results: timings, papermill's notes, widget state."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    return notebook


def _is_progress(output: nbformat.NotebookNode) -> bool:
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        return True
    return output.output_type == "stream" and output.name == "stderr"


def commit() -> int:
    """Execute all notebooks with their default parameters; store them, cleaned, in ``notebooks/`` and their figures."""
    started = time.time()
    for name in STAGES:
        path = runs.PROJECT / "notebooks" / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / path.name
            status, _ = execute(path, output, {})
            if status:
                return status
            notebook = clean(nbformat.read(output, as_version=4))
        files.write_text_atomically(path, nbformat.writes(notebook) + "\n")
    folder = runs.PROJECT / "figures"
    drawn = [path for path in runs.resolve("runs/demo/figures").iterdir() if path.stat().st_mtime >= started]
    for path in drawn:
        shutil.copyfile(path, folder / path.name)
    print(f"{len(STAGES)} notebooks in notebooks/, {len(drawn)} files of figures in figures/")
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("execute", help="run one notebook")
    one.add_argument("notebook", type=Path)
    one.add_argument("output", type=Path)
    one.add_argument("parameters", type=json.loads, help="JSON object")
    one.add_argument("--log", type=Path, required=True)
    one.add_argument("--cards", type=int, default=0, help="how many to reserve")
    one.add_argument("--attempt", type=int, default=1)
    one.add_argument("--part", type=Path, help="the marker of the part to do, named like 2-of-4")
    commands.add_parser("commit", help="run all notebooks with their defaults and store them")
    arguments = parser.parse_args()
    if arguments.command == "commit":
        return commit()
    settings = vars(arguments)
    del settings["command"]
    return run_job(**settings)


if __name__ == "__main__":
    sys.exit(main())
