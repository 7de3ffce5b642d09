"""Extraction through nnsight into a store; what it reads is held against raw hooks in ``test_families.py``."""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from activations.families import hooked_streams, random_model

from lib.activations import extraction, models, store
from lib.run.files import PROJECT

ACTIONS = ["lying to a friend", "helping", "keeping a promise that nobody else remembers", "a", "not caring at all"]


def test_the_head_is_not_computed():
    model = random_model("Qwen3")
    calls = []
    model._module.lm_head.register_forward_hook(lambda *arguments: calls.append(1))
    extraction.pooled_residuals(model, extraction.tokenize(model.tokenizer, ACTIONS), rows=range(2))
    assert calls == []


@pytest.fixture
def model(tiny_model):
    return models.open_model(str(tiny_model))


def make_store(directory, model, prompts, rows_per_chunk=2):
    index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
    return store.create_store(
        directory,
        index,
        layers=3,
        width=models.width(model),
        poolings=extraction.POOLINGS,
        rows_per_chunk=rows_per_chunk,
    )


def test_a_store_filled_after_an_interruption_has_the_same_bytes(model, tmp_path, monkeypatch):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    whole = make_store(tmp_path / "whole", model, prompts)
    extraction.extract(model, prompts, store=whole, token_budget=64)
    broken = make_store(tmp_path / "broken", model, prompts)
    real = extraction.pooled_residuals
    calls = []

    def fails_at_third(model, prompts, rows):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, prompts, rows=rows)

    monkeypatch.setattr(extraction, "pooled_residuals", fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        extraction.extract(model, prompts, store=broken, token_budget=64)
    monkeypatch.setattr(extraction, "pooled_residuals", real)
    assert 0 < len(broken.missing_chunks()) < len(broken.chunks())
    with pytest.raises(store.StoreError, match="not written yet"):
        broken.read(0, "mean")
    extraction.extract(model, prompts, store=make_store(tmp_path / "broken", model, prompts), token_budget=64)
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    assert len(files) > 20
    for name in files:
        if name.name == ".writing":
            continue
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


EXTRACT = """
import sys
import pandas as pd
import torch
from pathlib import Path
from lib.activations import extraction, models, store
torch.set_num_threads(1)
model = models.open_model(sys.argv[1])
prompts = extraction.tokenize(model.tokenizer, [f"keeping promise number {i}" for i in range(300)])
index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
layout = {"layers": 3, "width": models.width(model), "poolings": extraction.POOLINGS, "rows_per_chunk": 10}
target = store.create_store(Path(sys.argv[2]), index, **layout)
print("writing", flush=True)
extraction.extract(model, prompts, store=target, token_budget=60)
"""


def test_a_twice_killed_extraction_goes_on_to_the_same_bytes(tiny_model, tmp_path):
    """300 rows in 30 chunks, beside the store of a process that nobody disturbed."""
    (tmp_path / "extract.py").write_text(EXTRACT)
    extract = [sys.executable, str(tmp_path / "extract.py"), str(tiny_model)]
    subprocess.run([*extract, str(tmp_path / "whole")], cwd=PROJECT, check=True, capture_output=True)
    whole = store.open_store(tmp_path / "whole")
    directory = tmp_path / "store"
    command = [*extract, str(directory)]
    for chunks in (1, 15):
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while len(list((directory / "chunks").glob("*.json"))) < chunks:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.001)
        process.kill()
        process.wait()
        left = store.open_store(directory)
        assert 0 < len(left.missing_chunks()) <= 30 - chunks
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    for pooling in extraction.POOLINGS:
        for layer in range(3):
            np.testing.assert_array_equal(left.read(layer, pooling), whole.read(layer, pooling))
    assert (left.verify()["state"] == "ok").all()


def test_a_second_writer_is_refused(model, tmp_path):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    activations = make_store(tmp_path, model, prompts)
    with activations.writing(), pytest.raises(store.StoreError, match="another process is writing"):
        extraction.extract(model, prompts, store=store.open_store(tmp_path), token_budget=64)


def test_a_damaged_chunk_is_named_and_made_again(model, tmp_path):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    activations = make_store(tmp_path, model, prompts)
    extraction.extract(model, prompts, store=activations, token_budget=64)
    before = activations.read(1, "last")
    chunk = tmp_path / "residuals.zarr" / "last" / "c" / "1" / "1" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    chunk.write_bytes(bytes(damaged))
    states = activations.verify()
    assert states[states["state"] != "ok"].values.tolist() == [[2, "last", "damaged"]]
    extraction.extract(model, prompts, store=activations, token_budget=64)
    np.testing.assert_array_equal(activations.read(1, "last"), before)


def test_values_beyond_half_precision_stop_instead_of_becoming_infinite(model, tmp_path):
    index = pd.DataFrame({"action": ["a"], "tokens": [1]})
    half = store.create_store(tmp_path, index, layers=1, width=2, poolings=["mean"], dtype="float16")
    with pytest.raises(store.StoreError, match=r"1e\+06 do not fit float16; use store_dtype: float32"):
        half.write_chunk(range(1), {"mean": np.full((1, 1, 2), 1e6, dtype=np.float32)})
    assert half.missing_chunks() == [range(1)]


def test_a_store_of_another_shape_is_refused(model, tmp_path):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    make_store(tmp_path, model, prompts)
    with pytest.raises(store.StoreError, match="has rows_per_chunk = 2, not 3"):
        make_store(tmp_path, model, prompts, rows_per_chunk=3)


def test_reading_what_is_not_there_says_what_is(model, tmp_path):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    activations = make_store(tmp_path, model, prompts)
    extraction.extract(model, prompts, store=activations, token_budget=64)
    with pytest.raises(store.StoreError, match="layers 0 to 2"):
        activations.read(3, "mean")
    with pytest.raises(store.StoreError, match="'first' is not in the store"):
        activations.read(0, "first")
    with pytest.raises(store.StoreError, match="'unheard of'"):
        activations.rows_of(["a", "unheard of"])
    assert [prompts.actions[row] for row in activations.rows_of(ACTIONS)] == ACTIONS


def test_activations_that_are_not_finite_stop_the_extraction(model, tmp_path):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    activations = make_store(tmp_path, model, prompts)
    model._module.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(extraction.ActivationError, match="layer 1 are not finite as float32 for the action 'a'"):
        extraction.extract(model, prompts, store=activations, token_budget=64)
    assert len(activations.missing_chunks()) == len(activations.chunks())


def test_batches_keep_to_the_budget_and_cover_every_row():
    lengths = np.sort(np.random.default_rng(0).integers(3, 40, 200))
    batches = extraction.batches(lengths, range(10, 190), token_budget=100)
    assert [row for batch in batches for row in batch] == list(range(10, 190))
    assert all(len(batch) == 1 or len(batch) * lengths[batch.stop - 1] <= 100 for batch in batches)
    padded = [len(batch) * lengths[batch.stop - 1] for batch in batches]
    real = [lengths[batch.start : batch.stop].sum() for batch in batches]
    assert all(of <= extraction.PADDING * tokens for of, tokens in zip(padded, real, strict=True))


def test_long_prompts_are_cut_as_published_and_counted(model):
    prompts = extraction.tokenize(model.tokenizer, ["x" * 300, "short"])
    assert prompts.truncated == 1
    assert prompts.lengths.max() == extraction.MAX_TOKENS


@pytest.mark.parametrize(("actions", "message"), [(["a", " "], "an action is empty"), (["a", "a"], "distinct")])
def test_bad_actions_are_refused(model, actions, message):
    with pytest.raises(extraction.ActivationError, match=message):
        extraction.tokenize(model.tokenizer, actions)


def test_the_norm_profile_equals_raw_hooks(model):
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    profile = extraction.norm_profile(model, prompts, rows=range(len(ACTIONS)))
    streams = [hooked_streams(model._module, ids) for ids in prompts.tokens]
    row = profile.query("layer == 2 and position == 'first'").iloc[0]
    assert row["norm"] == pytest.approx(np.mean([np.linalg.norm(s[2, 0]) for s in streams]), rel=1e-5)
    row = profile.query("layer == 1 and position == 'last'").iloc[0]
    assert row["norm"] == pytest.approx(np.mean([np.linalg.norm(s[1, -1]) for s in streams]), rel=1e-5)


def test_the_store_of_a_real_model_over_all_real_rows_equals_raw_hooks(real_data, tmp_path):
    model = models.open_model(str(real_data / "stories260K"))
    actions = pd.read_csv(real_data / "social-chem-101.part.csv")["action"].dropna().unique().tolist()
    prompts = extraction.tokenize(model.tokenizer, actions)
    index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
    layers = len(models.decoder_layers(model))
    filled = store.create_store(tmp_path, index, layers=layers, width=models.width(model), poolings=extraction.POOLINGS)
    extraction.extract(model, prompts, store=filled, token_budget=4096)
    assert (filled.verify()["state"] == "ok").all()
    stored = np.stack([[filled.read(layer, pooling) for layer in range(layers)] for pooling in extraction.POOLINGS])
    for row in range(0, len(actions), 97):
        streams, in_action = hooked_streams(model._module, prompts.tokens[row]), prompts.in_action[row]
        expected = [streams.mean(1), streams[:, 1:].mean(1), streams[:, in_action].mean(1), streams[:, -1]]
        np.testing.assert_allclose(stored[:, :, row], expected, atol=1e-5 * np.abs(streams).max())
