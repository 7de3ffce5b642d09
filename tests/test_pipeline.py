"""The graph of notebooks, on the demo run that `make test` computes first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lib import runs
from lib.parameters import STAGES

pytestmark = pytest.mark.pipeline

TRIGGERS = ["--rerun-triggers", "mtime", "params", "input"]


def snakemake(*arguments, profile="profiles/demo.yaml"):
    command = [sys.executable, "-m", "snakemake", *arguments, *TRIGGERS, "--config", f"profile={profile}"]
    return subprocess.run(command, cwd=runs.PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def planned(result):
    """Names of the rules that a dry run would run."""
    text = result.stdout + result.stderr
    return {line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith(("rule ", "localrule "))}


def test_every_stage_of_the_demo_finished(demo_run):
    manifests = sorted(path.relative_to(demo_run).as_posix() for path in demo_run.rglob("manifest.json"))
    assert len([name for name in manifests if name.startswith("activations/")]) == 6
    assert len([name for name in manifests if name.startswith("diagnosis/")]) == 6
    for stage in STAGES.values():
        directory = stage.directory.format(model="moral-small")
        assert f"{directory}/manifest.json" in manifests


def test_a_second_run_finds_nothing_to_do(demo_run):
    result = snakemake("--cores", "1")
    assert result.returncode == 0, result.stderr
    assert "Nothing to be done" in result.stdout + result.stderr


def test_without_one_stage_that_stage_and_its_dependents_run_again(demo_run):
    directory = demo_run / "comparison"
    hidden = demo_run / ".comparison-hidden"
    directory.rename(hidden)
    try:
        result = snakemake("-n")
    finally:
        hidden.rename(directory)
    assert result.returncode == 0, result.stderr
    assert planned(result) == {"compare_models", "claims", "all"}


def test_other_parameters_are_refused_before_anything_runs(demo_run, tmp_path):
    profile = yaml.safe_load((runs.PROJECT / "profiles" / "demo.yaml").read_text()) | {"seed": 1}
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(profile))
    result = snakemake("--cores", "1", profile=path)
    assert result.returncode != 0
    assert "made with parameters.seed = 0, but 1 is asked for" in result.stdout + result.stderr


def test_a_mistyped_key_is_named_with_the_nearest_right_one(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("run: x\nannotation: data/demo/annotations.tsv\n")
    result = snakemake("--cores", "1", profile=path)
    assert result.returncode != 0
    assert "'annotation'. Did you mean 'annotations'" in result.stdout + result.stderr


def test_the_graph_can_be_drawn(tmp_path):
    result = snakemake("--rulegraph", "dot")
    assert result.returncode == 0, result.stderr
    assert "digraph" in result.stdout
    for name in STAGES:
        assert name.split("_", 1)[1] in result.stdout


def run_real_profile(real_data, directory):
    from test_parameters import REAL_PROFILE

    profile = yaml.safe_load(REAL_PROFILE)
    run = os.path.relpath(directory / "real", runs.PROJECT / "runs")
    profile |= {"run": run, "annotations": str(real_data / "social-chem-101.part.csv")}
    path = directory / "real.yaml"
    path.write_text(yaml.safe_dump(profile))
    return snakemake("--cores", "all", profile=path), directory / "real"


def test_the_real_profile_runs_all_nine_stages(real_data, tmp_path):
    result, run = run_real_profile(real_data, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    annotations = pd.read_parquet(run / "vectors" / "annotations.parquet")
    assert len(annotations) == 10_391
    assert (run / "claims" / "manifest.json").exists()
    for name in STAGES:
        (executed,) = [path for path in (run / "notebooks").glob(f"{name}*.ipynb")]
        text = notebook_output(executed)
        assert "rot-agree stood in for action-agree" in text, name


def notebook_output(path: Path) -> str:
    """Everything that a notebook printed or displayed as text."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            parts += [*output.get("text", []), *output.get("data", {}).get("text/plain", [])]
    return "".join(parts)
