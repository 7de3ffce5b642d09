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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml

from lib.alignment.evaluation import against_best
from lib.claims.evidence import furthest
from lib.comparison import twins
from lib.diagnosis import cosine
from lib.diagnosis.figures import GAIN_UNITS
from lib.run.files import PROJECT, CompanionError, errors_said, resolve, short, write_parquet, write_text_atomically
from lib.run.profile import Profile, load_profile
from lib.run.readiness import ready
from lib.run.stage import read_manifest
from lib.run.table import STAGES
from workflow.freshness import named, stale
from workflow.report import executed, manifest, missing, models_of
from workflow.start import at_work, snakemake

FOLDER = PROJECT / "findings"

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

HEADLINE = ["question", "model", "measure", "value", "ci_low", "ci_high", "beside", "answer"]


class FindingsError(CompanionError):
    """A run is not finished, or its findings are not there."""


@dataclass(frozen=True)
class Found:
    """What a run found: its profile, and its tables in the run's directory or in ``findings/tables``."""

    profile: Profile
    tables: Path

    @property
    def models(self) -> list[str]:
        """All models, untrained twins too, in the profile's order."""
        return list(self.profile.sources)

    @property
    def trained(self) -> list[str]:
        """The models that are no untrained twin and no further reading of one before, each once."""
        return [model for model in self.models if model not in {*self.profile.twins, *self.profile.readings}]

    @property
    def sae_model(self) -> str:
        """The model that was aligned, steered and judged."""
        return self.profile.sae_model

    def table(self, stage: str, name: str, model: str | None = None) -> pd.DataFrame:
        """Return a table of a stage."""
        file = self.tables / STAGES[stage].directory(model or self.sae_model) / f"{name}.parquet"
        if not file.exists():
            made_by = "`python -m workflow.findings collect`" if self.tables == FOLDER / "tables" else "`make finding`"
            raise FindingsError(f"{short(file)} is not there; {made_by} makes it")
        return pd.read_parquet(file)


def headline(found: Found) -> pd.DataFrame:
    """Return the one table that matters, from tables of the stages alone.

    Returns:
        Columns ``HEADLINE``: the question, whose answer it is, what was measured, its value with a 95% interval, what stands
        beside it, and the answer that the stages' own rules give.
    """
    parts = (_of_cosine, _of_decisions, _of_twins, _of_size, _of_templates, _of_clusters, _of_alignment, _of_judging)
    return pd.DataFrame([row for part in parts for row in part(found)], columns=HEADLINE)


def _of_cosine(found: Found) -> Iterator[tuple[Any, ...]]:
    question = "Is the published cosine explained by length?"
    for model in found.models:
        table = found.table("diagnosis", "cosine", model)
        share = explained_by_length(table)
        means = cosine.in_the_middle(table)
        beside = f"middle layers: published cosine {means['published']:.2f}, length alone {means['length_only']:.2f}"
        numbers = (share["value"], share["ci_low"], share["ci_high"])
        yield question, model, "share of the way to length alone", *numbers, beside, cosine.decision(share)


def explained_by_length(table: pd.DataFrame) -> pd.Series:
    """Return the row of a model's cosines that says how far length accounts for the published one, over its middle layers."""
    return table[(table["metric"] == "explained_by_length") & table["layer"].isna()].iloc[0]


def _of_decisions(found: Found) -> Iterator[tuple[Any, ...]]:
    for model in found.models:
        for row in found.table("diagnosis", "decisions", model).itertuples():
            numbers = (row.gain, row.ci_low, row.ci_high)
            where = f"layer {row.layer:.0f} ({row.pooling.replace('_', ' ')})"
            beside = f"words {row.words:.3f}, with the model {row.careful:.3f} after {where}"
            yield (
                f"Signal beyond words: {row.kind}?",
                model,
                f"gain, {GAIN_UNITS[row.kind]}",
                *numbers,
                beside,
                row.decision,
            )


def _of_twins(found: Found) -> Iterator[tuple[Any, ...]]:
    for row in found.table("comparison", "twins").itertuples():
        measure = f"gain less the twin's, {GAIN_UNITS[row.kind]}"
        beside = f"gain {row.gain:.3f}, of the twin {row.twin_gain:.3f}"
        answer = "more than the twin" if row.ci_low > 0 else "no difference to tell"
        yield (
            f"More than its untrained twin: {row.kind}?",
            row.model,
            measure,
            row.difference,
            row.ci_low,
            row.ci_high,
            beside,
            answer,
        )


def _of_size(found: Found) -> Iterator[tuple[Any, ...]]:
    """Each trained model beside the one before it in the profile, which is smaller, as a model is put beside its twin."""
    for smaller, larger in pairwise(found.trained):
        gains = {model: found.table("diagnosis", "gains", model) for model in (smaller, larger)}
        more = twins.contrasts(gains, twins={smaller: larger}, seed=found.profile.seed)
        less = twins.contrasts(gains, twins={larger: smaller}, seed=found.profile.seed)
        for (_, up), (_, down) in zip(more.iterrows(), less.iterrows(), strict=True):
            row, answer = up, f"more than {smaller}" if up["ci_low"] > 0 else "no difference to tell"
            if down["ci_low"] > 0:
                row, answer = _turned(down), f"less than {smaller}"
            measure = f"gain less that of {smaller}, {GAIN_UNITS[row['kind']]}"
            beside = f"gain {row['gain']:.3f}, of {smaller} {row['twin_gain']:.3f}"
            numbers = row[["difference", "ci_low", "ci_high"]]
            yield f"Does it grow with size: {row['kind']}?", larger, measure, *numbers, beside, answer


def _turned(contrast: pd.Series) -> pd.Series:
    """Return a contrast as seen from the other of its two models."""
    turned = {"gain": contrast["twin_gain"], "twin_gain": contrast["gain"], "difference": -contrast["difference"]}
    return pd.Series({**contrast, **turned, "ci_low": -contrast["ci_high"], "ci_high": -contrast["ci_low"]})


def _of_templates(found: Found) -> Iterator[tuple[Any, ...]]:
    """Each further reading of a model beside its first, where they differ beyond the margin, or else where they may most.

    Intervals hold for all places at once.
    """
    contrasts = found.table("comparison", "templates")
    for (kind, reading), part in contrasts.groupby(["kind", "reading"], sort=False):
        intervals = part[["ci_low", "ci_high"]].div(part["margin"], axis=0)
        place, beyond = furthest(intervals)
        row = part.loc[place]
        within = intervals.abs().to_numpy().max() <= 1
        answer = "it does" if beyond else "not by more than the margin" if within else "undecided"
        beside = (
            f"gain {row['gain']:.3f}, of this reading {row['reading_gain']:.3f} after layer {row['layer']:.0f} "
            f"({row['pooling'].replace('_', ' ')}); margin {row['margin']:g}"
        )
        measure = f"gain less that of {row['model']}, {GAIN_UNITS[kind]}"
        numbers = row[["difference", "ci_low", "ci_high"]]
        yield f"Does it depend on the template: {kind}?", reading, measure, *numbers, beside, answer


def _of_clusters(found: Found) -> Iterator[tuple[Any, ...]]:
    claims = found.table("claims", "claims").set_index("id")
    for claim, question in (
        ("structural-polarity", "Do clusters follow polarity?"),
        ("structural-noise", "Does that index come from noise points?"),
    ):
        row = claims.loc[claim]
        beside = "" if pd.isna(row["control_name"]) else f"{row['control_name']}: {row['control_value']:.3f}"
        measure = "adjusted Rand index" if claim == "structural-polarity" else "share of points called noise"
        numbers = (row["ours"], row["ci_low"], row["ci_high"])
        yield question, found.sae_model, measure, *numbers, beside, f"{row['statement']}: {row['here']}"


def _of_alignment(found: Found) -> Iterator[tuple[Any, ...]]:
    for row in against_best(found.table("alignment", "alignment")).itertuples():
        beside = f"aligned {row.aligned:.3f}, {row.control} {row.best:.3f}"
        question = f"What does alignment add after layer {row.layer}?"
        yield question, found.sae_model, row.metric, row.difference, row.ci_low, row.ci_high, beside, row.adds


def _of_judging(found: Found) -> Iterator[tuple[Any, ...]]:
    for row in found.table("judging", "judges").query("metric == 'gold_agreement'").itertuples():
        answer = "usable" if row.usable else "not usable"
        beside = f"at least {row.bound:g} is asked"
        yield (
            "Can the judge tell?",
            row.judge,
            "agreement with known pairs",
            row.value,
            row.ci_low,
            row.ci_high,
            beside,
            answer,
        )
    tests = found.table("judging", "contrasts")
    paired = (tests["test"] == "paired difference") & (tests["rubric"] == "pairwise") & (tests["dimension"] == "all")
    for row in tests[paired & (tests["protocol"] == "careful") & (tests["arm"] == "aligned")].itertuples():
        answer = "a difference" if row.p_holm <= 0.05 else "no difference to tell"
        numbers = (row.value, row.ci_low, row.ci_high)
        answer = answer if row.usable else f"{answer}, by a judge that is not usable"
        yield (
            "What does steering do to answers?",
            found.sae_model,
            f"win rate, aligned less {row.against}",
            *numbers,
            "",
            answer,
        )


# ------------------------------------------------------------------------------------------- the folder


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
    for stage, specification in STAGES.items():
        for model in models_of(profile, stage):
            directory = specification.directory(model)
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
    # What is checked needs the annotations and the first model alone.
    checked = arguments.action == "check"
    profile = ready(arguments.profile, ("annotations", "models.0")) if checked else load_profile(arguments.profile)
    if arguments.action == "collect":
        collect(arguments.profile)
    elif checked:
        print("\n".join(differences := check(profile)) or "the diagnosis is as recorded")
        return int(bool(differences))
    else:
        found = Found(profile, resolve(f"runs/{profile.run}"))
        print(headline(found).to_markdown(index=False, floatfmt=".3g", missingval=""))
    return 0


if __name__ == "__main__":
    with errors_said():
        sys.exit(main())
