"""The activation store: pooled residual streams on disk, written chunk by chunk (``data/store_protocol.md`` is normative).

There is one Zarr array per pooling, of shape [layer, row, width]. A row is a distinct action, in the order of
``index.parquet``. A chunk is a range of rows that is written together, all layers and poolings of it; its marker, written
last, holds checksums. A chunk without a marker does not exist, and what is read is what its marker says or an error.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import zarr
from pydantic import BaseModel
from tqdm.auto import tqdm

from lib.activations.arrays import STORED_AS, StoreError, address, claim, decode, encode, lay_out, location
from lib.run.files import locked, resolve, short, write_parquet, write_text_atomically
from lib.run.resources import ROWS_PER_CHUNK
from lib.run.stage import current_part

PROTOCOL = 2
"""Number of the protocol that this code keeps."""

_INTACT: set[tuple[str, int, int, str]] = set()
"""Pieces that this process has compared with their checksums: array, layer, first row, SHA-256."""


class Marker(BaseModel):
    """What a chunk's marker says: the token budget of its batches, and pooling -> SHA-256 of every layer."""

    token_budget: int | None
    sha256: dict[str, list[str]]


class DamagedError(StoreError):
    """A piece of the store is not what was written."""


def checksum(values: np.ndarray) -> str:
    """Return the SHA-256 of the bytes of an array, in C order."""
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


class ActivationStore:
    """Pooled residual streams of one model: [layer, row, width] for every pooling."""

    def __init__(self, directory: Path) -> None:
        if not (directory / "store.json").exists():
            raise StoreError(f"{short(directory)} is not an activation store. Run notebook 02_activations first.")
        self.directory = directory
        self.description = json.loads((directory / "store.json").read_text(encoding="utf-8"))
        if (protocol := self.description["protocol"]) != PROTOCOL:
            raise StoreError(
                f"{short(directory)} keeps protocol {protocol} of a store, not {PROTOCOL}. Remove it and run notebook "
                "02_activations again."
            )
        self.poolings: list[str] = self.description["poolings"]
        self.layers: int = self.description["layers"]
        self.width: int = self.description["width"]
        self.rows_per_chunk: int = self.description["rows_per_chunk"]
        self.dtype: str = self.description["dtype"]

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per action: ``action``, ``tokens`` (length of its prompt), in the order of the arrays' rows."""
        return pd.read_parquet(self.directory / "index.parquet")

    def rows_of(self, actions: Iterable[str]) -> np.ndarray:
        """Return the row of every action, shape [len(actions)]; one that is not there is a ``StoreError``."""
        wanted = list(actions)
        rows = pd.Index(self.index["action"]).get_indexer(wanted)
        if (rows < 0).any():
            raise StoreError(f"action not in {short(self.directory)}: {wanted[int(np.argmin(rows))]!r}")
        return rows

    def read(self, layer: int, pooling: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return one layer's pooled residual stream, float32 [row, width].

        ``rows`` are wanted in any order and any number of times; by default all. With them, memory holds what is asked
        for and one chunk beside it, not the layer. Every piece is compared with its checksum once per process.

        Raises:
            StoreError: unknown layer or pooling, chunks not written yet, or arrays that cannot be read now.
            DamagedError: a piece is not what was written, or is gone.
        """
        if pooling not in self.poolings:
            raise StoreError(f"pooling {pooling!r} is not in the store, which has {', '.join(self.poolings)}")
        if not 0 <= layer < self.layers:
            raise StoreError(f"layer {layer} is not in the store, which has layers 0 to {self.layers - 1}")
        self.require_complete()
        rows = np.arange(self.description["rows"]) if rows is None else rows
        result = np.empty((len(rows), self.width), dtype=np.float32)
        for chunk in self.chunks():
            inside = (rows >= chunk.start) & (rows < chunk.stop)
            if inside.any():
                result[inside] = self._piece(pooling, layer, chunk)[rows[inside] - chunk.start]
        return result

    def chunks(self) -> list[range]:
        """Return the ranges of rows that are written together."""
        rows = self.description["rows"]
        return [range(start, min(start + self.rows_per_chunk, rows)) for start in range(0, rows, self.rows_per_chunk)]

    def missing_chunks(self) -> list[range]:
        """Return the chunks that have no marker."""
        written = {path.name for path in (self.directory / "chunks").glob("*.json")}
        return [chunk for chunk in self.chunks() if self._marker(chunk).name not in written]

    def require_complete(self) -> None:
        """Raise ``StoreError`` unless every chunk has its marker; :meth:`verify` takes that of a damaged one."""
        if missing := self.missing_chunks():
            raise StoreError(
                f"{len(missing)} of {len(self.chunks())} chunks of {short(self.directory)} are not written yet, or were found "
                "damaged. Run notebook 02_activations again: it makes these chunks and no others."
            )

    def token_budget(self, chunk: range) -> int | None:
        """Return the token budget of the batches that a chunk was made of; None if it was never made."""
        markers = (self._recorded(chunk), self._recorded(chunk, ".damaged"))
        return next((marker.token_budget for marker in markers if marker), None)

    def write_chunk(
        self, chunk: range, pooled: Mapping[str, np.ndarray | torch.Tensor], *, token_budget: int | None = None
    ) -> None:
        """Write one of :meth:`chunks` and then its marker.

        ``pooled`` holds finite values [layer, len(chunk), width] by pooling; ``token_budget`` is that of their batches,
        on which values in reduced precision depend.

        Raises:
            StoreError: a value does not fit the store's dtype, or the disk is full; the chunk does not count as written.
        """
        label = f"rows {chunk.start} to {chunk.stop - 1}"
        checksums: dict[str, list[str]] = {}
        try:
            for pooling, values in pooled.items():
                part = f"{label} of {pooling!r}"
                kept_as = getattr(torch, STORED_AS[self.dtype])
                stored = encode(values, self.dtype).view(kept_as).numpy()
                self._array(pooling)[:, chunk.start : chunk.stop] = stored
                checksums[pooling] = _checksums(stored)
            part = f"the marker of {label}"
            marker = Marker(token_budget=token_budget, sha256=checksums)
            write_text_atomically(self._marker(chunk), marker.model_dump_json())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            row = len(self.poolings) * self.layers * self.width * np.dtype(STORED_AS[self.dtype]).itemsize
            needed = len(self.missing_chunks()) * self.rows_per_chunk * row
            raise StoreError(
                f"the disk of {short(self.directory)} is full: {part} could not be written; up to {needed / 1e6:,.0f} MB "
                "more are needed. What is finished stays: make room and run again, and it goes on from there."
            ) from error
        self._marker(chunk, ".damaged").unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store for writing; the operating system releases it when the process ends, however it ends.

        Different parts may write side by side, because a chunk belongs to one part. The same part twice, or a part
        beside the whole, is a ``StoreError``.
        """
        part = current_part()
        own = ".writing" if part is None else f".writing-{part.number}-of-{part.of}"
        with (self.directory / ".writing").open("w") as everyone, (self.directory / own).open("w") as lock:
            try:
                if part is not None:
                    fcntl.flock(everyone, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(f"another process is writing {short(self.directory)}; wait for it to end") from error
            yield

    def verify(self) -> pd.DataFrame:
        """Read every chunk back, compare it with its marker, and set that of a damaged one aside: it will be made again.

        Returns columns ``first_row``, ``pooling``, ``state`` (``ok``, ``damaged`` or ``missing``).

        Raises:
            StoreError: something cannot be read now, for want of a connection or of rights; its marker stays.
        """
        for pooling in self.poolings:
            lay_out(location(self.directory, self.description, pooling), self.description)
        records = []
        for chunk in tqdm(self.chunks(), desc="verifying", unit="chunk"):
            marker, states = self._recorded(chunk), {"all": "missing"}
            if marker:
                states = {name: self._state(name, chunk, marker.sha256.get(name)) for name in self.poolings}
            else:
                self._marker(chunk).unlink(missing_ok=True)  # what cannot be understood is no marker
            if "damaged" in states.values():
                self._marker(chunk).replace(self._marker(chunk, ".damaged"))
            records += [(chunk.start, pooling, state) for pooling, state in states.items()]
        return pd.DataFrame(records, columns=["first_row", "pooling", "state"])

    def require(self, description: Mapping[str, Any], index: pd.DataFrame) -> None:
        """Raise ``StoreError`` unless the store has this layout and these rows."""
        for key in (*description, "url"):
            if (there := self.description.get(key)) != (wanted := description.get(key)):
                raise StoreError(f"{short(self.directory)} has {key} = {there!r}, not {wanted!r}")
        for column in ("action", "tokens"):  # other lengths in tokens come from another template or tokenizer
            if self.index[column].tolist() != index[column].tolist():
                raise StoreError(
                    f"{short(self.directory)} holds other rows: its {column!r} differ. Use another run_dir."
                )

    def _state(self, pooling: str, chunk: range, recorded: list[str] | None) -> str:
        with contextlib.suppress(DamagedError):
            if _checksums(self._stored(pooling, slice(None), chunk)) == recorded:
                return "ok"
        return "damaged"

    def _piece(self, pooling: str, layer: int, chunk: range) -> np.ndarray:
        """Return one layer of a chunk, float32 [row, width], as its marker says it is."""
        stored, marker = self._stored(pooling, layer, chunk), self._recorded(chunk)
        recorded = "".join(marker.sha256.get(pooling, [])[layer : layer + 1]) if marker else ""
        piece = (location(self.directory, self.description, pooling), layer, chunk.start, recorded)
        if piece not in _INTACT and checksum(stored) == recorded:
            _INTACT.add(piece)
        values = decode(stored, self.dtype)
        # A piece that was lost since it was compared comes as NaN.
        if piece not in _INTACT or not np.isfinite(values).all():
            raise DamagedError(
                f"rows {chunk.start} to {chunk.stop - 1} of {pooling!r}, layer {layer}, in {short(self.directory)} are "
                "damaged or gone. `make verify` finds all such chunks; the next run makes them again, and no others."
            )
        return values

    def _stored(self, pooling: str, layers: int | slice, chunk: range) -> np.ndarray:
        """Return what the array holds; what is damaged and what cannot be read now are two errors."""
        array = self._array(pooling)
        try:
            return np.asarray(array[layers, chunk.start : chunk.stop])
        except (ValueError, RuntimeError) as error:  # zarr's codecs, of a broken checksum or compression
            raise DamagedError(f"rows {chunk.start} to {chunk.stop - 1} of {pooling!r} are damaged") from error
        except Exception as error:  # a file system's or a client's own: no rights, no connection, an expired key
            raise self._unreadable(error) from error

    def _array(self, pooling: str) -> zarr.Array:
        try:
            return zarr.open_array(location(self.directory, self.description, pooling), mode="r+")
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StoreError:
        where = self.description.get("url") or short(self.directory)
        return StoreError(
            f"the arrays in {where} cannot be read or written now ({type(error).__name__}: {error}). Nothing of them counts as "
            "damaged and nothing is computed again: mend the connection, the key or the rights, and run again."
        )

    def _recorded(self, chunk: range, suffix: str = ".json") -> Marker | None:
        """Return what the marker of a chunk says; None if there is none that can be understood."""
        try:
            return Marker.model_validate_json(self._marker(chunk, suffix).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def _marker(self, chunk: range, suffix: str = ".json") -> Path:
        return self.directory / "chunks" / f"{chunk.start:08d}{suffix}"


def open_store(path: str | Path) -> ActivationStore:
    """Open an existing store."""
    return ActivationStore(resolve(path))


def create_store(
    directory: Path,
    index: pd.DataFrame,
    *,
    layers: int,
    width: int,
    poolings: Iterable[str],
    rows_per_chunk: int = ROWS_PER_CHUNK,
    dtype: str = "float32",
) -> ActivationStore:
    """Lay out an empty store in a stage's directory, or open the one that an interrupted run left.

    ``index`` has columns ``action`` and ``tokens``; its rows are those of the arrays [layer, row, width], one per pooling.

    Raises:
        StoreError: the directory holds a store of another layout or of other rows, or the dtype is unknown.
        OwnershipError: the object store belongs to another run.
    """
    if dtype not in STORED_AS:
        raise StoreError(f"the dtype of a store should be one of {', '.join(STORED_AS)}, got {dtype!r}")
    description: dict[str, Any] = {"protocol": PROTOCOL, "rows": len(index), "layers": layers, "width": width}
    description |= {"poolings": list(poolings), "rows_per_chunk": rows_per_chunk, "dtype": dtype}
    if url := address(directory):
        description["url"] = url
        claim(url, directory)
    with locked(directory):
        there = (directory / "store.json").exists()
        if there:
            ActivationStore(directory).require(description, index)
        for pooling in description["poolings"]:
            lay_out(location(directory, description, pooling), description)
        if not there:
            write_parquet(directory / "index.parquet", index)
            write_text_atomically(directory / "store.json", json.dumps(description, indent=1))
    return ActivationStore(directory)


def _checksums(stored: np.ndarray) -> list[str]:
    """Return the checksum of every layer, in as many threads as PyTorch may use; hashing lets them run side by side."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(checksum, stored))
