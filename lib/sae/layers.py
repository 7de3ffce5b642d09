"""Stage 05 layer by layer: an autoencoder for each, its quality and its moral latents.

Every layer has a folder of its own, and what is there is not computed again. So jobs can share the layers (the cell
tagged ``shared`` in the notebook), and the notebook that runs last joins what they made.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import load_npz

from lib.run.parameters import SAEParameters
from lib.run.stage import Stage, share
from lib.sae import features, files, model, training
from lib.sae.model import SparseAutoencoder
from lib.sae.recipe import recipe_of
from lib.sae.rows import Reader, Rows, folder_of

TRAIN = "train"
"""The ``sae_source`` that trains; any other is a directory or a hub id of autoencoders by others."""

AT_MOST_AT_ONCE = 4


def learn_layers(
    stage: Stage, rows: Reader, *, parameters: SAEParameters
) -> tuple[dict[int, Path], dict[int, pd.DataFrame]]:
    """Return the folder of every layer's autoencoder and its table of features; in a part, those of this job's layers.

    What is not there is made while a layer's rows are in memory, so they are read once. A GPU works on as many layers at
    once as fit its memory, a CPU on one after another. Either way no layer's result depends on another layer.
    """

    def one(layer: int) -> tuple[Path, pd.DataFrame]:
        own = cache(rows)  # this layer's rows stay, whatever other threads read
        about = {"layer": layer, "parameters": parameters}
        folder = stage.folder(
            f"{folder_of(layer)}/pretrained", make, own, store=stage.inputs.get("activations"), **about
        )
        seen = rows_or_latents(stage, own, parameters=parameters)
        return folder, stage.table(f"{folder_of(layer)}/features.parquet", identified, folder, seen, **about)

    layers = share(parameters.layers)
    missing = [layer for layer in layers if not (stage.directory / folder_of(layer) / "pretrained").exists()]
    with ThreadPoolExecutor(layers_at_once(rows, missing, parameters=parameters)) as pool:
        learned = dict(zip(layers, pool.map(one, layers), strict=True))
    return (
        {layer: folder for layer, (folder, _) in learned.items()},
        {layer: table for layer, (_, table) in learned.items()},
    )


def rows_or_latents(stage: Stage, rows: Reader, *, parameters: SAEParameters) -> Reader:
    """Return ``rows`` as they are for a dictionary of pooled vectors, or with pooled latents as ``x`` for one of tokens."""
    if parameters.sae_kind == files.POOLED:
        return rows

    @lru_cache(maxsize=1)
    def read(layer: int) -> dict[str, Rows]:
        folder, sides = stage.directory / folder_of(layer) / "pretrained", {}
        for side, part in rows(layer).items():
            _, action = np.unique(part.actions, return_inverse=True)
            sides[side] = part._replace(x=load_npz(folder / f"{side}.npz")[action])
        return sides

    return read


def layers_at_once(rows: Reader, layers: list[int], *, parameters: SAEParameters) -> int:
    """Return how many layers to train at once: as many as fit a GPU's memory, one on a CPU."""
    device = torch.device(training.default_device())
    if device.type == "cpu" or parameters.sae_source != TRAIN or len(layers) < 2:
        return 1
    sides = rows(layers[0])
    recipe = recipe_of(parameters, rows=len(sides["train"].x), d_in=sides["train"].x.shape[1])
    needed = training.required_bytes(recipe, rows=sum(len(part.x) for part in sides.values()), half=True)
    return max(1, min(len(layers), AT_MOST_AT_ONCE, training.available_bytes(device) // needed))


def make(folder: Path, rows: Reader, *, layer: int, parameters: SAEParameters, store: Path | None = None) -> None:
    """Fill ``folder`` with a layer's autoencoder, trained or read from ``sae_source``, its history and its quality.

    The checkpoint of a training lies beside ``folder``, which is temporary, so that an interrupted training goes on. The
    history of an autoencoder by others has one line: its measures on the validation rows. One of tokens is accompanied by its
    latents of every action, pooled; its model must be the one of the activations in ``store``.

    ``quality.parquet`` has a row per split: ``layer, split, mse, l0, fvu, dead`` with the measures of
    :class:`lib.sae.model.Quality`, ``rows``, ``d_sae``, ``epochs`` of training (0 for an autoencoder by others),
    ``target_l0`` (NaN for one), ``missed``: L0 is more than 10% away from its target, and ``unit``, what was measured: every
    ``row``, or every ``token`` of the rows' distinct actions.
    """
    checkpoint, sides = folder.parent / ".pretrained.checkpoint", rows(layer)
    about = {"model_name": parameters.model, "hook_name": f"model.layers.{layer}"}
    about |= {"pooling": parameters.pooling, "split": parameters.split, "kind": parameters.sae_kind}
    x, held_out = sides["train"].x, sides["validation"].x
    if parameters.sae_source == TRAIN:
        how = {"parameters": parameters, "label": f"layer {layer}", "checkpoint": checkpoint}
        sae, history = training.train(x, held_out, **how)
        measured, epochs = measures(sae, sides), len(history)
    else:
        sae, theirs = files.load_foreign(parameters.sae_source, layer=layer, d_in=x.shape[1])
        files.require_kind(parameters.sae_source, theirs, kind=parameters.sae_kind, pooling=parameters.pooling)
        if parameters.sae_kind == files.TOKENS:
            from lib.sae import tokens  # only here is the model needed, whose packages take seconds to import

            measured = tokens.write(folder, sae, store=store, sides=sides, layer=layer, parameters=parameters)
        else:
            measured = measures(sae, sides)
        history = pd.DataFrame([{"epoch": 0, "target_l0": float("nan"), **measured["validation"]}])
        about, epochs = theirs | about, 0
    target = float(history["target_l0"].iloc[0])
    quality = pd.DataFrame([{"layer": layer, "split": side, **of_side} for side, of_side in measured.items()])
    quality = quality.assign(
        rows=[len(sides[side].vectors) for side in measured],
        d_sae=sae.d_sae,
        epochs=epochs,
        target_l0=target,
        missed=[training.misses(l0, target) for l0 in quality["l0"]],
        unit="token" if parameters.sae_kind == files.TOKENS else "row",
    )
    files.save(folder, sae.cpu(), about)
    history.to_parquet(folder / "history.parquet", index=False)
    quality.to_parquet(folder / "quality.parquet", index=False)
    checkpoint.unlink(missing_ok=True)


def measures(sae: SparseAutoencoder, sides: dict[str, Rows]) -> dict[str, dict[str, float]]:
    """Return the quality of an autoencoder of pooled vectors on the rows of each split, measured on the GPU if there is one."""
    device = training.default_device()
    sae = sae.to(device)
    return {side: model.quality(sae, torch.from_numpy(part.x).to(device)) for side, part in sides.items()}


def identified(folder: Path, rows: Reader, *, layer: int, parameters: SAEParameters) -> pd.DataFrame:
    """Return the table of features of the autoencoder in ``folder``, on the GPU if there is one."""
    sae, settings = files.load(folder), {"permutations": parameters.permutations, "seed": parameters.seed}
    return features.identify(sae.to(training.default_device()), rows(layer), **settings)


def remarks(quality: pd.DataFrame) -> list[str]:
    """Say in words what the tables of quality (:func:`make`) show of each layer's size, training and target."""
    said = []
    for layer, part in quality.groupby("layer"):
        train, test = part.set_index("split").loc["train"], part.set_index("split").loc["test"]
        if np.isnan(train["target_l0"]):
            said.append(
                f"After layer {layer}: {test['d_sae']} latents by others. On test rows {test['l0']:.0f} are active per "
                f"{test['unit']}, and the unexplained variance of every {test['unit']} is {test['fvu']:.3f}."
            )
            continue
        said.append(
            f"After layer {layer}: {train['d_sae']} latents for {train['rows']} rows ({train['rows'] / train['d_sae']:.1f} "
            f"each). Unexplained variance is {test['fvu']:.3f} on test rows and {train['fvu']:.3f} on the rows it was "
            f"trained on: {test['fvu'] / train['fvu']:.1f} times as much."
        )
        if train["epochs"] <= training.WARM_UP_EPOCHS:
            said.append(
                f"**After layer {layer} it was trained for {train['epochs']} epochs, all within the warm-up of "
                f"{training.WARM_UP_EPOCHS}: the rate never reached its value.** Raise sae_minutes or sae_epochs, or lower "
                "expansion."
            )
        if train["missed"]:
            said.append(
                f"**The target is missed after layer {layer}: {train['l0']:.0f} latents are active per row, not "
                f"{train['target_l0']:.0f}.** The penalty moves by at most 20% per epoch: raise sae_epochs, or use topk."
            )
    return said
