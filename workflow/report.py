"""What of a run is there, what failed, and what is missing: a run goes on without a failed model and says so.

    python -m workflow.report profiles/demo.yaml    # where the claims are, what is missing and why

Every attempt of a job leaves its notebook and its log in ``runs/<run>/attempts``, and one that fails
``runs/<run>/failed/<job>.json``, which the next success of the same job removes. A job is done when its whole notebook lies
in ``runs/<run>/notebooks``. A job that was killed from outside leaves no failure, which says as much.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lib.claims.ledger import summary
from lib.run.files import errors_said, resolve, short, write_text_atomically
from lib.run.profile import Profile, load_profile
from lib.run.stage import read_manifest
from lib.run.table import STAGES

MEMORY_ERRORS = ("MemoryError", "OutOfMemoryError", "DeadKernelError", "TerminatedWorkerError")
"""Errors that more memory may cure. A kernel, or a process that it started, that dies without a word was, as a rule, killed
for memory."""


# -------------------------------------------------------------------------------------- a job that fails


def record(job: Path, notebook: Path, status: int, stderr: str) -> dict[str, Any]:
    """Write down why a job failed: from the ``notebook`` of its attempt, else from the attempt's ``stderr``.

    ``job`` is where its whole notebook would lie.
    """
    name, message = "", f"exit status {status}"
    if "DeadKernelError" in stderr:
        name, message = "DeadKernelError", "the kernel died, as it does when memory runs out"
    elif notebook.exists():
        # A job that is killed while it writes leaves half a notebook.
        with contextlib.suppress(ValueError, KeyError):
            for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
                for output in cell.get("outputs", []):
                    if output["output_type"] == "error":
                        name, message = output["ename"], output["evalue"]
    elif stderr.strip():
        error, _, message = stderr.strip().splitlines()[-1].partition(": ")
        name = error.rpartition(".")[2]
    failure = {
        "notebook": short(notebook),
        "error": name or "unknown",
        "message": message,
        "memory": name in MEMORY_ERRORS or status in (-9, 137),
    }
    write_text_atomically(_path(job), json.dumps(failure, indent=1))
    return failure


def recorded(job: Path) -> dict[str, Any] | None:
    """Return why a job failed last, or None."""
    path = _path(job)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def forget(job: Path) -> None:
    """Remove the record of a job."""
    _path(job).unlink(missing_ok=True)


def _path(job: Path) -> Path:
    return job.parent.parent / "failed" / f"{job.stem}.json"


def attempts(job: Path) -> list[Path]:
    """Return the logs of all attempts of a job, or of its parts, the oldest first."""
    return sorted(_of(job, "attempts", r"\.\d+\.log"), key=lambda path: path.stat().st_mtime)


def _of(job: Path, folder: str, ending: str) -> list[Path]:
    """Files of a job, then those of its parts; none of a model whose name goes on where this one's ends."""
    name = re.compile(rf"{re.escape(job.stem)}(\.\d+-of-\d+)?{ending}")
    files = [path for path in (job.parent.parent / folder).glob("*") if name.fullmatch(path.name)]
    return sorted(files, key=lambda path: (len(path.name), path.name))


# ------------------------------------------------------------------------------------ a run and its gaps


def job_name(stage: str, model: str | None) -> str:
    """Return the name of a job's files: the notebook's, and the model where the stage has a directory per model."""
    return f"{STAGES[stage].notebook}.{model}" if STAGES[stage].per_model else STAGES[stage].notebook


def manifest(profile: Profile, stage: str, model: str | None = None) -> str:
    """Return the file that says a stage is finished."""
    return f"runs/{profile.run}/{STAGES[stage].directory(model or profile.sae_model)}/manifest.json"


def executed(profile: Profile, stage: str, model: str | None = None) -> str:
    """Return the whole notebook of a job: the file that says that stage and figures are done."""
    return f"runs/{profile.run}/notebooks/{job_name(stage, model or profile.sae_model)}.ipynb"


def benchmark(profile: Profile, stage: str, model: str | None = None) -> str:
    """Return what Snakemake writes of a job's time and memory, which it takes for an output of the job."""
    return f"runs/{profile.run}/benchmarks/{job_name(stage, model or profile.sae_model)}.tsv"


def models_of(profile: Profile, stage: str) -> list[str]:
    """Return the models for which a stage runs."""
    return list(profile.sources) if STAGES[stage].every_model else [profile.sae_model]


def jobs(profile: Profile) -> list[tuple[str, str]]:
    """Return stage and model of every job of a run, in the order of the stages."""
    return [(stage, model) for stage in STAGES for model in models_of(profile, stage)]


def finished(profile: Profile, stage: str, model: str | None = None) -> bool:
    """Say whether a stage is finished, for ``model`` if it runs per model."""
    return resolve(manifest(profile, stage, model)).exists()


def current(profile: Profile, stage: str, model: str | None = None) -> bool:
    """Say whether a stage is finished and drawn, and so is, all the way up, every stage whose results it reads.

    What a failed run leaves further down was made from results that are no longer there.
    """
    model = model or profile.sae_model
    return (
        finished(profile, stage, model)
        and resolve(executed(profile, stage, model)).exists()
        and all(current(profile, needed, each) for needed, each in _read_by(profile, stage, model))
    )


def _read_by(profile: Profile, stage: str, model: str) -> Iterator[tuple[str, str]]:
    """Yield the stages that one reads, and of which model: of all those that it was made from, or will be."""
    models = [model]
    if "models" in STAGES[stage].parameters.model_fields:
        made = finished(profile, stage)
        recorded = read_manifest(resolve(manifest(profile, stage)).parent)["identity"]["parameters"] if made else {}
        models = recorded.get("models", list(profile.sources))
    for needed in STAGES[stage].needs:
        for each in models if STAGES[needed].every_model else [model]:
            yield needed, each


def diagnosed(profile: Profile) -> list[str]:
    """Return the profile's models whose diagnosis is current."""
    return [model for model in profile.sources if current(profile, "diagnosis", model)]


def take_away(profile: Profile) -> None:
    """Remove the notebooks of what is not current, so that it is made again from what is there."""
    for stage, model in jobs(profile):
        if not current(profile, stage, model):
            resolve(executed(profile, stage, model)).unlink(missing_ok=True)


def reachable(profile: Profile, models: list[str]) -> list[str]:
    """Return the notebooks of the last stages that a run can still reach with ``models``, where others have failed."""
    if not models:
        return []
    others = [stage for stage in STAGES["claims"].needs if stage != "comparison"]
    ends = ["comparison", *(["claims"] if all(current(profile, stage) for stage in others) else [])]
    return [executed(profile, stage) for stage in ends]


def missing(profile: Profile) -> pd.DataFrame:
    """List what a run should have and has not: results that are current, or only the notebook with its figures.

    Returns:
        Columns ``stage``, ``model`` (empty where a stage has none), ``reason``, ``log`` (of the last attempt; empty if there
        was none); no rows when all is there.
    """
    rows = []
    for stage, model in jobs(profile):
        if not current(profile, stage, model):
            job = resolve(executed(profile, stage, model))
            log = short(logs[-1]) if (logs := attempts(job)) else ""
            reason = _reason(profile, stage, model, job)
            rows.append((stage, model if STAGES[stage].per_model else "", reason, log))
    return pd.DataFrame(rows, columns=["stage", "model", "reason", "log"])


def _reason(profile: Profile, stage: str, model: str, job: Path) -> str:
    # Its own failure, or that of one of its parts.
    after = "its results are there, its notebook is not: " if finished(profile, stage, model) else ""
    for path in _of(job, "failed", r"\.json"):
        why = json.loads(path.read_text(encoding="utf-8"))
        return f"{after}{why['error']}: {why['message'].splitlines()[0] if why['message'] else ''}"
    for needed, each in _read_by(profile, stage, model):
        if not current(profile, needed, each):
            return f"needs {needed}{f' of {each}' if each != model else ''}, which is missing"
    if attempts(job):
        return f"{after}it was stopped, or is still running; the log of its last attempt ends there"
    return f"{after}it has not been run"


def show(profile: Profile) -> int:
    """Print where a profile's claims are, how many got which decision, and what is missing and why.

    Returns:
        0, or 1 if something is missing; it is listed in ``runs/<run>/missing.csv`` too.
    """
    run = resolve(f"runs/{profile.run}")
    claims = run / "claims" / "claims.csv"
    if current(profile, "claims"):
        print(f"{short(claims)}: {summary(pd.read_csv(claims))}")
        for notice in read_manifest(claims.parent)["notices"]:
            print(notice)
    gaps = missing(profile)
    (run / "missing.csv").unlink(missing_ok=True)
    if len(gaps):
        write_text_atomically(run / "missing.csv", gaps.to_csv(index=False))
        print(f"{short(run / 'missing.csv')}: {len(gaps)} results are missing")
        for gap in gaps.itertuples():
            log = f" ({gap.log})" if gap.log else ""
            print(f"  {gap.stage}{f' of {gap.model}' if gap.model else ''}: {gap.reason}{log}")
    return int(len(gaps) > 0)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    return show(load_profile(parser.parse_args().profile))


if __name__ == "__main__":
    with errors_said():
        sys.exit(main())
