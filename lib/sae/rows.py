"""The rows that stages 05 and 06 read, layer by layer: pooled residual streams beside moral vectors, by split.

A layer is read when its turn comes, and only the last one is kept, because at the paper's size one layer takes gigabytes.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from lib.activations.store import ActivationStore
from lib.paper import CATEGORIES
from lib.run.parameters import AlignmentParameters, SAEParameters
from lib.run.stage import Stage


class Rows(NamedTuple):
    """Rows of one split: raw pooled residual streams [rows, d_in], moral vectors [rows, 10], actions [rows].

    For a dictionary of tokens ``x`` are its latents, pooled, sparse [rows, d_sae] (:func:`lib.sae.layers.rows_or_latents`).
    """

    x: np.ndarray | csr_array
    vectors: np.ndarray
    actions: np.ndarray


Reader = Callable[[int], dict[str, Rows]]
"""Layer -> its rows by split: ``train``, ``validation`` and ``test``."""


def reader(
    store: ActivationStore,
    *,
    annotations: pd.DataFrame,
    exploded: pd.DataFrame,
    parameters: SAEParameters | AlignmentParameters,
) -> Reader:
    """Return the function that reads the exploded rows of a layer, of the pooling and split that ``parameters`` name.

    ``annotations`` has ``id``, ``action`` and the ten categories; ``exploded`` has ``id``, ``split_published`` and
    ``split_grouped``.
    """
    table = exploded.merge(annotations[["id", "action", *CATEGORIES]], on="id", validate="many_to_one")
    vectors, actions = table[list(CATEGORIES)].to_numpy(), table["action"].to_numpy()
    indices, sides = store.rows_of(table["action"]), table[f"split_{parameters.split}"].to_numpy()

    @lru_cache(maxsize=1)
    def read(layer: int) -> dict[str, Rows]:
        x = store.read(layer, parameters.pooling, indices)
        return {side: Rows(*(part[sides == side] for part in (x, vectors, actions))) for side in np.unique(sides)}

    return read


def folder_of(layer: int) -> str:
    """Return the folder of a layer below a stage's directory."""
    return f"layer_{layer:02d}"


def joined(stage: Stage, name: str, layers: list[int]) -> pd.DataFrame:
    """Return the tables ``name`` in the folders of several layers as one."""
    return pd.concat(
        [pd.read_parquet(stage.directory / folder_of(layer) / name) for layer in layers], ignore_index=True
    )
