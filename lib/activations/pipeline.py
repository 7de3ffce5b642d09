"""From the device to the disk beside the forward passes: a GPU waits neither for copies nor for hashing and writing."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from lib.activations.arrays import is_finite
from lib.activations.store import ActivationStore
from lib.paper import POOLINGS
from lib.run.files import CompanionError


class ActivationError(CompanionError):
    """Activations cannot be computed or are not finite."""


class Batch:
    """The pooled rows of one forward pass on their way to the host's memory.

    They are rounded to the store's dtype and checked where they are. On a GPU the copy goes into pinned memory on a
    stream of its own, so the next forward pass need not wait for it.
    """

    def __init__(self, rows: range, pooled: torch.Tensor, *, dtype: str) -> None:
        self.rows = rows
        self.values = pooled.to(getattr(torch, dtype))
        self.finite = is_finite(self.values)
        self.copied: torch.cuda.Event | None = None
        if pooled.is_cuda:
            side = torch.cuda.Stream(pooled.device)
            side.wait_stream(torch.cuda.current_stream(pooled.device))
            with torch.cuda.stream(side):
                self.values, self.finite = _to_host(self.values, side), _to_host(self.finite, side)
                self.copied = side.record_event()

    def wait(self) -> torch.Tensor:
        """Return the values, [pooling, layer, row, width] in the store's dtype, once they are in the host's memory."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values


def _to_host(values: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    values.record_stream(stream)  # its memory is not used again before the copy is done
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


class Writer:
    """Writes a chunk in a thread of its own while the next one is read, so memory holds two chunks at most."""

    def __init__(self, store: ActivationStore, actions: list[str]) -> None:
        self.store, self.actions = store, actions
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self.thread.shutdown()

    def write(self, chunk: range, batches: list[Batch], *, token_budget: int) -> None:
        """Begin to write a chunk, once the one before it is written."""
        self.wait()
        self.writing = self.thread.submit(self._write, chunk, batches, token_budget)

    def check(self) -> None:
        """Raise what has stopped the writing of the last chunk, if anything has."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last chunk is written; raise what has stopped it."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _write(self, chunk: range, batches: list[Batch], token_budget: int) -> None:
        pooled = torch.cat([batch.wait() for batch in batches], dim=2)
        for batch in batches:
            _require_finite(batch, self.actions)
        batches.clear()  # joined, so their memory can go
        self.store.write_chunk(chunk, dict(zip(POOLINGS, pooled, strict=True)), token_budget=token_budget)


def _require_finite(batch: Batch, actions: list[str]) -> None:
    if not batch.finite:
        layer, row = np.argwhere(~batch.wait().isfinite().all(dim=3).all(dim=0).numpy())[0]
        raise ActivationError(
            f"activations of layer {layer} are not finite as {str(batch.values.dtype).removeprefix('torch.')} for the "
            f"action {actions[batch.rows[row]]!r}. Use dtype: float32 or bfloat16, and store_dtype: float32."
        )
