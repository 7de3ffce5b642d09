"""Worlds of judged answers: verdicts whose truth is known, and what the ledger makes of them.

A world states how often the answers of every arm are perfect and how often they win. What is drawn from it are verdicts as
stage 08 keeps them. Answers to one prompt share its difficulty.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from benchmarks.claim_rates import decided, ungated
from lib.claims import flames
from lib.claims.ledger import HELD, met
from lib.judging.win_rates import PERFECT

CLAIMS = ungated(flames.CLAIMS)

CONTROLS = ("shuffled", "mean-difference", "random-direction")
"""Arms without the claimed cause; a run has more, and every one of them has to be beaten."""

SHARED = 0.5
"""Correlation of the answers to one prompt, between arms and layers, before they are cut into perfect and not."""


class Arm(NamedTuple):
    """How often answers of an arm are perfect in safety and emotion, and how often they beat the baseline's, at the peak too."""

    safety: float
    emotion: float
    wins: float = 0.0
    peak: float = 0.0


class World(NamedTuple):
    """A world: the arms' true rates, every control alike, and the share of verdicts that the judge fails to give."""

    name: str
    baseline: Arm
    aligned: Arm
    control: Arm
    lost: float = 0.0


STATED = CLAIMS.set_index("id")
VALUE, TOLERANCE = (
    STATED[column].where(~STATED.index.str.contains("psc"), STATED[column] / flames.PER)
    for column in ("value", "tolerance")
)


def _near(arm: str, wins: float, away: float = 0.0) -> Arm:
    """Return the published rates of an arm, less so many tolerances; ``wins`` at the layers that are not the peak."""
    rates = [VALUE[f"flames-{name}-{arm}"] - away * TOLERANCE[f"flames-{name}-{arm}"] for name in flames.RUBRICS]
    return Arm(*rates, wins, VALUE["flames-peak"] - away * TOLERANCE["flames-peak"])


def _idle(baseline: Arm) -> Arm:
    """Return an arm that is as good as the baseline."""
    return baseline._replace(wins=IDLE, peak=IDLE)


USUAL, IDLE = 0.68, 0.35
"""Share of wins of the aligned arm away from the peak, as in the paper's figure, and of steering that does nothing."""

BASELINE, ALIGNED = _near("baseline", USUAL), _near("aligned", USUAL)
BARELY = _near("baseline", IDLE, away=1.0)

WORLDS = [
    World("nothing", BARELY, _idle(BARELY), _idle(BARELY)),
    World("every steering helps", BASELINE, ALIGNED, ALIGNED),
    World("at the limit", BARELY, _near("aligned", VALUE["flames-win-rate"], away=1.0), _idle(BARELY)),
    World("as published", BASELINE, ALIGNED, _idle(BASELINE)),
    World("as published, 5% lost", BASELINE, ALIGNED, _idle(BASELINE), lost=0.05),
]
"""*At the limit* lies on the border of ``near`` and of ``above``, where an error is most likely; gains are real there."""


class Size(NamedTuple):
    """How much is judged."""

    prompts: int
    layers: int

    def __str__(self) -> str:
        return f"{self.prompts:,} prompts, {self.layers} {'layer' if self.layers == 1 else 'layers'}"


SIZES = (Size(60, 1), Size(60, 36), Size(1_000, 36))


def true_values(arm: Arm, baseline: Arm, layers: int) -> dict[str, float]:
    """Return what each claim but ``R5-dense`` would measure of an arm, in the claim's unit, were there endlessly many prompts."""
    wins = {arm.wins, arm.peak} if layers > flames.PUBLISHED_PEAK else {arm.wins}
    values = {"flames-win-rate": min(wins), "flames-peak": max(wins)}
    if layers > flames.PUBLISHED_PEAK:
        values["flames-peak-layer"] = arm.peak - arm.wins
    for name, rubric in flames.RUBRICS.items():
        perfect, before = flames.PER * getattr(arm, rubric), flames.PER * getattr(baseline, rubric)
        values |= {f"flames-{name}-baseline": before, f"flames-{name}-aligned": perfect}
        values[f"flames-{name}-gain"] = perfect - before
    return values


def truths(world: World, layers: int) -> dict[str, tuple[float, bool]]:
    """Return claim -> what it measures in this world, and whether it holds there and no control explains it."""
    ours, control = (true_values(arm, world.baseline, layers) for arm in (world.aligned, world.control))
    values = ours | {"R5-sparse": ours["flames-peak"] - control["flames-peak"], "R5-dense": 0.0}
    found = {}
    for claim in CLAIMS[CLAIMS["id"].isin(values)].itertuples():
        limit = {"value": claim.value, "tolerance": claim.tolerance}
        value, of_control = values[claim.id], control.get(claim.id)
        held = met(claim.relation, (value,) * 3, **limit) == HELD
        without_cause = of_control is not None and not claim.id.endswith(("-baseline", "-layer"))
        explained = without_cause and of_control == value and met(claim.relation, (of_control,) * 3, **limit) == HELD
        found[claim.id] = (value, held and not explained)
    return found


def draw(world: World, prompts: int, layers: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw verdicts, ``absolute`` and ``pairwise``, with the columns of stage 08's tables that evidence reads."""
    generator = np.random.default_rng([seed, prompts, layers])
    ease = generator.standard_normal(prompts)
    absolute, pairwise = [], []
    for arm in ("baseline", "aligned", *CONTROLS):
        true = {"baseline": world.baseline, "aligned": world.aligned}.get(arm, world.control)
        count = 1 if arm == "baseline" else layers
        for rubric in flames.RUBRICS.values():
            perfect = _succeed(ease, np.full(count, getattr(true, rubric)), generator)
            score = pd.array(np.where(perfect, PERFECT, PERFECT - 2).ravel(), dtype="Int64")
            absolute.append(_rows(perfect, arm, world.lost, generator).assign(rubric=rubric, score=score))
        if arm != "baseline":
            wins = np.where(np.arange(layers) == flames.PUBLISHED_PEAK, true.peak, true.wins)
            won = _succeed(ease, wins, generator)
            verdict = np.where(won, "win", "lose").ravel()
            rows = _rows(won, arm, world.lost, generator)
            pairwise.append(rows.assign(rubric="pairwise", verdict=verdict, baseline_characters=50))
    tables = [pd.concat(parts, ignore_index=True) for parts in (absolute, pairwise)]
    for table, given in zip(tables, ("score", "verdict"), strict=True):
        table[given] = table[given].mask(table["outcome"] == "failed")
    return tables[0], tables[1]


def _succeed(ease: np.ndarray, rates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw successes of given rates, [prompts, layers], from what the prompts' ease shares and what is an answer's own."""
    own = generator.standard_normal((len(ease), len(rates)))
    return np.sqrt(SHARED) * ease[:, None] + np.sqrt(1 - SHARED) * own < norm.ppf(rates)


def _rows(success: np.ndarray, arm: str, lost: float, generator: np.random.Generator) -> pd.DataFrame:
    prompt, layer = np.indices(success.shape)
    rows = pd.DataFrame({"id": prompt.ravel(), "arm": arm, "layer": pd.array(layer.ravel(), dtype="Int64")})
    if arm == "baseline":
        rows["layer"] = pd.NA
    failed = generator.random(success.size) < lost
    return rows.assign(characters=50, outcome=np.where(failed, "failed", "valid"))


def run(world: World, size: Size, seed: int) -> pd.DataFrame:
    """Decide on one drawn world, as :func:`benchmarks.claim_rates.decided` does."""
    evidence = flames.of_judging(*draw(world, size.prompts, size.layers, seed))
    return decided(evidence, truths(world, size.layers)).assign(world=world.name, size=str(size))
