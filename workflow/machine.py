"""What this machine is: its GPU, and how fast its CPU reads, stores and multiplies, timed once for some seconds.

The rates are kept in ``runs/.machine.json``, so a plan says the same twice; remove the file to have them timed again. They
are those of one core, by CPU time, so that other work on the machine does not make it look slow.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from lib.run.files import resolve, write_text_atomically
from lib.run.resources import ResourceError, accelerators
from workflow.gpus import names

SHAPE = {"d_model": 576, "nhead": 9, "dim_feedforward": 1536, "dropout": 0.0, "batch_first": True}
"""Of the blocks that are timed: those of a model of 135M parameters."""

PROMPTS, TOKENS, BLOCKS = 128, 12, 4


class Rates(BaseModel):
    """Per second and core: FLOPs of a large matrix product and of a small forward pass, bytes written to a store."""

    machine: str
    product: float
    forward: float
    stored: float


@cache
def gpu() -> str | None:
    """Return the GPU of this machine by its name in ``data/accelerators.csv``; None if it has none.

    Raises:
        ResourceError: it is not in that table.
    """
    if not (listed := names()):
        return None
    known = [name for name in accelerators().index if all(part in listed[0] for part in name.split("-"))]
    if not known:
        raise ResourceError(
            f"the GPU of this machine, {listed[0]}, is not in data/accelerators.csv: add it, or name one that is by `gpu:`"
        )
    return known[0]


@cache
def rates() -> Rates:
    """Return the rates of this machine, timed now unless they are known."""
    path, described = resolve("runs/.machine.json"), _described()
    if path.exists():
        try:
            known = Rates.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError:  # of an older version of this module
            known = None
        if known and known.machine == described:
            return known
    timed = measure(described)
    write_text_atomically(path, timed.model_dump_json(indent=1))
    return timed


def measure(described: str) -> Rates:
    """Time one core: a matrix product, a forward pass through a few blocks, and the writing of a chunk."""
    import torch  # not at the top: a plan whose rates are known starts without it

    from lib.activations.store import create_store

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        square = torch.randn(1024, 1024)
        blocks = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(**SHAPE), BLOCKS, enable_nested_tensor=False
        ).eval()
        prompts = torch.randn(PROMPTS, TOKENS, SHAPE["d_model"])
        values = np.random.default_rng(0).normal(size=(4, 512, 1024)).astype(np.float32)
        weights = sum(weight.numel() for weight in blocks.parameters())
        index = pd.DataFrame({"action": [str(row) for row in range(512)], "tokens": TOKENS})
        layout = {"layers": 4, "width": 1024, "poolings": ["mean"], "dtype": "bfloat16"}
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            store = create_store(Path(folder), index, **layout)
            return Rates(
                machine=described,
                product=2 * 1024**3 / _seconds(lambda: square @ square),
                forward=2 * weights * PROMPTS * TOKENS / _seconds(lambda: blocks(prompts)),
                stored=values.nbytes / 2 / _seconds(lambda: store.write_chunk(range(512), {"mean": values})),
            )
    finally:
        torch.set_num_threads(threads)


def _seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call: the best of those that fit into half a second, at least three."""
    best, until = [], time.perf_counter() + 0.5
    function()
    while len(best) < 3 or time.perf_counter() < until:
        started = time.process_time()
        function()
        best.append(time.process_time() - started)
    return min(best)


def _described() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {model}"
