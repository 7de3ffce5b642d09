"""Stage 05 layer by layer: an autoencoder for each, its moral latents and its quality.

Every layer has a folder of its own, and what is there is not computed again. So jobs can share the layers (the cells
tagged ``shared`` in the notebook), and the notebook that runs last joins what they made.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.run.parameters import SAEParameters
from lib.run.stage import Stage, share
from lib.sae import features, files, model, tokens, training
from lib.sae.model import SparseAutoencoder
from lib.sae.recipe import recipe_of
from lib.sae.rows import Reader, folder_of

TRAIN = "train"
"""The ``sae_source`` that trains; any other is a directory or a hub id of autoencoders by others."""

AT_MOST_AT_ONCE = 4


def train_layers(stage: Stage, rows: Reader, *, parameters: SAEParameters) -> dict[int, Path]:
    """Return the folder of every layer's autoencoder, made where it is not there; in a part, of this job's layers.

    A GPU trains as many layers at once as fit its memory, a CPU one after another. Either way no layer's result depends on
    another layer.
    """

    def one(layer: int) -> Path:
        about = {"store": stage.inputs.get("activations"), "parameters": parameters}
        return stage.folder(f"{folder_of(layer)}/pretrained", make, rows, layer=layer, **about)

    layers = share(parameters.layers)
    missing = [layer for layer in layers if not (stage.directory / folder_of(layer) / "pretrained").exists()]
    with ThreadPoolExecutor(layers_at_once(rows, missing, parameters=parameters)) as pool:
        return dict(zip(layers, pool.map(one, layers), strict=True))


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
    """Fill ``folder`` with a layer's autoencoder, trained or read from ``sae_source``, and its history.

    The checkpoint of a training lies beside ``folder``, which is temporary, so that an interrupted training goes on. The
    history of an autoencoder by others has one line: its measures on the validation rows. One of tokens is accompanied by its
    latents of every action, pooled; its model must be the one of the activations in ``store``.
    """
    checkpoint = folder.parent / ".pretrained.checkpoint"
    about = {"model_name": parameters.model, "hook_name": f"model.layers.{layer}"}
    about |= {"pooling": parameters.pooling, "split": parameters.split, "kind": files.POOLED}
    sides = rows(layer)
    held_out = sides["validation"].x
    if parameters.sae_source == TRAIN:
        sae, history = training.train(
            sides["train"].x, held_out, parameters=parameters, label=f"layer {layer}", checkpoint=checkpoint
        )
    else:
        sae, theirs = files.load_foreign(parameters.sae_source, layer=layer, d_in=held_out.shape[1])
        files.require_kind(parameters.sae_source, theirs, kind=parameters.sae_kind, pooling=parameters.pooling)
        about, device = theirs | about | {"kind": parameters.sae_kind}, training.default_device()
        if parameters.sae_kind == files.TOKENS:
            measured = tokens.write(folder, sae, store=store, sides=sides, layer=layer, parameters=parameters)
        else:
            measured = model.quality(sae.to(device), torch.from_numpy(held_out).to(device))
        sae, history = sae.cpu(), pd.DataFrame([{"epoch": 0, "target_l0": float("nan"), **measured}])
    files.save(folder, sae, about)
    history.to_parquet(folder / "history.parquet", index=False)
    checkpoint.unlink(missing_ok=True)


def identify_layers(stage: Stage, rows: Reader, *, parameters: SAEParameters) -> dict[int, pd.DataFrame]:
    """Return every layer's table of features, computed where it is not there; in a part, of this job's layers."""

    def identified(layer: int) -> pd.DataFrame:
        settings = {"permutations": parameters.permutations, "seed": parameters.seed}
        return features.identify(pretrained(stage, layer), rows(layer), **settings)

    layers = share(parameters.layers)
    return {layer: stage.table(f"{folder_of(layer)}/features.parquet", identified, layer) for layer in layers}


def quality_of_layers(stage: Stage, rows: Reader, *, parameters: SAEParameters) -> pd.DataFrame:
    """Measure every layer's autoencoder on the rows of each split.

    Returns:
        Columns ``layer, split, mse, l0, fvu, dead, rows`` with the measures of :func:`lib.sae.model.quality`, ``d_sae``,
        ``epochs`` of training (0 for an autoencoder by others) and ``target_l0`` (NaN for one), ``missed``: L0 is more than 10%
        away from its target, and ``unit``, what was measured: every ``row``, or every ``token`` of the rows' distinct actions.
    """
    records, of_tokens = [], parameters.sae_kind == files.TOKENS
    for layer in parameters.layers:
        folder, sae = stage.directory / folder_of(layer) / "pretrained", pretrained(stage, layer)
        history = pd.read_parquet(folder / "history.parquet")
        target, epochs = float(history["target_l0"].iloc[0]), len(history) if parameters.sae_source == TRAIN else 0
        for split, part in rows(layer).items():
            if of_tokens:
                measured = tokens.quality(folder, split)
            else:
                measured = model.quality(sae, torch.from_numpy(part.x).to(sae.W_enc.device))
            size = {"rows": len(part.vectors), "d_sae": sae.d_sae, "epochs": epochs, "target_l0": target}
            missed = training.misses(measured["l0"], target)
            unit = "token" if of_tokens else "row"
            records.append({"layer": layer, "split": split, **measured, **size, "missed": missed, "unit": unit})
    return pd.DataFrame(records)


def remarks(quality: pd.DataFrame) -> list[str]:
    """Say in words what the table of :func:`quality_of_layers` shows of each layer's size, training and target."""
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


def pretrained(stage: Stage, layer: int) -> SparseAutoencoder:
    """Return a layer's autoencoder, on the GPU if there is one."""
    return files.load(stage.directory / folder_of(layer) / "pretrained").to(training.default_device())
