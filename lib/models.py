"""Open any of the paper's models through nnsight, from a local directory or from a hub.

Every family is reached the same way: a list of decoder blocks, whose outputs are the residual stream, and the final
norm behind them. What is known of the 23 models stands in ``data/models.csv``; any other causal language model of
transformers with such a list works too. One word, ``device``, says where a model runs.
"""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from nnsight import CONFIG, TransformersModel
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from lib import estimates, runs

transformers_logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model cannot be opened or does not look as expected; the message says what to do."""


def registry() -> pd.DataFrame:
    """Return the 23 models of the paper, one row a model (``data/models.csv``)."""
    return pd.read_csv(runs.PROJECT / "data" / "models.csv")


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
    location, commit = _located(source, revision)
    trusted = _trusted(source, location, commit, trust_remote_code)
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
            trust_remote_code=trusted,
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
    location, commit = _located(source, revision)
    trusted = _trusted(source, location, commit, trust_remote_code)
    found = AutoTokenizer.from_pretrained(location, revision=commit, trust_remote_code=trusted)
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
    location, commit = _located(source, revision)
    trusted = _trusted(source, location, commit, trust_remote_code)
    config = AutoConfig.from_pretrained(location, revision=commit, trust_remote_code=trusted)
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
) -> estimates.Size:
    """Return parameters, layers and width: from the registry where it knows the model, else from its configuration."""
    known = registry().set_index("hub")
    if source in known.index:
        return estimates.size_from_registry(known.loc[source].to_dict()).first(first_layers)
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


def fingerprint(source: str, revision: str | None = None) -> dict[str, str]:
    """Say exactly which weights ``source`` means: hashes of a directory's files, or the commit of a hub model."""
    location, commit = _located(source, revision)
    if commit is not None:
        return {"hub": location, "commit": commit}
    files = [*Path(location).glob("*.safetensors"), *Path(location).glob("*.json")]
    return {file.name: runs.sha256_of_file(file) for file in sorted(files)}


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


def _trusted(source: str, location: str, commit: str | None, trust_remote_code: str | None) -> bool:
    """Decide whether a model's own code may run: only if the user names the model."""
    if trust_remote_code is not None and trust_remote_code != source:
        raise ModelError(f"trust_remote_code names {trust_remote_code!r}, but the model is {source!r}")
    config = json.loads(_config_file(location, commit).read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(f"{source}/config.json names no model_type")
    if trust_remote_code is None and model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ModelError(
                f"{source} brings its own Python code, which is not run. Read it; to run it all the same, "
                f"set trust_remote_code: {source}"
            )
        raise ModelError(
            f"model_type {model_type!r} of {source} is not known to transformers {transformers.__version__}"
        )
    return trust_remote_code is not None


def _config_file(location: str, revision: str | None) -> Path:
    if Path(location).is_dir():
        return Path(location) / "config.json"
    return Path(hf_hub_download(location, "config.json", revision=revision))


def _located(source: str, revision: str | None) -> tuple[str, str | None]:
    """Return the directory of a model and None, or its hub id and the commit that ``revision`` means now."""
    location = _location(source)
    if Path(location).is_dir():
        return location, None
    try:
        # The hub's cache names the folder of a file after its commit; without a network, the cached one is taken.
        return location, _config_file(location, revision).parent.name
    except GatedRepoError as error:
        raise ModelError(
            f"{source} is gated: accept its licence at https://huggingface.co/{source} and log in with "
            "`.venv/bin/hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{source} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{source} is neither a directory of the project nor a model of the hub") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{source} is not in the cache of the hub and the hub cannot be reached. Connect, or download it "
            f"elsewhere (`hf download {source}`) and give the directory."
        ) from error


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
    return str(directory)
