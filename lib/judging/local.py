"""A model on this machine as judge: any that transformers reads, from a directory, a GGUF file or the hub's cache.

Registered as one more of Inspect's providers. It decodes greedily, a batch at a time, so the same question gets the same
verdict; what is padded beside it can change the last digits of its logits, nothing else.
"""

import asyncio
from functools import cache
from typing import Any, NamedTuple

import torch
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from lib.activations import sources
from lib.judging.judges import JudgingError
from lib.run.keys import DType

PROVIDER = "local"
"""What Inspect calls it, because its own provider of that kind is ``hf``."""

BATCH = 8
"""Questions that are read together."""


class Loaded(NamedTuple):
    """A model in memory and its tokenizer, which pads on the left."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_chat_model(source: str, dtype: DType | None = None) -> Loaded:
    """Open a chat model: a directory, a file that ends in ``.gguf``, or the id of a model that the hub's cache holds.

    Without a ``dtype`` weights keep the number format of their file; those of a GGUF file are unpacked to float32.

    Raises:
        JudgingError: it is not there, or has no chat template, so it cannot be asked anything.
    """
    try:
        found = sources.locate(source)
        weights: dict[str, Any] = {"dtype": dtype or ("float32" if found.gguf_file else "auto")}
        if found.gguf_file:
            weights["quantization_config"] = GgufConfig(dequantize=True)
        with sources.readable(source):
            tokenizer = sources.tokenizer(source)
            model = AutoModelForCausalLM.from_pretrained(found.place, **weights, **found.options).eval()
    except sources.ModelError as error:
        expected = "expected a directory, a GGUF file or a hub id such as owner/name"
        raise JudgingError(f"the judge {source} cannot be opened ({expected}): {error}") from error
    if tokenizer.chat_template is None:
        raise JudgingError(f"{source} has no chat template, so it cannot be asked to judge; take an instruct model")
    tokenizer.padding_side = "left"
    return Loaded(model.to("cuda") if torch.cuda.is_available() else model, tokenizer)


_opened = cache(load_chat_model)


class Waiting(NamedTuple):
    """A question that waits for its batch: its tokens, the most tokens of a reply, and where the reply goes."""

    tokens: list[int]
    max_tokens: int
    reply: "asyncio.Future[ModelOutput]"


@modelapi(PROVIDER)
class LocalJudge(ModelAPI):
    """A chat model in this process as a model provider of Inspect: ``local/<directory, GGUF file or hub id>``.

    ``thinks`` lets a model think whose chat template knows how to keep it from thinking.
    """

    def __init__(self, model_name: str, *, thinks: bool = False, dtype: DType | None = None, **inspects: Any) -> None:
        super().__init__(model_name, **inspects)
        self.loaded, self.thinks = _opened(model_name, dtype), thinks
        added = (each.content for each in self.loaded.tokenizer.added_tokens_decoder.values() if each.special)
        # The longest first: one may be part of another.
        self.control = sorted((token for token in added if len(token) > 1), key=len, reverse=True)
        self.waiting: list[Waiting] = []
        self.busy = False

    def max_connections(self) -> int:
        """Questions that wait together: enough to sort them by length."""
        return 4 * BATCH

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer the messages with whatever else waits; the first that comes answers for all."""
        messages = [{"role": message.role, "content": self._as_text(message.text)} for message in input]
        encoded = self.loaded.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=self.thinks, return_dict=True
        )
        own = Waiting(encoded["input_ids"], config.max_tokens or 256, asyncio.get_running_loop().create_future())
        self.waiting.append(own)
        if not self.busy:
            self.busy = True
            try:
                await asyncio.sleep(0.01)  # the others of this moment
                while self.waiting:
                    await self._answer_some()
            finally:
                self.busy = False
        return await own.reply

    def _as_text(self, text: str) -> str:
        """Break up what the tokenizer would read as a control token: no answer may end the judge's turn or take another."""
        for token in self.control:
            text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text

    async def _answer_some(self) -> None:
        self.waiting.sort(key=lambda each: len(each.tokens))
        batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
        try:
            outputs = await asyncio.to_thread(self._outputs, batch)
        except Exception as error:
            for each in batch:
                each.reply.set_exception(JudgingError(f"{type(error).__name__}: {error}"))
            return
        for each, output in zip(batch, outputs, strict=True):
            if not each.reply.done():
                each.reply.set_result(output)

    def _outputs(self, batch: list[Waiting]) -> list[ModelOutput]:
        model, tokenizer = self.loaded
        padded = tokenizer.pad({"input_ids": [each.tokens for each in batch]}, return_tensors="pt").to(model.device)
        longest = padded["input_ids"].shape[1]
        limit = max(each.max_tokens for each in batch)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
        with torch.inference_mode():
            ids = model.generate(**padded, max_new_tokens=limit, pad_token_id=tokenizer.pad_token_id, **greedy)
        return [self._output(each, row) for each, row in zip(batch, ids[:, longest:].tolist(), strict=True)]

    def _output(self, asked: Waiting, ids: list[int]) -> ModelOutput:
        ends = self.loaded.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        length = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self.loaded.tokenizer.decode(ids[:length], skip_special_tokens=True)
        output = ModelOutput.from_content(self.model_name, text, stop_reason="max_tokens" if length is None else "stop")
        read, written = len(asked.tokens), len(ids) if length is None else length + 1
        output.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return output
