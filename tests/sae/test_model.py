"""The autoencoder, its measure of reconstruction and its files on disk."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lib.sae import files, model
from lib.sae.model import SparseAutoencoder, batch_top_k, fraction_of_variance_unexplained, quality, top_k


def biased(width=6, latents=24, seed=0):
    """An autoencoder all of whose weights differ from their initial value."""
    sae = SparseAutoencoder(width, latents, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(latents, generator=generator))
        sae.b_dec.copy_(torch.randn(width, generator=generator))
    return sae


def test_forward_is_the_formula():
    sae = biased()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    weights = {name: value.detach().numpy() for name, value in sae.named_parameters()}
    hidden_pre = x.numpy() @ weights["W_enc"] + weights["b_enc"]
    z = np.maximum(hidden_pre, 0)
    x_hat, feature_acts = sae(x)
    np.testing.assert_allclose(sae.hidden_pre(x).detach().numpy(), hidden_pre, atol=1e-6)
    np.testing.assert_allclose(feature_acts.detach().numpy(), z, atol=1e-6)
    assert (sae.d_in, sae.d_sae) == (6, 24)
    np.testing.assert_allclose(x_hat.detach().numpy(), z @ weights["W_dec"] + weights["b_dec"], atol=1e-5)


def test_decoder_rows_have_unit_norm():
    sae = SparseAutoencoder(6, 24)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.1, 50), seed=st.integers(0, 1000))
def test_folding_the_centre_moves_it_into_the_biases(scale, seed):
    sae = biased(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x, centre = torch.randn(4, 6, generator=generator) * scale, torch.randn(6, generator=generator) * scale
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    expected, z = sae(x - centre)
    x_hat, z_folded = sae.fold_centre(centre)(x)
    torch.testing.assert_close(z_folded, z, atol=1e-5 * max(1, scale), rtol=1e-4)
    torch.testing.assert_close(x_hat, expected + centre, atol=1e-5 * max(1, scale), rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())


@settings(max_examples=30, deadline=None)
@given(offset=st.floats(-100, 100), scale=st.floats(0.1, 100), seed=st.integers(0, 1000))
def test_unexplained_variance_is_0_for_the_identity_and_1_for_the_mean(offset, scale, seed):
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + offset
    missed = {"identity": torch.zeros(40), "mean": ((x - x.mean(dim=0)) ** 2).sum(dim=1)}
    once = torch.ones(1, 40)
    assert float(fraction_of_variance_unexplained(x, missed["identity"], once)) == 0
    assert float(fraction_of_variance_unexplained(x, missed["mean"], once)) == pytest.approx(1)


def test_unexplained_variance_counts_a_row_as_often_as_its_weight():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    missed, weights = torch.rand(30, generator=generator), torch.randint(0, 3, (1, 30), generator=generator)
    often = weights[0].repeat_interleave(1)
    repeated = torch.arange(30).repeat_interleave(often)
    weighted = fraction_of_variance_unexplained(x, missed, weights)
    once = torch.ones(1, len(repeated))
    torch.testing.assert_close(weighted, fraction_of_variance_unexplained(x[repeated], missed[repeated], once))


def test_of_rows_that_do_not_vary_nothing_can_be_said():
    assert fraction_of_variance_unexplained(torch.ones(5, 3), torch.ones(5), torch.ones(1, 5)).isnan().all()
    assert math.isnan(quality(SparseAutoencoder(3, 4), torch.full((5, 3), 0.1))["fvu"])


def test_quality_is_the_same_whatever_the_batches_and_however_far_the_rows_lie_from_zero(monkeypatch):
    sae = biased()
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) + 1000
    with torch.no_grad():
        errors, active = ((x - sae(x)[0]) ** 2).sum(dim=1), sae.encode(x) > 0
    expected = {"mse": errors.sum() / 300, "l0": active.sum() / 50, "dead": 1 - active.any(dim=0).float().mean()}
    expected["fvu"] = fraction_of_variance_unexplained(x, errors, torch.ones(1, 50))
    whole = quality(sae, x)
    assert whole == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    monkeypatch.setattr(model, "ROWS_AT_ONCE", 7)
    assert quality(sae, x) == pytest.approx(whole, rel=1e-6)


def test_top_k_keeps_the_largest_positive_of_every_row_and_batch_top_k_of_all():
    before = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-5.0, -4.0, 0.5, -3.0]])
    assert top_k(before, 2).tolist() == [[3, 0, 2, 0], [0, 0, 0.5, 0]]
    assert batch_top_k(before, 1).tolist() == [[3, 0, 2, 0], [0, 0, 0, 0]]


def test_a_jumprelu_passes_what_exceeds_its_threshold_unchanged():
    sae = SparseAutoencoder(2, 3, jump=True)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0, 1], [0, 1, 0]]))
        sae.threshold.copy_(torch.tensor([0.5, 0.5, 2.0]))
    assert sae.encode(torch.tensor([1.0, 0.4])).tolist() == [1, 0, 0]


def test_files_round_trip_to_the_bit(tmp_path):
    sae = biased()
    files.save(tmp_path, sae, {"model_name": "m", "hook_name": "model.layers.2"})
    loaded = files.load(tmp_path, d_in=6)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in sae.state_dict().items())
    assert {file.name for file in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    about = files.metadata(tmp_path)
    assert (about["model_name"], about["hook_name"]) == ("m", "model.layers.2")
    # Without it sae-lens takes its legacy path and drops the names.
    assert about["sae_lens_version"]


def test_the_configuration_is_that_of_sae_lens(tmp_path):
    files.save(tmp_path, biased(), {})
    configuration = json.loads((tmp_path / "cfg.json").read_text())
    assert configuration["architecture"] == "standard"
    assert (configuration["d_in"], configuration["d_sae"]) == (6, 24)
    assert configuration["apply_b_dec_to_input"] is False
    assert configuration["normalize_activations"] == "none"


def test_weights_that_subtract_the_decoder_bias_first_are_read(tmp_path):
    sae = biased()
    files.save(tmp_path, sae, {})
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"apply_b_dec_to_input": True}))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(files.load(tmp_path).encode(x), sae.encode(x - sae.b_dec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gated"}, "architecture is 'gated'"),
        ({"architecture": "topk"}, "whole number k"),
        ({"architecture": "jumprelu"}, "lack threshold"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
    ],
)
def test_another_kind_of_autoencoder_is_refused(tmp_path, change, message):
    files.save(tmp_path, biased(), {})
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(files.FormatError, match=message):
        files.load(tmp_path)


def test_wrong_width_missing_file_and_missing_weight_are_named(tmp_path):
    with pytest.raises(files.FormatError, match="05_sae"):
        files.load(tmp_path)
    files.save(tmp_path, biased(), {})
    with pytest.raises(files.FormatError, match=r"width 6.*is 7"):
        files.load(tmp_path, d_in=7)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    del weights["b_dec"]
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(files.FormatError, match="lack b_dec"):
        files.load(tmp_path)
