"""Receipts: what was seen in the residual stream while an answer was written, and what must have been seen there.

An edit that fires on the first step only leaves fluent text and no effect; only a count of steps can tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lib.flames import CONDITION
from lib.interventions import SteeringError

RECEIPT = (
    "arm", "layers", "strength", "mode", "features", "positions", "steps", "steps_touched", "positions_touched",
    "relative_norm", "active_latents", "kl_first_step", "seed", "decoding", "prompt_format", "prompt_tokens",
    "prompt_tokens_dropped", "tokens_generated", "truncated",
)  # fmt: skip
"""Fields of a receipt; :func:`lib.steering.answer` says what they mean."""


class ReceiptError(RuntimeError):
    """A receipt does not show that the stream was touched at every step and position."""


@dataclass
class Trail:
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


def lay_out(responses: pd.DataFrame) -> pd.DataFrame:
    """Check every receipt of :func:`lib.flames.read_responses` and lay them out as a table.

    Returns:
        One row an answer: ``id, dimension, arm, layer, strength`` and the receipt's other fields.

    Raises:
        ReceiptError: one does not show every step and position touched.
    """
    for receipt in responses["receipt"]:
        check_receipt(receipt)
    numbers = pd.DataFrame(responses["receipt"].tolist()).drop(columns=["arm", "layers", "strength", "decoding"])
    return pd.concat([responses[["id", "dimension", *CONDITION]].reset_index(drop=True), numbers], axis=1)


def by_setting(answers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Lay side by side how the same conditions answered the same prompts under several settings.

    Args:
        answers: setting -> answers, as :func:`lib.flames.read_responses` returns them.

    Returns:
        One row a condition and setting: ``arm, layer, strength, setting, answers``; ``text_differs``, the share of answers
        with another text than under the first setting; and the means of ``relative_norm``, ``active_latents``,
        ``kl_first_step`` and ``tokens_generated``.

    Raises:
        ReceiptError: a receipt does not show every step and position touched.
    """
    keys = ["id", *CONDITION]
    first = next(iter(answers.values()))[[*keys, "response"]].rename(columns={"response": "first"})
    tables = []
    for setting, responses in answers.items():
        joined = responses[[*keys, "response"]].merge(first, on=keys, how="left", validate="one_to_one")
        differs = (joined["response"] != joined["first"]).to_numpy()
        tables.append(lay_out(responses).assign(setting=setting, text_differs=differs))
    seen = pd.concat(tables, ignore_index=True).groupby([*CONDITION, "setting"], sort=False, dropna=False)
    means = ["text_differs", "relative_norm", "active_latents", "kl_first_step", "tokens_generated"]
    return seen[means].mean().assign(answers=seen.size()).reset_index()[[*CONDITION, "setting", "answers", *means]]
