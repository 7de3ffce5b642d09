"""Resamples, label shuffles and folds of the analyses; all move whole actions, because rows of one action are not independent."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold

from lib import stats

FOLDS = 5


@dataclass(frozen=True)
class Sampling:
    """How often an analysis draws, and from which seed.

    Attributes:
        draws: bootstrap resamples of actions, for intervals.
        shuffles: draws of every label shuffle; 0 for none.
        seed: of resamples, shuffles and folds.
    """

    draws: int
    shuffles: int
    seed: int

    def weights(self, actions: np.ndarray) -> np.ndarray:
        """Return the weights of the rows in every resample, [draws + 1, rows]; the first line is all ones."""
        return stats.cluster_weights(actions, self.draws, self.seed)

    def halves(self, actions: np.ndarray) -> np.ndarray:
        """Return the rows of random halves of the actions, boolean [draws, rows]."""
        return stats.half_samples(actions, self.draws, self.seed)

    def orders(self, actions: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the row orders [rows] of the label shuffles."""
        return stats.permutations(actions, self.shuffles, self.seed)

    def folds(self, actions: np.ndarray) -> np.ndarray:
        """Return the fold of every row, [rows], from 0."""
        return grouped_folds(actions, self.seed)


def grouped_folds(groups: np.ndarray, seed: int, folds: int = FOLDS) -> np.ndarray:
    """Return the fold of every row, [rows]; rows of one group share it. Fewer groups than ``folds`` give fewer folds."""
    fold = np.zeros(len(groups), dtype=int)
    count = min(folds, len(np.unique(groups)))
    if count > 1:
        for name, (_, rows) in enumerate(
            GroupKFold(count, shuffle=True, random_state=seed).split(groups, groups=groups)
        ):
            fold[rows] = name
    return fold
