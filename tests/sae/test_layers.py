"""Layers are independent, and read once: together, one by one or in parts of their own, they end with the same bytes."""

import numpy as np
import pandas as pd
import torch

from lib.alignment import arms
from lib.paper import CATEGORIES
from lib.run.parameters import AlignmentParameters, SAEParameters
from lib.run.stage import PART, Stage
from lib.run.table import STAGES
from lib.sae import features, files, layers, training
from lib.sae.model import SparseAutoencoder
from lib.sae.recipe import recipe_of
from lib.sae.rows import Rows, joined
from lib.sae.rows import reader as rows_of_layers

LAYERS = [0, 1, 2]


def of_sae(chosen=LAYERS):
    return SAEParameters(
        run_dir="runs/test", model="m", layers=chosen, sae_activation="relu", expansion=4, target_l0=4, sae_epochs=4,
        learning_rate=1e-2, batch_size=32, permutations=5, show_content=False,
    )  # fmt: skip


def of_alignment(chosen=LAYERS):
    return AlignmentParameters(
        run_dir="runs/test", model="m", layers=chosen, alignment_epochs=2, alignment_learning_rate=1e-2,
        alignment_batch_size=64, bootstrap_draws=10, label_shuffles=2,
    )  # fmt: skip


def reader(layer):
    """Rows whose first axes carry the categories; every layer has other ones."""
    generator = np.random.default_rng(layer)
    sides = {}
    for side, count in {"train": 200, "validation": 120, "test": 100}.items():
        vectors = generator.choice([0, 0, 0.25, 0.5, 1.0], (count, 10))
        x = generator.normal(size=(count, 12)) * 0.3
        x[:, :10] += vectors
        sides[side] = Rows(x.astype(np.float32), vectors, np.arange(count).astype(str))
    return sides


def stage_in(directory, **inputs):
    """An unfinished stage, named as its directory, that writes there."""
    directory.mkdir(parents=True, exist_ok=True)
    return Stage(STAGES[directory.name], directory.parent, directory, inputs, {}, complete=False, parameters=of_sae())


def contents(directory):
    """Bytes of every file below a directory, by name."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_layers_trained_at_once_end_with_the_bytes_of_layers_trained_one_by_one(tmp_path, monkeypatch):
    alone, together = stage_in(tmp_path / "alone" / "sae"), stage_in(tmp_path / "together" / "sae")
    for layer in LAYERS:
        layers.learn_layers(alone, reader, parameters=of_sae([layer]))
    monkeypatch.setattr(layers, "layers_at_once", lambda *arguments, **options: 3)
    folders, _ = layers.learn_layers(together, reader, parameters=of_sae())
    assert list(folders) == LAYERS
    assert contents(alone.directory) == contents(together.directory)


def test_as_many_layers_at_once_as_fit_a_gpu_and_one_on_a_cpu(monkeypatch):
    assert layers.layers_at_once(reader, LAYERS, parameters=of_sae()) == 1
    needed = training.required_bytes(recipe_of(of_sae(), rows=200, d_in=12), rows=420, half=True)
    monkeypatch.setattr(training, "default_device", lambda: "cuda")
    for free, expected in ((0.5, 1), (2.5, 2), (100, 3)):
        monkeypatch.setattr(training, "available_bytes", lambda device, free=free: int(free * needed))
        assert layers.layers_at_once(reader, LAYERS, parameters=of_sae()) == expected


def test_parts_write_their_own_layers_and_the_whole_joins_them_computing_nothing_twice(tmp_path, monkeypatch):
    stage = stage_in(tmp_path / "sae")
    for part in (3, 1, 3, 2):
        monkeypatch.setenv(PART, f"{part}-of-3")
        folders, tables = layers.learn_layers(stage, reader, parameters=of_sae())
        assert list(folders) == list(tables) == [part - 1]
    monkeypatch.delenv(PART)
    before = contents(stage.directory)
    assert len(before) == 3 * 5  # weights, configuration, history, quality and features of every layer
    monkeypatch.setattr(training, "train", None)  # the whole, which joins, must find everything there
    monkeypatch.setattr(features, "identify", None)
    folders, tables = layers.learn_layers(stage, reader, parameters=of_sae())
    assert [len(table) for table in tables.values()] == [48] * 3
    assert list(folders) == list(tables) == LAYERS
    assert contents(stage.directory) == before


def test_a_part_aligns_all_arms_of_its_layer(tmp_path, monkeypatch):
    trained = stage_in(tmp_path / "sae")
    stage = stage_in(tmp_path / "alignment", sae=trained.directory)
    monkeypatch.setenv(PART, "2-of-3")
    layers.learn_layers(trained, reader, parameters=of_sae())
    folders = arms.align_layers(stage, reader, parameters=of_alignment())
    assert list(folders) == [1]
    controls = "alignment/layer_01/controls"
    assert {arm: [path.relative_to(tmp_path).as_posix() for path in paths] for arm, paths in folders[1].items()} == {
        "untuned": ["sae/layer_01/pretrained"],
        "aligned": ["alignment/layer_01/aligned"],
        "reconstruction": [f"{controls}/reconstruction"],
        "shuffled": [f"{controls}/shuffled", f"{controls}/shuffled_2"],
        "random-untuned": ["sae/layer_01/pretrained"],
        "random": [f"{controls}/random"],
        "random-weights": [f"{controls}/random_weights"],
        "ridge": [f"{controls}/ridge"],
        "probe": [f"{controls}/probe"],
    }
    measured = joined(stage, "alignment.parquet", [1])
    assert list(measured["arm"].unique()) == list(arms.FOLDERS)
    assert set(measured["layer"]) == {1}
    for other in set(arms.FOLDERS) - {"aligned"}:
        assert f"spearman minus {other}" in set(measured["metric"])


def test_the_tables_of_all_layers_stand_below_each_other(tmp_path):
    trained, chosen = stage_in(tmp_path / "sae"), [0, 2]
    _, tables = layers.learn_layers(trained, reader, parameters=of_sae(chosen))
    stage, asked = stage_in(tmp_path / "alignment", sae=trained.directory), of_alignment(chosen)
    folders = arms.align_layers(stage, reader, parameters=asked)
    for name in ("alignment", "similarity"):
        table = joined(stage, f"{name}.parquet", chosen)
        assert list(table["layer"].unique()) == chosen
        for layer in chosen:
            alone = arms.measure(folders[layer], rows=reader, layer=layer, parameters=asked)[name]
            pd.testing.assert_frame_equal(table[table["layer"] == layer].reset_index(drop=True), alone)
    share = joined(stage, "tuned.parquet", chosen).set_index("layer")
    assert share["tuned"].to_dict() == {layer: table["tuned"].sum() for layer, table in tables.items()}
    assert (share["random_tuned"] == (2 * share["tuned"] - share["latents"]).clip(lower=0)).all()
    quality = joined(trained, "pretrained/quality.parquet", chosen)
    assert quality.groupby("layer")["rows"].sum().to_dict() == {0: 420, 2: 420}


def test_only_the_test_rows_are_measured(tmp_path):
    """Changing every other row changes no number of the final table."""
    trained = stage_in(tmp_path / "sae")
    layers.learn_layers(trained, reader, parameters=of_sae([0]))
    stage = stage_in(tmp_path / "alignment", sae=trained.directory)
    folders, asked = arms.align_layers(stage, reader, parameters=of_alignment([0])), of_alignment([0])
    only_test = {"rows": lambda layer: {"test": reader(layer)["test"]}, "layer": 0, "parameters": asked}
    alone = arms.measure(folders[0], **only_test)
    pd.testing.assert_frame_equal(joined(stage, "alignment.parquet", [0]), alone["alignment"])


def test_no_feature_passing_is_an_outcome_of_every_later_step(tmp_path):
    """An autoencoder that never fires has no features; alignment leaves it as it is and the table says NaN."""
    folder = tmp_path / "sae" / "layer_00"
    (folder / "pretrained").mkdir(parents=True)
    silent = SparseAutoencoder(12, 48)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    files.save(folder / "pretrained", silent, {"pooling": "mean", "split": "grouped"})
    table = features.identify(silent, reader(0), permutations=5, seed=0)
    assert not table[["strict", "report", "careful", "tuned"]].any(axis=None)
    table.to_parquet(folder / "features.parquet")
    assert features.replication(table)["latents"].eq(0).all()
    stage = stage_in(tmp_path / "alignment", sae=tmp_path / "sae")
    arms.align_layers(stage, reader, parameters=of_alignment([0]))
    values = joined(stage, "alignment.parquet", [0]).set_index(["arm", "metric", "category"])["value"]
    assert np.isnan(values["aligned", "spearman", "all"])
    assert values["aligned", "fvu", "all"] == values["untuned", "fvu", "all"]


def quality(l0=10.0, target=10.0, fvu=(0.1, 0.3), epochs=40):
    """The table of a layer of 50 latents, trained on 100 rows."""
    splits = {"train": (fvu[0], 100), "test": (fvu[1], 20)}
    return pd.DataFrame(
        {"layer": 4, "split": split, "unit": "row", "l0": l0, "target_l0": target, "fvu": unexplained, "rows": rows, "d_sae": 50,
         "epochs": epochs, "missed": training.misses(l0, target)}
        for split, (unexplained, rows) in splits.items()
    )  # fmt: skip


def test_memorised_rows_and_a_missed_target_are_said():
    (size,) = layers.remarks(quality())
    assert "50 latents for 100 rows (2.0 each)" in size
    assert "3.0 times as much" in size
    for l0, missed in ((11.2, True), (8.8, True), (10.9, False), (9.1, False)):
        said = layers.remarks(quality(l0))
        assert [("target is missed" in line) for line in said] == [False] + [True] * missed
    (others,) = layers.remarks(
        quality(target=float("nan"))
    )  # their target is not known, nor the rows they were trained on
    assert "10 are active per row, and the unexplained variance of every row is 0.300" in others
    assert "trained" not in others


def test_a_training_that_ended_within_its_warm_up_is_said():
    assert "trained for 5 epochs, all within the warm-up of 5" in layers.remarks(quality(epochs=5))[1]
    assert len(layers.remarks(quality(epochs=6))) == 1


def test_the_table_of_quality_has_the_target_and_says_whether_it_is_missed(tmp_path):
    trained = stage_in(tmp_path / "sae")
    layers.learn_layers(trained, reader, parameters=of_sae([0]))
    table = joined(trained, "pretrained/quality.parquet", [0])
    assert set(table["target_l0"]) == {4}
    assert set(table["d_sae"]) == {48}
    assert set(table["epochs"]) == {4}
    assert table["missed"].tolist() == (abs(table["l0"] / 4 - 1) >= 0.1).tolist()
    topk = of_sae([0]).model_copy(update={"sae_activation": "topk"})
    other = stage_in(tmp_path / "topk" / "sae")
    layers.learn_layers(other, reader, parameters=topk)
    assert not joined(other, "pretrained/quality.parquet", [0])["missed"].any()


class CountingStore:
    """A store of stage 02 that remembers which layers were read from it."""

    def __init__(self):
        self.read_layers = []

    def rows_of(self, actions):
        return np.arange(len(actions))

    def read(self, layer, pooling, rows):
        self.read_layers.append(layer)
        return np.concatenate([part.x for part in reader(layer).values()])[rows]


def test_a_stage_reads_every_layer_from_the_store_once(tmp_path, monkeypatch):
    """One process on several layers; on a GPU, two of them at once."""
    sides, chosen = reader(0), [0, 1]
    actions = pd.DataFrame(np.concatenate([part.vectors for part in sides.values()]), columns=list(CATEGORIES))
    actions = actions.assign(id=actions.index.astype(str), action=actions.index.astype(str))
    split = np.repeat(list(sides), [len(part.x) for part in sides.values()])
    exploded = pd.DataFrame({"id": actions["id"], "split_grouped": split})

    def rows(parameters):
        store = CountingStore()
        return store, rows_of_layers(store, annotations=actions, exploded=exploded, parameters=parameters)

    for at_once in (1, 2):
        monkeypatch.setattr(layers, "layers_at_once", lambda *arguments, at_once=at_once, **options: at_once)
        trained = stage_in(tmp_path / f"{at_once}" / "sae")
        store, read = rows(of_sae(chosen))
        layers.learn_layers(trained, read, parameters=of_sae(chosen))
        assert sorted(store.read_layers) == chosen
    store, read = rows(of_alignment(chosen))
    stage = stage_in(tmp_path / "alignment", sae=trained.directory)
    arms.align_layers(stage, read, parameters=of_alignment(chosen))
    assert store.read_layers == chosen
