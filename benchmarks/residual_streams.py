"""Extraction against the usual loop and against a bare forward pass, on the same rows and model, in one run.

    python benchmarks/residual_streams.py

The model is a random 12-layer, 512-wide Qwen3; the actions are as long as the real ones. The usual loop takes rows as
they come, pads batches of 64 and asks for ``output_hidden_states=True``. The bare forward pass runs over the companion's
own batches. Processor seconds on one thread, so that a machine with other work to do measures the same: what the store
costs, with its compression and checksums, is in our time; waiting for the disk is not.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from cells import record
from nnsight import TransformersModel
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lib import residuals, runs, store

ROWS = 128
ROUNDS = 5


def seconds(function: Callable[[], None]) -> float:
    """Return the processor time of one call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def of_real_lengths() -> list[str]:
    """Return distinct texts of the demo's words, as long as Social-Chemistry's actions: 7.1 words, deviation 3.2."""
    table = pd.read_csv(runs.PROJECT / "data/demo/annotations.tsv", sep="\t", keep_default_na=False)
    words = sorted(set(" ".join(table["action"]).split()))
    rng = np.random.default_rng(0)
    lengths = rng.gamma(shape=5, scale=1.42, size=ROWS).round().clip(1).astype(int)
    return list(dict.fromkeys(" ".join(rng.choice(words, length)) for length in lengths))


def main() -> None:
    """Measure, print and record."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(runs.PROJECT / "data/demo/models/moral-small")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    )
    raw = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    model = TransformersModel(raw, tokenizer=tokenizer, task="text-generation")
    actions = of_real_lengths()
    prompts = residuals.tokenize(model.tokenizer, actions)

    def ours() -> None:
        with TemporaryDirectory() as folder:
            index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
            target = store.create_store(Path(folder), index, 12, 512, residuals.POOLINGS)
            residuals.extract(model, prompts, target, 4096)

    def usual_loop() -> None:
        texts = [residuals.TEMPLATE.format(action=action) for action in actions]
        for start in range(0, len(actions), 64):
            batch = tokenizer(texts[start : start + 64], return_tensors="pt", padding=True)
            hidden = raw(**batch, output_hidden_states=True).hidden_states[1:]
            mask = batch["attention_mask"][..., None]
            np.stack([((layer * mask).sum(1) / mask.sum(1)).numpy() for layer in hidden])

    def bare_forward() -> None:
        for batch in residuals.batches(prompts.lengths, range(len(actions)), 4096):
            inputs, _ = residuals.padded_batch(model, prompts, batch)
            raw.model(**inputs, use_cache=False)

    for function in (ours, usual_loop, bare_forward):
        function()
    times = {function.__name__: [] for function in (ours, usual_loop, bare_forward)}
    for _ in range(ROUNDS):
        for function in (ours, usual_loop, bare_forward):
            times[function.__name__].append(seconds(function))
    record("residual streams, 12 layers x 512", "transformers loop, batches of 64", times["ours"], times["usual_loop"])
    record("residual streams, 12 layers x 512", "bare forward, same batches", times["ours"], times["bare_forward"])


if __name__ == "__main__":
    main()
