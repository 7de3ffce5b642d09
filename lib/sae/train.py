"""Training by the published recipe: reconstruction plus an L1 penalty whose weight is adapted toward a target L0.

Released recipe: AdamW, 5 warm-up epochs and then a cosine to 1%, gradients clipped to norm 1, decoder rows of unit norm
after every step; once an epoch the weight is multiplied by 1.2, 1.05 or .95 as L0 is far above, above or below its target.

A checkpoint holds weights, optimiser, generator state, position and history in one safetensors file, so a killed
training that is started again ends, on a CPU, with the same bytes.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from lib.sae.model import SparseAutoencoder

WARM_UP_EPOCHS = 5
LOWEST_RATE = 0.01
STOP_ERROR = 0.001
STOP_EPOCHS = 5
CHECKPOINT_EPOCHS = 10


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
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    recipe: Recipe,
    label: str,
    checkpoint: Path | None = None,
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Train one autoencoder.

    Args:
        train_rows: pooled residual streams, raw, [rows, width].
        validation_rows: [rows, width].
        recipe: the settings.
        label: for the progress bar.
        checkpoint: file to go on from, and to leave behind every ``CHECKPOINT_EPOCHS`` epochs.

    Returns:
        The autoencoder with the centre folded in, and its history: columns ``epoch, mse, l0, fvu`` (of validation rows),
        ``weight`` (of the L1 penalty), ``dead`` (share of latents that no validation row activates).

    Raises:
        TrainingError: the loss is not finite (the last good checkpoint stays), or the data are not, or the checkpoint
            is of another training.
    """
    if not (np.isfinite(train_rows).all() and np.isfinite(validation_rows).all()):
        raise TrainingError("activations are not finite; verify the store (notebook 02)")
    centre = torch.from_numpy(train_rows.mean(axis=0, dtype=np.float64).astype(np.float32))
    x = torch.from_numpy(np.ascontiguousarray(train_rows)) - centre
    held_out = torch.from_numpy(np.ascontiguousarray(validation_rows)) - centre
    sae = SparseAutoencoder(x.shape[1], recipe.expansion * x.shape[1], recipe.seed)
    optimiser = torch.optim.AdamW(sae.parameters(), lr=recipe.learning_rate, weight_decay=0)
    generator = torch.Generator().manual_seed(recipe.seed)
    position: dict[str, Any] = {"epoch": 0, "weight": recipe.initial_weight, "near_target": 0, "history": []}
    identity = _identity(recipe, x) if checkpoint else ""
    if checkpoint and checkpoint.exists():
        position = _resume(checkpoint, identity, sae, optimiser, generator)
    weight, near_target, history = position["weight"], position["near_target"], position["history"]
    for epoch in tqdm(range(position["epoch"], recipe.epochs), desc=label, unit="epoch"):
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
        if checkpoint and (epoch + 1) % CHECKPOINT_EPOCHS == 0:
            position = {"epoch": epoch + 1, "weight": weight, "near_target": near_target, "history": history}
            _keep(checkpoint, identity, position, sae, optimiser, generator)
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


def _identity(recipe: Recipe, x: Tensor) -> str:
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update(x.contiguous().numpy().data)
    return digest.hexdigest()


def _keep(
    path: Path,
    identity: str,
    position: dict[str, Any],
    sae: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Replace the checkpoint in one step, so that a kill leaves the old one or the new one."""
    tensors = {"generator": generator.get_state()}
    for name, parameter in sae.named_parameters():
        tensors[f"sae.{name}"] = parameter.detach().contiguous()
        tensors |= {f"{key}.{name}": value.contiguous() for key, value in optimiser.state[parameter].items()}
    temporary = path.with_name(f"{path.name}.part")
    save_file(tensors, temporary, {"identity": identity, "position": json.dumps(position)})
    os.replace(temporary, path)


def _resume(
    path: Path, identity: str, sae: SparseAutoencoder, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    with safe_open(path, "pt") as stored:
        notes = stored.metadata()
        if notes["identity"] != identity:
            raise TrainingError(f"{path.name} belongs to a training with other settings or data; remove it")
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    generator.set_state(tensors["generator"])
    for name, parameter in sae.named_parameters():
        with torch.no_grad():
            parameter.copy_(tensors[f"sae.{name}"])
        optimiser.state[parameter] = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return json.loads(notes["position"])
