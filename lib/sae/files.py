"""Autoencoders on disk in the layout of SAELens: ``cfg.json`` and ``sae_weights.safetensors``, no pickle.

sae-lens loads these directories, and directories by others in the same layout are read here (ReLU, TopK, JumpReLU). The
centre is folded into the biases, so the weights apply to the raw residual stream.

An arm of alignment that differs from its autoencoder in the tuned latents alone is stored as these (:func:`save_tuned`).

Qwen-Scope publishes TopK autoencoders of Qwen3-8B-Base, of the same width and expansion as the paper's:
``Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50`` and ``..._100`` on the Hugging Face hub, one ``layer{n}.sae.pt`` per layer (arXiv
2605.11887). They are the natural control: latents of the same model, learned from text and not from moral sentences.

There are two kinds of dictionary, and they are not mixed: one of ``pooled`` vectors, as this project and the paper train, and
one of ``tokens``, as others do. The latents of a mean of tokens are not the mean of their latents, so a dictionary of tokens
reads tokens, and its latents are pooled (:mod:`lib.sae.tokens`).
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.activations.arrays import is_finite
from lib.run.files import CompanionError, resolve, short, write_text_atomically
from lib.sae.model import SparseAutoencoder

# The release whose layout is written; without this key sae-lens takes its legacy path and drops the metadata.
SAE_LENS_VERSION = "6.54.12"

TUNED = "tuned_latents.safetensors"
"""Name of the file of :func:`save_tuned`."""

QWEN_SCOPE = re.compile(r"SAE-Res-(?P<model>.+)-W\d+K-L0_(?P<k>\d+)$")
"""Qwen-Scope's repositories; only the name says how many latents per row are kept."""


POOLED, TOKENS = "pooled", "tokens"
"""What a dictionary was trained on: vectors pooled over a prompt, or single tokens."""


class FormatError(CompanionError):
    """A directory does not hold an autoencoder that can be used here."""


def save(directory: Path, sae: SparseAutoencoder, metadata: dict[str, Any]) -> None:
    """Write an autoencoder of raw vectors into an existing directory.

    ``metadata`` says where it belongs: ``model_name``, ``hook_name``, ``pooling`` and more.
    """
    weights = {name: value.detach().contiguous() for name, value in sae.state_dict().items()}
    save_file(weights, directory / "sae_weights.safetensors")
    configuration = {
        "architecture": "topk" if sae.k is not None else "jumprelu" if sae.jump else "standard",
        **({} if sae.k is None else {"k": sae.k, "rescale_acts_by_decoder_norm": False}),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION} | metadata,
    }
    write_text_atomically(directory / "cfg.json", json.dumps(configuration, indent=1))


def save_tuned(directory: Path, sae: SparseAutoencoder, *, base: Path, metadata: dict[str, Any]) -> None:
    """Write only the latents that ``metadata`` lists as ``tuned_latents`` into an existing directory.

    The rest is read from ``base``, the directory of the autoencoder that was tuned, so both directories must move together;
    ``save(directory, load(...), ...)`` writes a whole one for others.
    """
    tuned = torch.tensor(metadata["tuned_latents"], dtype=torch.long)
    rows = {"W_enc": sae.W_enc[:, tuned], "b_enc": sae.b_enc[tuned], "W_dec": sae.W_dec[tuned]}
    save_file({name: value.detach().contiguous() for name, value in rows.items()}, directory / TUNED)
    configuration = {"base": os.path.relpath(base, directory), "metadata": metadata}
    write_text_atomically(directory / "cfg.json", json.dumps(configuration, indent=1))


def load(directory: Path, d_in: int | None = None) -> SparseAutoencoder:
    """Read an autoencoder in SAELens layout, ``standard`` (ReLU), ``topk`` or ``jumprelu``, or tuned latents with their base.

    ``d_in`` is the width that the residual stream must have; by default any.

    Raises:
        FormatError: a file is missing, the architecture is another, a weight has another shape, or the width differs.
    """
    name = short(directory)
    if (directory / TUNED).exists():
        sae, rows = load((directory / _configuration(directory)["base"]).resolve(), d_in), load_file(directory / TUNED)
        tuned = torch.tensor(metadata(directory)["tuned_latents"], dtype=torch.long)
        with torch.no_grad():
            sae.W_enc[:, tuned], sae.b_enc[tuned], sae.W_dec[tuned] = rows["W_enc"], rows["b_enc"], rows["W_dec"]
        return sae
    for file in ("cfg.json", "sae_weights.safetensors"):
        if not (directory / file).exists():
            raise FormatError(f"{name} has no {file}; run notebook 05_sae first")
    configuration = _configuration(directory)
    # Before release 6 a TopK was an activation function with arguments.
    older_k = configuration.get("activation_fn_kwargs", {}).get("k")
    architecture = "topk" if older_k is not None else configuration.get("architecture", "standard")
    if architecture not in ("standard", "topk", "jumprelu"):
        raise FormatError(f"{name}: architecture is {architecture!r}; standard (ReLU), topk and jumprelu are read")
    for key in ("normalize_activations", "reshape_activations"):
        if configuration.get(key, "none") != "none":
            raise FormatError(f"{name}: {key} is {configuration[key]!r}, expected 'none'")
    weights = {key: value.to(torch.float32) for key, value in load_file(directory / "sae_weights.safetensors").items()}
    if configuration.get("apply_b_dec_to_input", True) and {"b_enc", "b_dec", "W_enc"} <= weights.keys():
        weights["b_enc"] = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
    k = configuration.get("k", older_k) if architecture == "topk" else None
    if architecture == "topk":
        if not isinstance(k, int) or k < 1:
            raise FormatError(f"{name}: a topk autoencoder needs a whole number k in cfg.json, got {k!r}")
        if configuration.get("rescale_acts_by_decoder_norm", False):
            # Ranked by contribution: the same as ranking after the norms have moved into the encoder.
            weights = _unit_decoder(weights)
    return _checked(name, weights, d_in=d_in, k=k, jump=architecture == "jumprelu")


def _checked(
    name: str, weights: dict[str, Tensor], *, d_in: int | None, k: int | None, jump: bool
) -> SparseAutoencoder:
    needed = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if jump else [])]
    if missing := set(needed) - weights.keys():
        raise FormatError(f"{name}: weights lack {sorted(missing)[0]}")
    # On no device: weights of its own would be drawn first and thrown away, at several times the cost of the file.
    with torch.device("meta"):
        sae = SparseAutoencoder(weights["b_dec"].shape[0], weights["b_enc"].shape[0], k=k, jump=jump)
    for key, value in sae.state_dict().items():
        if weights[key].shape != value.shape:
            raise FormatError(f"{name}: {key} has shape {tuple(weights[key].shape)}, expected {tuple(value.shape)}")
        if not is_finite(weights[key]):
            raise FormatError(f"{name}: {key} is not finite")
    if d_in is not None and sae.d_in != d_in:
        raise FormatError(
            f"{name} is for a residual stream of width {sae.d_in}, but the model's is {d_in}: it belongs to another model"
        )
    if k is not None and k > sae.d_sae:
        raise FormatError(f"{name}: k is {k}, but there are {sae.d_sae} latents")
    sae.load_state_dict({key: weights[key] for key in needed}, assign=True)
    return sae


def load_foreign(source: str, *, layer: int, d_in: int) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """Read one layer of autoencoders that others trained; return it with what its files say of where it belongs.

    ``source`` is a local directory or a hub id, ``owner/name`` or ``owner/name@revision``. Either holds a folder of the layer in
    SAELens layout (``layer_{NN}``, ``layer{N}``, or named by its hook as sae-lens' releases are: ``blocks.{N}.hook_resid_post``
    or the next block's ``hook_resid_pre``), or is one of Qwen-Scope's, with ``layer{N}.sae.pt``; a local directory of those
    keeps the repository's name. ``d_in`` is the width of the model's residual stream.

    Raises:
        FormatError: the layer is not there, is of another width or kind, or was not trained on the stream after this layer.
    """
    source, _, revision = source.partition("@")
    local = resolve(source) if resolve(source).is_dir() else None
    if local is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise FormatError(f"{source} is neither a directory nor a hub id (owner/name)")
    hub = {"repo_id": source, "revision": revision or None}
    if scope := QWEN_SCOPE.search((local or Path(source)).name):
        name = f"layer{layer}.sae.pt"
        path = local / name if local else Path(hf_hub_download(filename=name, **hub))
        return _qwen_scope(path, k=int(scope["k"]), d_in=d_in), {"model_name": scope["model"], "sae_source": source}
    hooks = [f"blocks.{layer}.hook_resid_post", f"blocks.{layer + 1}.hook_resid_pre"]
    names = [f"layer_{layer:02d}", f"layer{layer}", *hooks]
    root = local or Path(snapshot_download(allow_patterns=[f"{name}/*" for name in names], **hub))
    folder = next((root / name for name in names if (root / name / "cfg.json").exists()), None)
    if folder is None:
        raise FormatError(f"{source} has no layer {layer}: no cfg.json in {' or '.join(names)}")
    # In older releases the hook was no part of the metadata, and its key was another.
    told = _configuration(folder)
    hook = (told | metadata(folder)).get("hook_name", told.get("hook_point"))
    if hook is not None and hook not in hooks and not re.search(rf"(^|\.)(layers|h)\.{layer}$", hook):
        raise FormatError(f"{short(folder)} was trained at {hook}, not on the residual stream after layer {layer}")
    sae = load(folder, d_in)
    if sae.k is None:
        # Alignment expects a decoder of unit norm; a TopK would rank its latents otherwise.
        sae.load_state_dict(_unit_decoder(sae.state_dict()))
    return sae, metadata(folder) | {"sae_source": source}


def _unit_decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the norms of the decoder rows into the encoder, its bias and its threshold."""
    norms = weights["W_dec"].norm(dim=1).clamp_min(1e-8)
    moved = {name: weights[name] * norms for name in ("W_enc", "b_enc", "threshold") if name in weights}
    return weights | moved | {"W_dec": weights["W_dec"] / norms[:, None]}


def _qwen_scope(path: Path, *, k: int, d_in: int) -> SparseAutoencoder:
    """Read a file of Qwen-Scope: W_enc [d_sae, d_in], W_dec [d_in, d_sae], b_enc, b_dec."""
    if not path.exists():
        raise FormatError(f"{short(path)} is not there")
    # Published in torch's own format; weights_only builds tensors and runs no code of the file.
    stored = torch.load(path, map_location="cpu", weights_only=True)
    weights = {name: value.float() for name, value in stored.items()}
    turned = {name: weights[name].T.contiguous() for name in ("W_enc", "W_dec") if name in weights}
    return _checked(short(path), weights | turned, d_in=d_in, k=k, jump=False)


def metadata(directory: Path) -> dict[str, Any]:
    """Return what the directory says of where its autoencoder belongs."""
    return _configuration(directory).get("metadata", {})


def require_kind(source: str, theirs: dict[str, Any], *, kind: str, pooling: str) -> None:
    """Raise ``FormatError`` unless an autoencoder by others is of the ``kind`` asked for, from what its files say of it.

    One of pooled vectors names their ``pooling``, which must be the one asked for; any other is one of tokens.
    """
    trained_on = theirs.get("pooling")
    theirs_is = theirs.get("kind", POOLED if trained_on else TOKENS)
    if theirs_is != kind:
        raise FormatError(
            f"{source} was trained on {theirs_is}{' vectors' if trained_on else ''}, but sae_kind is {kind!r}; the latents of a "
            f"mean of tokens are not the mean of their latents. Use sae_kind: {theirs_is}"
        )
    if kind == POOLED and trained_on != pooling:
        raise FormatError(f"{source} was trained on vectors of pooling {trained_on!r}, but {pooling!r} is asked for")


def _configuration(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "cfg.json").read_text(encoding="utf-8"))


def histories(folders: dict[Any, Path], column: str) -> pd.DataFrame:
    """Return the histories of several autoencoders as one table; ``column`` holds the keys of ``folders``."""
    parts = [pd.read_parquet(folder / "history.parquet").assign(**{column: key}) for key, folder in folders.items()]
    return pd.concat(parts, ignore_index=True)
