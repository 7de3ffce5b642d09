"""Extraction against the usual loop and against a bare forward pass, on the same rows and model, in one run.

    python benchmarks/residual_streams.py

The model is a random 12-layer, 512-wide Qwen3; the actions are as long as the real ones. The usual loop takes rows as
they come, pads batches of 64 and asks for ``output_hidden_states=True``. The bare forward pass runs over the companion's
own batches, of four stretches of the store: the longest prompts of a stretch make batches of one or two rows, which weigh
more among few rows. What the store costs, with its compression, checksums and files, is in our time.

On a card (``make bench-gpu``) the model has Qwen3-8B's shape, in bfloat16. There extraction without the store is measured
against the time that its matrix products alone would take at the rate of one large product on that card.
"""

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from cells import record
from nnsight import TransformersModel
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lib import estimates, residuals, runs, store

SMALL = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64,
}  # fmt: skip
QWEN3_8B = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
ROWS, ROUNDS, TOKEN_BUDGET = 2_048, 5, 4096
PAPER_ACTIONS = 203_431
CARD_ROWS, CARD_BUDGET = 16_384, 65_536


class Subject(NamedTuple):
    """A model as the companion holds it, the same weights bare, and prompts in both their forms."""

    model: TransformersModel
    bare: Qwen3ForCausalLM
    actions: list[str]
    prompts: residuals.Prompts

    @property
    def batches(self) -> list[range]:
        """The companion's own batches, which never cross a stretch of the store."""
        stretches = (range(start, min(start + 512, len(self.actions))) for start in range(0, len(self.actions), 512))
        return [batch for rows in stretches for batch in residuals.batches(self.prompts.lengths, rows, TOKEN_BUDGET)]


def of_real_lengths(rows: int) -> list[str]:
    """Return distinct texts of the demo's words, as long as Social-Chemistry's actions: 7.1 words, deviation 3.2."""
    table = pd.read_csv(runs.PROJECT / "data/demo/annotations.tsv", sep="\t", keep_default_na=False)
    words = sorted(set(" ".join(table["action"]).split()))
    rng = np.random.default_rng(0)
    lengths = rng.gamma(shape=5, scale=1.42, size=rows).round().clip(1).astype(int)
    return list(dict.fromkeys(" ".join(rng.choice(words, length)) for length in lengths))


def subject(shape: dict[str, int], rows: int, device: str = "cpu") -> Subject:
    """Make a random Qwen3; on a card in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(runs.PROJECT / "data/demo/models/moral-small")
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(tokenizer), **shape, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    with torch.device(device):
        bare = Qwen3ForCausalLM._from_config(config).eval().requires_grad_(False)
    # The same weights in modules of their own, because nnsight puts itself between the modules of the model it traces.
    twin = copy.deepcopy(bare, {id(weights): weights for weights in bare.parameters()})
    model = TransformersModel(twin, tokenizer=tokenizer, task="text-generation")
    actions = of_real_lengths(rows)
    return Subject(model, bare, actions, residuals.tokenize(model.tokenizer, actions))


def extraction(of: Subject) -> None:
    """Pool every layer and keep the result in a store."""
    layers, width = of.bare.config.num_hidden_layers, of.bare.config.hidden_size
    with TemporaryDirectory() as folder:
        index = pd.DataFrame({"action": of.prompts.actions, "tokens": of.prompts.lengths})
        target = store.create_store(Path(folder), index, layers, width, residuals.POOLINGS)
        residuals.extract(of.model, of.prompts, target, TOKEN_BUDGET)


def usual_loop(of: Subject) -> None:
    """Do what is usually done: rows as they come, batches of 64, all hidden states, a mean over tokens."""
    tokenizer = of.model.tokenizer
    texts = [residuals.TEMPLATE.format(action=action) for action in of.actions]
    for start in range(0, len(texts), 64):
        batch = tokenizer(texts[start : start + 64], return_tensors="pt", padding=True)
        hidden = of.bare(**batch, output_hidden_states=True).hidden_states[1:]
        mask = batch["attention_mask"][..., None]
        np.stack([((layer * mask).sum(1) / mask.sum(1)).numpy() for layer in hidden])


def bare_forward(of: Subject) -> None:
    """Run the blocks over the companion's batches and keep nothing."""
    for batch in of.batches:
        inputs, _ = residuals.padded_batch(of.model, of.prompts, batch)
        of.bare.model(**inputs, use_cache=False)


def seconds(function: Callable[[Subject], None], of: Subject) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function(of)
    return time.perf_counter() - started


def on_a_processor() -> None:
    """Measure, print and record."""
    of = subject(SMALL, ROWS)
    functions = (extraction, usual_loop, bare_forward)
    for function in functions:
        function(of)
    times: dict[str, list[float]] = {function.__name__: [] for function in functions}
    for round_ in range(ROUNDS):
        # Nobody is always the first or the last of a round.
        for function in functions[round_ % 3 :] + functions[: round_ % 3]:
            times[function.__name__].append(seconds(function, of))
    cell = "residual streams, 12 layers x 512"
    record(cell, "transformers loop, batches of 64", times["extraction"], times["usual_loop"])
    record(cell, "bare forward, same batches", times["extraction"], times["bare_forward"])


def on_a_card(shape: dict[str, int], rows: int, device: str, rounds: int = 3) -> None:
    """Measure pooling of all layers, without disk, against its matrix products; and the paper's actions, scaled.

    Args:
        shape: of the model.
        rows: distinct actions to read; the time of the paper's 203,431 follows in proportion.
        device: ``cuda``, or ``cpu`` to try this.
        rounds: how often.
    """
    of = subject(shape, rows, device)
    budget = CARD_BUDGET if device == "cuda" else TOKEN_BUDGET
    batches = residuals.batches(of.prompts.lengths, range(len(of.actions)), budget)
    blocks = sum(weights.numel() for weights in of.bare.model.layers.parameters())
    flops = 2 * blocks * int(of.prompts.lengths.sum())

    def pooling() -> float:
        started = time.perf_counter()
        for batch in batches:
            residuals.pooled_residuals(of.model, of.prompts, batch).cpu()  # waits for the card
        return time.perf_counter() - started

    pooling()
    ours, products = [], []
    for _ in range(rounds):
        ours.append(pooling())
        products.append(flops / estimates.matrix_rate(device, "bfloat16" if device == "cuda" else "float32"))
    gpu, tokens = device == "cuda", int(of.prompts.lengths.sum())
    cell = f"residual streams, {shape['num_hidden_layers']} layers x {shape['hidden_size']}, without disk"
    record(cell, "its matrix products at the rate of one large product", ours, products, gpu, tokens)
    scaled = [value * PAPER_ACTIONS / len(of.actions) for value in ours]
    record(f"{cell}, 203,431 actions (scaled)", "four minutes", scaled, [240.0] * rounds, gpu)


if __name__ == "__main__":
    if os.environ.get("COMPANION_DEVICE") == "gpu":
        on_a_card(QWEN3_8B, CARD_ROWS, "cuda")
    else:
        on_a_processor()
