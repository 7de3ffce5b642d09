"""Parts of a stage: shares that add up, four writers of one store at once, the notebook as the join, and a whole run."""

import json
import multiprocessing
import os
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import runs_compared
import yaml
from engine import snakemake, tiny, undisturbed

from lib.activations import store
from lib.run import stage
from lib.run.files import PROJECT, CompanionError
from lib.run.profile import load_profile
from lib.run.table import STAGES
from workflow import estimates, execution

DEMO = load_profile("profiles/demo.yaml")
PAPER = load_profile("profiles/paper.yaml")
SHARED = PAPER.model_copy(update={"parts": 8})
ROWS, LAYERS, WIDTH, CHUNK = 200, 3, 8, 10


@pytest.mark.parametrize("of", [1, 2, 4, 7])
def test_shares_add_up_to_the_whole(monkeypatch, of):
    items = list("abcdefghij")
    shares = []
    for number in range(1, of + 1):
        monkeypatch.setenv(stage.PART, f"{number}-of-{of}")
        shares += stage.share(items)
    assert sorted(shares) == items


def test_without_a_part_everything_is_ours(monkeypatch):
    monkeypatch.delenv(stage.PART, raising=False)
    assert stage.share([1, 2]) == [1, 2]


@pytest.mark.parametrize("text", ["2", "0-of-4", "5-of-4", "a-of-b"])
def test_a_part_that_cannot_be_is_refused(monkeypatch, text):
    monkeypatch.setenv(stage.PART, text)
    with pytest.raises(CompanionError, match="should be like 2-of-4"):
        stage.current_part()


def _values(rows):
    return np.stack([np.full((len(rows), WIDTH), layer) + np.array(rows)[:, None] for layer in range(LAYERS)]) * 1.0


def _write_part(folder, number, of, barrier):
    os.environ[stage.PART] = f"{number}-of-{of}"
    barrier.wait()
    index = pd.DataFrame({"action": [f"doing {n}" for n in range(ROWS)], "tokens": 5})
    target = store.create_store(folder, index, layers=LAYERS, width=WIDTH, poolings=["mean"], rows_per_chunk=CHUNK)
    with target.writing():
        barrier.wait()  # all four hold the store at this moment
        for rows in stage.share(target.chunks()):
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
    target = store.create_store(
        tmp_path / "activations", index, layers=LAYERS, width=WIDTH, poolings=["mean"], rows_per_chunk=CHUNK
    )
    monkeypatch.setenv(stage.PART, "1-of-2")
    with target.writing():
        with pytest.raises(store.StoreError, match="another process"), target.writing():
            pass
        monkeypatch.delenv(stage.PART)
        with pytest.raises(store.StoreError, match="another process"), target.writing():
            pass


def test_a_stage_has_no_more_parts_than_there_is_to_share():
    assert {estimates.parts(DEMO, name) for name in STAGES} == {1}
    assert estimates.parts(SHARED, "activations") == 8
    assert estimates.parts(SHARED, "sae") == estimates.parts(SHARED, "alignment") == 36
    assert estimates.parts(SHARED, "steering") == min(8, len(PAPER.arms))
    assert estimates.parts(SHARED, "diagnosis") == 1


@pytest.mark.parametrize("name", [name for name in STAGES if estimates.parts(SHARED, name) > 1])
def test_a_part_is_the_notebook_up_to_its_shared_work(name):
    notebook = nbformat.read(PROJECT / "notebooks" / f"{STAGES[name].notebook}.ipynb", as_version=4)
    cells = execution.up_to_shared(notebook)["cells"]
    assert cells == notebook.cells[: len(cells)]
    assert "shared" in cells[-1].metadata.tags
    assert not [cell for cell in notebook.cells[len(cells) :] if "shared" in cell.metadata.get("tags", [])]
    source = "".join(cell.source for cell in cells)
    assert "open_stage(" in source
    assert "stage.finish()" not in source


def test_a_part_needs_a_shared_cell():
    with pytest.raises(CompanionError, match="no cell of the notebook is tagged `shared`"):
        execution.up_to_shared(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]))


def test_a_part_runs_the_shared_cells_with_its_share(tmp_path, monkeypatch):
    """Through papermill, as a job does it: the part knows its number, and what comes after the tag does not run."""
    write = (
        f"from pathlib import Path\nimport os\nPath({str(tmp_path)!r}, os.environ[{stage.PART!r}] or 'whole').touch()"
    )
    cells = [nbformat.v4.new_code_cell(write), nbformat.v4.new_code_cell("raise ValueError('joined')")]
    cells[0].metadata["tags"] = ["shared"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "stage.ipynb")
    monkeypatch.delenv(stage.PART, raising=False)

    def run(name, part="", attempt=1):
        output = tmp_path / "parts" / f"{name}.ipynb"
        return execution.run_job(tmp_path / "stage.ipynb", output, parameters={}, attempt=attempt, part=part)

    assert run("part", part="2-of-4") == 0
    assert (tmp_path / "2-of-4").exists()
    assert run("whole") == 1, "the whole runs all cells"
    assert (tmp_path / "whole").exists()
    failure = json.loads((tmp_path / "failed" / "whole.json").read_text())
    assert (failure["error"], failure["message"], failure["memory"]) == ("ValueError", "joined", False)
    log = (tmp_path / "attempts" / "whole.1.log").read_text()
    assert "attempt 1 began" in log
    assert "ValueError: joined" in log
    assert "ValueError" in (tmp_path / "attempts" / "whole.1.ipynb").read_text(), "every attempt's notebook is kept"
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["part.ipynb"], (
        "only a whole one is a result"
    )
    (tmp_path / "whole").unlink()
    assert run("whole", attempt=2) == 1
    assert not (tmp_path / "whole").exists(), "only a want of memory is tried again"


@pytest.mark.pipeline
def test_a_run_in_parts_has_the_results_of_a_run_at_once(tmp_path):
    """Rows, layers and arms as jobs of their own, up to the answers; every table, weight and chunk is the same.

    What opens models and is all on this machine asks nobody on the network, not even whether there is something newer.
    """
    small = tiny()
    content = yaml.safe_load(small.read_text(encoding="utf-8"))
    model = content["sae_model"]
    at_once, in_parts = undisturbed(small), PROJECT / "runs" / "test-in-parts"
    shutil.rmtree(in_parts, ignore_errors=True)
    # The first stage has no parts: the run goes on from the same vectors.
    shutil.copytree(at_once / "vectors", in_parts / "vectors")
    (in_parts / "notebooks").mkdir()
    shutil.copy(at_once / "notebooks" / "01_vectors.ipynb", in_parts / "notebooks")
    profile = tmp_path / "in-parts.yaml"
    profile.write_text(yaml.safe_dump(content | {"run": in_parts.name, "parts": 2}))
    record = tmp_path / "lookups"
    watched = {"PYTHONPATH": str(PROJECT / "tests" / "lookups"), "LOOKUPS": str(record)}
    target = f"runs/{in_parts.name}/notebooks/07_steering.{model}.ipynb"
    result = snakemake(target, "--cores", "2", profile=profile, **watched)
    assert result.returncode == 0, result.stderr
    assert set(record.read_text(encoding="utf-8").splitlines()) == {"began"}
    for name in ("activations", "sae", "alignment", "steering"):
        assert estimates.parts(load_profile(small), name) == 1, "or nothing is at once"
        assert f"{name}_part:" in result.stderr
        made = STAGES[name].directory(model)
        assert runs_compared.digests(at_once / made)
        assert runs_compared.differences(at_once / made, in_parts / made) == []
    shutil.rmtree(in_parts)
