"""The one table that matters of a run on real models: what was asked, what was measured and what the stages' rules say.

It is read from the tables of the stages alone, in the run's directory or in ``findings/tables``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from lib.alignment.evaluation import against_best
from lib.claims.evidence import furthest
from lib.comparison import twins
from lib.diagnosis import cosine
from lib.diagnosis.decisions import GAIN_UNITS
from lib.run.files import PROJECT, CompanionError, short
from lib.run.profile import Profile
from lib.run.table import STAGES

FOLDER = PROJECT / "findings"

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
    question, measure = "Is the published cosine explained by length?", "share of the way to length alone"
    for model in found.models:
        table = found.table("diagnosis", "cosine", model)
        share, means = explained_by_length(table), cosine.in_the_middle(table)
        numbers = share[["value", "ci_low", "ci_high"]]
        beside = f"middle layers: published cosine {means['published']:.2f}, length alone {means['length_only']:.2f}"
        yield question, model, measure, *numbers, beside, cosine.decision(share)


def explained_by_length(table: pd.DataFrame) -> pd.Series:
    """Return the row of a model's cosines that says how far length accounts for the published one, over its middle layers."""
    return table[(table["metric"] == "explained_by_length") & table["layer"].isna()].iloc[0]


def _of_decisions(found: Found) -> Iterator[tuple[Any, ...]]:
    for model in found.models:
        for row in found.table("diagnosis", "decisions", model).itertuples():
            question, measure = f"Signal beyond words: {row.kind}?", f"gain, {GAIN_UNITS[row.kind]}"
            numbers = (row.gain, row.ci_low, row.ci_high)
            where = f"layer {row.layer:.0f} ({row.pooling.replace('_', ' ')})"
            beside = f"words {row.words:.3f}, with the model {row.careful:.3f} after {where}"
            yield question, model, measure, *numbers, beside, row.decision


def _of_twins(found: Found) -> Iterator[tuple[Any, ...]]:
    for row in found.table("comparison", "twins").itertuples():
        question = f"More than its untrained twin: {row.kind}?"
        measure = f"gain less the twin's, {GAIN_UNITS[row.kind]}"
        numbers = (row.difference, row.ci_low, row.ci_high)
        beside = f"gain {row.gain:.3f}, of the twin {row.twin_gain:.3f}"
        answer = "more than the twin" if row.ci_low > 0 else "no difference to tell"
        yield question, row.model, measure, *numbers, beside, answer


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
    for claim, question, measure in (
        ("structural-polarity", "Do clusters follow polarity?", "adjusted Rand index"),
        ("structural-noise", "Does that index come from noise points?", "share of points called noise"),
    ):
        row = claims.loc[claim]
        numbers = row[["ours", "ci_low", "ci_high"]]
        beside = "" if pd.isna(row["control_name"]) else f"{row['control_name']}: {row['control_value']:.3f}"
        yield question, found.sae_model, measure, *numbers, beside, f"{row['statement']}: {row['here']}"


def _of_alignment(found: Found) -> Iterator[tuple[Any, ...]]:
    for row in against_best(found.table("alignment", "alignment")).itertuples():
        question = f"What does alignment add after layer {row.layer}?"
        numbers = (row.difference, row.ci_low, row.ci_high)
        beside = f"aligned {row.aligned:.3f}, {row.control} {row.best:.3f}"
        yield question, found.sae_model, row.metric, *numbers, beside, row.adds


def _of_judging(found: Found) -> Iterator[tuple[Any, ...]]:
    for row in found.table("judging", "judges").query("metric == 'gold_agreement'").itertuples():
        question, measure = "Can the judge tell?", "agreement with known pairs"
        numbers = (row.value, row.ci_low, row.ci_high)
        answer = "usable" if row.usable else "not usable"
        yield question, row.judge, measure, *numbers, f"at least {row.bound:g} is asked", answer
    tests = found.table("judging", "contrasts")
    paired = (tests["test"] == "paired difference") & (tests["rubric"] == "pairwise") & (tests["dimension"] == "all")
    for row in tests[paired & (tests["protocol"] == "careful") & (tests["arm"] == "aligned")].itertuples():
        question, measure = "What does steering do to answers?", f"win rate, aligned less {row.against}"
        numbers = (row.value, row.ci_low, row.ci_high)
        answer = "a difference" if row.p_holm <= 0.05 else "no difference to tell"
        answer = answer if row.usable else f"{answer}, by a judge that is not usable"
        yield question, found.sae_model, measure, *numbers, "", answer
