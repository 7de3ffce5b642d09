"""Parts of a stage: shares that add up, four writers of one store at once, the notebook as the join, and a whole run."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import runs_compared
import yaml

from lib import parts, runs, shares, store
from lib.profiles import load_profile

DEMO = load_profile("profiles/demo.yaml")
PAPER = load_profile("profiles/paper.yaml")
ROWS, LAYERS, WIDTH, STRETCH = 200, 3, 8, 10


@pytest.mark.parametrize("of", [1, 2, 4, 7])
def test_shares_add_up_to_the_whole(monkeypatch, of):
    items = list("abcdefghij")
    found = []
    for number in range(1, of + 1):
        monkeypatch.setenv(shares.VARIABLE, f"{number}-of-{of}")
        found += shares.share(items)
    assert sorted(found) == items


def test_without_a_part_everything_is_ours(monkeypatch):
    monkeypatch.delenv(shares.VARIABLE, raising=False)
    assert shares.share([1, 2]) == [1, 2]


@pytest.mark.parametrize("text", ["2", "0-of-4", "5-of-4", "a-of-b"])
def test_a_part_that_cannot_be_is_refused(monkeypatch, text):
    monkeypatch.setenv(shares.VARIABLE, text)
    with pytest.raises(ValueError, match="should be like 2-of-4"):
        shares.current()


def _values(rows):
    return np.stack([np.full((len(rows), WIDTH), layer) + np.array(rows)[:, None] for layer in range(LAYERS)]) * 1.0


def _write_part(folder, number, of, barrier):
    os.environ[shares.VARIABLE] = f"{number}-of-{of}"
    barrier.wait()
    index = pd.DataFrame({"action": [f"doing {n}" for n in range(ROWS)], "tokens": 5})
    target = store.create_store(folder, index, LAYERS, WIDTH, ["mean"], STRETCH)
    with target.writing():
        barrier.wait()  # all four hold the store at this moment
        for rows in shares.share(target.chunks()):
            target.write_chunk(rows, {"mean": _values(rows)})


def test_four_writers_at_once_make_the_store_that_one_makes(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    folder = tmp_path / "activations"
    writers = [context.Process(target=_write_part, args=(folder, number, 4, barrier)) for number in range(1, 5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    written = store.ActivationStore(folder)
    assert written.missing_chunks() == []
    assert set(written.verify()["state"]) == {"ok"}
    for layer in range(LAYERS):
        np.testing.assert_array_equal(written.read(layer, "mean"), _values(range(ROWS))[layer])


def test_the_same_part_twice_or_a_part_beside_the_whole_is_refused(tmp_path, monkeypatch):
    index = pd.DataFrame({"action": ["doing"], "tokens": 5})
    target = store.create_store(tmp_path / "activations", index, LAYERS, WIDTH, ["mean"], STRETCH)
    monkeypatch.setenv(shares.VARIABLE, "1-of-2")
    with target.writing():
        with pytest.raises(store.StoreError, match="another process"), target.writing():
            pass
        monkeypatch.delenv(shares.VARIABLE)
        with pytest.raises(store.StoreError, match="another process"), target.writing():
            pass


def test_a_stage_has_no_more_parts_than_there_is_to_share():
    assert parts.split(DEMO) == []
    shared = replace(PAPER, parts=8)
    assert parts.count(shared, "02_residual_streams") == 8
    assert parts.count(shared, "05_sparse_autoencoders") == 36
    assert parts.count(shared, "07_steering") == min(8, len(PAPER.arms))
    assert parts.count(shared, "03_diagnosis") == 1


@pytest.mark.parametrize("notebook", list(parts.WORK))
def test_a_part_is_the_notebook_up_to_its_work(tmp_path, notebook):
    source = runs.PROJECT / "notebooks" / f"{notebook}.ipynb"
    parts.cut(source, tmp_path / source.name)
    cells = nbformat.read(tmp_path / source.name, as_version=4).cells
    assert cells == nbformat.read(source, as_version=4).cells[: len(cells)]
    assert parts.WORK[notebook] in cells[-1].source
    assert "stage.finish()" not in "".join(cell.source for cell in cells)


@pytest.mark.pipeline
def test_a_run_in_parts_has_the_results_of_a_run_at_once(tmp_path):
    """Rows, layers and arms as jobs of their own, up to the answers; every table, weight and chunk is the same."""
    tiny = yaml.safe_load((runs.PROJECT / "tests" / "faults" / "tiny.yaml").read_text())
    tiny |= {"layers": [1, 2], "arms": ["baseline", "aligned", "random-direction"]}
    folders = []
    for name, number in (("test-at-once", 1), ("test-in-parts", 2)):
        folders.append(runs.PROJECT / "runs" / name)
        shutil.rmtree(folders[-1], ignore_errors=True)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tiny | {"run": name, "parts": number}))
        command = [
            sys.executable,
            "-m",
            "snakemake",
            f"runs/{name}/responses/moral-small/manifest.json",
            "--cores",
            "2",
        ]
        result = subprocess.run(
            [*command, "--nolock", "--config", f"profile={tmp_path}/{name}.yaml"],
            cwd=runs.PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        jobs = result.stderr.count("_part:")
        assert (jobs > 0) == (number > 1), result.stderr
    at_once, in_parts = folders
    assert runs_compared.digests(at_once)
    assert runs_compared.differences(at_once, in_parts) == []
    for folder in folders:
        shutil.rmtree(folder)
