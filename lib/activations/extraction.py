"""Residual streams of all layers in one forward pass, pooled on the device.

The paper represents an action by the residual stream after every decoder block for the prompt "{action} is morally" (no
chat template), averaged over all tokens. The average includes the first token, whose activation is very large in these
models; so the same pass pools in three more ways, which are the controls. Nothing of shape [batch, token, width] leaves
the device.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from nnsight import TransformersModel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lib.activations import models
from lib.activations.pipeline import ActivationError, Batch, Writer
from lib.activations.store import ActivationStore
from lib.paper import MAX_TOKENS, POOLINGS, TEMPLATE
from lib.run.stage import share

PADDING = 1.1
"""A batch has at most this many times the tokens of its prompts; more would be computed for nothing."""


LEADING_POSITIONS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Prompts:
    """Tokenized prompts in the order of the store's rows: by number of tokens, then by action.

    ``tokens[i]`` are the ids of row i; ``in_action[i]`` says which of them belong to the action.
    """

    actions: list[str]
    tokens: list[np.ndarray]
    in_action: list[np.ndarray]
    truncated: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of every prompt."""
        return np.array([len(ids) for ids in self.tokens])


class Throughput(NamedTuple):
    """What an extraction read, the seconds it took, its bytes of memory at the end, and the GPU's at their peak."""

    actions: int
    tokens: int
    seconds: float
    memory: int
    gpu: int

    def __str__(self) -> str:
        """Say it in one line."""
        gpu = f" and {self.gpu / 1e9:.2f} GB of the GPU" if self.gpu else ""
        return (
            f"{self.actions / self.seconds:,.0f} actions/s, {self.tokens / self.seconds:,.0f} tokens/s, "
            f"{self.memory / 1e9:.2f} GB of memory{gpu}"
        )


def tokenize(tokenizer: PreTrainedTokenizerBase, actions: list[str], *, template: str = TEMPLATE) -> Prompts:
    """Tokenize distinct actions inside a prompt, by default the published one, and sort them by length.

    ``template`` holds ``{action}`` once. A token that reaches into the action from the words before it belongs to the action.
    Prompts of more than 128 tokens lose their end, as published; they are counted.

    Raises:
        ActivationError: an action is empty or occurs twice.
    """
    if len(set(actions)) != len(actions):
        raise ActivationError("actions must be distinct; annotations refer to them by their text")
    if any(not action.strip() for action in actions):
        raise ActivationError("an action is empty; clean the annotations first (notebook 01)")
    encoded = tokenizer(
        [template.format(action=action) for action in actions],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    rows, begin = [], template.index("{action}")
    for action, ids, offsets, special in zip(
        actions, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        starts, ends = np.array(offsets).T
        inside = (starts < begin + len(action)) & (np.maximum(starts, ends - 1) >= begin)
        in_action = inside & (np.array(special) == 0)
        rows.append((len(ids[:MAX_TOKENS]), action, np.array(ids[:MAX_TOKENS]), in_action[:MAX_TOKENS]))
    rows.sort(key=lambda row: row[:2])
    truncated = sum(len(ids) > MAX_TOKENS for ids in encoded["input_ids"])
    return Prompts([row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows], truncated)


def extract(model: TransformersModel, prompts: Prompts, *, store: ActivationStore, token_budget: int) -> Throughput:
    """Fill a store with the pooled residual streams of ``prompts``, skipping the chunks it already has.

    A part of the stage fills its share of the chunks. Batches never cross a chunk, so the values are the same. A chunk is
    encoded, hashed and written while the next one is read. Where the GPU runs out of memory, the chunk is begun again with
    a token budget of half the batch that failed, and so are those after it; the store records the budget of every chunk,
    so that a chunk made again is made of the same batches.

    ``token_budget`` is the most tokens, padding included, in one forward pass. Returned is what was read in this call, and
    how fast.

    Raises:
        ActivationError: an activation is not finite, and nothing of its chunk is written; or the GPU's memory does not
            hold even one prompt.
        StoreError: another process is writing the store, or the disk is full.
    """
    started, actions, tokens = time.perf_counter(), 0, 0
    with (
        store.writing(),
        Writer(store, prompts.actions) as writer,
        tqdm(total=prompts.lengths.sum(), desc="residual streams", unit="token", unit_scale=True) as progress,
    ):
        ours = share(store.chunks())
        missing = set(ours).intersection(store.missing_chunks())
        progress.update(sum(_tokens(prompts, chunk) for chunk in store.chunks() if chunk not in missing))
        for chunk in ours:
            token_budget = store.token_budget(chunk) or token_budget
            if chunk not in missing:
                continue
            read, token_budget = _read_chunk(model, prompts, chunk, token_budget=token_budget, writer=writer)
            writer.write(chunk, read, token_budget=token_budget)
            actions, tokens = actions + len(chunk), tokens + _tokens(prompts, chunk)
            progress.update(_tokens(prompts, chunk))
            progress.set_postfix_str(str(_throughput(actions, tokens, started)))
    return _throughput(actions, tokens, started)


def _read_chunk(
    model: TransformersModel, prompts: Prompts, chunk: range, *, token_budget: int, writer: Writer
) -> tuple[list[Batch], int]:
    """Return the batches of a chunk, and their token budget."""
    while True:
        read: list[Batch] = []
        try:
            for rows in batches(prompts.lengths, chunk, token_budget=token_budget):
                writer.check()
                read.append(Batch(rows, pooled_residuals(model, prompts, rows=rows), dtype=writer.store.dtype))
            return read, token_budget
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise ActivationError(
                    f"out of memory with a single prompt of {prompts.lengths[rows.start]} tokens. Use several GPUs "
                    "(device: auto), device: 8bit, 4bit or remote, or fewer layers (first_layers)."
                ) from error
        # Outside the handler: the error's traceback holds the tensors of the failed pass.
        lower = len(rows) * int(prompts.lengths[rows.stop - 1]) // 2
        tqdm.write(f"out of memory: token budget lowered from {token_budget:,} to {lower:,}")
        token_budget = lower
        torch.cuda.empty_cache()


def _tokens(prompts: Prompts, rows: range) -> int:
    return int(prompts.lengths[rows.start : rows.stop].sum())


def _throughput(actions: int, tokens: int, started: float) -> Throughput:
    memory, gpu = psutil.Process().memory_info().rss, torch.cuda.max_memory_allocated()
    return Throughput(actions, tokens, time.perf_counter() - started, memory, gpu)


def batches(lengths: np.ndarray, rows: range, *, token_budget: int) -> list[range]:
    """Cut consecutive rows, sorted by length, into batches of at most ``token_budget`` tokens (at least one row).

    A batch ends earlier where one more row would make it longer than ``PADDING`` times its tokens. Batches never cross
    ``rows``, so a chunk that is computed again after an interruption is made of the same batches, and gives the same
    values also in reduced precision, where they depend on the batch.
    """
    result = []
    start = rows.start
    while start < rows.stop:
        stop, tokens = start + 1, lengths[start]
        while stop < rows.stop:
            padded, tokens = (stop + 1 - start) * lengths[stop], tokens + lengths[stop]
            if padded > token_budget or padded > PADDING * tokens:
                break
            stop += 1
        result.append(range(start, stop))
        start = stop
    return result


def pooled_residuals(model: TransformersModel, prompts: Prompts, *, rows: range) -> torch.Tensor:
    """Trace one batch and return float32 [pooling, layer, row, width] on one device, in ``POOLINGS`` order.

    Sums are taken in float32 whatever the model's dtype: bfloat16 rounds one over a length. The pass stops after the
    last block: the language-model head is not computed. Padding stands on the right, where a causal model does not see
    it. Where blocks lie on several devices, what they pooled is brought together on the device of the inputs.
    """
    inputs, weights = padded_batch(model, prompts, rows=rows)
    layers = models.decoder_layers(model)
    with model.trace(inputs, use_cache=False, remote=models.remote(model)) as tracer:
        pooled = []
        for layer in layers:
            stream = layer.output
            of_layer = torch.bmm(weights.to(stream.device), stream.float()).to(weights.device)
            pooled.append(of_layer.transpose(0, 1))
        stacked = torch.stack(pooled, dim=1).save()
        tracer.stop()
    return stacked


def token_residuals(
    model: TransformersModel, prompts: Prompts, *, rows: range, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Trace one batch up to one layer and return its residual stream, token by token, and the weights that pool it.

    Both lie on the device of the inputs: float32 [row, token, width] and [row, pooling, token] of :func:`padded_batch`.
    """
    inputs, weights = padded_batch(model, prompts, rows=rows)
    block = models.decoder_layers(model)[layer]
    with model.trace(inputs, use_cache=False, remote=models.remote(model)) as tracer:
        stream = block.output.float().to(weights.device).save()
        tracer.stop()
    return stream, weights


def embeddings(
    model: TransformersModel, prompts: Prompts, *, actions: Collection[str], token_budget: int
) -> pd.DataFrame:
    """Return what the first block reads, before any block has mixed tokens: the mean over an action's tokens, float32.

    Columns ``action``, then one per dimension, named by its number. Without blocks the token after the action says nothing of
    it, so there is no other pooling. ``actions`` are those wanted, at most ``token_budget`` tokens at a time.
    """
    chosen = set(actions)
    kept = [row for row, action in enumerate(prompts.actions) if action in chosen]
    columns = ([values[row] for row in kept] for values in (prompts.actions, prompts.tokens, prompts.in_action))
    wanted, first, found = Prompts(*columns, truncated=0), models.decoder_layers(model)[0], []
    for rows in batches(wanted.lengths, range(len(kept)), token_budget=token_budget):
        inputs, weights = padded_batch(model, wanted, rows=rows)
        of_action = weights[:, [POOLINGS.index("action")]]
        with model.trace(inputs, use_cache=False, remote=models.remote(model)) as tracer:
            stream = first.input
            pooled = torch.bmm(of_action.to(stream.device), stream.float())[:, 0].save()
            tracer.stop()
        found.append(pooled.cpu().numpy())
    values = np.concatenate(found)
    table = pd.DataFrame(values, columns=[str(dimension) for dimension in range(values.shape[1])])
    table.insert(0, "action", wanted.actions)
    return table


def norm_profile(model: TransformersModel, prompts: Prompts, *, rows: range) -> pd.DataFrame:
    """Return the norm of the residual stream by layer and token position in one batch, to see the first-token effect.

    Columns ``layer``, ``position``, ``norm`` (mean over rows, model units), ``ci_low``, ``ci_high`` (95%, normal approximation
    over rows), ``n``. Positions are the four leading ones and the last; a row has a leading one only before its last token.
    """
    inputs, _ = padded_batch(model, prompts, rows=rows)
    layers = models.decoder_layers(model)
    device = models.input_device(model)
    with model.trace(inputs, use_cache=False, remote=models.remote(model)) as tracer:
        norms = torch.stack([layer.output.float().norm(dim=-1).to(device) for layer in layers]).save()
        tracer.stop()
    lengths = prompts.lengths[rows.start : rows.stop]
    records = []
    for layer, values in enumerate(norms.cpu().numpy()):
        leading = enumerate(LEADING_POSITIONS[: values.shape[1]])
        samples = {name: values[lengths > index + 1, index] for index, name in leading}
        samples["last"] = values[np.arange(len(lengths)), lengths - 1]
        for name, sample in samples.items():
            if len(sample) > 1:
                mean, half = sample.mean(), 1.96 * sample.std(ddof=1) / np.sqrt(len(sample))
                records.append((layer, name, mean, mean - half, mean + half, len(sample)))
    return pd.DataFrame(records, columns=["layer", "position", "norm", "ci_low", "ci_high", "n"])


def padded_batch(
    model: TransformersModel, prompts: Prompts, *, rows: range
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a batch's inputs, padded on the right, and its pooling weights [row, pooling, token].

    A prompt of a single token has no other than its first, which then stands for the mean without it too.
    """
    input_ids, attention_mask = models.pad([prompts.tokens[row] for row in rows], model.tokenizer.pad_token_id)
    weights = torch.zeros(len(rows), len(POOLINGS), input_ids.shape[1])
    for i, row in enumerate(rows):
        in_action = torch.from_numpy(prompts.in_action[row])
        length = len(in_action)
        weights[i, 0, :length] = 1 / length
        weights[i, 1, min(1, length - 1) : length] = 1 / max(length - 1, 1)
        weights[i, 2, :length] = in_action / max(int(in_action.sum()), 1)
        weights[i, 3, length - 1] = 1
    device = models.input_device(model)
    inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    return inputs, weights.to(device)
