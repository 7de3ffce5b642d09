"""Opening models: the registry, and what a wrong directory is told."""

import shutil

import pytest

from lib import models
from lib.profiles import load_profile


def test_the_registry_holds_the_23_models_of_the_paper():
    registry = models.registry()
    assert len(registry) == 23
    assert registry["name"].is_unique
    assert registry["hub"].is_unique
    assert registry["variant"].isin(["base", "instruct", "guard"]).all()
    assert registry["architecture"].value_counts().to_dict() == {"dense": 15, "moe": 8}


def test_the_paper_profile_runs_exactly_the_registry():
    sources = load_profile("profiles/paper.yaml").sources
    assert {name: source.hub for name, source in sources.items()} == dict(
        models.registry()[["name", "hub"]].itertuples(index=False)
    )


def test_memory_in_bf16_is_two_bytes_a_parameter():
    registry = models.registry()
    assert (registry["bf16_gigabytes"] - 2 * registry["parameters_billions"]).abs().max() < 0.06


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
    before = models.fingerprint(str(copy))
    assert before == models.fingerprint(str(tiny_model))
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert models.fingerprint(str(copy)) != before


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
