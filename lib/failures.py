"""What failed, and what is missing for it: a run goes on without a failed model and says so.

A job that fails leaves ``runs/<run>/failed/<job>.json`` beside its executed notebook and its log; the next success of
the same job removes it. A job that was killed from outside leaves nothing, which says as much.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from lib import files, jobs, runs
from lib.parameters import STAGES, ParameterError
from lib.profiles import PER_MODEL, Profile, load_profile

MEMORY_ERRORS = ("MemoryError", "OutOfMemoryError", "DeadKernelError", "TerminatedWorkerError")
"""Errors that more memory may cure. A kernel, or a process that it started, that dies without a word was, as a rule, killed
for memory."""


def record(notebook: Path, status: int, said: str) -> dict[str, Any]:
    """Write down why the job with the executed ``notebook`` failed: from the notebook, else from what the job ``said``."""
    dead_kernel = "DeadKernelError" in said
    name, message = "DeadKernelError" if dead_kernel else "", f"exit status {status}"
    if notebook.exists() and not dead_kernel:
        for cell in nbformat.read(notebook, as_version=4).cells:
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    name, message = output.ename, output.evalue
    elif said.strip() and not dead_kernel:
        error, _, message = said.strip().splitlines()[-1].partition(": ")
        name = error.rpartition(".")[2]
    found = {
        "notebook": notebook.name,
        "error": name or "unknown",
        "message": "the kernel died, as it does when memory runs out" if dead_kernel else message,
        "memory": name in MEMORY_ERRORS or status in (-9, 137),
    }
    files.write_text_atomically(_path(notebook), json.dumps(found, indent=1))
    return found


def recorded(notebook: Path) -> dict[str, Any] | None:
    """Return why the job with the executed ``notebook`` failed last, or None."""
    path = _path(notebook)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def forget(notebook: Path) -> None:
    """Remove the record of a job."""
    _path(notebook).unlink(missing_ok=True)


def _path(notebook: Path) -> Path:
    return notebook.parent.parent / "failed" / f"{notebook.stem}.json"


# ------------------------------------------------------------------------------------- a run and its gaps


def _finished(profile: Profile, notebook: str, model: str | None) -> bool:
    directory = STAGES[notebook].directory.format(model=model)
    return runs.resolve(f"runs/{profile.run}/{directory}/manifest.json").exists()


def diagnosed(profile: Profile) -> list[str]:
    """Return the profile's models whose diagnosis is finished."""
    return [model for model in profile.sources if _finished(profile, "03_diagnosis", model)]


def possible_targets(profile: Profile, models: list[str], manifest: Callable[..., str]) -> list[str]:
    """Return the last stages that a run can still reach with ``models``, where some have failed."""
    targets = [manifest("04_compare_models")] if models else []
    chain = [stage for stage in jobs.NEEDS["09_claims"] if stage != "04_compare_models"]
    if models and all(_finished(profile, stage, profile.sae_model) for stage in chain):
        targets.append(manifest("09_claims"))
    return targets


def missing(profile: Profile) -> pd.DataFrame:
    """List what a run should have and has not.

    Returns:
        Columns ``stage``, ``model`` (empty where a stage has none), ``reason``, ``log``; no rows when all is there.
    """
    rows = []
    for notebook in STAGES:
        each = list(profile.sources) if notebook in PER_MODEL else [profile.sae_model]
        for model in each:
            if not _finished(profile, notebook, model):
                job = jobs.job_name(notebook, model)
                named = model if "{model}" in STAGES[notebook].directory else ""
                log = f"runs/{profile.run}/logs/{job}.log"
                rows.append((notebook, named, _reason(profile, notebook, model, job), log))
    return pd.DataFrame(rows, columns=["stage", "model", "reason", "log"])


def _reason(profile: Profile, notebook: str, model: str, job: str) -> str:
    why = recorded(runs.resolve(f"runs/{profile.run}/notebooks/{job}.ipynb"))
    if why:
        return f"{why['error']}: {why['message'].splitlines()[0] if why['message'] else ''}"
    for stage in jobs.NEEDS[notebook]:
        if not _finished(profile, stage, model):
            return f"needs {stage}, which is missing"
    if runs.resolve(f"runs/{profile.run}/logs/{job}.log").exists():
        return "was killed or is still running; its log ends there"
    return "has not been run"


def main() -> int:
    """Say whether a run in which something failed can go on with the models that are there: 0 if so, else 1."""
    try:
        profile = load_profile(sys.argv[1])
    except ParameterError:
        return 1  # Snakemake has said so
    found = diagnosed(profile)
    return int(not 0 < len(found) < len(profile.sources))


if __name__ == "__main__":
    sys.exit(main())
