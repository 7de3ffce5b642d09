"""Steered against plain generation, and batched against one by one, in one run.

    python benchmarks/steering.py

The peer is transformers' own batched ``generate`` on the bare model and the same left-padded batch. No token ends an
answer, so all conditions write as many. ``a stage`` is all of a batch: the baseline and every steered arm through
``answer_all``, receipts and files on disk included, against as many calls of ``generate``. ``one arm`` is one steered
arm, as it is in a stage: what the untouched model expects is known. ``one arm alone`` has a forward pass for that to itself.

A random Qwen3 of 8 layers and width 512 carries an untrained autoencoder of 4 times its width: as many weights to each
of the model's (.08) as 16 times the width beside Qwen3-8B (.07). ``tiny`` is 3 layers of width 64 and 8 times the width
(.2), where what nnsight does at every step weighs most. The shape of SmolLM2-135M carries 16 times its width (.08 for one
autoencoder, twice that for the arm with two). A read is compared with summing every weight of the same file.

CPU seconds on one thread, so that a machine with other work to do measures the same; wall time where the cell says
so. With a GPU, tokens per second on the shape of Qwen3-8B in bfloat16, autoencoder in float32, as stage 7 has it.
"""

import copy
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd
import torch
from cells import record
from nnsight import TransformersModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from lib.run.parameters import SteeringParameters
from lib.sae import files
from lib.sae.model import SparseAutoencoder
from lib.steering import answering, generation
from lib.steering.generation import Decoding, encode_prompts
from lib.steering.interventions import BASELINE, DIRECTED, Arm, Edit, Intervention
from lib.steering.loading import random_direction

PROMPTS = [f"Question {number}. " + "What should I do? " * (number % 3) for number in range(16)]
ARMS = ("aligned", "untuned", "shuffled", "random", *DIRECTED)
PEER = "plain batched generate of transformers"
QWEN3_8B = {
    "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
}  # fmt: skip
SMALL = {
    "num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4000,
}  # fmt: skip
SMOLLM2_135M = {
    "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49_152,
}  # fmt: skip
TINY = {
    "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 300,
}  # fmt: skip


class Subject(NamedTuple):
    """A random model, bare and as steering has it (the same weights), all arms, decoding, and what it expects unsteered."""

    bare: Any
    model: TransformersModel
    arms: dict[Intervention, Arm]
    decoding: Decoding
    unsteered: torch.Tensor

    @property
    def aligned(self) -> Arm:
        """The first steered arm."""
        return list(self.arms.values())[1]


def subject(shape: dict[str, int], expansion: int, tokens: int, device: str = "cpu") -> Subject:
    """Make a random Qwen3 with a tokenizer of bytes and no end token, and arms after its middle layer."""
    vocabulary = {"<pad>": 0} | {
        letter: 1 + index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    ends = {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": None, "max_position_embeddings": 4096}
    dtype = torch.float32 if device == "cpu" else torch.bfloat16

    torch.manual_seed(0)
    with torch.device(device):
        bare = AutoModelForCausalLM.from_config(Qwen3Config(**shape, **ends), dtype=dtype).eval().requires_grad_(False)
    # The same weights in modules of their own, because nnsight puts itself between the modules of the model it steers.
    twin = copy.deepcopy(bare, {id(weights): weights for weights in bare.parameters()})
    width, layer = shape["hidden_size"], shape["num_hidden_layers"] // 2
    autoencoder, untrained = (
        SparseAutoencoder(width, expansion * width, seed=seed).to(device).requires_grad_(False) for seed in (0, 1)
    )
    points = dict.fromkeys(DIRECTED, random_direction(width, 0).to(device)) | {"random-sae": untrained}
    arms = {BASELINE.intervention: BASELINE}
    for intervention in [Intervention(name, (layer,), 0.1) for name in ARMS]:
        arms[intervention] = Arm(intervention, {layer: Edit(autoencoder, None, points.get(intervention.arm))})
    decoding = Decoding(max_new_tokens=tokens, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
    model = TransformersModel(twin, tokenizer=tokenizer, task="text-generation")
    return Subject(bare, model, arms, decoding, generation.unsteered_logits(model, PROMPTS, decoding))


def plain(of: Subject) -> None:
    """Let the bare model answer the batch."""
    encoded = encode_prompts(of.model, PROMPTS, of.decoding.max_new_tokens)
    ids = of.bare.generate(**encoded.inputs, **of.decoding.arguments(), pad_token_id=0)
    of.model.tokenizer.batch_decode(ids.cpu())


def one_arm(of: Subject) -> None:
    """Answer the batch under the aligned arm; what the untouched model expects is known."""
    generation.answer_batch(of.model, of.aligned, PROMPTS, decoding=of.decoding, seed=0, unsteered=of.unsteered)


def one_arm_alone(of: Subject, at_once: int = len(PROMPTS)) -> None:
    """Answer all prompts under the aligned arm, ``at_once`` in a batch, each batch with a forward pass of the untouched model."""
    for start in range(0, len(PROMPTS), at_once):
        texts = PROMPTS[start : start + at_once]
        generation.answer_batch(of.model, of.aligned, texts, decoding=of.decoding, seed=0)


def a_stage(of: Subject) -> None:
    """Answer all prompts under every arm, as stage 7 does."""
    ids = [f"flames_{number:04d}" for number in range(len(PROMPTS))]
    prompts = pd.DataFrame({"id": ids, "dimension": "Safety", "prompt": PROMPTS})
    decoding = asdict(of.decoding)
    del decoding["top_k"]
    parameters = SteeringParameters(
        run_dir="", model="random", model_source="", revision=None, prompts="none", show_content=False,
        layers=[of.aligned.intervention.layers[0]], steering_batch=len(PROMPTS), **decoding,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        asked = [answering.Asked(Path(folder), of.arms, prompts)]
        answering.answer_all(of.model, parameters, asked, of.arms.__getitem__)


def plain_for_a_stage(of: Subject) -> None:
    """Let the bare model answer the batch as often as there are arms."""
    for _ in of.arms:
        plain(of)


def alternate(of: Subject, *work: Callable[[Subject], None], rounds: int) -> list[tuple[list[float], list[float]]]:
    """Do the work in turn; CPU and wall seconds of every round for each. What warms up is not measured."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in work]
    plain(of)
    one_arm(of)
    for _ in range(rounds):
        for task, (cpu, wall) in zip(work, times, strict=True):
            started = time.process_time(), time.perf_counter()
            task(of)
            cpu.append(time.process_time() - started[0])
            wall.append(time.perf_counter() - started[1])
    return times


def on_the_cpu() -> None:
    """Measure and record the cells that need no GPU."""
    torch.set_num_threads(1)
    small, tiny = subject(SMALL, 4, 32), subject(TINY, 8, 16)
    of_small, of_tiny = "16 prompts, 32 tokens, 8 layers x 512", "16 prompts, 16 tokens, tiny model"
    (ours, wall), (peers, peers_wall) = alternate(small, a_stage, plain_for_a_stage, rounds=3)
    record(f"steered generation, a stage, {of_small}", PEER, ours, peers)
    record(f"steered generation, a stage, {of_small}, wall time", PEER, wall, peers_wall)
    smallest = subject(SMOLLM2_135M, 16, 32)
    (ours, _), (peers, _) = alternate(smallest, a_stage, plain_for_a_stage, rounds=3)
    record("steered generation, a stage, 16 prompts, 32 tokens, shape of SmolLM2-135M", PEER, ours, peers)
    reading()
    for of, name, rounds in ((small, of_small, 5), (tiny, of_tiny, 15)):
        (known, _), (alone, _), (peers, _) = alternate(of, one_arm, one_arm_alone, plain, rounds=rounds)
        record(f"steered generation, one arm, {name}", PEER, known, peers)
        record(f"steered generation, one arm alone, {name}", PEER, alone, peers)
    (ours, _), (peers, _) = alternate(tiny, one_arm_alone, lambda of: one_arm_alone(of, at_once=1), rounds=5)
    record("batched steering, 16 prompts, tiny model", "one prompt at a time", ours, peers)


def reading(d_in: int = 1024, d_sae: int = 16_384, rounds: int = 7) -> None:
    """Measure and record how long an autoencoder takes to read from a file that lies in memory."""
    times: list[list[float]] = [[], []]
    with TemporaryDirectory() as folder:
        files.save(Path(folder), SparseAutoencoder(d_in, d_sae), {})
        weights = Path(folder) / "sae_weights.safetensors"
        work = (lambda: files.load(Path(folder)), lambda: [value.sum() for value in load_file(weights).values()])
        for _ in range(rounds):
            for task, cpu in zip(work, times, strict=True):
                started = time.process_time()
                task()
                cpu.append(time.process_time() - started)
    record(f"an autoencoder read, {d_in:,} x {d_sae:,}", "a bare read of its file", *times)


def on_a_gpu(of: Subject, cell: str, rounds: int = 2) -> None:
    """Measure and record steered and plain generation by the clock, with tokens per second of each.

    A call of ``generate`` waits for the GPU, so the clock misses nothing.
    """
    (_, ours), (_, peers) = alternate(of, a_stage, plain_for_a_stage, rounds=rounds)
    tokens = len(of.arms) * len(PROMPTS) * of.decoding.max_new_tokens
    record(cell, PEER, ours, peers, gpu=torch.cuda.is_available(), tokens=tokens)


if __name__ == "__main__":
    if os.environ.get("COMPANION_DEVICE") == "gpu":
        on_a_gpu(subject(QWEN3_8B, 16, 64, "cuda"), "steered generation, a stage, Qwen3-8B shape")
    else:
        on_the_cpu()
