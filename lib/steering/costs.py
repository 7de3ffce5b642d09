"""What an arm costs: how much worse the model reads ordinary text under it, and how long its answers become.

A model can be made harmless by making it useless. Perplexity on sentences that have nothing to do with morals says
how much of the model an arm leaves in place, and at which strength it breaks.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from nnsight import TransformersModel
from tqdm.auto import tqdm

from lib.activations import models
from lib.run.files import resolve
from lib.stats import clustered_bootstrap
from lib.steering import generation
from lib.steering.answers import CONDITION
from lib.steering.interventions import Intervention, LoadArm
from lib.steering.loading import order
from lib.steering.prompts import Line, NonBlank, read_lines

KEYS = [*CONDITION, "features"]
"""Columns that tell apart the conditions under which text is read; replicates of a condition are taken together."""


class Sentence(Line):
    """One sentence of ordinary text."""

    language: Literal["zh", "en"]
    text: NonBlank


def read_ordinary_text(path: str | Path) -> pd.DataFrame:
    """Read sentences of ordinary text from JSON lines at ``path``, absolute or below the project root.

    Returns:
        One row per sentence: ``sentence`` (its number), ``language``, ``text``.

    Raises:
        TextFileError: see :func:`lib.steering.prompts.read_lines`.
    """
    sentences = read_lines(resolve(path), Sentence)
    sentences.insert(0, "sentence", range(1, len(sentences) + 1))
    return sentences


def text_losses(
    model: TransformersModel,
    conditions: Iterable[Intervention],
    *,
    load_arm: LoadArm,
    texts: pd.DataFrame,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Let the model read every sentence under every condition.

    Every position of the text is changed, whatever ``positions`` of an intervention say of answers. ``texts`` as
    :func:`read_ordinary_text` returns it; ``batch_size`` sentences are read together.

    Returns:
        One row per sentence, condition and replicate: ``arm, layer, strength, features, replicate, sentence, language``;
        ``tokens`` that were predicted (all but the first) and ``loss``, their summed negative log-likelihood in nats;
        ``relative_norm``, the mean of |x' - x| / |x| over all its tokens.
    """
    batches = []
    for start in range(0, len(texts), batch_size):
        part = texts.iloc[start : start + batch_size]
        rows = [ids[: models.context_length(model)] for ids in model.tokenizer(part["text"].tolist())["input_ids"]]
        batches.append((part[["sentence", "language"]], generation.padded(model, rows, "right")))
    # In an order that needs what an arm has at a layer once; the table is in the order that was asked for.
    tables: dict[Intervention, list[pd.DataFrame]] = {intervention: [] for intervention in conditions}
    for intervention in tqdm(sorted(tables, key=order), desc="ordinary text", unit="condition"):
        arm = load_arm(intervention)
        features = intervention.features if intervention.layers else "none"
        for part, inputs in batches:
            logits, change = generation.read_text(model, arm, inputs)
            ids, mask = inputs["input_ids"][:, 1:], inputs["attention_mask"][:, 1:].cpu()
            likelihood = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0].cpu()
            table = part.assign(**intervention.condition(), features=features, relative_norm=change)
            table["tokens"] = mask.sum(dim=1).tolist()
            table["loss"] = (-likelihood * mask).sum(dim=1).tolist()
            tables[intervention].append(table)
        # Otherwise two autoencoders would be in memory while the next is read.
        del arm
    frame = pd.concat([table for of_condition in tables.values() for table in of_condition], ignore_index=True)
    columns = [*KEYS, "replicate", "sentence", "language", "tokens", "loss", "relative_norm"]
    return frame[columns].astype({"layer": "Int64", "strength": float})


def perplexity(losses: pd.DataFrame, *, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Turn the losses of :func:`text_losses` into perplexities, by condition and language.

    Returns:
        ``arm, layer, strength, features``, ``language`` (zh, en, all), ``metric, value, ci_low, ci_high, n``
        (sentences). Metrics: ``perplexity`` (per token), ``perplexity_ratio`` to the baseline on the same sentences
        (1 costs nothing) and ``relative_norm``. Intervals (95%) resample sentences.
    """
    baseline = losses[losses["arm"] == "baseline"].set_index("sentence")["loss"]
    losses = losses.assign(excess=losses["loss"] - losses["sentence"].map(baseline))
    split = pd.concat([losses, losses.assign(language="all")], ignore_index=True)
    measures = {
        "perplexity": lambda w, of: np.exp(w @ of["loss"] / (w @ of["tokens"])),
        "perplexity_ratio": lambda w, of: np.exp(w @ of["excess"] / (w @ of["tokens"])),
        "relative_norm": lambda w, of: w @ of["relative_norm"] / w.sum(axis=1),
    }
    return _intervals(split, measures, clusters="sentence", draws=draws, seed=seed)


def answer_lengths(receipts: pd.DataFrame, *, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Summarise how long the answers are, by condition, from the table of :func:`lib.steering.receipts.lay_out`.

    Returns:
        The columns of :func:`perplexity`, ``language`` being ``answers``. Metrics: ``answer_tokens`` (mean, a thought
        included), ``unfinished_share`` (cut by the limit of tokens), ``empty_share`` and ``thought_unfinished_share``.
        Intervals (95%) resample prompts, each with all its replicates and samples.
    """
    features = receipts["features"].where(receipts["arm"] != "baseline", "none")
    measures = {
        "answer_tokens": lambda w, of: w @ of["tokens_generated"] / w.sum(axis=1),
        "unfinished_share": lambda w, of: w @ ~of["finished"] / w.sum(axis=1),
        "empty_share": lambda w, of: w @ of["empty"] / w.sum(axis=1),
        "thought_unfinished_share": lambda w, of: w @ of["thought_unfinished"] / w.sum(axis=1),
    }
    of_answers = receipts.assign(features=features, language="answers")
    return _intervals(of_answers, measures, clusters="id", draws=draws, seed=seed)


def _intervals(
    frame: pd.DataFrame,
    measures: Mapping[str, Callable[..., np.ndarray]],
    *,
    clusters: str,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Return every measure of every group with its interval; measures take row weights [draws + 1, rows] and columns."""
    rows = []
    for group, part in frame.groupby([*KEYS, "language"], sort=False, dropna=False):
        of = {name: column.to_numpy() for name, column in part.items()}
        for metric, measure in measures.items():
            interval = clustered_bootstrap(partial(measure, of=of), of[clusters], draws, seed)
            rows.append([*group, metric, *interval, part[clusters].nunique()])
    columns = [*KEYS, "language", "metric", "value", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})
