"""Extraction against the usual loop and against a bare forward pass, on the same rows and model, in one run.

    python benchmarks/residual_streams.py

The model is a random 12-layer, 512-wide Qwen3; the actions are as long as the real ones. The usual loop takes rows as
they come, pads batches of 64, asks for ``output_hidden_states=True`` and keeps every layer's mean and last token. The bare
forward pass runs over the companion's own batches, of four chunks of the store: the longest prompts of a chunk make batches
of one or two rows, which weigh more among few rows. What the store costs, with its compression, checksums and files, is in
our time.

A real model on real actions is measured too where ``COMPANION_GGUF`` names its GGUF file and ``COMPANION_ACTIONS`` a table
in the schema of Social-Chemistry-101. Cells of CPU seconds are for a machine with other work to do; give each thread a
core (``OMP_NUM_THREADS``).

On a GPU (``make bench-gpu``) the model has Qwen3-8B's shape, in bfloat16, and is read with the token budget of the paper's
profile. The same extraction, store included, is measured against the time that its matrix products alone would take at the
rate of one large product on that GPU.
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
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers import PreTrainedTokenizerBase as Tokenizer

from lib.activations import extraction, models, preflight, sources, store
from lib.run.files import PROJECT
from lib.run.parameters import ActivationsKeys
from lib.run.resources import Reading, rows_per_chunk

SMALL = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64,
}  # fmt: skip
QWEN3_8B = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
ROWS, ROUNDS = 2_048, 5
REAL_ROWS, REAL_ROUNDS = 128, 3
PAPER_ACTIONS = 203_431
GPU_ROWS, GPU_BUDGET = 8_192, 65_536


class Subject(NamedTuple):
    """A model as the companion holds it, the same weights bare, prompts in both their forms, and how they are read."""

    model: TransformersModel
    bare: PreTrainedModel
    actions: list[str]
    prompts: extraction.Prompts
    keys: ActivationsKeys = ActivationsKeys()

    @property
    def rows_per_chunk(self) -> int:
        """Rows of the store that are written together."""
        size, tokens = preflight.size_from_config(self.bare.config), int(self.prompts.lengths.sum())
        return rows_per_chunk(Reading(size, len(self.actions), tokens, self.keys))

    @property
    def batches(self) -> list[range]:
        """The companion's own batches, which never cross a chunk of the store."""
        rows, step = range(len(self.actions)), self.rows_per_chunk
        return [
            batch
            for start in rows[::step]
            for batch in extraction.batches(
                self.prompts.lengths, rows[start : start + step], token_budget=self.keys.token_budget
            )
        ]


def of_real_lengths(rows: int) -> list[str]:
    """Return distinct texts of the demo's words, as long as Social-Chemistry's actions: 7.1 words, deviation 3.2."""
    table = pd.read_csv(PROJECT / "data/demo/annotations.tsv", sep="\t", keep_default_na=False)
    words = sorted(set(" ".join(table["action"]).split()))
    rng = np.random.default_rng(0)
    lengths = rng.gamma(shape=5, scale=1.42, size=rows).round().clip(1).astype(int)
    return list(dict.fromkeys(" ".join(rng.choice(words, length)) for length in lengths))


def subject(bare: PreTrainedModel, tokenizer: Tokenizer, actions: list[str]) -> Subject:
    """Hold a model as the companion does, and bare."""
    bare.eval().requires_grad_(False)
    # The same weights in modules of their own, because nnsight puts itself between the modules of the model it traces.
    twin = copy.deepcopy(bare, {id(weights): weights for weights in bare.parameters()})
    return Subject(models.traceable(twin, tokenizer), bare, actions, extraction.tokenize(tokenizer, actions))


def random_subject(shape: dict[str, int], rows: int, device: str = "cpu") -> Subject:
    """Make a random Qwen3; on a GPU in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/demo/models/moral-small")
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(tokenizer), **shape, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    with torch.device(device):
        bare = Qwen3ForCausalLM._from_config(config)
    return subject(bare, tokenizer, of_real_lengths(rows))


def real_subject(file: Path, table: Path, rows: int) -> Subject:
    """Read a model from its GGUF file, and actions evenly from a table of real ones."""
    unpacked = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    bare = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **unpacked)
    actions = pd.read_csv(table, sep=None, engine="python")["action"].dropna().unique()
    return subject(bare, sources.tokenizer(str(file)), actions[:: len(actions) // rows][:rows].tolist())


def companion(of: Subject) -> None:
    """Pool every layer and keep the result in a store, as notebook 02 does."""
    layout = {"layers": of.bare.config.num_hidden_layers, "width": of.bare.config.hidden_size}
    layout |= {"poolings": extraction.POOLINGS, "rows_per_chunk": of.rows_per_chunk, "dtype": of.keys.store_dtype}
    with TemporaryDirectory() as folder:
        index = pd.DataFrame({"action": of.prompts.actions, "tokens": of.prompts.lengths})
        target = store.create_store(Path(folder), index, **layout)
        extraction.extract(of.model, of.prompts, store=target, token_budget=of.keys.token_budget)


def usual_loop(of: Subject) -> None:
    """Do what is usually done: rows as they come, batches of 64, all hidden states, their mean and their last token."""
    texts = [extraction.TEMPLATE.format(action=action) for action in of.actions]
    for start in range(0, len(texts), 64):
        batch = of.model.tokenizer(texts[start : start + 64], return_tensors="pt", padding=True, padding_side="right")
        hidden = of.bare(**batch, output_hidden_states=True).hidden_states[1:]
        mask = batch["attention_mask"][..., None]
        rows, last = torch.arange(len(mask)), mask.sum(1)[:, 0] - 1
        np.stack([((layer * mask).sum(1) / mask.sum(1)).numpy() for layer in hidden])
        np.stack([layer[rows, last].numpy() for layer in hidden])


def bare_forward(of: Subject) -> None:
    """Run the blocks over the companion's batches and keep nothing."""
    for batch in of.batches:
        inputs, _ = extraction.padded_batch(of.model, of.prompts, rows=batch)
        of.bare.model(**inputs, use_cache=False)


def seconds(function: Callable[[Subject], None], of: Subject) -> tuple[float, float]:
    """Return the wall time of one call, and the CPU seconds of the process meanwhile."""
    started = time.perf_counter(), time.process_time()
    function(of)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def compare(of: Subject, cell: str, rounds: int) -> None:
    """Measure extraction and its peers in turn, print and record."""
    functions = (companion, usual_loop, bare_forward)
    few = of.actions[:32]
    for function in functions:  # what warms up is not measured
        function(of._replace(actions=few, prompts=extraction.tokenize(of.model.tokenizer, few)))
    times: dict[Callable[[Subject], None], list[tuple[float, float]]] = {function: [] for function in functions}
    for round_ in range(rounds):
        # Nobody is always the first or the last of a round.
        for function in functions[round_ % 3 :] + functions[: round_ % 3]:
            times[function].append(seconds(function, of))
            print(f"round {round_}, {function.__name__}: {times[function][-1][1]:.1f} CPU seconds", flush=True)
    for clock, name in enumerate((cell, f"{cell}, CPU seconds")):
        ours, usual, bare = ([both[clock] for both in times[function]] for function in functions)
        record(name, "transformers loop, batches of 64", ours, usual)
        record(name, "bare forward, same batches", ours, bare)


def on_the_cpu() -> None:
    """Measure a random model and, where there is one, a real one."""
    compare(random_subject(SMALL, ROWS), "residual streams, 12 layers x 512", ROUNDS)
    if not {"COMPANION_GGUF", "COMPANION_ACTIONS"} <= os.environ.keys():
        print("COMPANION_GGUF and COMPANION_ACTIONS name no real model and actions: their cells stay as they are")
        return
    file, table = Path(os.environ["COMPANION_GGUF"]), Path(os.environ["COMPANION_ACTIONS"])
    of = real_subject(file.resolve(), table, REAL_ROWS)
    compare(of, f"residual streams, {file.stem}, {len(of.actions)} real actions", REAL_ROUNDS)


def on_the_gpu(shape: dict[str, int], rows: int, device: str, rounds: int = 3) -> None:
    """Measure extraction into a store against its matrix products; and the paper's actions, scaled.

    Args:
        shape: of the model.
        rows: distinct actions to read; the time of the paper's 203,431 follows in proportion.
        device: ``cuda``, or ``cpu`` to try this.
        rounds: how often.
    """
    gpu, dtype = device == "cuda", "bfloat16" if device == "cuda" else "float32"
    of = random_subject(shape, rows, device)._replace(keys=ActivationsKeys(dtype=dtype, token_budget=GPU_BUDGET))
    blocks = sum(weights.numel() for weights in of.bare.model.layers.parameters())
    tokens = int(of.prompts.lengths.sum())
    companion(of)
    ours, products = [], []
    for _ in range(rounds):
        ours.append(seconds(companion, of)[0])
        products.append(2 * blocks * tokens / preflight.matrix_rate(device, dtype))
    cell = f"residual streams, {shape['num_hidden_layers']} layers x {shape['hidden_size']}, with the store"
    record(cell, "its matrix products at the rate of one large product", ours, products, gpu, tokens)
    scaled = [value * PAPER_ACTIONS / len(of.actions) for value in ours]
    record(f"{cell}, 203,431 actions (scaled)", "five minutes", scaled, [300.0] * rounds, gpu)


if __name__ == "__main__":
    if os.environ.get("COMPANION_DEVICE") == "gpu":
        on_the_gpu(QWEN3_8B, GPU_ROWS, "cuda")
    else:
        on_the_cpu()
