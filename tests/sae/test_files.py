"""Autoencoders in and out: sae-lens loads ours, and those of others are read, adopted or refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.run.parameters import SAEParameters
from lib.sae import files, layers
from lib.sae.model import SparseAutoencoder
from lib.sae.rows import Rows

WIDTH, LATENTS = 12, 40
KINDS = {"relu": {}, "topk": {"k": 5}, "jumprelu": {"jump": True}}


def autoencoder(kind, seed=0):
    """An autoencoder all of whose weights differ from their initial value."""
    sae, generator = SparseAutoencoder(WIDTH, LATENTS, seed=seed, **KINDS[kind]), torch.Generator().manual_seed(seed)
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
    import sae_lens

    sae = autoencoder(kind)
    files.save(tmp_path, sae.fold_centre(torch.full((WIDTH,), 3.0)), {"model_name": "m", "hook_name": "model.layers.2"})
    theirs = sae_lens.SAE.load_from_disk(tmp_path, device="cpu")
    x, (expected, z) = rows() + 3, sae(rows())
    torch.testing.assert_close(theirs.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(x), expected + 3, atol=1e-5, rtol=1e-5)
    assert (theirs.cfg.metadata.model_name, theirs.cfg.metadata.hook_name) == ("m", "model.layers.2")
    again = tmp_path / "again"
    theirs.save_model(again)
    torch.testing.assert_close(files.load(again, WIDTH)(x)[0], expected + 3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_round_trips_to_the_bit(tmp_path, kind):
    sae = autoencoder(kind)
    files.save(tmp_path, sae, {})
    loaded = files.load(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in sae.state_dict().items())
    assert torch.equal(loaded(rows())[0], sae(rows())[0])


def configured(directory, kind, **changes):
    files.save(directory, autoencoder(kind), {})
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
    torch.testing.assert_close(files.load(old).encode(rows()), sae.encode(rows() - sae.b_dec), atol=1e-5, rtol=1e-5)


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
    torch.testing.assert_close(files.load(tmp_path)(rows())[0], expected, atol=1e-5, rtol=1e-5)


def qwen_scope(directory, k=5):
    """A repository in the layout of Qwen-Scope: one file per layer, weights the other way round."""
    folder = directory / f"SAE-Res-Qwen3-8B-Base-W64K-L0_{k}"
    folder.mkdir()
    weights = {name: value.detach() for name, value in autoencoder("topk").named_parameters()}
    turned = {name: weights[name].T.contiguous() for name in ("W_enc", "W_dec")}
    torch.save(weights | turned, folder / "layer3.sae.pt")
    return folder


def test_a_layer_of_qwen_scope_is_read(tmp_path):
    sae, about = files.load_foreign(str(qwen_scope(tmp_path)), layer=3, d_in=WIDTH)
    assert torch.equal(sae(rows())[0], autoencoder("topk")(rows())[0])
    assert (sae.k, about["model_name"]) == (5, "Qwen3-8B-Base")
    with pytest.raises(files.FormatError, match=r"layer4\.sae\.pt is not there"):
        files.load_foreign(str(qwen_scope(tmp_path, 7)), layer=4, d_in=WIDTH)


def test_a_file_that_would_run_code_is_not_read(tmp_path):
    folder = qwen_scope(tmp_path)
    torch.save({"W_enc": print}, folder / "layer3.sae.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        files.load_foreign(str(folder), layer=3, d_in=WIDTH)


def test_autoencoders_of_others_are_found_by_layer_and_checked_for_width(tmp_path):
    for kind, name in (("relu", "layer_03"), ("jumprelu", "layer4")):
        (tmp_path / name).mkdir()
        files.save(tmp_path / name, autoencoder(kind), {"model_name": "m"})
    assert not files.load_foreign(str(tmp_path), layer=3, d_in=WIDTH)[0].jump
    assert files.load_foreign(str(tmp_path), layer=4, d_in=WIDTH)[0].jump
    with pytest.raises(files.FormatError, match=r"no layer 5.*layer_05.*layer5"):
        files.load_foreign(str(tmp_path), layer=5, d_in=WIDTH)
    with pytest.raises(files.FormatError, match="width 12, but the model's is 13"):
        files.load_foreign(str(tmp_path), layer=3, d_in=13)
    with pytest.raises(files.FormatError, match="neither a directory nor a hub id"):
        files.load_foreign("no/such/place", layer=3, d_in=WIDTH)


def test_autoencoders_named_by_their_hook_are_found_and_those_of_other_places_refused(tmp_path):
    """As sae-lens' releases name them; the stream before a block is the one after the block before."""
    for name, cfg in {
        "blocks.3.hook_resid_post": {"metadata": {"hook_name": "blocks.3.hook_resid_post"}},
        "blocks.6.hook_resid_pre": {"metadata": None, "hook_point": "blocks.6.hook_resid_pre"},
        "layer_07": {"metadata": {"hook_name": "model.layers.7"}},
        "layer_08": {"metadata": {"hook_name": "blocks.8.hook_mlp_out"}},
        "layer_01": {"metadata": {"hook_name": "model.layers.11"}},
    }.items():
        (tmp_path / name).mkdir()
        configured(tmp_path / name, "relu", **cfg)
    for layer in (3, 5, 7):
        assert files.load_foreign(str(tmp_path), layer=layer, d_in=WIDTH)[0].d_sae == LATENTS
    for layer, hook in {8: r"blocks\.8\.hook_mlp_out", 1: r"model\.layers\.11"}.items():
        with pytest.raises(files.FormatError, match=f"at {hook}, not on the residual stream after layer {layer}"):
            files.load_foreign(str(tmp_path), layer=layer, d_in=WIDTH)


def test_decoder_rows_of_others_are_brought_to_unit_norm(tmp_path):
    (tmp_path / "layer_00").mkdir()
    sae = autoencoder("jumprelu")
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 2, LATENTS)[:, None]
    files.save(tmp_path / "layer_00", sae, {})
    loaded, _ = files.load_foreign(str(tmp_path), layer=0, d_in=WIDTH)
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(LATENTS))
    torch.testing.assert_close(loaded(rows())[0], sae(rows())[0], atol=1e-5, rtol=1e-5)


def test_an_adopted_autoencoder_lies_where_a_trained_one_would(tmp_path):
    source, folder = tmp_path / "others" / "layer_02", tmp_path / "pretrained"
    source.mkdir(parents=True)
    folder.mkdir()
    theirs = {"model_name": "theirs", "hook_name": "blocks.2.hook_resid_post", "pooling": "last"}
    files.save(source, autoencoder("relu"), theirs)
    held_out = Rows(rows().numpy(), np.zeros((30, 10)), np.arange(30).astype(str))
    parameters = SAEParameters(
        run_dir="runs/test", model="ours", layers=[2], pooling="last", sae_source=str(tmp_path / "others"),
        show_content=False,
    )  # fmt: skip
    layers.make(folder, lambda layer: dict.fromkeys(("train", "validation"), held_out), layer=2, parameters=parameters)
    assert {path.name for path in folder.iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "history.parquet", "quality.parquet",
    }  # fmt: skip
    about = files.metadata(folder)
    assert (about["model_name"], about["hook_name"], about["pooling"]) == ("ours", "model.layers.2", "last")
    assert about["kind"] == "pooled"
    assert about["sae_source"] == str(tmp_path / "others")
    assert list(files.histories({2: folder}, "layer")["layer"]) == [2]


def test_an_adopted_autoencoder_is_measured_on_the_gpu(tmp_path, monkeypatch):
    (tmp_path / "others" / "layer_02").mkdir(parents=True)
    (folder := tmp_path / "pretrained").mkdir()
    files.save(tmp_path / "others" / "layer_02", autoencoder("relu"), {"pooling": "mean"})
    moved, original = [], torch.Tensor.to

    def to(tensor, where, *others, **options):
        """Of a GPU that is not there: say that a tensor of this shape has gone to it."""
        if where != "cuda":
            return original(tensor, where, *others, **options)
        moved.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(layers.training, "default_device", lambda: "cuda")
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(SparseAutoencoder, "to", lambda sae, where: moved.append(where) or sae)
    held_out = Rows(rows().numpy(), np.zeros((30, 10)), np.arange(30).astype(str))
    parameters = SAEParameters(
        run_dir="runs/test", model="ours", layers=[2], sae_source=str(tmp_path / "others"), show_content=False
    )
    layers.make(folder, lambda layer: dict.fromkeys(("train", "validation"), held_out), layer=2, parameters=parameters)
    assert moved == ["cuda", (30, WIDTH), (30, WIDTH)]  # the weights, and the rows of either split


def test_the_two_kinds_of_dictionaries_are_never_mixed():
    ours, theirs = {"pooling": "mean"}, {}
    files.require_kind("ours", ours, kind="pooled", pooling="mean")
    files.require_kind("theirs", theirs, kind="tokens", pooling="mean")
    files.require_kind("theirs, adopted", {"pooling": "mean", "kind": "tokens"}, kind="tokens", pooling="last")
    with pytest.raises(files.FormatError, match=r"trained on tokens, but sae_kind is 'pooled'.*Use sae_kind: tokens"):
        files.require_kind("theirs", theirs, kind="pooled", pooling="last")
    with pytest.raises(files.FormatError, match=r"trained on pooled vectors, but sae_kind is 'tokens'"):
        files.require_kind("ours", ours, kind="tokens", pooling="mean")
    with pytest.raises(files.FormatError, match="pooling 'mean', but 'last' is asked for"):
        files.require_kind("ours", ours, kind="pooled", pooling="last")


@pytest.mark.parametrize("kind", KINDS)
def test_tuned_latents_are_stored_alone_and_read_with_their_base(tmp_path, kind):
    base, arm = tmp_path / "sae" / "pretrained", tmp_path / "alignment" / "aligned"
    base.mkdir(parents=True)
    arm.mkdir(parents=True)
    sae, tuned = autoencoder(kind), [3, 17, 30]
    files.save(base, sae, {})
    with torch.no_grad():
        sae.W_enc[:, tuned] += 1
        sae.b_enc[tuned] += 1
        sae.W_dec[tuned] += 1
    files.save_tuned(arm, sae, base=base, metadata={"tuned_latents": tuned, "arm": "aligned"})
    loaded = files.load(arm, WIDTH)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in sae.state_dict().items())
    assert files.metadata(arm)["arm"] == "aligned"
    weights = load_file(arm / files.TUNED)
    assert sum(value.numel() for value in weights.values()) == 3 * (2 * WIDTH + 1)
    with pytest.raises(files.FormatError, match="width 12"):
        files.load(arm, 13)
