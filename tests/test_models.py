"""Opening models: the registry, and what a wrong directory is told."""

import http.server
import importlib.metadata
import json
import shutil
import threading

import httpx
import pytest
import torch
from conftest import byte_tokenizer
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from nnsight import TransformersModel
from test_residuals import COMMON
from transformers import GPT2Config, GPT2LMHeadModel, GptOssConfig

from lib import models, residuals, sources
from lib.profiles import load_profile
from lib.registry import registry


def test_the_registry_holds_the_23_models_of_the_paper():
    known = registry()
    assert len(known) == 23
    assert known["name"].is_unique
    assert known["hub"].is_unique
    assert known["variant"].isin(["base", "instruct", "guard"]).all()
    assert known["architecture"].value_counts().to_dict() == {"dense": 15, "moe": 8}


def test_the_paper_profile_runs_exactly_the_registry():
    sources = load_profile("profiles/paper.yaml").sources
    assert {name: source.hub for name, source in sources.items()} == dict(
        registry()[["name", "hub"]].itertuples(index=False)
    )


def test_memory_in_bf16_is_two_bytes_a_parameter():
    known = registry()
    assert (known["bf16_gigabytes"] - 2 * known["parameters_billions"]).abs().max() < 0.06


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no .safetensors file"),
        ("tokenizer*", "has no tokenizer"),
    ],
)
def test_an_incomplete_directory_is_told_what_it_lacks(tiny_model, tmp_path, removed, message):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    for path in copy.glob(removed):
        path.unlink()
    with pytest.raises(models.ModelError, match=message):
        models.load(str(copy))


def test_a_wrong_path_says_where_paths_start():
    with pytest.raises(models.ModelError, match=r"model directory not found: \./nowhere"):
        models.load("./nowhere")


def test_the_fingerprint_changes_with_the_weights(tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    before = sources.fingerprint(str(copy))
    assert before == sources.fingerprint(str(tiny_model))
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert sources.fingerprint(str(copy)) != before


def test_the_configuration_is_read_without_the_weights(tiny_model):
    assert models.describe(str(tiny_model)) == {
        "architecture": "qwen3",
        "layers": 3,
        "width": 32,
        "vocabulary": 258,
    }


def test_a_stream_that_is_not_the_one_before_the_final_norm_is_refused(tiny_model, monkeypatch):
    model = models.load(str(tiny_model))
    model._module.model.layers[0].input_layernorm.weight.fill_(2.0)
    monkeypatch.setattr(models, "final_norm", lambda model: models.decoder_layers(model)[0].input_layernorm)
    with pytest.raises(models.ModelError, match="final norm"):
        models.check_residual_stream(model)


def test_blocks_of_another_shape_are_refused(tiny_model, monkeypatch):
    model = models.load(str(tiny_model))
    monkeypatch.setattr(models, "width", lambda model: 64)
    with pytest.raises(models.ModelError, match=r"\[batch, token, width\] = \(1, 5, 64\), got \(1, 5, 32\)"):
        models.check_residual_stream(model)


def test_the_first_blocks_alone_give_the_streams_of_the_whole_model(tiny_model):
    whole, cut = models.load(str(tiny_model)), models.load(str(tiny_model), first_layers=2)
    assert len(models.decoder_layers(cut)) == 2
    prompts = residuals.tokenize(whole.tokenizer, ["helping", "lying to a friend"])
    streams = residuals.pooled_residuals(whole, prompts, range(2))
    torch.testing.assert_close(residuals.pooled_residuals(cut, prompts, range(2)), streams[:, :2], rtol=0, atol=0)
    with pytest.raises(models.ModelError, match="first_layers should be from 1 to 3"):
        models.load(str(tiny_model), first_layers=4)


def test_lists_with_an_entry_a_block_are_cut_with_the_blocks(tmp_path):
    directory = tmp_path / "gpt-oss"
    GptOssConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2).save_pretrained(directory)
    for name in ("model.safetensors", "tokenizer.json"):
        (directory / name).touch()
    config = models.configuration(str(directory), first_layers=2)
    assert config.num_hidden_layers == len(config.layer_types) == 2
    assert models.size(str(directory), first_layers=2).layers == 2


def test_sizes_come_from_the_registry_without_a_network(monkeypatch):
    monkeypatch.setattr(sources, "hf_hub_download", refuse_network)
    assert models.size("Qwen/Qwen3-235B-A22B").active == 22e9
    assert models.size("Qwen/Qwen3-8B", first_layers=18) == pytest.approx((4.1e9, 4.1e9, 18, 4096))


def test_a_model_without_a_known_list_of_blocks_says_where_to_add_it(tmp_path):
    directory = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=258)).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    with pytest.raises(models.ModelError, match=r"GPT2LMHeadModel has no list of decoder blocks at model\.layers"):
        models.load(str(directory))


@pytest.mark.parametrize("device", ["cuda", "8bit", "4bit"])
def test_a_card_that_is_not_there_is_asked_for_in_vain(tiny_model, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(models.ModelError, match=f"device: {device} needs an NVIDIA card .* sees none"):
        models.load(str(tiny_model), device=device)


def test_quantising_without_its_package_says_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(models.ModelError, match="needs the package bitsandbytes"):
        models.load(str(tiny_model), device="8bit")


class Opened(Exception):
    """Raised in place of opening a model, with the options it would be opened with."""


def options_of(monkeypatch, source, **arguments):
    def opened(location, **options):
        raise Opened(options)

    monkeypatch.setattr(models, "TransformersModel", opened)
    with pytest.raises(Opened) as caught:
        models.load(source, **arguments)
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("device", "cards", "device_map"),
    [("auto", True, "auto"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_where_a_model_is_put(tiny_model, monkeypatch, device, cards, device_map):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards)
    options = options_of(monkeypatch, str(tiny_model), device=device)
    assert options["device_map"] == device_map
    assert options["dispatch"]
    assert options["use_safetensors"]
    assert options["trust_remote_code"] is False


def test_quantised_loading_is_handed_to_transformers(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: object())
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.49" if name == "bitsandbytes" else real(name))
    eight = options_of(monkeypatch, str(tiny_model), device="8bit")
    assert eight["quantization_config"].load_in_8bit
    assert eight["device_map"] == "auto"
    four = options_of(monkeypatch, str(tiny_model), device="4bit", dtype="bfloat16")["quantization_config"]
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == (True, "nf4", torch.bfloat16)


def test_an_unknown_device_is_refused(tiny_model):
    with pytest.raises(models.ModelError, match="device should be auto, cpu, cuda, 8bit, 4bit or remote, got 'gpu'"):
        models.load(str(tiny_model), device="gpu")


def hub_of(tiny_model, monkeypatch, commit="0123456789abcdef"):
    """Put a directory where the hub's cache would have it, and let nothing reach the hub."""
    snapshot = tiny_model.parent / "snapshots" / commit
    if not snapshot.exists():
        shutil.copytree(tiny_model, snapshot)
    monkeypatch.setattr(sources, "hf_hub_download", lambda repo, name, revision: str(snapshot / name))
    return snapshot


def test_a_branch_is_recorded_as_the_commit_it_means_and_read_at_that_commit(tiny_model, monkeypatch):
    hub_of(tiny_model, monkeypatch, "0123456789abcdef")
    assert sources.fingerprint("owner/name", "main") == {"hub": "owner/name", "commit": "0123456789abcdef"}
    monkeypatch.setattr(models, "tokenizer", lambda *arguments: None)
    assert options_of(monkeypatch, "owner/name", revision="main")["revision"] == "0123456789abcdef"


def refuse_network(*arguments, **options):
    raise AssertionError("must not touch the network")


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("no", response=response(403)), "owner/name is gated: accept its licence at https://"),
        (RepositoryNotFoundError("no", response=response(404)), "neither a directory of the project nor a model"),
        (RevisionNotFoundError("no", response=response(404)), "has no revision 'v9'"),
        (LocalEntryNotFoundError("no"), "not in the cache of the hub and the hub cannot be reached"),
    ],
)
def test_a_model_of_the_hub_that_cannot_be_had_says_why(monkeypatch, error, message):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(sources, "hf_hub_download", fails)
    with pytest.raises(models.ModelError, match=message):
        models.load("owner/name", revision="v9")


@pytest.fixture
def model_with_code(tiny_model, tmp_path):
    """A model that brings Python code of its own, which leaves a trace when it is run."""
    directory = tmp_path / "own-code"
    shutil.copytree(tiny_model, directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class Own(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    return directory


def test_a_models_own_code_runs_only_when_it_is_named(model_with_code, tmp_path, monkeypatch):
    source = str(model_with_code)
    with pytest.raises(models.ModelError, match=f"own Python code, which is not run.*trust_remote_code: {source}"):
        models.load(source)
    with pytest.raises(models.ModelError, match="trust_remote_code names 'someone/else'"):
        models.load(source, trust_remote_code="someone/else")
    assert not (tmp_path / "ran").exists()
    assert models.configuration(source, trust_remote_code=source).num_hidden_layers == 3
    assert (tmp_path / "ran").exists()


def test_a_kind_of_model_that_transformers_does_not_know_is_named(tiny_model, tmp_path):
    directory = tmp_path / "unknown"
    shutil.copytree(tiny_model, directory)
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "of-tomorrow"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(models.ModelError, match=r"model_type 'of-tomorrow' .* is not known to transformers"):
        models.load(str(directory))


def test_a_remote_model_needs_a_hub_id_and_a_key(tiny_model, monkeypatch):
    with pytest.raises(models.ModelError, match="device: remote needs a hub id"):
        models.load(str(tiny_model), device="remote")
    hub_of(tiny_model, monkeypatch)
    monkeypatch.setattr(models.CONFIG.API, "APIKEY", None)
    with pytest.raises(models.ModelError, match="set NDIF_API_KEY"):
        models.load("owner/name", device="remote")


def test_a_remote_trace_is_sent_to_ndif_with_the_key_and_no_weights_are_read(tiny_model, monkeypatch):
    """Everything but the answer: a server of this machine takes the request and refuses it."""
    requests = []

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers["ndif-api-key"]))
            self.send_error(401, "unknown key")

        do_POST = do_GET

        def log_message(self, *arguments):
            """Say nothing."""

    model = TransformersModel(str(tiny_model), tokenizer=byte_tokenizer(), task="text-generation", dispatch=False)
    monkeypatch.setattr(TransformersModel, "to_model_key", lambda self: "key")
    assert models.remote(model)
    assert models.input_device(model).type == "cpu"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(models.CONFIG.API, "HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(models.CONFIG.API, "APIKEY", "a-key")
        prompts = residuals.tokenize(model.tokenizer, ["helping"])
        with pytest.raises(Exception, match=r"401|unknown key"):
            residuals.pooled_residuals(model, prompts, range(1))
        server.shutdown()
    assert requests
    assert {key for _, key in requests} == {"a-key"}
    assert all(parameter.is_meta for parameter in model._module.parameters())


def test_what_is_sent_to_ndif_computes_the_same_without_this_project(tiny_model, monkeypatch):
    """nnsight's dry run serializes the trace, hides the modules of this project and runs it here."""
    model = models.load(str(tiny_model))
    prompts = residuals.tokenize(model.tokenizer, ["helping", "lying to a friend"])
    expected = residuals.pooled_residuals(model, prompts, range(2))
    monkeypatch.setattr(models, "remote", lambda model: "local")
    monkeypatch.setattr(models, "input_device", lambda model: torch.device("cpu"))
    models.check_residual_stream(model)
    torch.testing.assert_close(residuals.pooled_residuals(model, prompts, range(2)), expected, rtol=0, atol=0)
