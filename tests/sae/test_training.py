"""Training: planted directions are recovered, the penalty follows its rule, the same seed gives the same bytes."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lib.run.parameters import SAEKeys
from lib.sae import model, training
from lib.sae.model import SparseAutoencoder
from lib.sae.recipe import recipe_of

WIDTH, PLANTED = 16, 12
RECIPE = SAEKeys(
    layers=[0],
    sae_activation="relu",
    expansion=2,
    target_l0=3,
    sae_epochs=60,
    learning_rate=3e-2,
    batch_size=64,
    seed=0,
)


def varied(**changes):
    """The recipe with some settings changed."""
    return SAEKeys(**(RECIPE.model_dump() | changes))


def sized(parameters, rows=1500, d_in=WIDTH):
    return recipe_of(parameters, rows=rows, d_in=d_in)


def train(x, held_out, recipe=RECIPE, label="test", **options):
    return training.train(x, held_out, parameters=recipe, label=label, **options)


def planted(rows=1500, seed=0, offset=5.0):
    """Rows that are sums of a few of 12 orthogonal directions, plus an offset; also the directions [12, 16]."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(99).normal(size=(WIDTH, PLANTED)))[0].T
    strengths = generator.uniform(1, 2, (rows, PLANTED)) * (generator.random((rows, PLANTED)) < 0.2)
    return (strengths @ directions + offset).astype(np.float32), directions


@pytest.fixture(scope="module")
def trained():
    (x, directions), (held_out, _) = planted(), planted(300, seed=1)
    return (*train(x, held_out, RECIPE, "test"), held_out, directions)


def test_planted_directions_are_recovered(trained):
    sae, _, _, directions = trained
    nearest = (sae.W_dec.detach().numpy() @ directions.T).max(axis=0)
    assert np.median(nearest) > 0.95
    assert nearest.min() > 0.8


def test_held_out_rows_are_reconstructed_in_raw_coordinates(trained):
    sae, history, held_out, _ = trained
    measured = model.quality(sae, torch.from_numpy(held_out))
    assert measured["fvu"] < 0.1
    assert measured["l0"] == pytest.approx(history["l0"].iloc[-1], rel=0.01)
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
    assert training.adapted(weight, ratio) == pytest.approx(expected)


def test_the_penalty_brings_l0_down_toward_its_target():
    (x, _), (held_out, _) = planted(), planted(300, seed=1)
    sparse = train(x, held_out, RECIPE, "sparse")[1]["l0"].iloc[-1]
    dense = train(x, held_out, varied(target_l0=30), "dense")[1]["l0"].iloc[-1]
    # Above twice the target the rule raises the penalty fastest; the end must be below that.
    assert sparse < 2 * RECIPE.target_l0
    assert dense > 1.5 * sparse


def test_one_seed_one_result():
    (x, _), (held_out, _) = planted(200), planted(50, seed=1)
    recipe = varied(sae_epochs=3)
    first, second = (train(x, held_out, recipe, "test") for _ in range(2))
    assert all(torch.equal(value, second[0].state_dict()[name]) for name, value in first[0].state_dict().items())
    assert first[1].equals(second[1])
    other = train(x, held_out, varied(sae_epochs=3, seed=1), "test")[0]
    assert not torch.equal(first[0].W_enc, other.W_enc)


def test_data_that_are_not_finite_are_refused():
    x, _ = planted(50)
    x[3, 2] = np.nan
    with pytest.raises(training.TrainingError, match="not finite"):
        train(x, x[:10], RECIPE, "test")


def test_a_diverging_loss_stops_training():
    x, _ = planted(100)
    with pytest.raises(training.TrainingError, match=r"layer 2: the loss is not finite in epoch \d.*learning_rate"):
        train(x * 1e25, x[:10] * 1e25, RECIPE, "layer 2")


def test_a_loss_that_turns_nan_stops_and_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    x, _ = planted(256)
    checkpoint, original, calls = tmp_path / "checkpoint", training.set_gradients, []

    def gradients(*arguments, **options):
        calls.append(1)
        error, active = original(*arguments, **options)
        return error * float("nan") if len(calls) > 13 * 4 else error, active  # 4 batches an epoch

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(training, "set_gradients", gradients)
    with pytest.raises(training.TrainingError, match=r"not finite in epoch 13.*checkpoint of epoch 13 stays"):
        train(x, x[:50], checkpoint=checkpoint)
    with safe_open(checkpoint, "pt") as stored:
        assert all(torch.isfinite(stored.get_tensor(name)).all() for name in stored.keys())  # noqa: SIM118


def published(x, recipe):
    """The released recipe written another way, on centred rows: autograd, torch's schedulers, plain loops.

    Returns the weights, the penalty of every epoch, and the gradient's norm at every step.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    bound = (6 / recipe.d_in) ** 0.5
    W_e = torch.empty(recipe.d_sae, recipe.d_in).uniform_(-bound, bound, generator=generator)
    W_d = torch.empty(recipe.d_in, recipe.d_sae).uniform_(-1, 1, generator=generator)
    W_d /= W_d.norm(dim=0)
    weights = [W_e, torch.zeros(recipe.d_sae), W_d, torch.zeros(recipe.d_in)]
    for value in weights:
        value.requires_grad_()
    steps = len(x) // recipe.batch_size
    optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=5 * steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, (recipe.epochs - 5) * steps, eta_min=0.01 * recipe.learning_rate
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [warm_up, cosine], [5 * steps])
    order, penalty, penalties, norms = torch.Generator().manual_seed(recipe.seed), 1e-3, [], []
    for _ in range(recipe.epochs):
        drawn, active = torch.randperm(len(x), generator=order), 0
        for step in range(steps):
            batch = x[drawn[step * recipe.batch_size : (step + 1) * recipe.batch_size]]
            z = torch.relu(batch @ W_e.T + weights[1])
            loss = torch.nn.functional.mse_loss(z @ W_d.T + weights[3], batch) + penalty * z.abs().mean()
            optimiser.zero_grad()
            loss.backward()
            norm = sum(float((value.grad**2).sum()) for value in weights) ** 0.5
            for value in weights:
                value.grad *= min(1, 1 / norm)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                W_d /= W_d.norm(dim=0)
            active += int((z > 0).sum())
            norms.append(norm)
        penalties.append(penalty)
        ratio = active / (steps * recipe.batch_size) / recipe.target_l0
        penalty *= 1.2 if ratio > 2 else 1.05 if ratio > 1.1 else 0.95 if ratio < 0.9 else 1
    return weights, penalties, norms


def test_training_is_the_released_recipe_written_another_way():
    """12 epochs of 3 steps, the fourth batch not being full: init, warm-up, cosine, clip, penalty and dropped rows."""
    x = 3 * planted(250)[0]
    held_out = np.repeat(x.mean(axis=0)[None], 50, axis=0)  # activates little: the penalty must not look at it
    keys = varied(sae_epochs=12, target_l0=9, learning_rate=1e-2)
    sae, history = train(x, held_out, keys)
    centre = torch.from_numpy(x.mean(axis=0))
    (W_e, b_e, W_d, b_d), penalties, norms = published(torch.from_numpy(x) - centre, sized(keys, rows=250))
    assert max(norms) > 1 > min(norms), "the data of this test must need the clip at some steps, not at all"
    assert len(set(penalties)) > 3, "the data of this test must move the penalty"
    assert history["weight"].tolist() == pytest.approx(penalties)
    unfolded = sae.fold_centre(-centre)
    for name, expected in {"W_enc": W_e.T, "b_enc": b_e, "W_dec": W_d.T, "b_dec": b_d}.items():
        torch.testing.assert_close(getattr(unfolded, name).detach(), expected.detach(), atol=2e-4, rtol=1e-3)


def test_training_stops_once_error_and_l0_have_been_good_for_five_epochs():
    (x, _), (held_out, _) = planted(), planted(300, seed=1)
    stopped = train(x * 0.01, held_out * 0.01, varied(sae_activation="topk", learning_rate=1e-4))[1]
    assert len(stopped) == training.STOP_EPOCHS == 5
    missing = train(x * 0.01, held_out * 0.01, varied(sae_epochs=8, target_l0=0.5))[1]
    assert (missing["mse"] < training.STOP_ERROR).all()
    assert len(missing) == 8


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk"])
def test_the_gradient_written_out_is_that_of_autograd(activation):
    recipe = sized(varied(expansion=4, sae_activation=activation), d_in=8)
    sae, x = training.new(recipe), torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(32, generator=torch.Generator().manual_seed(1)) * 0.1)
    weight = 0.3 if activation == "relu" else 0.0
    before = x @ sae.W_enc + sae.b_enc
    z = {"relu": torch.relu, "topk": lambda b: model.top_k(b, 3), "batchtopk": lambda b: model.batch_top_k(b, 3)}[
        activation
    ](before)
    error = sae.decode(z) - x
    dead = torch.tensor([1, 4, 5, 30])
    of_dead = torch.relu(before[:, dead]).topk(4, dim=1)
    z_dead = torch.zeros(20, 4).scatter(1, of_dead.indices, of_dead.values)
    left = z_dead @ sae.W_dec[dead] - (-error.detach())
    ((error**2).mean() + weight * z.abs().mean() + (left**2).mean() / 32).backward()
    expected = {name: value.grad.clone() for name, value in sae.named_parameters()}
    with torch.no_grad():
        returned, active = training.set_gradients(sae, x, recipe=recipe, weight=0.3)
        training.add_auxiliary_gradients(sae, x, error=returned, dead=dead)
    torch.testing.assert_close(returned, error.detach())
    assert active.tolist() == (z > 0).sum(dim=0).tolist()
    for name, value in sae.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], atol=1e-7, rtol=1e-4)


def test_latents_that_never_fire_come_back_by_the_auxiliary_loss(monkeypatch):
    """Half of the latents begin below the others, so that they are never among the k largest."""
    original = training.new

    def new(recipe):
        sae = original(recipe)
        with torch.no_grad():
            sae.b_enc[: recipe.d_sae // 2] = -2
        return sae

    monkeypatch.setattr(training, "new", new)
    x = np.random.default_rng(0).normal(size=(1500, WIDTH)).astype(np.float32)
    keys = varied(sae_activation="topk", expansion=4, sae_epochs=15, learning_rate=3e-3)
    living = train(x, x, keys)[1]["dead"].iloc[-1]
    monkeypatch.setattr(training, "add_auxiliary_gradients", lambda *arguments, **options: None)
    left = train(x, x, keys)[1]["dead"].iloc[-1]
    assert left > 0.15
    assert living < left / 4


def test_the_threshold_is_that_of_the_weights_as_they_are():
    """After few steps too: a mean that runs along with training gave half the active latents."""
    (x, _), (held_out, _) = planted(), planted(300, seed=1)
    sae, history = train(x, held_out, varied(sae_activation="batchtopk", sae_epochs=6))
    assert model.quality(sae, torch.from_numpy(x))["l0"] == pytest.approx(3, rel=0.02)
    assert history["l0"].tolist() == pytest.approx([3] * 6, rel=0.15)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_the_modern_arms_recover_planted_directions_at_their_l0(activation):
    (x, directions), (held_out, _) = planted(), planted(300, seed=1)
    recipe = varied(sae_activation=activation)
    sae, history = train(x, held_out, recipe, activation)
    measured = model.quality(sae, torch.from_numpy(held_out))
    assert measured["fvu"] < 0.25
    assert measured["l0"] == pytest.approx(3, abs=0.75)
    assert (history["weight"] == training.INITIAL_WEIGHT).all()  # no penalty to adapt
    nearest = (sae.W_dec.detach().numpy() @ directions.T).max(axis=0)
    assert np.median(nearest) > 0.9


def test_half_precision_gives_nearly_the_same_and_float32_weights():
    (x, _), (held_out, _) = planted(300), planted(50, seed=1)
    recipe = varied(sae_epochs=20)
    full, half = (train(x, held_out, recipe, "test", half=half) for half in (False, True))
    assert half[0].W_enc.dtype == torch.float32
    assert half[1]["fvu"].iloc[-1] == pytest.approx(full[1]["fvu"].iloc[-1], abs=0.05)
    assert not torch.equal(full[0].W_enc, half[0].W_enc)


def test_what_does_not_fit_the_memory_is_refused_before_it_is_allocated(monkeypatch):
    x, _ = planted(100)
    monkeypatch.setattr(training, "available_bytes", lambda device: 10_000_000)
    monkeypatch.setattr(training, "SparseAutoencoder", None)  # building one would fail otherwise
    recipe = varied(expansion=4096)
    with pytest.raises(
        training.TrainingError, match=r"layer 3: training needs about 0\.\d GB.*0\.0 GB free.*lower expansion"
    ):
        train(x, x[:10], recipe, "layer 3")


def test_what_torch_keeps_of_a_finished_layer_is_given_back_before_the_next_asks_for_memory(monkeypatch):
    """Else the second wave of layers on one GPU is refused, because the driver counts what torch keeps as used."""
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("given back"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: calls.append("asked") or (5, 10))
    assert training.available_bytes(torch.device("cuda")) == 5
    assert calls == ["given back", "asked"]


def test_a_layer_of_the_paper_is_estimated_below_20_gb():
    recipe = sized(SAEKeys(layers=[0], expansion=16, batch_size=4096), rows=201_023, d_in=4096)
    needed = training.required_bytes(recipe, rows=201_023 + 25_170, half=True)
    assert 10e9 < needed < 20e9


def test_more_kept_latents_than_there_are_is_an_error():
    x, _ = planted(50)
    recipe = varied(sae_activation="topk", target_l0=1000)
    with pytest.raises(training.TrainingError, match="target_l0 1000 is more than the 32 latents"):
        train(x, x[:10], recipe, "test")


def test_at_the_papers_size_the_sizes_are_the_published_ones_but_for_the_dictionary():
    given = sized(SAEKeys(layers=[0], expansion=16, sae_epochs=200), rows=201_023, d_in=4096)
    assert (given.d_sae, given.epochs, given.target_l0, given.batch_size) == (65_536, 200, 100, 4096)
    assert given.learning_rate == pytest.approx(1e-4)
    auto = sized(SAEKeys(layers=[0], sae_epochs=200), rows=201_023, d_in=4096)
    assert auto.d_sae == 4 * 4096  # ten rows a latent
    assert auto.batch_size == 4096


def test_a_dictionary_fits_its_rows_and_its_budget():
    small = sized(SAEKeys(layers=[0]), rows=10_000, d_in=896)
    assert small.d_sae == 896  # never narrower than the stream
    assert small.k < small.d_sae
    assert small.batch_size * 40 <= 10_000
    more, longer = (sized(SAEKeys(layers=[0], sae_minutes=minutes), rows=100_000, d_in=1024) for minutes in (1, 2))
    assert longer.epochs == pytest.approx(2 * more.epochs, abs=1)
    assert sized(SAEKeys(layers=[0]), rows=20, d_in=8).batch_size == 20  # at least one step
    wide = sized(SAEKeys(layers=[0], sae_minutes=20), rows=201_023, d_in=1024)
    assert wide.d_sae == 2048  # ten rows a latent would be 16 times, whose one epoch ends within the warm-up
    assert sized(SAEKeys(layers=[0], expansion=2, target_l0=7, batch_size=32), rows=10_000, d_in=896).target_l0 == 7


@pytest.mark.parametrize(("d_in", "minutes"), [(576, 5), (896, 10), (1024, 20)])
def test_what_the_minutes_allow_on_all_annotations_is_a_whole_training(d_in, minutes):
    """The profiles for a CPU once trained one epoch of 49 steps, at a fifth of the learning rate at most."""
    recipe = sized(SAEKeys(layers=[0], sae_minutes=minutes), rows=201_023, d_in=d_in)
    steps, rates = 201_023 // recipe.batch_size, []
    for step in range(recipe.epochs * steps):
        rates.append(training.rate_at(step, steps=steps, epochs=recipe.epochs))
    assert recipe.epochs >= 10
    assert len(rates) >= 5000
    assert max(rates) == 1
    assert rates[-1] < 0.02, "and falls to its end"
    operations = 10 * d_in * recipe.d_sae * 201_023 * recipe.epochs
    assert operations <= minutes * 60 * 4e10


def test_the_sizes_of_small_runs_stay_what_they_were():
    """What the demo and the findings were trained with: width, active latents, epochs and batch."""
    demo = sized(SAEKeys(layers=[2], target_l0=32, sae_epochs=40), rows=2387, d_in=64)
    assert (demo.d_sae, demo.target_l0, demo.epochs, demo.batch_size) == (192, 32, 40, 64)
    findings = sized(SAEKeys(layers=[12]), rows=10_267, d_in=896)
    assert (findings.d_sae, findings.target_l0, findings.epochs, findings.batch_size) == (896, 47, 200, 256)
