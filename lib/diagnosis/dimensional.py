"""Dimensional indifference: can a linear map read the ten moral dimensions?

The paper trains one linear map from raw activations to the ten-dimensional vector (section 3, analysis 4): AdamW, 70/10/20
split of rows. The control is closed-form ridge on standardised features with the penalty chosen inside folds grouped by
action.
"""

import copy

import numpy as np
import pandas as pd
import torch

from lib.diagnosis import linear
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.tidy import mean_of, missing, row, table, unusable
from lib.foundations import CATEGORIES
from lib.statistics import cluster_weights


def published(
    representation: np.ndarray, vectors: np.ndarray, actions: np.ndarray, draws: int, seed: int
) -> pd.DataFrame:
    """Train the published probe on one layer and score it on its held-out fifth of the rows.

    Args:
        representation: raw (not centred) activations of annotations, [rows, width].
        vectors: moral vectors, [rows, 10].
        actions: action of every row, [rows].
        draws: bootstrap resamples of actions.
        seed: of split, training and resamples.

    Returns:
        Columns ``target`` and ``tidy.MEASURED``; ``target`` is a category or ``all`` (mean over the ten), metrics ``r2``,
        ``adjusted_r2`` (n test rows, p dimensions) and, for ``all``, ``predictors`` (p).
    """
    if reason := unusable(representation) or _too_few(vectors, actions):
        return table(
            "target", [missing("all", PUBLISHED, metric, len(vectors), reason) for metric in ("r2", "adjusted_r2")]
        )
    test, predicted = published_probe(representation, vectors, seed)
    n, width = len(test), representation.shape[1]
    r2 = weighted_r2(vectors[test], predicted, cluster_weights(actions[test], draws, seed))
    records = [*_by_category(r2, PUBLISHED, "r2", n), row("all", PUBLISHED, "predictors", np.array([float(width)]), n)]
    if n <= width + 1:
        why = f"not computed, because {n} test rows are too few for {width} dimensions"
        return table("target", [*records, missing("all", PUBLISHED, "adjusted_r2", n, why)])
    adjusted = 1 - (1 - r2) * (n - 1) / (n - width - 1)
    return table("target", records + _by_category(adjusted, PUBLISHED, "adjusted_r2", n))


def ridge(
    representation: np.ndarray | linear.Features,
    vectors: np.ndarray,
    actions: np.ndarray,
    topics: np.ndarray,
    draws: int,
    seed: int,
    arm: str = PUBLISHED,
    nulls: bool = True,
) -> pd.DataFrame:
    """Predict moral vectors by ridge from folds that hold none of a row's action, and score all rows.

    Args:
        representation: activations of annotations, [rows, width].
        vectors: moral vectors, [rows, 10].
        actions: action of every row, [rows].
        topics: the foundations that a row names, as one text, [rows].
        draws: bootstrap resamples of actions.
        seed: of folds, shuffles and resamples.
        arm: label of the representation.
        nulls: whether to add the same on shuffled labels.

    Returns:
        Columns as :func:`published`, metric ``r2``; arms ``ridge`` and, with ``nulls``, ``shuffled`` and
        ``shuffled_within_foundations``, each followed by the representation's name if it is not the published one.
    """
    read = linear.features(representation)
    if reason := unusable(read.values) or _too_few(vectors, actions):
        return table("target", [missing("all", named("ridge", arm), "r2", len(vectors), reason)])
    labels = {"ridge": vectors}
    if nulls:
        generator = np.random.default_rng(seed)
        labels["shuffled"] = generator.permutation(vectors)
        labels["shuffled_within_foundations"] = shuffled_within(vectors, topics, generator)
    blocks = np.repeat(np.arange(len(labels)), vectors.shape[1])
    fold = linear.grouped_folds(actions, seed)
    predicted = linear.ridge_held_out(read, np.hstack(list(labels.values())), fold, blocks)
    weights = cluster_weights(actions, draws, seed)
    records: list[tuple] = []
    for block, (name, truth) in enumerate(labels.items()):
        r2 = weighted_r2(truth, predicted[:, blocks == block], weights)
        records += _by_category(r2, named(name, arm), "r2", len(truth))
    return table("target", records)


def shuffled_within(vectors: np.ndarray, topics: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Permute moral vectors among rows that name the same foundations: topic stays, judgment goes, [rows, 10]."""
    shuffled = vectors.copy()
    for rows in pd.Series(np.arange(len(vectors))).groupby(topics).indices.values():
        shuffled[rows] = vectors[generator.permutation(rows)]
    return shuffled


def published_probe(
    representation: np.ndarray, vectors: np.ndarray, seed: int, epochs: int = 100, patience: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Train the published probe: AdamW (1e-3, weight decay 1e-4), batch 512, plateau halving, patience 10.

    Returns:
        Indices of the test rows and predictions for them, [test rows, 10].
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(vectors), generator=generator)
    first, second = int(0.7 * len(order)), int(0.8 * len(order))
    train, validation, test = order[:first], order[first:second], order[second:]
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
        return test.numpy(), probe(x[test]).numpy()


def weighted_r2(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return R squared per target under every line of weights, [draws, targets]; NaN for a constant target."""
    total = weights.sum(axis=1, keepdims=True)
    mean = weights @ truth / total
    spread = weights @ truth**2 - total * mean**2
    residual = weights @ (truth - predicted) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, 1 - residual / spread, np.nan)


def _by_category(r2: np.ndarray, arm: str, metric: str, n: int) -> list[tuple]:
    columns = list(r2.T)
    records = [row(category, arm, metric, values, n) for category, values in zip(CATEGORIES, columns, strict=True)]
    return [*records, row("all", arm, metric, mean_of(columns), n)]


def _too_few(vectors: np.ndarray, actions: np.ndarray) -> str:
    if not np.isfinite(vectors).all():
        return "not computed, because moral vectors hold values that are not finite"
    if len(np.unique(actions)) < 2 * linear.FOLDS:
        return f"not computed, because {len(np.unique(actions))} distinct actions are too few for {linear.FOLDS} folds"
    return ""
