"""Targeted alignment: tune the moral latents toward the human vectors, and leave everything else untouched.

Released recipe: encoder columns, encoder biases and decoder rows of the tuned set are trained, all else is frozen.
"""

import copy
import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lib.sae.losses import losses, row_weights, term_weights
from lib.sae.model import ROWS_AT_ONCE, SparseAutoencoder
from lib.sae.train import TrainingError
from lib.sae.tuned import Selection, TunedRows


@dataclass(frozen=True)
class Recipe:
    """Settings of one alignment; defaults are the published run's."""

    objective: str = "six-term"
    epochs: int = 50
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 512
    patience: int = 10
    seed: int = 0


def align(
    sae: SparseAutoencoder,
    selection: Selection,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    label: str,
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Tune the selected latents.

    Args:
        sae: the pretrained autoencoder of raw vectors; it is not changed. Training happens where its weights lie.
        selection: the tuned set.
        train: raw pooled residual streams [rows, width] and moral vectors [rows, 10].
        validation: the same, to stop on.
        recipe: the settings.
        label: for the progress bar.

    Returns:
        The aligned autoencoder and its history: ``epoch, split, term, value``. With nothing selected, the autoencoder as
        it was and an empty history.

    Raises:
        TrainingError: the loss is not finite, or the objective is unknown.
    """
    columns = ["epoch", "split", "term", "value"]
    if len(selection.tuned) == 0:
        return copy.deepcopy(sae), pd.DataFrame(columns=columns)
    weights = term_weights(recipe.objective)
    data = {name: _prepare(sae, selection, *part) for name, part in (("train", train), ("validation", validation))}
    rows = TunedRows(sae, selection)
    optimiser = torch.optim.AdamW(
        rows.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = max(1, -(-len(train[0]) // recipe.batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=max(11, recipe.epochs * steps + 1), pct_start=0.1
    )
    importance = row_weights(train[1])
    best, best_loss, waited, history = copy.deepcopy(rows.state_dict()), float("inf"), 0, []
    bar = tqdm(range(recipe.epochs), desc=label, unit="epoch")
    for epoch in bar:
        drawn = torch.multinomial(importance, len(importance), replacement=True, generator=generator)
        sums: dict[str, float] = {}
        for batch in drawn.split(recipe.batch_size):
            terms = losses(rows, selection, _take(data["train"], batch), recipe.objective, generator)
            total = sum(weights[name] * value for name, value in terms.items())
            if not torch.isfinite(total):
                raise TrainingError(f"{label}: the loss is not finite in epoch {epoch}; lower alignment_learning_rate")
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            schedule.step()
            rows.normalise_decoder()
            sums = {name: sums.get(name, 0.0) + value.item() * len(batch) for name, value in terms.items()}
        with torch.no_grad():
            fixed = torch.Generator().manual_seed(recipe.seed)
            held_out = {
                k: float(v) for k, v in losses(rows, selection, data["validation"], recipe.objective, fixed).items()
            }
        history += [(epoch, "train", name, value / len(drawn)) for name, value in sums.items()]
        history += [(epoch, "validation", name, value) for name, value in held_out.items()]
        loss = sum(weights[name] * value for name, value in held_out.items())
        bar.set_postfix(validation=f"{loss:.4f}", best=f"{min(loss, best_loss):.4f}")
        waited += 1
        if loss < best_loss:
            best, best_loss, waited = copy.deepcopy(rows.state_dict()), loss, 0
        if waited >= recipe.patience:
            break
    rows.load_state_dict(best)
    return _merged(sae, selection.tuned, rows), pd.DataFrame(history, columns=columns)


def frozen_hash(sae: SparseAutoencoder, tuned: np.ndarray) -> str:
    """Return a sha256 of all weights outside the tuned set."""
    kept = np.setdiff1d(np.arange(sae.latents), tuned)
    parts = (sae.W_enc[:, kept], sae.b_enc[kept], sae.W_dec[kept], sae.b_dec)
    return hashlib.sha256(b"".join(part.detach().contiguous().numpy().tobytes() for part in parts)).hexdigest()


def frozen_share(sae: SparseAutoencoder, tuned: np.ndarray) -> float:
    """Return the share of weights that alignment leaves as they were."""
    total = sum(value.numel() for value in sae.parameters())
    return 1 - len(tuned) * (2 * sae.width + 1) / total


@torch.no_grad()
def _prepare(sae: SparseAutoencoder, selection: Selection, x: np.ndarray, vectors: np.ndarray) -> dict[str, Tensor]:
    """What the frozen latents contribute does not change (of a TopK: which of them lead does not); compute it once."""
    device, index = sae.W_enc.device, torch.from_numpy(selection.tuned)
    raw = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device)
    data = {"x": raw, "m": torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).to(device)}
    if sae.k is not None:
        leaders = [_frozen_before(sae, part, index).topk(sae.k, dim=1) for part in raw.split(ROWS_AT_ONCE)]
        data["rivals"] = torch.relu(torch.cat([leader.values for leader in leaders]))
        data["places"] = torch.cat([leader.indices for leader in leaders])
        return data
    rest = []
    for part in raw.split(ROWS_AT_ONCE):
        z = sae.encode(part)
        z[:, index] = 0
        rest.append(sae.decode(z))
    return data | {"rest": torch.cat(rest)}


def _frozen_before(sae: SparseAutoencoder, x: Tensor, tuned: Tensor) -> Tensor:
    before = x @ sae.W_enc + sae.b_enc
    before[:, tuned] = -torch.inf
    return before


def _take(data: dict[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
    return {name: value[batch] for name, value in data.items()}


@torch.no_grad()
def _merged(sae: SparseAutoencoder, tuned: np.ndarray, rows: TunedRows) -> SparseAutoencoder:
    merged = copy.deepcopy(sae)
    index = torch.from_numpy(tuned)
    merged.W_enc[:, index] = rows.encoder
    merged.b_enc[index] = rows.bias
    merged.W_dec[index] = rows.decoder
    return merged
