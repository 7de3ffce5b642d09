"""What once went wrong: nulls that ignored repeated actions, lost metadata, resumed trainings that differed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lib.foundations import CATEGORIES
from lib.sae import align, evaluate, export, features, layers, train
from lib.sae.model import SparseAutoencoder


def repeated(signal, seed, actions=150, copies=5):
    """Rows of actions that each occur five times, with the same label; latent 0 carries ``signal`` for care."""
    generator = np.random.default_rng(seed)
    levels = generator.choice([0, 0, 0, 0.25, 0.5, 1.0], (actions, 10))
    x = generator.normal(size=(actions, 16))
    x[:, 0] += signal * levels[:, 0]
    names = np.array([f"action {index}" for index in range(actions)])
    return layers.Rows(*(np.repeat(part, copies, axis=0) for part in (x.astype(np.float32), levels, names)))


def latents_of_the_axes():
    """Latents 0 to 15 are the axes; the others fire on very few rows, so their null has heavy tails."""
    sae = SparseAutoencoder(16, 128, 0)
    with torch.no_grad():
        sae.W_enc[:, :16] = torch.eye(16)
        sae.b_enc[16:] = -0.9
    return sae


def test_the_careful_criterion_finds_nothing_where_nothing_is():
    found = [layers.identify(latents_of_the_axes(), repeated(0.0, seed), 100, seed) for seed in range(8)]
    assert sum(table["careful"].any() for table in found) <= 2
    assert np.mean([table["careful"].sum() for table in found]) < 1
    # The published criterion has no null, and passes many by chance.
    assert np.mean([table["strict"].sum() for table in found]) > 5


def test_the_careful_criterion_finds_the_planted_latent():
    table = layers.identify(latents_of_the_axes(), repeated(4.0, 0), 100, 0)
    assert table.loc[0, "careful"]
    assert table.loc[0, "category"] == "care"


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=30), seed=st.integers(0, 100))
def test_labels_move_with_their_whole_action(counts, seed):
    actions = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    moved = features.permuted_by_action(actions, np.random.default_rng(seed))
    assert sorted(moved) == list(range(len(actions)))
    for action in np.unique(actions):
        assert len(np.unique(actions[moved[actions == action]])) == 1


def feature_table(sae, rows):
    return layers.identify(sae, rows, 20, 0)


def test_an_aligned_arm_keeps_the_names_of_model_and_hook(tmp_path):
    sae, rows = latents_of_the_axes(), repeated(4.0, 0)
    about = {"model_name": "m", "hook_name": "model.layers.2", "pooling": "mean"}
    data = {"train": rows, "validation": rows}
    layers.align_arm(tmp_path, "aligned", sae, feature_table(sae, rows), data, align.Recipe(epochs=2), "test", about)
    assert about.items() <= export.metadata(tmp_path).items()


def test_random_latents_are_others_that_fire_as_often():
    generator = np.random.default_rng(0)
    activity = np.sort(generator.random(400))
    tuned = np.arange(300, 400, 5)
    chosen = align.Selection(tuned, [], [], np.array([], dtype=int), np.array([], dtype=int))
    random = align.randomly(chosen, activity, 0).tuned
    assert len(set(random)) == len(tuned)
    assert not set(random) & set(tuned)
    np.testing.assert_allclose(activity[random], activity[tuned], atol=0.05)


def test_unexplained_variance_survives_a_large_common_offset():
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(400, 16)) + 1e4).astype(np.float32)
    sae = SparseAutoencoder(16, 32)
    with torch.no_grad():
        sae.b_enc.fill_(-1e9)
        sae.b_dec.copy_(torch.from_numpy(x.mean(axis=0, dtype=np.float64)))
    empty = np.array([], dtype=int)
    chosen = align.Selection(empty, [empty] * 10, [empty] * 10, empty, empty)
    table = evaluate.evaluate({"untuned": (sae, chosen)}, x, generator.random((400, 10)), np.arange(400), 10, 0)
    assert table.set_index("metric").loc["fvu", "value"] == pytest.approx(1, abs=1e-3)


def test_few_alignment_steps_are_enough_for_the_schedule():
    rows, sae = repeated(4.0, 0, actions=60), latents_of_the_axes()
    chosen = align.select(feature_table(sae, rows))
    part = (rows.x, rows.vectors)
    recipe = align.Recipe(epochs=3, batch_size=100)  # 3 steps an epoch: a warm-up of length zero
    assert len(align.align(sae, chosen, part, part, recipe, "test")[1])


@pytest.mark.parametrize("damage", ["shape", "nan"])
def test_damaged_weights_are_a_format_error(tmp_path, damage):
    export.save(tmp_path, SparseAutoencoder(4, 8), {})
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["W_dec"] = weights["W_dec"].T.contiguous() if damage == "shape" else weights["W_dec"] * float("nan")
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(export.FormatError, match="W_dec"):
        export.load(tmp_path)


RECIPE = train.Recipe(expansion=4, target_l0=4, epochs=25, learning_rate=1e-2, batch_size=32, seed=3)


class Killed(Exception):
    """Stands for a kill."""


def killed_in(epoch, monkeypatch):
    original = train._step

    def step(sae, optimiser, x, weight, label, now):
        if now == epoch:
            raise Killed
        original(sae, optimiser, x, weight, label, now)

    monkeypatch.setattr(train, "_step", step)


@pytest.mark.parametrize("epoch", [3, 10, 24])
def test_a_killed_training_ends_with_the_same_bytes(tmp_path, monkeypatch, epoch):
    x = repeated(1.0, 0).x
    expected, history = train.train(x, x[:100], RECIPE, "whole")
    checkpoint = tmp_path / "checkpoint"
    with monkeypatch.context() as patched:
        killed_in(epoch, patched)
        with pytest.raises(Killed):
            train.train(x, x[:100], RECIPE, "killed", checkpoint)
    assert checkpoint.exists() == (epoch >= train.CHECKPOINT_EPOCHS)
    found, resumed = train.train(x, x[:100], RECIPE, "resumed", checkpoint)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.state_dict().items())
    pd.testing.assert_frame_equal(resumed, history, check_exact=True)


def test_a_checkpoint_of_other_settings_or_data_is_refused(tmp_path):
    x = repeated(1.0, 0).x
    train.train(x, x[:100], RECIPE, "test", tmp_path / "checkpoint")
    for other, rows in ((train.Recipe(**{**RECIPE.__dict__, "seed": 4}), x), (RECIPE, x + 1)):
        with pytest.raises(train.TrainingError, match="other settings or data"):
            train.train(rows, rows[:100], other, "test", tmp_path / "checkpoint")


def test_a_finished_layer_leaves_no_checkpoint(tmp_path):
    rows, folder = repeated(1.0, 0), tmp_path / "pretrained"
    folder.mkdir()
    layers.pretrain(folder, {"train": rows, "validation": rows}, RECIPE, "test", {})
    assert [path.name for path in tmp_path.iterdir()] == ["pretrained"]
    assert json.loads((folder / "cfg.json").read_text())["d_in"] == 16


def test_the_categories_are_the_columns_of_the_table():
    table = feature_table(latents_of_the_axes(), repeated(0.0, 0))
    assert [f"r_{category}" for category in CATEGORIES] == [name for name in table if name.startswith("r_")]
    assert table["activity"].between(0, 1).all()


def test_another_pooling_than_the_autoencoders_is_refused():
    layers.require_pooling({"pooling": "mean"}, "mean")
    with pytest.raises(export.FormatError, match="'last'"):
        layers.require_pooling({"pooling": "mean"}, "last")
