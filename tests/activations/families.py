"""Families of models: a tiny random one of each, where its blocks and final norm are, and the streams that raw hooks see.

The book's list of families is this table (``test_families.py`` compares).
"""

from typing import NamedTuple

import numpy as np
import torch
from conftest import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from lib.activations import models

COMMON = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
TOKENS = {"vocab_size": 258, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
OF_MANY = TOKENS | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
# As many vision blocks as text blocks, so that the wrong list would be found by its length alone.
PIXTRAL = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 8,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
QWEN_EYE = {"depth": 3, "hidden_size": 32, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


class Family(NamedTuple):
    """A family: transformers' name of it, what its tiny configuration needs, and the paths of its blocks and final norm."""

    model_type: str
    special: dict
    blocks: str = "model.layers"
    norm: str = "model.norm"


FAMILIES = {
    "Bloom": Family("bloom", OF_MANY | {"n_layer": 3, "n_head": 4}, "transformer.h", "transformer.ln_f"),
    "Falcon": Family("falcon", OF_MANY, "transformer.h", "transformer.ln_f"),
    "Gemma 2": Family("gemma2", COMMON),
    "Gemma 3 (text)": Family("gemma3_text", COMMON),
    "GPT-2": Family(
        "gpt2",
        TOKENS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
        "transformer.h",
        "transformer.ln_f",
    ),
    "GPT-J": Family(
        "gptj", TOKENS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}, "transformer.h", "transformer.ln_f"
    ),
    "GPT-Neo": Family(
        "gpt_neo",
        TOKENS | {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},
        "transformer.h",
        "transformer.ln_f",
    ),
    "GPT-NeoX, Pythia": Family("gpt_neox", COMMON, "gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "gpt-oss": Family("gpt_oss", COMMON | EXPERTS),
    "Granite": Family("granite", COMMON),
    "LFM2": Family("lfm2", COMMON | {"layer_types": ["conv", "full_attention", "conv"]}, norm="model.embedding_norm"),
    "Llama 3": Family("llama", COMMON),
    "Llama 4 (text)": Family("llama4_text", COMMON | EXPERTS | {"num_experts_per_tok": 1, "intermediate_size_mlp": 48}),
    "Mamba": Family(
        "mamba",
        TOKENS | {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
        "backbone.layers",
        "backbone.norm_f",
    ),
    "Mistral": Family("mistral", COMMON),
    "Mistral 3 (its text part)": Family(
        "mistral3",
        {"text_config": COMMON | {"model_type": "mistral"}, "vision_config": PIXTRAL | {"model_type": "pixtral"}},
        "model.language_model.layers",
        "model.language_model.norm",
    ),
    "Mixtral": Family("mixtral", COMMON | EXPERTS),
    "MPT": Family(
        "mpt",
        TOKENS | {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2},
        "transformer.blocks",
        "transformer.norm_f",
    ),
    "OLMo 2": Family("olmo2", COMMON),
    "OPT": Family(
        "opt",
        OF_MANY | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
    ),
    "Phi": Family("phi", COMMON | {"num_key_value_heads": 4}, norm="model.final_layernorm"),
    "Phi-3": Family("phi3", COMMON),
    "Qwen2": Family("qwen2", COMMON),
    "Qwen2.5-VL (its text part)": Family(
        "qwen2_5_vl",
        {"text_config": COMMON | {"rope_parameters": ROPE}, "vision_config": QWEN_EYE},
        "model.language_model.layers",
        "model.language_model.norm",
    ),
    "Qwen3": Family("qwen3", COMMON),
    "Qwen3-MoE": Family("qwen3_moe", COMMON | EXPERTS),
    "SmolLM3": Family("smollm3", COMMON),
    "StarCoder 2": Family("starcoder2", COMMON),
}

REFUSED = {
    "OPT without a final norm": (
        Family("opt", OF_MANY | {"ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
        "has no norm beside its decoder blocks",
    ),
    "BERT": (Family("bert", OF_MANY | {"intermediate_size": 48}), "has no norm beside its decoder blocks"),
}
"""Family -> what it is and why it is refused."""


def configuration(family):
    return AutoConfig.for_model(family.model_type, **family.special)


def random_module(family):
    config = configuration(family)
    images = type(config).__name__ in ("Mistral3Config", "Qwen2_5_VLConfig")
    torch.manual_seed(0)
    raw = (AutoModelForImageTextToText if images else AutoModelForCausalLM).from_config(config)
    for parameter in raw.eval().requires_grad_(False).parameters():
        # Some modules leave parameters uninitialised; and zeros would hide mistakes.
        torch.nn.init.normal_(parameter, std=0.05)
    return raw


def random_model(name):
    return models.traceable(random_module(FAMILIES[name]), byte_tokenizer())


def hooked_streams(raw, ids, blocks="model.layers"):
    """Residual stream after every block for one unpadded prompt, [layer, token, width], by raw hooks."""
    streams = []

    def keep(module, inputs, output):
        streams.append((output[0] if isinstance(output, tuple) else output).detach().cpu())

    handles = [layer.register_forward_hook(keep) for layer in raw.get_submodule(blocks)]
    try:
        raw(torch.from_numpy(np.asarray(ids))[None].to(raw.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(streams).float().numpy()
