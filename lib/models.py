"""Open any of the paper's models through nnsight, from a local directory or from a hub.

Every family is reached the same way: a list of decoder blocks, whose outputs are the residual stream, and the final
norm behind them. What is known of the 23 models stands in ``data/models.csv``; any other causal language model of
transformers with such a list works too. One word, ``device``, says where a model runs.
"""

import importlib.util
import warnings
from typing import Any

import torch
from nnsight import CONFIG, TransformersModel
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lib import estimates, runs
from lib.registry import Size, registry, size_from_registry
from lib.sources import ModelError, located, trusted

transformers_logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: str,
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    first_layers: int | None = None,
    trust_remote_code: str | None = None,
) -> TransformersModel:
    """Open a causal language model for tracing.

    Args:
        source: directory (absolute or relative to the project root) or hub id such as ``Qwen/Qwen3-8B``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (all cards of this machine together, or the processor where there is none), ``cpu``, ``cuda``
            (one card), ``8bit`` or ``4bit`` (linear layers quantised by bitsandbytes, on the cards), or ``remote``
            (NDIF runs the model; no weights are read here).
        revision: commit, tag or branch of a hub model.
        first_layers: keep only so many decoder blocks; the streams behind them are those of the whole model.
        trust_remote_code: the ``source`` again, to run the Python code that it brings; None runs none.

    Returns:
        The model in evaluation mode, parameters without gradients, its tokenizer with a padding token. Weights are
        read from safetensors only.

    Raises:
        ModelError: directory without config, weights or tokenizer; a model of the hub that cannot be had; a device
            that is not here; code of the model's own that was not asked for; no known list of decoder blocks;
            residual stream of an unexpected shape.
    """
    location, commit = located(source, revision)
    trust = trusted(source, location, commit, trust_remote_code)
    options = _placement(source, dtype, device)
    if first_layers is not None:
        options["config"] = configuration(source, revision, first_layers, trust_remote_code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = TransformersModel(
            location,
            task="text-generation",
            tokenizer=tokenizer(source, revision, trust_remote_code),
            revision=commit,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=trust,
            **options,
        )
    model._module.eval().requires_grad_(False)
    decoder_layers(model)
    check_residual_stream(model)
    return model


def tokenizer(
    source: str, revision: str | None = None, trust_remote_code: str | None = None
) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, with a padding token, without reading the model's weights."""
    location, commit = located(source, revision)
    trust = trusted(source, location, commit, trust_remote_code)
    found = AutoTokenizer.from_pretrained(location, revision=commit, trust_remote_code=trust)
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def configuration(
    source: str,
    revision: str | None = None,
    first_layers: int | None = None,
    trust_remote_code: str | None = None,
) -> PreTrainedConfig:
    """Return a model's configuration, of its first blocks only where asked, without reading the model's weights."""
    location, commit = located(source, revision)
    trust = trusted(source, location, commit, trust_remote_code)
    config = AutoConfig.from_pretrained(location, revision=commit, trust_remote_code=trust)
    if first_layers is not None:
        text = config.get_text_config()
        whole = text.num_hidden_layers
        if not 1 <= first_layers <= whole:
            raise ModelError(f"first_layers should be from 1 to {whole}, the blocks of {source}, got {first_layers}")
        # Lists with an entry a block, such as the kind of attention, are cut with the blocks.
        for name, value in vars(text).copy().items():
            if isinstance(value, list) and len(value) == whole:
                setattr(text, name, value[:first_layers])
        text.num_hidden_layers = first_layers
    return config


def size(
    source: str,
    revision: str | None = None,
    first_layers: int | None = None,
    trust_remote_code: str | None = None,
) -> Size:
    """Return parameters, layers and width: from the registry where it knows the model, else from its configuration."""
    known = registry().set_index("hub")
    if source in known.index:
        return size_from_registry(known.loc[source].to_dict()).first(first_layers)
    return estimates.size_from_config(configuration(source, revision, first_layers, trust_remote_code))


def remote(model: TransformersModel) -> bool:
    """Say whether traces of a model go to NDIF: no weights of it are here."""
    return not model.dispatched


def input_device(model: TransformersModel) -> torch.device:
    """Return where the inputs of a trace belong."""
    return torch.device("cpu") if remote(model) else model._module.device


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


def describe(source: str, revision: str | None = None) -> dict[str, Any]:
    """Read layers, width and vocabulary from a model's configuration, without its weights."""
    config = configuration(source, revision).get_text_config()
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
    tokens = model.tokenizer("it is", return_tensors="pt").to(input_device(model))
    layers, norm = decoder_layers(model), final_norm(model)
    with model.trace(dict(tokens), output_hidden_states=True, use_cache=False, remote=remote(model)):
        streams = [layer.output for layer in layers]
        shapes = [tuple(stream.shape) for stream in streams].save()
        last_hidden_state = model.output.hidden_states[-1].save()
        normed = norm(streams[-1]).save()
    shape = (*tokens["input_ids"].shape, width(model))
    wrong = [found for found in shapes if found != shape]
    if wrong:
        raise ModelError(f"decoder blocks should output [batch, token, width] = {shape}, got {wrong[0]}")
    if not torch.allclose(normed, last_hidden_state, rtol=1e-2, atol=1e-3):
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


def _placement(source: str, dtype: str, device: str) -> dict[str, Any]:
    """Return what ``device`` means to transformers and nnsight, or say what is missing for it."""
    cards = torch.cuda.is_available()
    if device == "auto":
        return {"device_map": "auto" if cards else "cpu", "dispatch": True}
    if device == "cpu":
        return {"device_map": "cpu", "dispatch": True}
    if device == "remote":
        if "/" not in source or runs.resolve(source).exists():
            raise ModelError(f"device: remote needs a hub id such as Qwen/Qwen3-8B, not the directory {source}")
        if not CONFIG.API.APIKEY:
            raise ModelError("device: remote needs a key of NDIF: set NDIF_API_KEY (https://login.ndif.us gives one)")
        return {"dispatch": False}
    if device not in ("cuda", "8bit", "4bit"):
        raise ModelError(f"device should be auto, cpu, cuda, 8bit, 4bit or remote, got {device!r}")
    if not cards:
        raise ModelError(
            f"device: {device} needs an NVIDIA card and PyTorch for CUDA; this PyTorch is {torch.__version__} and sees "
            "none. Use device: cpu, or device: remote (NDIF)."
        )
    if device == "cuda":
        return {"device_map": "cuda", "dispatch": True}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"device: {device} needs the package bitsandbytes: .venv/bin/pip install bitsandbytes")
    bits = {"load_in_8bit": True} if device == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    compute = {"bnb_4bit_compute_dtype": DTYPES[dtype]} if device == "4bit" else {}
    return {"device_map": "auto", "quantization_config": BitsAndBytesConfig(**bits, **compute), "dispatch": True}
