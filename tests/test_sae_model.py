"""The autoencoder, its measure of reconstruction and its files on disk."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lib.sae import export
from lib.sae.model import SparseAutoencoder, fraction_of_variance_unexplained


def biased(width=6, latents=24, seed=0):
    """An autoencoder all of whose weights differ from their initial value."""
    sae = SparseAutoencoder(width, latents, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(latents, generator=generator))
        sae.b_dec.copy_(torch.randn(width, generator=generator))
    return sae


def test_forward_is_the_formula():
    sae = biased()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    weights = {name: value.detach().numpy() for name, value in sae.named_parameters()}
    z = np.maximum(x.numpy() @ weights["W_enc"] + weights["b_enc"], 0)
    x_hat, found = sae(x)
    np.testing.assert_allclose(found.detach().numpy(), z, atol=1e-6)
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
    found, z_folded = sae.fold_centre(centre)(x)
    torch.testing.assert_close(z_folded, z, atol=1e-5 * max(1, scale), rtol=1e-4)
    torch.testing.assert_close(found, expected + centre, atol=1e-5 * max(1, scale), rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())


@settings(max_examples=30, deadline=None)
@given(offset=st.floats(-100, 100), scale=st.floats(0.1, 100), seed=st.integers(0, 1000))
def test_unexplained_variance_is_0_for_the_identity_and_1_for_the_mean(offset, scale, seed):
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + offset
    assert fraction_of_variance_unexplained(x, x) == 0
    assert fraction_of_variance_unexplained(x, x.mean(dim=0).expand_as(x)) == pytest.approx(1)


def test_files_round_trip_to_the_bit(tmp_path):
    sae = biased()
    export.save(tmp_path, sae, {"model_name": "m", "hook_name": "model.layers.2"})
    loaded = export.load(tmp_path, width=6)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in sae.state_dict().items())
    assert {file.name for file in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    about = export.metadata(tmp_path)
    assert (about["model_name"], about["hook_name"]) == ("m", "model.layers.2")
    # Without it sae-lens takes its legacy path and drops the names.
    assert about["sae_lens_version"]


def test_the_configuration_is_that_of_sae_lens(tmp_path):
    export.save(tmp_path, biased(), {})
    configuration = json.loads((tmp_path / "cfg.json").read_text())
    assert configuration["architecture"] == "standard"
    assert (configuration["d_in"], configuration["d_sae"]) == (6, 24)
    assert configuration["apply_b_dec_to_input"] is False
    assert configuration["normalize_activations"] == "none"


def test_weights_that_subtract_the_decoder_bias_first_are_read(tmp_path):
    sae = biased()
    export.save(tmp_path, sae, {})
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"apply_b_dec_to_input": True}))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(export.load(tmp_path).encode(x), sae.encode(x - sae.b_dec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "topk"}, "architecture is 'topk'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
    ],
)
def test_another_kind_of_autoencoder_is_refused(tmp_path, change, message):
    export.save(tmp_path, biased(), {})
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(export.FormatError, match=message):
        export.load(tmp_path)


def test_wrong_width_missing_file_and_missing_weight_are_named(tmp_path):
    with pytest.raises(export.FormatError, match="05_sparse_autoencoders"):
        export.load(tmp_path)
    export.save(tmp_path, biased(), {})
    with pytest.raises(export.FormatError, match=r"width 6.*is 7"):
        export.load(tmp_path, width=7)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    del weights["b_dec"]
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(export.FormatError, match="lack b_dec"):
        export.load(tmp_path)
