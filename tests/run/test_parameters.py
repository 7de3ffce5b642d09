"""Names and types of parameters, in notebooks, profiles and on the command line."""

import json
import subprocess
import sys

import pytest
import yaml
from engine import REAL_PROFILE

from lib.run.files import PROJECT
from lib.run.profile import ModelSource, Profile, load_profile
from lib.run.table import STAGES
from lib.run.validation import ParameterError, assigned_names, validated
from workflow.execution import first_cell


def write_profile(directory, **changes):
    content = yaml.safe_load(REAL_PROFILE) | changes
    path = directory / "profile.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def notebook(name):
    return json.loads((PROJECT / "notebooks" / f"{STAGES[name].notebook}.ipynb").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", STAGES)
def test_each_notebook_declares_exactly_the_parameters_of_its_stage(name):
    tagged = [c for c in notebook(name)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    source = "".join(tagged[0]["source"])
    assert assigned_names(source) == list(STAGES[name].parameters.model_fields)


@pytest.mark.parametrize("name", STAGES)
def test_defaults_of_each_notebook_are_those_of_the_demo(name):
    source = next(c for c in notebook(name)["cells"] if "parameters" in c["metadata"].get("tags", []))["source"]
    namespace = {}
    exec("".join(source), namespace)
    demo = load_profile(PROJECT / "profiles" / "demo.yaml")
    assert {key: namespace[key] for key in demo.stage_parameters(name)} == demo.stage_parameters(name)


@pytest.mark.parametrize("name", STAGES)
def test_the_first_cell_of_each_notebook_follows_from_the_one_statement(name):
    (cell,) = [c for c in notebook(name)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert "".join(cell["source"]) == first_cell(name), "`make notebooks` writes it"


def test_every_parameter_has_a_description_and_every_key_reaches_a_stage():
    keys = set(Profile.model_fields) - {"run", "threads", "gpu", "parts", "untrained_twin"}  # the last as one of twins
    for schema in (Profile, ModelSource, *(stage.parameters for stage in STAGES.values())):
        for key, item in schema.model_fields.items():
            assert item.description, f"{schema.__name__}.{key}"
            assert len(item.description) > 5
    assert keys <= {key for stage in STAGES.values() for key in stage.parameters.model_fields}


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_a_stage_has_one_name(stage):
    assert (PROJECT / "notebooks" / f"{stage.notebook}.ipynb").exists()
    assert (PROJECT / "lib" / stage.name / "figures.py").exists()
    assert list((PROJECT / "tests" / stage.name).glob("test_*.py"))
    assert stage.directory("some-model").split("/")[0] == stage.name


def test_a_stage_reads_earlier_stages_only():
    for stage in STAGES.values():
        assert all(STAGES[name].number < stage.number for name in stage.needs)
    assert STAGES["comparison"].needs == ["diagnosis"]
    assert STAGES["judging"].needs == ["steering"]


@pytest.mark.parametrize("profile", ["demo", "laptop", "paper"])
def test_profiles_of_the_project_are_valid(profile):
    assert load_profile(f"profiles/{profile}.yaml").run == profile


def test_the_profile_of_the_readme_is_valid(tmp_path):
    profile = load_profile(write_profile(tmp_path))
    assert profile.agreement == "rot-agree"
    assert profile.stage_parameters("activations")["model_source"] == "../shared/data/stories260K"


def test_a_parameter_injected_under_a_wrong_name_is_refused():
    defaults = load_profile("profiles/demo.yaml").stage_parameters("activations")
    namespace = defaults | {"In": ["", "# Parameters\nrun_dir = 'runs/demo'", "# Parameters\ntoken_buget = 12"]}
    with pytest.raises(ParameterError, match=r"token_buget: is no parameter\. Did you mean 'token_budget'"):
        validated("activations", namespace)


def test_names_that_later_cells_define_are_no_parameters():
    defaults = load_profile("profiles/demo.yaml").stage_parameters("activations")
    namespace = defaults | {"In": ["", "figure = 3"], "figure": 3}
    assert validated("activations", namespace).token_budget == 4096


def test_booleans_are_not_integers():
    defaults = load_profile("profiles/demo.yaml").stage_parameters("activations")
    with pytest.raises(ParameterError, match="token_budget: Input should be a valid integer, got True"):
        validated("activations", defaults | {"token_budget": True})


def test_papermill_with_a_misspelt_parameter_stops_before_anything_is_computed(tmp_path):
    command = [sys.executable, "-m", "papermill", "notebooks/01_vectors.ipynb", str(tmp_path / "out.ipynb")]
    command += ["-p", "run_dir", str(tmp_path / "run"), "-p", "anotations", "nothing.tsv", "--no-progress-bar"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "notebook 01_vectors: anotations: is no parameter. Did you mean 'annotations'" in result.stderr
    assert not (tmp_path / "run").exists()
