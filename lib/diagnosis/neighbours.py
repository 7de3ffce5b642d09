"""Neighbours by words, and by words + representation: how many of a row's nearest rows share its polarity?

Nearness by words is the kernel of the lexical baseline; a representation's is the cosine of standardised features. Their
weighted sum ranks the other actions; the weight is chosen in the other folds, and may be 0. The agreement with the nearest,
less that by words alone, is the gain. Intervals and null are those of :mod:`lib.diagnosis.gains`.
"""

from typing import NamedTuple

import numpy as np

from lib.diagnosis.gains import REPLICATES, Added, Problem

NEIGHBOURS = 20
ROWS = 400
"""Rows per foundation at most."""

WEIGHTS = (0.0, 0.5, 1.0)
"""Of the representation in the sum; the rest is the words'."""


class ByWords(NamedTuple):
    """Neighbours by words.

    Attributes:
        predicted: share of a row's neighbours with its polarity, [rows, 1].
        predicted_without: the same among the rows of each replicate, [replicates, rows, 1].
        nearness: by words, standardised row by row, [rows, rows].
    """

    predicted: np.ndarray
    predicted_without: np.ndarray
    nearness: np.ndarray


def baseline(kernel: np.ndarray, problem: Problem) -> ByWords:
    """Find the neighbours by words from the kernel of the lexical baseline, [rows, rows]."""
    nearness = _standard(kernel)
    shares = agreement(nearness, problem)
    without = np.stack([agreement(nearness, problem, replicate=replicate) for replicate in range(REPLICATES)])
    return ByWords(shares[:, None], without[:, :, None], nearness)


def add(kernel: np.ndarray, of: ByWords, *, problem: Problem, permute: bool) -> Added:
    """Find how the shares change with the representation's nearness in the sum; arguments as :func:`lib.diagnosis.gains.add`."""
    nearness, every = _standard(kernel), np.ones(len(problem.rows), bool)
    drawn = [_by_weight(of, nearness, problem)]
    for order in problem.orders if permute else ():
        back = np.argsort(order)
        drawn.append(_by_weight(of, nearness[np.ix_(back, back)], problem))
    left = [_by_weight(of, nearness, problem, replicate=replicate) for replicate in range(REPLICATES)]
    chosen = _chosen(drawn[0], problem, kept=every)
    without = np.stack([_chosen(part, problem, kept=~gone) for part, gone in zip(left, problem.without, strict=True)])
    fixed, fixed_without = (np.stack(part, axis=1)[1:, :, :, None] for part in (drawn, left))
    return Added(
        chosen - of.predicted,
        without - of.predicted_without,
        fixed - of.predicted,
        fixed_without - of.predicted_without,
    )


def _by_weight(of: ByWords, nearness: np.ndarray, problem: Problem, *, replicate: int | None = None) -> np.ndarray:
    """Shares of neighbours in the sum of both nearnesses, for each of ``WEIGHTS``, [weights, rows]."""
    words = of.predicted if replicate is None else of.predicted_without[replicate]
    sums = [(1 - weight) * of.nearness + weight * nearness for weight in WEIGHTS[1:]]
    return np.stack([words[:, 0], *(agreement(together, problem, replicate=replicate) for together in sums)])


def agreement(nearness: np.ndarray, problem: Problem, *, replicate: int | None = None) -> np.ndarray:
    """Return the share of each row's ``NEIGHBOURS`` nearest rows of other actions with its polarity, [rows].

    Rows that a replicate leaves out are nobody's neighbours.
    """
    hidden = problem.same_action if replicate is None else problem.same_action | problem.without[replicate]
    reached = np.where(hidden, -np.inf, nearness)
    nearest = np.argpartition(-reached, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    label = problem.targets[:, 0]
    return (label[nearest] == label[:, None]).mean(axis=1).astype(np.float32)


def _standard(kernel: np.ndarray) -> np.ndarray:
    """Cosines from a kernel, brought to mean 0 and standard deviation 1 in every row, without the diagonal's part."""
    norm = np.sqrt(np.maximum(kernel.diagonal(), 1e-12))
    cosine = kernel / norm / norm[:, None]
    np.fill_diagonal(cosine, np.nan)
    mean, deviation = np.nanmean(cosine, axis=1, keepdims=True), np.nanstd(cosine, axis=1, keepdims=True)
    return np.nan_to_num((cosine - mean) / np.maximum(deviation, 1e-9), nan=0.0).astype(np.float32)


def _chosen(shares: np.ndarray, problem: Problem, *, kept: np.ndarray) -> np.ndarray:
    """Take for each fold's rows the weight with the highest mean share in the other folds, [rows, 1]."""
    result = np.empty((shares.shape[1], 1), dtype=np.float32)
    for fold in np.unique(problem.fold):
        others = (problem.fold != fold) & kept
        own = problem.fold == fold
        result[own, 0] = shares[shares[:, others].mean(axis=1).argmax()][own]
    return result
