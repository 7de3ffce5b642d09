"""The graph: the paper's run without a network, resources of jobs, and a run that goes on without a failed model."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from lib.run.files import PROJECT
from lib.run.profile import load_profile
from lib.run.provenance import identifying_parameters
from lib.run.table import STAGES
from lib.run.validation import build
from workflow import report

OFFLINE = ["unshare", "--net", "--map-root-user"]


def dry_run(*arguments, profile="profiles/paper.yaml", prefix=(), config=()):
    command = [*prefix, sys.executable, "-m", "snakemake", "-n", "--quiet", "host", *arguments]
    command += ["--config", f"profile={profile}", *config]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def lines_of(text, rule):
    """The lines that describe each job of a rule."""
    blocks = [block for block in text.split(f"\nrule {rule}:\n")[1:]]
    return [block.split("\n[")[0] for block in blocks]


@pytest.fixture(scope="module")
def offline():
    """What goes before a command to run it without a network; nothing where the kernel does not allow that."""
    return OFFLINE if subprocess.run([*OFFLINE, "true"], capture_output=True).returncode == 0 else ()


@pytest.fixture(scope="module")
def paper(offline):
    result = dry_run(prefix=offline)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_the_papers_whole_graph_is_shown_without_a_network(paper):
    counts = dict(line.split() for line in paper.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit())
    assert counts["activations"] == counts["diagnosis"] == "23"
    assert counts["total"] == "54"


def test_the_slurm_profile_shows_the_same_graph(offline):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    result = dry_run("--profile", "profiles/slurm", prefix=offline)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^total +54$", result.stdout + result.stderr, re.MULTILINE)


def test_gpus_are_asked_for_by_models_and_not_by_the_cpus_jobs(paper):
    large = [block for block in lines_of(paper, "activations") if "model=qwen3-235b-a22b\n" in block]
    assert "gpu=8" in large[0]
    assert all("gpu=0" in block for rule in ("diagnosis", "judging", "claims") for block in lines_of(paper, rule))


def test_parts_are_jobs_of_their_own(tmp_path):
    profile = yaml.safe_load((PROJECT / "profiles" / "paper.yaml").read_text()) | {"parts": 4}
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(profile))
    result = dry_run(profile=tmp_path / "parts.yaml")
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    assert len(lines_of(text, "activations_part")) == 4 * 23
    assert len(lines_of(text, "sae_part")) == 36
    assert len(lines_of(text, "alignment_part")) == 36
    parts = lines_of(text, "steering_part")
    assert len(parts) == 4
    shared = {f"runs/paper/parts/07_steering.qwen3-8b.{number}-of-4.ipynb" for number in range(1, 5)}
    assert {block.split("output: ")[1].split("\n")[0] for block in parts} == shared
    (whole,) = lines_of(text, "steering")
    assert all(part in whole.split("output: ")[0] for part in shared)


def test_every_stage_is_a_rule_that_reads_what_the_table_says(paper):
    for name, stage in STAGES.items():
        for block in lines_of(paper, name):
            read = block.split("output: ")[0]
            assert {other.name for other in STAGES.values() if f"/{other.notebook}." in read} == set(stage.needs)
            assert f"runs/paper/notebooks/{stage.notebook}" in block.split("output: ")[1]


# ------------------------------------------------------------------------------- a model that fails


def finish(profile, name, model=None, **changes):
    """Write the manifest of a stage as far as a graph reads it."""
    values = profile.stage_parameters(name, model) | changes
    made_with = identifying_parameters(build(STAGES[name].parameters, values, "the test"))
    path = PROJECT / report.manifest(profile, name, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"identity": {"parameters": made_with}}))
    notebook = PROJECT / report.executed(profile, name, model)
    notebook.parent.mkdir(exist_ok=True)
    notebook.touch()


@pytest.fixture
def broken_run():
    """A finished-looking run of two models, one of which failed, and its profile."""
    directory = PROJECT / "runs" / "test-broken"
    shutil.rmtree(directory, ignore_errors=True)
    content = yaml.safe_load((PROJECT / "profiles" / "demo.yaml").read_text()) | {"run": "test-broken"}
    content["models"] = content["models"][:2]
    path = directory / "profile.yaml"
    directory.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content))
    for name in ("vectors", "activations", "diagnosis"):
        finish(load_profile(path), name, "moral-small")
    yield path
    shutil.rmtree(directory)


def failed(error, message, directory):
    job = directory / "notebooks" / "02_activations.indifferent-small.ipynb"
    notebook = directory / "attempts" / f"{job.stem}.1.ipynb"
    notebook.parent.mkdir(exist_ok=True)
    notebook.with_suffix(".log").write_text("it failed")
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": "", "outputs": []}
    cell["outputs"] = [{"output_type": "error", "ename": error, "evalue": message, "traceback": []}]
    notebook.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    return report.record(job, notebook, 1, "")


def test_the_missing_model_is_named_with_the_reason(broken_run, monkeypatch, capsys):
    failed("ModelError", "model has no tokenizer", broken_run.parent)
    monkeypatch.setattr(sys, "argv", ["report", str(broken_run)])
    assert report.main() == 1
    printed = capsys.readouterr().out
    line = "activations of indifferent-small: ModelError: model has no tokenizer (runs/test-broken/attempts/"
    assert f"{line}02_activations.indifferent-small.1.log)" in printed
    assert "diagnosis of indifferent-small: needs activations, which is missing" in printed
    assert (broken_run.parent / "missing.csv").exists()


def test_the_failure_of_a_part_is_the_reason(broken_run):
    part = broken_run.parent / "parts" / "05_sae.moral-small.2-of-4.ipynb"
    report.record(part, part, 1, "x.SAEError: no rows\n")
    gaps = report.missing(load_profile(broken_run)).set_index("stage")
    assert gaps.loc["sae", "reason"] == "SAEError: no rows"


def test_the_others_go_on(broken_run):
    profile = load_profile(broken_run)
    assert report.diagnosed(profile) == ["moral-small"]
    assert report.reachable(profile, ["moral-small"]) == ["runs/test-broken/notebooks/04_comparison.ipynb"]
    assert report.reachable(profile, []) == []
    result = dry_run(profile=broken_run, config=["partial=true"])
    assert lines_of(result.stdout + result.stderr, "claims") == []
    (comparison,) = lines_of(result.stdout + result.stderr, "comparison")
    assert "03_diagnosis.moral-small.ipynb" in comparison
    assert "indifferent-small" not in comparison.split("output: ")[0]


def test_only_a_want_of_memory_is_tried_again(broken_run):
    assert not failed("ModelError", "no tokenizer", broken_run.parent)["memory"]
    assert failed("OutOfMemoryError", "CUDA out of memory", broken_run.parent)["memory"]
    notebook = broken_run.parent / "notebooks" / "x.ipynb"
    assert report.record(notebook, notebook, 1, "nbclient.exceptions.DeadKernelError: Kernel died")["memory"]
    assert report.recorded(notebook)["error"] == "DeadKernelError"
    report.forget(notebook)
    part = report.record(notebook, notebook, 1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried")
    assert (part["error"], part["message"], part["memory"]) == ("OutOfMemoryError", "CUDA out of memory. Tried", True)
    report.forget(notebook)
    assert report.recorded(notebook) is None
