"""What models need and what machines have, for plan and preflight alike. Light: nothing here imports torch."""

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lib.paper import POOLINGS, models
from lib.run.files import PROJECT, CompanionError, short
from lib.run.parameters import ActivationsKeys

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number."""

QUANTISED = {"8bit": 1.1, "4bit": 0.65}
"""Device -> bytes per quantised parameter, with its scales and the parts that stay in 16 bits."""

NUMBERS_PER_TOKEN, NUMBERS_PER_ROUTED_TOKEN = 16, 40
"""Numbers per token at the peak of one block, in widths of the model: attention, feed-forward, copies; and with experts."""

ROWS_PER_CHUNK = 512
"""Rows of the store that are written together, where a batch does not hold more."""

CHUNK_BYTES = 1e9
"""Bytes of a chunk at most, as stored: one is filled while another is written."""

DIAGNOSIS_PROCESSES = 4
"""At most this many arms are analysed in parallel; each holds distances between all pairs of rows."""

PROCESS_BYTES = 1e9
"""Bytes of a process of the diagnosis before it reads anything."""

LARGE = 4e6
"""Values in the subset's representation below which an arm takes less time than a process, or a GPU, needs to start."""


HEAD_BYTES = 2**20
"""Bytes at the start of a GGUF file in which its numbers stand, before the words of its tokenizer."""


class ResourceError(CompanionError):
    """A run needs more than there is, a GPU is not known or a model's file is damaged; the message says what would do."""


class Size(NamedTuple):
    """A model: parameters, those active for one token, decoder blocks, width."""

    parameters: float
    active: float
    layers: int
    width: int

    def first(self, layers: int | None) -> "Size":
        """Return the size of the first ``layers`` blocks (None: of all); each counts with its share of the embedding."""
        kept = min(layers or self.layers, self.layers)
        share = kept / self.layers
        return Size(self.parameters * share, self.active * share, kept, self.width)

    def weight_bytes(self, dtype: str, device: str = "auto") -> float:
        """Return the bytes of all weights."""
        # Experts are not quantised: a layer's experts are one array in transformers, which bitsandbytes leaves as it is.
        mixture = self.active < self.parameters
        return self.parameters * (BYTES[dtype] if mixture else QUANTISED.get(device, BYTES[dtype]))

    def forward_flops(self, tokens: float) -> float:
        """Return the FLOPs of a forward pass: a multiplication and an addition per token and active parameter."""
        return 2 * self.active * tokens


@dataclass(frozen=True)
class Reading:
    """What stage 02 takes: ``rows`` prompts of ``tokens`` tokens in all are read, pooled at every layer and stored."""

    size: Size
    rows: int
    tokens: float
    keys: ActivationsKeys

    @property
    def flops(self) -> float:
        """FLOPs of all forward passes."""
        return self.size.forward_flops(self.tokens)

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights."""
        return self.size.weight_bytes(self.keys.dtype, self.keys.device)

    @property
    def batch_bytes(self) -> float:
        """Bytes of one forward pass beside the weights: one block's numbers, and the pooled rows of all layers."""
        rows = min(self.rows, self.rows_per_batch, rows_per_chunk(self))
        tokens = min(self.keys.token_budget, rows * self.tokens / max(self.rows, 1))
        numbers = NUMBERS_PER_ROUTED_TOKEN if self.size.active < self.size.parameters else NUMBERS_PER_TOKEN
        per_token = self.size.width * (numbers * BYTES[self.keys.dtype] + 4)
        return tokens * per_token + 2 * self.stored_bytes(rows, "float32")  # layer by layer, then together

    @property
    def chunk_bytes(self) -> float:
        """Bytes of memory while one chunk of the store is filled and another one is written."""
        return 2 * self.stored_bytes(min(rows_per_chunk(self), self.rows), self.keys.store_dtype)

    @property
    def rows_per_batch(self) -> int:
        """Rows of average length that a token budget holds."""
        return max(1, math.ceil(self.keys.token_budget * self.rows / max(self.tokens, 1)))

    def stored_bytes(self, rows: int, dtype: str) -> float:
        """Return the bytes of so many pooled rows, all layers and poolings, before compression."""
        return len(POOLINGS) * self.size.layers * self.size.width * rows * BYTES[dtype]

    @property
    def store_bytes(self) -> float:
        """Bytes of the store before compression."""
        return self.stored_bytes(self.rows, self.keys.store_dtype)


def rows_per_chunk(reading: Reading) -> int:
    """Return how many rows of a store are written together: enough for a full batch, at most ``CHUNK_BYTES``."""
    held = int(CHUNK_BYTES // reading.stored_bytes(1, reading.keys.store_dtype))
    return max(1, min(max(ROWS_PER_CHUNK, reading.rows_per_batch), held))


def diagnosis_memory(rows: int, probed: int, width: int) -> float:
    """Return the bytes that a process needs for one arm of one layer: distances in float64 twice, or activations as read.

    Args:
        rows: of the diagnosis subset.
        probed: annotations that the probes read.
        width: of the residual stream.
    """
    return PROCESS_BYTES + max(16 * rows**2 + 8 * rows * width, 12 * (rows + probed) * width)


def registered_size(hub: str) -> Size | None:
    """Return the size of a model of the registry (``data/models.csv``) by its hub id; None if it is not there."""
    for row in models().query("hub == @hub").itertuples():
        return Size(row.parameters_billions * 1e9, row.active_billions * 1e9, row.layers, row.width)
    return None


def configuration_in(directory: Path) -> dict[str, Any]:
    """Return the configuration of a local model, or of the part of it that reads text.

    Raises:
        ResourceError: its file is no JSON object.
    """
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return config.get("text_config") or config
    except (ValueError, AttributeError):
        raise ResourceError(f"{short(file)} is no JSON object, perhaps cut short. Download the model again.") from None


def tensors_in(file: Path) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of the tensors in a safetensors file, by name, from its header alone.

    Raises:
        ResourceError: it is no whole safetensors file, such as the pointer that Git LFS leaves in place of one.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < file.stat().st_size else {}
        header.pop("__metadata__", None)
        end = max(tensor["data_offsets"][1] for tensor in header.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        length, end = 0, math.inf
    if file.stat().st_size != 8 + length + end:
        raise ResourceError(
            f"{short(file)} is no whole safetensors file. If it is a pointer of Git LFS, fetch the file with `git lfs pull`; "
            "else download the model again."
        )
    return header


def blocks_in_gguf(file: Path) -> int | None:
    """Return how many decoder blocks a GGUF file has; None if it does not say so at its start.

    Raises:
        ResourceError: it is no GGUF file.
    """
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head.startswith(b"GGUF"):
        raise ResourceError(f"{short(file)} is no GGUF file. Download it again.")
    found = re.search(rb"\.block_count\x04\0\0\0(.{4})", head, re.DOTALL)  # the key, the type uint32, the value
    return int.from_bytes(found[1], "little") if found else None


@cache
def accelerators() -> pd.DataFrame:
    """Return the memory and rates of GPUs by name, ``data/accelerators.csv``."""
    return pd.read_csv(PROJECT / "data" / "accelerators.csv").set_index("name")


def gpu(name: str) -> pd.Series:
    """Return a GPU's memory and rates, or raise ``ResourceError`` if it is not in ``data/accelerators.csv``."""
    table = accelerators()
    if name not in table.index:
        raise ResourceError(f"GPU {name!r} is not in data/accelerators.csv, which has {', '.join(table.index)}")
    return table.loc[name]
