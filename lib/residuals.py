"""Residual streams of all layers in one traced pass, pooled on the device.

The paper's representation of an action is the residual stream behind every decoder block for the prompt
"{action} is morally" (no chat template), averaged over all tokens. The average includes the first token, whose
activation is very large in these models; so the same pass pools in three more ways, which are the controls. Nothing
of shape [batch, token, width] leaves the device.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from nnsight import TransformersModel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lib import models, shares
from lib.store import ActivationStore

TEMPLATE = "{action} is morally"
"""The published prompt."""

MAX_TOKENS = 128
"""The published truncation."""

PADDING = 1.1
"""A batch has at most so many times the tokens of its prompts; more would be computed for nothing."""

POOLINGS = ("mean", "mean_without_first", "action", "last")
"""Mean over all tokens (published), without the first one, over the action's tokens only, the last token alone."""


class ActivationError(ValueError):
    """Activations cannot be computed or are not finite."""


@dataclass(frozen=True)
class Prompts:
    """Tokenized prompts in the order of the store's rows: by number of tokens, then by action.

    ``tokens[i]`` are the ids of row i; ``in_action[i]`` says which of them belong to the action.
    """

    actions: list[str]
    tokens: list[np.ndarray]
    in_action: list[np.ndarray]
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of every prompt."""
        return np.array([len(ids) for ids in self.tokens])


class Throughput(NamedTuple):
    """What an extraction did: actions and tokens read in so many seconds, bytes of memory at its end (card: peak)."""

    actions: int
    tokens: int
    seconds: float
    memory: int
    card: int

    def __str__(self) -> str:
        """Say it in one line."""
        seconds = max(self.seconds, 1e-9)
        card = f" and {self.card / 1e9:.2f} GB of the card" if self.card else ""
        return (
            f"{self.actions / seconds:,.0f} actions/s, {self.tokens / seconds:,.0f} tokens/s, "
            f"{self.memory / 1e9:.2f} GB of memory{card}"
        )


def tokenize(tokenizer: PreTrainedTokenizerBase, actions: list[str]) -> Prompts:
    """Tokenize distinct actions inside the published prompt and sort them by length.

    Prompts of more than 128 tokens lose their end, as published; they are counted.

    Raises:
        ActivationError: an action is empty or occurs twice.
    """
    if len(set(actions)) != len(actions):
        raise ActivationError("actions must be distinct; annotations refer to them by their text")
    if any(not action.strip() for action in actions):
        raise ActivationError("an action is empty; clean the annotations first (notebook 01)")
    encoded = tokenizer(
        [TEMPLATE.format(action=action) for action in actions],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    rows = []
    truncated = 0
    for action, ids, offsets, special in zip(
        actions, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        truncated += len(ids) > MAX_TOKENS
        starts = np.array([start for start, _ in offsets])
        in_action = (starts < len(action)) & (np.array(special) == 0)
        rows.append((len(ids[:MAX_TOKENS]), action, np.array(ids[:MAX_TOKENS]), in_action[:MAX_TOKENS]))
    rows.sort(key=lambda row: row[:2])
    return Prompts([row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows], truncated)


def extract(model: TransformersModel, prompts: Prompts, store: ActivationStore, token_budget: int) -> Throughput:
    """Fill a store with the pooled residual streams of ``prompts``, skipping the chunks it already has.

    A part of the stage fills its share of the chunks; batches never cross a chunk, so the values are the same. Where
    the card runs out of memory, the chunk is begun again with half the token budget, and so are those behind it; the
    store records the budget of every chunk, so that a chunk made again is made of the same batches.

    Args:
        model: an open model.
        prompts: the store's rows.
        store: where [layer, row, width] goes, one array a pooling.
        token_budget: at most so many tokens, padding included, in one forward pass.

    Returns:
        What was read in this call, and how fast.

    Raises:
        ActivationError: an activation is not finite, and nothing of its chunk is written; or not even one prompt
            fits the card's memory.
        StoreError: another process is writing the store, or the disk is full.
    """
    started, actions, tokens = time.perf_counter(), 0, 0
    total = int(prompts.lengths.sum())
    with store.writing(), tqdm(total=total, desc="residual streams", unit="token", unit_scale=True) as progress:
        missing = set(store.missing_chunks())
        chunks = shares.share(store.chunks())
        finished = [rows for rows in store.chunks() if rows not in chunks or rows not in missing]
        progress.update(sum(_tokens(prompts, rows) for rows in finished))
        for rows in chunks:
            token_budget = store.token_budget(rows) or token_budget
            if rows not in missing:
                continue
            pooled, token_budget = _chunk(model, prompts, rows, token_budget, progress.write)
            store.write_chunk(rows, dict(zip(POOLINGS, pooled, strict=True)), token_budget)
            actions, tokens = actions + len(rows), tokens + _tokens(prompts, rows)
            progress.update(_tokens(prompts, rows))
            progress.set_postfix_str(str(_throughput(actions, tokens, started)))
    return _throughput(actions, tokens, started)


def _chunk(
    model: TransformersModel, prompts: Prompts, rows: range, token_budget: int, say: Callable[[str], None]
) -> tuple[np.ndarray, int]:
    """Return [pooling, layer, len(rows), width] and the token budget of its batches."""
    layers, width = len(models.decoder_layers(model)), models.width(model)
    pooled = np.empty((len(POOLINGS), layers, len(rows), width), dtype=np.float32)
    while True:
        parts = batches(prompts.lengths, rows, token_budget)
        try:
            for batch in parts:
                values = pooled_residuals(model, prompts, batch).cpu().numpy()
                _require_finite(values, prompts, batch)
                pooled[:, :, batch.start - rows.start : batch.stop - rows.start] = values
            return pooled, token_budget
        except torch.OutOfMemoryError as error:
            if all(len(batch) == 1 for batch in parts):
                raise ActivationError(
                    f"out of memory with a single prompt of {prompts.lengths[rows].max()} tokens. Use several cards "
                    "(device: auto), device: 8bit, 4bit or remote, or fewer layers (first_layers)."
                ) from error
        # Outside the handler: the error's traceback holds the tensors of the failed pass.
        say(f"out of memory: token budget lowered from {token_budget:,} to {token_budget // 2:,}")
        token_budget //= 2
        torch.cuda.empty_cache()


def _tokens(prompts: Prompts, rows: range) -> int:
    return int(prompts.lengths[rows.start : rows.stop].sum())


def _throughput(actions: int, tokens: int, started: float) -> Throughput:
    card = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Throughput(actions, tokens, time.perf_counter() - started, psutil.Process().memory_info().rss, card)


def batches(lengths: np.ndarray, rows: range, token_budget: int) -> list[range]:
    """Cut consecutive rows, sorted by length, into batches of at most ``token_budget`` tokens (at least one row).

    A batch ends earlier where one more row would make more than a tenth of it padding.
    Batches never cross ``rows``, so a chunk computed again after an interruption meets the same batches, and
    reduced precision, which depends on a batch's composition, gives the same values.
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


def pooled_residuals(model: TransformersModel, prompts: Prompts, rows: range) -> torch.Tensor:
    """Trace one batch and return float32 [pooling, layer, row, width] on one device, in ``POOLINGS`` order.

    Sums are taken in float32 whatever the model's dtype: one over a length is not a number of bfloat16. The pass stops
    behind the last block: the language-model head is not computed. Padding stands on the right, where a causal model
    cannot see it. Blocks may lie on several devices; what they pooled is brought together on that of the inputs.
    """
    inputs, weights = padded_batch(model, prompts, rows)
    layers = models.decoder_layers(model)
    with model.trace(inputs, use_cache=False, remote=models.remote(model)) as tracer:
        pooled = []
        for layer in layers:
            stream = layer.output
            pooled.append(torch.bmm(weights.to(stream.device), stream.float()).to(weights.device))
        stacked = torch.stack(pooled).permute(2, 0, 1, 3).contiguous().save()
        tracer.stop()
    return stacked


def norm_profile(model: TransformersModel, prompts: Prompts, rows: range, positions: int = 4) -> pd.DataFrame:
    """Return the norm of the residual stream by layer and token position, to see the first-token effect.

    Args:
        model: an open model.
        prompts: tokenized prompts.
        rows: the rows to look at, one batch.
        positions: how many leading positions to tell apart; the last token is the final entry.

    Returns:
        Columns ``layer``, ``position``, ``norm`` (mean over rows, model units), ``ci_low``, ``ci_high`` (95%, normal
        approximation over rows), ``n``. A row contributes to a leading position only if that is not its last token.
    """
    inputs, _ = padded_batch(model, prompts, rows)
    layers = models.decoder_layers(model)
    device = models.input_device(model)
    with model.trace(inputs, use_cache=False, remote=models.remote(model)) as tracer:
        norms = torch.stack([layer.output.float().norm(dim=-1).to(device) for layer in layers]).save()
        tracer.stop()
    values = norms.cpu().numpy()
    lengths = prompts.lengths[rows.start : rows.stop]
    names = ("first", "second", "third", "fourth", "fifth", "sixth")[:positions]
    at = {name: (np.flatnonzero(lengths > index + 1), index) for index, name in enumerate(names)}
    records = []
    for layer, of_layer in enumerate(values):
        samples = {name: of_layer[there, index] for name, (there, index) in at.items()}
        samples["last"] = of_layer[np.arange(len(lengths)), lengths - 1]
        for name, sample in samples.items():
            if len(sample) > 1:
                mean, half = sample.mean(), 1.96 * sample.std(ddof=1) / np.sqrt(len(sample))
                records.append((layer, name, mean, mean - half, mean + half, len(sample)))
    return pd.DataFrame(records, columns=["layer", "position", "norm", "ci_low", "ci_high", "n"])


def padded_batch(
    model: TransformersModel, prompts: Prompts, rows: range
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a batch's inputs, padded on the right, and its pooling weights [row, pooling, token]."""
    device = models.input_device(model)
    longest = max(len(prompts.tokens[row]) for row in rows)
    ids = np.full((len(rows), longest), model.tokenizer.pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    weights = np.zeros((len(rows), len(POOLINGS), longest), dtype=np.float32)
    for i, row in enumerate(rows):
        length = len(prompts.tokens[row])
        ids[i, :length] = prompts.tokens[row]
        mask[i, :length] = 1
        in_action = prompts.in_action[row]
        weights[i, 0, :length] = 1 / length
        weights[i, 1, 1:length] = 1 / max(length - 1, 1)
        weights[i, 2, :length] = in_action / max(in_action.sum(), 1)
        weights[i, 3, length - 1] = 1
    tensors = {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }
    return tensors, torch.from_numpy(weights).to(device)


def _require_finite(pooled: np.ndarray, prompts: Prompts, rows: range) -> None:
    finite = np.isfinite(pooled).all(axis=(0, 3))
    if not finite.all():
        layer, row = np.argwhere(~finite)[0]
        raise ActivationError(
            f"activations of layer {layer} are not finite for the action {prompts.actions[rows[row]]!r}. "
            "Use dtype: float32 or bfloat16 in the profile."
        )
