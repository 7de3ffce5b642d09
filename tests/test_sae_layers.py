"""Layers are independent: trained together, one by one or by jobs of their own, they end with the same bytes."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from lib import runs, shares
from lib.sae import arms, export, jobs, layers, train
from lib.sae.model import SparseAutoencoder

LAYERS = [0, 1, 2]


def parameters(**changes):
    """Parameters of stages 5 and 6 at once."""
    values = {
        "run_dir": "runs/test", "model": "m", "layers": LAYERS, "pooling": "mean", "split": "grouped",
        "sae_source": "train", "sae_activation": "relu", "expansion": 4, "target_l0": 4.0, "sae_epochs": 4,
        "learning_rate": 1e-2, "batch_size": 32, "permutations": 5, "seed": 0, "alignment_epochs": 2,
        "alignment_learning_rate": 1e-2, "alignment_batch_size": 64, "alignment_objective": "six-term",
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def reader(layer):
    """Rows whose first axes carry the categories; every layer has other ones."""
    generator = np.random.default_rng(layer)
    sides = {}
    for side, count in {"train": 200, "validation": 120, "test": 100}.items():
        vectors = generator.choice([0, 0, 0.25, 0.5, 1.0], (count, 10))
        x = generator.normal(size=(count, 12)) * 0.3
        x[:, :10] += vectors
        sides[side] = layers.Rows(x.astype(np.float32), vectors, np.arange(count).astype(str))
    return sides


def stage_in(directory, **inputs):
    """An unfinished stage that writes into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    return runs.Stage("05_sparse_autoencoders", directory.parent, directory, inputs, {}, complete=False, command="")


def contents(directory):
    """Bytes of every file below a directory, by name."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_layers_trained_at_once_end_with_the_bytes_of_layers_trained_one_by_one(tmp_path, monkeypatch):
    alone, together = stage_in(tmp_path / "alone"), stage_in(tmp_path / "together")
    for layer in LAYERS:
        layers.train_layers(alone, reader, [layer], parameters())
    monkeypatch.setattr(layers, "layers_at_once", lambda *arguments: 3)
    folders = layers.train_layers(together, reader, LAYERS, parameters())
    assert list(folders) == LAYERS
    assert contents(alone.directory) == contents(together.directory)


def test_as_many_layers_at_once_as_fit_a_gpu_and_one_on_a_cpu(monkeypatch):
    assert layers.layers_at_once(reader, LAYERS, parameters()) == 1
    needed = train.required_bytes(12, 48, 420, layers.training_recipe(parameters()), half=True)
    monkeypatch.setattr(train, "default_device", lambda: "cuda")
    for free, expected in ((0.5, 1), (2.5, 2), (100, 3)):
        monkeypatch.setattr(train, "available_bytes", lambda device, free=free: int(free * needed))
        assert layers.layers_at_once(reader, LAYERS, parameters()) == expected


def test_jobs_of_single_layers_are_joined_and_nothing_is_computed_twice(tmp_path, monkeypatch):
    stage = stage_in(tmp_path / "sae")
    monkeypatch.setattr(jobs.runs, "open_stage", lambda *arguments: stage)
    monkeypatch.setattr(layers, "reader", lambda *arguments: reader)
    for part in (3, 1, 3, 2):
        monkeypatch.setenv(shares.VARIABLE, f"{part}-of-3")
        jobs.run("05_sparse_autoencoders", parameters())
    before = contents(stage.directory)
    monkeypatch.setattr(train, "train", None)  # the notebook, which joins, must find everything there
    monkeypatch.setattr(layers.features, "identify", None)
    folders = layers.train_layers(stage, reader, LAYERS, parameters())
    tables = [layers.identify_layer(stage, reader, layer, parameters()) for layer in LAYERS]
    assert [len(table) for table in tables] == [48] * 3
    assert sorted(folders) == LAYERS
    assert contents(stage.directory) == before


def test_a_job_aligns_all_arms_of_its_layer(tmp_path, monkeypatch):
    trained = stage_in(tmp_path / "sae")
    stage = stage_in(tmp_path / "alignment", autoencoders=trained.directory)
    monkeypatch.setattr(layers, "reader", lambda *arguments: reader)
    for notebook, directory in (("05_sparse_autoencoders", trained), ("06_feature_alignment", stage)):
        monkeypatch.setattr(jobs.runs, "open_stage", lambda *arguments, directory=directory: directory)
        monkeypatch.setenv(shares.VARIABLE, "2-of-3")
        jobs.run(notebook, parameters())
    folders = arms.align_layer(stage, reader, 1, parameters())
    assert set(folders) == set(arms.ARMS)
    found = arms.measure(folders, reader, 1, 10, 0)
    assert list(found["alignment"]["arm"].unique()) == list(arms.ARMS)
    assert set(found["alignment"]["layer"]) == {1}
    for other in set(arms.ARMS) - {"aligned"}:
        assert f"spearman minus {other}" in set(found["alignment"]["metric"])


def test_only_the_test_rows_are_measured(tmp_path):
    """Changing every other row changes no number of the final table."""
    trained = stage_in(tmp_path / "sae")
    layers.train_layers(trained, reader, [0], parameters())
    layers.identify_layer(trained, reader, 0, parameters())
    stage = stage_in(tmp_path / "alignment", autoencoders=trained.directory)
    folders = arms.align_layer(stage, reader, 0, parameters())
    pd.testing.assert_frame_equal(
        arms.measure(folders, reader, 0, 10, 0)["alignment"],
        arms.measure(folders, lambda layer: {"test": reader(layer)["test"]}, 0, 10, 0)["alignment"],
    )


def test_no_feature_passing_is_an_outcome_of_every_later_step(tmp_path):
    """An autoencoder that never fires has no features; alignment leaves it as it is and the table says NaN."""
    folder = tmp_path / "sae" / "layer_00"
    (folder / "pretrained").mkdir(parents=True)
    silent = SparseAutoencoder(12, 48)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    export.save(folder / "pretrained", silent, {"pooling": "mean", "split": "grouped"})
    table = layers.identify(silent, reader(0), 5, 0)
    assert not table[["strict", "report", "careful", "tuned"]].any(axis=None)
    table.to_parquet(folder / "features.parquet")
    assert layers.features.replication(table)["latents"].eq(0).all()
    stage = stage_in(tmp_path / "alignment", autoencoders=tmp_path / "sae")
    folders = arms.align_layer(stage, reader, 0, parameters())
    found = arms.measure(folders, reader, 0, 10, 0)["alignment"].set_index(["arm", "metric", "category"])["value"]
    assert np.isnan(found["aligned", "spearman", "all"])
    assert found["aligned", "fvu", "all"] == found["untuned", "fvu", "all"]
