"""What an arm costs: how much worse the model reads ordinary text under it, and how long its answers become.

A model can be made harmless by making it useless. Perplexity on sentences that have nothing to do with morals says
how much of the model an arm leaves in place, and at which strength it breaks.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnsight import TransformersModel
from tqdm.auto import tqdm

from lib import models, runs, steering
from lib.flames import CONDITION
from lib.interventions import Arm, Intervention
from lib.statistics import clustered_bootstrap

LANGUAGES = ("zh", "en")
KEYS = [*CONDITION, "features"]
"""What tells apart the conditions under which text is read."""


class TextError(ValueError):
    """A file of ordinary text is not what it should be."""


def read_ordinary_text(path: str | Path) -> pd.DataFrame:
    """Read sentences of ordinary text.

    Args:
        path: JSON lines with the keys ``language`` (``zh`` or ``en``) and ``text``, absolute or below the project root.

    Returns:
        One row a sentence: ``sentence`` (its number), ``language``, ``text``.

    Raises:
        TextError: no such file, no sentences, a line that is not JSON, or a wrong key or language; says which line.
    """
    file = runs.resolve(path)
    if not file.is_file():
        raise TextError(f"file not found: {runs.short(file)}. Paths start at the project root.")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{file.name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TextError(f"{where}: not JSON ({error.msg}); the file should be JSON lines") from error
        if not isinstance(row, dict) or set(row) != {"language", "text"}:
            raise TextError(f"{where}: expected an object with the keys language and text")
        if row["language"] not in LANGUAGES or not str(row["text"]).strip():
            raise TextError(f"{where}: language should be one of {', '.join(LANGUAGES)} and text should not be empty")
        rows.append({"sentence": number, **row})
    if not rows:
        raise TextError(f"{file.name} holds no sentences")
    return pd.DataFrame(rows)


def text_losses(
    model: TransformersModel,
    conditions: Iterable[Intervention],
    load: Callable[[Intervention], Arm],
    texts: pd.DataFrame,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Let the model read every sentence under every condition.

    Args:
        model: as :func:`lib.models.load` returns it.
        conditions: what is done; every position of the text is changed, whatever ``positions`` says of answers.
        load: reads what a condition needs, when its turn comes; it is let go before the next.
        texts: as :func:`read_ordinary_text` returns it.
        batch_size: sentences read together.

    Returns:
        One row a sentence and condition: ``arm, layer, strength, features, sentence, language``; ``tokens`` that
        were predicted (all but the first) and ``loss``, their summed negative log-likelihood in nats;
        ``relative_norm``, the mean of |x' - x| / |x| over all its tokens.
    """
    batches = [_batch(model, texts.iloc[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
    # In an order that needs what an arm has at a layer once; the table is in the order that was asked for.
    rows: dict[Intervention, list[dict[str, Any]]] = {what: [] for what in conditions}
    places = list(dict.fromkeys((what.arm, what.layer) for what in rows))
    ordered = sorted(rows, key=lambda what: places.index((what.arm, what.layer)))
    for what in tqdm(ordered, desc="ordinary text", unit="condition"):
        arm = load(what)
        steered = what.layer is not None
        known = {"arm": what.arm, "layer": what.layer, "strength": what.strength if steered else None}
        known["features"] = what.features if steered else "none"
        for part, inputs in batches:
            logits, change = steering.read_text(model, arm, inputs)
            ids, mask = inputs["input_ids"][:, 1:], inputs["attention_mask"][:, 1:].cpu()
            likelihood = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0].cpu()
            seen = inputs["attention_mask"].cpu()
            found = {
                "sentence": part["sentence"].tolist(),
                "language": part["language"].tolist(),
                "tokens": mask.sum(dim=1).tolist(),
                "loss": (-likelihood * mask).sum(dim=1).tolist(),
                "relative_norm": ((change * seen).sum(dim=1) / seen.sum(dim=1)).tolist(),
            }
            each = zip(*found.values(), strict=True)
            rows[what] += [known | dict(zip(found, values, strict=True)) for values in each]
        # Otherwise two autoencoders would be in memory while the next is read.
        del arm
    flat = [row for of_condition in rows.values() for row in of_condition]
    return pd.DataFrame(flat).astype({"layer": "Int64", "strength": float})


def perplexity(losses: pd.DataFrame, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Turn the losses of :func:`text_losses` into perplexities, by condition and language.

    Returns:
        ``arm, layer, strength, features``, ``language`` (zh, en, all), ``metric, value, ci_low, ci_high, n``
        (sentences). Metrics: ``perplexity`` (per token), ``perplexity_ratio`` to the baseline on the same sentences
        (1 costs nothing) and ``relative_norm``. Intervals (95%) resample sentences.
    """
    split = pd.concat([losses, losses.assign(language="all")], ignore_index=True)
    baseline = losses[losses["arm"] == "baseline"].set_index("sentence")["loss"]
    rows = []
    for group, part in split.groupby([*KEYS, "language"], sort=False, dropna=False):
        loss, tokens = part["loss"].to_numpy(), part["tokens"].to_numpy()
        excess = loss - part["sentence"].map(baseline).to_numpy()
        norm = part["relative_norm"].to_numpy()
        known = dict(zip([*KEYS, "language"], group, strict=True))
        for metric, statistic in {
            "perplexity": lambda w, x=loss, n=tokens: np.exp(w @ x / (w @ n)),
            "perplexity_ratio": lambda w, x=excess, n=tokens: np.exp(w @ x / (w @ n)),
            "relative_norm": lambda w, x=norm: w @ x / w.sum(axis=1),
        }.items():
            value, low, high = clustered_bootstrap(statistic, part["sentence"].to_numpy(), draws, seed)
            rows.append(known | {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": len(part)})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def answer_lengths(receipts: pd.DataFrame, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Summarise how long the answers are, by condition.

    Args:
        receipts: as :func:`lib.receipts.lay_out` returns them.
        draws: resamples of prompts for the intervals.
        seed: of the bootstrap.

    Returns:
        The columns of :func:`perplexity`, ``language`` being ``answers``. Metrics: ``answer_tokens`` (mean) and
        ``truncated_share`` (answers that reached the limit).
    """
    rows = []
    for group, part in receipts.groupby(KEYS, sort=False, dropna=False):
        known = dict(zip(KEYS, group, strict=True)) | {"language": "answers"}
        if known["arm"] == "baseline":
            known["features"] = "none"
        for metric, column in {"answer_tokens": "tokens_generated", "truncated_share": "truncated"}.items():
            values = part[column].to_numpy(dtype=float)
            value, low, high = clustered_bootstrap(
                lambda w, x=values: w @ x / w.sum(axis=1), part["id"].to_numpy(), draws, seed
            )
            rows.append(known | {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": len(part)})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _batch(model: TransformersModel, part: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    rows = [ids[: models.context_length(model)] for ids in model.tokenizer(part["text"].tolist())["input_ids"]]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), model.tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    device = model._module.device
    return part, {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
