"""The Zarr arrays of a store: what they hold, where they lie, how they are laid out, and which run they belong to."""

import json
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from lib.run.files import CompanionError, locked, short, write_text_atomically

VARIABLE = "COMPANION_STORE"
"""Environment variable: arrays, and nothing else, go to this address that fsspec knows, such as ``s3://bucket/prefix``."""

STORED_AS = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""dtype -> what the arrays hold. Zarr has no bfloat16, so its bits are kept: the upper half of a float32."""

NOT_A_NUMBER = {"float32": math.nan, "float16": math.nan, "uint16": 0xFFFF}
"""What the arrays hold -> what Zarr gives for a piece whose file is gone. Values are finite, so it is never one of them."""


class StoreError(CompanionError):
    """A store is missing, incomplete, unreadable or of another kind than asked for."""


class OwnershipError(CompanionError):
    """The object store belongs to another run; says to which."""


def encode(values: np.ndarray | torch.Tensor, dtype: str) -> torch.Tensor:
    """Round values to the store's dtype, to the nearest, ties to even; one that is not finite then is a ``StoreError``."""
    rounded = torch.as_tensor(values).to(getattr(torch, dtype))
    if not is_finite(rounded):
        raise StoreError(
            f"values up to {float(torch.as_tensor(values).abs().max()):.3g} do not fit {dtype}; use store_dtype: float32"
        )
    return rounded


def is_finite(values: torch.Tensor) -> torch.Tensor:
    """Say, as a boolean on the values' device, whether all are finite; nothing of their size is allocated."""
    return torch.stack(values.aminmax()).isfinite().all()


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values of what the arrays hold."""
    return torch.from_numpy(stored).view(getattr(torch, dtype)).float().numpy()


def address(directory: Path) -> str | None:
    """Return where the arrays of a stage's directory go by the environment; None where they go into the directory."""
    if not (base := os.environ.get(VARIABLE)):
        return None
    filesystem, path = url_to_fs(base)
    below = [part for part in Path(short(directory)).parts if part != ".."]
    # Zarr writes whole files or none below a path, but not below a file: address.
    return "/".join([(path if isinstance(filesystem, LocalFileSystem) else base).rstrip("/"), *below])


ARRAYS = "residuals.zarr/"
"""Folder of the arrays; markers hold the hashes of what is in it."""


def location(directory: Path, description: Mapping[str, Any], pooling: str) -> str:
    """Return where the array of a pooling lies: in the stage's directory, or in an object store."""
    return f"{description.get('url') or directory}/{ARRAYS}{pooling}"


def lay_out(place: str, description: Mapping[str, Any]) -> None:
    """Write an array's metadata where they are not there, or not as they should be. Pieces that are there stay."""
    files: dict[str, Any] = {}
    rows, kept_as = description["rows"], STORED_AS[description["dtype"]]
    zarr.create_array(
        MemoryStore(files),
        shape=(description["layers"], rows, description["width"]),
        chunks=(1, min(description["rows_per_chunk"], rows), description["width"]),
        dtype=kept_as,
        fill_value=NOT_A_NUMBER[kept_as],
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
    )
    metadata = files["zarr.json"].to_bytes()
    filesystem, path = url_to_fs(f"{place}/zarr.json")
    if not filesystem.exists(path) or filesystem.cat_file(path) != metadata:
        _write(filesystem, path, metadata, mode="overwrite")


def claim(url: str, directory: Path) -> None:
    """Take the object store at ``url`` for the run of a stage's directory, or see that it is that run's already.

    On S3 and on a file system the claim is exclusive; elsewhere (fsspec has no other exclusive write) two runs that begin
    within the same moment may both believe that the store is theirs. Another run's store is an ``OwnershipError``.
    """
    filesystem, root = url_to_fs(url)
    number = directory.parent / ".owner"
    with locked(number):
        if not number.exists():
            write_text_atomically(number, uuid.uuid4().hex)
    owner = {"run": number.read_text(encoding="utf-8"), "directory": str(directory), "machine": socket.gethostname()}
    owner["since"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        _write(filesystem, f"{root}/owner.json", json.dumps(owner).encode(), mode="create")
    except OSError:
        if not filesystem.exists(f"{root}/owner.json"):
            raise
        first = json.loads(filesystem.cat_file(f"{root}/owner.json"))
        if first["run"] != owner["run"]:
            raise OwnershipError(
                f"{url} belongs to the run in {first['directory']} on {first['machine']}, since {first['since']}. Two runs "
                f"never share a store: use another COMPANION_STORE, or, if that run is gone, delete {url}."
            ) from None


def _write(filesystem: AbstractFileSystem, path: str, data: bytes, *, mode: Literal["create", "overwrite"]) -> None:
    if isinstance(filesystem, LocalFileSystem):  # object stores have no folders to make
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, data, mode=mode)
