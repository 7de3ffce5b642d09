"""Autoencoders on disk in the layout of SAELens: ``cfg.json`` and ``sae_weights.safetensors``, no pickle.

sae-lens loads these directories; directories in the same layout by others are read here. The centre is folded into the
biases, so the weights apply to the raw residual stream.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib import runs
from lib.sae.model import SparseAutoencoder

# The release whose layout is written; without this key sae-lens takes its legacy path and drops the metadata.
SAE_LENS_VERSION = "6.54.12"


class FormatError(ValueError):
    """A directory does not hold an autoencoder that can be used here."""


def save(directory: Path, sae: SparseAutoencoder, metadata: dict[str, Any]) -> None:
    """Write an autoencoder.

    Args:
        directory: an existing directory.
        sae: the autoencoder of raw vectors.
        metadata: where it belongs, such as ``model_name``, ``hook_name``, ``pooling``.
    """
    weights = {name: value.detach().contiguous() for name, value in sae.state_dict().items()}
    save_file(weights, directory / "sae_weights.safetensors")
    configuration = {
        "architecture": "standard",
        "d_in": sae.width,
        "d_sae": sae.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION} | metadata,
    }
    runs.write_text_atomically(directory / "cfg.json", json.dumps(configuration, indent=1))


def load(directory: Path, width: int | None = None) -> SparseAutoencoder:
    """Read a ReLU autoencoder in SAELens layout.

    Args:
        directory: holds ``cfg.json`` and ``sae_weights.safetensors``.
        width: of the residual stream it shall be used on, if it shall be checked.

    Raises:
        FormatError: a file is missing, the architecture is another, a weight has another shape, or the width differs.
    """
    name = runs.short(directory)
    for file in ("cfg.json", "sae_weights.safetensors"):
        if not (directory / file).exists():
            raise FormatError(f"{name} has no {file}; run notebook 05_sparse_autoencoders first")
    configuration = json.loads((directory / "cfg.json").read_text(encoding="utf-8"))
    if configuration.get("architecture", "standard") != "standard":
        raise FormatError(f"{name}: architecture is {configuration['architecture']!r}; only 'standard' (ReLU) is read")
    if configuration.get("normalize_activations", "none") != "none":
        raise FormatError(
            f"{name}: normalize_activations is {configuration['normalize_activations']!r}, expected 'none'"
        )
    weights = {key: value.to(torch.float32) for key, value in load_file(directory / "sae_weights.safetensors").items()}
    if missing := {"W_enc", "b_enc", "W_dec", "b_dec"} - weights.keys():
        raise FormatError(f"{name}: weights lack {sorted(missing)[0]}")
    latents, inside = weights["b_enc"].shape[0], weights["b_dec"].shape[0]
    shapes = {"W_enc": (inside, latents), "b_enc": (latents,), "W_dec": (latents, inside), "b_dec": (inside,)}
    for key, shape in shapes.items():
        if tuple(weights[key].shape) != shape:
            raise FormatError(f"{name}: {key} has shape {tuple(weights[key].shape)}, expected {shape}")
        if not torch.isfinite(weights[key]).all():
            raise FormatError(f"{name}: {key} is not finite")
    if width is not None and weights["b_dec"].shape[0] != width:
        raise FormatError(
            f"{name} is for a residual stream of width {weights['b_dec'].shape[0]}, but the model's is {width}: "
            "it belongs to another model"
        )
    if configuration.get("apply_b_dec_to_input", False):
        weights["b_enc"] = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
    sae = SparseAutoencoder(weights["b_dec"].shape[0], weights["b_enc"].shape[0])
    sae.load_state_dict({key: weights[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")})
    return sae


def metadata(directory: Path) -> dict[str, Any]:
    """Return what the directory says of where its autoencoder belongs."""
    return json.loads((directory / "cfg.json").read_text(encoding="utf-8")).get("metadata", {})
