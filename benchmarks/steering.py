"""Steered against plain generation, and batched against one by one, in one run.

    python benchmarks/steering.py

A random Qwen3 of 8 layers and width 512 and an untrained autoencoder of 4 times its width
answer 16 prompts with 32 greedy tokens each; no token ends an answer, so all conditions write as many. The peer is
transformers' own batched ``generate`` on the same left-padded batch; for batching it is our own steering, prompt by
prompt, of a random Qwen3 of 3 layers and width 64. Where there is a GPU, tokens per second on the shape of Qwen3-8B in
bfloat16 are printed too, with an autoencoder of 16 times its width.
"""

import time

import torch
from cells import record
from nnsight import TransformersModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lib import steering
from lib.interventions import Arm, Intervention
from lib.sae.model import SparseAutoencoder

PROMPTS = [f"请问第{number}个问题" + "应该怎么办" * (number % 4) for number in range(16)]
ROUNDS = 3


def random_model(layers: int, width: int, device: str = "cpu", **changed: object) -> TransformersModel:
    """Return a random Qwen3 with a tokenizer of bytes and no end token."""
    vocabulary = {"<pad>": 0} | {
        letter: 1 + index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    shape = {
        "vocab_size": 4_000, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
        "num_attention_heads": max(4, width // 64), "num_key_value_heads": max(2, width // 128), "head_dim": 64,
        "max_position_embeddings": 4096, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM(Qwen3Config(**shape | changed)).eval().requires_grad_(False)
    return TransformersModel(model, tokenizer=tokenizer, task="text-generation")


def arm_of(width: int, layer: int, expansion: int, device: str = "cpu") -> Arm:
    """Return an arm with an untrained autoencoder."""
    autoencoder = SparseAutoencoder(width, expansion * width).to(device).requires_grad_(False)
    return Arm(Intervention("aligned", layer, 0.1), autoencoder)


def plain(model: TransformersModel, decoding: steering.Decoding) -> float:
    """Return the seconds that transformers' own ``generate`` takes for the batch."""
    started = time.perf_counter()
    encoded = steering.encode_prompts(model, PROMPTS, decoding.max_new_tokens)
    inputs = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    ids = model._module.generate(**inputs, **decoding.arguments(), pad_token_id=0)
    model.tokenizer.batch_decode(ids.cpu())
    return time.perf_counter() - started


def steered(model: TransformersModel, arm: Arm, decoding: steering.Decoding, at_once: int = len(PROMPTS)) -> float:
    """Return the seconds that steering takes for all prompts, ``at_once`` in a batch."""
    started = time.perf_counter()
    for start in range(0, len(PROMPTS), at_once):
        steering.answer(model, arm, PROMPTS[start : start + at_once], decoding, seed=0)
    return time.perf_counter() - started


def against_plain() -> None:
    """Compare steered with plain generation on the same batch."""
    model, arm = random_model(8, 512), arm_of(512, 4, 4)
    decoding = steering.Decoding(max_new_tokens=32, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
    plain(model, decoding), steered(model, arm, decoding)
    rounds = [(steered(model, arm, decoding), plain(model, decoding)) for _ in range(ROUNDS)]
    ours, peers = map(list, zip(*rounds, strict=True))
    record("steered generation, 16 prompts of 32 tokens", "plain batched generate of transformers", ours, peers)


def against_one_by_one() -> None:
    """Compare batched with prompt-by-prompt steering."""
    model, arm = random_model(3, 64, vocab_size=300), arm_of(64, 1, 8)
    decoding = steering.Decoding(max_new_tokens=16, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
    steered(model, arm, decoding)
    rounds = [(steered(model, arm, decoding), steered(model, arm, decoding, at_once=1)) for _ in range(2)]
    ours, peers = map(list, zip(*rounds, strict=True))
    record("batched steering, 16 prompts, tiny model", "one prompt at a time", ours, peers)


def on_a_gpu() -> None:
    """Print tokens per second on the shape of Qwen3-8B."""
    shape = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12_288}
    torch.set_default_dtype(torch.bfloat16)
    model = random_model(36, 4096, "cuda", vocab_size=151_936, **shape)
    arm = arm_of(4096, 11, 16, "cuda")
    decoding = steering.Decoding(max_new_tokens=128, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
    plain(model, decoding), steered(model, arm, decoding)
    ours, peers = zip(*[(steered(model, arm, decoding), plain(model, decoding)) for _ in range(3)], strict=True)
    tokens = len(PROMPTS) * decoding.max_new_tokens
    print(f"Qwen3-8B shape: {tokens / min(ours):.0f} tokens/s steered, {tokens / min(peers):.0f} plain")
    record("steered generation, Qwen3-8B shape, GPU", "plain batched generate of transformers", [*ours], [*peers])


if __name__ == "__main__":
    against_plain()
    against_one_by_one()
    if torch.cuda.is_available():
        on_a_gpu()
