"""Names and types of parameters, in notebooks, profiles and on the command line."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml

from lib import runs
from lib.parameters import STAGES, ParameterError, assigned_names
from lib.profiles import load_profile

REAL_PROFILE = """
run: real
annotations: ../shared/data/social-chem-101.part.csv
agreement: rot-agree
models:
  - {name: stories260K, path: ../shared/data/stories260K}
sae_model: stories260K
layers: [2]
prompts: ../shared/data/Flames_1k_Chinese.jsonl
prompt_limit: 40
judge: offline
seed: 0
"""


def write_profile(directory, **changes):
    content = yaml.safe_load(REAL_PROFILE) | changes
    path = directory / "profile.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def notebook(name):
    return json.loads((runs.PROJECT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", STAGES)
def test_each_notebook_declares_exactly_the_parameters_of_its_stage(name):
    tagged = [c for c in notebook(name)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    source = "".join(tagged[0]["source"])
    assert assigned_names(source) == [item.name for item in fields(STAGES[name].parameters)]


@pytest.mark.parametrize("name", STAGES)
def test_defaults_of_each_notebook_are_those_of_the_demo(name):
    source = next(c for c in notebook(name)["cells"] if "parameters" in c["metadata"].get("tags", []))["source"]
    namespace = {}
    exec("".join(source), namespace)
    demo = load_profile(runs.PROJECT / "profiles" / "demo.yaml")
    assert {key: namespace[key] for key in demo.stage_parameters(name)} == demo.stage_parameters(name)


@pytest.mark.parametrize("profile", ["demo", "laptop", "paper"])
def test_profiles_of_the_project_are_valid(profile):
    assert load_profile(f"profiles/{profile}.yaml").run == profile


def test_the_profile_of_the_readme_is_valid(tmp_path):
    profile = load_profile(write_profile(tmp_path))
    assert profile.agreement == "rot-agree"
    assert profile.stage_parameters("02_residual_streams")["model_source"] == "../shared/data/stories260K"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggreement": "rot-agree"}, "unknown key in profile profile.yaml: 'aggreement'. Did you mean 'agreement'"),
        ({"layers": 2}, r"layers should be list\[int\], got 2 of type int"),
        ({"agreement": "agree"}, "agreement should be .*'action-agree', 'rot-agree'.*, got 'agree'"),
        ({"seed": "zero"}, "seed should be int, got 'zero'"),
        ({"models": None}, "lacks a value for: models"),
        ({"sae_model": "other"}, "sae_model is 'other', which is not among the models stories260K"),
        ({"models": [{"name": "stories260K"}]}, "needs either `path:`"),
        ({"models": [{"name": "a", "pth": "x"}]}, "unknown key of a model in the profile: 'pth'. Did you mean 'path'"),
        ({"mode": "ad"}, "mode should be .*'add'.*, got 'ad'"),
    ],
)
def test_bad_profiles_are_refused_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ParameterError, match=message):
        load_profile(write_profile(tmp_path, **changes))


def test_a_parameter_injected_under_a_wrong_name_is_refused():
    defaults = load_profile("profiles/demo.yaml").stage_parameters("02_residual_streams")
    namespace = defaults | {"In": ["", "# Parameters\nrun_dir = 'runs/demo'", "# Parameters\ntoken_buget = 12"]}
    with pytest.raises(ParameterError, match=r"'token_buget'\. Did you mean 'token_budget'"):
        runs.parameters("02_residual_streams", namespace)


def test_names_that_later_cells_define_are_no_parameters():
    defaults = load_profile("profiles/demo.yaml").stage_parameters("02_residual_streams")
    namespace = defaults | {"In": ["", "figure = 3"], "figure": 3}
    assert runs.parameters("02_residual_streams", namespace).token_budget == 4096


def test_booleans_are_not_integers():
    defaults = load_profile("profiles/demo.yaml").stage_parameters("02_residual_streams")
    with pytest.raises(ParameterError, match="token_budget should be int, got True"):
        runs.parameters("02_residual_streams", defaults | {"token_budget": True})


def test_papermill_with_a_misspelt_parameter_stops_before_anything_is_computed(tmp_path):
    command = [sys.executable, "-m", "papermill", "notebooks/01_moral_vectors.ipynb", str(tmp_path / "out.ipynb")]
    command += ["-p", "run_dir", str(tmp_path / "run"), "-p", "anotations", "nothing.tsv", "--no-progress-bar"]
    result = subprocess.run(command, cwd=runs.PROJECT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "unknown parameter of notebook 01_moral_vectors: 'anotations'. Did you mean 'annotations'" in result.stderr
    assert not (tmp_path / "run").exists()
