"""Steering: autoencoders put back into the residual stream while a model writes, and a receipt for every answer.

What is done to the stream is data (:class:`lib.interventions.Intervention`): which autoencoder, behind which
decoder block, how strongly. It is applied through nnsight at every step of generation, to prompt and answer
alike, and what was seen there is written down with the answer: an edit that fires on the first step only
leaves fluent text and no effect, and only a count of steps can tell. Every arm gets the same prompts,
batches, seeds and decoding.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from nnsight import TransformersModel
from torch import Tensor
from tqdm.auto import tqdm

from lib import flames, models, shares
from lib.decoding import Decoding, EncodedPrompts, decoding_for, encode_prompts, stop_tokens, until_stop
from lib.interventions import Arm, Intervention, SteeringError, steer
from lib.receipts import Trail, check_receipt


class Answered(NamedTuple):
    """A batch: replies as :func:`answer` returns them, and logits [batch, vocabulary] of the first token of each answer."""

    replies: list[dict[str, Any]]
    first_logits: Tensor


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
    return answer_batch(model, arm, prompts, decoding, seed).replies


def answer_batch(
    model: TransformersModel,
    arm: Arm,
    prompts: list[str],
    decoding: Decoding,
    seed: int,
    unsteered: Tensor | None = None,
) -> Answered:
    """Do what :func:`answer` does, and tell what the first tokens were drawn from.

    ``unsteered`` are the ``first_logits`` of the baseline or of :func:`unsteered_logits` for the same prompts and
    decoding. Where they are not known the prompts are read once more for them, which the baseline does not need.
    """
    encoded = encode_prompts(model, prompts, decoding.max_new_tokens)
    inputs = encoded.inputs()
    arguments = decoding.arguments() | {"max_new_tokens": encoded.max_new_tokens}
    arguments["pad_token_id"] = model.tokenizer.pad_token_id
    trail = Trail()
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        # nnsight says of every open loop over steps that it ended with the generation, which is the point of it.
        warnings.filterwarnings("ignore", message=".*was never reached.*")
        torch.manual_seed(seed)
        ids, logits = _generate(model, arm, inputs, arguments, trail)
        if unsteered is None:
            unsteered = logits if arm.intervention.layer is None else _next_token_logits(model, encoded)
        divergence = _divergence(logits, unsteered.to(logits.device))
    generated = ids[:, encoded.input_ids.shape[1] :].cpu()
    ends = stop_tokens(model)
    rows = [until_stop(tokens, ends) for tokens in generated.tolist()]
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
    return Answered(answers, logits)


def _generate(
    model: TransformersModel, arm: Arm, inputs: dict[str, Tensor], arguments: dict[str, Any], trail: Trail
) -> tuple[Tensor, Tensor]:
    first_logits: list[Tensor] = []
    if arm.intervention.layer is None:
        with model.generate(**arguments) as tracer:
            with tracer.invoke(inputs):
                first_logits.append(model.output.logits[:, -1])
            with tracer.invoke():
                ids = tracer.result.save()
        return ids, first_logits[0]
    layer = steered_layer(model, arm)
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


def unsteered_logits(model: TransformersModel, prompts: list[str], decoding: Decoding) -> Tensor:
    """Return what the untouched model expects behind every prompt: logits [batch, vocabulary], in main memory."""
    with torch.no_grad():
        return _next_token_logits(model, encode_prompts(model, prompts, decoding.max_new_tokens)).cpu()


def _next_token_logits(model: TransformersModel, encoded: EncodedPrompts) -> Tensor:
    positions = (encoded.attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    return model._module(**encoded.inputs(), position_ids=positions, logits_to_keep=1).logits[:, -1]


def _divergence(steered: Tensor, unsteered: Tensor) -> Tensor:
    p, q = steered.float().log_softmax(dim=-1), unsteered.float().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).clamp_min(0).cpu()


# ----------------------------------------------------------------------------------- a file per arm


def answer_all(
    model: TransformersModel,
    conditions: Iterable[Intervention],
    load: Callable[[Intervention], Arm],
    prompts: pd.DataFrame,
    decoding: Decoding | Literal["published"],
    directory: Path,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Answer every prompt under every condition and write ``<arm>.jsonl`` into ``directory``, a batch at a time.

    Batch b is sampled with ``seed + b`` in every arm and layer. A finished batch is on disk before the next
    begins, and is not computed again after an interruption; the files are then the same, byte for byte, as
    those of an uninterrupted run. So are those of several runs of some of the arms each: an arm's file depends on
    no other arm. An arm with several layers or strengths has them one after the other in its file.

    In memory at a time: the model, what one condition needs, and the logits of the untouched model behind each prompt
    (for 1,000 prompts and the vocabulary of Qwen3 in bfloat16 .3 GB), which are the same for all arms: they come from the
    baseline where it is answered first, and else are computed once.

    Args:
        model: as :func:`lib.models.load` returns it.
        conditions: what is done, in any order.
        load: reads what a condition needs, when its turn comes; it is let go before the next.
        prompts: table with ``id, dimension, prompt``.
        decoding: the same for all arms, or "published" for the released recipe's unequal one.
        directory: where the files go.
        batch_size: prompts per batch; it is part of the result, as sampling depends on it.
        seed: of the first batch.
    """
    batches = [prompts.iloc[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    work: dict[str, list[tuple[Intervention, int]]] = {}
    for what in conditions:
        work.setdefault(what.arm, []).extend((what, number) for number in range(len(batches)))
    work = {name: work[name] for name in shares.share(list(work))}
    directory.mkdir(parents=True, exist_ok=True)
    expected: dict[int, Tensor] = {}
    with tqdm(total=sum(map(len, work.values())), desc="answers", unit="batch") as bar:
        for name, todo in work.items():
            path, chosen = directory / f"{name}.jsonl", decoding_for(name, decoding)
            plan = [[(key, *_condition(what)) for key in batches[number]["id"]] for what, number in todo]
            done = flames.keep_finished_batches(path, plan)
            bar.update(done)
            for what, group in groupby(todo[done:], key=lambda step: step[0]):
                arm = load(what)
                for _, number in group:
                    batch, texts = batches[number], batches[number]["prompt"].tolist()
                    if what.layer is not None and number not in expected:
                        expected[number] = unsteered_logits(model, texts, chosen)
                    replies, first = answer_batch(model, arm, texts, chosen, seed + number, expected.get(number))
                    # Unequal decoding may cut prompts unequally, where the context is short.
                    if what.layer is None and decoding != "published":
                        expected[number] = first.cpu()
                    known = batch[["id", "dimension", "prompt"]].assign(arm=name).to_dict("records")
                    place = dict(zip(("layer", "strength"), _condition(what), strict=True))
                    flames.append_responses(path, [a | place | b for a, b in zip(known, replies, strict=True)])
                    bar.update()
                # Otherwise two autoencoders would be in memory while the next is read.
                del arm


def _condition(what: Intervention) -> tuple[int | None, float | None]:
    return (None, None) if what.layer is None else (what.layer, what.strength)
