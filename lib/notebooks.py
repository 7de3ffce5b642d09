"""Run a notebook headlessly, and keep the committed ones clean.

``python -m lib.notebooks execute`` is what every Snakemake rule calls: papermill, with the promise that nothing is
left running when the command ends or is interrupted (a killed papermill can leave its kernel alive, holding a GPU).
``python -m lib.notebooks commit`` executes the notebooks with their default parameters, which are the demo's, and
stores them without what differs between machines.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat
import psutil

from lib import runs
from lib.parameters import STAGES

NOISE = (
    "[IPKernelApp] WARNING | Kernel is running over TCP",
    "Input Notebook:",
    "Output Notebook:",
    "Executing notebook",
)
"""Lines of papermill and its kernel that say nothing about a run: kernels listen on this machine only."""


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> int:
    """Run ``notebook`` with papermill and return its exit status.

    The executed notebook is written to ``output`` also when a cell fails, so the error can be read in place. Kernels
    and other descendants are ended with the command, however it ends.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), "--parameters_yaml"]
    command += [json.dumps(parameters), "--no-progress-bar", "--log-level", "WARNING"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
    try:
        for line in process.stderr or ():
            if not line.startswith(NOISE):
                sys.stderr.write(line)
        status = process.wait()
        print(f"{notebook.stem}: {'failed, see' if status else 'done, see'} {runs.short(output)}", flush=True)
        return status
    finally:
        descendants = psutil.Process().children(recursive=True)
        for descendant in descendants:
            descendant.kill()
        psutil.wait_procs(descendants, timeout=10)


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
            if status := execute(path, output, {}):
                return status
            notebook = clean(nbformat.read(output, as_version=4))
        runs.write_text_atomically(path, nbformat.writes(notebook) + "\n")
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
    commands.add_parser("commit", help="run all notebooks with their defaults and store them")
    arguments = parser.parse_args()
    if arguments.command == "commit":
        return commit()
    return execute(arguments.notebook, arguments.output, arguments.parameters)


if __name__ == "__main__":
    sys.exit(main())
