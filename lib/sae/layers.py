"""Stage 5 layer by layer: the rows of each split, training and identification.

A layer is read when its turn comes and not kept, and writes a folder of its own; what is there is not computed again. So
layers may also be computed by jobs of their own (:mod:`lib.sae.jobs`), and the notebook joins what it finds.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lib import runs
from lib.foundations import CATEGORIES
from lib.sae import export, features, model, train
from lib.sae.model import SparseAutoencoder
from lib.store import ActivationStore, open_store

TRAIN = "train"
"""The ``sae_source`` that trains; any other is a directory or a hub id of autoencoders by others."""

AT_MOST_AT_ONCE = 4


class Rows(NamedTuple):
    """Rows of one split: raw pooled residual streams [rows, width], moral vectors [rows, 10], actions [rows]."""

    x: np.ndarray
    vectors: np.ndarray
    actions: np.ndarray


Reader = Callable[[int], dict[str, Rows]]
"""Layer -> its rows by split, read when asked for."""


def split_rows(
    store: ActivationStore, annotations: pd.DataFrame, exploded: pd.DataFrame, layer: int, pooling: str, split: str
) -> dict[str, Rows]:
    """Return the exploded rows of one layer by split.

    Args:
        store: pooled residual streams.
        annotations: with the ten categories.
        exploded: with the columns ``split_published`` and ``split_grouped``.
        layer: index of the decoder block.
        pooling: name of the pooling.
        split: ``published`` or ``grouped``.
    """
    table = exploded.merge(annotations[["id", "action", *CATEGORIES]], on="id", validate="many_to_one")
    x = store.read(layer, pooling, store.rows_of(table["action"]))
    vectors, actions = table[list(CATEGORIES)].to_numpy(), table["action"].to_numpy()
    sides = table[f"split_{split}"].to_numpy()
    return {side: Rows(x[sides == side], vectors[sides == side], actions[sides == side]) for side in np.unique(sides)}


def reader(stage: runs.Stage, pooling: str, split: str) -> Reader:
    """Return what reads the rows of a layer from the inputs of a stage."""
    annotations, exploded = (pd.read_parquet(stage.inputs[name]) for name in ("annotations", "exploded"))
    store = open_store(stage.inputs["activations"])
    return lambda layer: split_rows(store, annotations, exploded, layer, pooling, split)


def folder_of(layer: int) -> str:
    """Return the folder of a layer below a stage's directory."""
    return f"layer_{layer:02d}"


def training_inputs(parameters: Any) -> dict[str, str]:
    """Return the inputs of stage 5: name -> path, the autoencoders of others among them where they are local."""
    inputs = {
        "annotations": f"{parameters.run_dir}/vectors/annotations.parquet",
        "exploded": f"{parameters.run_dir}/vectors/exploded.parquet",
        "activations": f"{parameters.run_dir}/activations/{parameters.model}",
    }
    local = parameters.sae_source != TRAIN and runs.resolve(parameters.sae_source).is_dir()
    return inputs | ({"sae_source": parameters.sae_source} if local else {})


def training_recipe(parameters: Any) -> train.Recipe:
    """Return the recipe that the parameters of stage 5 name."""
    return train.Recipe(
        parameters.expansion, parameters.target_l0, parameters.sae_epochs, parameters.learning_rate,
        parameters.batch_size, seed=parameters.seed, activation=parameters.sae_activation,
    )  # fmt: skip


def train_layers(stage: runs.Stage, rows: Reader, layers: Iterable[int], parameters: Any) -> dict[int, Path]:
    """Return the folder of every layer's autoencoder, trained, or read from ``sae_source``, where it is not there.

    On a GPU as many layers as fit its memory are trained at once; on a CPU one after another. Either way a layer's result
    is its own: it depends on no other layer.
    """

    def one(layer: int) -> Path:
        name = f"{folder_of(layer)}/pretrained"
        about = {"model_name": parameters.model, "hook_name": f"model.layers.{layer}"}
        about |= {"pooling": parameters.pooling, "split": parameters.split}
        if parameters.sae_source != TRAIN:
            return stage.folder(name, adopt, rows, layer, parameters.sae_source, about)
        return stage.folder(name, pretrain, rows, layer, training_recipe(parameters), f"layer {layer}", about)

    layers = list(layers)
    missing = [layer for layer in layers if not (stage.directory / folder_of(layer) / "pretrained").exists()]
    workers = layers_at_once(rows, missing, parameters) if missing else 1
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(layers, pool.map(one, layers), strict=True))


def layers_at_once(rows: Reader, layers: list[int], parameters: Any) -> int:
    """Return how many layers to train at once: what fits a GPU's memory, one on a CPU."""
    device = torch.device(train.default_device())
    if device.type == "cpu" or parameters.sae_source != TRAIN or len(layers) < 2:
        return 1
    sides = rows(layers[0])
    width, count = sides["train"].x.shape[1], sum(len(part.x) for part in sides.values())
    recipe = training_recipe(parameters)
    needed = train.required_bytes(width, recipe.expansion * width, count, recipe, half=True)
    return max(1, min(len(layers), AT_MOST_AT_ONCE, train.available_bytes(device) // needed))


def pretrain(
    folder: Path, rows: Reader, layer: int, recipe: train.Recipe, label: str, metadata: dict[str, Any]
) -> None:
    """Train one layer's autoencoder and fill ``folder`` with it and its history.

    The checkpoint lies beside ``folder``, which is temporary, so that an interrupted training goes on.
    """
    checkpoint = folder.parent / ".pretrained.checkpoint"
    sides = rows(layer)
    sae, history = train.train(sides["train"].x, sides["validation"].x, recipe, label, checkpoint)
    export.save(folder, sae, metadata)
    history.to_parquet(folder / "history.parquet", index=False)
    checkpoint.unlink(missing_ok=True)


def adopt(folder: Path, rows: Reader, layer: int, source: str, metadata: dict[str, Any]) -> None:
    """Fill ``folder`` with an autoencoder that others trained; its history has one line, of the validation rows."""
    held_out = rows(layer)["validation"].x
    name, _, revision = source.partition("@")
    sae, about = export.load_foreign(name, layer, held_out.shape[1], revision or None)
    export.save(folder, sae, about | metadata)
    history = pd.DataFrame([{"epoch": 0, **model.quality(sae, torch.from_numpy(held_out))}])
    history.to_parquet(folder / "history.parquet", index=False)


def identify(sae: SparseAutoencoder, rows: dict[str, Rows], permutations: int, seed: int) -> pd.DataFrame:
    """Find the moral latents on validation rows, and report them on the training rows."""
    chosen, other = rows[features.CHOSEN_ON], rows[features.REPORTED_ON]
    on_device = sae.to(train.default_device())
    return features.identify(
        on_device, chosen.x, chosen.vectors, permutations, seed, chosen.actions, (other.x, other.vectors)
    )


def identify_layer(stage: runs.Stage, rows: Reader, layer: int, parameters: Any) -> pd.DataFrame:
    """Return the table of features of a layer, computed where it is not there."""

    def found() -> pd.DataFrame:
        sae = export.load(stage.directory / folder_of(layer) / "pretrained")
        return identify(sae, rows(layer), parameters.permutations, parameters.seed)

    return stage.table(f"{folder_of(layer)}/features.parquet", found)


def quality(stage: runs.Stage, rows: Reader, layers: Iterable[int]) -> pd.DataFrame:
    """Return mse, L0, fraction of variance unexplained and share of dead latents: columns ``layer, split, ..., rows``."""
    lines = []
    for layer in layers:
        sae = export.load(stage.directory / folder_of(layer) / "pretrained").to(train.default_device())
        for split, part in rows(layer).items():
            measured = model.quality(sae, torch.from_numpy(part.x).to(sae.W_enc.device))
            lines.append({"layer": layer, "split": split, **measured, "rows": len(part.x)})
    return pd.DataFrame(lines)
