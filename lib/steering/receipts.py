"""Receipts: what was seen in the residual stream while an answer was written, and what must have been seen there.

An edit at the first step only leaves fluent text and no effect. What counts is therefore not that an edit was made but that
the next block was given the stream that the edit wrote, at every step, position and layer, and that this is another stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from lib.run.files import CompanionError
from lib.steering.answers import CONDITION, DRAWS
from lib.steering.interventions import SteeringError


class ReceiptError(CompanionError):
    """A receipt does not show that the stream was changed at every step, position and layer."""


@dataclass
class Trail:
    """What was seen at each step and layer that was steered: positions that took the edit, their summed relative norms and
    active latents, [3, batch] each.

    ``layers`` is how many are steered at once, ``changes`` whether the edit must leave another stream (not at strength 0).
    """

    layers: int
    changes: bool = True
    step: list[int] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def add(
        self, step: int, *, before: Tensor, written: Tensor, after: Tensor, feature_acts: Tensor, mask: Tensor
    ) -> None:
        """Add one layer of one step.

        ``before`` is the stream [batch, token, d_in] that the block wrote, ``written`` what the edit put in its place, and
        ``after`` what the next block read; ``feature_acts`` [batch, token, d_sae]; ``mask`` [batch, token] of real tokens.
        """
        if before.ndim != 3 or not before.shape == written.shape == after.shape:
            raise SteeringError(
                f"stream should be [batch, token, d_in]; was {before.shape}, {written.shape}, then {after.shape}"
            )
        after, mask = after.to(before.device), mask.to(before.device)
        took = (after == written).all(dim=-1)
        if self.changes:
            took &= (after != before).any(dim=-1)
        relative = (after - before).float().norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
        self.step.append(step)
        of_position = (took * mask, relative * mask, (feature_acts > 0).sum(dim=-1) * mask)
        # float32 holds every count of positions exactly; a float64 does not exist on every kind of GPU.
        self.seen.append(torch.stack([values.sum(dim=1).float() for values in of_position]))

    def of(self, steps: list[int]) -> list[dict[str, float]]:
        """Return the fields of every answer's receipt that tell what was seen in its first ``steps[row]`` steps.

        A step or position counts as touched if it was at every layer; norms and latents are means over the layers.
        """
        names = ("steps_touched", "positions_touched", "relative_norm", "active_latents")
        if not self.step:
            return [dict.fromkeys(names, 0) for _ in steps]
        # One transfer for the whole batch: on a GPU a transfer per step would wait for every step.
        seen = torch.stack([values.to(self.seen[-1].device) for values in self.seen]).cpu().double()
        seen = seen.unflatten(0, (-1, self.layers))
        numbers, fields = torch.tensor(self.step[:: self.layers]), []
        for row, count in enumerate(steps):
            positions, norms, active = seen[numbers < count, :, :, row].unbind(dim=-1)
            touched = positions.amin(dim=1)
            means = [round(float(values.sum() / positions.sum().clamp_min(1)), 6) for values in (norms, active)]
            fields.append(dict(zip(names, (int((touched > 0).sum()), int(touched.sum()), *means), strict=True)))
        return fields


class Receipt(BaseModel):
    """How one answer was made, and what was seen in the stream meanwhile.

    One that does not show every step and position touched that its ``positions`` name raises :class:`ReceiptError`: step 0
    reads the prompt, each later one a generated token; nothing is touched for the baseline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    layers: list[int] = Field(description="steered at once")
    strength: float
    mode: str
    features: str
    positions: Literal["all", "prompt", "generated"]
    replicate: int = Field(description="which draw of an arm that is drawn at random")
    dtype: str = Field(description="number format of the model")
    steps: int = Field(description="forward passes that wrote this answer")
    steps_touched: int
    positions_touched: int = Field(description="that the next block read as the edit wrote them, at every layer")
    relative_norm: float = Field(description="mean of |x' - x| / |x| over the positions touched")
    active_latents: float = Field(description="mean over the positions touched")
    kl_first_step: float = Field(description="divergence of the first token in nats, from steered to unsteered")
    seed: int
    decoding: dict[str, int | float] = Field(description="as it acted, with the model's own defaults where those apply")
    prompt_format: str
    prompt_tokens: int
    prompt_tokens_dropped: int = Field(description="cut off on the left because the context is too short")
    tokens_generated: int = Field(description="of thought and answer")

    @model_validator(mode="after")
    def _shows_every_touch(self) -> "Receipt":
        later, prompt = self.steps - 1, self.prompt_tokens
        due = {"all": (self.steps, prompt + later), "prompt": (1, prompt), "generated": (later, later)}[self.positions]
        steps, positions = (0, 0) if self.arm == "baseline" else due
        if (self.steps_touched, self.positions_touched) != (steps, positions):
            raise ReceiptError(
                f"arm {self.arm!r} touched {self.steps_touched} steps and {self.positions_touched} positions; "
                f"it should be {steps} and {positions}: the edit did not take, or was made where none should be"
            )
        return self


def lay_out(answers: pd.DataFrame) -> pd.DataFrame:
    """Check every receipt of :func:`lib.steering.answers.read_answers` and lay them out as a table.

    Returns:
        One row per answer: ``id, dimension, arm, layer, strength, replicate, sample``; ``finished``; ``empty``, nothing but
        blanks; ``thought``, whether it thought first, and ``thought_unfinished``; and the receipt's other fields.

    Raises:
        ReceiptError: one lacks a field or does not show every step and position touched.
    """
    try:
        receipts = [Receipt.model_validate(receipt).model_dump() for receipt in answers["receipt"]]
    except ValidationError as error:
        raise ReceiptError(f"not a receipt; run notebook 07_steering again: {error}") from None
    numbers = pd.DataFrame(receipts).drop(columns=["arm", "layers", "strength", "replicate", "decoding"])
    table = answers[["id", "dimension", *CONDITION, *DRAWS, "finished"]].reset_index(drop=True)
    empty, thought = answers["response"].str.strip().eq(""), answers["thought"].notna()
    kinds = {"empty": empty, "thought": thought, "thought_unfinished": thought & empty & ~answers["finished"]}
    return pd.concat([table.assign(**{name: kind.to_numpy() for name, kind in kinds.items()}), numbers], axis=1)


def summary(receipts: pd.DataFrame) -> pd.DataFrame:
    """Summarise what :func:`lay_out` returns: one row per condition, counts as sums and measures as means."""
    groups = receipts.groupby(CONDITION, sort=False, dropna=False)
    counts = ["steps", "steps_touched", "positions_touched", "prompt_tokens_dropped"]
    counts += ["finished", "empty", "thought", "thought_unfinished"]
    means = ["relative_norm", "active_latents", "kl_first_step"]
    return pd.concat(
        [groups.size().rename("answers"), groups[counts].sum(), groups[means].mean()], axis=1
    ).reset_index()


def by_features(answers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Lay side by side how the same conditions answered the same prompts under several settings (setting -> answers).

    Returns:
        One row per condition and setting: ``arm, layer, strength, features, answers``; ``text_differs``, the share of
        answers with another text than under the first setting; and the means of ``relative_norm``, ``active_latents``,
        ``kl_first_step`` and ``tokens_generated``.
    """
    tables = []
    for features, of_setting in answers.items():
        tables.append(lay_out(of_setting).assign(features=features, text=of_setting["response"].to_numpy()))
    table = pd.concat(tables, ignore_index=True)
    first = table.groupby(["id", *CONDITION, *DRAWS], dropna=False)["text"].transform("first")
    seen = table.assign(text_differs=table["text"] != first).groupby([*CONDITION, "features"], sort=False, dropna=False)
    means = ["text_differs", "relative_norm", "active_latents", "kl_first_step", "tokens_generated"]
    table = pd.concat([seen.size().rename("answers"), seen[means].mean()], axis=1).reset_index()
    return table.sort_values(CONDITION, kind="stable", ignore_index=True)
