"""A store gives what was written or an error: lost and damaged pieces, unreadable ones, and what each costs."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import zarr

from lib.activations import arrays, store
from lib.run.files import PROJECT, files_below
from lib.run.parameters import ActivationsParameters
from lib.run.stage import open_stage, read_manifest
from workflow import verify

LAYERS, ROWS, WIDTH, POOLINGS = 3, 40, 16, ("mean", "last")
VALUES = {name: np.random.default_rng(n).normal(size=(LAYERS, ROWS, WIDTH)) for n, name in enumerate(POOLINGS)}


def create(directory):
    index = pd.DataFrame({"action": [f"doing {n}" for n in range(ROWS)], "tokens": 5})
    layout = {"layers": LAYERS, "width": WIDTH, "poolings": POOLINGS, "rows_per_chunk": 10, "dtype": "bfloat16"}
    return store.create_store(directory, index, **layout)


def write(target, chunks):
    for chunk in chunks:
        pooled = {name: values[:, chunk.start : chunk.stop].astype(np.float32) for name, values in VALUES.items()}
        target.write_chunk(chunk, pooled, token_budget=64)
    return target


@pytest.fixture
def written(tmp_path):
    target = create(tmp_path / "model")
    return write(target, target.chunks())


def piece(target, pooling="mean", layer=1, number=2):
    return target.directory / arrays.ARRAYS / pooling / "c" / str(layer) / str(number) / "0"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose(path):
    path.unlink()


def swap(path):
    """A whole piece of another layer: its own checksum holds, and it is the wrong one."""
    shutil.copyfile(path.parents[2] / "0" / path.parents[0].name / "0", path)


@pytest.mark.parametrize("damage", [flip, lose, swap])
def test_a_damaged_piece_is_refused_and_the_others_are_read(written, damage):
    damage(piece(written))
    with pytest.raises(
        store.DamagedError, match=r"rows 20 to 29 of 'mean', layer 1|rows 20 to 29 of 'mean' are damaged"
    ):
        written.read(1, "mean")
    assert written.read(1, "last").shape == written.read(0, "mean").shape == (ROWS, WIDTH)
    assert written.read(1, "mean", np.array([3, 19, 30])).shape == (3, WIDTH)
    assert written.verify().query("state != 'ok'").to_numpy().tolist() == [[20, "mean", "damaged"]]
    assert written.missing_chunks() == [range(20, 30)]


def test_a_piece_is_hashed_once_per_process_and_not_by_every_reader(written, monkeypatch):
    hashed = []
    real = store.checksum
    monkeypatch.setattr(store, "checksum", lambda values: hashed.append(1) or real(values))
    first = written.read(1, "mean")
    assert len(hashed) == 4
    np.testing.assert_array_equal(store.open_store(written.directory).read(1, "mean"), first)
    assert len(hashed) == 4


def test_a_piece_that_is_lost_after_it_was_compared_is_no_zero(written):
    written.read(1, "mean")
    lose(piece(written))
    with pytest.raises(store.DamagedError, match="damaged or gone"):
        written.read(1, "mean")


class Refusing:
    """A file system that refuses, as one does for an expired key."""

    def __getitem__(self, where):
        raise PermissionError("The security token included in the request is expired")


def test_what_cannot_be_read_now_is_no_damage(written, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store.zarr, "open_array", lambda *_, **__: Refusing())
        for reading in (written.verify, lambda: written.read(0, "mean")):
            with pytest.raises(
                store.StoreError, match=r"cannot be read or written now \(PermissionError: .*expired"
            ) as caught:
                reading()
            assert not isinstance(caught.value, store.DamagedError)
    assert written.missing_chunks() == []
    assert (written.verify()["state"] == "ok").all()


def test_damaged_descriptions_of_arrays_are_written_anew_and_cost_nothing(written):
    before = written.read(2, "last")
    for pooling, text in (("mean", "{"), ("last", None)):
        path = written.directory / arrays.ARRAYS / pooling / "zarr.json"
        path.unlink() if text is None else path.write_text(text)
    assert (written.verify()["state"] == "ok").all()
    np.testing.assert_array_equal(written.read(2, "last"), before)


@pytest.mark.parametrize("content", ["", "{", '{"token_budget": 64}', '{"token_budget": 64, "sha256": {}}'])
def test_a_damaged_marker_costs_its_chunk(written, content):
    (written.directory / "chunks" / "00000010.json").write_text(content)
    states = written.verify().query("state != 'ok'")
    assert set(states["first_row"]) == {10}
    assert written.missing_chunks() == [range(10, 20)]


def test_a_store_with_missing_chunks_is_not_complete(tmp_path):
    target = create(tmp_path / "model")
    write(target, target.chunks()[:3])
    for refused in (target.require_complete, lambda: target.read(0, "mean")):
        with pytest.raises(store.StoreError, match=r"1 of 4 chunks of .* are not written yet, or were found damaged"):
            refused()
    write(target, target.missing_chunks()).require_complete()


def test_the_notebook_refuses_an_incomplete_store_before_it_finishes():
    cells = json.loads((PROJECT / "notebooks" / "02_activations.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    order = [
        code.index(call) for call in ("extract(", "activations.verify()", "activations.require_complete()", ".finish(")
    ]
    assert order == sorted(order)


def test_a_store_of_an_older_protocol_is_refused(written):
    path = written.directory / "store.json"
    path.write_text(json.dumps(written.description | {"protocol": 1}))
    with pytest.raises(store.StoreError, match="keeps protocol 1 of a store, not 2"):
        store.open_store(written.directory)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A finished stage 02 with a store, and its run in a profile, so that `make verify` finds it."""
    for name in ("annotations", "subset"):
        pd.DataFrame({"id": ["a"]}).to_parquet(tmp_path / f"{name}.parquet")
    run = tmp_path / "run"
    values = ActivationsParameters(run_dir=str(run), model="tiny", model_source="somewhere", revision=None)
    inputs = {name: tmp_path / f"{name}.parquet" for name in ("annotations", "subset")}

    def opened():
        return open_stage(values, inputs=inputs)

    first = opened()
    target = write(create(first.directory), create(first.directory).chunks())
    pd.DataFrame({"norm": [1.0]}).to_parquet(first.directory / "norms.parquet")
    leftover = piece(target).with_name("0.5f1c.partial")  # of a writer that was killed
    leftover.write_bytes(b"half")
    first.finish(hashed_elsewhere=(arrays.ARRAYS,))
    profile = SimpleNamespace(run=os.path.relpath(run, PROJECT / "runs"))
    monkeypatch.setattr(verify, "load_profile", lambda path: profile)
    monkeypatch.setattr(sys, "argv", ["verify", "a profile"])
    return opened


def test_the_manifest_holds_the_hashes_of_markers_and_no_leftovers(stage):
    outputs = read_manifest(stage().directory)["outputs"]
    markers = [f"chunks/{first:08d}.json" for first in (0, 10, 20, 30)]
    assert list(outputs) == [*markers, "index.parquet", "norms.parquet", "store.json"]
    assert any(name.endswith(".partial") for name in files_below(stage().directory))


@pytest.mark.parametrize("damage", [flip, lose, swap])
def test_one_damaged_piece_costs_one_chunk_after_make_verify(stage, damage, capsys):
    directory = stage().directory
    kept = {name: (directory / name).stat().st_mtime_ns for name in files_below(directory)}
    damage(piece(store.open_store(directory)))
    assert verify.main() == 0
    assert "rows from 20, mean: damaged" in capsys.readouterr().out
    again = stage()
    assert not again.complete
    target = create(again.directory)
    assert target.missing_chunks() == [range(20, 30)]
    assert target.token_budget(range(20, 30)) == 64
    write(target, target.missing_chunks())
    assert (target.verify()["state"] == "ok").all()
    written_anew = {
        name
        for name, time in kept.items()
        if (directory / name).exists() and (directory / name).stat().st_mtime_ns != time
    }
    assert all("/2/" in name or name in ("chunks/00000020.json", "plan.json") for name in written_anew)
    again.finish(hashed_elsewhere=(arrays.ARRAYS,))
    verify.main()
    assert "every result is as it was written" in capsys.readouterr().out
    assert stage().complete


@pytest.mark.parametrize("name", ["chunks/00000030.json", "norms.parquet"])
def test_a_damaged_marker_or_table_leaves_the_store(stage, name):
    directory = stage().directory
    (directory / name).write_bytes((directory / name).read_bytes() + b" ")
    verify.main()
    assert not stage().complete
    assert not (directory / name).exists()
    assert len(store.open_store(directory).missing_chunks()) == (name != "norms.parquet")


def test_a_damaged_index_costs_the_stage(stage):
    directory = stage().directory
    flip(directory / "index.parquet")
    verify.main()
    assert not stage().complete
    assert not (directory / "store.json").exists()


def test_make_verify_says_what_cannot_be_read_now_and_keeps_the_stage(stage, monkeypatch):
    monkeypatch.setattr(store.zarr, "open_array", lambda *_, **__: Refusing())
    with pytest.raises(store.StoreError, match="cannot be read or written now"):
        verify.main()
    assert stage().complete


def test_a_store_at_a_file_address_is_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setenv(arrays.VARIABLE, (tmp_path / "elsewhere").as_uri())
    target = create(tmp_path / "model")
    write(target, target.chunks())
    assert not (tmp_path / "model" / arrays.ARRAYS).exists()
    assert list((tmp_path / "elsewhere").rglob("owner.json"))
    assert (target.verify()["state"] == "ok").all()
    expected = VALUES["mean"][1].astype(np.float32)
    np.testing.assert_allclose(target.read(1, "mean"), expected, rtol=2**-8)
    monkeypatch.setattr(arrays, "short", lambda path: "same/place")
    create(tmp_path / "first" / "model")
    with pytest.raises(arrays.OwnershipError, match="Two runs never share a store"):
        create(tmp_path / "second" / "model")


def test_fill_values_are_never_values(tmp_path):
    for dtype, kept_as in arrays.STORED_AS.items():
        fill = np.array([arrays.NOT_A_NUMBER[kept_as]], dtype=kept_as)
        assert np.isnan(arrays.decode(fill, dtype)).all()
        place = str(Path(tmp_path) / dtype)
        arrays.lay_out(place, {"layers": 1, "rows": 2, "width": 2, "rows_per_chunk": 2, "dtype": dtype})
        assert np.isnan(arrays.decode(np.asarray(zarr.open_array(place)[0]), dtype)).all()
