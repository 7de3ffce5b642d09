"""What several keys of a stage mean and must be like together; each alone is stated by :mod:`lib.run.parameters`."""

import math
from typing import TYPE_CHECKING

from lib.run.files import CompanionError

if TYPE_CHECKING:
    from lib.run.parameters import SAEKeys, SteeringKeys

STRENGTHS = {"replace": (1, 1), "blend": (0, 1)}
"""Mode of steering -> the least and the greatest strength that it takes; ``add`` takes any."""


def sae(keys: "SAEKeys") -> None:
    """Raise a ``CompanionError`` for a dictionary of tokens that nobody trained."""
    if keys.sae_kind == "tokens" and keys.sae_source == "train":
        raise CompanionError(
            "sae_kind: tokens is for autoencoders by others; what is trained here is trained on pooled vectors. "
            "Name them with sae_source, or leave sae_kind out."
        )


def layer_groups(keys: "SteeringKeys") -> list[tuple[int, ...]]:
    """Return what stage 07 steers together: each layer alone, then those of ``steered_layers`` all at once."""
    together = tuple(sorted(set(keys.steered_layers)))
    return [(layer,) for layer in keys.layers] + [together] * (len(together) > 1)


def steering(keys: "SteeringKeys") -> None:
    """Raise a ``CompanionError`` for what stage 07 cannot do, before any stage has run."""
    if keys.device == "remote":
        raise CompanionError(
            "device: remote can read a model but not steer one: its autoencoders are here and its streams are not. "
            "Use another device; for reading alone, run notebooks 01 to 04 by hand with -p device remote."
        )
    if absent := set(keys.steered_layers) - set(keys.layers):
        raise CompanionError(
            f"steered_layers names layer {min(absent)}, which has no autoencoder: layers is {keys.layers}. "
            "Add it to layers, or leave it out of steered_layers."
        )
    low, high = STRENGTHS.get(keys.mode, (-math.inf, math.inf))
    for key, given in (("strength", [keys.strength]), ("sweep_strengths", keys.sweep_strengths)):
        if wrong := [strength for strength in given if not low <= strength <= high]:
            fitting = [strength for strength in given if low <= strength <= high] or [1.0]
            takes = "strength 1 alone" if low == high else f"strengths from {low} to {high}"
            raise CompanionError(
                f"mode: {keys.mode} takes {takes}, but {key} holds {wrong[0]:g}. "
                f"Write {key}: {1.0 if key == 'strength' else fitting}, or mode: add."
            )
    if keys.samples > 1 and keys.temperature == 0 and keys.protocol == "careful":
        raise CompanionError(
            f"samples is {keys.samples}, but at temperature 0 all answers to a prompt are the same. "
            "Use samples: 1, or a temperature above 0."
        )
