"""What a run on real models came to, as a folder that can be committed and forwarded.

    python -m workflow.findings show findings/profile.yaml       # the one table that matters, from a finished run
    python -m workflow.findings collect findings/profile.yaml    # the run's tables, figures and notebooks into findings/
    python -m workflow.findings check                            # the diagnosis again, compared with findings/tables (slow)

Tables hold ids and numbers, never texts. The page of the findings is written from them (:mod:`docs.findings`).
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml

from lib.run.files import PROJECT, errors_said, resolve, short, write_parquet, write_text_atomically
from lib.run.profile import Profile, load_profile
from lib.run.readiness import ready
from lib.run.stage import read_manifest
from lib.run.table import STAGES
from workflow.freshness import named, stale
from workflow.headline import FOLDER, FindingsError, Found, headline
from workflow.report import executed, jobs, manifest, missing, models_of
from workflow.start import at_work, snakemake

TABLES = {
    "vectors": ("ceiling", "dropped"),
    "diagnosis": ("categorical", "gradient", "structural", "dimensional", "cosine", "gains", "decisions"),
    "comparison": ("headlines", "twins", "templates", "regressions", "pairs"),
    "sae": ("quality",),
    "alignment": ("alignment", "similarity", "tuned"),
    "steering": ("perplexity",),
    "judging": ("judges", "outcomes", "summary", "contrasts", "pairwise", "absolute", "agreement"),
    "claims": ("claims", "controls", "settings"),
}
"""Tables of each stage that a reader of the findings may want; those that a run did not write are left out."""

SHOWN = ("diagnosis", "comparison", "alignment", "judging", "claims")
"""Stages whose executed notebooks are kept."""

TOLERANCE = 0.005
"""How far a gain or a cosine may lie from the recorded one when it is computed on another machine."""


def collect(profile_path: str) -> None:
    """Copy what a finished run found into ``findings/``.

    Raises:
        FindingsError: the run is not finished, or is of another identity than the code here would make.
    """
    profile = load_profile(profile_path)
    if len(lacking := missing(profile)):
        raise FindingsError(f"runs/{profile.run} is not finished: {', '.join(lacking['stage'].unique())} missing")
    if others := [f"{named(stage, model)} was {why}" for stage, model, why in stale(profile)]:
        raise FindingsError(f"runs/{profile.run} is not what this code makes: {'; '.join(others)}")
    # Asked before anything is written.
    made_by = {"commit": _git("rev-parse", "HEAD"), "clean": not _git("status", "--porcelain")}
    run = resolve(f"runs/{profile.run}")
    for name in ("tables", "figures", "notebooks"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    stages = {}
    for stage, model in jobs(profile):
        directory = STAGES[stage].directory(model)
        stages[directory] = _recorded(resolve(manifest(profile, stage, model)))
        for name in TABLES.get(stage, ()):
            if (file := run / directory / f"{name}.parquet").exists():
                (FOLDER / "tables" / directory).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, FOLDER / "tables" / directory / file.name)
        if stage in SHOWN:
            _keep_notebook(resolve(executed(profile, stage, model)))
    write_parquet(FOLDER / "tables" / "rows.parquet", _rows(run))
    for file in sorted((run / "figures").iterdir()):
        if file.suffix == ".svg" and _of_this_run(profile, file):  # its table is among the tables
            (FOLDER / "figures").mkdir(exist_ok=True)
            shutil.copy(file, FOLDER / "figures" / file.name)
    content = {"profile": short(profile_path), **made_by, "stages": stages}
    write_text_atomically(FOLDER / "manifest.json", json.dumps(content, indent=1) + "\n")
    print(f"collected in {short(FOLDER)}; `make readme` writes its page and the README's part")


def check(profile: Profile) -> list[str]:
    """Diagnose the findings' first model again, from its weights and the annotations, and compare with ``findings/tables``.

    Returns:
        What differs, a line each: another decision, or a gain or a cosine further off than ``TOLERANCE``.

    Raises:
        FindingsError: the diagnosis did not end.
        BusyError: another process does the same.
    """
    again = profile.model_copy(update={"run": f"{profile.run}-check"})
    file = resolve(f"runs/{again.run}/profile.yaml")
    write_text_atomically(file, yaml.safe_dump(again.model_dump(exclude_unset=True)))
    model = next(iter(profile.sources))
    with at_work(again):
        if snakemake("--cores", "all", executed(again, "diagnosis", model), "--config", f"profile={file}"):
            raise FindingsError(f"the diagnosis of {model} did not end, see above")
    new, old = Found(again, resolve(f"runs/{again.run}")), Found(profile, FOLDER / "tables")
    lines = []
    for table, keys, column in (
        ("gains", ["kind", "pooling", "layer"], "gain"),
        ("cosine", ["layer", "pooling", "foundation", "arm", "metric"], "value"),
    ):
        first, second = (found.table("diagnosis", table, model).set_index(keys)[column] for found in (old, new))
        off = (first - second.reindex(first.index)).abs()
        wrong = off[(off > TOLERANCE) | (first.notna() & off.isna())]
        lines += [f"{table} {key}: {first[key]:.4f} was recorded, off by {by:.4f}" for key, by in wrong.items()]
    decided = [found.table("diagnosis", "decisions", model).set_index("kind")["decision"] for found in (old, new)]
    differ = decided[0][decided[0] != decided[1]]
    return lines + [f"{kind}: {was} was recorded, {decided[1][kind]} found" for kind, was in differ.items()]


def _recorded(path: Path) -> dict[str, Any]:
    kept = ("identity", "outputs", "notices", "machine", "wall_seconds", "finished")
    return {key: value for key, value in read_manifest(path.parent).items() if key in kept}


def _keep_notebook(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    (FOLDER / "notebooks").mkdir(parents=True, exist_ok=True)
    write_text_atomically(FOLDER / "notebooks" / path.name, nbformat.writes(notebook) + "\n")


def _of_this_run(profile: Profile, figure: Path) -> bool:
    """Say whether a stage of the profile drew a figure; an earlier profile of the same run may have left others."""
    stage = json.loads(figure.with_suffix(".json").read_text(encoding="utf-8"))["stage"]
    mine = models_of(profile, stage)
    return not STAGES[stage].per_model or any(figure.stem.endswith(f"_{model}") for model in mine)


def _rows(run: Path) -> pd.DataFrame:
    """Say which annotations were used, without their text.

    Returns:
        Columns ``id``, ``action_sha256`` (the first 16 digits of the hash of the action's UTF-8 bytes, by which rows of the
        official file are found again) and ``diagnosed`` (it is in the subset of stage 03).
    """
    annotations, subset = (pd.read_parquet(run / "vectors" / f"{name}.parquet") for name in ("annotations", "subset"))
    hashes = [hashlib.sha256(action.encode()).hexdigest()[:16] for action in annotations["action"]]
    diagnosed = annotations["id"].isin(subset["id"])
    return pd.DataFrame({"id": annotations["id"], "action_sha256": hashes, "diagnosed": diagnosed})


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="What a run on real models found.")
    parser.add_argument("action", choices=("show", "collect", "check"))
    parser.add_argument("profile", nargs="?", default="findings/profile.yaml")
    arguments = parser.parse_args()
    if arguments.action == "collect":
        collect(arguments.profile)
    elif arguments.action == "check":
        # It needs the annotations and the first model alone.
        differences = check(ready(arguments.profile, ("annotations", "models.0")))
        print("\n".join(differences) or "the diagnosis is as recorded")
        return int(bool(differences))
    else:
        profile = load_profile(arguments.profile)
        found = Found(profile, resolve(f"runs/{profile.run}"))
        print(headline(found).to_markdown(index=False, floatfmt=".3g", missingval=""))
    return 0


if __name__ == "__main__":
    with errors_said():
        sys.exit(main())
