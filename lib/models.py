"""Open any of the paper's models through nnsight, from a local directory or from a hub.

Every family is reached the same way: a list of decoder blocks, whose outputs are the residual stream, and the final
norm behind them. What is known of the 23 models stands in ``data/models.csv``; any other causal language model of
transformers with such a list works too.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import model_info
from nnsight import TransformersModel
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lib import runs

transformers_logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model cannot be opened or does not look as expected; the message says what to do."""


def registry() -> pd.DataFrame:
    """Return the 23 models of the paper, one row a model (``data/models.csv``)."""
    return pd.read_csv(runs.PROJECT / "data" / "models.csv")


def load(
    source: str, dtype: str = "float32", device: str | None = None, revision: str | None = None
) -> TransformersModel:
    """Open a causal language model for tracing.

    Args:
        source: directory (absolute or relative to the project root) or hub id such as ``Qwen/Qwen3-8B``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: transformers' ``device_map``; by default ``auto`` where there is a GPU, else the CPU.
        revision: commit, tag or branch of a hub model.

    Returns:
        The model in evaluation mode, parameters without gradients, its tokenizer with a padding token. Weights are
        read from safetensors only and no remote code runs.

    Raises:
        ModelError: directory without config, weights or tokenizer; no known list of decoder blocks; residual stream
            of an unexpected shape.
    """
    location = _location(source)
    tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = TransformersModel(
            location,
            task="text-generation",
            tokenizer=tokenizer,
            revision=revision,
            dtype=DTYPES[dtype],
            device_map=device or ("auto" if torch.cuda.is_available() else "cpu"),
            use_safetensors=True,
            dispatch=True,
        )
    model._module.eval().requires_grad_(False)
    check_residual_stream(model)
    return model


def decoder_layers(model: TransformersModel) -> Any:
    """Return the decoder blocks; the output of one is the residual stream [batch, token, width] behind it."""
    return _backbone(model).layers


def final_norm(model: TransformersModel) -> Any:
    """Return the norm that stands behind the last decoder block."""
    return _backbone(model).norm


def width(model: TransformersModel) -> int:
    """Return the width of the residual stream."""
    return model._module.config.get_text_config().hidden_size


def context_length(model: TransformersModel) -> int:
    """Return the longest sequence, in tokens, that the model was built for."""
    return model._module.config.get_text_config().max_position_embeddings


def fingerprint(source: str, revision: str | None = None) -> dict[str, str]:
    """Say exactly which weights ``source`` means: hashes of a directory's files, or the commit of a hub model."""
    location = _location(source)
    if Path(location).is_dir():
        files = [*Path(location).glob("*.safetensors"), *Path(location).glob("*.json")]
        return {file.name: runs.sha256_of_file(file) for file in sorted(files)}
    return {"hub": location, "commit": str(model_info(location, revision=revision).sha)}


def describe(source: str, revision: str | None = None) -> dict[str, Any]:
    """Read layers, width and vocabulary from a model's configuration, without its weights."""
    config = AutoConfig.from_pretrained(_location(source), revision=revision).get_text_config()
    return {
        "architecture": config.model_type,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
    }


def check_residual_stream(model: TransformersModel) -> None:
    """Trace two words and assert what extraction relies on.

    The output of every block is [batch, token, width], and the final norm of the last one is transformers' last
    hidden state: the residual stream is read before that norm.

    Raises:
        ModelError: either does not hold.
    """
    tokens = model.tokenizer("it is", return_tensors="pt").to(model._module.device)
    layers = decoder_layers(model)
    with model.trace(dict(tokens), output_hidden_states=True, use_cache=False):
        streams = [layer.output for layer in layers].save()
        last_hidden_state = model.output.hidden_states[-1].save()
    shape = (*tokens["input_ids"].shape, width(model))
    wrong = [tuple(stream.shape) for stream in streams if tuple(stream.shape) != shape]
    if wrong:
        raise ModelError(f"decoder blocks should output [batch, token, width] = {shape}, got {wrong[0]}")
    if not torch.allclose(final_norm(model)._module(streams[-1]), last_hidden_state, rtol=1e-2, atol=1e-3):
        raise ModelError("the final norm of the last block's output is not transformers' last hidden state")


def _backbone(model: TransformersModel) -> Any:
    for path in ("model", "model.language_model", "language_model.model", "transformer"):
        envoy: Any = model
        for name in path.split("."):
            envoy = getattr(envoy, name, None)
        if envoy is not None and hasattr(envoy, "layers") and hasattr(envoy, "norm"):
            return envoy
    raise ModelError(
        f"{type(model._module).__name__} has no list of decoder blocks at model.layers with a final model.norm; "
        "add where they are to lib/models.py"
    )


def _location(source: str) -> str:
    directory = Path(source).expanduser()
    directory = directory if directory.is_absolute() else runs.resolve(directory)
    looks_like_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if not directory.exists() and looks_like_hub_id:
        return source
    if not directory.is_dir():
        raise ModelError(
            f"model directory not found: {source}. Paths start at the project root; a hub id is owner/name."
        )
    if not (directory / "config.json").exists():
        raise ModelError(f"{source} has no config.json: not a model in Hugging Face layout")
    if not list(directory.glob("*.safetensors")):
        raise ModelError(f"{source} has no .safetensors file; other weight formats are not read")
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise ModelError(f"{source} has no tokenizer; put tokenizer.json and tokenizer_config.json beside the weights")
    if json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type") is None:
        raise ModelError(f"{source}/config.json names no model_type")
    return str(directory)
