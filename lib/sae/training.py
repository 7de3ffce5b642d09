"""Training by the published recipe: reconstruction plus an L1 penalty whose weight is adapted toward a target L0.

Released recipe: AdamW, 5 warm-up epochs and then a cosine to 1%, both per step; gradients clipped to norm 1, decoder rows of
unit norm after every step; the last, incomplete batch of an epoch is dropped; once per epoch the weight is multiplied by
1.2, 1.05 or .95 as L0 of the training rows is far above, above or below its target.
The modern kinds, ``topk`` and ``batchtopk``, have no penalty: they keep ``target_l0`` latents per row, or on average. Latents
that no row of the epoch before activated learn from what the others leave unexplained (Gao et al. 2024).

The gradient of a step is written out, because it is short (one masked product) and autograd would hold and pass over
[batch, d_sae] several times more. Rows lie on the device; on a GPU the products are bfloat16 and the step is compiled.

A checkpoint holds weights, optimiser, generator state, position and history in one safetensors file, so a killed
training that is started again ends, on a CPU, with the same bytes.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from lib.activations.store import checksum
from lib.run.files import CompanionError, replacing
from lib.run.parameters import SAEKeys
from lib.run.provenance import sha256_of_json
from lib.sae.model import ROWS_AT_ONCE, SparseAutoencoder, batch_top_k, quality, top_k
from lib.sae.recipe import Recipe, recipe_of

INITIAL_WEIGHT = 1e-3
"""Of the L1 penalty, before it is adapted."""

WARM_UP_EPOCHS = 5
FIRST_RATE = LOWEST_RATE = 0.01
STOP_ERROR = 0.001
STOP_EPOCHS = 5
NEAR_TARGET = 0.1
"""How far L0 may be from its target, as a share of it."""

CHECKPOINT_SECONDS = 900
AUXILIARY = 1 / 32
"""Weight of the loss for dead latents (Gao et al. 2024)."""


class TrainingError(CompanionError):
    """Training cannot start or has diverged."""


def train(
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    *,
    parameters: SAEKeys,
    label: str,
    checkpoint: Path | None = None,
    half: bool | None = None,
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Train one autoencoder, on a GPU if there is one.

    Args:
        train_rows: pooled residual streams, raw, [rows, d_in]; so are ``validation_rows``.
        parameters: the recipe; sizes at ``auto`` follow from the rows (:func:`lib.sae.recipe.recipe_of`).
        label: for the progress bar, which shows the measures of the validation rows as they come.
        checkpoint: file to go on from, written after ``CHECKPOINT_SECONDS`` at the end of an epoch.
        half: whether products are bfloat16 (weights, sums and optimiser stay float32); by default on a GPU only.

    Returns:
        The autoencoder on the CPU with the centre folded in, and its history: columns ``epoch, weight`` (of the L1 penalty),
        ``train_mse`` and ``train_l0`` (over the epoch), ``target_l0``, and of validation rows ``mse, l0, fvu, dead`` as in
        ``model.quality``.

    Raises:
        TrainingError: the training does not fit the memory; the loss (the last good checkpoint stays) or the data are not
            finite; or the checkpoint is of another training.
    """
    device = torch.device(default_device())
    recipe = recipe_of(parameters, rows=len(train_rows), d_in=train_rows.shape[1])
    half = device.type == "cuda" if half is None else half
    needed = required_bytes(recipe, rows=len(train_rows) + len(validation_rows), half=half)
    if needed > (free := available_bytes(device)):
        raise TrainingError(
            f"{label}: training needs about {needed / 1e9:.1f} GB, but {device.type} has {free / 1e9:.1f} GB free; "
            "lower expansion or batch_size"
        )
    if not (np.isfinite(train_rows).all() and np.isfinite(validation_rows).all()):
        raise TrainingError("activations are not finite; verify the store (notebook 02)")
    if recipe.activation != "relu" and recipe.k > recipe.d_sae:
        raise TrainingError(
            f"{label}: target_l0 {recipe.target_l0:g} is more than the {recipe.d_sae} latents; lower it"
        )
    centre = mean_of(train_rows)
    x, held_out = (torch.from_numpy(rows) - centre for rows in (train_rows, validation_rows))
    identity = asdict(recipe) | {"rows": checksum(x.numpy()) if checkpoint else ""}
    x, held_out, sae = x.to(device), held_out.to(device), new(recipe).to(device)
    optimiser = torch.optim.AdamW(sae.parameters(), lr=recipe.learning_rate, weight_decay=0, fused=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    saved = Checkpoint(checkpoint, sha256_of_json(identity), sae, optimiser, generator) if checkpoint else None
    position: dict[str, Any] = {"epoch": 0, "weight": INITIAL_WEIGHT, "near_target": 0, "history": [], "dead": []}
    position = saved.read() if saved and saved.path.exists() else position
    gradients = torch.compile(set_gradients) if device.type == "cuda" else set_gradients
    steps = len(x) // recipe.batch_size  # the last batch of an epoch is dropped if it is not full
    written, used = time.monotonic(), steps * recipe.batch_size
    bar = tqdm(range(position["epoch"], recipe.epochs), desc=label, unit="epoch")
    for epoch in bar:
        squares, fired = torch.zeros((), device=device), torch.zeros(recipe.d_sae, device=device)
        dead = torch.tensor(position["dead"], dtype=torch.int64, device=device)
        drawn = torch.randperm(len(x), generator=generator)[:used].to(device)
        for step, batch in enumerate(drawn.split(recipe.batch_size), epoch * steps):
            optimiser.param_groups[0]["lr"] = recipe.learning_rate * rate_at(step, steps=steps, epochs=recipe.epochs)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                error, active = gradients(sae, x[batch], recipe=recipe, weight=position["weight"])
                add_auxiliary_gradients(sae, x[batch], error=error, dead=dead)
            squares, fired = squares + (error.float() ** 2).mean(), fired + active
            update(sae, optimiser)
        if not torch.isfinite(squares):
            stays = f"; the checkpoint of epoch {saved.epoch} stays" if saved and saved.epoch else ""
            advice = f"lower learning_rate ({recipe.learning_rate:g}){stays}"
            raise TrainingError(f"{label}: the loss is not finite in epoch {epoch}; {advice}")
        if sae.jump:
            calibrate(sae, x, recipe.k)
        row, train_l0 = quality(sae, held_out), float(fired.sum(dtype=torch.float64)) / used
        measured = {"train_mse": float(squares) / steps, "train_l0": train_l0, "target_l0": recipe.target_l0}
        position["history"].append({"epoch": epoch, "weight": position["weight"]} | measured | row)
        bar.set_postfix({name: f"{row[name]:.3g}" for name in ("fvu", "l0", "dead")})
        near = row["mse"] < STOP_ERROR and not misses(row["l0"], recipe.target_l0)
        position["near_target"] = position["near_target"] + 1 if near else 0
        if position["near_target"] >= STOP_EPOCHS:
            break
        position["epoch"] = epoch + 1
        if recipe.activation == "relu":
            position["weight"] = adapted(position["weight"], train_l0 / recipe.target_l0)
        else:
            position["dead"] = torch.nonzero(fired == 0).flatten().tolist()
        if saved and time.monotonic() - written >= CHECKPOINT_SECONDS:
            saved.write(position)
            written = time.monotonic()
    return sae.cpu().fold_centre(centre), pd.DataFrame(position["history"])


def mean_of(rows: np.ndarray) -> Tensor:
    """Return the mean of rows [rows, d_in], which training takes off: [d_in]."""
    return torch.from_numpy(rows.mean(axis=0, dtype=np.float64).astype(np.float32))


def misses(l0: float, target: float) -> bool:
    """Say whether L0 is more than ``NEAR_TARGET`` of its target away from it."""
    return abs(l0 / target - 1) >= NEAR_TARGET


def new(recipe: Recipe) -> SparseAutoencoder:
    """Return the autoencoder that a training starts from."""
    k, jump = recipe.k if recipe.activation == "topk" else None, recipe.activation == "batchtopk"
    return SparseAutoencoder(recipe.d_in, recipe.d_sae, seed=recipe.seed, k=k, jump=jump)


def set_gradients(sae: SparseAutoencoder, x: Tensor, *, recipe: Recipe, weight: float) -> tuple[Tensor, Tensor]:
    """Set the gradient of every weight on centred rows [batch, d_in].

    Loss: mean squared error + weight x mean|feature_acts| (no penalty for TopK and BatchTopK). Every activation passes
    gradients where the latent fires, and only there.

    Returns:
        The error of the reconstruction [batch, d_in], and the number of rows that activate every latent, [d_sae].
    """
    hidden_pre = torch.addmm(sae.b_enc, x, sae.W_enc)
    penalty = 0.0
    if recipe.activation == "relu":
        feature_acts, penalty = hidden_pre.relu_(), weight / hidden_pre.numel()
    else:
        feature_acts = (top_k if recipe.activation == "topk" else batch_top_k)(hidden_pre, recipe.k)
    # 0 or 1, as activations are never negative; a product with it is cheaper than with a mask of booleans.
    firing = feature_acts.sign()
    error = torch.addmm(sae.b_dec, feature_acts, sae.W_dec) - x
    scaled = error * (2 / error.numel())
    # In place: allocating [batch, d_sae] anew costs as much as filling it.
    upstream = (scaled @ sae.W_dec.T).add_(penalty).mul_(firing)
    sae.W_dec.grad = (feature_acts.T @ scaled).float()
    sae.b_dec.grad = scaled.sum(dim=0).float()
    sae.W_enc.grad = (x.T @ upstream).float()
    sae.b_enc.grad = upstream.sum(dim=0).float()
    return error, firing.sum(dim=0, dtype=torch.float32)


def add_auxiliary_gradients(sae: SparseAutoencoder, x: Tensor, *, error: Tensor, dead: Tensor) -> None:
    """Add the gradient of the loss for dead latents: the error that at most d_in / 2 of them per row leave of ``error``.

    ``dead`` holds their indices. Gao et al. (2024), section A.2: without it a latent that stops to fire never learns again.
    """
    if len(dead) == 0:
        return
    W_enc, W_dec = sae.W_enc[:, dead], sae.W_dec[dead]
    feature_acts = top_k(torch.addmm(sae.b_enc[dead], x, W_enc), min(len(dead), max(1, sae.d_in // 2)))
    left = feature_acts @ W_dec + error
    scaled = left * (2 * AUXILIARY / left.numel())
    upstream = (scaled @ W_dec.T).mul_(feature_acts > 0)
    sae.W_dec.grad.index_add_(0, dead, (feature_acts.T @ scaled).float())
    sae.W_enc.grad.index_add_(1, dead, (x.T @ upstream).float())
    sae.b_enc.grad.index_add_(0, dead, upstream.sum(dim=0).float())


@torch.no_grad()
def calibrate(sae: SparseAutoencoder, x: Tensor, k: int) -> None:
    """Set BatchTopK's threshold so that k latents per row fire on centred rows x, on average.

    It is the mean, over chunks of the rows, of the least activation that BatchTopK keeps (Bussmann et al. 2024), taken from
    the weights as they are: a mean that runs along with training would lag behind them.
    """
    least = [sae.hidden_pre(part).flatten().topk(k * len(part)).values[-1].relu() for part in x.split(ROWS_AT_ONCE)]
    sae.threshold.fill_(torch.stack(least).mean())


def default_device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def required_bytes(recipe: Recipe, *, rows: int, half: bool) -> int:
    """Estimate the memory of one training.

    Weights, gradients and two moments are 16 bytes per weight, the folded copy at the end 4 more. The rows stay in memory;
    feature activations, their gradient and its mask exist once per batch.
    """
    weights = 2 * recipe.d_in * recipe.d_sae + recipe.d_in + recipe.d_sae
    batch = 3 * recipe.batch_size * recipe.d_sae * (2 if half else 4)
    return 20 * weights + 4 * rows * recipe.d_in + batch


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device; what torch keeps of finished trainings is given back first."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def adapted(weight: float, ratio: float) -> float:
    """Return the next weight of the L1 penalty for ``ratio`` = L0 / target, clamped to [1e-6, 100]."""
    factor = 1.2 if ratio > 2 else 1.05 if ratio > 1.1 else 0.95 if ratio < 0.9 else 1.0
    return float(np.clip(weight * factor, 1e-6, 100))


def rate_at(step: int, *, steps: int, epochs: int) -> float:
    """Return the share of the learning rate at a step, of ``steps`` per epoch: linear warm-up, then a cosine to 1%."""
    warm_up = WARM_UP_EPOCHS * steps
    if step < warm_up:
        return FIRST_RATE + (1 - FIRST_RATE) * step / warm_up
    progress = (step - warm_up) / max(1, (epochs - WARM_UP_EPOCHS) * steps)
    return LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * progress)) / 2


def update(sae: SparseAutoencoder, optimiser: torch.optim.Optimizer) -> None:
    """Clip the gradients to norm 1, take a step and give every decoder row unit norm again."""
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimiser.step()
    sae.normalise_decoder()


@dataclass
class Checkpoint:
    """The file that a killed training goes on from, and what it holds the state of.

    ``identity`` is the training's, ``epoch`` the one at which the file was last written or read.
    """

    path: Path
    identity: str
    sae: SparseAutoencoder
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    epoch: int = 0

    def write(self, position: dict[str, Any]) -> None:
        """Replace the file in one step, so that a kill leaves the old one or the new one."""
        tensors = {"generator": self.generator.get_state()}
        tensors |= {f"sae.{name}": value.contiguous() for name, value in self.sae.state_dict().items()}
        for name, weights in self.sae.named_parameters():
            tensors |= {f"{key}.{name}": value.contiguous() for key, value in self.optimiser.state[weights].items()}
        with replacing(self.path) as temporary:
            save_file(tensors, temporary, {"identity": self.identity, "position": json.dumps(position)})
        self.epoch = position["epoch"]

    def read(self) -> dict[str, Any]:
        """Restore the state and return the position; ``TrainingError`` if the file is of another training."""
        with safe_open(self.path, "pt") as stored:
            notes = stored.metadata()
        if notes["identity"] != self.identity:
            raise TrainingError(f"{self.path.name} belongs to a training with other settings or data; remove it")
        tensors = load_file(self.path)
        self.generator.set_state(tensors["generator"])
        self.sae.load_state_dict({name: tensors[f"sae.{name}"] for name in self.sae.state_dict()})
        for name, weights in self.sae.named_parameters():
            moments = ("step", "exp_avg", "exp_avg_sq")
            self.optimiser.state[weights] = {key: tensors[f"{key}.{name}"].to(weights.device) for key in moments}
        position = json.loads(notes["position"])
        self.epoch = position["epoch"]
        return position
