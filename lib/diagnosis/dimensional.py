"""Dimensional indifference: can a linear map read the ten moral dimensions?

The paper trains one linear map from raw activations to the ten-dimensional vector (section 3, analysis 4): AdamW, 70/10/20
split of rows. The control is closed-form ridge on standardised features with the penalty chosen inside folds grouped by
action; the whole path comes from one eigendecomposition a fold.
"""

import copy

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold

from lib.diagnosis.controls import PUBLISHED
from lib.foundations import CATEGORIES
from lib.statistics import cluster_weights, interval

PENALTIES = np.logspace(-1, 5, 25)
COLUMNS = ["target", "arm", "metric", "value", "ci_low", "ci_high", "n", "reason"]


def dimensional(
    representation: np.ndarray, vectors: np.ndarray, actions: np.ndarray, foundations: np.ndarray, draws: int, seed: int
) -> pd.DataFrame:
    """Probe one layer: the published probe, ridge, and ridge on two kinds of shuffled labels.

    Args:
        representation: raw (not centred) activations of distinct annotations, [rows, width].
        vectors: moral vectors, [rows, 10].
        actions: action of every row, [rows].
        foundations: the foundations that a row names, as one text, [rows].
        draws: bootstrap resamples of actions.
        seed: of splits and resamples.

    Returns:
        Columns ``target, arm, metric, value, ci_low, ci_high, n, reason``; ``target`` is a category or ``all`` (mean over
        the ten). Arms ``published`` (metrics ``r2`` and ``adjusted_r2`` on the held-out 20% of rows), ``ridge``,
        ``shuffled`` and ``shuffled_within_foundations`` (``r2`` of held-out predictions).
    """
    if not np.isfinite(representation).all():
        return _nothing("not computed, because the layer holds values that are not finite", len(vectors))
    if np.ptp(representation, axis=0).max() == 0:
        return _nothing("not computed, because the layer does not vary", len(vectors))
    test, predicted = published_probe(representation, vectors, seed)
    parts = [_scores(vectors[test], predicted, actions[test], PUBLISHED, draws, seed, representation.shape[1])]
    parts.append(ridge(representation, vectors, actions, draws, seed))
    generator = np.random.default_rng(seed)
    parts.append(ridge(representation, generator.permutation(vectors), actions, draws, seed, "shuffled"))
    same_topic = shuffled_within(vectors, foundations, generator)
    parts.append(ridge(representation, same_topic, actions, draws, seed, "shuffled_within_foundations"))
    return pd.concat(parts, ignore_index=True)


def ridge(
    representation: np.ndarray, vectors: np.ndarray, actions: np.ndarray, draws: int, seed: int, arm: str = "ridge"
) -> pd.DataFrame:
    """Score held-out ridge predictions, one row a category and one for ``all``; columns as :func:`dimensional`."""
    predicted = ridge_predictions(representation, vectors, actions, seed)
    return _scores(vectors, predicted, actions, arm, draws, seed)


def shuffled_within(vectors: np.ndarray, foundations: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Permute moral vectors among rows that name the same foundations: topic stays, judgment goes, [rows, 10]."""
    shuffled = vectors.copy()
    for rows in pd.Series(np.arange(len(vectors))).groupby(foundations).indices.values():
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


def ridge_path(
    x: np.ndarray, y: np.ndarray, penalties: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit ridge for every penalty from one eigendecomposition.

    Args:
        x: [rows, width].
        y: [rows, targets].
        penalties: [k].

    Returns:
        Coefficients [k, width, targets] for standardised x, the mean and scale of x, and the mean of y.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    standardised, target_mean = (x - mean) / scale, y.mean(axis=0)
    values, basis = np.linalg.eigh(standardised.T @ standardised)
    projected = basis.T @ (standardised.T @ (y - target_mean))
    shrunk = projected[None] / (np.maximum(values, 0)[None, :, None] + penalties[:, None, None])
    return basis @ shrunk, mean, scale, target_mean


def ridge_predictions(x: np.ndarray, y: np.ndarray, actions: np.ndarray, seed: int, folds: int = 5) -> np.ndarray:
    """Predict every row from folds that hold none of its action; the penalty is chosen by folds inside, [rows, targets]."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    groups = pd.factorize(actions)[0]
    predicted = np.empty_like(y)
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(x, groups=groups):
        errors = np.zeros(len(PENALTIES))
        for fit, check in GroupKFold(folds - 1, shuffle=True, random_state=seed).split(train, groups=groups[train]):
            path = ridge_path(x[train[fit]], y[train[fit]], PENALTIES)
            errors += [
                ((_predict(path, k, x[train[check]]) - y[train[check]]) ** 2).sum() for k in range(len(PENALTIES))
            ]
        path = ridge_path(x[train], y[train], PENALTIES)
        predicted[test] = _predict(path, int(errors.argmin()), x[test])
    return predicted


def _predict(path: tuple[np.ndarray, ...], k: int, x: np.ndarray) -> np.ndarray:
    coefficients, mean, scale, target_mean = path
    return (x - mean) / scale @ coefficients[k] + target_mean


def _scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    actions: np.ndarray,
    arm: str,
    draws: int,
    seed: int,
    width: int | None = None,
) -> pd.DataFrame:
    weights = cluster_weights(actions, draws, seed)
    r2 = weighted_r2(truth, predicted, weights)
    scores = {"r2": r2}
    if width is not None and len(truth) > width + 1:
        scores["adjusted_r2"] = 1 - (1 - r2) * (len(truth) - 1) / (len(truth) - width - 1)
    records = []
    for metric, values in scores.items():
        for index, category in enumerate(CATEGORIES):
            records.append((category, arm, metric, values[0, index], *interval(values[1:, index]), len(truth), ""))
        means = values.mean(axis=1)
        records.append(("all", arm, metric, means[0], *interval(means[1:]), len(truth), ""))
    if width is not None and "adjusted_r2" not in scores:
        reason = f"not computed, because {len(truth)} test rows are not more than {width} dimensions"
        records.append(("all", arm, "adjusted_r2", np.nan, np.nan, np.nan, len(truth), reason))
    return pd.DataFrame(records, columns=COLUMNS)


def weighted_r2(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return R squared per target under every line of weights, [draws, targets]; NaN for a constant target."""
    total = weights.sum(axis=1, keepdims=True)
    mean = weights @ truth / total
    spread = weights @ truth**2 - total * mean**2
    residual = weights @ (truth - predicted) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, 1 - residual / spread, np.nan)


def _nothing(reason: str, n: int) -> pd.DataFrame:
    return pd.DataFrame([("all", PUBLISHED, "r2", np.nan, np.nan, np.nan, n, reason)], columns=COLUMNS)
