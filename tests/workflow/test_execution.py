"""What is done to the committed notebooks: their first cells, what a run leaves in them, their figures."""

import subprocess
import sys

import nbformat
import pytest

from lib.run.files import PROJECT
from lib.run.profile import load_profile
from lib.run.table import STAGES
from lib.run.validation import assigned_names
from workflow import execution

DEMO = load_profile("profiles/demo.yaml")


@pytest.mark.parametrize("name", STAGES)
def test_a_first_cell_states_every_value_with_its_description(name):
    values = DEMO.stage_parameters(name, "moral-large")
    cell = execution.first_cell(name, values)
    namespace = {}
    exec(cell, namespace)
    assert {key: namespace[key] for key in assigned_names(cell)} == values
    lines = cell.splitlines()
    assert lines[0] == "# Parameters"
    for field in STAGES[name].parameters.model_fields.values():
        assert len([line for line in lines if line.endswith(f"# {field.description}")]) == 1
    # Beside its value where the line has room, above it elsewhere.
    assert all(len(line) <= 120 for line in lines)
    command = [sys.executable, "-m", "ruff", "format", "--check", "--stdin-filename", "cell.py", "-"]
    assert subprocess.run(command, cwd=PROJECT, input=f"{cell}\n", text=True, capture_output=True).returncode == 0


def test_the_first_cell_is_the_demos_by_default():
    assert execution.first_cell("sae") == execution.first_cell("sae", DEMO.stage_parameters("sae"))


def test_what_a_run_leaves_in_a_notebook_is_removed_and_results_stay():
    progress = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}})
    warning = nbformat.v4.new_output("stream", name="stderr", text="3%")
    result = nbformat.v4.new_output("stream", name="stdout", text="results: runs/demo/vectors")
    metadata = {"papermill": {"duration": 1}, "execution": {"iopub.execute_input": "now"}, "tags": ["shared"]}
    cell = nbformat.v4.new_code_cell("1", outputs=[progress, warning, result], metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {}, "widgets": {}})
    notebook = execution.clean(notebook)
    assert notebook.metadata == {"language_info": {"name": "python"}}
    assert notebook.cells[0].metadata == {"tags": ["shared"]}
    assert notebook.cells[0].outputs == [result]


def test_figures_that_no_notebook_draws_any_more_are_removed(tmp_path):
    drawn, kept = tmp_path / "run", tmp_path / "figures"
    for folder, names in ((drawn, ["a.svg", "a.csv"]), (kept, ["a.svg", "old.svg", "old.csv", "pipeline.svg"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    execution.keep_figures(sorted(drawn.iterdir()), kept)
    assert {path.name: path.read_text() for path in kept.iterdir()} == {
        "a.svg": "run",
        "a.csv": "run",
        "pipeline.svg": "figures",
    }
