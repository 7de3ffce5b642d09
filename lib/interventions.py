"""Interventions as data: what is put into the residual stream, behind which block, at which positions, how strongly.

Nothing here knows how a model is run; :mod:`lib.steering` applies these at every step of generation.
"""

import gc
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib import runs
from lib.sae import export
from lib.sae.model import SparseAutoencoder
from lib.store import ActivationStore

FOLDERS = {
    "untuned": "pretrained",
    "aligned": "aligned",
    "shuffled": "controls/shuffled",
    "random": "controls/random",
    "random-weights": "controls/random_weights",
}
"""Arm -> the folder of its autoencoder within a layer's; the untuned one is notebook 05's, the others 06's."""

DIRECTIONS = ("random-direction", "mean-difference")
"""Arms that add one direction, as long at every position as the aligned arm's change there."""

Positions = Literal["all", "prompt", "generated"]


class SteeringError(ValueError):
    """An intervention or its inputs make no sense; the message says why."""


@dataclass(frozen=True)
class Intervention:
    """What is done to the residual stream.

    Attributes:
        arm: ``baseline`` (nothing), or whose reconstruction is used: ``aligned``, ``untuned`` (before
            alignment), ``shuffled`` (the same latents aligned to shuffled labels), ``random`` (as many
            latents drawn at random, aligned to the true labels), ``random-weights`` (an autoencoder that was never
            trained, then aligned like the others: what alignment does without learned features), ``random-sae``
            (one that was neither trained nor aligned: what any weights of this shape do); or a direction with
            the norm of the aligned arm's change: ``random-direction``, ``mean-difference`` (mean of virtue minus
            mean of vice, a contrastive steering vector).
        layer: 0-based index of the decoder block whose output is changed; None for the baseline.
        strength: the paper's s.
        mode: ``add`` is the published x' = x + s (SAE(x) - x); ``blend`` is the same formula held to 0 <= s
            <= 1, a mixture of stream and reconstruction; ``replace`` puts the reconstruction in place of the
            stream (s = 1).
        features: ``all`` latents, as the released recipe does, or the ``selected`` (tuned) ones only, the
            others being set to zero before decoding.
        positions: ``all`` tokens, prompt and answer (published), only those of the ``prompt``, or only the
            ``generated`` ones once they are read back.

    Source: paper, section on steering, and released recipe.
    """

    arm: str
    layer: int | None = None
    strength: float = 1.0
    mode: Literal["add", "replace", "blend"] = "add"
    features: Literal["all", "selected"] = "all"
    positions: Positions = "all"

    def __post_init__(self) -> None:
        if (self.arm == "baseline") != (self.layer is None):
            raise SteeringError(f"arm {self.arm!r} with layer {self.layer}: all arms but the baseline need a layer")
        if self.mode == "blend" and not 0 <= self.strength <= 1:
            raise SteeringError(f"mode 'blend' needs a strength from 0 to 1, got {self.strength}")
        if self.mode == "replace" and self.strength != 1:
            raise SteeringError(f"mode 'replace' has no strength other than 1, got {self.strength}; use 'blend'")

    def applies(self, step: int) -> bool:
        """Say whether the stream is changed at a step of generation; step 0 reads the prompt."""
        return self.positions == "all" or (self.positions == "prompt") == (step == 0)


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
    """An intervention with the autoencoder it needs, the indices of the selected latents, and its direction.

    For the arms of ``DIRECTIONS`` the autoencoder is the aligned one: it says how long the change is, and
    ``direction`` [width], of length 1, where it points.
    """

    intervention: Intervention
    autoencoder: Autoencoder | None = None
    selected: Tensor | None = None
    direction: Tensor | None = None

    def __post_init__(self) -> None:
        if self.intervention.layer is not None and self.autoencoder is None:
            raise SteeringError(f"arm {self.intervention.arm!r} has no autoencoder")
        if self.intervention.features == "selected" and self.intervention.layer is not None and self.selected is None:
            raise SteeringError("features 'selected' needs the indices of the selected latents")
        if (self.intervention.arm in DIRECTIONS) != (self.direction is not None):
            raise SteeringError(f"arm {self.intervention.arm!r}: the arms {', '.join(DIRECTIONS)} need a direction")


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
    if arm.direction is not None:
        reconstruction = x + (reconstruction - x).norm(dim=-1, keepdim=True) * arm.direction
    changed = reconstruction if what.mode == "replace" else x + what.strength * (reconstruction - x)
    return changed.to(stream.dtype), latents


def conditions(arms: list[str], layers: list[int], strengths: list[float], **how: Any) -> list[Intervention]:
    """List interventions: the baseline once, if asked for, and every other arm at every layer and strength.

    ``how`` holds what they share: ``mode, features, positions``.
    """
    steered = [arm for arm in arms if arm != "baseline"]
    baseline = [Intervention("baseline")] * ("baseline" in arms)
    return baseline + [
        Intervention(arm, layer, strength, **how) for layer in layers for strength in strengths for arm in steered
    ]


def mean_difference(x: np.ndarray, polarity: np.ndarray) -> Tensor:
    """Return the direction from vice to virtue, float32 [width] of length 1.

    Args:
        x: raw pooled residual streams of one layer, [rows, width].
        polarity: ``virtue``, ``vice`` or ``neutral``, [rows].

    Raises:
        SteeringError: one of the poles has no row, or the two means are the same.

    Source: contrastive steering vectors (Rimsky et al., ACL 2024), here from whole actions instead of pairs.
    """
    poles = [x[polarity == pole] for pole in ("virtue", "vice")]
    if not all(len(rows) for rows in poles):
        raise SteeringError("the arm 'mean-difference' needs rows of both virtue and vice in the training split")
    difference = poles[0].mean(axis=0, dtype=np.float64) - poles[1].mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(difference)
    if not length > 0:
        raise SteeringError("virtue and vice have the same mean, which gives no direction")
    return torch.from_numpy(difference / length).float()


def contrasts(
    store: ActivationStore, annotations: pd.DataFrame, exploded: pd.DataFrame, layers: list[int], pooling: str
) -> dict[int, Tensor]:
    """Return the :func:`mean_difference` of every layer, from the exploded rows of the grouped training split.

    Args:
        store: pooled residual streams of the model that shall be steered.
        annotations: with ``id`` and ``action``.
        exploded: with ``id, polarity, split_grouped``.
        layers: indices of decoder blocks.
        pooling: name of the pooling, the autoencoders' own.
    """
    rows = exploded[exploded["split_grouped"] == "train"].merge(annotations[["id", "action"]], on="id")
    places, polarity = store.rows_of(rows["action"]), rows["polarity"].to_numpy()
    return {layer: mean_difference(store.read(layer, pooling, places), polarity) for layer in layers}


def random_direction(width: int, seed: int) -> Tensor:
    """Return a direction drawn uniformly, float32 [width] of length 1."""
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def load_arm(
    what: Intervention,
    autoencoders: Path,
    alignment: Path,
    width: int,
    device: str = "cpu",
    contrast: dict[int, Tensor] | None = None,
    seed: int = 0,
    model: str | None = None,
) -> Arm:
    """Read or draw what an intervention needs.

    Args:
        what: the intervention; the baseline needs nothing.
        autoencoders: directory of notebook 05, ``sae/<model>``.
        alignment: directory of notebook 06, ``alignment/<model>``.
        width: of the model's residual stream.
        device: where the model runs.
        contrast: layer -> direction, as :func:`contrasts` returns it, for the arm ``mean-difference``.
        seed: of the random direction and of the untrained autoencoder.
        model: short name of the model, if it shall be compared with the one that the autoencoder was made for.

    Raises:
        lib.sae.export.FormatError: the autoencoder is not there, cannot be read or is of another width.
        SteeringError: the autoencoder is of another model or layer; the arm ``mean-difference`` has no direction.
    """
    if what.layer is None:
        return Arm(what)
    layer = f"layer_{what.layer:02d}"
    own = (autoencoders if what.arm == "untuned" else alignment) / layer / FOLDERS.get(what.arm, FOLDERS["aligned"])
    autoencoder = export.load(own, width)
    _refuse_another(own, model, what.layer)
    if what.arm == "random-sae":
        autoencoder = SparseAutoencoder(autoencoder.width, autoencoder.latents, seed)
    # The untuned arm has no tuned latents of its own: its counterpart of the selection is the aligned arm's.
    chosen = alignment / layer / FOLDERS["aligned"] if what.arm == "untuned" else own
    selected = torch.tensor(export.metadata(chosen)["tuned_latents"], dtype=torch.long, device=device)
    drawn, found = random_direction(width, seed), (contrast or {}).get(what.layer)
    direction = {"random-direction": drawn, "mean-difference": found}.get(what.arm)
    moved = None if direction is None else direction.to(device)
    return Arm(what, autoencoder.to(device).requires_grad_(False), selected, moved)


class Loader:
    """Reads what interventions need, one after the other, and holds what the last one needed.

    The autoencoder before is let go before another is read, so that one is in memory at a time (two while an untrained one
    is drawn), however many arms and layers there are. Strengths and features of an arm at a layer share theirs.
    """

    def __init__(self, *places: Any, **options: Any) -> None:
        """Take what :func:`load_arm` takes behind the intervention."""
        self._places, self._options = places, options
        self._held: Arm | None = None

    def __call__(self, what: Intervention) -> Arm:
        """Return the arm of an intervention."""
        held = self._held
        if held is not None and (held.intervention.arm, held.intervention.layer) == (what.arm, what.layer):
            return replace(held, intervention=what)
        released = None if held is None or held.autoencoder is None else weakref.ref(held.autoencoder)
        self._held = held = None
        # nnsight's traces leave cycles that hold what they used. The youngest first: a full collection takes tenths of a
        # second.
        for generation in range(3):
            if released is None or released() is None:
                break
            gc.collect(generation)
        self._held = load_arm(what, *self._places, **self._options)
        return self._held


def _refuse_another(folder: Path, model: str | None, layer: int) -> None:
    about = export.metadata(folder)
    named, hook = about.get("model_name", model), about.get("hook_name", f".{layer}")
    if model is not None and named != model:
        raise SteeringError(
            f"{runs.short(folder)} belongs to another model: it was made for {named!r}, and {model!r} shall be steered"
        )
    if not hook.endswith(f".{layer}"):
        raise SteeringError(f"{runs.short(folder)} was made for {hook}, not for layer {layer}")
