"""Opening models: the registry, and what a wrong directory is told."""

import http.server
import importlib.metadata
import json
import shutil
import threading

import httpx
import numpy as np
import pytest
import torch
from activations.families import COMMON
from activations.two_devices import FIRST, SECOND, Devices, open_on_two
from conftest import byte_tokenizer
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from nnsight import TransformersModel
from nnsight.modeling.huggingface import _ID_CACHE
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedTokenizerFast

from lib.activations import extraction, models, preflight, sources
from lib.paper import models as paper_models
from lib.run.profile import load_profile


def test_the_registry_holds_the_23_models_of_the_paper():
    known = paper_models()
    assert len(known) == 23
    assert known["name"].is_unique
    assert known["hub"].is_unique
    assert known["variant"].isin(["base", "instruct", "guard"]).all()
    assert set(known["family"]) == {"Qwen3", "Llama-3.1", "Llama-4", "gpt-oss"}, "a guard is of the family of its base"
    assert known["architecture"].value_counts().to_dict() == {"dense": 15, "moe": 8}


def test_the_paper_profile_runs_exactly_the_paper_models():
    sources = load_profile("profiles/paper.yaml").sources
    assert {name: source.hub for name, source in sources.items()} == dict(
        paper_models()[["name", "hub"]].itertuples(index=False)
    )


def test_memory_in_bf16_is_two_bytes_per_parameter():
    known = paper_models()
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
        models.open_model(str(copy))


def test_a_wrong_path_says_where_paths_start():
    with pytest.raises(models.ModelError, match=r"model directory not found: \./nowhere"):
        models.open_model("./nowhere")


def test_the_fingerprint_changes_with_the_weights(tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    before = sources.fingerprint(str(copy))
    assert before == sources.fingerprint(str(tiny_model))
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert sources.fingerprint(str(copy)) != before


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.model", "merges.txt", "modeling_own.py", "README.md"]
)
def test_the_fingerprint_changes_with_every_file_that_decides_what_is_computed(tiny_model, tmp_path, name):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / name).write_text("one")
    before = sources.fingerprint(str(copy)), sources.fingerprint(str(copy), untrained=0)
    (copy / name).write_text("other")
    after = sources.fingerprint(str(copy)), sources.fingerprint(str(copy), untrained=0)
    assert [old != new for old, new in zip(before, after, strict=True)] == [name != "README.md"] * 2


def test_a_tokenizer_without_padding_and_end_pads_with_some_token(tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer).save_pretrained(copy)
    assert sources.tokenizer(str(copy)).pad_token_id == 0


def test_the_configuration_is_read_without_the_weights(tiny_model, monkeypatch):
    config = sources.configuration(str(tiny_model))
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("qwen3", 3, 32)
    assert config.vocab_size == 258
    assert sources.size(str(tiny_model))[2:] == (3, 32)


def test_a_stream_that_is_not_the_one_before_the_final_norm_is_refused(tiny_model, monkeypatch):
    model = models.open_model(str(tiny_model))
    model._module.model.layers[0].input_layernorm.weight.fill_(2.0)
    monkeypatch.setattr(models, "final_norm", lambda model: model.get("model.layers.0.input_layernorm"))
    with pytest.raises(models.ModelError, match="final norm"):
        models.check_residual_stream(model)


def test_blocks_of_another_shape_are_refused(tiny_model, monkeypatch):
    model = models.open_model(str(tiny_model))
    monkeypatch.setattr(models, "width", lambda model: 64)
    with pytest.raises(models.ModelError, match=r"\[batch, token, width\] = \(1, 5, 64\), got \(1, 5, 32\)"):
        models.check_residual_stream(model)


def test_the_first_blocks_alone_give_the_streams_of_the_whole_model(tiny_model):
    whole, cut = models.open_model(str(tiny_model)), models.open_model(str(tiny_model), first_layers=2)
    assert len(models.decoder_layers(cut)) == 2
    prompts = extraction.tokenize(whole.tokenizer, ["helping", "lying to a friend"])
    streams = extraction.pooled_residuals(whole, prompts, rows=range(2))
    torch.testing.assert_close(extraction.pooled_residuals(cut, prompts, rows=range(2)), streams[:, :2], rtol=0, atol=0)
    with pytest.raises(models.ModelError, match="first_layers should be from 1 to 3"):
        models.open_model(str(tiny_model), first_layers=4)


def test_lists_with_one_entry_per_block_are_cut_with_the_blocks(tmp_path):
    directory = tmp_path / "gpt-oss"
    GptOssConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2).save_pretrained(directory)
    for name in ("model.safetensors", "tokenizer.json"):
        (directory / name).touch()
    config = sources.configuration(str(directory), first_layers=2)
    assert config.num_hidden_layers == len(config.layer_types) == 2
    assert sources.size(str(directory), first_layers=2).layers == 2


def test_sizes_come_from_the_registry_without_a_network(monkeypatch):
    monkeypatch.setattr(sources, "hf_hub_download", refuse_network)
    assert sources.size("Qwen/Qwen3-235B-A22B").active == 22e9
    assert sources.size("Qwen/Qwen3-8B", first_layers=18) == pytest.approx((4.1e9, 4.1e9, 18, 4096))


@pytest.mark.parametrize("device", ["cuda", "8bit", "4bit"])
def test_a_gpu_that_is_not_there_is_asked_for_in_vain(tiny_model, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(models.ModelError, match=f"device: {device} needs an NVIDIA GPU .* sees no GPU"):
        models.open_model(str(tiny_model), device=device)


def test_quantising_without_its_package_says_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(models.ModelError, match="needs the package bitsandbytes"):
        models.open_model(str(tiny_model), device="8bit")


class Opened(Exception):
    """Raised in place of reading weights, with the options they would be read with."""


def options_of(monkeypatch, source, **arguments):
    def read(place, **options):
        raise Opened(options)

    monkeypatch.setattr(preflight.AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(Opened) as caught:
        models.open_model(source, **arguments)
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("device", "gpus", "device_map"),
    [("auto", True, "auto"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_where_a_model_is_put(tiny_model, monkeypatch, device, gpus, device_map):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    options = options_of(monkeypatch, str(tiny_model), device=device)
    assert options["device_map"] == device_map
    assert options["use_safetensors"]
    assert options["trust_remote_code"] is False


@pytest.mark.parametrize("untrained", [{}, {"untrained": 7}], ids=["trained", "untrained"])
def test_a_model_opens_over_two_devices_with_the_weights_it_has_on_one(tiny_model, untrained):
    one, two = models.open_model(str(tiny_model), **untrained), open_on_two(str(tiny_model), **untrained)
    facts = models.opened_as(two).set_index("fact")["value"]
    assert facts["devices"] == f"{FIRST}, {SECOND}"
    assert models.input_device(two) == FIRST
    weights = dict(two._module.named_parameters())
    assert weights["lm_head.weight"].device == weights["model.norm.weight"].device == SECOND
    for name, weight in one._module.named_parameters():
        assert torch.equal(weights[name].cpu(), weight)


def test_a_model_stays_on_the_device_where_it_lies(tiny_model):
    """The pipeline that nnsight makes around it would move it to the first GPU, or to the CPU where there is none."""
    module = AutoModelForCausalLM.from_pretrained(tiny_model)
    with Devices():
        model = models.traceable(module.to(SECOND), byte_tokenizer())
        assert {str(weight.device) for weight in module.parameters()} == {str(SECOND)}
        assert models.input_device(model) == SECOND


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
        models.open_model(str(tiny_model), device="gpu")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_model, tmp_path, monkeypatch):
    """The hub's cache, filled with owner/name at one commit, and no network."""
    folder = tmp_path / "models--owner--name"
    shutil.copytree(tiny_model, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_branch_is_recorded_as_the_commit_it_means_and_read_at_that_commit(hub, tiny_model, monkeypatch):
    assert sources.fingerprint("owner/name", revision="main") == {"hub": "owner/name", "commit": COMMIT}
    opened = models.open_model("owner/name", revision="main")._module
    for name, weight in models.open_model(str(tiny_model))._module.state_dict().items():
        assert torch.equal(opened.state_dict()[name], weight)
    assert options_of(monkeypatch, "owner/name", revision="main")["revision"] == COMMIT
    with pytest.raises(models.ModelError, match="not in the cache of the hub and the hub cannot be reached"):
        models.open_model("owner/name", revision="v2")


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
        (OfflineModeIsEnabled("no"), "not in the cache of the hub and the hub cannot be reached"),
        (RemoteEntryNotFoundError("no", response=response(404)), "has no config.json on the hub.*as `gguf: FILE`"),
        (
            HfHubHTTPError("503 busy", response=response(503)),
            "the hub does not give owner/name now: 503 busy. Try again",
        ),
        (HFValidationError("owner//name"), "owner/name cannot be read: owner//name"),
    ],
)
def test_a_model_of_the_hub_that_cannot_be_had_says_why(monkeypatch, error, message):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(sources, "hf_hub_download", fails)
    with pytest.raises(models.ModelError, match=message):
        models.open_model("owner/name", revision="v9")


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


def test_a_models_own_code_runs_only_when_it_is_allowed(model_with_code, tmp_path):
    source = str(model_with_code)
    with pytest.raises(models.ModelError, match=r"own Python code, which is not run.*trust_remote_code: true"):
        models.open_model(source)
    with pytest.raises(models.ModelError, match=r"own Python code"):
        sources.tokenizer(source)
    assert not (tmp_path / "ran").exists()
    assert sources.size(source, trust_remote_code=True).layers == 3
    assert (tmp_path / "ran").exists()
    model = models.open_model(source, trust_remote_code=True)
    assert models.opened_as(model).set_index("fact").loc["class", "value"] == "Own"


def test_a_kind_of_model_that_transformers_does_not_know_is_named(tiny_model, tmp_path):
    directory = tmp_path / "unknown"
    shutil.copytree(tiny_model, directory)
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "of-tomorrow"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(models.ModelError, match=r"model_type 'of-tomorrow' .* is not known to transformers"):
        models.open_model(str(directory))


def test_a_remote_model_needs_a_hub_id_and_a_key(tiny_model, hub, monkeypatch):
    with pytest.raises(models.ModelError, match="device: remote needs a hub id"):
        models.open_model(str(tiny_model), device="remote")
    monkeypatch.setattr(models.CONFIG.API, "APIKEY", None)
    with pytest.raises(models.ModelError, match="set NDIF_API_KEY"):
        models.open_model("owner/name", device="remote")


@pytest.mark.parametrize("changes", [{"first_layers": 2}, {"untrained": 0}])
def test_a_remote_model_is_read_whole_and_trained(hub, monkeypatch, changes):
    monkeypatch.setattr(models.CONFIG.API, "APIKEY", "a-key")
    with pytest.raises(models.ModelError, match="device: remote reads whole trained models"):
        models.open_model("owner/name", device="remote", **changes)


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_remote_model_has_the_key_of_ndifs_deployments(hub, monkeypatch, revision):
    """A commit in the key would name a deployment of its own, which NDIF does not have."""
    monkeypatch.setattr(models.CONFIG.API, "APIKEY", "a-key")
    monkeypatch.setattr(models, "check_residual_stream", lambda model: None)
    monkeypatch.setitem(_ID_CACHE, "owner/name", "owner/name")
    model = models.open_model("owner/name", device="remote", revision=revision)
    key = {"repo_id": "owner/name", "revision": revision, "task": "text-generation"}
    assert json.loads(model._remoteable_model_key()) == key
    assert models.remote(model)
    assert len(models.decoder_layers(model)) == 3
    assert models.opened_as(model).set_index("fact").loc["devices", "value"] == "NDIF"


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
        prompts = extraction.tokenize(model.tokenizer, ["helping"])
        with pytest.raises(Exception, match=r"401|unknown key"):
            extraction.pooled_residuals(model, prompts, rows=range(1))
        server.shutdown()
    assert requests
    assert {key for _, key in requests} == {"a-key"}
    assert all(parameter.is_meta for parameter in model._module.parameters())


def test_what_is_sent_to_ndif_computes_the_same_without_this_project(tiny_model, monkeypatch):
    """nnsight's dry run serializes the trace, hides the modules of this project and runs it here."""
    model = models.open_model(str(tiny_model))
    prompts = extraction.tokenize(model.tokenizer, ["helping", "lying to a friend"])
    expected = extraction.pooled_residuals(model, prompts, rows=range(2))
    monkeypatch.setattr(models, "remote", lambda model: "local")
    monkeypatch.setattr(models, "input_device", lambda model: torch.device("cpu"))
    models.check_residual_stream(model)
    torch.testing.assert_close(extraction.pooled_residuals(model, prompts, rows=range(2)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 9, 9], [9, 9, 9]], [[1, 1, 1], [1, 0, 0], [1, 0, 0]]),
        ("left", [[5, 6, 7], [9, 9, 8], [9, 9, 9]], [[1, 1, 1], [0, 0, 1], [0, 0, 1]]),
    ],
)
def test_rows_are_padded_on_one_side_and_a_real_token_like_the_padding_is_not_masked(side, ids, mask):
    input_ids, attention_mask = models.pad([[5, 6, 7], [8], np.array([9])], 9, side)
    assert input_ids.tolist() == ids
    assert attention_mask.tolist() == mask
    assert input_ids.dtype == attention_mask.dtype == torch.int64
