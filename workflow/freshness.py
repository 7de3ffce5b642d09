"""Which finished results of a run are still what its profile asks for: their identity decides, never a file's date.

Snakemake runs a job whose notebook is missing from ``runs/<run>/notebooks``, and those that read its results. Here the
notebooks of stale jobs are taken away before it starts. The stage itself, when it is opened, moves results of another
identity aside (:func:`lib.run.stage.set_aside`); one whose identity turns out to be the same is only read. Snakemake also
runs a job whose input is newer than its notebook and too large to be hashed, whatever it is told of dates; so the notebooks
that stay, and its measurements of their jobs, are dated anew, the first stage first.
"""

import os
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from lib.run.files import resolve
from lib.run.judge_names import weights_of
from lib.run.profile import Profile
from lib.run.provenance import difference, identity_of
from lib.run.stage import read_manifest
from lib.run.table import STAGES
from lib.run.validation import build
from workflow.report import benchmark, executed, finished, jobs, manifest


def freshen(profile: Profile) -> list[str]:
    """Take away the notebooks of jobs whose results are gone or of another identity; return what was found, a line each.

    The notebooks that stay, and what was measured of their jobs, are dated now, in the order of the stages, so that none is older
    than what it was made from.

    Raises:
        MismatchError: the manifest of a stage is damaged.
    """
    lines = []
    for stage, model in jobs(profile):
        if not finished(profile, stage, model):
            resolve(executed(profile, stage, model)).unlink(missing_ok=True)
    for stage, model, why in stale(profile):
        resolve(executed(profile, stage, model)).unlink(missing_ok=True)
        lines.append(f"{named(stage, model)}: its results were {why}; it runs again")
    for stage, model in jobs(profile):
        for output in (executed, benchmark):
            if (path := resolve(output(profile, stage, model))).exists():
                os.utime(path)
    return lines


def named(stage: str, model: str) -> str:
    """Name a job for a reader: the stage and, if it runs per model, the model."""
    return f"{stage} of {model}" if STAGES[stage].per_model else stage


def stale(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """Yield stage, model and the field that differs, for every finished job whose results are of another identity.

    A job that reads results which are themselves stale, or are made again, is Snakemake's to run: it is judged here by the
    inputs that are there.
    """
    facts = cache(partial(_facts, profile))  # two stages open a model, whose weights are hashed whole
    for stage, model in jobs(profile):
        if finished(profile, stage, model):
            recorded = read_manifest(resolve(manifest(profile, stage, model)).parent)["identity"]
            known = facts(model) if recorded["facts"] else {}
            if why := difference(recorded, _asked(profile, stage, model=model, recorded=recorded, facts=known)):
                yield stage, model, why


def _asked(
    profile: Profile, stage: str, *, model: str, recorded: Mapping[str, Any], facts: Mapping[str, str]
) -> dict[str, Any]:
    """The identity that the stage would have now; inputs that are not there, and what only a hub knows, as recorded."""
    specification = STAGES[stage]
    values = profile.stage_parameters(stage, model)
    parameters = build(specification.parameters, values, f"the profile for {stage}")
    paths = {name: resolve(path) for name, path in specification.input_paths(values).items()}
    optional = specification.optional
    there = {name: path for name, path in paths.items() if (path.is_dir() if name in optional else path.exists())}
    if stage == "judging":
        there |= weights_of(parameters)
    if stage == "vectors" and "annotations" in there:
        there |= _unpacked(values)
    asked = identity_of(specification.notebook, parameters, there, facts)
    asked["inputs"] = recorded["inputs"] | asked["inputs"]
    asked["facts"] = asked["facts"] or recorded["facts"]
    return asked


def _unpacked(values: Mapping[str, Any]) -> dict[str, Path]:
    """The annotations that a zip holds, which stage 01 reads in its place; nothing of any other file."""
    if not values["annotations"].lower().endswith(".zip"):
        return {}
    from lib.vectors.social_chemistry import locate  # as slow to load as stage 01

    return {"annotations": locate(values["annotations"], values["accept_unverified"])}


def _facts(profile: Profile, model: str) -> dict[str, str]:
    source = profile.sources[model]
    if source.hub:
        return {}
    from lib.activations.sources import fingerprint  # loads transformers, which most runs of this do not need

    return fingerprint(source.source, untrained=profile.seed if source.like else None)
