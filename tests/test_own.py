"""Bringing one's own: the examples are short, valid and, with a model, annotations, prompts and judge of one's own, run."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from engine import start

from lib.run.files import PROJECT, resolve
from lib.run.profile import load_profile
from lib.steering.prompts import DIMENSIONS, read_prompts

EXAMPLES = sorted((PROJECT / "profiles" / "examples").glob("*.yaml"))


def test_there_is_an_example_of_everything():
    assert [path.stem for path in EXAMPLES] == ["annotations", "judge", "model", "prompts"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_valid_and_marks_what_to_change(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 20
    assert "<-" in text.split("\n", 2)[2], "below the schema's line and the sentence that says what the mark means"
    profile = load_profile(path)
    assert profile.run.startswith("my-")
    assert resolve(profile.annotations).exists()
    assert len(read_prompts(profile.prompts, profile.prompt_limit)) > 0


@pytest.mark.pipeline
def test_a_run_of_ones_own(tmp_path, tiny_model):
    """What the examples say to change, changed: all four at once, through all nine stages."""
    content = {}
    for path in EXAMPLES:
        content |= yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = pd.read_csv(resolve(content["annotations"]), sep="\t", dtype=str, keep_default_na=False)
    mine = rows[["action", "rot-moral-foundations", "action-moral-judgment", "rot-agree", "rot-bad", "m"]]
    mine.to_csv(tmp_path / "mine.csv", index=False)
    prompts = [
        {"dimension": dimension, "subcomponent": "mine", "prompt": f"{dimension}?"} for dimension in DIMENSIONS * 2
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts), encoding="utf-8")
    content |= {
        "run": f"test-{tmp_path.name}",
        "annotations": str(tmp_path / "mine.csv"),
        "agreement": "rot-agree",
        "models": [{"name": "mine", "path": str(tiny_model)}],
        "sae_model": "mine",
        "prompts": str(tmp_path / "mine.jsonl"),
        "bootstrap_draws": 20,
        "permutations": 20,
        "control_layers": 1,
        "probe_rows": 500,
        "replicates": 1,
        "sweep_prompts": 2,
        "judge_retries": 0,
    }
    profile = tmp_path / "mine.yaml"
    profile.write_text(yaml.safe_dump(content), encoding="utf-8")
    result, run = start(profile), PROJECT / "runs" / content["run"]
    assert result.returncode == 0, result.stderr[-3000:]
    ledger = pd.read_csv(run / "claims" / "claims.csv")
    assert (ledger.set_index("id").loc["subset", "decision"]) == "not comparable"
    assert "finding about this run's models and data" in set(ledger["standing"]), "not the demo's annotations"
    summary = pd.read_parquet(run / "judging" / "mine" / "summary.parquet")
    assert set(summary["judge"]) == {"mockllm/model"}
    shutil.rmtree(run)


@pytest.mark.pipeline
def test_another_model_is_refused_where_it_cannot_be_read(tmp_path):
    content = yaml.safe_load((PROJECT / "profiles" / "examples" / "model.yaml").read_text(encoding="utf-8"))
    content |= {"sae_model": "other"}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = start(path, "-n")
    assert result.returncode == 1
    assert "not among the models mine" in result.stderr
