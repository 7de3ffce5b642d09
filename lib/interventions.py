"""Interventions as data: which autoencoder is put into the residual stream, behind which block, and how strongly.

Nothing here knows how a model is run; :mod:`lib.steering` applies these at every step of generation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from lib.sae import export

FOLDERS = {
    "untuned": "pretrained",
    "aligned": "aligned",
    "shuffled": "controls/shuffled",
    "random": "controls/random",
}
"""Arm -> the folder of its autoencoder within a layer's; the untuned one is notebook 05's, the others 06's."""


class SteeringError(ValueError):
    """An intervention or its inputs make no sense; the message says why."""


@dataclass(frozen=True)
class Intervention:
    """What is done to the residual stream.

    Attributes:
        arm: ``baseline`` (nothing), or whose reconstruction is used: ``aligned``, ``untuned`` (before
            alignment), ``shuffled`` (the same latents aligned to shuffled labels), ``random`` (as many
            latents drawn at random, aligned to the true labels).
        layer: 0-based index of the decoder block whose output is changed; None for the baseline.
        strength: the paper's s.
        mode: ``add`` is the published x' = x + s (SAE(x) - x); ``blend`` is the same formula held to 0 <= s
            <= 1, a mixture of stream and reconstruction; ``replace`` puts the reconstruction in place of the
            stream (s = 1).
        features: ``all`` latents, as the released recipe does, or the ``selected`` (tuned) ones only, the
            others being set to zero before decoding.

    Source: paper, section on steering, and released recipe.
    """

    arm: str
    layer: int | None = None
    strength: float = 1.0
    mode: Literal["add", "replace", "blend"] = "add"
    features: Literal["all", "selected"] = "all"

    def __post_init__(self) -> None:
        if (self.arm == "baseline") != (self.layer is None):
            raise SteeringError(f"arm {self.arm!r} with layer {self.layer}: all arms but the baseline need a layer")
        if self.mode == "blend" and not 0 <= self.strength <= 1:
            raise SteeringError(f"mode 'blend' needs a strength from 0 to 1, got {self.strength}")
        if self.mode == "replace" and self.strength != 1:
            raise SteeringError(f"mode 'replace' has no strength other than 1, got {self.strength}; use 'blend'")


class Autoencoder(Protocol):
    """What steering needs of an autoencoder: raw residual stream in, raw residual stream out."""

    W_enc: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [..., latents] of x [..., width]."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction [..., width] of z [..., latents]."""
        ...


@dataclass(frozen=True)
class Arm:
    """An intervention with the autoencoder it needs and the indices of the selected latents."""

    intervention: Intervention
    autoencoder: Autoencoder | None = None
    selected: Tensor | None = None

    def __post_init__(self) -> None:
        if self.intervention.layer is not None and self.autoencoder is None:
            raise SteeringError(f"arm {self.intervention.arm!r} has no autoencoder")
        if self.intervention.features == "selected" and self.intervention.layer is not None and self.selected is None:
            raise SteeringError("features 'selected' needs the indices of the selected latents")


BASELINE = Arm(Intervention("baseline"))
"""The model as it is."""


def steer(stream: Tensor, arm: Arm) -> tuple[Tensor, Tensor]:
    """Apply an arm to the residual stream [batch, token, width].

    Returns:
        The changed stream, of the same shape and dtype, and the latents [batch, token, latents] it was made
        from.
    """
    what, autoencoder = arm.intervention, arm.autoencoder
    assert autoencoder is not None
    x = stream.to(autoencoder.W_enc.dtype)
    latents = autoencoder.encode(x)
    if what.features == "selected":
        kept = torch.zeros(latents.shape[-1], dtype=latents.dtype, device=latents.device)
        kept[arm.selected] = 1.0
        latents = latents * kept
    reconstruction = autoencoder.decode(latents)
    changed = reconstruction if what.mode == "replace" else x + what.strength * (reconstruction - x)
    return changed.to(stream.dtype), latents


def load_arm(what: Intervention, autoencoders: Path, alignment: Path, width: int, device: str = "cpu") -> Arm:
    """Read the autoencoder that an intervention needs.

    Args:
        what: the intervention; the baseline needs none.
        autoencoders: directory of notebook 05, ``sae/<model>``.
        alignment: directory of notebook 06, ``alignment/<model>``.
        width: of the model's residual stream.
        device: where the model runs.

    Raises:
        lib.sae.export.FormatError: the autoencoder is not there, cannot be read or is of another width.
    """
    if what.layer is None:
        return Arm(what)
    layer = f"layer_{what.layer:02d}"
    folder = (autoencoders if what.arm == "untuned" else alignment) / layer / FOLDERS[what.arm]
    autoencoder = export.load(folder, width).to(device).requires_grad_(False)
    # The untuned arm has no tuned latents of its own: its counterpart of the selection is the aligned arm's.
    chosen = alignment / layer / FOLDERS["aligned"] if what.arm == "untuned" else folder
    selected = torch.tensor(export.metadata(chosen)["tuned_latents"], dtype=torch.long, device=device)
    return Arm(what, autoencoder, selected)
