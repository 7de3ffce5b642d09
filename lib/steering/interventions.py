"""Interventions as data: what is put into the residual stream, after which layers, at which tokens, how strongly.

Nothing here knows how a model is run; :mod:`lib.steering.generation` applies interventions at every step of generation, and
:mod:`lib.steering.loading` reads what they need.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.activations.store import ActivationStore
from lib.run.files import CompanionError
from lib.run.keys import DRAWN_ARMS, ArmName, Pooling
from lib.run.parameters import SteeringParameters
from lib.run.rules import layer_groups
from lib.sae.model import SparseAutoencoder

DIRECTED = ("random-direction", "mean-difference", "random-sae")
"""Arms whose change points elsewhere, but is as long at every position as the aligned arm's change there."""


class SteeringError(CompanionError):
    """An intervention or its inputs make no sense; the message says why."""


@dataclass(frozen=True)
class Intervention:
    """What is done to the residual stream.

    Attributes:
        arm: ``baseline`` (nothing); or whose reconstruction is used: an arm of :mod:`lib.alignment.arms`; or what points
            where a change as long as the aligned arm's goes: ``random-direction``, ``mean-difference`` (mean of virtue
            minus mean of vice, a contrastive steering vector), ``random-sae`` (an autoencoder that nothing trained).
        layers: 0-based indices of the decoder blocks whose outputs are changed, ascending; none for the baseline.
        strength: the paper's s.
        mode: ``add`` is the published x' = x + s (SAE(x) - x); ``blend`` is the same formula held to 0 <= s
            <= 1, a mixture of stream and reconstruction; ``replace`` puts the reconstruction in place of the
            stream (s = 1).
        features: ``all`` latents, as the released recipe does, or the ``selected`` (tuned) ones only, the
            others being set to zero before decoding.
        positions: ``all`` tokens, prompt and answer (published), only those of the ``prompt``, or only the
            ``generated`` ones once they are read back.
        replicate: which draw of an arm of :data:`lib.run.parameters.DRAWN_ARMS`.

    Source: paper, section on steering, and released recipe.
    """

    arm: ArmName
    layers: tuple[int, ...] = ()
    strength: float = 1.0
    mode: Literal["add", "replace", "blend"] = "add"
    features: Literal["all", "selected"] = "all"
    positions: Literal["all", "prompt", "generated"] = "all"
    replicate: int = 0

    def __post_init__(self) -> None:
        if (self.arm == "baseline") != (not self.layers):
            raise SteeringError(f"arm {self.arm!r} at layers {self.layers}: all arms but the baseline need a layer")
        if list(self.layers) != sorted(set(self.layers)):
            raise SteeringError(f"layers should ascend, each once, got {self.layers}")
        if self.mode == "blend" and not 0 <= self.strength <= 1:
            raise SteeringError(f"mode 'blend' needs a strength from 0 to 1, got {self.strength}")
        if self.mode == "replace" and self.strength != 1:
            raise SteeringError(f"mode 'replace' has no strength other than 1, got {self.strength}; use 'blend'")

    def steps(self) -> slice:
        """Return the steps of generation at which the stream is changed; step 0 reads the prompt."""
        if not self.layers:
            return slice(0, 0)
        return {"all": slice(0, None), "prompt": slice(0, 1), "generated": slice(1, None)}[self.positions]

    def condition(self) -> dict[str, Any]:
        """Return the values of :data:`lib.steering.answers.CONDITION` and ``replicate``."""
        layer, strength = (self.layers[0] if len(self.layers) == 1 else None), self.strength if self.layers else None
        return {"arm": self.arm, "layer": layer, "strength": strength, "replicate": self.replicate}


@dataclass(frozen=True)
class Edit:
    """What an arm needs at one layer: an autoencoder, the indices of its selected latents, and what points elsewhere.

    For the arms of ``DIRECTED`` the autoencoder is the aligned one: it says how long the change is. Where it points is said
    by ``direction``, a vector [d_in] of length 1 or another autoencoder of the same shape.
    """

    autoencoder: SparseAutoencoder
    selected: Tensor | None = None
    direction: Tensor | SparseAutoencoder | None = None


@dataclass(frozen=True)
class Arm:
    """An intervention with the edit of each of its layers."""

    intervention: Intervention
    edits: Mapping[int, Edit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen, edits = self.intervention, self.edits.values()
        if set(self.edits) != set(chosen.layers):
            raise SteeringError(
                f"arm {chosen.arm!r} steers layers {chosen.layers} and has edits of {tuple(self.edits)}"
            )
        if chosen.features == "selected" and any(edit.selected is None for edit in edits):
            raise SteeringError("features 'selected' needs the indices of the selected latents")
        if any((chosen.arm in DIRECTED) != (edit.direction is not None) for edit in edits):
            raise SteeringError(
                f"arm {chosen.arm!r}: the arms {', '.join(DIRECTED)} need a direction, others have none"
            )


LoadArm = Callable[[Intervention], Arm]
"""Reads what an intervention needs when its turn comes, such as a :class:`lib.steering.loading.ArmLoader`."""

BASELINE = Arm(Intervention("baseline"))
"""The model as it is."""


def steer(stream: Tensor, edit: Edit, intervention: Intervention) -> tuple[Tensor, Tensor]:
    """Apply one layer's edit to the residual stream [batch, token, d_in] after it.

    An autoencoder that nothing trained makes the stream several times as long; as a direction it therefore counts without what
    lies along the stream at every position, which would only rescale it. Where none of its latents is active, its first
    one gives the direction.

    Returns:
        The changed stream, of the same shape and dtype, and the feature activations [batch, token, d_sae] it was
        made from.
    """
    x = stream.to(edit.autoencoder.W_enc.dtype)
    reconstruction, feature_acts = _reconstruct(x, edit.autoencoder, edit.selected, intervention)
    change = reconstruction - x
    if edit.direction is not None:
        points = edit.direction
        if isinstance(points, torch.nn.Module):
            other, _ = _reconstruct(x, points, edit.selected, intervention)
            along = (x * other).sum(dim=-1, keepdim=True) / (x**2).sum(dim=-1, keepdim=True).clamp_min(1e-12)
            own = other - along * x
            silent = own.norm(dim=-1, keepdim=True) <= 1e-6 * x.norm(dim=-1, keepdim=True)
            points = torch.nn.functional.normalize(torch.where(silent, points.W_dec[0], own), dim=-1)
        change = change.norm(dim=-1, keepdim=True) * points
    return (x + intervention.strength * change).to(stream.dtype), feature_acts


def _reconstruct(
    x: Tensor, autoencoder: SparseAutoencoder, selected: Tensor | None, intervention: Intervention
) -> tuple[Tensor, Tensor]:
    feature_acts = autoencoder.encode(x)
    if intervention.features == "selected":
        kept = torch.zeros(feature_acts.shape[-1], dtype=feature_acts.dtype, device=feature_acts.device)
        kept[selected] = 1.0
        feature_acts = feature_acts * kept
    return autoencoder.decode(feature_acts), feature_acts


# ------------------------------------------------------------------------------ what stage 07 does


def conditions(
    parameters: SteeringParameters,
    arms: Collection[ArmName],
    *,
    strengths: list[float],
    features: Literal["all", "selected"],
) -> list[Intervention]:
    """List interventions: the baseline once, if asked for, and every other arm at every group of layers and strength.

    Groups of layers are :func:`lib.run.rules.layer_groups`. Arms drawn at random come once per replicate.
    """
    drawn = [
        (arm, replicate)
        for arm in arms
        if arm != "baseline"
        for replicate in range(parameters.replicates if arm in DRAWN_ARMS else 1)
    ]
    return [Intervention("baseline")] * ("baseline" in arms) + [
        Intervention(arm, layers, strength, parameters.mode, features, parameters.positions, replicate)
        for layers, (arm, replicate), strength in product(layer_groups(parameters), drawn, strengths)
    ]


def to_answer(parameters: SteeringParameters) -> dict[str, list[Intervention]]:
    """List the interventions under which stage 07 answers prompts: folder below its directory -> interventions.

    ``.`` holds all prompts at the main strength. Few prompts are answered in ``sweep``, at every strength, and in
    ``features/all`` and ``features/selected``, by the arms *aligned* and *untuned* with either choice of latents.
    """
    main, own = [parameters.strength], parameters.features
    listed = {".": conditions(parameters, parameters.arms, strengths=main, features=own)}
    if parameters.sweep_prompts:
        swept = parameters.sweep_strengths
        listed["sweep"] = conditions(parameters, parameters.sweep_arms, strengths=swept, features=own)
        both = [arm for arm in ("aligned", "untuned") if arm in parameters.arms]
        for name in ("all", "selected"):
            listed[f"features/{name}"] = conditions(parameters, both, strengths=main, features=name)
    return {folder: interventions for folder, interventions in listed.items() if interventions}


def to_read(parameters: SteeringParameters) -> list[Intervention]:
    """List the interventions under which stage 07 reads ordinary text.

    The baseline, every arm at the main strength with all latents and with the selected ones, and the sweep.
    """
    main, swept = [parameters.strength], parameters.sweep_strengths
    listed = [Intervention("baseline")]
    for name in ("all", "selected"):
        listed += conditions(parameters, parameters.arms, strengths=main, features=name)
    listed += conditions(parameters, parameters.sweep_arms, strengths=swept, features=parameters.features)
    return list(dict.fromkeys(listed))


# --------------------------------------------------------------------------- the direction from vice to virtue


def mean_difference(x: np.ndarray, polarity: np.ndarray) -> Tensor:
    """Return the direction from vice to virtue, float32 [d_in] of length 1.

    ``x`` [rows, d_in] holds raw pooled residual streams of one layer, ``polarity`` [rows] ``virtue, vice`` or ``neutral``.

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
    store: ActivationStore, annotations: pd.DataFrame, *, exploded: pd.DataFrame, layers: list[int], pooling: Pooling
) -> dict[int, Tensor]:
    """Return the :func:`mean_difference` of every layer, from the exploded rows of the grouped training split.

    ``store`` is of the model to be steered, ``pooling`` the autoencoders' own.
    """
    rows = exploded[exploded["split_grouped"] == "train"].merge(annotations[["id", "action"]], on="id")
    stored, polarity = store.rows_of(rows["action"]), rows["polarity"].to_numpy()
    return {layer: mean_difference(store.read(layer, pooling, stored), polarity) for layer in layers}
