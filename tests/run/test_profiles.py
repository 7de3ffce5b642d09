"""Bad profiles: every mistake is said before anything runs, with its line, the value and what would be right."""

import subprocess
import sys

import pytest
import yaml

from lib.run.files import PROJECT
from lib.run.profile import load_profile
from lib.run.readiness import ready
from lib.run.validation import ParameterError
from lib.run.yaml_lines import read_yaml

DEMO = yaml.safe_load((PROJECT / "profiles" / "demo.yaml").read_text())
NAME = "plain name of letters"
SMALL = {"name": "moral-small", "path": "data/demo/models/moral-small"}


def write(directory, text):
    path = directory / "profile.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(DEMO | text, sort_keys=False))
    return path


BAD = [
    ({"run": ""}, f"run: should be a {NAME}"),
    ({"run": "../../x"}, f"run: should be a {NAME}.*got '../../x'"),
    ({"run": "/tmp/x"}, f"run: should be a {NAME}"),
    ({"run": ".."}, f"run: should be a {NAME}"),
    ({"run": ".hidden"}, f"run: should be a {NAME}"),
    ({"run": "a b"}, f"run: should be a {NAME}"),
    ({"run": "a/b"}, f"run: should be a {NAME}"),
    ({"run": "a" * 65}, "run: String should have at most 64 characters"),
    ({"run": 7}, "run: Input should be a valid string, got 7 of type int"),
    ({"run": None}, "run: Input should be a valid string, got None"),
    ({"models": []}, "models: List should have at least 1 item"),
    ({"models": None}, "models: Input should be a valid list"),
    ({"models": "moral-small"}, "models: Input should be a valid list"),
    ({"models": ["moral-small"]}, r"models\.0: Input should be a valid dictionary"),
    ({"models": [SMALL | {"name": ".."}]}, rf"models\.0\.name: should be a {NAME}"),
    ({"models": [SMALL | {"name": "a/b"}]}, rf"models\.0\.name: should be a {NAME}"),
    ({"models": [SMALL | {"name": "m{x}"}]}, rf"models\.0\.name: should be a {NAME}"),
    ({"models": [SMALL | {"name": ""}]}, rf"models\.0\.name: should be a {NAME}"),
    ({"models": [SMALL, SMALL]}, "two models are named 'moral-small', the first in line"),
    ({"models": [{"name": "moral-small"}]}, r"models\.0: needs"),
    ({"models": [SMALL | {"hub": "a/b"}]}, r"models\.0: needs"),
    ({"models": [{"name": "moral-small", "pth": "x"}]}, "models.0.pth: is no parameter. Did you mean 'path'?"),
    ({"models": [{"path": "x"}]}, r"models\.0\.name: has no value"),
    ({"sae_model": "moral-smal"}, "sae_model: 'moral-smal' is not among the models .* Did you mean 'moral-small'?"),
    ({"sae_model": 3}, "sae_model: Input should be a valid string"),
    ({"layers": [99, 99]}, "layers: 99 is there twice"),
    ({"layers": []}, "layers: List should have at least 1 item"),
    ({"layers": [-1]}, r"layers\.0: Input should be greater than or equal to 0, got -1"),
    ({"layers": 2}, "layers: Input should be a valid list, got 2 of type int"),
    ({"layers": ["2"]}, r"layers\.0: Input should be a valid integer, got '2'"),
    ({"layers": [1.5]}, r"layers\.0: Input should be a valid integer, got 1.5"),
    ({"threads": 0}, "threads: Input should be greater than 0"),
    ({"threads": "all"}, "threads: Input should be a valid integer"),
    ({"parts": 0}, "parts: Input should be greater than 0"),
    ({"top_p": 5}, "top_p: Input should be less than or equal to 1, got 5"),
    ({"top_p": 0}, "top_p: Input should be greater than 0"),
    ({"temperature": -0.1}, "temperature: Input should be greater than or equal to 0"),
    ({"temperature": "hot"}, "temperature: Input should be a valid number"),
    ({"repetition_penalty": 0}, "repetition_penalty: Input should be greater than 0"),
    ({"max_new_tokens": 0}, "max_new_tokens: Input should be greater than 0"),
    ({"prompt_limit": 0}, "prompt_limit: Input should be greater than 0"),
    ({"strength": float("inf")}, "strength: Input should be a finite number"),
    ({"strength": "strong"}, "strength: Input should be a valid number"),
    ({"sweep_strengths": [1.0, 1.0]}, "sweep_strengths: 1.0 is there twice"),
    ({"sweep_prompts": -1}, "sweep_prompts: Input should be greater than or equal to 0"),
    ({"steering_batch": 0}, "steering_batch: Input should be greater than 0"),
    ({"batch_size": 0}, "batch_size: Input should be greater than 0"),
    ({"learning_rate": 0}, "learning_rate: Input should be greater than 0"),
    ({"learning_rate": True}, "learning_rate: Input should be a valid number, got True"),
    ({"sae_epochs": 2.5}, "sae_epochs: Input should be a valid integer"),
    ({"target_l0": -5}, "target_l0: Input should be greater than 0"),
    ({"sae_activation": "top-k"}, "sae_activation: .* got 'top-k'. Did you mean 'topk'?"),
    ({"split": "group"}, "split: .* Did you mean 'grouped'?"),
    ({"pooling": "means"}, "pooling: .* Did you mean 'mean'?"),
    ({"dtype": "bf16"}, "dtype: Input should be 'float32', 'bfloat16' or 'float16', got 'bf16'"),
    ({"device": "gpu"}, "device: Input should be"),
    ({"mode": "ad"}, "mode: .* Did you mean 'add'?"),
    ({"agreement": "agree"}, "agreement: .* Did you mean"),
    ({"arms": []}, "arms: List should have at least 1 item"),
    ({"arms": ["aligned"]}, "arms: lacks baseline"),
    ({"arms": ["baseline", "alined"]}, r"arms\.1: .* Did you mean 'aligned'?"),
    ({"arms": ["baseline", "baseline"]}, "arms: 'baseline' is there twice"),
    ({"judge": "ofline"}, "judge: should be offline or .* Did you mean 'offline'?"),
    ({"judge": None}, "judge: Input should be a valid string"),
    ({"second_judge": "gpt"}, "second_judge: should be offline or"),
    ({"rubric_language": "cn"}, "rubric_language: Input should be"),
    ({"bootstrap_draws": 0}, "bootstrap_draws: Input should be greater than 0"),
    ({"permutations": "many"}, "permutations: Input should be a valid integer"),
    ({"seed": "zero"}, "seed: Input should be a valid integer, got 'zero'"),
    ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ({"seed": True}, "seed: Input should be a valid integer, got True"),
    ({"aggreement": "x"}, "aggreement: is no parameter. Did you mean 'agreement'?"),
    ({"card": "H100"}, "card: is no parameter"),
    ({"run_dir": "x"}, "run_dir: is no parameter"),
    ("run: x\nrun: y\n", "line 2: run: is there twice, first in line 1"),
    ("run: x\nmodels:\n  - {name: a, path: b, name: c}\n", "line 3: name: is there twice"),
    ("run: [x\n", "is no YAML"),
    ("run: x\n\tlayers: [1]\n", "line 2: is no YAML"),
    ("- run\n", "should be a mapping of keys to values, got list"),
    ("", "should be a mapping of keys to values, got NoneType"),
    ("demo\n", "should be a mapping of keys to values, got str"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[str(case[0])[:40] for case in BAD])
def test_a_bad_profile_is_refused_with_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ParameterError, match=message):
        load_profile(write(tmp_path, text))


def test_there_are_many():
    assert len(BAD) >= 60


def test_all_mistakes_are_said_at_once_each_with_its_line(tmp_path):
    text = (
        "run: ../x\nannotations: download\nmodels:\n  - {name: a, path: b}\nsae_model: c\nlayers: [-1]\ntop_p: 5\n"
        "prompts: x\ntemprature: 1\n"
    )
    with pytest.raises(ParameterError) as refused:
        load_profile(write(tmp_path, text))
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"profile.yaml, line {n}" for n in (1, 5, 6, 7, 9)]
    assert "Did you mean 'temperature'?" in lines[-1]


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("1.0e-4", 1e-4), ("1E-3", 1e-3), ("0.5", 0.5)])
def test_numbers_are_numbers_however_they_are_written(tmp_path, written, value):
    text = yaml.safe_dump(DEMO | {"learning_rate": "HERE"}).replace("HERE", written)
    assert load_profile(write(tmp_path, text)).learning_rate == value


def test_what_is_text_stays_text():
    assert read_yaml("[v1e, 1e, e5, 1.2.3, '1e-4', 12, .5, -.inf]").content == [
        "v1e", "1e", "e5", "1.2.3", "1e-4", 12, 0.5, float("-inf"),
    ]  # fmt: skip


UNREADY = [
    ({"annotations": "data/demo/anotations.tsv"}, "anotations.tsv is not there. Did you mean 'annotations.tsv'?"),
    ({"prompts": "data/demo/nothing"}, "prompts: data/demo/nothing is not there"),
    ({"flames_scorer": "nowhere"}, "flames_scorer: nowhere is not there"),
    ({"layers": [99]}, "layers: moral-small has .* layers, 0 to"),
    ({"first_layers": 99}, "first_layers: moral-small has"),
    ({"first_layers": 1, "layers": [1]}, "layers: moral-small has"),
    ({"gpu": "H1000"}, "gpu: .*H1000.* data/accelerators.csv"),
    ({"models": [SMALL | {"path": "data/demo/models/moral-smal"}]}, "models.0.path: .* Did you mean 'moral-small'?"),
    ({"models": [SMALL | {"path": "data/demo"}]}, "models.0.path: holds no config.json"),
    ({"judge": "openai/gpt-4o"}, "judge: openai/gpt-4o needs the environment variable OPENAI_API_KEY"),
]


@pytest.mark.parametrize(("text", "message"), UNREADY, ids=[str(case[0])[:40] for case in UNREADY])
def test_what_a_run_lacks_is_said_before_it_starts(tmp_path, monkeypatch, text, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = write(tmp_path, text)
    load_profile(path)
    with pytest.raises(ParameterError, match=rf"profile.yaml, line \d+: .*{message}|{message}"):
        ready(path)


def test_a_ready_profile_is_ready():
    assert ready("profiles/demo.yaml").run == "demo"


@pytest.mark.parametrize("module", ["plan", "verify", "report", "start"])
def test_every_command_says_it_without_a_traceback(tmp_path, module):
    path = write(tmp_path, {"run": "../x"})
    result = subprocess.run(
        [sys.executable, "-m", f"workflow.{module}", str(path)], cwd=PROJECT, capture_output=True, text=True
    )
    assert result.returncode == 1
    said = "profile.yaml, line 1: run: should be a plain name of letters, digits, '.', '_' and '-', got '../x'\n"
    assert result.stderr == said


def test_a_profile_that_is_not_there_is_said_with_those_that_are():
    with pytest.raises(
        ParameterError, match=r"profile not found: profiles/demi.yaml. Did you mean 'demo'\? There are: "
    ):
        load_profile("profiles/demi.yaml")
