"""Steered against plain generation, and batched against one by one, in one run.

    python benchmarks/steering.py

The peer is transformers' own batched ``generate`` on the bare model and the same left-padded batch. No token ends an
answer, so all conditions write as many. ``a stage`` is all of a batch: the baseline and every steered arm through
``answer_all``, receipts and files on disk included, against as many calls of ``generate``. ``one arm`` is one steered
arm, as it is in a stage: what the untouched model expects is known. ``one arm alone`` has a pass for that to itself.

A random Qwen3 of 8 layers and width 512 carries an untrained autoencoder of 4 times its width: as many weights to each
of the model's (.08) as 16 times the width beside Qwen3-8B (.07). ``tiny`` is 3 layers of width 64 and 8 times the width
(.2), where what nnsight does at every step weighs most.

Processor seconds on one thread, so that a machine with other work to do measures the same; wall time where the cell says
so. With a card, tokens per second on the shape of Qwen3-8B in bfloat16, autoencoder in float32, as stage 7 has it.
"""

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd
import torch
from cells import record
from nnsight import TransformersModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from lib import steering
from lib.decoding import Decoding, encode_prompts
from lib.interventions import BASELINE, DIRECTIONS, Arm, Intervention, random_direction
from lib.sae.model import SparseAutoencoder

PROMPTS = [f"Question {number}. " + "What should I do? " * (number % 3) for number in range(16)]
ARMS = ("aligned", "untuned", "shuffled", "random", "random-sae", *DIRECTIONS)
PEER = "plain batched generate of transformers"
QWEN3_8B = {
    "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
}  # fmt: skip
SMALL = {
    "num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4000,
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
    """Make a random Qwen3 with a tokenizer of bytes and no end token, and arms behind its middle layer."""
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
    autoencoder = SparseAutoencoder(width, expansion * width).to(device).requires_grad_(False)
    direction = random_direction(width, 0).to(device)
    arms = {BASELINE.intervention: BASELINE}
    for what in [Intervention(name, layer, 0.1) for name in ARMS]:
        arms[what] = Arm(what, autoencoder, None, direction if what.arm in DIRECTIONS else None)
    decoding = Decoding(max_new_tokens=tokens, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
    model = TransformersModel(twin, tokenizer=tokenizer, task="text-generation")
    return Subject(bare, model, arms, decoding, steering.unsteered_logits(model, PROMPTS, decoding))


def plain(of: Subject) -> None:
    """Let the bare model answer the batch."""
    encoded = encode_prompts(of.model, PROMPTS, of.decoding.max_new_tokens)
    ids = of.bare.generate(**encoded.inputs(), **of.decoding.arguments(), pad_token_id=0)
    of.model.tokenizer.batch_decode(ids.cpu())


def one_arm(of: Subject) -> None:
    """Answer the batch under the aligned arm; what the untouched model expects is known."""
    steering.answer_batch(of.model, of.aligned, PROMPTS, of.decoding, 0, of.unsteered)


def one_arm_alone(of: Subject, at_once: int = len(PROMPTS)) -> None:
    """Answer all prompts under the aligned arm, ``at_once`` in a batch, each batch with a pass of the untouched model."""
    for start in range(0, len(PROMPTS), at_once):
        steering.answer(of.model, of.aligned, PROMPTS[start : start + at_once], of.decoding, seed=0)


def a_stage(of: Subject) -> None:
    """Answer all prompts under every arm, as stage 7 does."""
    ids = [f"flames_{number:04d}" for number in range(len(PROMPTS))]
    prompts = pd.DataFrame({"id": ids, "dimension": "Safety", "prompt": PROMPTS})
    with TemporaryDirectory() as folder:
        steering.answer_all(
            of.model, of.arms, of.arms.__getitem__, prompts, of.decoding, Path(folder), batch_size=len(PROMPTS)
        )


def plain_for_a_stage(of: Subject) -> None:
    """Let the bare model answer the batch as often as there are arms."""
    for _ in of.arms:
        plain(of)


def alternate(of: Subject, *work: Callable[[Subject], None], rounds: int) -> list[tuple[list[float], list[float]]]:
    """Do the work in turn; processor and wall seconds of every round for each. What warms up is not measured."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in work]
    plain(of)
    one_arm(of)
    for _ in range(rounds):
        for task, (processor, wall) in zip(work, times, strict=True):
            started = time.process_time(), time.perf_counter()
            task(of)
            processor.append(time.process_time() - started[0])
            wall.append(time.perf_counter() - started[1])
    return times


def on_a_processor() -> None:
    """Measure and record the cells that need no card."""
    torch.set_num_threads(1)
    small, tiny = subject(SMALL, 4, 32), subject(TINY, 8, 16)
    of_small, of_tiny = "16 prompts, 32 tokens, 8 layers x 512", "16 prompts, 16 tokens, tiny model"
    (ours, wall), (peers, peers_wall) = alternate(small, a_stage, plain_for_a_stage, rounds=3)
    record(f"steered generation, a stage, {of_small}", PEER, ours, peers)
    record(f"steered generation, a stage, {of_small}, wall time", PEER, wall, peers_wall)
    for of, name, rounds in ((small, of_small, 5), (tiny, of_tiny, 15)):
        (known, _), (alone, _), (peers, _) = alternate(of, one_arm, one_arm_alone, plain, rounds=rounds)
        record(f"steered generation, one arm, {name}", PEER, known, peers)
        record(f"steered generation, one arm alone, {name}", PEER, alone, peers)
    (ours, _), (peers, _) = alternate(tiny, one_arm_alone, lambda of: one_arm_alone(of, at_once=1), rounds=5)
    record("batched steering, 16 prompts, tiny model", "one prompt at a time", ours, peers)


def on_a_card(of: Subject, cell: str, rounds: int = 2) -> None:
    """Measure and record steered and plain generation by the clock, with tokens per second of each.

    A call of ``generate`` waits for the card, so the clock misses nothing.
    """
    (_, ours), (_, peers) = alternate(of, a_stage, plain_for_a_stage, rounds=rounds)
    tokens = len(of.arms) * len(PROMPTS) * of.decoding.max_new_tokens
    record(cell, PEER, ours, peers, gpu=torch.cuda.is_available(), tokens=tokens)


if __name__ == "__main__":
    if os.environ.get("COMPANION_DEVICE") == "gpu":
        on_a_card(subject(QWEN3_8B, 16, 64, "cuda"), "steered generation, a stage, Qwen3-8B shape")
    else:
        on_a_processor()
