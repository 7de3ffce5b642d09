"""Open any decoder-only model of transformers and hand it to nnsight.

Every family is reached the same way: a list of decoder blocks, whose outputs are the residual stream, and the final norm
after them. Both are found by their place in the model, not by their name, and one forward pass checks them against
transformers' own last hidden state. Loading is done here, so that nothing falls back silently to another number format or
to a disk.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import accelerate
import numpy as np
import pandas as pd
import torch
import transformers
from nnsight import CONFIG, TransformersModel
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BitsAndBytesConfig, GgufConfig, Mxfp4Config, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from lib.activations.preflight import auto_class
from lib.activations.sources import ModelError, configuration, locate, readable, tokenizer

transformers.utils.logging.disable_progress_bar()


# ---------------------------------------------------------------------------------------- opening


def open_model(
    source: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    first_layers: int | None = None,
    trust_remote_code: bool = False,
    untrained: int | None = None,
) -> TransformersModel:
    """Open a causal language model for tracing.

    Arguments are parameters of stage 02 (:class:`lib.run.parameters.ActivationsParameters`); ``source`` is a directory or
    a GGUF file, absolute or relative to the project root, or a hub id. With ``8bit`` and ``4bit`` bitsandbytes quantises
    the linear layers; with ``remote`` no weights are read here; with the seed ``untrained`` they are drawn as transformers
    initialises them. The outputs of the ``first_layers`` are those of the whole model.

    Returns:
        The model in evaluation mode, parameters without gradients, its tokenizer with a padding token. Weights are
        read from safetensors or GGUF only; those packed in GGUF or MXFP4 are unpacked to ``dtype``.

    Raises:
        ModelError: a file or the device is not here, the hub does not give the model, it brings code that nobody asked
            for, it is not decoder-only, its weights are not as asked for, or its residual stream is not found.
    """
    origin: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if device == "remote":
        model = _on_ndif(source, first_layers=first_layers, untrained=untrained, origin=origin)
    else:
        placement = _placement(device, dtype)
        config = configuration(source, first_layers=first_layers, **origin)
        options = placement | {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
        with warnings.catch_warnings(action="ignore"):
            if untrained is None:
                module = _pretrained(source, config, revision=revision, options=options)
            else:
                module = _untrained(source, config, seed=untrained, options=options)
        check_weights(module, getattr(torch, dtype))
        model = traceable(module.eval().requires_grad_(False), tokenizer(source, **origin))
    check_residual_stream(model)
    return model


def traceable(module: PreTrainedModel, tokenizer: Tokenizer) -> TransformersModel:
    """Hand a model of transformers to nnsight and leave it where it lies; the pipeline around it would move it to a GPU."""
    place = {} if getattr(module, "hf_device_map", None) else {"device": module.device}
    with warnings.catch_warnings(action="ignore"):
        return TransformersModel(module, tokenizer=tokenizer, task="text-generation", **place)


def _placement(device: str, dtype: str) -> dict[str, Any]:
    """Return what ``device`` means to transformers, or say what is missing for it."""
    gpus = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda", "8bit", "4bit"):
        raise ModelError(f"device should be auto, cpu, cuda, 8bit, 4bit or remote, got {device!r}")
    if device in ("cuda", "8bit", "4bit") and not gpus:
        raise ModelError(
            f"device: {device} needs an NVIDIA GPU and PyTorch for CUDA; this PyTorch is {torch.__version__} and sees "
            "no GPU. Use device: cpu, or device: remote (NDIF)."
        )
    if device not in ("8bit", "4bit"):
        return {"device_map": "cpu" if device == "auto" and not gpus else device}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"device: {device} needs the package bitsandbytes: .venv/bin/pip install bitsandbytes")
    bits = {"load_in_8bit": device == "8bit", "load_in_4bit": device == "4bit", "bnb_4bit_quant_type": "nf4"}
    quantisation = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=getattr(torch, dtype))
    return {"device_map": "auto", "quantization_config": quantisation}


def _pretrained(
    source: str, config: PreTrainedConfig, *, revision: str | None, options: dict[str, Any]
) -> PreTrainedModel:
    found = locate(source, revision)
    if found.gguf_file or packing(config) == "mxfp4":
        if "quantization_config" in options:
            raise ModelError(
                f"the weights of {source} are packed already: use device: auto, cpu or cuda, which unpacks them"
            )
        options = options | {"quantization_config": (GgufConfig if found.gguf_file else Mxfp4Config)(dequantize=True)}
    with readable(source, revision):
        return auto_class(config).from_pretrained(
            found.place, config=config, use_safetensors=True, **found.options, **options
        )


def _untrained(source: str, config: PreTrainedConfig, *, seed: int, options: dict[str, Any]) -> PreTrainedModel:
    """Draw the weights on the CPU, so that they are the same wherever the model then lies."""
    if "quantization_config" in options:
        raise ModelError(f"the untrained twin of {source} is not quantised: use device: auto, cpu or cuda")
    if packing(config):
        del config.quantization_config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = auto_class(config).from_config(
            config, dtype=options["dtype"], trust_remote_code=options["trust_remote_code"]
        )
    if options["device_map"] != "auto":
        return module.to(options["device_map"])
    places = accelerate.infer_auto_device_map(module, no_split_module_classes=module._no_split_modules)
    return accelerate.dispatch_model(module, places)


def _on_ndif(
    source: str, *, first_layers: int | None, untrained: int | None, origin: dict[str, Any]
) -> TransformersModel:
    """Return a model without weights, under the key by which NDIF knows its deployments: a commit only if one is asked for."""
    if first_layers is not None or untrained is not None:
        raise ModelError("device: remote reads whole trained models: leave first_layers out and give no untrained twin")
    if source.endswith(".gguf") or locate(source, origin["revision"]).commit is None:
        raise ModelError(f"device: remote needs a hub id such as Qwen/Qwen3-8B, not the local {source}")
    if not CONFIG.API.APIKEY:
        raise ModelError("device: remote needs a key of NDIF: set NDIF_API_KEY (https://login.ndif.us gives one)")
    options = {"tokenizer": tokenizer(source, **origin), "config": configuration(source, **origin)}
    # nnsight makes the code part of the key wherever it is named, so it is named only where it runs.
    options |= {"trust_remote_code": True} if origin["trust_remote_code"] else {}
    with warnings.catch_warnings(action="ignore"):
        return TransformersModel(source, task="text-generation", dispatch=False, revision=origin["revision"], **options)


def packing(config: PreTrainedConfig) -> str:
    """Return how a model's weights are packed or quantised in its files or in memory, such as mxfp4; empty if they are not."""
    packed = getattr(config, "quantization_config", None) or {}
    packed = packed if isinstance(packed, dict) else packed.to_dict()
    return str(getattr(method := packed.get("quant_method", ""), "value", method))


def check_weights(module: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raise ``ModelError`` unless every weight is on a device and has the ``dtype`` asked for.

    Quantised weights have number formats of their own; then the embedding counts. Weights that transformers always keeps
    in float32 may stay so.
    """
    weights = dict(module.named_parameters())
    if absent := [name for name, weight in weights.items() if weight.is_meta]:
        raise ModelError(
            f"{len(absent)} of {len(weights)} weights, such as {absent[0]}, do not fit the devices and were left out of "
            "their memory. Use more GPUs, device: 8bit or 4bit, first_layers, or a smaller model."
        )
    if getattr(module, "is_quantized", False):
        weights = {"embedding": module.get_input_embeddings().weight}
    kept = {*(module._keep_in_fp32_modules or ()), *(module._keep_in_fp32_modules_strict or ())}
    for name, weight in weights.items():
        as_kept = weight.dtype == torch.float32 and any(part in name for part in kept)
        if weight.is_floating_point() and weight.dtype != dtype and not as_kept:
            raise ModelError(f"{name} has {weight.dtype}, but {dtype} was asked for; give that as the profile's dtype")


def opened_as(model: TransformersModel) -> pd.DataFrame:
    """Return how a model was really opened, as ``fact, value``: class, weights, number formats, devices, quantisation, ..."""
    module = model._module
    dtypes, devices = ({str(getattr(weight, key)) for weight in module.parameters()} for key in ("dtype", "device"))
    facts = {
        "class": type(module).__name__,
        "parameters": f"{module.num_parameters():,}",
        "number formats": ", ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes)),
        "devices": "NDIF" if remote(model) else ", ".join(sorted(devices)),
        "quantisation": (packing(module.config) or "none") if getattr(module, "is_quantized", False) else "none",
        "attention": str(module.config._attn_implementation),
        "blocks": ", ".join(sorted({type(block).__name__ for block in _blocks(module)[1]})),
        "final norm": _final_norm(module),
        "transformers": transformers.__version__,
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


# -------------------------------------------------------------------------------------- structure


class Block:
    """A decoder block inside a trace. ``output`` is the residual stream [batch, token, width] after it, to read or to set;
    ``input`` is the one before it.

    Some families return the stream alone, others a tuple that begins with it.
    """

    def __init__(self, envoy: Any) -> None:
        self._envoy = envoy

    @property
    def _module(self) -> torch.nn.Module:
        return self._envoy._module  # under the name that nnsight gives it

    @property
    def input(self) -> torch.Tensor:
        """The residual stream before this block, as it reads it."""
        return self._envoy.input

    @property
    def output(self) -> torch.Tensor:
        """The residual stream after this block."""
        output = self._envoy.output
        return output[0] if isinstance(output, tuple) else output

    @output.setter
    def output(self, stream: torch.Tensor) -> None:
        output = self._envoy.output
        self._envoy.output = (stream, *output[1:]) if isinstance(output, tuple) else stream


def remote(model: TransformersModel) -> bool:
    """Say whether NDIF runs a model's traces: no weights of it are here."""
    return not model.dispatched


def input_device(model: TransformersModel) -> torch.device:
    """Return where the inputs of a trace belong."""
    return torch.device("cpu") if remote(model) else model._module.device


def decoder_layers(model: TransformersModel) -> Sequence[Any]:
    """Return the decoder blocks; inside a trace, ``output`` of one is the residual stream [batch, token, width] after it."""
    envoys = model.get(_blocks(model._module)[0])
    # NDIF does not have this project, so nothing of it may be in a trace.
    return envoys if remote(model) else [Block(envoy) for envoy in envoys]


def final_norm(model: TransformersModel) -> Any:
    """Return the norm after the last decoder block."""
    return model.get(_final_norm(model._module))


def width(model: TransformersModel) -> int:
    """Return the width of the residual stream."""
    return model._module.config.get_text_config().hidden_size


def context_length(model: TransformersModel) -> int:
    """Return the longest sequence, in tokens, that the model was built for; of a model without such a limit, very many."""
    text = model._module.config.get_text_config()
    lengths = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((length for length in lengths if length), 2**31)


def pad(
    rows: Sequence[Sequence[int] | np.ndarray], pad_id: int, side: Literal["right", "left"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask``, int64 [row, token]: token ids padded on one side to the longest row."""
    tokens = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    input_ids = pad_sequence(tokens, batch_first=True, padding_value=pad_id, padding_side=side)
    attention_mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True, padding_side=side)
    return input_ids, attention_mask


def check_residual_stream(model: TransformersModel) -> None:
    """Trace two words and raise ``ModelError`` unless two things hold on which extraction relies.

    The output of every block is [batch, token, width], and the final norm of the last one is transformers' last hidden
    state: the residual stream is read before that norm.
    """
    tokens = model.tokenizer("it is", return_tensors="pt").to(input_device(model))
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    layers, norm = decoder_layers(model), final_norm(model)
    with model.trace(inputs, output_hidden_states=True, use_cache=False, remote=remote(model)):
        streams = [layer.output for layer in layers]
        shapes = [tuple(stream.shape) for stream in streams].save()
        last_hidden_state = model.output.hidden_states[-1].save()
        normed = norm(streams[-1]).save()
    expected = (*tokens["input_ids"].shape, width(model))
    if wrong := set(shapes) - {expected}:
        raise ModelError(f"decoder blocks should output [batch, token, width] = {expected}, got {wrong.pop()}")
    # Where blocks lie on several GPUs, the norm is on the last one and the model's output on the first.
    if not torch.allclose(normed.to(last_hidden_state.device), last_hidden_state, rtol=1e-2, atol=1e-3):
        raise ModelError("the final norm of the last block's output is not transformers' last hidden state")


def _blocks(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the path of the decoder blocks and the blocks: the outermost list with as many as the configuration says."""
    decoder, number = module.get_decoder(), module.config.get_text_config().num_hidden_layers
    for path, part in decoder.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == number:
            outer = next(name for name, other in module.named_modules() if other is decoder)
            return f"{outer}.{path}".removeprefix("."), part
    raise ModelError(f"{type(module).__name__} has no list of {number} decoder blocks, as its configuration says")


def _final_norm(module: nn.Module) -> str:
    """Return the path of the final norm: of the norms that stand beside the list of blocks, the last."""
    outer = _blocks(module)[0].rpartition(".")[0]
    norms = [name for name, part in module.get_submodule(outer).named_children() if "Norm" in type(part).__name__]
    if not norms:
        raise ModelError(
            f"{type(module).__name__} has no norm beside its decoder blocks, so it cannot be checked that their output is "
            "the residual stream"
        )
    return f"{outer}.{norms[-1]}".removeprefix(".")
