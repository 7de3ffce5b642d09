"""Stages and manifests: what is reused, what is refused, what an interruption leaves."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from lib import files, runs
from lib.parameters import MoralVectors, ResidualStreams


@pytest.fixture
def parameters(tmp_path):
    return ResidualStreams(
        str(tmp_path / "run"), "tiny", "somewhere", None, "float32", 64, "cpu", "float32", None, None
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("one")
    return path


def open_stage(parameters, source):
    return runs.open_stage("02_residual_streams", parameters, {"source": source})


def numbers():
    return pd.DataFrame({"value": [1.0, 2.0]})


def never():
    raise AssertionError("computed again")


def test_a_finished_stage_is_read_and_not_computed_again(parameters, source):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    assert not stage.complete
    stage.finish()
    again = open_stage(parameters, source)
    assert again.complete
    pd.testing.assert_frame_equal(again.table("numbers.parquet", never), numbers())


def test_an_interrupted_stage_goes_on_from_its_tables(parameters, source):
    open_stage(parameters, source).table("numbers.parquet", numbers)
    pd.testing.assert_frame_equal(open_stage(parameters, source).table("numbers.parquet", never), numbers())


@pytest.mark.parametrize("finished", [True, False])
def test_another_parameter_is_refused_and_named(parameters, source, finished):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    if finished:
        stage.finish()
    with pytest.raises(runs.MismatchError, match=r"made with parameters.token_budget = 64, but 128 is asked for"):
        open_stage(replace(parameters, token_budget=128), source)


def test_another_input_is_refused_and_named(parameters, source):
    open_stage(parameters, source).finish()
    source.write_text("two")
    with pytest.raises(runs.MismatchError, match=r"inputs\.source"):
        open_stage(parameters, source)


def test_the_place_of_an_input_is_not_part_of_the_identity(parameters, source, tmp_path):
    open_stage(parameters, source).finish()
    moved = tmp_path / "moved.txt"
    source.rename(moved)
    assert open_stage(replace(parameters, model_source="elsewhere"), moved).complete


def test_a_finished_stage_without_its_manifest_is_computed_afresh(parameters, source):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    stage.finish()
    (stage.directory / "manifest.json").unlink()
    fresh = open_stage(parameters, source)
    assert not (fresh.directory / "numbers.parquet").exists()


def test_files_of_somebody_else_are_never_removed(parameters, source):
    directory = runs.stage_directory("02_residual_streams", parameters)
    directory.mkdir(parents=True)
    (directory / "thesis.txt").write_text("mine")
    with pytest.raises(runs.MismatchError, match="not results of this project"):
        open_stage(parameters, source)
    assert (directory / "thesis.txt").read_text() == "mine"


def test_a_missing_stage_names_the_notebook_to_run(parameters):
    wanted = f"{parameters.run_dir}/vectors/annotations.parquet"
    with pytest.raises(runs.MissingStageError, match="Run notebook 01_moral_vectors first"):
        runs.open_stage("02_residual_streams", parameters, {"annotations": wanted})


def test_an_unfinished_stage_is_no_input(parameters):
    directory = runs.resolve(parameters.run_dir) / "vectors"
    directory.mkdir(parents=True)
    (directory / "annotations.parquet").write_bytes(b"")
    with pytest.raises(runs.MissingStageError, match=r"not finished\. Run notebook 01_moral_vectors"):
        runs.open_stage("02_residual_streams", parameters, {"annotations": directory / "annotations.parquet"})


def test_a_missing_file_outside_the_run_says_where_paths_start(parameters, tmp_path):
    with pytest.raises(runs.MissingStageError, match="Paths start at the project root"):
        runs.open_stage("02_residual_streams", parameters, {"source": tmp_path / "nothing"})


def test_the_manifest_says_what_made_the_results(parameters, source):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    stage.finish()
    manifest = json.loads((stage.directory / "manifest.json").read_text())
    assert manifest["identity"]["inputs"] == {"source": runs.sha256_of_file(source)}
    assert manifest["outputs"] == {"numbers.parquet": runs.sha256_of_file(stage.directory / "numbers.parquet")}
    assert manifest["identity"]["packages"]["torch"]
    assert manifest["wall_seconds"] >= 0


def test_a_stage_that_failed_half_way_leaves_no_part_of_a_folder(parameters, source):
    stage = open_stage(parameters, source)

    def fill(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        stage.folder("weights", fill)
    assert [path.name for path in stage.directory.iterdir()] == ["plan.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.parquet"
    files.write_parquet(path, numbers())
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        files.write_parquet(path, "not a frame")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_code_that_a_notebook_does_not_use_is_not_part_of_its_identity():
    names = [path.name for path in runs.modules_used_by("02_residual_streams")]
    assert "residuals.py" in names
    assert "store.py" in names
    assert not any(path.parent.name == "figures" for path in runs.modules_used_by("02_residual_streams"))
    assert "judging.py" not in names


def test_every_table_carries_what_its_readers_must_know(tmp_path):
    parameters = MoralVectors(str(tmp_path / "run"), "there.tsv", False, "rot-agree", "m", 5, 0)
    source = tmp_path / "there.tsv"
    source.write_text("one")
    stage = runs.open_stage("01_moral_vectors", parameters, {"annotations": source})
    stage.table("numbers.parquet", numbers)
    kept = pd.read_parquet(stage.directory / "numbers.parquet").attrs["notices"]
    assert any("rot-agree stood in for action-agree" in notice for notice in kept)
