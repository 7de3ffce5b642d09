"""Bringing one's own: the examples are short, valid and, with a model, annotations, prompts and judge of one's own, run."""

import json
import os

import pandas as pd
import pytest
import yaml
from test_pipeline import snakemake

from lib import flames, runs
from lib.profiles import load_profile

EXAMPLES = sorted((runs.PROJECT / "profiles" / "examples").glob("*.yaml"))


def test_there_is_an_example_of_everything():
    assert [path.stem for path in EXAMPLES] == ["annotations", "judge", "model", "prompts"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_valid_and_marks_what_to_change(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 20
    assert "<-" in text.split("\n", 1)[1]
    profile = load_profile(path)
    assert profile.run.startswith("my-")
    assert runs.resolve(profile.annotations).exists()
    assert len(flames.read_prompts(profile.prompts, profile.prompt_limit)) > 0


@pytest.mark.pipeline
def test_a_run_of_ones_own(tmp_path, tiny_model):
    """What the examples say to change, changed: all four at once, through all nine stages."""
    content = {}
    for path in EXAMPLES:
        content |= yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = pd.read_csv(runs.resolve(content["annotations"]), sep="\t", dtype=str, keep_default_na=False)
    mine = rows[["action", "rot-moral-foundations", "action-moral-judgment", "rot-agree", "rot-bad", "m"]]
    mine.to_csv(tmp_path / "mine.csv", index=False)
    prompts = [
        {"dimension": dimension, "subcomponent": "mine", "prompt": f"{dimension}?"}
        for dimension in flames.DIMENSIONS * 2
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts), encoding="utf-8")
    content |= {
        "run": os.path.relpath(tmp_path / "run", runs.PROJECT / "runs"),
        "annotations": str(tmp_path / "mine.csv"),
        "agreement": "rot-agree",
        "models": [{"name": "mine", "path": str(tiny_model)}],
        "sae_model": "mine",
        "prompts": str(tmp_path / "mine.jsonl"),
        "bootstrap_draws": 20,
        "permutations": 20,
    }
    profile = tmp_path / "mine.yaml"
    profile.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = snakemake("--cores", "1", profile=profile)
    assert result.returncode == 0, result.stderr[-3000:]
    ledger = pd.read_csv(tmp_path / "run" / "claims" / "claims.csv")
    assert (ledger.set_index("id").loc["subset", "verdict"]) == "not run"
    assert "finding about this run's models and data" in set(ledger["standing"]), "not the demo's annotations"
    summary = pd.read_parquet(tmp_path / "run" / "judgements" / "mine" / "summary.parquet")
    assert set(summary["judge"]) == {"mockllm/model"}


@pytest.mark.pipeline
def test_another_model_is_refused_where_it_cannot_be_read(tmp_path):
    content = yaml.safe_load((runs.PROJECT / "profiles" / "examples" / "model.yaml").read_text(encoding="utf-8"))
    content |= {"sae_model": "other"}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = snakemake("-n", profile=path)
    assert result.returncode != 0
    assert "not among the models mine" in " ".join((result.stdout + result.stderr).split())
