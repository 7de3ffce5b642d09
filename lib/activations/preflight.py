"""What reading the prompts through a model will take, known before a byte of its weights is read.

The model's size comes from the registry or from a configuration, the number of tokens from the tokenized prompts; what
follows from them is :class:`lib.run.resources.Reading`. A run that cannot fit is stopped here and told what would fit,
because running out of memory or disk after an hour helps nobody.
"""

import math
import shutil
import timeit
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from lib.activations.sizes import EXPERTS, EXPERTS_PER_TOKEN, active_parameters
from lib.run.resources import QUANTISED, Reading, ResourceError, Size

SHARE_OF_MATRIX_RATE = {"cpu": 0.9, "cuda": 0.5}
"""Share of the rate of a plain matrix product that a forward pass sustains."""

SMALLEST_BUDGET = 128
"""Tokens of the longest prompt: a smaller token budget changes nothing."""


class Machine(NamedTuple):
    """What is free: bytes of memory, of every GPU to be used, of disk; and the FLOPs per second of a matrix product."""

    memory: float
    gpus: tuple[float, ...]
    disk: float
    flops_per_second: float


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText] | None:
    """Return what opens a model of this configuration as a decoder of text; None if it is not one."""
    if getattr(config, "is_encoder_decoder", False):
        return None
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own_code:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else None


def size_from_config(config: PreTrainedConfig) -> Size:
    """Count the parameters of a configuration on the meta device: nothing is read and nothing allocated."""
    text = config.get_text_config()
    with torch.device("meta"):
        # A configuration class that the model brings is here only because the user let its code run.
        own_code = type(config).__module__.startswith("transformers_modules")
        model = auto_class(config).from_config(config, trust_remote_code=own_code)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    routing = {key: getattr(text, key, None) for key in (*EXPERTS, EXPERTS_PER_TOKEN)}
    return Size(sum(counts.values()), active_parameters(counts, routing), text.num_hidden_layers, text.hidden_size)


def this_machine(directory: Path, device: str = "auto", dtype: str = "float32") -> Machine:
    """Look at what is free here, and time one matrix product where the model will run.

    Bytes that an interrupted run has left in ``directory`` count as free disk: they are part of what the run needs.
    """
    gpus = range(torch.cuda.device_count()) if device not in ("cpu", "remote") else ()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    written = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return Machine(
        memory=psutil.virtual_memory().available,
        gpus=tuple(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus),
        disk=shutil.disk_usage(existing).free + written,
        flops_per_second=matrix_rate("cuda" if len(gpus) else "cpu", dtype),
    )


def matrix_rate(device: str, dtype: str) -> float:
    """Measure the FLOPs per second of a product of random matrices (of equal numbers, a GPU multiplies faster): best of 3."""
    side = 8192 if device == "cuda" else 1024
    left, right = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
    seconds = timeit.repeat(lambda: (left @ right)[0, 0].item(), number=1, repeat=4)  # item() waits for the GPU
    return 2 * side**3 / min(seconds[1:])  # the first one loads the kernel


def require_fit(needed: Reading, machine: Machine, object_store: bool = False) -> None:
    """Raise ``ResourceError`` if memory or disk is short, and say by how much and which settings would fit.

    With an ``object_store`` the arrays need no disk here.
    """
    if shortage := _shortage(needed, machine):
        raise ResourceError(_short_of_memory(needed, machine, *shortage))
    if needed.store_bytes > machine.disk and not object_store:
        raise ResourceError(_short_of_disk(needed, machine.disk))


def report(needed: Reading, machine: Machine) -> pd.DataFrame:
    """Return the estimate as a table: quantity, needed, free here. The time leaves out loading and writing."""
    keys, place = needed.keys, f"{_gigabytes(machine.memory)} on this CPU"
    if machine.gpus:
        place = f"{_gigabytes(sum(machine.gpus))} on {len(machine.gpus)} GPU(s)"
    share = SHARE_OF_MATRIX_RATE["cuda" if machine.gpus else "cpu"]
    minutes = needed.flops / (machine.flops_per_second * share) / 60
    each, remote = needed.weight_bytes / needed.size.parameters, keys.device == "remote"
    lines = [
        ("prompts, tokens", f"{needed.rows:,}, {needed.tokens:,}", ""),
        ("arithmetic", f"{needed.flops:.2e} FLOPs", f"{machine.flops_per_second:.1e} FLOPs/s in a matrix product"),
        (f"weights, {each:g} bytes per parameter", _gigabytes(needed.weight_bytes), "remote" if remote else place),
        (f"one batch of {keys.token_budget:,} tokens", _gigabytes(needed.batch_bytes), "beside the weights"),
        ("one chunk of the store", _gigabytes(needed.chunk_bytes), f"{_gigabytes(machine.memory)} of memory"),
        (f"store, {keys.store_dtype}", _gigabytes(needed.store_bytes), f"{_gigabytes(machine.disk)} of disk"),
        ("time, without loading", "unknown" if remote else f"{minutes:.1f} minutes", ""),
    ]
    return pd.DataFrame(lines, columns=["quantity", "needed", "free here"]).set_index("quantity")


def _shortage(needed: Reading, machine: Machine) -> tuple[float, float, str] | None:
    """Return the bytes of memory that are needed and that are free, and where, if these are fewer."""
    memory, host, device = needed.weight_bytes + needed.batch_bytes, needed.chunk_bytes, needed.keys.device
    if machine.gpus:
        free = machine.gpus[0] if device == "cuda" else sum(machine.gpus)
        if memory > free:
            return memory, free, "on the GPU" if device == "cuda" else f"on {len(machine.gpus)} GPU(s)"
    elif device != "remote":
        host += memory
    return (host, machine.memory, "in memory here") if host > machine.memory else None


def _short_of_memory(needed: Reading, machine: Machine, memory: float, free: float, where: str) -> str:
    together = (needed.weight_bytes + needed.batch_bytes) * 1.1
    settings = [text for text, changed in _smaller(needed, machine) if not _shortage(changed, machine)]
    if machine.gpus:
        settings.append(f"device: auto on {math.ceil(together / min(machine.gpus))} GPUs like this one")
    else:
        settings.append(f"device: auto on GPUs with {_gigabytes(together)} together")
    settings.append("device: remote (NDIF)")
    return (
        f"{_gigabytes(memory)} are needed (weights {_gigabytes(needed.weight_bytes)}, a batch of "
        f"{needed.keys.token_budget:,} tokens {_gigabytes(needed.batch_bytes)}, chunks of the store "
        f"{_gigabytes(needed.chunk_bytes)}) and {_gigabytes(free)} are free {where}. Any of these would do: "
        f"{'; '.join(settings)}."
    )


def _smaller(needed: Reading, machine: Machine) -> Iterator[tuple[str, Reading]]:
    """Yield settings that need less memory, and the reading with them: first those that change the results least."""

    def with_key(**changed: Any) -> Reading:
        return replace(needed, keys=needed.keys.model_copy(update=changed))

    budget = needed.keys.token_budget // 2
    while budget > SMALLEST_BUDGET and _shortage(with_key(token_budget=budget), machine):
        budget //= 2
    yield f"token_budget: {budget}", with_key(token_budget=budget)
    if needed.keys.dtype == "float32":
        yield "dtype: bfloat16", with_key(dtype="bfloat16")
    for device in QUANTISED if machine.gpus else ():
        changed = with_key(device=device)
        yield f"device: {device} ({_gigabytes(changed.weight_bytes)} of weights)", changed
    layers = needed.size.layers - 1
    while layers > 1 and _shortage(replace(needed, size=needed.size.first(layers)), machine):
        layers -= 1
    yield f"first_layers: {layers} (of {needed.size.layers})", replace(needed, size=needed.size.first(layers))


def _short_of_disk(needed: Reading, free: float) -> str:
    settings = []
    if needed.keys.store_dtype == "float32":
        settings.append(f"store_dtype: bfloat16 ({_gigabytes(needed.store_bytes / 2)})")
    layers = int(needed.size.layers * free / needed.store_bytes)
    if layers >= 1:
        settings.append(f"first_layers: {layers} (of {needed.size.layers})")
    settings += ["a run_dir on a larger disk", "an object store (COMPANION_STORE=s3://...)"]
    return (
        f"the store needs {_gigabytes(needed.store_bytes)} and {_gigabytes(free)} of disk are free. "
        f"Any of these would do: {'; '.join(settings)}."
    )


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.2f} GB" if value >= 1e7 else f"{value / 1e6:,.2f} MB"
