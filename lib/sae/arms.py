"""Stage 6 layer by layer: the aligned autoencoder beside its controls, each trained and measured the same way.

What the alignment is worth shows only against an arm that lacks one thing of it: the labels, the choice of latents, or
the training of the autoencoder.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib import runs
from lib.sae import align, evaluate, export, features, losses, train, tuned
from lib.sae.layers import Reader, Rows, folder_of, identify
from lib.sae.model import SparseAutoencoder
from lib.store import open_store

ARMS = ("untuned", "aligned", "shuffled", "random", "random-weights")
FOLDERS = {
    "aligned": "aligned",
    "shuffled": "controls/shuffled",
    "random": "controls/random",
    "random-weights": "controls/random_weights",
}
"""Arm -> its folder below the layer's; ``untuned`` is stage 5's ``pretrained``."""


def alignment_inputs(parameters: Any) -> dict[str, str]:
    """Return the inputs of stage 6: name -> path."""
    return {
        "annotations": f"{parameters.run_dir}/vectors/annotations.parquet",
        "exploded": f"{parameters.run_dir}/vectors/exploded.parquet",
        "activations": f"{parameters.run_dir}/activations/{parameters.model}",
        "autoencoders": f"{parameters.run_dir}/sae/{parameters.model}",
    }


def alignment_recipe(parameters: Any) -> align.Recipe:
    """Return the recipe that the parameters of stage 6 name."""
    return align.Recipe(
        parameters.alignment_objective, parameters.alignment_epochs, parameters.alignment_learning_rate,
        batch_size=parameters.alignment_batch_size, seed=parameters.seed,
    )  # fmt: skip


def align_layer(stage: runs.Stage, rows: Reader, layer: int, parameters: Any) -> dict[str, Path]:
    """Return the folder of every arm of a layer, trained where it is not there; ``untuned`` is the one it starts from.

    Raises:
        export.FormatError: the autoencoder is of another width, pooling or split than the rows.
    """
    source = stage.inputs["autoencoders"] / folder_of(layer)
    about = export.metadata(source / "pretrained")
    require_same(about, pooling=parameters.pooling, split=parameters.split)
    folders = {"untuned": source / "pretrained"}
    recipe = alignment_recipe(parameters)
    for arm, name in FOLDERS.items():
        label = f"layer {layer}, {arm}"
        folders[arm] = stage.folder(
            f"{folder_of(layer)}/{name}", align_arm, arm, source, lambda: rows(layer), recipe, label, about
        )
    return folders


def align_arm(
    folder: Path,
    arm: str,
    source: Path,
    rows: Callable[[], dict[str, Rows]],
    recipe: align.Recipe,
    label: str,
    metadata: dict[str, Any],
) -> None:
    """Train one arm and fill ``folder`` with it, its table of features and its history.

    ``aligned`` is the claim; ``shuffled`` is trained the same way on labels permuted among actions; ``random`` tunes as
    many latents that fire as often, drawn at random, in the same roles, on the true labels; ``random-weights`` begins
    from an autoencoder that nothing has trained, whose features are identified and tuned by the same rules.
    """
    sides = rows()
    sae, table = load(source, sides["train"].x.shape[1])
    if arm == "random-weights":
        sae = untrained_like(sae, sides["train"].x, recipe.seed)
        table = identify(sae, sides, 0, recipe.seed)
    sae = sae.to(train.default_device())
    selection = selection_of(arm, table, recipe.seed)
    labelled = labels_of(arm, sides, recipe.seed)
    train_rows, validation = labelled["train"], labelled["validation"]
    aligned, history = align.align(
        sae, selection, (train_rows.x, train_rows.vectors), (validation.x, validation.vectors), recipe, label
    )
    aligned, sae = aligned.cpu(), sae.cpu()
    if align.frozen_hash(aligned, selection.tuned) != align.frozen_hash(sae, selection.tuned):
        raise AssertionError(f"{label}: a frozen weight has changed")
    export.save(folder, aligned, metadata | {"arm": arm, "tuned_latents": selection.tuned.tolist()})
    table.to_parquet(folder / "features.parquet", index=False)
    history.to_parquet(folder / "history.parquet", index=False)


def load(source: Path, width: int) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Return a layer's autoencoder, checked for the width of the residual stream, and its table of features."""
    return export.load(source / "pretrained", width), pd.read_parquet(source / "features.parquet")


def untrained_like(sae: SparseAutoencoder, rows: np.ndarray, seed: int) -> SparseAutoencoder:
    """Return an autoencoder of the same kind and size as a training begins from, centred on rows [rows, width]."""
    fresh = SparseAutoencoder(sae.width, sae.latents, seed, sae.k, sae.jump)
    if sae.jump:
        fresh.threshold.copy_(sae.threshold)
    return fresh.fold_centre(torch.from_numpy(rows.mean(axis=0, dtype=np.float64).astype(np.float32)))


def labels_of(arm: str, sides: dict[str, Rows], seed: int) -> dict[str, Rows]:
    """Return the training and validation rows with the labels that an arm is trained on."""
    generator = np.random.default_rng(seed)
    chosen = {side: sides[side] for side in ("train", "validation")}
    if arm != "shuffled":
        return chosen
    return {
        side: rows._replace(vectors=rows.vectors[features.permuted_by_action(rows.actions, generator)])
        for side, rows in chosen.items()
    }


def require_same(about: dict[str, Any], **asked: str) -> None:
    """Refuse an autoencoder of another pooling or split than the rows it shall be tuned on.

    Raises:
        export.FormatError: names both.
    """
    for name, value in asked.items():
        if about.get(name) != value:
            raise export.FormatError(
                f"the autoencoder was trained with {name} {about.get(name)!r}, but {value!r} is asked for; "
                "use the same in notebooks 05 and 06"
            )


def selection_of(arm: str, table: pd.DataFrame, seed: int) -> tuned.Selection:
    """Return the latents that an arm tunes: those of the table of features, or as many at random."""
    chosen = tuned.select(table)
    return tuned.randomly(chosen, table["activity"].to_numpy(), seed) if arm == "random" else chosen


def tuned_share(stage: runs.Stage, rows: Reader, layers: Iterable[int]) -> pd.DataFrame:
    """Return what is tuned: columns ``layer, tuned, latents, frozen_share`` (of weights) and ``targets_below_floor``.

    The last is the share of positive typicalities of the training rows that the published alignment loss cannot reach.
    """
    lines = []
    for layer in layers:
        source = stage.inputs["autoencoders"] / folder_of(layer)
        vectors = rows(layer)["train"].vectors
        sae, table = load(source, open_store(stage.inputs["activations"]).width)
        frozen = align.frozen_share(sae, tuned.select(table).tuned)
        lines.append((layer, int(table["tuned"].sum()), len(table), frozen, losses.share_below_floor(vectors)))
    return pd.DataFrame(lines, columns=["layer", "tuned", "latents", "frozen_share", "targets_below_floor"])


def measure(folders: dict[str, Path], rows: Reader, layer: int, draws: int, seed: int) -> dict[str, pd.DataFrame]:
    """Measure all arms of a layer on the test rows: tables ``alignment`` and ``similarity`` (of categories).

    Args:
        folders: arm -> its folder, as :func:`align_layer` returns them.
        rows: of all layers; only the test rows are used.
        layer: index of the decoder block.
        draws: bootstrap resamples.
        seed: of the resamples, and of the latents of the random arm.
    """
    test = rows(layer)["test"]
    applied = {}
    for arm in (arm for arm in ARMS if arm in folders):
        sae = export.load(folders[arm], test.x.shape[1]).to(train.default_device())
        table = folders[arm].parent if arm == "untuned" else folders[arm]
        selection = selection_of(arm, pd.read_parquet(table / "features.parquet"), seed)
        applied[arm] = evaluate.apply(sae, selection, test.x)
    measured = evaluate.evaluate(applied, test.x, test.vectors, test.actions, draws, seed)
    similar = evaluate.similarities(applied, test.vectors)
    return {"alignment": measured.assign(layer=layer), "similarity": similar.assign(layer=layer)}
