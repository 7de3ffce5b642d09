"""Training by the published recipe: reconstruction plus an L1 penalty whose weight is adapted toward a target L0.

Released recipe: AdamW, 5 warm-up epochs and then a cosine to 1%, gradients clipped to norm 1, decoder rows of unit norm
after every step; once an epoch the weight is multiplied by 1.2, 1.05 or .95 as L0 is far above, above or below its target.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lib.sae.model import SparseAutoencoder

WARM_UP_EPOCHS = 5
LOWEST_RATE = 0.01
STOP_ERROR = 0.001
STOP_EPOCHS = 5


class TrainingError(RuntimeError):
    """Training cannot start or has diverged."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one training; defaults are the published run's."""

    expansion: int = 16
    target_l0: float = 100.0
    epochs: int = 200
    learning_rate: float = 1e-4
    batch_size: int = 4096
    initial_weight: float = 1e-3
    seed: int = 0


def train(
    train_rows: np.ndarray, validation_rows: np.ndarray, recipe: Recipe, label: str
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Train one autoencoder.

    Args:
        train_rows: pooled residual streams, raw, [rows, width].
        validation_rows: [rows, width].
        recipe: the settings.
        label: for the progress bar.

    Returns:
        The autoencoder with the centre folded in, and its history: columns ``epoch, mse, l0, fvu`` (of validation rows),
        ``weight`` (of the L1 penalty), ``dead`` (share of latents that no validation row activates).

    Raises:
        TrainingError: the loss is not finite, or the data are not.
    """
    if not (np.isfinite(train_rows).all() and np.isfinite(validation_rows).all()):
        raise TrainingError("activations are not finite; verify the store (notebook 02)")
    centre = torch.from_numpy(train_rows.mean(axis=0))
    x = torch.from_numpy(np.ascontiguousarray(train_rows)) - centre
    held_out = torch.from_numpy(np.ascontiguousarray(validation_rows)) - centre
    sae = SparseAutoencoder(x.shape[1], recipe.expansion * x.shape[1], recipe.seed)
    optimiser = torch.optim.AdamW(sae.parameters(), lr=recipe.learning_rate, weight_decay=0)
    generator = torch.Generator().manual_seed(recipe.seed)
    weight = recipe.initial_weight
    history = []
    near_target = 0
    for epoch in tqdm(range(recipe.epochs), desc=label, unit="epoch"):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(epoch, recipe.epochs)
        for batch in torch.randperm(len(x), generator=generator).split(recipe.batch_size):
            _step(sae, optimiser, x[batch], weight, label, epoch)
        row = quality(sae, held_out)
        history.append({"epoch": epoch, "weight": weight} | row)
        near_target = near_target + 1 if row["mse"] < STOP_ERROR and abs(row["l0"] / recipe.target_l0 - 1) < 0.1 else 0
        if near_target >= STOP_EPOCHS:
            break
        weight = adapted(weight, row["l0"] / recipe.target_l0)
    return sae.fold_centre(centre), pd.DataFrame(history)


@torch.no_grad()
def quality(sae: SparseAutoencoder, x: Tensor) -> dict[str, float]:
    """Return ``mse``, ``l0`` (active latents a row), ``fvu`` and ``dead`` of an autoencoder on rows [rows, width]."""
    squares, active = 0.0, 0.0
    alive = torch.zeros(sae.latents, dtype=torch.bool)
    for part in x.split(4096):
        x_hat, z = sae(part)
        squares += float(((part - x_hat) ** 2).sum())
        active += float((z > 0).sum())
        alive |= (z > 0).any(dim=0)
    variance = float(((x - x.mean(dim=0)) ** 2).sum())
    return {
        "mse": squares / x.numel(),
        "l0": active / len(x),
        "fvu": squares / variance if variance > 0 else float("nan"),
        "dead": 1 - float(alive.float().mean()),
    }


def adapted(weight: float, ratio: float) -> float:
    """Return the next weight of the L1 penalty for ``ratio`` = L0 / target, clamped to [1e-6, 100]."""
    factor = 1.2 if ratio > 2 else 1.05 if ratio > 1.1 else 0.95 if ratio < 0.9 else 1.0
    return float(np.clip(weight * factor, 1e-6, 100))


def _schedule(epoch: int, epochs: int) -> float:
    if epoch < WARM_UP_EPOCHS:
        return (epoch + 1) / WARM_UP_EPOCHS
    progress = (epoch - WARM_UP_EPOCHS) / max(1, epochs - WARM_UP_EPOCHS)
    return LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * progress)) / 2


def _step(
    sae: SparseAutoencoder, optimiser: torch.optim.Optimizer, x: Tensor, weight: float, label: str, epoch: int
) -> None:
    optimiser.zero_grad()
    x_hat, z = sae(x)
    loss = ((x - x_hat) ** 2).mean() + weight * z.abs().mean()
    if not torch.isfinite(loss):
        raise TrainingError(
            f"{label}: the loss is not finite in epoch {epoch}; lower learning_rate (now in the profile)"
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimiser.step()
    sae.normalise_decoder()
