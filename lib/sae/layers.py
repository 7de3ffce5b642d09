"""Stages 5 and 6 layer by layer: the rows of each split, training, identification, alignment and its controls."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lib.foundations import CATEGORIES
from lib.sae import align, evaluate, export, features, train
from lib.sae.model import SparseAutoencoder
from lib.store import ActivationStore

ARMS = ("aligned", "untuned", "shuffled", "random")
FOLDERS = {"aligned": "aligned", "shuffled": "controls/shuffled", "random": "controls/random"}
"""Arm -> its folder below the layer's; ``untuned`` is stage 5's ``pretrained``."""


class Rows(NamedTuple):
    """Rows of one split: raw pooled residual streams [rows, width], moral vectors [rows, 10], actions [rows]."""

    x: np.ndarray
    vectors: np.ndarray
    actions: np.ndarray


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
    x = store.read(layer, pooling)[store.rows_of(table["action"])]
    vectors, actions = table[list(CATEGORIES)].to_numpy(), table["action"].to_numpy()
    sides = table[f"split_{split}"].to_numpy()
    return {side: Rows(x[sides == side], vectors[sides == side], actions[sides == side]) for side in np.unique(sides)}


def folder_of(layer: int) -> str:
    """Return the folder of a layer below a stage's directory."""
    return f"layer_{layer:02d}"


def pretrain(folder: Path, rows: dict[str, Rows], recipe: train.Recipe, label: str, metadata: dict[str, Any]) -> None:
    """Train one layer's autoencoder and fill ``folder`` with it and its history.

    The checkpoint lies beside ``folder``, which is temporary, so that an interrupted training goes on.
    """
    checkpoint = folder.parent / ".pretrained.checkpoint"
    sae, history = train.train(rows["train"].x, rows["validation"].x, recipe, label, checkpoint)
    export.save(folder, sae, metadata)
    history.to_parquet(folder / "history.parquet", index=False)
    checkpoint.unlink(missing_ok=True)


def quality(sae: SparseAutoencoder, rows: dict[str, Rows]) -> pd.DataFrame:
    """Return mse, L0, fraction of variance unexplained and share of dead latents, one line a split."""
    lines = [
        {"split": split, **train.quality(sae, torch.from_numpy(part.x)), "rows": len(part.x)}
        for split, part in rows.items()
    ]
    return pd.DataFrame(lines)


def align_arm(
    folder: Path,
    arm: str,
    sae: SparseAutoencoder,
    table: pd.DataFrame,
    rows: dict[str, Rows],
    recipe: align.Recipe,
    label: str,
    metadata: dict[str, Any],
) -> None:
    """Train one arm and fill ``folder`` with it and its history.

    ``aligned`` is the claim; ``shuffled`` is trained the same way on labels permuted among actions; ``random`` tunes as
    many latents that fire as often, drawn at random, in the same roles, on the true labels.
    """
    selection = selection_of(arm, sae, table, recipe.seed)
    train_rows, validation = rows["train"], rows["validation"]
    if arm == "shuffled":
        generator = np.random.default_rng(recipe.seed)
        train_rows, validation = (_shuffled(part, generator) for part in (train_rows, validation))
    aligned, history = align.align(
        sae,
        selection,
        (train_rows.x, train_rows.vectors),
        (validation.x, validation.vectors),
        recipe,
        label,
    )
    if align.frozen_hash(aligned, selection.tuned) != align.frozen_hash(sae, selection.tuned):
        raise AssertionError(f"{label}: a frozen weight has changed")
    export.save(folder, aligned, metadata | {"arm": arm, "tuned_latents": selection.tuned.tolist()})
    history.to_parquet(folder / "history.parquet", index=False)


def _shuffled(rows: Rows, generator: np.random.Generator) -> Rows:
    return rows._replace(vectors=rows.vectors[features.permuted_by_action(rows.actions, generator)])


def require_pooling(about: dict[str, Any], pooling: str) -> None:
    """Refuse an autoencoder of another pooling than the rows it shall be tuned on.

    Raises:
        export.FormatError: names both.
    """
    if about.get("pooling") != pooling:
        raise export.FormatError(
            f"the autoencoder was trained with pooling {about.get('pooling')!r}, but {pooling!r} is asked for; "
            "use the same in notebooks 05 and 06"
        )


def selection_of(arm: str, sae: SparseAutoencoder, table: pd.DataFrame, seed: int) -> align.Selection:
    """Return the latents that an arm tunes: those of the table of features, or as many at random."""
    chosen = align.select(table)
    return align.randomly(chosen, table["activity"].to_numpy(), seed) if arm == "random" else chosen


def measure(
    saes: dict[str, SparseAutoencoder], table: pd.DataFrame, rows: Rows, draws: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Measure all arms of a layer on held-out rows: tables ``alignment`` and ``similarity`` (of categories)."""
    arms = {arm: (sae, selection_of(arm, sae, table, seed)) for arm, sae in saes.items()}
    measured = evaluate.evaluate(arms, rows.x, rows.vectors, rows.actions, draws, seed)
    return {"alignment": measured, "similarity": evaluate.similarities(arms, rows.x, rows.vectors)}


def identify(sae: SparseAutoencoder, rows: Rows, permutations: int, seed: int) -> pd.DataFrame:
    """Find the moral latents on validation rows."""
    return features.identify(sae, rows.x, rows.vectors, permutations, seed, rows.actions)
