"""Autoencoders on disk in the layout of SAELens: ``cfg.json`` and ``sae_weights.safetensors``, no pickle.

sae-lens loads these directories; directories in the same layout by others are read here (ReLU, TopK, JumpReLU). The centre
is folded into the biases, so the weights apply to the raw residual stream.

Qwen-Scope publishes TopK autoencoders of Qwen3-8B-Base, of the same width and expansion as the paper's:
``Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50`` and ``..._100`` on the Hugging Face hub, one ``layer{n}.sae.pt`` a layer (arXiv
2605.11887). They are the natural control: latents of the same model, learned from text and not from moral sentences.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib import files, runs
from lib.sae.model import SparseAutoencoder

# The release whose layout is written; without this key sae-lens takes its legacy path and drops the metadata.
SAE_LENS_VERSION = "6.54.12"

QWEN_SCOPE = re.compile(r"SAE-Res-(?P<model>.+)-W\d+K-L0_(?P<k>\d+)$")
"""Qwen-Scope's repositories; the name alone says how many latents a row keeps."""


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
        "architecture": "topk" if sae.k is not None else "jumprelu" if sae.jump else "standard",
        **({} if sae.k is None else {"k": sae.k, "rescale_acts_by_decoder_norm": False}),
        "d_in": sae.width,
        "d_sae": sae.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION} | metadata,
    }
    files.write_text_atomically(directory / "cfg.json", json.dumps(configuration, indent=1))


def load(directory: Path, width: int | None = None) -> SparseAutoencoder:
    """Read an autoencoder in SAELens layout: ``standard`` (ReLU), ``topk`` or ``jumprelu``.

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
    # Before release 6 a TopK was an activation function with arguments.
    older_k = configuration.get("activation_fn_kwargs", {}).get("k")
    architecture = "topk" if older_k is not None else configuration.get("architecture", "standard")
    if architecture not in ("standard", "topk", "jumprelu"):
        raise FormatError(f"{name}: architecture is {architecture!r}; standard (ReLU), topk and jumprelu are read")
    for key, expected in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if configuration.get(key, expected) != expected:
            raise FormatError(f"{name}: {key} is {configuration[key]!r}, expected {expected!r}")
    weights = {key: value.to(torch.float32) for key, value in load_file(directory / "sae_weights.safetensors").items()}
    if configuration.get("apply_b_dec_to_input", True) and {"b_enc", "b_dec", "W_enc"} <= weights.keys():
        weights["b_enc"] = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
    k = configuration.get("k", older_k) if architecture == "topk" else None
    if architecture == "topk":
        if not isinstance(k, int) or k < 1:
            raise FormatError(f"{name}: a topk autoencoder needs a whole number k in cfg.json, got {k!r}")
        if configuration.get("rescale_acts_by_decoder_norm", False):
            # Ranked by contribution: the same as ranking after the norms have moved into the encoder.
            norms = weights["W_dec"].norm(dim=1)
            weights |= {"W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms}
            weights["W_dec"] = weights["W_dec"] / norms[:, None]
    return _checked(name, weights, width, k, architecture == "jumprelu")


def _checked(name: str, weights: dict[str, Tensor], width: int | None, k: int | None, jump: bool) -> SparseAutoencoder:
    needed = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if jump else [])]
    if missing := set(needed) - weights.keys():
        raise FormatError(f"{name}: weights lack {sorted(missing)[0]}")
    latents, inside = weights["b_enc"].shape[0], weights["b_dec"].shape[0]
    shapes = {
        "W_enc": (inside, latents), "b_enc": (latents,), "W_dec": (latents, inside), "b_dec": (inside,),
        "threshold": (latents,),
    }  # fmt: skip
    for key in needed:
        if tuple(weights[key].shape) != shapes[key]:
            raise FormatError(f"{name}: {key} has shape {tuple(weights[key].shape)}, expected {shapes[key]}")
        if not torch.isfinite(weights[key]).all():
            raise FormatError(f"{name}: {key} is not finite")
    if width is not None and inside != width:
        raise FormatError(
            f"{name} is for a residual stream of width {inside}, but the model's is {width}: it belongs to another model"
        )
    if k is not None and k > latents:
        raise FormatError(f"{name}: k is {k}, but there are {latents} latents")
    sae = SparseAutoencoder(inside, latents, k=k, jump=jump)
    sae.load_state_dict({key: weights[key] for key in needed})
    return sae


def load_foreign(
    source: str, layer: int, width: int, revision: str | None = None
) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """Read one layer of autoencoders that others trained.

    Args:
        source: a local directory or a hub id. Either holds ``layer_{NN}`` or ``layer{N}`` in SAELens layout, or is one of
            Qwen-Scope's, with ``layer{N}.sae.pt``; a directory of those keeps the repository's name.
        layer: index of the decoder block.
        width: of the model's residual stream.
        revision: of the hub id.

    Returns:
        The autoencoder and what its files say of where it belongs.

    Raises:
        FormatError: the layer is not there, or is of another width or kind.
    """
    local = runs.resolve(source) if runs.resolve(source).is_dir() else None
    if local is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise FormatError(f"{source} is neither a directory nor a hub id (owner/name)")
    if scope := QWEN_SCOPE.search((local or Path(source)).name):
        name = f"layer{layer}.sae.pt"
        path = local / name if local else Path(hf_hub_download(source, name, revision=revision))
        return _qwen_scope(path, int(scope["k"]), width), {"model_name": scope["model"], "sae_source": source}
    names = [f"layer_{layer:02d}", f"layer{layer}"]
    if local is None:
        local = Path(snapshot_download(source, revision=revision, allow_patterns=[f"{name}/*" for name in names]))
    found = [local / name for name in names if (local / name / "cfg.json").exists()]
    if not found:
        raise FormatError(
            f"{source} has no layer {layer}: neither {names[0]}/cfg.json nor {names[1]}/cfg.json is there"
        )
    return _unit_decoder(load(found[0], width)), metadata(found[0]) | {"sae_source": source}


@torch.no_grad()
def _unit_decoder(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Move the norms of the decoder into the encoder, as alignment expects; a TopK would rank its latents otherwise."""
    if sae.k is None:
        norms = sae.W_dec.norm(dim=1).clamp_min(1e-8)
        sae.W_enc *= norms
        sae.b_enc *= norms
        sae.W_dec /= norms[:, None]
        if sae.jump:
            sae.threshold *= norms
    return sae


def _qwen_scope(path: Path, k: int, width: int) -> SparseAutoencoder:
    """Read a file of Qwen-Scope: W_enc [latents, width], W_dec [width, latents], b_enc, b_dec."""
    if not path.exists():
        raise FormatError(f"{runs.short(path)} is not there")
    # Published in torch's own format; weights_only builds tensors and runs no code of the file.
    weights = torch.load(path, map_location="cpu", weights_only=True)
    turned = {name: value.float() for name, value in weights.items()}
    turned |= {name: turned[name].T.contiguous() for name in ("W_enc", "W_dec") if name in turned}
    return _checked(runs.short(path), turned, width, k, jump=False)


def metadata(directory: Path) -> dict[str, Any]:
    """Return what the directory says of where its autoencoder belongs."""
    return json.loads((directory / "cfg.json").read_text(encoding="utf-8")).get("metadata", {})
