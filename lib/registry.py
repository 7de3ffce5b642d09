"""The 23 models of the paper and the size of any model, light enough for a plan that opens none and imports no torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from lib.provenance import PROJECT

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

POOLINGS = 4
"""Vectors that are kept of one action and layer."""


def registry() -> pd.DataFrame:
    """Return the 23 models of the paper, one row a model (``data/models.csv``)."""
    return pd.read_csv(PROJECT / "data" / "models.csv")


class Size(NamedTuple):
    """A model: parameters, those active for one token, decoder blocks, width."""

    parameters: float
    active: float
    layers: int
    width: int

    @property
    def mixture(self) -> bool:
        """Whether only some experts of a layer read a token."""
        return self.active < self.parameters

    def first(self, layers: int | None) -> "Size":
        """Return the size of the model cut behind its first ``layers`` blocks; None for the whole model.

        The embedding is counted as part of the blocks, so for few layers of a small model this is too low.
        """
        if layers is None or layers >= self.layers:
            return self
        share = layers / self.layers
        return Size(self.parameters * share, self.active * share, layers, self.width)


def size_from_registry(row: Mapping[str, Any]) -> Size:
    """Return the size that a row of the registry gives."""
    return Size(row["parameters_billions"] * 1e9, row["active_billions"] * 1e9, int(row["layers"]), int(row["width"]))
