"""Controls of alignment that are no copy of the autoencoder: directions read from the stream, other labels, random weights."""

import numpy as np
import torch
from sklearn.linear_model import Ridge

from lib.alignment.selection import Selection
from lib.sae.model import ROWS_AT_ONCE, SparseAutoencoder
from lib.sae.rows import Rows
from lib.sae.training import mean_of
from lib.stats import permutations

PENALTIES = np.logspace(-3, 3, 7)
"""Of ridge, in units of the mean variance of a dimension of the stream times the rows."""

EACH = np.arange(10)


def ridge(sides: dict[str, Rows]) -> SparseAutoencoder:
    """Fit ten directions of the stream in closed form: what a linear reader gets from it without any dictionary.

    The penalty is the one of ``PENALTIES`` with the smallest error on the validation rows.

    Returns:
        An autoencoder whose ten latents are the directions, for raw rows; it reconstructs nothing (its decoder is 0).
    """
    train, validation = sides["train"], sides["validation"]
    centre = train.x.mean(axis=0, dtype=np.float64)
    x, held_out = (part.x - centre for part in (train, validation))
    unit = (x**2).sum() / x.shape[1]
    fits = [Ridge(alpha=penalty * unit).fit(x, train.vectors) for penalty in PENALTIES]
    best = min(fits, key=lambda fit: ((fit.predict(held_out) - validation.vectors) ** 2).mean())
    directions = SparseAutoencoder(x.shape[1], len(EACH))
    with torch.no_grad():
        directions.W_enc.copy_(torch.from_numpy(best.coef_.T))
        directions.b_enc.copy_(torch.from_numpy(best.intercept_ - best.coef_ @ centre))
        directions.W_dec.zero_()
    return directions


def ten_directions() -> Selection:
    """Return the selection of ten latents that each stand for a dimension of their own."""
    return Selection(EACH, *np.eye(len(EACH), dtype=np.float32)[None].repeat(2, axis=0), EACH, EACH)


def shuffled_labels(sides: dict[str, Rows], *, seed: int | list[int]) -> dict[str, Rows]:
    """Return the rows of training and validation with the labels of whole actions permuted among actions."""
    generator, shuffled = np.random.default_rng(seed), {}
    for side in ("train", "validation"):
        # Sorted by action, so that the draw depends on the actions and not on the order of the rows.
        by_action = np.argsort(sides[side].actions, kind="stable")
        order = next(permutations(sides[side].actions[by_action], 1, generator))
        vectors = np.empty_like(sides[side].vectors)
        vectors[by_action] = sides[side].vectors[by_action[order]]
        shuffled[side] = sides[side]._replace(vectors=vectors)
    return shuffled


def without_labels(sides: dict[str, Rows]) -> dict[str, Rows]:
    """Return the rows with no labels: every vector is 0, so that no loss sees any and all rows are drawn equally often."""
    return {side: part._replace(vectors=np.zeros_like(part.vectors)) for side, part in sides.items()}


@torch.no_grad()
def random_weights(sae: SparseAutoencoder, rows: np.ndarray, *, seed: int) -> SparseAutoencoder:
    """Return an autoencoder of random weights that is as sparse as ``sae`` and does no harm on rows [rows, d_in].

    Its decoder is its encoder's directions. One bias for all latents (one threshold for a JumpReLU) gives it the L0 of
    ``sae``, and the best scale and offset a fraction of variance unexplained of at most 1. Both are taken from at most
    ``ROWS_AT_ONCE`` of the rows, evenly spread.
    """
    device, centre = sae.W_enc.device, mean_of(rows)
    x = torch.from_numpy(rows[:: -(-len(rows) // ROWS_AT_ONCE)]).to(device)
    fresh = SparseAutoencoder(sae.d_in, sae.d_sae, seed=seed, k=sae.k, jump=sae.jump).to(device)
    fresh.W_enc.copy_(fresh.W_dec.T)
    centred = x - centre.to(device)
    if sae.k is None:
        active = int(torch.count_nonzero(sae.encode(x)))
        level = fresh.hidden_pre(centred).flatten().topk(max(1, active)).values[-1]
        fresh.threshold.fill_(level.relu()) if sae.jump else fresh.b_enc.fill_(-level)
    x_hat = fresh(centred)[0]
    spread, middle = x_hat - x_hat.mean(dim=0), centred.mean(dim=0)
    scale = ((spread * centred).sum() / (spread**2).sum().clamp_min(1e-12)).clamp_min(1e-6)
    for weights in (fresh.W_enc, fresh.b_enc, *([fresh.threshold] if sae.jump else [])):
        weights *= scale
    fresh.b_dec.copy_(middle - scale * x_hat.mean(dim=0))
    return fresh.fold_centre(centre.to(device))
