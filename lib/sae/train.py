"""Training by the published recipe: reconstruction plus an L1 penalty whose weight is adapted toward a target L0.

Released recipe: AdamW, 5 warm-up epochs and then a cosine to 1%, gradients clipped to norm 1, decoder rows of unit norm
after every step; once an epoch the weight is multiplied by 1.2, 1.05 or .95 as L0 is far above, above or below its target.
The modern arms, ``topk`` and ``batchtopk``, have no penalty: they keep ``target_l0`` latents of every row, or on average.

The gradient of a step is written out, because it is short (one masked product) and autograd would hold and pass over
[batch, latents] several times more. Rows lie on the device; on a GPU the products are bfloat16 and the step is compiled.

A checkpoint holds weights, optimiser, generator state, position and history in one safetensors file, so a killed
training that is started again ends, on a CPU, with the same bytes.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from lib.sae.model import SparseAutoencoder, batch_top_k, quality, top_k

WARM_UP_EPOCHS = 5
LOWEST_RATE = 0.01
STOP_ERROR = 0.001
STOP_EPOCHS = 5
CHECKPOINT_EPOCHS = 10
THRESHOLD_RATE = 0.01
"""Of the running mean of the smallest activation that a batch keeps: BatchTopK's threshold once it is trained."""

Activation = Literal["relu", "topk", "batchtopk"]


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
    activation: Activation = "relu"

    @property
    def k(self) -> int:
        """Latents that TopK and BatchTopK keep of a row."""
        return max(1, round(self.target_l0))


def train(
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    recipe: Recipe,
    label: str,
    checkpoint: Path | None = None,
    device: str | None = None,
    half: bool | None = None,
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Train one autoencoder.

    Args:
        train_rows: pooled residual streams, raw, [rows, width].
        validation_rows: [rows, width].
        recipe: the settings.
        label: for the progress bar, which shows the validation rows' measures as they come.
        checkpoint: file to go on from, and to leave behind every ``CHECKPOINT_EPOCHS`` epochs.
        device: where to train; a GPU if there is one.
        half: whether products are bfloat16 (weights, sums and optimiser stay float32); by default on a GPU only.

    Returns:
        The autoencoder on the CPU with the centre folded in, and its history: columns ``epoch, weight`` (of the L1 penalty),
        ``train_mse`` (over the epoch), and of validation rows ``mse, l0, fvu, dead`` as in ``model.quality``.

    Raises:
        TrainingError: it does not fit the memory, or the loss is not finite (the last good checkpoint stays), or the
            data are not, or the checkpoint is of another training.
    """
    place = torch.device(device or default_device())
    half = place.type == "cuda" if half is None else half
    latents = recipe.expansion * train_rows.shape[1]
    require_memory(
        required_bytes(train_rows.shape[1], latents, len(train_rows) + len(validation_rows), recipe, half), place, label
    )
    if not (np.isfinite(train_rows).all() and np.isfinite(validation_rows).all()):
        raise TrainingError("activations are not finite; verify the store (notebook 02)")
    if recipe.activation != "relu" and recipe.k > latents:
        raise TrainingError(f"{label}: target_l0 {recipe.target_l0:g} is more than the {latents} latents; lower it")
    centre = torch.from_numpy(train_rows.mean(axis=0, dtype=np.float64).astype(np.float32))
    x, held_out = (torch.from_numpy(np.ascontiguousarray(rows)) - centre for rows in (train_rows, validation_rows))
    identity = _identity(recipe, x) if checkpoint else ""
    x, held_out = x.to(place), held_out.to(place)
    sae = new(x.shape[1], recipe).to(place)
    optimiser = torch.optim.AdamW(sae.parameters(), lr=recipe.learning_rate, weight_decay=0, fused=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    position: dict[str, Any] = {"epoch": 0, "weight": recipe.initial_weight, "near_target": 0, "history": []}
    if checkpoint and checkpoint.exists():
        position = _resume(checkpoint, identity, sae, optimiser, generator)
    weight, near_target, history = position["weight"], position["near_target"], position["history"]
    gradients = torch.compile(set_gradients) if place.type == "cuda" else set_gradients
    bar = tqdm(range(position["epoch"], recipe.epochs), desc=label, unit="epoch")
    for epoch in bar:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(epoch, recipe.epochs)
        squares = torch.zeros((), device=place)
        for batch in torch.randperm(len(x), generator=generator).to(place).split(recipe.batch_size):
            with torch.no_grad(), torch.autocast(place.type, torch.bfloat16, enabled=half):
                squares += gradients(sae, x[batch], recipe, weight) * len(batch)
            update(sae, optimiser)
        if not torch.isfinite(squares):
            kept = f"; the checkpoint of epoch {position['epoch']} stays" if position["epoch"] else ""
            raise TrainingError(
                f"{label}: the loss is not finite in epoch {epoch}; lower learning_rate ({recipe.learning_rate:g}){kept}"
            )
        row = quality(sae, held_out)
        history.append({"epoch": epoch, "weight": weight, "train_mse": float(squares) / len(x)} | row)
        bar.set_postfix({name: f"{row[name]:.3g}" for name in ("fvu", "l0", "dead")})
        near_target = near_target + 1 if row["mse"] < STOP_ERROR and abs(row["l0"] / recipe.target_l0 - 1) < 0.1 else 0
        if near_target >= STOP_EPOCHS:
            break
        weight = adapted(weight, row["l0"] / recipe.target_l0) if recipe.activation == "relu" else weight
        if checkpoint and (epoch + 1) % CHECKPOINT_EPOCHS == 0:
            position = {"epoch": epoch + 1, "weight": weight, "near_target": near_target, "history": history}
            _keep(checkpoint, identity, position, sae, optimiser, generator)
    return sae.cpu().fold_centre(centre), pd.DataFrame(history)


def new(width: int, recipe: Recipe) -> SparseAutoencoder:
    """Return the autoencoder that a training starts from; trained by nothing, it is the random control."""
    k = recipe.k if recipe.activation == "topk" else None
    return SparseAutoencoder(width, recipe.expansion * width, recipe.seed, k, jump=recipe.activation == "batchtopk")


def set_gradients(sae: SparseAutoencoder, x: Tensor, recipe: Recipe, weight: float) -> Tensor:
    """Set the gradient of every weight on centred rows [batch, width], and return the mean squared error.

    Loss: mean squared error + weight x mean|z| (no penalty for TopK and BatchTopK). Every activation passes gradients
    where the latent fires, and only there. A BatchTopK's threshold follows the smallest activation that it keeps.
    """
    before = torch.addmm(sae.b_enc, x, sae.W_enc)
    penalty = 0.0
    if recipe.activation == "relu":
        z, penalty = before.relu_(), weight / before.numel()
    elif recipe.activation == "topk":
        z = top_k(before, recipe.k)
    else:
        z = batch_top_k(before, recipe.k)
        least = torch.where(z > 0, z, torch.inf).min().float()
        rate = torch.where(sae.threshold[0] > 0, THRESHOLD_RATE, 1.0)
        sae.threshold.lerp_(torch.where(torch.isfinite(least), least, sae.threshold), rate)
    error = torch.addmm(sae.b_dec, z, sae.W_dec) - x
    scaled = error * (2 / error.numel())
    # In place: allocating [batch, latents] anew costs as much as filling it.
    upstream = (scaled @ sae.W_dec.T).add_(penalty).mul_(z > 0)
    sae.W_dec.grad = (z.T @ scaled).float()
    sae.b_dec.grad = scaled.sum(dim=0).float()
    sae.W_enc.grad = (x.T @ upstream).float()
    sae.b_enc.grad = upstream.sum(dim=0).float()
    return (error.float() ** 2).mean()


def default_device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def required_bytes(width: int, latents: int, rows: int, recipe: Recipe, half: bool) -> int:
    """Estimate the memory of one training.

    Weights, gradients and two moments are 16 bytes a weight, the folded copy at the end 4 more; the rows are resident;
    latents, their gradient and what masks it exist once a batch.
    """
    weights = 2 * width * latents + width + latents
    batch = 3 * min(recipe.batch_size, rows) * latents * (2 if half else 4)
    return 20 * weights + 4 * rows * width + batch


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def require_memory(needed: int, device: torch.device, label: str) -> None:
    """Refuse a training before anything is allocated.

    Raises:
        TrainingError: says how much is needed and how much there is.
    """
    there = available_bytes(device)
    if needed > there:
        raise TrainingError(
            f"{label}: training needs about {needed / 1e9:.1f} GB, but {device.type} has {there / 1e9:.1f} GB free; "
            "lower expansion or batch_size"
        )


def adapted(weight: float, ratio: float) -> float:
    """Return the next weight of the L1 penalty for ``ratio`` = L0 / target, clamped to [1e-6, 100]."""
    factor = 1.2 if ratio > 2 else 1.05 if ratio > 1.1 else 0.95 if ratio < 0.9 else 1.0
    return float(np.clip(weight * factor, 1e-6, 100))


def _schedule(epoch: int, epochs: int) -> float:
    if epoch < WARM_UP_EPOCHS:
        return (epoch + 1) / WARM_UP_EPOCHS
    progress = (epoch - WARM_UP_EPOCHS) / max(1, epochs - WARM_UP_EPOCHS)
    return LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * progress)) / 2


def update(sae: SparseAutoencoder, optimiser: torch.optim.Optimizer) -> None:
    """Clip the gradients to norm 1, take a step and give every decoder row unit norm again."""
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
    tensors |= {f"sae.{name}": value.contiguous() for name, value in sae.state_dict().items()}
    for name, parameter in sae.named_parameters():
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
    sae.load_state_dict({name: tensors[f"sae.{name}"] for name in sae.state_dict()})
    for name, parameter in sae.named_parameters():
        moments = ("step", "exp_avg", "exp_avg_sq")
        optimiser.state[parameter] = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in moments}
    return json.loads(notes["position"])
