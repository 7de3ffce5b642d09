"""Training: planted directions are recovered, the penalty follows its rule, the same seed gives the same bytes."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lib.sae import model, train
from lib.sae.model import SparseAutoencoder

WIDTH, PLANTED = 16, 12
RECIPE = train.Recipe(expansion=2, target_l0=3, epochs=60, learning_rate=1e-2, batch_size=64, seed=0)


def planted(rows=1500, seed=0, offset=5.0):
    """Rows that are sums of a few of 12 orthogonal directions, plus an offset; also the directions [12, 16]."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(99).normal(size=(WIDTH, PLANTED)))[0].T
    strengths = generator.uniform(1, 2, (rows, PLANTED)) * (generator.random((rows, PLANTED)) < 0.2)
    return (strengths @ directions + offset).astype(np.float32), directions


@pytest.fixture(scope="module")
def trained():
    (x, directions), (held_out, _) = planted(), planted(300, seed=1)
    return (*train.train(x, held_out, RECIPE, "test"), held_out, directions)


def test_planted_directions_are_recovered(trained):
    sae, _, _, directions = trained
    nearest = (sae.W_dec.detach().numpy() @ directions.T).max(axis=0)
    assert np.median(nearest) > 0.95
    assert nearest.min() > 0.8


def test_held_out_rows_are_reconstructed_in_raw_coordinates(trained):
    sae, history, held_out, _ = trained
    found = model.quality(sae, torch.from_numpy(held_out))
    assert found["fvu"] < 0.1
    assert found["l0"] == pytest.approx(history["l0"].iloc[-1], rel=0.01)
    assert history["fvu"].iloc[-1] < history["fvu"].iloc[0]


def test_quality_of_the_mean_predictor_and_of_the_identity():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) + 3
    sae = SparseAutoencoder(4, 8)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(4), -torch.eye(4)], dim=1))
        sae.W_dec.copy_(torch.cat([torch.eye(4), -torch.eye(4)]))
    identity = model.quality(sae, x)
    assert identity["fvu"] == pytest.approx(0, abs=1e-10)
    assert identity["l0"] == pytest.approx(4)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
        sae.b_dec.copy_(x.mean(dim=0))
    mean = model.quality(sae, x)
    assert mean["fvu"] == pytest.approx(1, abs=1e-5)
    assert (mean["l0"], mean["dead"]) == (0, 1)


@pytest.mark.parametrize(
    ("weight", "ratio", "expected"),
    [(1, 2.5, 1.2), (1, 1.5, 1.05), (1, 1.05, 1), (1, 0.95, 1), (1, 0.5, 0.95), (99, 3, 100), (1e-6, 0.1, 1e-6)],
)
def test_the_penalty_follows_the_released_rule(weight, ratio, expected):
    assert train.adapted(weight, ratio) == pytest.approx(expected)


def test_the_penalty_brings_l0_down_toward_its_target():
    (x, _), (held_out, _) = planted(), planted(300, seed=1)
    sparse = train.train(x, held_out, RECIPE, "sparse")[1]["l0"].iloc[-1]
    dense = train.train(x, held_out, train.Recipe(**{**RECIPE.__dict__, "target_l0": 30}), "dense")[1]["l0"].iloc[-1]
    # Above twice the target the rule raises the penalty fastest; the end must be below that.
    assert sparse < 2 * RECIPE.target_l0
    assert dense > 1.5 * sparse


def test_one_seed_one_result():
    (x, _), (held_out, _) = planted(200), planted(50, seed=1)
    recipe = train.Recipe(**{**RECIPE.__dict__, "epochs": 3})
    first, second = (train.train(x, held_out, recipe, "test") for _ in range(2))
    assert all(torch.equal(value, second[0].state_dict()[name]) for name, value in first[0].state_dict().items())
    assert first[1].equals(second[1])
    other = train.train(x, held_out, train.Recipe(**{**recipe.__dict__, "seed": 1}), "test")[0]
    assert not torch.equal(first[0].W_enc, other.W_enc)


def test_data_that_are_not_finite_are_refused():
    x, _ = planted(50)
    x[3, 2] = np.nan
    with pytest.raises(train.TrainingError, match="not finite"):
        train.train(x, x[:10], RECIPE, "test")


def test_a_diverging_loss_stops_training():
    x, _ = planted(100)
    with pytest.raises(train.TrainingError, match=r"layer 2: the loss is not finite in epoch \d.*learning_rate"):
        train.train(x * 1e25, x[:10] * 1e25, RECIPE, "layer 2")


def test_a_loss_that_turns_nan_stops_and_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    x, _ = planted(200)
    checkpoint, original, calls = tmp_path / "checkpoint", train.set_gradients, []

    def gradients(sae, batch, recipe, weight):
        calls.append(1)
        loss = original(sae, batch, recipe, weight)
        return loss * float("nan") if len(calls) > 13 * 4 else loss  # 4 batches an epoch

    monkeypatch.setattr(train, "set_gradients", gradients)
    with pytest.raises(train.TrainingError, match=r"not finite in epoch 13.*checkpoint of epoch 10 stays"):
        train.train(x, x[:50], RECIPE, "test", checkpoint)
    with safe_open(checkpoint, "pt") as stored:
        assert all(torch.isfinite(stored.get_tensor(name)).all() for name in stored.keys())  # noqa: SIM118


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk"])
def test_the_gradient_written_out_is_that_of_autograd(activation):
    recipe = train.Recipe(expansion=4, target_l0=3, activation=activation)
    sae, x = train.new(8, recipe), torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(32, generator=torch.Generator().manual_seed(1)) * 0.1)
    weight = 0.3 if activation == "relu" else 0.0
    before = x @ sae.W_enc + sae.b_enc
    z = {"relu": torch.relu, "topk": lambda b: model.top_k(b, 3), "batchtopk": lambda b: model.batch_top_k(b, 3)}[
        activation
    ](before)
    mse = ((sae.decode(z) - x) ** 2).mean()
    (mse + weight * z.abs().mean()).backward()
    expected = {name: value.grad.clone() for name, value in sae.named_parameters()}
    with torch.no_grad():
        assert float(train.set_gradients(sae, x, recipe, 0.3)) == pytest.approx(float(mse.detach()), rel=1e-5)
    for name, value in sae.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_the_modern_arms_recover_planted_directions_at_their_l0(activation):
    (x, directions), (held_out, _) = planted(), planted(300, seed=1)
    recipe = train.Recipe(**{**RECIPE.__dict__, "activation": activation})
    sae, history = train.train(x, held_out, recipe, activation)
    found = model.quality(sae, torch.from_numpy(held_out))
    assert found["fvu"] < 0.25
    assert found["l0"] == pytest.approx(3, abs=0.75)
    assert (history["weight"] == recipe.initial_weight).all()  # no penalty to adapt
    nearest = (sae.W_dec.detach().numpy() @ directions.T).max(axis=0)
    assert np.median(nearest) > 0.9


def test_half_precision_gives_nearly_the_same_and_float32_weights():
    (x, _), (held_out, _) = planted(300), planted(50, seed=1)
    recipe = train.Recipe(**{**RECIPE.__dict__, "epochs": 20})
    full, half = (train.train(x, held_out, recipe, "test", half=half) for half in (False, True))
    assert half[0].W_enc.dtype == torch.float32
    assert half[1]["fvu"].iloc[-1] == pytest.approx(full[1]["fvu"].iloc[-1], abs=0.05)
    assert not torch.equal(full[0].W_enc, half[0].W_enc)


def test_what_does_not_fit_the_memory_is_refused_before_it_is_allocated(monkeypatch):
    x, _ = planted(100)
    monkeypatch.setattr(train, "available_bytes", lambda device: 10_000_000)
    monkeypatch.setattr(train, "SparseAutoencoder", None)  # building one would fail otherwise
    recipe = train.Recipe(**{**RECIPE.__dict__, "expansion": 4096})
    with pytest.raises(
        train.TrainingError, match=r"layer 3: training needs about 0\.\d GB.*0\.0 GB free.*lower expansion"
    ):
        train.train(x, x[:10], recipe, "layer 3")


def test_a_layer_of_the_paper_is_estimated_below_20_gb():
    recipe = train.Recipe()
    needed = train.required_bytes(4096, recipe.expansion * 4096, 201_023 + 25_170, recipe, half=True)
    assert 10e9 < needed < 20e9


def test_more_kept_latents_than_there_are_is_an_error():
    x, _ = planted(50)
    recipe = train.Recipe(**{**RECIPE.__dict__, "activation": "topk", "target_l0": 1000})
    with pytest.raises(train.TrainingError, match="target_l0 1000 is more than the 32 latents"):
        train.train(x, x[:10], recipe, "test")
