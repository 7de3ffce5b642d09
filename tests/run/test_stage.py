"""Stages and manifests: what is reused, what is refused, what an interruption leaves."""

import dataclasses
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from lib.run.files import (
    PROJECT,
    CompanionError,
    resolve,
    sha256_of_file,
    write_parquet,
    write_text_atomically,
)
from lib.run.parameters import ActivationsParameters, SAEParameters, VectorsParameters
from lib.run.provenance import MismatchError, code_hash, modules_used_by, notebook_code, sha256_of, syntax_hash
from lib.run.stage import MissingStageError, current_part, read_manifest, share
from lib.run.stage import open_stage as open_any
from lib.run.table import STAGES
from workflow import verify


@pytest.fixture
def parameters(tmp_path):
    return ActivationsParameters(
        run_dir=str(tmp_path / "run"), model="tiny", model_source="somewhere", revision=None, token_budget=64
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("one")
    return path


def open_stage(parameters, source):
    return open_any(parameters, inputs={"annotations": source, "subset": source})


def changed(parameters, **values):
    return parameters.model_copy(update=values)


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


def superseded(stage):
    return sorted(path for path in (stage.run_dir / ".superseded").rglob("numbers.parquet"))


@pytest.mark.parametrize("finished", [True, False])
def test_results_of_another_parameter_are_moved_aside_and_said(parameters, source, finished, capsys):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    if finished:
        stage.finish()
    again = open_stage(changed(parameters, token_budget=128), source)
    assert "holds results made with parameters.token_budget = 64, but 128 is asked for" in capsys.readouterr().out
    assert not again.complete
    assert [path.name for path in again.directory.iterdir()] == ["plan.json"]
    (kept,) = superseded(stage)
    assert (kept.parent / "manifest.json").exists() == finished
    pd.testing.assert_frame_equal(pd.read_parquet(kept), numbers())


def test_results_of_another_input_are_moved_aside_and_said(parameters, source, capsys):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    stage.finish()
    source.write_text("two")
    assert not open_stage(parameters, source).complete
    assert "made with inputs.annotations = " in capsys.readouterr().out
    assert len(superseded(stage)) == 1


def test_moving_aside_twice_keeps_both(parameters, source):
    for budget in (1, 2, 3):
        stage = open_stage(changed(parameters, token_budget=budget), source)
        stage.table("numbers.parquet", numbers)
    assert len(superseded(stage)) == 2


def test_a_stage_that_failed_on_bad_input_leaves_nothing_that_refuses_the_corrected_one(parameters, source, capsys):
    open_stage(parameters, source)
    source.write_text("corrected")
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    stage.finish()
    assert ".superseded" not in capsys.readouterr().out, "nothing was computed, so nothing is moved"
    assert not (stage.run_dir / ".superseded").exists()


def test_what_was_paid_for_stays(parameters, source, monkeypatch):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    (stage.directory / "replies").mkdir()
    (stage.directory / "replies" / "1").write_text("42")
    kept = dataclasses.replace(STAGES["activations"], kept=("replies",))
    monkeypatch.setitem(STAGES, "activations", kept)
    again = open_stage(changed(parameters, token_budget=1), source)
    assert sorted(path.name for path in again.directory.iterdir()) == ["plan.json", "replies"]
    assert (again.directory / "replies" / "1").read_text() == "42"


def test_what_was_paid_for_stays_where_it_is_whatever_interrupts(parameters, source, monkeypatch):
    """Power is lost while results are moved aside; what is kept has not moved, and the next one to open the stage goes on."""
    stage = open_stage(parameters, source)
    for name in ("numbers.parquet", "others.parquet"):
        stage.table(name, numbers)
    stage.finish()
    (stage.directory / "replies").mkdir()
    (stage.directory / "replies" / "1").write_text("42")
    monkeypatch.setitem(STAGES, "activations", dataclasses.replace(STAGES["activations"], kept=("replies",)))
    moved, rename = [], Path.rename

    def twice(path, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(path.name)
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", twice)
        with pytest.raises(KeyboardInterrupt):
            open_stage(changed(parameters, token_budget=1), source)
    assert moved[0] == "manifest.json"
    assert (stage.directory / "plan.json").exists()
    assert (stage.directory / "replies" / "1").read_text() == "42"
    again = open_stage(changed(parameters, token_budget=1), source)
    assert sorted(path.name for path in again.directory.iterdir()) == ["plan.json", "replies"]
    assert len([*(stage.run_dir / ".superseded").rglob("*.parquet")]) == 2


@pytest.mark.parametrize("left", ["replies/1", ".plan.json.7f.part"])
def test_a_stage_that_lost_its_plan_goes_on_with_what_it_keeps(parameters, source, monkeypatch, left):
    monkeypatch.setitem(STAGES, "activations", dataclasses.replace(STAGES["activations"], kept=("replies",)))
    file = resolve(parameters.run_dir) / "activations" / "tiny" / left
    file.parent.mkdir(parents=True)
    file.write_text("42")
    assert not open_stage(parameters, source).complete
    assert file.exists()


@pytest.mark.parametrize("content", [b"", b'{"identity": {"par', b"\x00\xff"])
def test_a_damaged_manifest_or_plan_is_said(parameters, source, content):
    stage = open_stage(parameters, source)
    stage.finish()
    (stage.directory / "manifest.json").write_bytes(content)
    for read in (read_manifest, sha256_of):
        with pytest.raises(MismatchError, match=r"manifest.json is damaged .* `make verify PROFILE=\.\.\.`"):
            read(stage.directory)
    (stage.directory / "plan.json").write_bytes(content)
    with pytest.raises(MismatchError, match=r"plan\.json is damaged .* Move them and the plan away"):
        open_stage(parameters, source)


def _hold(parameters, source, opened, done):
    stage = open_stage(parameters, source)
    opened.set()
    done.wait(60)
    stage.table("numbers.parquet", numbers)
    stage.finish()
    opened.set()


def test_while_one_process_computes_a_stage_none_moves_it_away(parameters, source):
    context = multiprocessing.get_context("fork")
    opened, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(parameters, source, opened, done))
    other.start()
    assert opened.wait(60)
    assert not open_stage(parameters, source).complete, "parts of one stage work side by side"
    with pytest.raises(MismatchError, match=r"token_budget = 64, .* another process computes them now"):
        open_stage(changed(parameters, token_budget=1), source)
    done.set()
    other.join(60)
    assert other.exitcode == 0
    assert open_stage(parameters, source).complete
    assert not open_stage(changed(parameters, token_budget=1), source).complete


def test_a_stage_opened_again_with_other_parameters_is_no_longer_the_first_ones(parameters, source):
    first = open_stage(parameters, source)
    first.table("numbers.parquet", numbers)
    open_stage(changed(parameters, token_budget=1), source).table("numbers.parquet", numbers)
    asked = [lambda: first.table("numbers.parquet", never), lambda: first.folder("weights", never), first.finish]
    for ask in asked:
        with pytest.raises(MismatchError, match=r"opened with other parameters since.* notebook 02_activations again"):
            ask()


def test_the_place_of_an_input_is_not_part_of_the_identity(parameters, source, tmp_path):
    open_stage(parameters, source).finish()
    moved = tmp_path / "moved.txt"
    source.rename(moved)
    assert open_stage(changed(parameters, model_source="elsewhere"), moved).complete


def test_a_stage_that_lost_a_file_makes_that_one_again(parameters, source):
    """`make verify` takes the damaged file and the manifest away; what is whole stays."""
    stage = open_stage(parameters, source)
    for name in ("numbers.parquet", "others.parquet"):
        stage.table(name, numbers)
    stage.finish()
    for name in ("manifest.json", "others.parquet"):
        (stage.directory / name).unlink()
    again = open_stage(parameters, source)
    assert not again.complete
    again.table("numbers.parquet", never)
    pd.testing.assert_frame_equal(again.table("others.parquet", numbers), numbers())


def two_files(folder):
    for name in ("first", "second"):
        (folder / name).write_text(name)


@pytest.mark.parametrize("damaged", ["changed", "gone"])
def test_a_folder_that_lost_a_file_is_made_again_whole(parameters, source, damaged):
    """What a folder holds is made in one, so a part of it is never taken for the whole."""
    stage = open_stage(parameters, source)
    folder, other = (stage.folder(name, two_files) for name in ("layer/pretrained", "layer/other"))
    stage.table("layer/numbers.parquet", numbers)
    stage.finish()
    (folder / "second").write_text("changed") if damaged == "changed" else (folder / "second").unlink()
    run = resolve(parameters.run_dir)
    verify.take_away(run, verify.check(run))
    again = open_stage(parameters, source)
    assert not again.complete
    assert not folder.exists()
    again.folder("layer/other", never)
    again.table("layer/numbers.parquet", never)
    assert sorted(path.name for path in again.folder("layer/pretrained", two_files).iterdir()) == ["first", "second"]
    again.finish()
    assert verify.check(run).empty
    assert (run / ".superseded" / "damaged" / folder.relative_to(run) / "first").exists()
    assert other.exists()


def test_files_of_somebody_else_are_never_removed(parameters, source):
    directory = resolve(parameters.run_dir) / "activations" / "tiny"
    directory.mkdir(parents=True)
    (directory / "thesis.txt").write_text("mine")
    with pytest.raises(MismatchError, match="not results of this project"):
        open_stage(parameters, source)
    assert (directory / "thesis.txt").read_text() == "mine"


def test_a_missing_stage_names_the_notebook_to_run(parameters):
    with pytest.raises(MissingStageError, match=r"annotations .* is not there\. Run notebook 01_vectors first"):
        open_any(parameters)


def test_an_unfinished_stage_is_no_input(parameters):
    directory = resolve(parameters.run_dir) / "vectors"
    directory.mkdir(parents=True)
    (directory / "annotations.parquet").write_bytes(b"")
    with pytest.raises(MissingStageError, match=r"not finished\. Run notebook 01_vectors"):
        open_any(parameters)


def test_a_missing_file_outside_the_run_says_where_paths_start(parameters, tmp_path):
    with pytest.raises(MissingStageError, match="Paths start at the project root"):
        open_stage(parameters, tmp_path / "nothing")


def test_the_manifest_says_what_made_the_results(parameters, source):
    stage = open_stage(parameters, source)
    stage.table("numbers.parquet", numbers)
    stage.finish()
    manifest = json.loads((stage.directory / "manifest.json").read_text())
    assert manifest["identity"]["inputs"] == dict.fromkeys(("annotations", "subset"), sha256_of_file(source))
    assert manifest["outputs"] == {"numbers.parquet": sha256_of_file(stage.directory / "numbers.parquet")}
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


def test_paths_start_at_the_project_or_at_home():
    assert resolve("data") == PROJECT / "data"
    assert resolve("~/data") == (Path.home() / "data").resolve()
    assert resolve("/data") == Path("/data")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "plan.json", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, path.exists())))
    write_text_atomically(path, "whole")
    assert seen == [(5, False)]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, numbers())
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_parquet(path, "not a frame")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_the_identity_of_a_stage_holds_its_own_code_and_no_later_stages(stage):
    used = {path.relative_to(PROJECT).as_posix() for path in modules_used_by(notebook_code(stage.notebook))}
    rooms = {path.split("/")[1] for path in used if path.count("/") > 1}
    assert stage.name in rooms
    assert not {later.name for later in STAGES.values() if later.number > stage.number} & rooms
    assert "run" not in rooms, "how a stage runs decides no number"
    assert not [path for path in used if path.endswith(("figures.py", "plotting.py"))], "drawing decides no number"
    assert not [path for path in used if not path.startswith("lib/")], "what plans and reports decides no number"


def test_changed_code_is_another_identity(tmp_path, monkeypatch):
    code = notebook_code("02_activations")
    before = code_hash(code)
    module = tmp_path / "extraction.py"
    module.write_text("PADDING = 2")
    monkeypatch.setattr("lib.run.provenance.modules_used_by", lambda code: [module])
    assert code_hash(code) != before


CODE = 'def f(x):\n    """Say."""\n    return x + 1\n'


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("Say", "Say more"), f"# why\n{CODE}", CODE.replace('    """Say."""\n', ""), f'"""Module."""\n{CODE}',
        f'{CODE}X = 1\n"""of X"""\n'.replace("X = 1\n", ""), f"{CODE}publish(stage, draw)\n", f"{CODE}print(1)\n",
        f"from lib.plotting import publish\n{CODE}", f"{CODE}frame\nframe.head\n", f"from lib.sae import figures\n{CODE}",
    ],
)  # fmt: skip
def test_what_only_says_or_shows_is_in_no_identity(other):
    assert syntax_hash(other) == syntax_hash(CODE)


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("+ 1", "+ 2"), CODE.replace("x + 1", "'Say.'"), f"{CODE}stage.finish()\n", f"{CODE}y = publish(1)\n",
        f"from lib.sae import model, figures\n{CODE}", CODE.replace("(x)", "(x, y='a')"),
    ],
)  # fmt: skip
def test_what_computes_is_in_the_identity(other):
    assert syntax_hash(other) != syntax_hash(CODE)


def test_an_edited_cell_is_another_identity(tmp_path, monkeypatch):
    """The notebook's own code decides too; its parameters' cell does not, as their values count by themselves."""
    notebook = json.loads((PROJECT / "notebooks" / "04_comparison.ipynb").read_text())
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "04_comparison.ipynb"
    monkeypatch.setattr("lib.run.provenance.modules_used_by", lambda code: [])
    monkeypatch.setattr("lib.run.provenance.PROJECT", tmp_path)

    def hashed(cells):
        path.write_text(json.dumps(notebook | {"cells": cells}))
        return code_hash(notebook_code("04_comparison"))

    first = hashed(notebook["cells"])
    edited = [dict(cell) for cell in notebook["cells"]]
    for cell in edited:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = "# Parameters\nseed = 7"
    assert hashed(edited) == first
    edited.append({"cell_type": "code", "metadata": {}, "source": ["table = table * 2"], "outputs": []})
    assert hashed(edited) != first


@pytest.mark.parametrize("of", [1, 2, 4, 7])
def test_shares_add_up_to_the_whole(monkeypatch, of):
    items = list("abcdefghij")
    shares = []
    for number in range(1, of + 1):
        monkeypatch.setenv("COMPANION_PART", f"{number}-of-{of}")
        shares += share(items)
    assert sorted(shares) == items


def test_without_a_part_everything_is_ours(monkeypatch):
    monkeypatch.delenv("COMPANION_PART", raising=False)
    assert share([1, 2]) == [1, 2]


@pytest.mark.parametrize("text", ["2", "0-of-4", "5-of-4", "a-of-b"])
def test_a_part_that_cannot_be_is_refused(monkeypatch, text):
    monkeypatch.setenv("COMPANION_PART", text)
    with pytest.raises(CompanionError, match="should be like 2-of-4"):
        current_part()


def test_an_input_that_names_no_local_directory_is_left_out(tmp_path):
    run = tmp_path / "run"
    for stage in ("vectors", "activations/tiny"):
        (run / stage).mkdir(parents=True)
        manifest = {"outputs": {}, "identity": {"parameters": {"agreement": "action-agree"}, "inputs": {}}}
        (run / stage / "manifest.json").write_text(json.dumps(manifest))
        (run / stage / "plan.json").write_text(json.dumps(manifest))
    for name in ("annotations", "exploded"):
        write_parquet(run / "vectors" / f"{name}.parquet", numbers())
    known = {"run_dir": str(run), "model": "tiny", "layers": [0], "show_content": False}
    assert "sae_source" not in open_any(SAEParameters(**known)).inputs
    (tmp_path / "theirs").mkdir()
    shutil.rmtree(run / "sae")
    local = open_any(SAEParameters(**known, sae_source=str(tmp_path / "theirs")))
    assert "sae_source" in local.inputs
    pd.testing.assert_frame_equal(local.read("annotations"), numbers())


def test_every_table_carries_what_its_readers_must_know(tmp_path):
    source = tmp_path / "there.tsv"
    source.write_text("one")
    parameters = VectorsParameters(run_dir=str(tmp_path / "run"), annotations=str(source), agreement="rot-agree")
    stage = open_any(parameters)
    stage.table("numbers.parquet", numbers)
    kept = pd.read_parquet(stage.directory / "numbers.parquet").attrs["notices"]
    assert any("rot-agree stood in for action-agree" in notice for notice in kept)
