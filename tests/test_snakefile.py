"""The graph: the paper's run without a network, resources of jobs, and a run that goes on without a failed model."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from lib import claims, failures, runs
from lib.profiles import load_profile

OFFLINE = ["unshare", "--net", "--map-root-user"]


def dry_run(*arguments, profile="profiles/paper.yaml", prefix=()):
    command = [*prefix, sys.executable, "-m", "snakemake", "-n", "--quiet", "host", *arguments]
    return subprocess.run(
        [*command, "--config", f"profile={profile}"], cwd=runs.PROJECT, capture_output=True, text=True
    )


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
    assert counts["residual_streams"] == counts["diagnosis"] == "23"
    assert counts["total"] == "54"


def test_the_slurm_profile_shows_the_same_graph(offline):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    result = dry_run("--profile", "profiles/slurm", prefix=offline)
    assert result.returncode == 0, result.stderr
    assert "total                     54" in result.stdout + result.stderr


def test_cards_are_asked_for_by_models_and_not_by_the_processors_jobs(paper):
    large = [block for block in lines_of(paper, "residual_streams") if "model=qwen3-235b-a22b\n" in block]
    assert "gpu=8" in large[0]
    assert all("gpu=0" in block for rule in ("diagnosis", "judging", "claims") for block in lines_of(paper, rule))


def test_every_job_has_a_log(paper):
    for rule in ("residual_streams", "diagnosis", "steering"):
        assert all("log: runs/paper/logs/" in block for block in lines_of(paper, rule))


def test_parts_are_jobs_of_their_own(tmp_path):
    profile = yaml.safe_load((runs.PROJECT / "profiles" / "paper.yaml").read_text()) | {"parts": 4}
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(profile))
    result = dry_run(profile=tmp_path / "parts.yaml")
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    assert len(lines_of(text, "residual_streams_part")) == 4 * 23
    assert len(lines_of(text, "sparse_autoencoders_part")) == 36
    assert len(lines_of(text, "steering_part")) == 4


# ------------------------------------------------------------------------------- a model that fails


@pytest.fixture
def broken_run():
    """A finished-looking run of two models, one of which failed, and its profile."""
    directory = runs.PROJECT / "runs" / "test-broken"
    shutil.rmtree(directory, ignore_errors=True)
    content = yaml.safe_load((runs.PROJECT / "profiles" / "demo.yaml").read_text()) | {"run": "test-broken"}
    content["models"] = content["models"][:2]
    path = directory / "profile.yaml"
    directory.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content))
    for stage in ("vectors", "activations/moral-small", "diagnosis/moral-small"):
        (directory / stage).mkdir(parents=True)
        (directory / stage / "manifest.json").write_text("{}")
    yield path
    shutil.rmtree(directory)


def failed(error, message, directory):
    notebook = directory / "notebooks" / "02_residual_streams.indifferent-small.ipynb"
    notebook.parent.mkdir(exist_ok=True)
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": "", "outputs": []}
    cell["outputs"] = [{"output_type": "error", "ename": error, "evalue": message, "traceback": []}]
    notebook.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    return failures.record(notebook, 1, "")


def test_the_missing_model_is_named_with_the_reason(broken_run, monkeypatch, capsys):
    failed("ModelError", "model has no tokenizer", broken_run.parent)
    monkeypatch.setattr(sys, "argv", ["claims", str(broken_run)])
    assert claims.main() == 1
    printed = capsys.readouterr().out
    assert "02_residual_streams of indifferent-small: ModelError: model has no tokenizer" in printed
    assert "03_diagnosis of indifferent-small: needs 02_residual_streams, which is missing" in printed
    assert (broken_run.parent / "missing.csv").exists()


def test_the_others_go_on(broken_run):
    assert failures.diagnosed(load_profile(broken_run)) == ["moral-small"]


def test_only_a_want_of_memory_is_tried_again(broken_run):
    assert not failed("ModelError", "no tokenizer", broken_run.parent)["memory"]
    assert failed("OutOfMemoryError", "CUDA out of memory", broken_run.parent)["memory"]
    notebook = broken_run.parent / "notebooks" / "x.ipynb"
    assert failures.record(notebook, 1, "nbclient.exceptions.DeadKernelError: Kernel died")["memory"]
    assert failures.recorded(notebook)["error"] == "DeadKernelError"
    failures.forget(notebook)
    part = failures.record(notebook, 1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried")
    assert (part["error"], part["message"], part["memory"]) == ("OutOfMemoryError", "CUDA out of memory. Tried", True)
    failures.forget(notebook)
    assert failures.recorded(notebook) is None
