"""The graph of notebooks, on the demo run that `make test` computes first."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from engine import REAL_PROFILE, snakemake, start

from lib.run.files import PROJECT
from lib.run.profile import load_profile
from lib.run.table import STAGES
from workflow.freshness import stale

pytestmark = pytest.mark.pipeline


def planned(result):
    """Names of the rules that a dry run would run."""
    text = result.stdout + result.stderr
    return {line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith(("rule ", "localrule "))}


def test_every_stage_of_the_demo_finished(demo_run):
    manifests = sorted(path.relative_to(demo_run).as_posix() for path in demo_run.rglob("manifest.json"))
    assert len([name for name in manifests if name.startswith("activations/")]) == 6
    assert len([name for name in manifests if name.startswith("diagnosis/")]) == 6
    for stage in STAGES.values():
        assert f"{stage.directory('moral-small')}/manifest.json" in manifests


def test_a_second_run_finds_nothing_to_do(demo_run):
    """Dates decide nothing: every file touched, as a copy or a fresh clone leaves it, is no reason to run.

    The annotations are larger than what Snakemake hashes.
    """
    for path in [
        *demo_run.rglob("*.parquet"),
        *(PROJECT / "lib").rglob("*.py"),
        *(PROJECT / "notebooks").glob("*.ipynb"),
        *(path for path in (PROJECT / "data" / "demo").rglob("*") if path.is_file()),
        demo_run / "notebooks" / "01_vectors.ipynb",
    ]:
        path.touch()
    result = start()
    assert result.returncode == 0, result.stderr
    assert "Nothing to be done" in result.stdout + result.stderr


def test_without_one_stage_that_stage_and_its_dependents_run_again(demo_run):
    notebook = demo_run / "notebooks" / "04_comparison.ipynb"
    aside = notebook.rename(notebook.with_name(".hidden"))
    try:
        result = snakemake("-n")
    finally:
        aside.rename(notebook)
    assert result.returncode == 0, result.stderr
    assert planned(result) == {"comparison", "claims", "all"}


def test_results_of_another_identity_are_named(demo_run):
    assert list(stale(load_profile("profiles/demo.yaml"))) == []
    other = load_profile("profiles/demo.yaml").model_copy(update={"equivalence_share": 0.2})
    ((stage, _, why),) = stale(other)
    assert stage == "comparison"
    assert why == "made with parameters.equivalence_share = 0.1, but 0.2 is asked for"


def test_an_input_that_is_new_to_a_stage_makes_its_results_stale(demo_run, monkeypatch):
    comparison = STAGES["comparison"]
    with_more = replace(comparison, inputs={**comparison.inputs, "claims": "data/published_claims.csv"})
    monkeypatch.setitem(STAGES, "comparison", with_more)
    ((stage, _, why),) = stale(load_profile("profiles/demo.yaml"))
    assert stage == "comparison"
    assert why.startswith("made with inputs.claims = None, but ")


def test_a_mistyped_key_is_named_with_the_nearest_right_one(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("run: x\nannotation: data/demo/annotations.tsv\n")
    result = start(path)
    assert result.returncode == 1
    assert "typo.yaml, line 2: annotation: is no parameter. Did you mean 'annotations'" in result.stderr


def test_the_graph_can_be_drawn(tmp_path):
    result = snakemake("--rulegraph", "dot")
    assert result.returncode == 0, result.stderr
    assert "digraph" in result.stdout
    for name in STAGES:
        assert name in result.stdout


@pytest.fixture
def real_run(real_data, tmp_path):
    """A profile of the real data, and the directory of its run, which is removed afterwards."""
    profile = yaml.safe_load(REAL_PROFILE) | {"run": f"test-{tmp_path.name}"}
    profile |= {"annotations": str(real_data / "social-chem-101.part.csv")}
    # As much as shows that all nine stages take the real files; what they find is another matter.
    profile |= {"control_layers": 1, "probe_rows": 800, "permutations": 30, "bootstrap_draws": 30, "sae_epochs": 10}
    profile |= {"alignment_epochs": 3, "label_shuffles": 1, "replicates": 1, "sweep_prompts": 2}
    profile |= {"prompt_limit": 10, "max_new_tokens": 16}
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump(profile))
    run = PROJECT / "runs" / profile["run"]
    yield path, run
    shutil.rmtree(run, ignore_errors=True)


def test_the_real_profile_runs_all_nine_stages(real_run):
    path, run = real_run
    result = start(path)
    assert result.returncode == 0, result.stderr[-3000:]
    annotations = pd.read_parquet(run / "vectors" / "annotations.parquet")
    assert len(annotations) == 10_391
    assert (run / "claims" / "manifest.json").exists()
    for name in STAGES:
        (executed,) = [path for path in (run / "notebooks").glob(f"{STAGES[name].notebook}*.ipynb")]
        text = notebook_output(executed)
        assert "rot-agree stood in for action-agree" in text, name


def notebook_output(path: Path) -> str:
    """Everything that a notebook printed or displayed as text."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            parts += [*output.get("text", []), *output.get("data", {}).get("text/plain", [])]
    return "".join(parts)
