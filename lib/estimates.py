"""What reading the prompts through a model will take, known before a byte of its weights is read.

Sizes come from the registry (``data/models.csv``) or from a configuration, tokens from the tokenized prompts. A run
that cannot fit is stopped here, with what would fit, because running out of memory or disk after an hour helps nobody.
"""

import copy
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from lib.registry import BYTES, POOLINGS, Size

QUANTISED = {"8bit": 1.1, "4bit": 0.65}
"""Bytes of a quantised parameter, with its scales and the parts that stay in 16 bits.

Experts are not quantised: transformers keeps a layer's experts in one array, which bitsandbytes leaves as it is.
"""

WIDTHS_PER_TOKEN = 40
"""Numbers a token keeps at the peak of one block, in widths of the stream: attention, feed-forward, router, copies."""

SHARE_OF_MATRIX_RATE = 0.5
"""Share of the rate of a plain matrix product that a forward pass sustains."""


class DoesNotFit(ValueError):
    """A run needs more memory or disk than there is; the message says what would fit."""


class Machine(NamedTuple):
    """What is free: bytes of memory, bytes of every card, bytes of disk; and the rate of a matrix product."""

    memory: float
    cards: tuple[float, ...]
    disk: float
    flops_per_second: float


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Bytes; ``working`` is one batch beside the weights, ``host`` one stretch of the store."""

    rows: int
    tokens: int
    flops: float
    weights: float
    working: float
    host: float
    disk: float
    layers: int
    device: str
    dtype: str
    store_dtype: str
    token_budget: int
    bytes_a_parameter: float
    quantisable: bool

    @property
    def memory(self) -> float:
        """Bytes needed where the model runs."""
        return self.weights + self.working

    def seconds(self, machine: Machine) -> float:
        """Return the time of the forward passes on ``machine``, without loading and writing."""
        return self.flops / (machine.flops_per_second * SHARE_OF_MATRIX_RATE)


def size_from_config(config: PreTrainedConfig) -> Size:
    """Count the parameters of a configuration on the meta device: nothing is read and nothing allocated.

    Of the experts of a layer, only those that one token is sent to are active.
    """
    text = copy.deepcopy(config.get_text_config())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text)
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
    share = (getattr(text, "num_experts_per_tok", None) or 1) / experts
    total, active = 0.0, 0.0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        active += parameter.numel() * (share if ".experts." in name else 1)
    return Size(total, active, text.num_hidden_layers, text.hidden_size)


def estimate(
    size: Size,
    lengths: np.ndarray,
    token_budget: int,
    dtype: str,
    store_dtype: str = "float32",
    device: str = "auto",
    rows_per_chunk: int = 512,
) -> Estimate:
    """Estimate a run from the sizes of the model and of the prompts.

    Args:
        size: of the model.
        lengths: tokens of every prompt.
        token_budget: at most so many tokens in one pass.
        dtype: of the model.
        store_dtype: of the store.
        device: as :func:`lib.models.load` takes it.
        rows_per_chunk: rows that are written together.
    """
    rows, tokens = len(lengths), int(lengths.sum())
    stream = POOLINGS * size.layers * size.width
    batch_rows = min(rows, math.ceil(token_budget / max(tokens / max(rows, 1), 1)))
    batch_tokens = min(token_budget, tokens)
    bytes_a_parameter = BYTES[dtype] if size.mixture else QUANTISED.get(device, BYTES[dtype])
    return Estimate(
        rows=rows,
        tokens=tokens,
        flops=2 * size.active * tokens,
        weights=size.parameters * bytes_a_parameter,
        working=batch_tokens * size.width * (WIDTHS_PER_TOKEN * BYTES[dtype] + 4) + stream * batch_rows * 4,
        host=1.5 * stream * min(rows_per_chunk, rows) * 4,
        disk=stream * rows * BYTES[store_dtype],
        layers=size.layers,
        device=device,
        dtype=dtype,
        store_dtype=store_dtype,
        token_budget=token_budget,
        bytes_a_parameter=bytes_a_parameter,
        quantisable=not size.mixture,
    )


def this_machine(directory: Path, device: str = "auto", dtype: str = "float32") -> Machine:
    """Look at what is free here, and time one matrix product where the model will run.

    Bytes that an interrupted run has left in ``directory`` count as free disk: they are part of what the run needs.
    """
    cards = range(torch.cuda.device_count()) if device != "cpu" else ()
    place = next(path for path in (directory, *directory.parents) if path.exists())
    written = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) if directory.exists() else 0
    return Machine(
        memory=psutil.virtual_memory().available,
        cards=tuple(torch.cuda.mem_get_info(card)[0] for card in cards),
        disk=shutil.disk_usage(place).free + written,
        flops_per_second=matrix_rate("cuda" if len(cards) else "cpu", dtype),
    )


def matrix_rate(device: str, dtype: str, side: int | None = None) -> float:
    """Measure floating-point operations a second of a matrix product: the best of three."""
    side = side or (8192 if device == "cuda" else 512)
    left = torch.ones((side, side), dtype=getattr(torch, dtype), device=device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        product = left @ left
        product[0, 0].item()  # waits for the card
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def require_fit(needed: Estimate, machine: Machine, object_store: bool = False) -> None:
    """Stop a run that cannot fit.

    Raises:
        DoesNotFit: memory or disk is short; says by how much and which settings would fit.
    """
    host = needed.host if needed.device == "remote" or _on_cards(needed, machine) else needed.host + needed.memory
    if needed.device != "remote" and _on_cards(needed, machine):
        free = machine.cards[0] if needed.device == "cuda" else sum(machine.cards)
        if needed.memory > free:
            raise DoesNotFit(_short_of_memory(needed, needed.memory, free, "free on the card" if needed.device == "cuda"
                                              else f"free on {len(machine.cards)} card(s)", machine))  # fmt: skip
    if host > machine.memory:
        raise DoesNotFit(_short_of_memory(needed, host, machine.memory, "of memory free here", machine))
    if needed.disk > machine.disk and not object_store:
        raise DoesNotFit(_short_of_disk(needed, machine.disk))


def report(needed: Estimate, machine: Machine) -> pd.DataFrame:
    """Return the estimate as a table: quantity, needed, free here."""
    on_cards = _on_cards(needed, machine)
    place = "remote" if needed.device == "remote" else f"{len(machine.cards)} card(s)" if on_cards else "this processor"
    free = "" if needed.device == "remote" else _gigabytes(sum(machine.cards) if on_cards else machine.memory)
    minutes = needed.seconds(machine) / 60
    lines = [
        ("prompts, tokens", f"{needed.rows:,}, {needed.tokens:,}", ""),
        ("arithmetic", f"{needed.flops:.2e} FLOPs", f"{machine.flops_per_second:.1e} FLOPs/s in a matrix product"),
        (f"weights, {needed.bytes_a_parameter:g} bytes a parameter", _gigabytes(needed.weights), f"{free} on {place}"),
        (f"one batch of {needed.token_budget:,} tokens", _gigabytes(needed.working), "beside the weights"),
        ("one stretch of the store", _gigabytes(needed.host), f"{_gigabytes(machine.memory)} of memory"),
        (f"store, {needed.store_dtype}", _gigabytes(needed.disk), f"{_gigabytes(machine.disk)} of disk"),
        ("time, without loading", f"{minutes:.1f} minutes" if needed.device != "remote" else "unknown", ""),
    ]
    return pd.DataFrame(lines, columns=["quantity", "needed", "free here"]).set_index("quantity")


def _on_cards(needed: Estimate, machine: Machine) -> bool:
    return bool(machine.cards) and needed.device not in ("cpu", "remote")


def _short_of_memory(needed: Estimate, bytes_needed: float, free: float, where: str, machine: Machine) -> str:
    settings = []
    fixed = bytes_needed - needed.weights
    layers = int(needed.layers * (free - fixed) / needed.weights) if free > fixed else 0
    if layers >= 1:
        settings.append(f"first_layers: {min(layers, needed.layers - 1)} (of {needed.layers})")
    elif needed.weights < free:
        settings.append("a smaller token_budget")
    if machine.cards and needed.device != "cpu":
        cards = math.ceil(needed.memory * 1.1 / min(machine.cards))
        settings.append(f"device: auto on {cards} cards like this one")
    else:
        settings.append(f"device: auto on cards with {_gigabytes(needed.memory * 1.1)} together")
    for name, bytes_a_parameter in QUANTISED.items():
        smaller = needed.weights / needed.bytes_a_parameter * bytes_a_parameter
        if (
            needed.quantisable
            and bytes_a_parameter < needed.bytes_a_parameter
            and smaller + needed.working < (sum(machine.cards) or free)
        ):
            settings.append(f"device: {name} ({_gigabytes(smaller)} of weights, on a card)")
            break
    settings.append("device: remote (NDIF)")
    return (
        f"{_gigabytes(bytes_needed)} are needed (weights {_gigabytes(needed.weights)}, a batch of "
        f"{needed.token_budget:,} tokens {_gigabytes(needed.working)}) and {_gigabytes(free)} are {where}. "
        f"Any of these would do: {'; '.join(settings)}."
    )


def _short_of_disk(needed: Estimate, free: float) -> str:
    settings = []
    if needed.store_dtype == "float32":
        settings.append(f"store_dtype: bfloat16 ({_gigabytes(needed.disk / 2)})")
    layers = int(needed.layers * free / needed.disk)
    if layers >= 1:
        settings.append(f"first_layers: {layers} (of {needed.layers})")
    settings.append("a run_dir on a larger disk")
    settings.append("an object store (COMPANION_STORE=s3://...)")
    return (
        f"the store needs {_gigabytes(needed.disk)} and {_gigabytes(free)} of disk are free. "
        f"Any of these would do: {'; '.join(settings)}."
    )


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.2f} GB" if value >= 1e7 else f"{value / 1e6:,.2f} MB"
