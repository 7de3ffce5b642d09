"""Dimensional indifference: can a linear map read the ten moral dimensions?

The paper trains one linear map from raw activations to the ten-dimensional vector (section 3, analysis 4): AdamW, 70/10/20
split of rows. The control is closed-form ridge on standardised features with the penalty chosen inside folds grouped by
action.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split

from lib.diagnosis import linear
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.sampling import FOLDS, Sampling
from lib.diagnosis.tidy import mean_of, missing, null_row, row, table, unusable
from lib.paper import CATEGORIES
from lib.stats import permutations


@dataclass(frozen=True)
class Probed:
    """What is known of the annotations that the probes read.

    Attributes:
        vectors: moral vectors, [rows, 10].
        actions: action of every row, [rows].
        topics: the foundations that a row names, as one text, [rows].
    """

    vectors: np.ndarray
    actions: np.ndarray
    topics: np.ndarray


def published(representation: np.ndarray, probed: Probed, *, sampling: Sampling) -> pd.DataFrame:
    """Train the published probe on one layer of the diagnosis subset and score it on its held-out fifth of the rows.

    Args:
        representation: raw (not centred) activations of the subset, [rows, width].
        probed: the annotations of its rows.
        sampling: of split, training and intervals.

    Returns:
        Columns ``target`` and ``tidy.MEASURED``; ``target`` is a category or ``all`` (mean over the ten), metrics ``r2``,
        ``adjusted_r2`` (n test rows, p dimensions) and, for ``all``, ``predictors`` (p).
    """
    vectors = probed.vectors
    if reason := unusable(representation) or _too_few(probed):
        keys = [("all", PUBLISHED, metric) for metric in ("r2", "adjusted_r2")]
        return table("target", [missing(key, n=len(vectors), reason=reason) for key in keys])
    test, predicted = published_probe(representation, vectors, seed=sampling.seed)
    n, width = len(test), representation.shape[1]
    r2 = weighted_r2(vectors[test], predicted, sampling.weights(probed.actions[test]))
    records = _by_category(r2, PUBLISHED, metric="r2", n=n)
    records.append(row(("all", PUBLISHED, "predictors"), np.array([float(width)]), n=n))
    if n <= width + 1:
        why = f"{n} test rows are too few for {width} dimensions"
        return table("target", [*records, missing(("all", PUBLISHED, "adjusted_r2"), n=n, reason=why)])
    adjusted = 1 - (1 - r2) * (n - 1) / (n - width - 1)
    return table("target", records + _by_category(adjusted, PUBLISHED, metric="adjusted_r2", n=n))


def ridge(representation: np.ndarray, probed: Probed, *, sampling: Sampling, arm: str = PUBLISHED) -> pd.DataFrame:
    """Predict moral vectors by ridge from folds that hold none of a row's action, and score all rows.

    Args:
        representation: activations of annotations, [rows, width].
        probed: the annotations.
        sampling: of folds, intervals and shuffles, each shuffle cross-validated anew. Intervals keep the predictions fixed
            and are too narrow, as those of :func:`lib.diagnosis.categorical.separability`.
        arm: label of the representation.

    Returns:
        Columns as :func:`published`, metric ``r2``; arms ``ridge`` and, with shuffles, ``shuffled`` and
        ``shuffled_within_foundations``, each followed by the representation's name if it is not the published one.
    """
    vectors, actions = probed.vectors, probed.actions
    if reason := unusable(representation) or _too_few(probed):
        return table("target", [missing(("all", named("ridge", arm), "r2"), n=len(vectors), reason=reason)])
    orders = {
        "shuffled": list(sampling.orders(actions)),
        "shuffled_within_foundations": list(orders_within(actions, probed.topics, sampling)),
    }
    moved = [vectors[order] for shuffles in orders.values() for order in shuffles]
    width, fold = vectors.shape[1], sampling.folds(actions)
    blocks = np.repeat(np.arange(1 + len(moved)), width)
    predicted = linear.ridge_held_out(representation, np.hstack([vectors, *moved]), fold=fold, blocks=blocks)
    measured = weighted_r2(vectors, predicted[:, :width], sampling.weights(actions))
    records = _by_category(measured, named("ridge", arm), metric="r2", n=len(vectors))
    ones = np.ones((1, len(vectors)))
    drawn = [weighted_r2(truth, predicted[:, blocks == block], ones)[0] for block, truth in enumerate(moved, start=1)]
    for index, name in enumerate(orders if sampling.shuffles else ()):
        null = np.array(drawn[index * sampling.shuffles : (index + 1) * sampling.shuffles])
        records += _nulls(null, measured[0], arm=named(name, arm), n=len(vectors))
    return table("target", records)


def orders_within(actions: np.ndarray, topics: np.ndarray, sampling: Sampling) -> Iterator[np.ndarray]:
    """Yield row orders, [rows], that move whole actions among those that name the same foundations: topic stays."""
    frame = pd.DataFrame({"action": actions, "topic": topics})
    named_by = frame.groupby("action")["topic"].transform(lambda topic: ";".join(sorted(topic)))
    # Rows of an action in the order of their topics, so that a row takes the place of one with the same foundations.
    place = np.lexsort((topics, actions, named_by))
    parts = [np.flatnonzero((named_by.to_numpy()[place]) == name) for name in pd.unique(named_by.to_numpy()[place])]
    for seed in np.random.default_rng(sampling.seed).integers(2**32, size=sampling.shuffles):
        generator, order = np.random.default_rng(seed), np.empty(len(actions), dtype=np.intp)
        for part in parts:
            (within,) = permutations(actions[place[part]], 1, generator)
            order[place[part]] = place[part][within]
        yield order


def _nulls(null: np.ndarray, measured: np.ndarray, *, arm: str, n: int) -> list[tuple]:
    """Rows of a null from draws [shuffles, categories] and measured values [categories]; ``all`` is their mean."""
    columns = [*null.T, np.nanmean(null, axis=1)]
    names, values = [*CATEGORIES, "all"], [*measured, np.nanmean(measured)]
    return [
        null_row((name, arm, "r2"), draws, n=n, observed=value)
        for name, draws, value in zip(names, columns, values, strict=True)
    ]


def published_probe(
    representation: np.ndarray, vectors: np.ndarray, *, seed: int, epochs: int = 100, patience: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Train the published probe: AdamW (1e-3, weight decay 1e-4), batch 512, plateau halving, patience 10.

    Returns:
        Indices of the test rows and predictions for them, [test rows, 10].
    """
    generator = torch.Generator().manual_seed(seed)
    rest, test = train_test_split(np.arange(len(vectors)), test_size=0.2, random_state=seed)
    train, validation = map(torch.from_numpy, train_test_split(rest, test_size=1 / 8, random_state=seed))
    x = torch.from_numpy(np.ascontiguousarray(representation, dtype=np.float32))
    y = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    probe = torch.nn.Linear(x.shape[1], y.shape[1])
    with torch.no_grad():
        torch.nn.init.kaiming_uniform_(probe.weight, a=5**0.5, generator=generator)
        probe.bias.zero_()
    optimiser = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-4)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=5)
    best, best_loss, waited = copy.deepcopy(probe.state_dict()), float("inf"), 0
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train), generator=generator)].split(512):
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(probe(x[batch]), y[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            loss = torch.nn.functional.mse_loss(probe(x[validation]), y[validation]).item()
        plateau.step(loss)
        waited += 1
        if loss < best_loss:
            best, best_loss, waited = copy.deepcopy(probe.state_dict()), loss, 0
        if waited >= patience:
            break
    probe.load_state_dict(best)
    with torch.no_grad():
        return test, probe(x[test]).numpy()


def weighted_r2(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return R squared per target under every line of weights, [draws, targets]; NaN for a constant target."""
    total = weights.sum(axis=1, keepdims=True)
    mean = weights @ truth / total
    spread = weights @ truth**2 - total * mean**2
    residual = weights @ (truth - predicted) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, 1 - residual / spread, np.nan)


def _by_category(r2: np.ndarray, arm: str, *, metric: str, n: int) -> list[tuple]:
    columns = list(r2.T)
    records = [row((category, arm, metric), values, n=n) for category, values in zip(CATEGORIES, columns, strict=True)]
    return [*records, row(("all", arm, metric), mean_of(columns), n=n)]


def _too_few(probed: Probed) -> str:
    if not np.isfinite(probed.vectors).all():
        return "moral vectors hold values that are not finite"
    distinct = len(np.unique(probed.actions))
    if distinct < 2 * FOLDS:
        return f"{distinct} distinct actions are too few for {FOLDS} folds"
    return ""
