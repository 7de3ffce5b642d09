"""The kinds of indifference as problems of prediction: which rows, which labels, which score.

Every kind asks one question of held-out actions. *Categorical*: is a row of a foundation a virtue or a vice? *Gradient*: how
typical of its category is it? *Structural*: do its nearest neighbours share its polarity? *Dimensional*: what is its moral
vector?
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lib.diagnosis import gains, neighbours, scores
from lib.diagnosis.dimensional import Probed
from lib.diagnosis.gains import Problem, Score
from lib.diagnosis.gradient import members
from lib.diagnosis.tidy import MINIMUM_ROWS
from lib.paper import CATEGORIES, FOUNDATIONS

MINIMUM_ACTIONS = 100
"""A problem with fewer distinct actions is not posed: folds within folds and groups would hold a handful."""


@dataclass(frozen=True)
class Kind:
    """One kind of indifference.

    Attributes:
        name: of the kind.
        problems: one for each foundation or category, or one alone; the kind's score is the mean over them.
        topics: covariates of the lexical baseline, [rows, k], beside what it reads in the words.
        score: of the predictions of one problem.
        fit: the lexical baseline of a problem, from its kernel.
        add: what a representation adds to it, from its kernel.
        learned: how much of the effect of the rows learned from counts in a replicate of the jackknife: half where a
            predictor is fitted, all where it is not (:mod:`lib.diagnosis.gains`).
    """

    name: str
    problems: list[Problem]
    topics: np.ndarray
    score: Score
    fit: Callable[[np.ndarray, Problem], Any] = gains.baseline
    add: Callable[..., gains.Added] = gains.add
    learned: float = 0.5


def kinds_of(
    subset: pd.DataFrame, probed: Probed, *, actions: np.ndarray, permutations: int, seed: int
) -> dict[str, Kind]:
    """Pose the problems of the four kinds.

    Args:
        subset: the diagnosis subset, columns ``foundation, polarity, typicality``, the first rows.
        probed: the annotations behind the dimensions, the rows after them.
        actions: normalised action of every row, [subset rows + probed rows].
        permutations: of the null.
        seed: of everything drawn.

    Returns:
        Name -> kind. A problem that has fewer than ``MINIMUM_ACTIONS`` actions, or too few of a label, is left out.
    """
    how = {"draws": permutations, "seed": seed}
    without = np.zeros((len(actions), 0), dtype=np.float32)
    named = np.array([[name in topic.split("|") for name in FOUNDATIONS] for topic in probed.topics], dtype=np.float32)
    topics = np.vstack(
        [np.zeros((len(subset), len(FOUNDATIONS)), dtype=np.float32), named.reshape(-1, len(FOUNDATIONS))]
    )
    dimensions = [(np.arange(len(subset), len(actions)), probed.vectors)]

    def posed(parts: list[tuple[np.ndarray, np.ndarray]], *, together: bool = True) -> list[Problem]:
        enough = [part for part in parts if _enough(part, actions)]
        return gains.problems(enough, actions, **how, together=together) if enough else []

    return {
        kind.name: kind
        for kind in (
            Kind("categorical", posed(_poles(subset)), without, scores.area),
            Kind("gradient", posed(_typicalities(subset), together=False), without, scores.rank_correlation),
            Kind(
                "structural", posed(_polarities(subset, seed)), without, scores.mean_share, neighbours.baseline,
                neighbours.add, learned=1.0,
            ),
            Kind("dimensional", posed(dimensions), topics, scores.r_squared),
        )
    }  # fmt: skip


def _enough(part: tuple[np.ndarray, np.ndarray], actions: np.ndarray) -> bool:
    rows, targets = part
    first = targets[:, 0]
    rarer = min((first == first.min()).sum(), (first != first.min()).sum()) if len(rows) else 0
    return len(np.unique(actions[rows])) >= MINIMUM_ACTIONS and rarer >= 2 * MINIMUM_ROWS


def _poles(subset: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    polarity = subset["polarity"].to_numpy(object)
    parts = [np.flatnonzero((subset["foundation"] == name) & (polarity != "neutral")) for name in FOUNDATIONS]
    return [(rows, np.where(polarity[rows] == "virtue", 1.0, -1.0)[:, None]) for rows in parts]


def _typicalities(subset: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    chosen = [members(subset, category) for category in CATEGORIES]
    return [(np.flatnonzero(member), typicality[:, None]) for member, typicality in chosen]


def _polarities(subset: pd.DataFrame, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """At most ``neighbours.ROWS`` rows per foundation, drawn at random: the null sorts all pairs of them many times."""
    sign = subset["polarity"].map({"virtue": 1.0, "vice": -1.0, "neutral": 0.0}).to_numpy()
    generator = np.random.default_rng(seed)
    parts = [np.flatnonzero(subset["foundation"] == name) for name in FOUNDATIONS]
    drawn = [np.sort(generator.permutation(rows)[: neighbours.ROWS]) for rows in parts]
    return [(rows, sign[rows][:, None]) for rows in drawn]
