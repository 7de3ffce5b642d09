"""Dictionaries of tokens: the autoencoder reads every token of the residual stream, and its latents are pooled.

The store of stage 02 holds pooled vectors, and the latents of a mean of tokens are not the mean of their latents. So the model
reads the actions once more, one forward pass per layer; the tokens and their weights are those of the store's pooling.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array, save_npz, vstack
from tqdm.auto import tqdm

from lib.activations import extraction, models, sources
from lib.paper import POOLINGS, TEMPLATE
from lib.run.parameters import SAEParameters
from lib.run.stage import read_manifest
from lib.sae.features import ACTIVATIONS_AT_ONCE
from lib.sae.files import FormatError
from lib.sae.model import Quality, SparseAutoencoder
from lib.sae.rows import Rows

TOKEN_BUDGET = 4096
"""At most this many tokens, padding included, per forward pass."""


@torch.no_grad()
def pooled_latents(
    model: models.TransformersModel,
    actions: list[str],
    *,
    sae: SparseAutoencoder,
    layer: int,
    pooling: str,
    template: str = TEMPLATE,
) -> tuple[csr_array, dict[str, float]]:
    """Encode every token of the residual stream after ``layer`` and pool the feature activations of each action.

    ``actions`` are distinct and read inside ``template``; ``pooling`` is one of the store's, and tokens that do not count in it
    are not read. Memory: one batch's stream, ``ACTIVATIONS_AT_ONCE`` feature activations, and the pooled ones of its actions.

    Returns:
        Pooled feature activations, sparse float32 [actions, d_sae]; and of tokens the measures of
        :class:`lib.sae.model.Quality`.
    """
    prompts, device = extraction.tokenize(model.tokenizer, actions, template=template), models.input_device(model)
    quality, chunk, parts = Quality(sae.to(device)), max(1, ACTIVATIONS_AT_ONCE // sae.d_sae), []
    batches = extraction.batches(prompts.lengths, range(len(actions)), token_budget=TOKEN_BUDGET)
    for rows in tqdm(batches, desc=f"layer {layer}, tokens", unit="batch"):
        stream, weights = extraction.token_residuals(model, prompts, rows=rows, layer=layer)
        of_tokens = weights[:, POOLINGS.index(pooling)]
        pooled = torch.zeros(len(rows), sae.d_sae, device=device)
        for places in torch.nonzero(of_tokens).split(chunk):
            row, token = places.T
            feature_acts = quality.add(stream[row, token])
            pooled.index_add_(0, row, feature_acts * of_tokens[row, token, None])
        parts.append(csr_array(pooled.cpu().numpy()))
    return vstack(parts, format="csr")[pd.Index(prompts.actions).get_indexer(actions)], quality.measures()


def write(
    folder: Path, sae: SparseAutoencoder, *, store: Path, sides: dict[str, Rows], layer: int, parameters: SAEParameters
) -> dict[str, dict[str, float]]:
    """Fill ``folder`` with the pooled latents of the distinct actions of every split, and return the measures of each.

    Raises:
        FormatError: the model is not the one whose activations ``store`` holds.
    """
    origin = parameters.model_dump(include={"revision", "untrained"})
    read = read_manifest(store)["identity"]
    if sources.fingerprint(parameters.model_source, **origin) != read["facts"]:
        raise FormatError(
            f"model_source {parameters.model_source!r} is not the model whose activations are in the store; give that one, "
            "with its revision"
        )
    origin |= parameters.model_dump(include={"dtype", "device", "trust_remote_code"})
    model, measured = _opened(parameters.model_source, **origin), {}
    for side, part in sides.items():
        actions = np.unique(part.actions).tolist()
        about = {"sae": sae, "layer": layer, "pooling": parameters.pooling, "template": read["parameters"]["template"]}
        latents, measured[side] = pooled_latents(model, actions, **about)
        save_npz(folder / f"{side}.npz", latents)
    return measured


_opened = lru_cache(maxsize=1)(models.open_model)
"""Opens a model once for all layers."""
