"""Generation: how a model answers while an arm changes its residual stream, the same way for every arm.

Two arms are comparable only if nothing but the intervention differs, so the form of the prompt and the choice of tokens
are stated here, once, for both protocols. The careful one leaves nothing to a model's own defaults; the published one leaves
to them what the released scripts do. An intervention is applied through nnsight at every step of generation, to prompt and
answer alike; what the next block then reads is written into the answer's receipt.
"""

import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jinja2 import TemplateError
from nnsight import TransformersModel
from torch import Tensor

from lib.activations import models
from lib.run.keys import DType
from lib.run.parameters import SteeringParameters
from lib.steering.interventions import Arm, SteeringError, steer
from lib.steering.receipts import Receipt, ReceiptError, Trail

SYSTEM_PROMPT = "你是一个有帮助的助手。"
"""The published system prompt ("You are a helpful assistant.")."""

ENABLE_THINKING = True
"""Thinking is not switched off in the released recipe; every arm gets the same setting."""

PLAIN_FORMAT = "{system}\n{prompt}\n"
"""Prompt for tokenizers without a chat template."""

THOUGHT = ("<think>", "</think>")
"""What begins and ends a thought, in the models that write it as text (Qwen3, DeepSeek-R1 and others)."""


# ------------------------------------------------------------------------------ the choice of tokens


MODEL_DEFAULTS = {"top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
"""What transformers does where neither a caller nor the model's generation_config.json says."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; temperature 0 is greedy, ``top_k`` 0 no cut. None leaves a choice to the model's own default."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    repetition_penalty: float | None
    top_k: int | None = 0

    def arguments(self) -> dict[str, Any]:
        """Return these choices as arguments of ``generate``."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        chosen = {"max_new_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty, "num_beams": 1}
        chosen |= {"do_sample": self.temperature > 0} | (sampling if self.temperature > 0 else {})
        return {name: value for name, value in chosen.items() if value is not None}

    def as_done_by(self, model: TransformersModel) -> dict[str, int | float]:
        """Return the choices as they act in a model, its own defaults filled in."""
        own = model._module.generation_config
        known = {name: getattr(own, name, None) for name in MODEL_DEFAULTS}
        filled = {name: MODEL_DEFAULTS[name] if value is None else value for name, value in known.items()}
        return {name: filled[name] if value is None else value for name, value in asdict(self).items()}


PUBLISHED_DECODING = {
    "baseline": Decoding(max_new_tokens=1024, temperature=0.7, top_p=None, repetition_penalty=None, top_k=None),
    "steered": Decoding(max_new_tokens=512, temperature=0.7, top_p=0.9, repetition_penalty=1.1, top_k=None),
}
"""The released scripts decode their two arms differently, so their answers differ for that reason too."""


def decoding_of(arm: str, parameters: SteeringParameters) -> Decoding:
    """Return the decoding of an arm: the same for all, or the released recipe's under the published protocol."""
    if parameters.protocol == "published":
        return PUBLISHED_DECODING["baseline" if arm == "baseline" else "steered"]
    return Decoding(parameters.max_new_tokens, parameters.temperature, parameters.top_p, parameters.repetition_penalty)


def dtype_of(parameters: SteeringParameters) -> DType:
    """Return the number format in which a model is steered: float16 under the published protocol."""
    return "float16" if parameters.protocol == "published" else parameters.dtype


# ------------------------------------------------------------------------------ the form of the prompt


class EncodedPrompts(NamedTuple):
    """A batch of prompts as the model reads it (see :func:`padded`), and the tokens cut off each on the left."""

    inputs: dict[str, Tensor]
    dropped: list[int]
    max_new_tokens: int
    format: str
    opens_thought: bool
    """Whether the chat template has already opened a thought, which the answer only closes."""


def in_chat_template(model: TransformersModel, prompts: list[str]) -> tuple[list[str], str]:
    """Return prompts inside the model's chat template, ready for an answer, and what to call this form.

    A template that refuses the role of a system, as those of Gemma 2 and the first Mistral-Instruct do, is given its prompt in
    front of the user's text.
    """
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": ENABLE_THINKING}
    name, apply = f"chat template, enable_thinking={ENABLE_THINKING}", model.tokenizer.apply_chat_template
    system = {"role": "system", "content": SYSTEM_PROMPT}
    try:
        return apply([[system, {"role": "user", "content": text}] for text in prompts], **options), name
    except TemplateError:  # one that is broken altogether fails again below
        chats = [[{"role": "user", "content": f"{SYSTEM_PROMPT}\n\n{text}"}] for text in prompts]
        return apply(chats, **options), f"{name}, no system role: its prompt stands in front of the user's text"


def encode_prompts(model: TransformersModel, prompts: list[str], max_new_tokens: int) -> EncodedPrompts:
    """Put prompts into the model's chat template, tokenize them and pad on the left.

    A context that cannot hold ``max_new_tokens`` beside the prompt is shared: an answer gets at most half of it, and a
    prompt longer than the rest loses its beginning. Both are recorded.
    """
    tokenizer = model.tokenizer
    if tokenizer.chat_template:
        texts, name = in_chat_template(model, prompts)
        rows, opens = tokenizer(texts, add_special_tokens=False)["input_ids"], texts[0].rstrip().endswith(THOUGHT[0])
    else:
        rows = tokenizer([PLAIN_FORMAT.format(system=SYSTEM_PROMPT, prompt=text) for text in prompts])["input_ids"]
        name, opens = f"no chat template: {PLAIN_FORMAT!r}", False
    context = models.context_length(model)
    max_new_tokens = min(max_new_tokens, context // 2)
    kept = [row[-(context - max_new_tokens) :] for row in rows]
    dropped = [len(row) - len(part) for row, part in zip(rows, kept, strict=True)]
    return EncodedPrompts(padded(model, kept, "left"), dropped, max_new_tokens, name, opens)


def padded(model: TransformersModel, rows: list[list[int]], side: Literal["left", "right"]) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask`` [row, token] of rows of token ids, on the model's device."""
    device = model._module.device
    ids, mask = models.pad(rows, model.tokenizer.pad_token_id, side)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


# ------------------------------------------------------------------------------ one batch under one arm


def answer_batch(
    model: TransformersModel,
    arm: Arm,
    prompts: list[str],
    *,
    decoding: Decoding,
    seed: int,
    unsteered: Tensor | None = None,
) -> tuple[list[dict[str, Any]], Tensor]:
    """Let a model answer one batch of prompts under one arm.

    ``unsteered`` are the first logits of the baseline, or :func:`unsteered_logits`, for the same prompts and decoding. If
    they are not given, the prompts are read once more for them, which the baseline does not need.

    Returns:
        One ``{"response", "thought", "finished", "receipt"}`` per prompt: see :class:`lib.steering.answers.Answer` and
        :class:`lib.steering.receipts.Receipt`; and logits [batch, vocabulary] of each answer's first token.

    Raises:
        SteeringError: a layer does not exist.
        ReceiptError: the edit did not take at every step, position and layer.
    """
    encoded = encode_prompts(model, prompts, decoding.max_new_tokens)
    decoding = replace(decoding, max_new_tokens=encoded.max_new_tokens)
    arguments = decoding.arguments() | {"pad_token_id": model.tokenizer.pad_token_id}
    chosen = arm.intervention
    trail = Trail(len(chosen.layers), chosen.strength != 0)
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        # nnsight says of every open loop over steps that it ended with the generation, which is the point of it.
        warnings.filterwarnings("ignore", message=".*was never reached.*")
        torch.manual_seed(seed)
        ids, logits = _generate(model, arm, encoded.inputs, arguments, trail)
    if unsteered is None:
        unsteered = unsteered_logits(model, prompts, decoding) if chosen.layers else logits
    divergence = _divergence(logits, unsteered.to(logits.device)).tolist()
    prompt_tokens = encoded.inputs["attention_mask"].sum(dim=1).tolist()
    eos = model._module.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    rows = [_until_stop(tokens, ends) for tokens in ids[:, encoded.inputs["input_ids"].shape[1] :].tolist()]
    replies = []
    for row, (tokens, seen) in enumerate(zip(rows, trail.of([len(tokens) for tokens in rows]), strict=True)):
        receipt = Receipt(
            **asdict(chosen) | {"layers": list(chosen.layers)},
            **seen,
            dtype=str(model._module.dtype).removeprefix("torch."),
            steps=len(tokens),
            kl_first_step=round(divergence[row], 6),
            seed=seed,
            decoding=decoding.as_done_by(model),
            prompt_format=encoded.format,
            prompt_tokens=prompt_tokens[row],
            prompt_tokens_dropped=encoded.dropped[row],
            tokens_generated=len(tokens),
        )
        text = model.tokenizer.decode(tokens, skip_special_tokens=True)
        thought, response, closed = thought_apart(text, encoded.opens_thought)
        reply = {"response": response, "thought": thought, "finished": tokens[-1] in ends and closed}
        replies.append(reply | {"receipt": receipt.model_dump()})
    return replies, logits


class Reply(NamedTuple):
    """What a model wrote: its thought, None where it did not think; its answer; and whether no thought was left open."""

    thought: str | None
    response: str
    closed: bool


def thought_apart(text: str, opened: bool) -> Reply:
    """Tell apart what a model thought and what it answered; ``opened`` says that its prompt had begun the thought already.

    A thought that is never closed leaves an empty response.
    """
    begins, ends = THOUGHT
    text = text.strip()
    if not opened and not text.startswith(begins):
        return Reply(None, text, True)
    thought, closed, response = text.removeprefix(begins).partition(ends)
    return Reply(thought.strip(), response.strip(), bool(closed))


def _until_stop(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: stop + 1]


def _generate(
    model: TransformersModel, arm: Arm, inputs: dict[str, Tensor], arguments: dict[str, Any], trail: Trail
) -> tuple[Tensor, Tensor]:
    """Return ids [batch, token] of prompts and answers, and the first token's logits; write what was seen on the trail."""
    sites, mask = steered_sites(model, arm), inputs["attention_mask"]
    with model.generate(**arguments) as tracer:
        with tracer.invoke(inputs):
            for step in tracer.iter[arm.intervention.steps()]:
                _edit(arm, sites, trail=trail, step=step, mask=mask if step == 0 else torch.ones_like(mask[:, :1]))
        with tracer.invoke():
            first_logits = model.output.logits[:, -1].save()
            ids = tracer.result.save()
    return ids, first_logits


def _edit(arm: Arm, sites: dict[int, tuple[Any, Any]], *, trail: Trail, step: int, mask: Tensor) -> None:
    """Change the output of every steered block in one forward pass, and note what the module after it then reads."""
    for layer, (block, following) in sites.items():
        stream = block.output
        changed, feature_acts = steer(stream, arm.edits[layer], arm.intervention)
        block.output = changed
        trail.add(step, before=stream, written=changed, after=following.input, feature_acts=feature_acts, mask=mask)


def steered_sites(model: TransformersModel, arm: Arm) -> dict[int, tuple[Any, Any]]:
    """Return, by layer, the decoder block whose output an arm changes and the module that reads it next.

    Raises:
        SteeringError: a layer does not exist.
    """
    blocks, layers = models.decoder_layers(model), arm.intervention.layers
    if absent := [layer for layer in layers if not 0 <= layer < len(blocks)]:
        raise SteeringError(f"layer {absent[0]} does not exist: the model has layers 0 to {len(blocks) - 1}")
    readers = [*list(blocks)[1:], models.final_norm(model)]
    return {layer: (blocks[layer], readers[layer]) for layer in layers}


def layer_devices(model: TransformersModel) -> dict[int, torch.device]:
    """Return layer -> where the output of this decoder block lies: on several GPUs, where an edit of it belongs."""
    devices = {}
    for layer, block in enumerate(models.decoder_layers(model)):
        # Weights that wait in main memory are moved to where their block runs, which accelerate's hook says.
        runs_on = getattr(getattr(block._module, "_hf_hook", None), "execution_device", None)
        devices[layer] = next(block._module.parameters()).device if runs_on is None else torch.device(runs_on)
    return devices


def read_text(model: TransformersModel, arm: Arm, inputs: dict[str, Tensor]) -> tuple[Tensor, list[float]]:
    """Read a right-padded batch of plain text in one forward pass, the stream changed at every position.

    Returns:
        Logits [batch, token, vocabulary], and for every text the mean relative norm of the change over its tokens and the
        layers, 0 for the baseline.

    Raises:
        ReceiptError: the edit did not take at every position and layer.
    """
    trail, mask = Trail(len(arm.intervention.layers), arm.intervention.strength != 0), inputs["attention_mask"]
    with torch.no_grad():
        if not arm.intervention.layers:
            return model._module(**inputs).logits, [0.0] * len(mask)
        sites = steered_sites(model, arm)
        with model.trace(inputs):
            _edit(arm, sites, trail=trail, step=0, mask=mask)
            logits = model.output.logits.save()
    seen = trail.of([1] * len(mask))
    if [of_text["positions_touched"] for of_text in seen] != mask.sum(dim=1).tolist():
        raise ReceiptError(f"arm {arm.intervention.arm!r}: the edit did not take at every position of the text it read")
    return logits, [of_text["relative_norm"] for of_text in seen]


def unsteered_logits(model: TransformersModel, prompts: list[str], decoding: Decoding) -> Tensor:
    """Return what the untouched model expects after every prompt: logits [batch, vocabulary], in main memory."""
    inputs = encode_prompts(model, prompts, decoding.max_new_tokens).inputs
    positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    with torch.no_grad():
        return model._module(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1].cpu()


def _divergence(steered: Tensor, unsteered: Tensor) -> Tensor:
    p, q = steered.float().log_softmax(dim=-1), unsteered.float().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).clamp_min(0).cpu()
