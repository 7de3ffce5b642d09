"""The other sources of a model, GGUF files and untrained twins; and that weights are what was asked for."""

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from activations.families import COMMON, FAMILIES, hooked_streams, random_module
from activations.test_families import ACTIONS, expected_poolings
from conftest import byte_tokenizer
from engine import REAL_PROFILE
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lib.activations import extraction, models, sources
from lib.run.profile import load_profile
from lib.run.validation import ParameterError
from workflow import workload

GGUF_FILE = "COMPANION_GGUF"
"""Environment variable that names a real GGUF file, to be read as raw hooks read it."""


# ------------------------------------------------------------------------------------------------ GGUF

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
"""Module in transformers -> tensor in a GGUF file."""


def write_gguf(path: Path, raw, kind: str, quantised: bool = False) -> None:
    """Write a model with the byte tokenizer as llama.cpp would, by the package's writer."""
    config, writer = raw.config, gguf.GGUFWriter(path, kind)
    writer.add_context_length(512)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(config.vocab_size)
    tokens = byte_tokenizer().convert_ids_to_tokens(range(258))
    tokens.append(tokens[2] + tokens[3])  # the one pair that is merged
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * 257])
    writer.add_token_merges([f"{tokens[2]} {tokens[3]}"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    for name, weight in raw.state_dict().items():
        block, rest = "", name
        if name.startswith("model.layers."):
            number, rest = name.removeprefix("model.layers.").split(".", 1)
            block = f"blk.{number}."
        module, _, leaf = rest.rpartition(".")
        values = weight.float().numpy()
        if kind == "llama" and module.endswith(("q_proj", "k_proj")):  # llama.cpp turns pairs, not halves
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if quantised and values.ndim == 2:
            values = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{block}{NAMES[module]}.{leaf}", values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{block}{NAMES[module]}.{leaf}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def small_llama(kind):
    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    torch.manual_seed(0)
    raw = (
        model(config(**COMMON | {"vocab_size": 259, "intermediate_size": 64}, tie_word_embeddings=False))
        .eval()
        .requires_grad_(False)
    )
    for parameter in raw.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return raw


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_gguf_file_is_read_as_the_model_that_was_written_into_it(tmp_path, kind):
    raw, file = small_llama(kind), tmp_path / "tiny.gguf"
    write_gguf(file, raw, kind)
    model = models.open_model(str(file))
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    pooled = extraction.pooled_residuals(model, prompts, rows=range(len(ACTIONS))).cpu().numpy()
    for row, (action, ids) in enumerate(zip(prompts.actions, prompts.tokens, strict=True)):
        assert len(ids) == len(f"{action} is morally".encode()), "a token per byte"
        expected = expected_poolings(hooked_streams(raw, ids), action)
        np.testing.assert_allclose(pooled[:, :, row], expected, atol=1e-5)
    count = sum(weight.numel() for weight in raw.parameters())
    assert sources.size(str(file)) == (count, count, 3, 32)


def test_packed_weights_of_a_gguf_file_are_unpacked_to_the_dtype_asked_for(tmp_path):
    raw, file = small_llama("qwen2"), tmp_path / "tiny.gguf"
    write_gguf(file, raw, "qwen2", quantised=True)
    module = models.open_model(str(file), dtype="bfloat16", first_layers=2)._module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert len(module.model.layers) == 2
    error = (module.model.layers[1].mlp.up_proj.weight - raw.model.layers[1].mlp.up_proj.weight).abs().max()
    assert 1e-5 < error < 2e-3, "eight bits per weight and no more"


def test_the_identity_of_a_gguf_file_is_its_bytes_and_that_of_its_twin_its_header(tmp_path):
    raw, first, second = small_llama("llama"), tmp_path / "a.gguf", tmp_path / "b.gguf"
    write_gguf(first, raw, "llama")
    raw.model.norm.weight.mul_(2)
    write_gguf(second, raw, "llama")
    assert sources.fingerprint(str(first)) != sources.fingerprint(str(second))
    twins = [sources.fingerprint(str(file), untrained=0) for file in (first, second)]
    assert twins[0] == twins[1]
    assert set(twins[0]) == {"gguf header"}
    raw.config.rms_norm_eps = 1e-5
    write_gguf(second, raw, "llama")
    assert sources.fingerprint(str(second), untrained=0) != twins[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"GGUF file not found: .*none\.gguf"), (b"not such a file at all", r"none\.gguf cannot be read: ")],
)
def test_a_file_that_is_no_gguf_file_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "none.gguf").write_bytes(content)
    with pytest.raises(models.ModelError, match=message):
        models.open_model(str(tmp_path / "none.gguf"))


def test_a_real_gguf_file_equals_raw_hooks_on_real_rows(real_data):
    if GGUF_FILE not in os.environ:
        pytest.skip(f"{GGUF_FILE} names no real GGUF file")
    file = Path(os.environ[GGUF_FILE])
    model = models.open_model(str(file))
    raw = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=models.GgufConfig(dequantize=True)
    )
    actions = pd.read_csv(real_data / "social-chem-101.part.csv")["action"].dropna().unique()[::200][:50].tolist()
    prompts = extraction.tokenize(model.tokenizer, actions)
    pooled = extraction.pooled_residuals(model, prompts, rows=range(len(actions))).cpu().numpy()
    with torch.no_grad():
        for row, (ids, in_action) in enumerate(zip(prompts.tokens, prompts.in_action, strict=True)):
            streams = hooked_streams(raw.eval(), ids)
            expected = [streams.mean(1), streams[:, 1:].mean(1), streams[:, in_action].mean(1), streams[:, -1]]
            np.testing.assert_allclose(pooled[:, :, row], expected, atol=1e-5 * np.abs(streams).max())


# ---------------------------------------------------------------------------------------- untrained twin


def test_an_untrained_twin_reads_the_same_tokens_with_other_weights_and_is_the_same_again(tiny_model):
    model, twin = (models.open_model(str(tiny_model), untrained=seed) for seed in (None, 7))
    again, other = (models.open_model(str(tiny_model), untrained=seed) for seed in (7, 8))
    assert twin.tokenizer("it is")["input_ids"] == model.tokenizer("it is")["input_ids"]
    for name, weight in twin._module.state_dict().items():
        assert torch.equal(weight, again._module.state_dict()[name])
        if "norm" not in name:
            assert not torch.equal(weight, model._module.state_dict()[name])
            assert not torch.equal(weight, other._module.state_dict()[name])
    projection = twin._module.model.layers[0].mlp.up_proj.weight
    assert projection.std() == pytest.approx(model._module.config.initializer_range, rel=0.1)


def test_drawing_a_twin_leaves_other_draws_alone(tiny_model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models.open_model(str(tiny_model), untrained=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_twin_is_drawn_whole(name, tmp_path):
    """Nothing is left as it happened to lie in memory: two draws from one seed agree, and all is finite and moderate."""
    random_module(FAMILIES[name]).config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    byte_tokenizer().save_pretrained(tmp_path)
    first, second = (models.open_model(str(tmp_path), untrained=3)._module.state_dict() for _ in range(2))
    for key, weight in first.items():
        assert torch.equal(weight, second[key]), key
        assert weight.isfinite().all(), key
        assert weight.abs().max() < 1e3, key


def test_the_identity_of_a_twin_is_that_of_configuration_and_tokenizer(tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    twin = sources.fingerprint(str(copy), untrained=0)
    assert set(twin) == {file.name for file in tiny_model.glob("*.json")}
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert sources.fingerprint(str(copy), untrained=0) == twin
    (copy / "config.json").write_text(
        (copy / "config.json").read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 1')
    )
    assert sources.fingerprint(str(copy), untrained=0) != twin


# ---------------------------------------------------------------------------------------------- profiles


def profile_of(tmp_path, entries, **changes):
    content = yaml.safe_load(REAL_PROFILE) | {"models": entries, "sae_model": entries[0]["name"]} | changes
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_profile(path)


def test_a_twin_in_a_profile_has_the_source_of_its_model_and_the_profiles_seed(tmp_path):
    entries = [
        {"name": "big", "hub": "Qwen/Qwen3-8B", "revision": "main", "trust_remote_code": True},
        {"name": "big-twin", "like": "big"},
    ]
    profile = profile_of(tmp_path, entries, seed=7)
    of = {name: profile.stage_parameters("activations", name) for name in ("big", "big-twin")}
    same = {key: of["big"][key] for key in ("model_source", "revision", "trust_remote_code")}
    assert {key: of["big-twin"][key] for key in same} == same
    assert (of["big"]["untrained"], of["big-twin"]["untrained"]) == (None, 7)
    assert workload.size(profile.sources["big-twin"]) == workload.size(profile.sources["big"])
    assert profile.stage_parameters("steering", "big-twin")["untrained"] == 7


def test_of_the_experts_of_a_gguf_file_those_that_read_a_token_are_planned_for(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "experts.gguf", "qwen3moe")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_expert_count(4)
    writer.add_expert_used_count(1)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((8, 8), np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((4, 16, 8), np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    profile = profile_of(tmp_path, [{"name": "tiny", "gguf": str(tmp_path / "experts.gguf")}])
    assert workload.size(profile.sources["tiny"]) == (64 + 512, 64 + 512 / 4, 1, 8)


def test_a_gguf_file_in_a_profile_is_planned_by_its_header(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", raw := small_llama("qwen2"), "qwen2", quantised=True)
    profile = profile_of(
        tmp_path, [{"name": "tiny", "gguf": str(tmp_path / "tiny.gguf")}, {"name": "t", "like": "tiny"}]
    )
    count = sum(weight.numel() for weight in raw.parameters())
    assert workload.size(profile.sources["tiny"]) == workload.size(profile.sources["t"]) == (count, count, 3, 32)
    assert profile.sources["t"].file == str(tmp_path / "tiny.gguf"), "the file that must be there"
    assert workload.size(profile.sources["t"].model_copy(update={"gguf": "nowhere.gguf"})) is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "a", "hub": "x/y", "gguf": "f.gguf"}], "needs one of path .*gguf .*like .*, got hub and gguf"),
        ([{"name": "a", "hub": "x/y"}, {"name": "b", "like": "c"}], "like: 'c' is no trained model"),
        ([{"name": "a", "like": "a"}], "like: 'a' is no trained model"),
        (
            [{"name": "a", "path": "x"}, {"name": "b", "like": "a"}, {"name": "c", "like": "b"}],
            "like: 'b' is no trained model",
        ),
    ],
)
def test_a_source_that_is_not_one_is_refused(tmp_path, entries, message):
    with pytest.raises(ParameterError, match=message):
        profile_of(tmp_path, entries)


# ----------------------------------------------------------------------------------- weights as asked for


def test_weights_in_another_number_format_are_refused(tiny_model):
    module = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    models.check_weights(module, torch.bfloat16)
    module.model.layers[1].mlp.up_proj.float()
    with pytest.raises(
        models.ModelError, match=r"layers\.1\.mlp\.up_proj\.weight has torch\.float32, but torch\.bfloat16"
    ):
        models.check_weights(module, torch.bfloat16)
    module._keep_in_fp32_modules = {"up_proj"}
    models.check_weights(module, torch.bfloat16)


def test_weights_left_out_of_memory_are_refused(tiny_model, tmp_path):
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    places["model.rotary_emb"] = "cpu"
    module = AutoModelForCausalLM.from_pretrained(tiny_model, device_map=places, offload_folder=tmp_path)
    with pytest.raises(models.ModelError, match=r"weights, such as model\.layers\.0\..*, do not fit the devices"):
        models.check_weights(module, torch.float32)


def test_how_a_model_was_opened_is_said(tiny_model):
    opened = models.opened_as(models.open_model(str(tiny_model), dtype="bfloat16", device="cpu"))
    facts = opened.set_index("fact")["value"].to_dict()
    assert facts["number formats"] == "bfloat16"
    assert facts["devices"] == "cpu"
    assert facts["quantisation"] == "none"
    assert facts["attention"] == "sdpa"
    assert facts["blocks"] == "Qwen3DecoderLayer"
    assert facts["final norm"] == "model.norm"


def mxfp4_model(directory):
    """A gpt-oss whose experts are packed as MXFP4, two numbers in a byte, and the sizes of what was packed."""
    config = GptOssConfig(**COMMON | {"intermediate_size": 32}, num_local_experts=2, num_experts_per_tok=1)
    torch.manual_seed(0)
    raw = GptOssForCausalLM(config)
    weights = {name: value.bfloat16() for name, value in raw.state_dict().items()}
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = weights.pop(name).shape
        weights[f"{name}_blocks"] = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.full((experts, outer, inner // 32), 120, dtype=torch.uint8)
    config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    config.architectures = ["GptOssForCausalLM"]
    config.save_pretrained(directory)
    from safetensors.torch import save_file

    save_file(
        {name: value.contiguous() for name, value in weights.items()}, directory / "model.safetensors", {"format": "pt"}
    )
    byte_tokenizer().save_pretrained(directory)
    return sum(parameter.numel() for parameter in raw.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_packed_as_mxfp4_are_unpacked_and_planned_by_their_true_number(tmp_path, dtype):
    count = mxfp4_model(tmp_path)
    module = models.open_model(str(tmp_path), dtype=dtype)._module
    assert {parameter.dtype for parameter in module.parameters()} == {getattr(torch, dtype)}
    assert module.num_parameters() == count
    assert len(module.model.layers[0].mlp.experts.gate_up_proj.unique()) == 15, "sixteen codes, of which two are zero"
    assert sources.size(str(tmp_path)).parameters == count
    (profile,) = [profile_of(tmp_path, [{"name": "packed", "path": str(tmp_path)}])]
    assert workload.size(profile.sources["packed"]).parameters == count
    assert models.open_model(str(tmp_path), untrained=0)._module.num_parameters() == count
