"""How the cost of extraction grows with rows, width, layers and models: random Qwen3 models, the demo's actions.

python benchmarks/growth.py
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from cells import record_growth
from nnsight import TransformersModel
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lib.activations import extraction, store
from lib.run.files import PROJECT

ROWS, WIDTH, LAYERS = 256, 256, 4
GROWTH = {
    "rows": [256, 512, 1024, 2048],
    "width": [128, 256, 512, 768],
    "layers": [2, 4, 8, 12],
    "models": [1, 2, 4],
}
ROUNDS = 2


def build(width: int, layers: int) -> TransformersModel:
    """Make a random model."""
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/demo/models/moral-small")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
    )
    raw = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    return TransformersModel(raw, tokenizer=tokenizer, task="text-generation")


def seconds(models: list[TransformersModel], actions: list[str], width: int, layers: int) -> float:
    """Return the wall time of reading all actions by all models, store included."""
    started = time.perf_counter()
    for model in models:
        prompts = extraction.tokenize(model.tokenizer, actions)
        with TemporaryDirectory() as folder:
            index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
            layout = {"layers": layers, "width": width, "poolings": extraction.POOLINGS}
            target = store.create_store(Path(folder) / "store", index, **layout)
            extraction.extract(model, prompts, store=target, token_budget=4096)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print and record."""
    table = pd.read_csv(PROJECT / "data/demo/annotations.tsv", sep="\t", keep_default_na=False)
    actions = [action for action in table["action"].drop_duplicates() if action.strip()]
    for quantity, amounts in GROWTH.items():
        times = []
        for amount in amounts:
            width = amount if quantity == "width" else WIDTH
            layers = amount if quantity == "layers" else LAYERS
            chosen = actions[: amount if quantity == "rows" else ROWS]
            models = [build(width, layers)] * (amount if quantity == "models" else 1)
            seconds(models[:1], chosen[:32], width, layers)
            times.append([seconds(models, chosen, width, layers) for _ in range(ROUNDS)])
        record_growth("residual streams", quantity, amounts, times)


if __name__ == "__main__":
    main()
