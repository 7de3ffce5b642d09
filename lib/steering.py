"""Steering: autoencoders put back into the residual stream while a model writes, and a receipt for every answer.

What is done to the stream is data (:class:`lib.interventions.Intervention`): which autoencoder, behind which
decoder block, how strongly. It is applied through nnsight at every step of generation, to prompt and answer
alike, and what was seen there is written down with the answer: an edit that fires on the first step only
leaves fluent text and no effect, and only a count of steps can tell. Every arm gets the same prompts,
batches, seeds and decoding.
"""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from nnsight import TransformersModel
from torch import Tensor
from tqdm.auto import tqdm

from lib import flames, models, shares
from lib.interventions import Arm, SteeringError, steer

SYSTEM_PROMPT = "你是一个有帮助的助手。"
"""The published system prompt ("You are a helpful assistant.")."""

ENABLE_THINKING = True
"""Thinking is not switched off in the released recipe; every arm gets the same setting."""

PLAIN_FORMAT = "{system}\n{prompt}\n"
"""Prompt for tokenizers without a chat template."""


RECEIPT = (
    "arm", "layers", "strength", "mode", "features", "positions", "steps", "steps_touched", "positions_touched",
    "relative_norm", "active_latents", "kl_first_step", "seed", "decoding", "prompt_format", "prompt_tokens",
    "prompt_tokens_dropped", "tokens_generated", "truncated",
)  # fmt: skip
"""Fields of a receipt; :func:`answer` says what they mean."""


class ReceiptError(RuntimeError):
    """A receipt does not show that the stream was touched at every step and position."""


# --------------------------------------------------------------------------------- how text is made


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


# ------------------------------------------------------------------------------ answers and receipts


@dataclass
class _Trail:
    """What was seen at each step that was touched; tensors are [batch]."""

    step: list[int] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    relative_norm: list[Tensor] = field(default_factory=list)
    active: list[Tensor] = field(default_factory=list)

    def add(self, step: int, before: Tensor, after: Tensor, latents: Tensor, mask: Tensor) -> None:
        """Add one step: streams [batch, token, width], latents [batch, token, latents], mask [batch, token]."""
        if before.ndim != 3 or after.shape != before.shape:
            raise SteeringError(f"stream should be [batch, token, width]; was {before.shape}, became {after.shape}")
        change = (after - before).float().norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
        self.step.append(step)
        self.positions.append(mask.sum(dim=1))
        self.relative_norm.append((change * mask).sum(dim=1))
        self.active.append(((latents > 0).sum(dim=-1) * mask).sum(dim=1))

    def of(self, steps: list[int]) -> list[dict[str, float]]:
        """Add up, for every answer of the batch, what was seen in its first ``steps[row]`` steps."""
        names = ("positions", "relative_norm", "active")
        if not self.step:
            return [dict.fromkeys(("steps", *names), 0) for _ in steps]
        # One transfer for the whole batch: on a GPU a transfer a step would wait for every step.
        seen = {name: torch.stack(getattr(self, name)).double().cpu() for name in names}
        sums = []
        for row, count in enumerate(steps):
            within = torch.tensor([step < count for step in self.step])
            of_row = {name: values[within, row] for name, values in seen.items()}
            touched = int((of_row["positions"] > 0).sum())
            sums.append({"steps": touched} | {name: float(values.sum()) for name, values in of_row.items()})
        return sums


def answer(
    model: TransformersModel, arm: Arm, prompts: list[str], decoding: Decoding, seed: int
) -> list[dict[str, Any]]:
    """Let a model answer one batch of prompts under one arm.

    Returns:
        One ``{"response", "receipt"}`` a prompt. The receipt says: arm, layers, strength, mode, features,
        positions; ``steps`` (forward passes that wrote this answer), ``steps_touched`` and
        ``positions_touched`` as seen while generating; ``relative_norm`` (mean of |x' - x| / |x| over the positions touched),
        ``active_latents`` (mean), ``kl_first_step`` (Kullback-Leibler divergence in nats of the next-token
        distribution behind the prompt, from steered to unsteered); seed, decoding, prompt format, prompt
        tokens and how many were dropped, tokens generated, and whether the answer was truncated.

    Raises:
        SteeringError: the layer does not exist or the autoencoder is of another width than the stream.
        ReceiptError: not every step was touched.
    """
    encoded = encode_prompts(model, prompts, decoding.max_new_tokens)
    inputs = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    arguments = decoding.arguments() | {"max_new_tokens": encoded.max_new_tokens}
    arguments["pad_token_id"] = model.tokenizer.pad_token_id
    trail = _Trail()
    divergence = torch.zeros(len(prompts))
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        # nnsight says of every open loop over steps that it ended with the generation, which is the point of
        # it.
        warnings.filterwarnings("ignore", message=".*was never reached.*")
        torch.manual_seed(seed)
        if arm.intervention.layer is None:
            ids = model.generate(inputs, **arguments)
        else:
            ids, logits = _generate_steered(model, arm, inputs, arguments, trail)
            divergence = _divergence(logits, _next_token_logits(model, inputs))
    generated = ids[:, encoded.input_ids.shape[1] :].cpu()
    ends = _stop_tokens(model)
    rows = [_until_stop(tokens, ends) for tokens in generated.tolist()]
    answers = []
    for row, (tokens, seen) in enumerate(zip(rows, trail.of([len(tokens) for tokens in rows]), strict=True)):
        steps = len(tokens)
        receipt = {
            "arm": arm.intervention.arm,
            "layers": [] if arm.intervention.layer is None else [arm.intervention.layer],
            "strength": arm.intervention.strength,
            "mode": arm.intervention.mode,
            "features": arm.intervention.features,
            "positions": arm.intervention.positions,
            "steps": steps,
            "steps_touched": seen["steps"],
            "positions_touched": int(seen["positions"]),
            "relative_norm": round(seen["relative_norm"] / max(seen["positions"], 1), 6),
            "active_latents": round(seen["active"] / max(seen["positions"], 1), 6),
            "kl_first_step": round(float(divergence[row]), 6),
            "seed": seed,
            "decoding": asdict(decoding) | {"max_new_tokens": encoded.max_new_tokens},
            "prompt_format": encoded.format,
            "prompt_tokens": int(encoded.attention_mask[row].sum()),
            "prompt_tokens_dropped": encoded.dropped[row],
            "tokens_generated": steps,
            "truncated": tokens[-1] not in ends,
        }
        check_receipt(receipt)
        text = model.tokenizer.decode(tokens, skip_special_tokens=True)
        answers.append({"response": text.strip(), "receipt": receipt})
    return answers


def check_receipt(receipt: dict[str, Any]) -> None:
    """Refuse a receipt that does not show every step and position touched that its ``positions`` name.

    All of them by default; step 0 reads the prompt, each later one reads a generated token; none for the baseline.

    Raises:
        ReceiptError: a field is missing, or says how many were touched and how many should have been.
    """
    if missing := [name for name in RECEIPT if name not in receipt]:
        raise ReceiptError(f"the receipt lacks {missing[0]!r}; run notebook 07_steering again")
    later = receipt["steps"] - 1
    steps, positions = {
        "all": (1 + later, receipt["prompt_tokens"] + later),
        "prompt": (1, receipt["prompt_tokens"]),
        "generated": (later, later),
    }[receipt["positions"]]
    steered = receipt["arm"] != "baseline"
    due = {"steps_touched": steps * steered, "positions_touched": positions * steered}
    for name, number in due.items():
        if receipt[name] != number:
            raise ReceiptError(f"arm {receipt['arm']!r}: {name} is {receipt[name]} and should be {number}")


def _generate_steered(
    model: TransformersModel, arm: Arm, inputs: dict[str, Tensor], arguments: dict[str, Any], trail: _Trail
) -> tuple[Tensor, Tensor]:
    layer, first_logits = steered_layer(model, arm), []
    with model.generate(**arguments) as tracer:
        with tracer.invoke(inputs):
            for step in tracer.iter[:]:
                stream = layer.output
                if arm.intervention.applies(step):
                    changed, latents = steer(stream, arm)
                    mask = inputs["attention_mask"] if step == 0 else torch.ones_like(inputs["attention_mask"][:, :1])
                    trail.add(step, stream, changed, latents, mask)
                    layer.output = changed
                if step == 0:
                    first_logits.append(model.output.logits[:, -1])
        with tracer.invoke():
            ids = tracer.result.save()
    return ids, first_logits[0]


def steered_layer(model: TransformersModel, arm: Arm) -> Any:
    """Return the decoder block behind which an arm acts, once it is certain that the two belong together.

    Raises:
        SteeringError: the layer does not exist, or the autoencoder is of another width than the stream.
    """
    layers, index = models.decoder_layers(model), arm.intervention.layer
    width = models.width(model)
    assert index is not None
    assert arm.autoencoder is not None
    if not 0 <= index < len(layers):
        raise SteeringError(f"layer {index} does not exist: the model has layers 0 to {len(layers) - 1}")
    if arm.autoencoder.W_enc.shape[0] != width:
        raise SteeringError(
            f"the autoencoder of arm {arm.intervention.arm!r} has width {arm.autoencoder.W_enc.shape[0]} and the "
            f"model's stream {width}: it belongs to another model"
        )
    return layers[index]


def read_text(model: TransformersModel, arm: Arm, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read a right-padded batch of plain text in one pass, the stream changed at every position.

    Returns:
        Logits [batch, token, vocabulary] and the relative norm of the change [batch, token], 0 for the baseline.
    """
    change = torch.zeros(inputs["input_ids"].shape)
    with torch.no_grad():
        if arm.intervention.layer is None:
            return model._module(**inputs).logits, change
        layer = steered_layer(model, arm)
        with model.trace(inputs):
            stream = layer.output
            changed, _ = steer(stream, arm)
            layer.output = changed
            change = ((changed - stream).float().norm(dim=-1) / stream.float().norm(dim=-1).clamp_min(1e-12)).save()
            logits = model.output.logits.save()
    return logits, change.cpu()


def _next_token_logits(model: TransformersModel, inputs: dict[str, Tensor]) -> Tensor:
    positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    return model._module(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1]


def _divergence(steered: Tensor, unsteered: Tensor) -> Tensor:
    p, q = steered.float().log_softmax(dim=-1), unsteered.float().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).clamp_min(0).cpu()


def _stop_tokens(model: TransformersModel) -> set[int]:
    stop = model._module.generation_config.eos_token_id
    return set() if stop is None else {stop} if isinstance(stop, int) else set(stop)


def _until_stop(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]


# ----------------------------------------------------------------------------------- a file per arm


def answer_all(
    model: TransformersModel,
    arms: Iterable[Arm],
    prompts: pd.DataFrame,
    decoding: Decoding | Literal["published"],
    directory: Path,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Let every arm answer every prompt and write ``<arm>.jsonl`` into ``directory``, a batch at a time.

    Batch b is sampled with ``seed + b`` in every arm and layer. A finished batch is on disk before the next
    begins, and is not computed again after an interruption; the files are then the same, byte for byte, as
    those of an uninterrupted run. So are those of several runs of some of the arms each: an arm's file depends on
    no other arm. An arm with several layers or strengths has them one after the other in its file.

    Args:
        model: as :func:`lib.models.load` returns it.
        arms: what is done, in any order.
        prompts: table with ``id, dimension, prompt``.
        decoding: the same for all arms, or "published" for the released recipe's unequal one.
        directory: where the files go.
        batch_size: prompts per batch; it is part of the result, as sampling depends on it.
        seed: of the first batch.
    """
    batches = [prompts.iloc[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    work: dict[str, list[tuple[Arm, int, pd.DataFrame]]] = {}
    for arm in arms:
        work.setdefault(arm.intervention.arm, []).extend((arm, number, batch) for number, batch in enumerate(batches))
    work = {name: work[name] for name in shares.share(list(work))}
    directory.mkdir(parents=True, exist_ok=True)
    with tqdm(total=sum(map(len, work.values())), desc="answers", unit="batch") as bar:
        for name, todo in work.items():
            path = directory / f"{name}.jsonl"
            plan = [[(key, *_condition(arm)) for key in batch["id"]] for arm, _, batch in todo]
            done = flames.keep_finished_batches(path, plan)
            bar.update(done)
            for arm, number, batch in todo[done:]:
                chosen = decoding_for(name, decoding)
                replies = answer(model, arm, batch["prompt"].tolist(), chosen, seed + number)
                known = batch[["id", "dimension", "prompt"]].assign(arm=name).to_dict("records")
                layer = dict(zip(("layer", "strength"), _condition(arm), strict=True))
                flames.append_responses(path, [row | layer | reply for row, reply in zip(known, replies, strict=True)])
                bar.update()


def _condition(arm: Arm) -> tuple[int | None, float | None]:
    what = arm.intervention
    return (None, None) if what.layer is None else (what.layer, what.strength)


def receipts(responses: pd.DataFrame) -> pd.DataFrame:
    """Check every receipt of :func:`lib.flames.read_responses` and lay them out as a table.

    Returns:
        One row an answer: ``id, dimension, arm, layer, strength`` and the receipt's other fields.

    Raises:
        ReceiptError: one does not show every step and position touched.
    """
    for receipt in responses["receipt"]:
        check_receipt(receipt)
    numbers = pd.DataFrame(responses["receipt"].tolist()).drop(columns=["arm", "layers", "strength", "decoding"])
    return pd.concat([responses[["id", "dimension", *flames.CONDITION]].reset_index(drop=True), numbers], axis=1)
