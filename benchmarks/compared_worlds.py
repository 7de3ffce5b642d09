"""Worlds of models: the paper's 23 with measures whose dependence on size, architecture and tuning is known.

A measure is a constant, what the world adds, what a family shares and what a model has of its own, all in units of its margin.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.claim_rates import decided
from lib.claims.evidence import of_comparison
from lib.comparison.regressions import facts, pairs, regressions
from lib.diagnosis.decisions import MEASURES
from lib.paper import models

MODELS = facts(list(models()["name"])).rename(columns={"name": "model"})
SIZE = f"{len(MODELS)} models of {MODELS['family'].nunique()} families"


class World(NamedTuple):
    """A world, in margins: what size, architecture or tuning changes in every kind, and what families and models differ by."""

    name: str
    change: float
    family: float
    own: float


WORLDS = [
    World("nothing changes, models alike", 0.0, 0.05, 0.05),
    World("nothing changes", 0.0, 0.5, 0.3),
    World("a change of the margin", 1.0, 0.5, 0.3),
    World("a change of four margins", 4.0, 0.5, 0.3),
]

QUESTIONS = ("scale", "architecture", "variant", "congruent")


def draw(world: World, seed: int) -> pd.DataFrame:
    """Draw the measures of all models, with the columns of :func:`lib.comparison.regressions.comparable`."""
    generator = np.random.default_rng(seed)
    size = np.log10(MODELS["parameters_billions"].to_numpy(float))
    changed = (size - size.min()) / np.ptp(size) + (MODELS["architecture"] == "moe") + (MODELS["variant"] == "instruct")
    family, names = pd.factorize(MODELS["family"])
    parts = []
    for kind in MEASURES:
        for measure in ("published", "careful"):
            shared = world.family * generator.standard_normal(len(names))[family]
            value = world.change * changed + shared + world.own * generator.standard_normal(len(MODELS))
            about = {"kind": kind.kind, "measure": measure, "unit": "the measure's own", "margin": 1.0}
            parts.append(MODELS.assign(**about, value=value, standard_error=world.own))
    return pd.concat(parts, ignore_index=True)


def truths(world: World) -> dict[str, tuple[float, bool]]:
    """Return claim -> what it measures, and whether it holds: each question changes every kind by the same."""
    same = {f"comparison-{question}": (world.change, abs(world.change) < 1) for question in QUESTIONS}
    return same | {"R3-tuning": (world.change, abs(world.change) > 1)}


def run(world: World, size: str, seed: int) -> pd.DataFrame:
    """Decide on one drawn world, as :func:`benchmarks.claim_rates.decided` does."""
    measures = draw(world, seed)
    evidence = of_comparison(regressions(measures), pairs(measures))
    return decided(evidence, truths(world)).assign(world=world.name, size=size)


SIZES = (SIZE,)
