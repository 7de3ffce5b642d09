"""Worlds of aligned latents: what every arm's latents tell of ten categories on held-out rows is known.

Activations are what a category's typicality and its opposite's give, noise that all arms share, and noise of their own.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.claim_rates import decided
from lib.alignment.evaluation import Applied, evaluate
from lib.claims.evidence import of_alignment
from lib.paper import CATEGORIES, OPPOSITES
from lib.sae.rows import Rows

CONTROLS = ("shuffled", "reconstruction", "probe")
ENDLESS, DRAWS = 60_000, 200
"""Rows from which the truth of a world is read, and resamples of a run."""

OPPOSITE = [
    CATEGORIES.index((OPPOSITES | {vice: virtue for virtue, vice in OPPOSITES.items()})[name]) for name in CATEGORIES
]


class Arm(NamedTuple):
    """What an arm's latents take from their category's typicality, and from its opposite's."""

    own: float
    opposite: float


class World(NamedTuple):
    """A world: what the untuned arm, the aligned one and every control hold."""

    name: str
    untuned: Arm
    aligned: Arm
    control: Arm


BEFORE, AFTER = Arm(0.5, 0.5), Arm(1.0, 0.0)
WORLDS = [
    World("nothing", BEFORE, BEFORE, BEFORE),
    World("every arm gains", BEFORE, AFTER, AFTER),
    World("alignment gains", BEFORE, AFTER, BEFORE),
    World("alignment gains a little", BEFORE, Arm(0.6, 0.4), BEFORE),
]


class Size(NamedTuple):
    """How many held-out rows, one in five of them of an action that comes again."""

    rows: int

    def __str__(self) -> str:
        return f"{self.rows:,} rows"


SIZES = (Size(400), Size(1_500))


def draw(world: World, rows: int, seed: int) -> tuple[dict[str, list[Applied]], Rows]:
    """Draw held-out rows and what every arm's latents do on them."""
    generator = np.random.default_rng([seed, rows])
    action = np.where(generator.random(rows) < 0.2, generator.integers(0, rows, rows), np.arange(rows))
    named = generator.random((rows, len(CATEGORIES))) < 0.15
    vectors = (named * generator.choice([0.125, 0.25, 0.5, 0.75, 1.0], named.shape))[action]
    shared = generator.standard_normal(vectors.shape)[action]
    applied = {}
    for arm in ("untuned", "aligned", *CONTROLS):
        held = {"untuned": world.untuned, "aligned": world.aligned}.get(arm, world.control)
        noise = 0.6 * shared + 0.4 * generator.standard_normal(vectors.shape)
        activity = held.own * vectors + held.opposite * vectors[:, OPPOSITE] + 0.5 * noise
        applied[arm] = [Applied(np.maximum(activity, 0.0), np.full(rows, np.nan))]
    return applied, Rows(np.zeros((rows, 1), dtype=np.float32), vectors, action.astype(str))


@cache
def truths(world: World) -> dict[str, tuple[float, bool]]:
    """Return claim -> what it measures, read from very many rows, and whether alignment, and nothing else, brings it about."""
    table = evaluate(*draw(world, ENDLESS, seed=-1 % 2**32), draws=1, seed=0)
    table = table[(table["arm"] == "aligned") & (table["category"] == "all")].set_index("metric")["value"]
    gains = world.aligned != world.untuned and world.aligned != world.control
    metrics = {"alignment-gradient": "gradient", "alignment-opposites": "opposing_similarity"}
    same = world.aligned == world.untuned
    return {claim: (0.0 if same else table[f"{name} minus untuned"], gains) for claim, name in metrics.items()}


def run(world: World, size: Size, seed: int) -> pd.DataFrame:
    """Decide on one drawn world, as :func:`benchmarks.claim_rates.decided` does."""
    table = evaluate(*draw(world, size.rows, seed), draws=DRAWS, seed=seed)
    return decided(of_alignment(table), truths(world)).assign(world=world.name, size=str(size))
