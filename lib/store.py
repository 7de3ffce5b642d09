"""The activation store: pooled residual streams on disk, written chunk by chunk.

One Zarr array a pooling, of shape [layer, row, width]; a chunk holds a stretch of rows of one layer, so a layer reads
sequentially and an interrupted extraction loses one stretch at most. Rows are distinct actions, in the order of
``index.parquet``. A stretch counts as there when its marker, written after its data, is there; markers hold the
checksum of the data, and :meth:`ActivationStore.verify` compares them.

The arrays can lie in an object store: with ``COMPANION_STORE=s3://bucket/prefix`` (or any other address that fsspec
knows) they are written there, and everything small, the markers with their checksums among it, stays in the stage's
directory. A connection that breaks leaves a stretch without its marker, so it is written again.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import FsspecStore

from lib import files, ownership, runs, shares
from lib.precision import STORED_AS, StoreError, checksum, decode, encode

VARIABLE = "COMPANION_STORE"
"""Environment variable with the address of an object store for the arrays."""


class ActivationStore:
    """Pooled residual streams of one model: [layer, row, width] for every pooling."""

    def __init__(self, directory: Path) -> None:
        description = directory / "store.json"
        if not description.exists():
            raise StoreError(
                f"{runs.short(directory)} is not an activation store. Run notebook 02_residual_streams first."
            )
        self.directory = directory
        self.description: dict[str, Any] = json.loads(description.read_text(encoding="utf-8"))
        self.poolings: list[str] = self.description["poolings"]
        self.layers: int = self.description["layers"]
        self.width: int = self.description["width"]
        self.rows_per_chunk: int = self.description["rows_per_chunk"]

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row an action: ``action``, ``tokens`` (length of its prompt), in the order of the arrays' rows."""
        return pd.read_parquet(self.directory / "index.parquet")

    @property
    def actions(self) -> list[str]:
        """The distinct actions, in the order of the arrays' rows."""
        return self.index["action"].tolist()

    def rows_of(self, actions: Iterable[str]) -> np.ndarray:
        """Return the row of every action, shape [len(actions)].

        Raises:
            StoreError: an action is not in the store.
        """
        wanted = list(actions)
        rows = pd.Index(self.index["action"]).get_indexer(wanted)
        if (rows < 0).any():
            raise StoreError(f"action not in {runs.short(self.directory)}: {wanted[int(np.argmin(rows))]!r}")
        return rows

    def read(self, layer: int, pooling: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return one layer's pooled residual stream, float32 [distinct action, width].

        Args:
            layer: index of the decoder block.
            pooling: name of the pooling.
            rows: which actions, in any order and any number of times; by default all. Memory then holds what is asked
                for and one stretch beside it, not the layer.

        Raises:
            StoreError: unknown layer or pooling, or chunks not written yet.
        """
        if pooling not in self.poolings:
            raise StoreError(f"pooling {pooling!r} is not in the store, which has {', '.join(self.poolings)}")
        if not 0 <= layer < self.layers:
            raise StoreError(f"layer {layer} is not in the store, which has layers 0 to {self.layers - 1}")
        if missing := self.missing_chunks():
            raise StoreError(f"{len(missing)} chunks are not written yet; run notebook 02_residual_streams again")
        array, dtype = self._array(pooling), self.description["dtype"]
        if rows is None:
            return decode(np.asarray(array[layer]), dtype)
        result = np.empty((len(rows), self.width), dtype=np.float32)
        for stretch in self.chunks():
            inside = (rows >= stretch.start) & (rows < stretch.stop)
            if inside.any():
                values = decode(np.asarray(array[layer, stretch.start : stretch.stop]), dtype)
                result[inside] = values[rows[inside] - stretch.start]
        return result

    def chunks(self) -> list[range]:
        """Return the stretches of rows that are written together."""
        rows = self.description["rows"]
        return [range(start, min(start + self.rows_per_chunk, rows)) for start in range(0, rows, self.rows_per_chunk)]

    def missing_chunks(self) -> list[range]:
        """Return the stretches that have no marker."""
        return [rows for rows in self.chunks() if not self._marker(rows).exists()]

    def token_budget(self, rows: range) -> int | None:
        """Return the token budget of the batches that a stretch was made of; None if it was never made."""
        for path in (self._marker(rows), self._damaged(rows)):
            if path.exists():
                budget: int | None = json.loads(path.read_text(encoding="utf-8"))["token_budget"]
                return budget
        return None

    def write_chunk(self, rows: range, pooled: Mapping[str, np.ndarray], token_budget: int | None = None) -> None:
        """Write one stretch, [layer, len(rows), width] a pooling, and then its marker.

        Args:
            rows: one of :meth:`chunks`.
            pooled: pooling -> finite values.
            token_budget: of the batches that the values come from; kept, because in reduced precision they depend on it.

        Raises:
            StoreError: a value does not fit the store's dtype and would become infinite, or the disk is full; the
                stretch does not count as written.
        """
        dtype = self.description["dtype"]
        checksums: dict[str, str] = {}
        try:
            for pooling, values in pooled.items():
                stored = encode(values, dtype)
                self._array(pooling)[:, rows.start : rows.stop] = stored
                checksums[pooling] = checksum(stored)
            marker = {"token_budget": token_budget, "sha256": checksums}
            files.write_text_atomically(self._marker(rows), json.dumps(marker))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            needed = len(self.missing_chunks()) * sum(
                encode(values[:1, :1], dtype).nbytes for values in pooled.values()
            )
            stretch = f"rows {rows.start} to {rows.stop - 1}"
            missing = next(
                (f"{stretch} of {name!r}" for name in pooled if name not in checksums), f"the marker of {stretch}"
            )
            raise StoreError(
                f"the disk of {runs.short(self.directory)} is full: {missing} could not be written; up to "
                f"{needed * self.layers * self.rows_per_chunk / 1e6:,.0f} MB more are needed. What is finished stays: "
                "make room and run again, and it goes on from there."
            ) from error
        self._damaged(rows).unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store for writing; the operating system lets go of it when the process ends, however it ends.

        Different parts may write side by side, because a chunk of the arrays belongs to one stretch of rows and a
        stretch to one part; the same part twice, or a part and the whole, may not.

        Raises:
            StoreError: another process is writing.
        """
        part = shares.current()
        own = ".writing" if part is None else f".writing-{part.number}-of-{part.of}"
        with (self.directory / ".writing").open("w") as everyone, (self.directory / own).open("w") as lock:
            try:
                if part is not None:
                    fcntl.flock(everyone, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                writing = runs.short(self.directory)
                raise StoreError(f"another process is writing {writing}; wait for it to end") from error
            yield

    def verify(self) -> pd.DataFrame:
        """Compare every stretch with its marker; a damaged or unreadable one loses its marker, so it is made again.

        The marker is set aside, not removed: it holds the token budget with which the stretch is made again.

        Returns:
            Columns ``first_row``, ``pooling``, ``state`` (``ok``, ``damaged`` or ``missing``).
        """
        records = []
        for rows in self.chunks():
            marker = self._marker(rows)
            if not marker.exists():
                records.append((rows.start, "all", "missing"))
                continue
            recorded = json.loads(marker.read_text(encoding="utf-8"))["sha256"]
            states = {pooling: self._state(pooling, rows, recorded[pooling]) for pooling in self.poolings}
            records += [(rows.start, pooling, state) for pooling, state in states.items()]
            if "damaged" in states.values():
                marker.replace(self._damaged(rows))
        return pd.DataFrame(records, columns=["first_row", "pooling", "state"])

    def _state(self, pooling: str, rows: range, recorded: str) -> str:
        try:
            stored = np.asarray(self._array(pooling)[:, rows.start : rows.stop])
        except (ValueError, RuntimeError, OSError):
            # What zarr's codecs raise for a chunk whose own checksum or compression is broken.
            return "damaged"
        return "ok" if checksum(stored) == recorded else "damaged"

    def _array(self, pooling: str) -> zarr.Array:
        return zarr.open_array(_place(self.directory, self.description.get("url"), pooling), mode="r+")

    def _marker(self, rows: range) -> Path:
        return self.directory / "chunks" / f"{rows.start:08d}.json"

    def _damaged(self, rows: range) -> Path:
        return self.directory / "chunks" / f"{rows.start:08d}.damaged"


def open_store(path: str | Path) -> ActivationStore:
    """Open an existing store."""
    return ActivationStore(runs.resolve(path))


def create_store(
    directory: Path,
    index: pd.DataFrame,
    layers: int,
    width: int,
    poolings: Iterable[str],
    rows_per_chunk: int = 512,
    dtype: str = "float32",
) -> ActivationStore:
    """Lay out an empty store, or open the one that an interrupted run left.

    Args:
        directory: the stage's directory.
        index: one row an action, columns ``action`` and ``tokens``.
        layers: number of decoder blocks.
        width: of the residual stream.
        poolings: names of the arrays.
        rows_per_chunk: rows that are written together.
        dtype: of the arrays, ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        StoreError: the directory holds a store of another layout or of other rows, or the dtype is unknown.
        OwnershipError: the object store belongs to another run.
    """
    if dtype not in STORED_AS:
        raise StoreError(f"the dtype of a store should be one of {', '.join(STORED_AS)}, got {dtype!r}")
    description = {
        "protocol": 1,
        "rows": len(index),
        "layers": layers,
        "width": width,
        "poolings": list(poolings),
        "rows_per_chunk": rows_per_chunk,
        "dtype": dtype,
    }
    if base := os.environ.get(VARIABLE):
        below = [part for part in Path(runs.short(directory)).parts if part != ".."]
        description["url"] = "/".join([base.rstrip("/"), *below])
    with files.locked(directory):
        return _open_or_create(directory, index, description)


def _open_or_create(directory: Path, index: pd.DataFrame, description: dict[str, Any]) -> ActivationStore:
    path = directory / "store.json"
    if url := description.get("url"):
        ownership.claim(url, directory)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in (*description, "url") if found.get(key) != description.get(key)]
        if different:
            key = different[0]
            raise StoreError(f"{runs.short(directory)} has {key} = {found.get(key)!r}, not {description.get(key)!r}")
        opened = ActivationStore(directory)
        # Other lengths in tokens come from another template or tokenizer.
        other = [column for column in ("action", "tokens") if opened.index[column].tolist() != index[column].tolist()]
        if other:
            raise StoreError(f"{runs.short(directory)} holds other rows: its {other[0]!r} differ. Use another run_dir.")
        return opened
    files.write_parquet(directory / "index.parquet", index)
    for pooling in description["poolings"]:
        zarr.create_array(
            _place(directory, description.get("url"), pooling),
            shape=(description["layers"], len(index), description["width"]),
            chunks=(1, min(description["rows_per_chunk"], len(index)), description["width"]),
            dtype=STORED_AS[description["dtype"]],
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
            overwrite=True,
        )
    files.write_text_atomically(path, json.dumps(description, indent=1))
    return ActivationStore(directory)


def _place(directory: Path, url: str | None, pooling: str) -> Path | FsspecStore:
    """Where the array of a pooling lies: in the stage's directory, or in an object store."""
    if url is None:
        return directory / "residuals.zarr" / pooling
    return FsspecStore.from_url(f"{url}/residuals.zarr/{pooling}")
