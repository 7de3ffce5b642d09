"""Targeted alignment: tune the moral latents toward the human vectors and leave everything else untouched.

Released recipe: encoder columns, encoder biases and decoder rows of the tuned latents are trained, all else is frozen.
"""

import copy
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.activations.store import checksum
from lib.alignment.objective import losses, row_weights, term_weights
from lib.alignment.selection import Selection, TunedLatents
from lib.run.parameters import AlignmentKeys
from lib.run.provenance import sha256_of_json
from lib.sae.model import ROWS_AT_ONCE, SparseAutoencoder
from lib.sae.rows import Rows
from lib.sae.training import TrainingError, mean_of

WEIGHT_DECAY = 0.01
CLIP = 1.0
"""Norm that the gradient of all tuned tensors together is clipped to."""

WARM_UP, FIRST_DIVISOR, LAST_DIVISOR = 0.1, 25, 1000
"""Of the one-cycle schedule: share of its rising part, and what the first rate is below the highest and above the last."""

PATIENCE = 10
"""Epochs without a lower validation loss after which training stops."""

LEAST_GAIN = 1e-4
"""What counts as lower."""


def align(
    sae: SparseAutoencoder,
    selection: Selection,
    *,
    rows: dict[str, Rows],
    parameters: AlignmentKeys,
    label: str,
    weights: Mapping[str, float] | None = None,
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Tune the selected latents of an autoencoder of raw vectors on the rows of ``train``; those of ``validation`` stop it.

    Training happens where the autoencoder's weights lie, on rows less the mean of the training rows; the autoencoder is not
    changed itself. ``label`` is for the progress bar, ``weights`` are the terms of another objective than ``parameters`` name.

    Returns:
        The aligned autoencoder of the best epoch, of raw vectors too, and the history: ``epoch, split, term, value``. With
        nothing selected, the autoencoder as it was and an empty history.

    Raises:
        TrainingError: the loss is not finite.
    """
    columns = ["epoch", "split", "term", "value"]
    if len(selection.tuned) == 0:
        return copy.deepcopy(sae), pd.DataFrame(columns=columns)
    objective, rate, seed = parameters.alignment_objective, parameters.alignment_learning_rate, parameters.seed
    weights = weights or term_weights(objective)
    device, centre = sae.W_enc.device, mean_of(rows["train"].x).to(sae.W_enc.device)
    centred = sae.fold_centre(-centre)
    train, validation = (prepared(centred, selection, rows[side], centre) for side in ("train", "validation"))
    latents = TunedLatents(centred, selection)
    optimiser = torch.optim.AdamW(latents.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
    generator, importance = torch.Generator().manual_seed(seed), row_weights(rows["train"].vectors)
    steps = -(-len(importance) // parameters.alignment_batch_size)
    schedule = one_cycle(optimiser, rate, parameters.alignment_epochs * steps)
    best, best_loss, best_epoch, history = copy.deepcopy(latents.state_dict()), float("inf"), -1, []
    bar = tqdm(range(parameters.alignment_epochs), desc=label, unit="epoch")
    for epoch in bar:
        drawn = torch.multinomial(importance, len(importance), replacement=True, generator=generator)
        sums = torch.zeros(len(weights), device=device)
        for batch in drawn.split(parameters.alignment_batch_size):
            data = {name: values[batch.to(device)] for name, values in train.items()}
            # Mixed precision on a GPU, as released.
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                terms = losses(latents, data, objective=objective, generator=generator)
            step(latents, optimiser, sum(weight * terms[name] for name, weight in weights.items()))
            schedule.step()
            sums += torch.stack([terms[name].detach() for name in weights]) * len(batch)
        if not torch.isfinite(sums).all():
            raise TrainingError(f"{label}: the loss is not finite in epoch {epoch}; lower alignment_learning_rate")
        with torch.no_grad():
            terms = losses(latents, validation, objective=objective, generator=torch.Generator().manual_seed(seed))
        held_out = {name: float(terms[name]) for name in weights}
        history += [(epoch, "train", *item) for item in zip(weights, (sums / len(drawn)).tolist(), strict=True)]
        history += [(epoch, "validation", name, value) for name, value in held_out.items()]
        loss = sum(weights[name] * value for name, value in held_out.items())
        if loss < best_loss - LEAST_GAIN:
            best, best_loss, best_epoch = copy.deepcopy(latents.state_dict()), loss, epoch
        bar.set_postfix(validation=f"{loss:.4f}", best=f"{best_loss:.4f}")
        if epoch - best_epoch >= PATIENCE:
            break
    aligned, tuned = copy.deepcopy(sae), torch.from_numpy(selection.tuned).to(device)
    with torch.no_grad():
        aligned.W_enc[:, tuned] = best["encoder"]
        aligned.b_enc[tuned] = best["bias"] - centre @ best["encoder"]
        aligned.W_dec[tuned] = best["decoder"]
    return aligned, pd.DataFrame(history, columns=columns)


def one_cycle(optimiser: torch.optim.Optimizer, rate: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate; torch's cannot rise within fewer than eleven steps."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        rate,
        total_steps=max(11, steps),
        pct_start=WARM_UP,
        div_factor=FIRST_DIVISOR,
        final_div_factor=LAST_DIVISOR,
    )


def step(latents: TunedLatents, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Clip the gradient, take a step and give the decoder rows their lengths again."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(latents.parameters(), CLIP)
    optimiser.step()
    latents.keep_lengths()


def frozen_hash(sae: SparseAutoencoder, tuned: np.ndarray) -> str:
    """Return one sha256 of all weights outside the tuned latents."""
    frozen = np.setdiff1d(np.arange(sae.d_sae), tuned)
    parts = (sae.W_enc[:, frozen], sae.b_enc[frozen], sae.W_dec[frozen], sae.b_dec)
    return sha256_of_json([checksum(part.detach().numpy()) for part in parts])


def frozen_share(sae: SparseAutoencoder, tuned: np.ndarray) -> float:
    """Return the share of weights that alignment leaves as they were."""
    total = sum(value.numel() for value in sae.parameters())
    return 1 - len(tuned) * (2 * sae.d_in + 1) / total


@torch.no_grad()
def prepared(sae: SparseAutoencoder, selection: Selection, rows: Rows, centre: Tensor) -> dict[str, Tensor]:
    """Return what :class:`TunedLatents` takes and the moral vectors ``m``, where the autoencoder's weights lie.

    ``sae`` is one of centred rows, from which ``centre`` [d_in] is taken off here. What the frozen latents contribute does
    not change (in a TopK, which of them lead does not), so it is computed once.
    """
    x, m = (torch.as_tensor(part, dtype=torch.float32, device=centre.device) for part in (rows.x, rows.vectors))
    x, tuned = x - centre, torch.as_tensor(selection.tuned, device=centre.device)
    if sae.k is None:
        acts = (sae.encode(part).index_fill_(1, tuned, 0) for part in x.split(ROWS_AT_ONCE))
        mass, rest = zip(*((part.sum(dim=1), sae.decode(part)) for part in acts), strict=True)
        return {"x": x, "m": m, "mass": torch.cat(mass), "rest": torch.cat(rest)}
    largest = (
        sae.hidden_pre(part).index_fill_(1, tuned, -torch.inf).topk(sae.k, dim=1) for part in x.split(ROWS_AT_ONCE)
    )
    rivals, leaders = (torch.cat(part) for part in zip(*largest, strict=True))
    return {"x": x, "m": m, "rivals": torch.relu(rivals), "leaders": leaders}
