"""The whole diagnosis finds what was planted, nothing in nothing, and reports what it cannot compute."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from diagnosis.planted import DeadlyStore, a_model, diagnosed, parameters_of, planted, value

from lib.diagnosis import categorical, controls, decisions, dimensional, gradient, layers, structural
from lib.diagnosis.sampling import Sampling
from lib.paper import CATEGORIES
from lib.run.keys import Pooling
from workflow import report


@pytest.mark.parametrize("damage", ["no prototypes", "no variance", "not finite", "no rows"])
def test_degenerate_input_is_reported_and_never_a_zero(damage):
    x, subset = planted(1.0, per_cell=8)
    if damage == "no prototypes":
        kept = ~((subset["category"] == "harm") & (subset["typicality"] == 1.0)).to_numpy()
        x, subset = x[kept], subset[kept].reset_index(drop=True)
    if damage == "no variance":
        x = np.ones_like(x)
    if damage == "not finite":
        x[3, 3] = np.nan
    if damage == "no rows":
        x, subset = x[:0], subset[:0]
    actions = subset["action"].to_numpy()
    probed = dimensional.Probed(np.zeros((len(x), 10)), actions, actions)
    tables = {
        "categorical": categorical.categorical(x, subset, sampling=Sampling(3, 3, 0)),
        "separability": categorical.separability(x, subset, sampling=Sampling(3, 3, 0)),
        "gradient": gradient.gradient(x, subset, sampling=Sampling(3, 3, 0)),
        "structural": structural.structural(x, subset, sampling=Sampling(3, 3, 0)),
        "ridge": dimensional.ridge(x, probed, sampling=Sampling(3, 3, 0)),
        "probe": dimensional.published(x, probed, sampling=Sampling(3, 0, 0)),
    }
    for name, table in tables.items():
        undefined = table[table["value"].isna()]
        assert undefined["reason"].str.startswith("not computed, because").all(), name
        assert (table.loc[table["value"].notna(), "reason"] == "").all(), name
        assert table["value"].isna().all() or damage == "no prototypes", name
    if damage == "no prototypes":
        bad = tables["gradient"].query("category == 'harm'")
        assert bad["value"].isna().all()
        assert tables["categorical"].query("foundation == 'care-harm'")["value"].isna().all()
        assert tables["categorical"].query("foundation == 'all' and arm == 'published'")["value"].notna().all()
        assert np.isfinite(value(tables["gradient"], category="care", arm="published"))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_whole_diagnosis_finds_planted_geometry(pooling):
    tables = diagnosed(a_model(4.0, per_cell=20), draws=20, pooling=pooling)
    for kind, table in tables.items():
        assert set(table["layer"]) == {0, 1}, kind
        unknown = {part for arm in table["arm"] for part in arm.split(", ")} - set(controls.ARMS)
        assert not unknown, f"{kind}: arms without a stated reason: {unknown}"
        null = table.dropna(subset="p")
        assert (null["p_corrected"] >= null["p"] - 1e-12).all()
    used = {part for table in tables.values() for arm in table["arm"] for part in arm.split(", ")}
    assert set(controls.ARMS) - set(Pooling.__args__) <= used, "every control that is listed is there"


def test_processes_side_by_side_find_what_one_finds(monkeypatch):
    inputs = a_model(4.0, per_cell=20)
    alone = diagnosed(inputs, draws=10, control_layers=1)
    monkeypatch.setattr(layers, "processes", lambda _: 2)
    together = diagnosed(inputs, draws=10, control_layers=1)
    for kind, table in alone.items():
        pd.testing.assert_frame_equal(table, together[kind])


def test_a_process_that_is_killed_ends_the_diagnosis_as_missing_memory_does(monkeypatch):
    store, annotations, subset = a_model(4.0)
    monkeypatch.setattr(layers, "processes", lambda _: 2)
    with pytest.raises(RuntimeError) as raised:
        diagnosed((DeadlyStore(store.pooled, store.index), annotations, subset), draws=5, control_layers=1)
    assert type(raised.value).__name__ in report.MEMORY_ERRORS


def test_there_are_as_many_processes_as_cores_and_memory_allow(monkeypatch):
    def available(gigabytes):
        return lambda: SimpleNamespace(available=gigabytes * 1e9)

    probed, store = SimpleNamespace(actions=range(25_000)), SimpleNamespace(width=4096)
    inputs = SimpleNamespace(large=True, subset=range(16_135), probed=probed, store=store)
    monkeypatch.setattr(layers, "cpu_count", lambda: 2)
    monkeypatch.setattr(layers.psutil, "virtual_memory", available(12))
    assert layers.processes(inputs) == 2
    monkeypatch.setattr(layers.psutil, "virtual_memory", available(7))
    assert layers.processes(inputs) == 1
    monkeypatch.setattr(layers, "cpu_count", lambda: 64)
    monkeypatch.setattr(layers.psutil, "virtual_memory", available(500))
    assert layers.processes(inputs) == layers.DIAGNOSIS_PROCESSES
    inputs.large = False
    assert layers.processes(inputs) == 1


def test_a_damaged_layer_is_reported_and_the_others_are_analysed():
    store, annotations, subset = a_model(4.0, layers_=3, per_cell=20)
    for pooled in store.pooled.values():
        pooled[0], pooled[1] = 7.0, np.nan
    tables = diagnosed((store, annotations, subset), draws=10, control_layers=3)
    for kind, table in tables.items():
        bad = table[(table["layer"] < 2) & (table["pooling"] != "none")]
        assert bad["value"].isna().all(), kind
        assert bad["reason"].str.startswith("not computed, because the layer").all(), kind
        assert table.loc[table["layer"] == 2, "value"].notna().any(), kind
    assert set(gradient.peaks(tables["gradient"])["layer"]) == {2}


def test_words_only_knows_words_and_nothing_else():
    actions = ["helping a friend", "a friend helping", "hurting a friend", ""]
    found = controls.words_only(actions, 16, 0)
    np.testing.assert_allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    assert (found[3] == 0).all()
    np.testing.assert_array_equal(found, controls.words_only(actions, 16, 0))


def test_correction_for_many_tests_equals_its_definition():
    p = np.array([0.001, 0.02, 0.03, 0.5])
    frame = pd.DataFrame({"model": "m", "layer": range(4), "pooling": "mean", "category": "care", "arm": "shuffled"})
    found = layers.corrected(frame.assign(metric="spearman", p=p))["p_corrected"]
    expected = np.minimum.accumulate((p * 4 / np.arange(1, 5))[::-1])[::-1]
    np.testing.assert_allclose(found, expected)


def test_the_published_probe_reads_the_subset_and_ridge_the_sampled_annotations(monkeypatch):
    store, annotations, subset = a_model(1.0, layers_=1)
    subset = subset.iloc[::-1].iloc[:700].reset_index(drop=True)
    read = {}
    for name in ("categorical", "separability", "gradient", "structural", "ridge", "published"):
        monkeypatch.setattr(layers, name, lambda x, rows, name=name, **_: read.update({name: (x, rows)}))
    inputs = layers.inputs_of(store, annotations, subset=subset, parameters=parameters_of())
    layers.analyse(inputs, 0, arm="published", threads=1)
    x, judged = read["published"]
    of_row = annotations.set_index("id").loc[subset["id"]]
    np.testing.assert_array_equal(x, store.read(0, "mean", store.rows_of(of_row["action"])))
    np.testing.assert_array_equal(judged.vectors, of_row[list(CATEGORIES)])
    x, probed = read["ridge"]
    assert len(x) == len(probed.vectors) <= parameters_of().probe_rows
    np.testing.assert_array_equal(
        x, store.read(0, "mean", store.rows_of(inputs.store.index["action"][inputs.store_rows[700:]]))
    )


def test_spellings_of_one_action_share_their_folds():
    store, annotations, subset = a_model(0.0, layers_=1)
    first, second = subset["id"].iloc[:2]
    said = ["Lying to a friend.", "lying to a friend"]
    annotations.loc[annotations["id"].isin([first, second]), "action"] = said
    store.index.loc[:1, "action"] = said
    inputs = layers.inputs_of(store, annotations, subset=subset, parameters=parameters_of())
    assert inputs.subset["action"].iloc[0] == inputs.subset["action"].iloc[1] == inputs.judged.actions[1]
    assert len(set(inputs.sampling("published").folds(inputs.subset["action"].to_numpy())[:2])) == 1


@pytest.mark.pipeline
def test_the_demo_models_come_out_right(demo_run):
    """The known answer: only the models trained on the labels hold more than words, by a wide margin."""
    tables = {path.parent.name: pd.read_parquet(path) for path in demo_run.glob("diagnosis/*/decisions.parquet")}
    assert len(tables) == 6
    by_kind = {name: table.set_index("kind") for name, table in tables.items()}
    for size in ("small", "large"):
        moral = by_kind[f"moral-{size}"]
        for kind in ("categorical", "gradient", "structural", "dimensional"):
            assert moral.loc[kind, "decision"] == decisions.SIGNAL
            for other in ("indifferent", "untrained"):
                naive = by_kind[f"{other}-{size}"]
                assert naive.loc[kind, "decision"] != decisions.SIGNAL, f"{other}-{size}, {kind}"
                assert moral.loc[kind, "ci_low"] > naive.loc[kind, "ci_high"], f"{other}-{size}, {kind}"
