"""The graph: the paper's run without a network, resources of jobs, and a run that goes on without a failed model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import psutil
import pytest
import yaml

from lib.run.files import PROJECT, errors_said, sha256_of_file
from lib.run.profile import load_profile
from lib.run.provenance import MismatchError, identifying_parameters, sha256_of
from lib.run.stage import open_stage
from lib.run.table import STAGES
from lib.run.validation import build
from lib.vectors import social_chemistry
from workflow import findings, freshness, report, start, verify

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
    identity = {"parameters": made_with, "facts": {}, "inputs": {}}
    path.write_text(json.dumps({"identity": identity, "outputs": {}, "notices": []}))
    notebook = PROJECT / report.executed(profile, name, model)
    notebook.parent.mkdir(exist_ok=True)
    notebook.touch()


@pytest.fixture
def broken_run():
    """A finished-looking run of two models, one of which failed, and its profile."""
    directory = PROJECT / "runs" / "test-broken"
    shutil.rmtree(directory, ignore_errors=True)
    content = yaml.safe_load((PROJECT / "profiles" / "demo.yaml").read_text()) | {"run": "test-broken"}
    content |= {"models": content["models"][:2], "untrained_twin": None}
    path = directory / "profile.yaml"
    directory.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content))
    for name in ("vectors", "activations", "diagnosis"):
        finish(load_profile(path), name, "moral-small")
    yield path
    shutil.rmtree(directory)


@pytest.fixture
def whole_run(broken_run):
    """The same run with all that was missing, and its profile."""
    profile = load_profile(broken_run)
    for stage in STAGES:
        for model in report.models_of(profile, stage):
            finish(profile, stage, model)
    assert len(report.missing(profile)) == 0
    return broken_run


def fails_again(profile):
    """What a run leaves where the first stage of a model is made again and fails: later results, made from what was there."""
    (PROJECT / report.manifest(profile, "activations", "indifferent-small")).unlink()
    (PROJECT / report.executed(profile, "activations", "indifferent-small")).unlink()


def notebook(profile, stage, model=None):
    return PROJECT / report.executed(profile, stage, model)


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


def test_what_was_made_from_results_that_are_gone_is_missing(whole_run):
    profile = load_profile(whole_run)
    fails_again(profile)
    assert report.diagnosed(profile) == ["moral-small"]
    reasons = report.missing(profile).set_index(["stage", "model"])["reason"]
    assert list(reasons.index) == [
        ("activations", "indifferent-small"),
        ("diagnosis", "indifferent-small"),
        ("comparison", ""),
        ("claims", ""),
    ]
    assert reasons["diagnosis", "indifferent-small"] == "needs activations, which is missing"
    assert reasons["comparison", ""] == "needs diagnosis of indifferent-small, which is missing"


def test_what_was_made_without_the_failed_model_is_current(whole_run):
    profile = load_profile(whole_run)
    fails_again(profile)
    for stage in ("comparison", "claims"):
        finish(profile, stage, models=["moral-small"])
        assert report.current(profile, stage)


def test_a_diagnosis_without_figures_does_not_stop_the_comparison_of_the_others(whole_run):
    profile = load_profile(whole_run)
    notebook(profile, "diagnosis", "indifferent-small").unlink()
    assert report.diagnosed(profile) == ["moral-small"]


def test_after_a_failure_the_others_are_compared_anew_and_nothing_old_is_shown(whole_run, monkeypatch, capsys):
    profile, calls = load_profile(whole_run), []

    def run(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 1:
            fails_again(profile)
        kept = [
            stage for stage in ("diagnosis", "comparison", "claims", "judging") if notebook(profile, stage).exists()
        ]
        assert kept == (
            ["diagnosis", "judging"] if len(calls) == 2 else ["diagnosis", "comparison", "claims", "judging"]
        )
        return 1

    monkeypatch.setattr(start, "freshen", lambda profile: [])
    monkeypatch.setattr(start, "snakemake", run)
    assert start.start(str(whole_run)) == 1
    assert calls == [f"profile={whole_run}", "partial=true"]
    printed = capsys.readouterr().out
    assert "4 results are missing" in printed
    assert "claims.csv" not in printed


def test_a_run_that_is_interrupted_is_ended_with_its_jobs(monkeypatch):
    monkeypatch.setattr(start, "SNAKEMAKE", [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(start, "GRACE_SECONDS", 0.1)
    others = psutil.Process().children()  # of tests before this one
    # SIGINT does not reach the workers of xdist, nor a command in the background.
    before = signal.signal(signal.SIGTERM, start._interrupt)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with pytest.raises(SystemExit) as ended, errors_said():
            start.snakemake()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 130
    assert [child for child in psutil.Process().children() if child not in others] == []


def test_no_notebook_is_older_than_what_it_was_made_from(whole_run, monkeypatch, tmp_path):
    profile = load_profile(whole_run)
    monkeypatch.setattr(freshness, "stale", lambda profile: [])
    notebooks = [notebook(profile, stage) for stage in STAGES]
    measured = notebooks[0].parent.parent / "benchmarks" / f"{notebooks[0].stem}.tsv"
    measured.parent.mkdir()
    measured.touch()
    for age, path in enumerate((*notebooks, measured)):
        os.utime(path, (1_000 - age, 1_000 - age))
    (tmp_path / "input").touch()
    assert freshness.freshen(profile) == []
    dates = [path.stat().st_mtime_ns for path in (tmp_path / "input", *notebooks)]
    assert dates == sorted(dates)
    assert measured.stat().st_mtime_ns >= dates[0], "Snakemake takes the oldest of what a job wrote"


def test_a_damaged_manifest_is_said_and_repaired_without_losing_what_was_paid_for(whole_run, monkeypatch):
    profile = load_profile(whole_run)
    directory = (PROJECT / report.manifest(profile, "judging")).parent
    (directory / "logs").mkdir()
    (directory / "logs" / "reply").write_text("paid")
    (directory / "plan.json").write_text("{}")
    (directory / "manifest.json").write_text("")
    monkeypatch.setattr(freshness, "difference", lambda recorded, asked: None)
    with pytest.raises(MismatchError, match=r"judging/moral-small/manifest\.json is damaged .* `make verify PROFILE="):
        freshness.freshen(profile)
    monkeypatch.setattr(sys, "argv", ["verify", str(whole_run)])
    assert verify.main() == 0
    assert [path.name for path in directory.iterdir()] == ["logs"]
    freshness.freshen(profile)
    stage = open_stage(build(STAGES["judging"].parameters, profile.stage_parameters("judging"), "the test"))
    assert not stage.complete
    assert (directory / "logs" / "reply").read_text() == "paid"


def test_replaced_weights_of_a_judge_on_this_machine_are_noticed(broken_run, tmp_path):
    profile = load_profile(broken_run)
    weights = tmp_path / "judge.gguf"
    scorer = tmp_path / "scorer"
    local = profile.model_copy(update={"judge": f"hf/{weights}", "flames_scorer": str(scorer)})

    def inputs(asked):
        known = {"inputs": dict.fromkeys(("judge", "flames_scorer"), "of the old weights"), "facts": {}}
        return freshness._asked(asked, "judging", model="moral-small", recorded=known, facts={})["inputs"]

    assert inputs(local)["judge"] == "of the old weights", "what is not here cannot be compared"
    weights.write_bytes(b"new")
    assert inputs(local)["judge"] == sha256_of_file(weights)
    scorer.mkdir()
    assert inputs(local)["flames_scorer"] == sha256_of(scorer)


def test_annotations_in_a_zip_are_known_by_the_table_that_stage_01_reads(tmp_path, monkeypatch):
    """Else the hash of the zip would stand against that of the table, and the stage would run every time."""
    monkeypatch.setattr(social_chemistry, "locate", lambda source, accept: tmp_path / "table.tsv")
    values = {"annotations": "data/raw/social-chem-101.ZIP", "accept_unverified": False}
    assert freshness._unpacked(values) == {"annotations": tmp_path / "table.tsv"}
    assert freshness._unpacked(values | {"annotations": "data/raw/mine.csv"}) == {}


def test_a_check_of_the_findings_holds_its_run_and_takes_away_what_is_stale(whole_run, monkeypatch):
    profile = load_profile(whole_run)
    again = profile.model_copy(update={"run": "test-broken-check"})
    directory = PROJECT / "runs" / again.run
    finish(again, "diagnosis", "moral-small")
    stale = [("diagnosis", "moral-small", "made with other code")]
    monkeypatch.setattr(freshness, "stale", lambda profile: stale if profile.run == again.run else [])
    seen = []
    monkeypatch.setattr(
        findings,
        "snakemake",
        lambda *_: seen.append(((directory / ".owner").exists(), notebook(again, "diagnosis").exists())) or 1,
    )
    try:
        with pytest.raises(findings.FindingsError, match="did not end"):
            findings.check(profile)
    finally:
        shutil.rmtree(directory)
    assert seen == [(True, False)]


def test_half_a_notebook_is_a_failure_as_any_other(broken_run):
    job = broken_run.parent / "notebooks" / "07_steering.moral-small.ipynb"
    half = broken_run.parent / "attempts" / f"{job.stem}.1.ipynb"
    half.parent.mkdir()
    for content in (b'{"cells": [ {"cell_ty', b'{"cells": "\xe4\xb8', b"{}"):
        half.write_bytes(content)
        assert report.record(job, half, -9, "")["message"] == "exit status -9"
    assert report.recorded(job)["memory"]


def test_attempts_are_those_of_one_model_alone(broken_run):
    folder = broken_run.parent / "attempts"
    folder.mkdir()
    for name in ("llama-3.1", "llama-3.1.1", "llama-3.2-of-4.1", "llama-3.1.2-of-4.1", "llama-3-8b.1"):
        (folder / f"02_activations.{name}.log").touch()
    found = report.attempts(broken_run.parent / "notebooks" / "02_activations.llama-3.ipynb")
    assert {path.name for path in found} == {"02_activations.llama-3.1.log", "02_activations.llama-3.2-of-4.1.log"}
