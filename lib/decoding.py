"""How text is made, the same for every arm: the form of the prompt and the choice of tokens.

Two arms are comparable only if nothing but the intervention differs, so prompt format and decoding are stated here, once,
and none is left to a model's own defaults.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from nnsight import TransformersModel
from torch import Tensor

from lib import models

SYSTEM_PROMPT = "你是一个有帮助的助手。"
"""The published system prompt ("You are a helpful assistant.")."""

ENABLE_THINKING = True
"""Thinking is not switched off in the released recipe; every arm gets the same setting."""

PLAIN_FORMAT = "{system}\n{prompt}\n"
"""Prompt for tokenizers without a chat template."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; temperature 0 is greedy. No top-k cut in any arm."""

    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float

    def arguments(self) -> dict[str, Any]:
        """Return these choices as arguments of ``generate``; none is left to the model's own defaults."""
        chosen: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": self.temperature > 0,
            "num_beams": 1,
        }
        if self.temperature > 0:
            chosen |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return chosen


PUBLISHED_DECODING = {
    "baseline": Decoding(max_new_tokens=1024, temperature=0.7, top_p=1.0, repetition_penalty=1.0),
    "steered": Decoding(max_new_tokens=512, temperature=0.7, top_p=0.9, repetition_penalty=1.1),
}
"""The released recipe decodes its two arms differently, so their answers differ for that reason too."""


def decoding_for(arm: str, decoding: Decoding | Literal["published"]) -> Decoding:
    """Return the decoding of an arm: ``decoding`` itself, equal for all, or the published unequal ones by name."""
    if decoding == "published":
        return PUBLISHED_DECODING["baseline" if arm == "baseline" else "steered"]
    return decoding


@dataclass(frozen=True)
class EncodedPrompts:
    """A left-padded batch: ``input_ids`` and ``attention_mask`` [batch, token], and how they were made.

    ``dropped`` counts, for each prompt, the tokens cut off on the left because the context is too short.
    """

    input_ids: Tensor
    attention_mask: Tensor
    dropped: list[int]
    max_new_tokens: int
    format: str

    def inputs(self) -> dict[str, Tensor]:
        """Return what the model reads, by the names of its arguments."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def encode_prompts(model: TransformersModel, prompts: list[str], max_new_tokens: int) -> EncodedPrompts:
    """Put prompts into the model's chat template, tokenize them and pad on the left.

    A context that cannot hold ``max_new_tokens`` beside the prompt is shared: an answer gets at most half of it, and a
    prompt longer than the rest loses its beginning. Both are recorded.
    """
    tokenizer = model.tokenizer
    if tokenizer.chat_template:
        chats = [[{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": text}] for text in prompts]
        texts = tokenizer.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=True, enable_thinking=ENABLE_THINKING
        )
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        name = f"chat template, enable_thinking={ENABLE_THINKING}"
    else:
        rows = tokenizer([PLAIN_FORMAT.format(system=SYSTEM_PROMPT, prompt=text) for text in prompts])["input_ids"]
        name = f"no chat template: {PLAIN_FORMAT!r}"
    context = models.context_length(model)
    max_new_tokens = min(max_new_tokens, context // 2)
    kept = [row[-(context - max_new_tokens) :] for row in rows]
    longest = max(len(row) for row in kept)
    ids = torch.full((len(kept), longest), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(kept):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    device = model._module.device
    dropped = [len(row) - len(part) for row, part in zip(rows, kept, strict=True)]
    return EncodedPrompts(ids.to(device), mask.to(device), dropped, max_new_tokens, name)


def stop_tokens(model: TransformersModel) -> set[int]:
    """Return the tokens that end an answer; none if the model has no such token."""
    stop = model._module.generation_config.eos_token_id
    return set() if stop is None else {stop} if isinstance(stop, int) else set(stop)


def until_stop(tokens: list[int], ends: set[int]) -> list[int]:
    """Cut an answer behind the first token that ends it."""
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]
