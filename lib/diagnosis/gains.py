"""How much a representation adds to words: the paired gain of words + representation over words, on held-out actions.

Two steps (stacking). The lexical baseline predicts the labels; ridge on all features of the representation predicts what
the baseline leaves over in the other folds; the sum is the careful prediction. Penalties are chosen in folds within the
folds, so no row has a part in what predicts it. Score minus the baseline's score on the same rows is the gain.

*Interval*: scores of learned predictors vary with the rows that they learned from. The jackknife leaves out a fourth of the
actions at a time: among the rows that are scored; and among those learned from, fitting everything anew. A fitted predictor
is where its loss is flat, so what the second does is mostly the interaction of the two, which is a part of the first as well.
Counted whole in both, as by any jackknife, it would make intervals too wide (Efron and Stein, 1981), so the second effect
counts half. Neighbours are not fitted, and theirs counts whole. *Null*: whole actions swap their representations within a
fold, for all layers alike, while labels and baseline stay in place, and the second step is fitted anew for every penalty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.diagnosis import kernels
from lib.diagnosis.kernels import PENALTIES
from lib.diagnosis.sampling import grouped_folds

REPLICATES, PARTS = 12, 4
"""Fits of the jackknife, each without one of four parts of the actions; three random divisions into parts."""

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of truth [rows, targets], predictions [draws, rows, targets] and folds [rows]: one value per draw, higher is better."""


@dataclass(frozen=True)
class Problem:
    """Labels to predict for some of the rows.

    Attributes:
        rows: which rows, [n].
        targets: labels, [n, targets].
        action: of every row, as an integer, [n].
        fold: of every row, from 0, [n]; rows of one action share it.
        without: whether a replicate of the jackknife leaves a row out, [REPLICATES, n]; rows of one action agree.
        orders: permutations of the n rows within folds that move whole actions, [draws, n].
    """

    rows: np.ndarray
    targets: np.ndarray
    action: np.ndarray
    fold: np.ndarray
    without: np.ndarray
    orders: np.ndarray

    @cached_property
    def same_action(self) -> np.ndarray:
        """Whether two rows are of one action, [n, n]."""
        return self.action[:, None] == self.action

    def left_out(self, *folds: int, replicate: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the rows of these folds and of those that a replicate leaves out; and a mask over them.

        The mask says which of them are to be predicted: those of the last fold.
        """
        gone = np.zeros(len(self.rows), bool) if replicate is None else self.without[replicate]
        out = np.flatnonzero(np.isin(self.fold, folds) | gone)
        return out, self.fold[out] == folds[-1]


def problems(
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    actions: np.ndarray,
    *,
    draws: int,
    seed: int,
    together: bool = True,
) -> list[Problem]:
    """Divide rows into folds, groups and permutations, the same for all problems of one kind.

    Args:
        parts: for every problem its rows [n] and targets [n, targets]; a row may take part in several.
        actions: normalised action of every row, [rows].
        draws: permutations of the null.
        seed: of everything drawn.
        together: whether actions move alike in all problems, and so only among those with rows in the same problems. False
            where that tells of the label, as a neutral row that takes part in the problems of both poles.
    """
    places = pd.DataFrame({"row": np.concatenate([rows for rows, _ in parts])})
    places["part"] = np.repeat(np.arange(len(parts)), [len(rows) for rows, _ in parts])
    places["action"] = actions[places["row"]]
    places["fold"] = grouped_folds(places["action"].to_numpy(), seed)
    groups = [
        grouped_folds(places["action"].to_numpy(), seed + 1 + partition, PARTS)
        for partition in range(REPLICATES // PARTS)
    ]
    without = np.concatenate([group == np.arange(PARTS)[:, None] for group in groups])
    apart = [places] if together else [part.reset_index(drop=True) for _, part in places.groupby("part")]
    moved = [_orders(part, draws, seed + number) for number, part in enumerate(apart)]
    firsts = np.cumsum([0, *map(len, apart)])
    orders = np.hstack([order + first for order, first in zip(moved, firsts, strict=False)])
    places["action"] = pd.factorize(places["action"])[0]
    starts = np.searchsorted(places["part"], np.arange(len(parts) + 1))
    return [
        Problem(
            rows, targets, *places.loc[start : stop - 1, ["action", "fold"]].to_numpy().T, without[:, start:stop],
            orders[:, start:stop] - start,
        )
        for (rows, targets), start, stop in zip(parts, starts, starts[1:], strict=False)
    ]  # fmt: skip


def _orders(places: pd.DataFrame, draws: int, seed: int) -> np.ndarray:
    """Permute actions among those of the same fold with rows in the same problems, [draws, places]."""
    generator = np.random.default_rng(seed)
    by_action = places.groupby("action", sort=False)
    shape = by_action["fold"].first().astype(str) + ":" + by_action["part"].agg(lambda part: ",".join(map(str, part)))
    members = by_action.indices
    orders = np.tile(np.arange(len(places)), (draws, 1))
    for alike in shape.groupby(shape).groups.values():
        block = np.stack([members[action] for action in alike])
        for order in orders:
            order[block] = block[generator.permutation(len(block))]
    return orders


class Baseline(NamedTuple):
    """The lexical baseline of a problem, all in float32.

    Attributes:
        predicted: of every row, from the other folds, [rows, targets].
        left: what it leaves over in the rows that fit the second step, [folds, rows, targets]; 0 in the fold itself. The
            replicates share it, which takes a tenth of the time and changes what is left only a little.
        predicted_without: the same as ``predicted``, learned from the rows of each replicate, [replicates, rows, targets].
    """

    predicted: np.ndarray
    left: np.ndarray
    predicted_without: np.ndarray


def baseline(kernel: np.ndarray, problem: Problem) -> Baseline:
    """Fit the lexical baseline.

    Args:
        kernel: of the problem's rows, as :func:`lib.diagnosis.lexical.kernel` returns it.
        problem: the labels.
    """
    y = problem.targets.astype(np.float32)
    folds = range(problem.fold.max() + 1)
    inverses = [kernels.inverse(kernel, penalty) for penalty in PENALTIES]
    errors = np.array([_inner_errors(inverse, y, problem) for inverse in inverses])
    chosen = errors.argmin(axis=0)
    predicted, left = np.zeros_like(y), np.zeros((len(folds), *y.shape), dtype=np.float32)
    predicted_without = np.zeros((REPLICATES, *y.shape), dtype=np.float32)
    for fold in folds:
        inverse = inverses[chosen[fold]]
        own, _ = problem.left_out(fold)
        predicted[own] = kernels.left_out(inverse, y, own)
        for other in folds:
            if other != fold:
                out, within = problem.left_out(fold, other)
                left[fold, out[within]] = (y[out] - kernels.left_out(inverse, y, out))[within]
        for replicate in range(REPLICATES):
            out, within = problem.left_out(fold, replicate=replicate)
            predicted_without[replicate, out[within]] = kernels.left_out(inverse, y, out)[within]
    return Baseline(predicted, left, predicted_without)


def _inner_errors(inverse: np.ndarray, y: np.ndarray, problem: Problem) -> np.ndarray:
    """Squared errors in the folds that are not left out, each predicted from the rest, [folds]."""
    count = problem.fold.max() + 1
    errors = np.zeros(count)
    for first in range(count):
        for second in range(first):
            out, within = problem.left_out(first, second)
            squared = ((y[out] - kernels.left_out(inverse, y, out)) ** 2).sum(axis=1)
            errors[first] += squared[within].sum()
            errors[second] += squared[~within].sum()
    return errors


class Added(NamedTuple):
    """What a representation adds to the baseline of a problem, in float32.

    Attributes:
        chosen: to be added to ``Baseline.predicted``, with the penalty chosen in the other folds, [rows, targets].
        chosen_without: to be added to ``Baseline.predicted_without``, [replicates, rows, targets].
        fixed: as ``chosen`` for each of ``PENALTIES``, [penalties, 1 + draws, rows, targets]; after the first come those of
            permuted representations.
        fixed_without: as ``chosen_without`` for each of ``PENALTIES``, [penalties, replicates, rows, targets].
    """

    chosen: np.ndarray
    chosen_without: np.ndarray
    fixed: np.ndarray
    fixed_without: np.ndarray


def add(kernel: np.ndarray, of: Baseline, *, problem: Problem, permute: bool) -> Added:
    """Predict what the baseline leaves over from a representation.

    Args:
        kernel: of the representation of the problem's rows, as :func:`lib.diagnosis.kernels.linear` returns it.
        of: the baseline of the same problem.
        problem: the labels.
        permute: whether to draw the null too.
    """
    n, targets = problem.targets.shape
    folds, rows = problem.fold.max() + 1, np.arange(n)
    orders = np.vstack([rows[None], problem.orders]) if permute else rows[None]
    # The representation of row i stands beside the labels of row orders[draw, i]; columns of a draw lie side by side.
    left = [part[orders].transpose(1, 0, 2).reshape(n, -1) for part in of.left]
    fixed = np.zeros((len(PENALTIES), len(orders), n, targets), dtype=np.float32)
    fixed_without = np.zeros((len(PENALTIES), REPLICATES, n, targets), dtype=np.float32)
    # The last choice is to add nothing.
    errors = np.zeros((len(PENALTIES) + 1, folds, n))
    errors[-1] = (of.left**2).sum(axis=2)
    for index, penalty in enumerate(PENALTIES):
        inverse = kernels.inverse(kernel, penalty)
        for fold in range(folds):
            own, _ = problem.left_out(fold)
            found = kernels.left_out(inverse, left[fold], own).reshape(len(own), len(orders), targets)
            for draw, order in enumerate(orders):
                fixed[index, draw, order[own]] = found[:, draw]
            for other in range(folds):
                if other != fold:
                    out, within = problem.left_out(fold, other)
                    missed = of.left[fold, out] - kernels.left_out(inverse, of.left[fold], out)
                    errors[index, fold, out[within]] = (missed[within] ** 2).sum(axis=1)
            for replicate in range(REPLICATES):
                out, within = problem.left_out(fold, replicate=replicate)
                found = kernels.left_out(inverse, of.left[fold], out)
                fixed_without[index, replicate, out[within]] = found[within]
    nothing = np.zeros((1, n, targets), dtype=np.float32)
    choice = errors.sum(axis=2).argmin(axis=0)[problem.fold]
    chosen = np.concatenate([fixed[:, 0], nothing])[choice, rows]
    chosen_without = np.empty_like(fixed_without[0])
    for replicate, gone in enumerate(problem.without):
        # What a replicate leaves out has no part in its choice of the penalty either.
        choice = errors[:, :, ~gone].sum(axis=2).argmin(axis=0)[problem.fold]
        chosen_without[replicate] = np.concatenate([fixed_without[:, replicate], nothing])[choice, rows]
    return Added(chosen, chosen_without, fixed, fixed_without)
