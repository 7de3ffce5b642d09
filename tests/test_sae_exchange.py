"""Autoencoders in and out: sae-lens loads ours, and those of others are read, adopted or refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.sae import export, layers
from lib.sae.model import SparseAutoencoder

WIDTH, LATENTS = 12, 40
KINDS = {"relu": {}, "topk": {"k": 5}, "jumprelu": {"jump": True}}


def autoencoder(kind, seed=0):
    """An autoencoder all of whose weights differ from their initial value."""
    sae, generator = SparseAutoencoder(WIDTH, LATENTS, seed, **KINDS[kind]), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(LATENTS, generator=generator) * 0.3)
        sae.b_dec.copy_(torch.randn(WIDTH, generator=generator))
        if sae.jump:
            sae.threshold.copy_(torch.rand(LATENTS, generator=generator))
    return sae


def rows():
    return torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(5)) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_loads_ours_and_gives_the_same_reconstruction(tmp_path, kind):
    sae_lens = pytest.importorskip("sae_lens", reason='sae-lens is not installed: pip install -e ".[sae-lens]"')
    sae = autoencoder(kind)
    export.save(
        tmp_path, sae.fold_centre(torch.full((WIDTH,), 3.0)), {"model_name": "m", "hook_name": "model.layers.2"}
    )
    theirs = sae_lens.SAE.load_from_disk(tmp_path, device="cpu")
    x, (expected, z) = rows() + 3, sae(rows())
    torch.testing.assert_close(theirs.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(x), expected + 3, atol=1e-5, rtol=1e-5)
    assert (theirs.cfg.metadata.model_name, theirs.cfg.metadata.hook_name) == ("m", "model.layers.2")
    again = tmp_path / "again"
    theirs.save_model(again)
    torch.testing.assert_close(export.load(again, WIDTH)(x)[0], expected + 3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_round_trips_to_the_bit(tmp_path, kind):
    sae = autoencoder(kind)
    export.save(tmp_path, sae, {})
    found = export.load(tmp_path)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in sae.state_dict().items())
    assert torch.equal(found(rows())[0], sae(rows())[0])


def configured(directory, kind, **changes):
    export.save(directory, autoencoder(kind), {})
    path = directory / "cfg.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if changes.get(name, "") is not None}
    path.write_text(json.dumps(kept | {name: value for name, value in changes.items() if value is not None}))
    return directory


def test_a_directory_of_an_older_release_is_read(tmp_path):
    """Before sae-lens 6 a TopK was an activation function with arguments, and the decoder's bias was subtracted."""
    old = configured(
        tmp_path, "topk", architecture="standard", k=None, rescale_acts_by_decoder_norm=None,
        apply_b_dec_to_input=None, activation_fn_str="topk", activation_fn_kwargs={"k": 5},
    )  # fmt: skip
    sae = autoencoder("topk")
    torch.testing.assert_close(export.load(old).encode(rows()), sae.encode(rows() - sae.b_dec), atol=1e-5, rtol=1e-5)


def test_a_topk_ranked_by_contribution_keeps_its_reconstruction(tmp_path):
    configured(tmp_path, "topk", rescale_acts_by_decoder_norm=True)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    norms = torch.linspace(0.5, 2, LATENTS)
    weights["W_dec"] = weights["W_dec"] * norms[:, None]
    save_file(weights, tmp_path / "sae_weights.safetensors")
    before = (rows() @ weights["W_enc"] + weights["b_enc"]) * norms
    values, places = before.topk(5, dim=1)
    z = torch.zeros_like(before).scatter(1, places, torch.relu(values))
    expected = (z / norms) @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(export.load(tmp_path)(rows())[0], expected, atol=1e-5, rtol=1e-5)


def qwen_scope(directory, k=5):
    """A repository in the layout of Qwen-Scope: one file a layer, weights the other way round."""
    folder = directory / f"SAE-Res-Qwen3-8B-Base-W64K-L0_{k}"
    folder.mkdir()
    weights = {name: value.detach() for name, value in autoencoder("topk").named_parameters()}
    turned = {name: weights[name].T.contiguous() for name in ("W_enc", "W_dec")}
    torch.save(weights | turned, folder / "layer3.sae.pt")
    return folder


def test_a_layer_of_qwen_scope_is_read(tmp_path):
    sae, about = export.load_foreign(str(qwen_scope(tmp_path)), 3, WIDTH)
    assert torch.equal(sae(rows())[0], autoencoder("topk")(rows())[0])
    assert (sae.k, about["model_name"]) == (5, "Qwen3-8B-Base")
    with pytest.raises(export.FormatError, match=r"layer4\.sae\.pt is not there"):
        export.load_foreign(str(qwen_scope(tmp_path, 7)), 4, WIDTH)


def test_a_file_that_would_run_code_is_not_read(tmp_path):
    folder = qwen_scope(tmp_path)
    torch.save({"W_enc": print}, folder / "layer3.sae.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        export.load_foreign(str(folder), 3, WIDTH)


def test_autoencoders_of_others_are_found_by_layer_and_checked_for_width(tmp_path):
    for kind, name in (("relu", "layer_03"), ("jumprelu", "layer4")):
        (tmp_path / name).mkdir()
        export.save(tmp_path / name, autoencoder(kind), {"model_name": "m"})
    assert not export.load_foreign(str(tmp_path), 3, WIDTH)[0].jump
    assert export.load_foreign(str(tmp_path), 4, WIDTH)[0].jump
    with pytest.raises(export.FormatError, match=r"no layer 5.*layer_05.*layer5"):
        export.load_foreign(str(tmp_path), 5, WIDTH)
    with pytest.raises(export.FormatError, match="width 12, but the model's is 13"):
        export.load_foreign(str(tmp_path), 3, 13)
    with pytest.raises(export.FormatError, match="neither a directory nor a hub id"):
        export.load_foreign("no/such/place", 3, WIDTH)


def test_decoder_rows_of_others_are_brought_to_unit_norm(tmp_path):
    (tmp_path / "layer_00").mkdir()
    sae = autoencoder("jumprelu")
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 2, LATENTS)[:, None]
    export.save(tmp_path / "layer_00", sae, {})
    found, _ = export.load_foreign(str(tmp_path), 0, WIDTH)
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(LATENTS))
    torch.testing.assert_close(found(rows())[0], sae(rows())[0], atol=1e-5, rtol=1e-5)


def test_an_adopted_autoencoder_lies_where_a_trained_one_would(tmp_path):
    source, folder = tmp_path / "others" / "layer_02", tmp_path / "pretrained"
    source.mkdir(parents=True)
    folder.mkdir()
    export.save(source, autoencoder("relu"), {"model_name": "theirs", "hook_name": "blocks.2.hook_resid_post"})
    held_out = layers.Rows(rows().numpy(), np.zeros((30, 10)), np.arange(30).astype(str))
    about = {"model_name": "ours", "pooling": "mean", "split": "grouped"}
    layers.adopt(folder, lambda layer: {"validation": held_out}, 2, str(tmp_path / "others"), about)
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors", "history.parquet"}
    found = export.metadata(folder)
    assert (found["model_name"], found["pooling"]) == ("ours", "mean")
    assert found["sae_source"] == str(tmp_path / "others")
