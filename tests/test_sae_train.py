"""Training: planted directions are recovered, the penalty follows its rule, the same seed gives the same bytes."""

import numpy as np
import pytest
import torch

from lib.sae import train
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
    found = train.quality(sae, torch.from_numpy(held_out))
    assert found["fvu"] < 0.1
    assert found["l0"] == pytest.approx(history["l0"].iloc[-1], rel=0.01)
    assert history["fvu"].iloc[-1] < history["fvu"].iloc[0]


def test_quality_of_the_mean_predictor_and_of_the_identity():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) + 3
    sae = SparseAutoencoder(4, 8)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(4), -torch.eye(4)], dim=1))
        sae.W_dec.copy_(torch.cat([torch.eye(4), -torch.eye(4)]))
    identity = train.quality(sae, x)
    assert identity["fvu"] == pytest.approx(0, abs=1e-10)
    assert identity["l0"] == pytest.approx(4)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
        sae.b_dec.copy_(x.mean(dim=0))
    mean = train.quality(sae, x)
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
    with pytest.raises(train.TrainingError, match=r"layer 2: the loss is not finite in epoch \d"):
        train.train(x * 1e25, x[:10] * 1e25, RECIPE, "layer 2")
