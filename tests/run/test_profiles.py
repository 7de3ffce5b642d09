"""Bad profiles: every mistake is said before anything runs, with its line, the value and what would be right."""

import shutil
import subprocess
import sys

import gguf
import pytest
import yaml

from lib.run.files import PROJECT, CompanionError
from lib.run.profile import load_profile
from lib.run.readiness import ready
from lib.run.resources import ResourceError
from lib.run.validation import ParameterError
from lib.run.yaml_lines import read_yaml
from workflow import workload

DEMO = yaml.safe_load((PROJECT / "profiles" / "demo.yaml").read_text())
NAME = "plain name of letters"
SMALL = {"name": "moral-small", "path": "data/demo/models/moral-small"}
ALONE = {"untrained_twin": None}


def write(directory, text):
    path = directory / "profile.yaml"
    if isinstance(text, dict):
        text = yaml.safe_dump(DEMO | text, sort_keys=False)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
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
    ({"seed": 20241201123456}, "seed: Input should be less than or equal to 4294967295"),
    ({"annotations": ""}, "annotations: String should have at least 1 character"),
    ({"prompts": ""}, "prompts: String should have at least 1 character"),
    ({"judge": "offline/foo"}, "judge: should be offline, or offline/rule-N .* got 'offline/foo'"),
    (
        {"judge": "gogle/gemini"},
        "judge: 'gogle' is no provider of Inspect.* Did you mean 'google'",
    ),
    ({"second_judge": "opnai/gpt"}, "second_judge: 'opnai' is no provider of Inspect.* Did you mean 'openai'"),
    (
        {"untrained_twin": "untraned-small"},
        "line .*: untrained_twin: 'untraned-small' .* Did you mean 'untrained-small'?",
    ),
    ({"untrained_twin": "moral-small"}, "untrained_twin: 'moral-small' is sae_model itself"),
    (
        {"mode": "replace"},
        r"mode: replace takes strength 1 alone, but sweep_strengths .* Write sweep_strengths: \[1.0\]",
    ),
    ({"mode": "replace", "strength": 2}, r"but strength holds 2. Write strength: 1.0"),
    ({"mode": "blend"}, r"from 0 to 1, but sweep_strengths holds 2. Write sweep_strengths: \[0.1, 0.25, 0.5, 1.0\]"),
    ({"aggreement": "x"}, "aggreement: is no parameter. Did you mean 'agreement'?"),
    ({"card": "H100"}, "card: is no parameter"),
    ({"run_dir": "x"}, "run_dir: is no parameter"),
    ("run: x\nrun: y\n", "line 2: run: is there twice, first in line 1"),
    ("run: x\nmodels:\n  - {name: a, path: b, name: c}\n", "line 3: name: is there twice"),
    ("run: [x\n", "is no YAML"),
    ("run: x\n\tlayers: [1]\n", "line 2: is no YAML"),
    ("# für mich\nrun: x\n# für dich\n".encode("latin-1"), "line 1: is not in UTF-8"),
    ("run: x\n{run}: x\n", "line 2: is no YAML: found unhashable key"),
    ("run: &a [*a]\n", "is no YAML: values stand within themselves"),
    ("seed: !!int x\n", "is no YAML: invalid literal"),
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
    assert read_yaml("[v1e, 1e, e5, 1.2.3, '1e-4', 12, .5, -.inf, 2026-11-30, 2024-13-45]").content == [
        "v1e", "1e", "e5", "1.2.3", "1e-4", 12, 0.5, float("-inf"), "2026-11-30", "2024-13-45",
    ]  # fmt: skip


UNREADY = [
    ({"annotations": "data/demo/anotations.tsv"}, "anotations.tsv is not there. Did you mean 'annotations.tsv'?"),
    ({"prompts": "data/demo/nothing"}, "prompts: data/demo/nothing is not there"),
    ({"flames_scorer": "nowhere"}, "flames_scorer: nowhere is not there"),
    ({"layers": [99]}, "layers: moral-small has .* layers, 0 to"),
    ({"first_layers": 99}, "first_layers: moral-small has"),
    ({"first_layers": 1, "layers": [1]}, "layers: moral-small has"),
    ({"gpu": "H1000"}, "gpu: .*H1000.* data/accelerators.csv"),
    (
        ALONE | {"models": [SMALL | {"path": "data/demo/models/moral-smal"}]},
        "models.0.path: .* Did you mean 'moral-small'?",
    ),
    (ALONE | {"models": [SMALL | {"path": "data/demo"}]}, "models.0.path: holds no config.json"),
    ({"annotations": "data/demo"}, "annotations: data/demo is a directory; a file is needed"),
    ({"judge": "hf/data/raw/nothing.gguf"}, "judge: data/raw/nothing.gguf is not there"),
    ({"second_judge": "hf/data/demo/models/moral-smal"}, "second_judge: .* Did you mean 'moral-small'?"),
    ({"flames_scorer": "data/demo"}, "flames_scorer: holds no config.json"),
    ({"judge": "openai/gpt-4o"}, "judge: openai/gpt-4o needs the environment variable OPENAI_API_KEY"),
]


@pytest.mark.parametrize(("text", "message"), UNREADY, ids=[str(case[0])[:40] for case in UNREADY])
def test_what_a_run_lacks_is_said_before_it_starts(tmp_path, monkeypatch, text, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = write(tmp_path, text)
    load_profile(path)
    with pytest.raises(ParameterError, match=rf"profile.yaml, line \d+: .*{message}|{message}"):
        ready(path)


@pytest.fixture
def damaged(tmp_path):
    """A copy of a demo model, and its profile, whose files a test may damage."""
    shutil.copytree(PROJECT / "data/demo/models/moral-small", tmp_path / "model")
    return tmp_path / "model", write(tmp_path, ALONE | {"models": [SMALL | {"path": str(tmp_path / "model")}]})


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"a": ', "config.json is no JSON object"),
        ("model.safetensors", LFS, "model.safetensors is no whole safetensors file.* `git lfs pull`"),
        ("model.safetensors", b"", "model.safetensors is no whole safetensors file"),
    ],
)
def test_a_damaged_model_is_said_before_a_run_and_in_its_plan(damaged, name, content, message):
    directory, path = damaged
    (directory / name).write_bytes(content)
    with pytest.raises(ParameterError, match=rf"profile.yaml, line \d+: models.0.path: .*{message}"):
        ready(path)
    with pytest.raises(ResourceError, match=message):
        workload.size(load_profile(path).sources["moral-small"])


def test_a_model_cut_short_is_damaged(damaged):
    directory, path = damaged
    assert ready(path)
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ParameterError, match="is no whole safetensors file"):
        ready(path)


def gguf_file(path, blocks):
    """A GGUF file without tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(blocks)
    writer.add_embedding_length(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_layers_and_damage_of_a_gguf_model_are_said_before_a_run(tmp_path):
    file = tmp_path / "model.gguf"
    gguf_file(file, blocks=3)
    of_gguf = ALONE | {"models": [{"name": "moral-small", "gguf": str(file)}]}
    assert ready(write(tmp_path, of_gguf | {"layers": [2]}))
    with pytest.raises(ParameterError, match="layers: moral-small has 3 layers, 0 to 2"):
        ready(write(tmp_path, of_gguf | {"layers": [3]}))
    source = load_profile(write(tmp_path, of_gguf)).sources["moral-small"]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ResourceError, match=r"model\.gguf is no whole GGUF file"):
        workload.size(source)
    file.write_text("<html>404</html>")
    with pytest.raises(ParameterError, match=r"models\.0\.gguf: .*model.gguf is no GGUF file"):
        ready(write(tmp_path, of_gguf))


def test_prompts_in_another_encoding_are_said_before_a_run_and_in_its_plan(tmp_path):
    (tmp_path / "prompts.jsonl").write_bytes('{"prompt": "ü"}\n'.encode("latin-1"))
    path = write(tmp_path, {"prompts": str(tmp_path / "prompts.jsonl")})
    with pytest.raises(ParameterError, match=r"prompts: .*prompts.jsonl is not in UTF-8 \(byte 12\)"):
        ready(path)
    with pytest.raises(CompanionError, match="is not in UTF-8"):
        workload.work(load_profile(path))


def test_a_part_of_a_run_asks_for_its_own_files_alone(tmp_path):
    path = write(tmp_path, {"prompts": "data/demo/nothing"})
    assert ready(path, ("annotations", "models.0")).run == "demo"


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
