"""What a store does when a number, the disk or the GPU's memory ends."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.activations import extraction, models, pipeline, store

OF_MODEL = {"layers": 3, "width": 32, "poolings": extraction.POOLINGS, "rows_per_chunk": 10}
"""The store of the tiny model."""

ACTIONS = [f"keeping promise number {i}" for i in range(40)]


def small_store(directory, dtype, rows=3, width=2):
    index = pd.DataFrame({"action": [f"a{i}" for i in range(rows)], "tokens": [1] * rows})
    return store.create_store(directory, index, layers=1, width=width, poolings=["mean"], rows_per_chunk=2, dtype=dtype)


def test_bfloat16_keeps_what_torch_keeps(tmp_path):
    values = np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32) * np.float32(1e30)
    kept = small_store(tmp_path, "bfloat16", width=64)
    for rows in kept.chunks():
        kept.write_chunk(rows, {"mean": values[:, rows.start : rows.stop]})
    expected = torch.from_numpy(values[0]).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(kept.read(0, "mean"), expected)
    assert (kept.verify()["state"] == "ok").all()


@given(st.lists(st.integers(0, 10), max_size=30))
def test_asked_for_rows_are_those_of_the_whole_in_any_order(rows):
    values = np.random.default_rng(0).normal(size=(1, 11, 2)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        kept = small_store(Path(folder), "float32", rows=11)
        for chunk in kept.chunks():
            kept.write_chunk(chunk, {"mean": values[:, chunk.start : chunk.stop]})
        asked = np.array(rows, dtype=int)
        np.testing.assert_array_equal(kept.read(0, "mean", asked), values[0][asked])


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e6), ("bfloat16", 3.4e38)])
def test_values_beyond_the_dtype_stop_instead_of_becoming_infinite(tmp_path, dtype, value):
    kept = small_store(tmp_path, dtype)
    with pytest.raises(store.StoreError, match=f"do not fit {dtype}; use store_dtype: float32"):
        kept.write_chunk(range(2), {"mean": np.full((1, 2, 2), value, dtype=np.float32)})
    assert kept.missing_chunks() == kept.chunks()


def test_an_unknown_dtype_is_refused_and_another_one_never_mixes_in(tmp_path):
    with pytest.raises(store.StoreError, match="one of float32, float16, bfloat16, got 'int8'"):
        small_store(tmp_path, "int8")
    small_store(tmp_path, "bfloat16")
    with pytest.raises(store.StoreError, match="has dtype = 'bfloat16', not 'float32'"):
        small_store(tmp_path, "float32")


@pytest.mark.parametrize(("column", "values"), [("action", ["a0", "b1", "a2"]), ("tokens", [1, 1, 2])])
def test_other_rows_or_prompts_of_another_length_never_mix_in(tmp_path, column, values):
    index = small_store(tmp_path, "float32").index
    store.create_store(tmp_path, index, layers=1, width=2, poolings=["mean"], rows_per_chunk=2)
    with pytest.raises(store.StoreError, match=f"holds other rows: its '{column}' differ"):
        store.create_store(
            tmp_path, index.assign(**{column: values}), layers=1, width=2, poolings=["mean"], rows_per_chunk=2
        )


def test_a_full_disk_is_named_and_the_run_goes_on_afterwards(tmp_path, monkeypatch):
    kept = small_store(tmp_path, "float32")
    first, second = kept.chunks()
    kept.write_chunk(first, {"mean": np.ones((1, 2, 2), dtype=np.float32)})
    real = store.write_text_atomically

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_text_atomically", full)
    with pytest.raises(
        store.StoreError,
        match=r"is full: the marker of rows 2 to 2 could not be written; up to .* MB more are needed. What is finished stays",
    ):
        kept.write_chunk(second, {"mean": np.full((1, 1, 2), 2, dtype=np.float32)})
    assert kept.missing_chunks() == [second]
    monkeypatch.setattr(store, "write_text_atomically", real)
    kept.write_chunk(second, {"mean": np.full((1, 1, 2), 2, dtype=np.float32)})
    assert kept.read(0, "mean").tolist() == [[1, 1], [1, 1], [2, 2]]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 600 kB, which can be made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk_loses_nothing_that_was_finished(small_disk):
    values = np.random.default_rng(0).normal(size=(1, 40, 4096)).astype(np.float32)
    index = pd.DataFrame({"action": ACTIONS, "tokens": [1] * 40})
    kept = store.create_store(small_disk / "store", index, layers=1, width=4096, poolings=["mean"], rows_per_chunk=10)

    def fill(target):
        for rows in target.missing_chunks():
            target.write_chunk(rows, {"mean": values[:, rows.start : rows.stop]})

    with pytest.raises(store.StoreError, match=r"is full: rows \d+ to \d+ of 'mean' could not be written"):
        fill(kept)
    missing = kept.missing_chunks()
    assert 0 < len(missing) < 4
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = store.open_store(small_disk / "store")
    assert (again.verify()["state"] != "damaged").all()
    assert again.missing_chunks() == missing
    fill(again)
    np.testing.assert_array_equal(again.read(0, "mean"), values[0])


class SmallGPU:
    """A GPU on which a batch of more than ``limit`` tokens, from a row on, does not fit."""

    def __init__(self, monkeypatch, limit, from_row=0, killed_after=None):
        self.real, self.batches, self.refused = extraction.pooled_residuals, [], []
        self.limit, self.from_row, self.killed_after = limit, from_row, killed_after
        monkeypatch.setattr(extraction, "pooled_residuals", self)

    def __call__(self, model, prompts, rows):
        tokens = len(rows) * int(prompts.lengths[rows].max())
        if tokens > self.limit and rows.stop > self.from_row:
            self.refused.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.killed_after is not None and len(self.batches) == self.killed_after:
            raise KeyboardInterrupt
        self.batches.append(rows)
        return self.real(model, prompts, rows=rows)


def filled(directory, model, prompts, token_budget):
    index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
    kept = store.create_store(directory, index, **OF_MODEL)
    extraction.extract(model, prompts, store=kept, token_budget=token_budget)
    return kept


def files_of(directory):
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".writing"]
    return {path.relative_to(directory): path.read_bytes() for path in files}


@pytest.fixture(params=["float32", "bfloat16"])
def model(tiny_model, request):
    return models.open_model(str(tiny_model), dtype=request.param)


def test_out_of_memory_halves_the_batch_says_so_and_records_it(model, tmp_path, monkeypatch, capsys):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    gpu = SmallGPU(monkeypatch, limit=200, from_row=15)
    kept = filled(tmp_path / "store", model, prompts, 400)
    # Ten prompts of 36 tokens did not fit, whatever the budget allowed.
    assert capsys.readouterr().out.count("out of memory: token budget lowered from 400 to 180") == 1
    assert [kept.token_budget(rows) for rows in kept.chunks()] == [400, 180, 180, 180]
    assert (kept.verify()["state"] == "ok").all()
    assert gpu.refused == [range(10, 20)]


def test_a_batch_that_did_not_fit_is_not_tried_again(model, tmp_path, monkeypatch):
    """However far its budget is above it: chunks and lengths bound a batch too."""
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    gpu = SmallGPU(monkeypatch, limit=100)
    filled(tmp_path / "store", model, prompts, 1_000_000)
    assert len(gpu.refused) == len(set(gpu.refused)) == 2  # of ten prompts, then of five


def test_bytes_follow_from_the_recorded_budgets_however_the_run_was_interrupted(model, tmp_path, monkeypatch):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    with monkeypatch.context() as patch:
        SmallGPU(patch, limit=200, from_row=15)
        whole = files_of(filled(tmp_path / "whole", model, prompts, 400).directory)
    for killed_after in (1, 3, 5):
        directory = tmp_path / f"killed-{killed_after}"
        with monkeypatch.context() as patch:
            SmallGPU(patch, limit=200, from_row=15, killed_after=killed_after)
            with pytest.raises(KeyboardInterrupt):
                filled(directory, model, prompts, 400)
        with monkeypatch.context() as patch:
            SmallGPU(patch, limit=200, from_row=15)
            filled(directory, model, prompts, 400)
        assert files_of(directory) == whole


def test_a_damaged_chunk_is_made_again_of_the_same_batches(model, tmp_path, monkeypatch):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    with monkeypatch.context() as patch:
        SmallGPU(patch, limit=200)
        kept = filled(tmp_path, model, prompts, 400)
    before = files_of(tmp_path)
    chunk = tmp_path / "residuals.zarr" / "mean" / "c" / "1" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert kept.verify().query("state == 'damaged'")["first_row"].tolist() == [20]
    extraction.extract(model, prompts, store=kept, token_budget=400)  # on a GPU with room for 400
    assert files_of(tmp_path) == before
    assert json.loads((tmp_path / "chunks" / "00000020.json").read_text())["token_budget"] == 175


def test_a_prompt_that_does_not_fit_alone_stops_with_what_would_help(model, tmp_path, monkeypatch):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    SmallGPU(monkeypatch, limit=1)
    with pytest.raises(extraction.ActivationError, match=r"single prompt of \d+ tokens. Use several GPUs"):
        filled(tmp_path, model, prompts, 400)


def test_progress_tells_rows_tokens_time_left_and_memory(model, tmp_path, capfd):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
    kept = store.create_store(tmp_path, index, **OF_MODEL)
    done = extraction.extract(model, prompts, store=kept, token_budget=400)
    assert (done.actions, done.tokens) == (40, prompts.lengths.sum())
    shown = capfd.readouterr().err
    assert "token/s, " in shown
    assert " actions/s, " in shown
    assert " GB of memory" in shown
    assert extraction.Throughput(10, 100, 2.0, 3 * 10**9, 10**9).__str__() == (
        "5 actions/s, 50 tokens/s, 3.00 GB of memory and 1.00 GB of the GPU"
    )
    assert extraction.extract(model, prompts, store=kept, token_budget=400).actions == 0


@pytest.fixture
def held(monkeypatch):
    """Rows that batches on their way to the disk hold: the most at any time, and now."""
    counts = {"most": 0, "now": 0}

    class Counted(extraction.Batch):
        def __init__(self, rows, pooled, *, dtype):
            super().__init__(rows, pooled, dtype=dtype)
            counts["now"] += len(rows)
            counts["most"] = max(counts.values())
            weakref.finalize(self, lambda: counts.update(now=counts["now"] - len(rows)))

    monkeypatch.setattr(extraction, "Batch", Counted)
    return counts


def test_memory_holds_two_chunks_however_many_rows_there_are(tiny_model, tmp_path, held):
    model = models.open_model(str(tiny_model))
    prompts = extraction.tokenize(model.tokenizer, [f"keeping promise {i:04d}" for i in range(200)])
    filled(tmp_path, model, prompts, 400)
    assert 10 <= held["most"] <= 20
    assert held["now"] == 0


def test_a_chunk_is_written_while_the_next_one_is_read(tiny_model, tmp_path, monkeypatch):
    model = models.open_model(str(tiny_model))
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    reads_next, forward = threading.Event(), extraction.pooled_residuals
    real = store.ActivationStore.write_chunk

    def slow(self, chunk, pooled, **budget):
        if chunk.start == 0:
            assert reads_next.wait(60), "the next chunk is not read before this one is written"
        real(self, chunk, pooled, **budget)

    def read(model, prompts, rows):
        if rows.start >= 10:
            reads_next.set()
        return forward(model, prompts, rows=rows)

    monkeypatch.setattr(store.ActivationStore, "write_chunk", slow)
    monkeypatch.setattr(extraction, "pooled_residuals", read)
    assert (filled(tmp_path, model, prompts, 400).verify()["state"] == "ok").all()


def test_an_error_of_the_writer_stops_the_reading_at_once(tiny_model, tmp_path, monkeypatch):
    model = models.open_model(str(tiny_model))
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    reads_next, forward, read, begun = threading.Event(), extraction.pooled_residuals, [], []
    write = pipeline.Writer.write

    def full(self, chunk, pooled, **budget):
        assert reads_next.wait(60)
        raise store.StoreError("the disk is full")

    def kept(self, chunk, batches, **budget):
        write(self, chunk, batches, **budget)
        begun.append(self.writing)

    def until_it_failed(model, prompts, rows):
        read.append(rows)
        if rows.start == 10:
            reads_next.set()
            assert isinstance(begun[0].exception(timeout=60), store.StoreError)
        return forward(model, prompts, rows=rows)

    monkeypatch.setattr(store.ActivationStore, "write_chunk", full)
    monkeypatch.setattr(pipeline.Writer, "write", kept)
    monkeypatch.setattr(extraction, "pooled_residuals", until_it_failed)
    with pytest.raises(store.StoreError, match="the disk is full"):
        filled(tmp_path, model, prompts, 40)  # a prompt per batch
    assert read[-1] == range(10, 11)


def test_an_error_at_the_last_chunk_is_not_lost(tiny_model, tmp_path, monkeypatch):
    model = models.open_model(str(tiny_model))
    prompts = extraction.tokenize(model.tokenizer, ACTIONS[:10])

    def full(self, chunk, pooled, **budget):
        time.sleep(0.3)
        raise store.StoreError("the disk is full")

    monkeypatch.setattr(store.ActivationStore, "write_chunk", full)
    with pytest.raises(store.StoreError, match="the disk is full"):
        filled(tmp_path, model, prompts, 400)


def test_lengths_are_counted_once(tiny_model):
    prompts = extraction.tokenize(models.tokenizer(str(tiny_model)), ACTIONS)
    assert prompts.lengths is prompts.lengths
