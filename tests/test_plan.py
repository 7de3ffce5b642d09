"""The plan of a run, against counts made by hand and against what the demo run holds."""

import json
import os
import socket
from dataclasses import replace

import pandas as pd
import pytest

from lib import jobs, parts, plan, runs, workload
from lib.parameters import STAGES
from lib.profiles import load_profile
from lib.sae import arms

PAPER = load_profile("profiles/paper.yaml")
DEMO = load_profile("profiles/demo.yaml")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("a plan must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refused)


def test_the_papers_run_has_two_jobs_a_model_and_seven_more():
    found = list(jobs.jobs(PAPER))
    assert len(found) == 2 * 23 + 7
    assert [name for name in dict.fromkeys(one.notebook for one in found)] == list(STAGES)


def test_every_model_of_the_paper_is_known():
    assert all(workload.size(source) for source in PAPER.sources.values())


def test_judge_calls_are_counted_as_they_are_asked():
    """Scores of safety and emotion for every answer, and both orders of every comparison with the baseline."""
    steered = len([arm for arm in PAPER.arms if arm != "baseline"]) * 36
    prompts = workload.work(PAPER).prompts
    once = replace(PAPER, sweep_prompts=0, second_judge=None)
    calls = prompts * (2 * (steered + 1) + 2 * steered)
    assert jobs.job(once, "08_judging").judge_calls == calls
    twice = replace(once, second_judge=PAPER.judge, second_judge_prompts=100)
    assert jobs.job(twice, "08_judging").judge_calls == calls * (1 + 100 / prompts)
    swept = len([arm for arm in PAPER.sweep_arms if arm != "baseline"]) * len(PAPER.sweep_strengths) * 36
    sweep = replace(once, sweep_prompts=50)
    assert jobs.job(sweep, "08_judging").judge_calls == calls + 50 * 2 * swept


def test_large_models_get_as_many_cards_as_their_weights_need_and_small_ones_none():
    needed = {name: jobs.job(PAPER, "02_residual_streams", name).cards for name in PAPER.sources}
    assert needed["qwen3-8b"] == 1
    assert needed["qwen3-235b-a22b"] == 8  # 470 GB and headroom on cards of 80 GB
    assert all(job.cards == 0 for job in jobs.jobs(DEMO))
    processor = {"01_moral_vectors", "03_diagnosis", "04_compare_models", "08_judging", "09_claims"}
    assert not any(job.cards for job in jobs.jobs(PAPER) if job.notebook in processor)


def test_a_mixture_of_experts_costs_what_its_active_parameters_cost():
    dense = jobs.job(PAPER, "02_residual_streams", "qwen3-32b")
    sparse = jobs.job(PAPER, "02_residual_streams", "qwen3-235b-a22b")
    assert sparse.flops < dense.flops
    assert sparse.memory_bytes > 0


def test_a_killed_job_gets_more_memory_and_time():
    job = jobs.job(PAPER, "02_residual_streams", "qwen3-8b")
    first, second = job.resources(1), job.resources(2)
    assert second["mem_mb"] == 2 * first["mem_mb"]
    assert second["runtime"] > first["runtime"]
    assert second["gpu"] == first["gpu"] + 1
    assert jobs.job(PAPER, "03_diagnosis", "qwen3-8b").resources(3)["gpu"] == 0


def test_more_of_a_thing_costs_more():
    longer = replace(PAPER, sae_epochs=2 * PAPER.sae_epochs)
    assert jobs.job(longer, "05_sparse_autoencoders").flops == 2 * jobs.job(PAPER, "05_sparse_autoencoders").flops
    assert plan.table(replace(PAPER, layers=[1])).iloc[-1]["gpu_hours"] < plan.table(PAPER).iloc[-1]["gpu_hours"]


def test_the_whole_is_the_sum_of_the_stages():
    table = plan.table(PAPER)
    for column in ("jobs", "tokens", "flops", "gpu_hours", "disk_gigabytes", "judge_calls", "cost_dollars"):
        assert table[column].iloc[:-1].sum() == pytest.approx(table[column].iloc[-1])


def test_parts_share_the_work_of_their_stage_and_the_join_costs_what_it_costs_to_open():
    shared = replace(PAPER, parts=4)
    found = list(jobs.jobs(shared))
    assert len(found) == len(list(jobs.jobs(PAPER))) + sum(
        parts.count(shared, one.notebook) for one in jobs.jobs(PAPER) if parts.count(shared, one.notebook) > 1
    )
    once, several = plan.table(PAPER).iloc[-1], plan.table(shared).iloc[-1]
    for column in ("tokens", "flops", "disk_gigabytes", "judge_calls"):
        assert several[column] == pytest.approx(once[column])
    assert several["gpu_hours"] > once["gpu_hours"]
    whole, part = (jobs.job(shared, "05_sparse_autoencoders", part=which) for which in (False, True))
    assert part.seconds - part.opening == pytest.approx((whole.seconds - whole.opening) / 36)
    assert part.resources()["runtime"] < whole.resources()["runtime"]


def test_the_tuned_arms_of_the_plan_are_those_of_the_alignment():
    assert len(arms.FOLDERS) == jobs.TUNED_ARMS


def test_the_report_shows_its_assumptions_and_its_calibration():
    text = plan.report(PAPER)
    assert "reading_share = 0.35" in text
    assert "calibration: run 'paper'" in text
    assert "unknown" in plan.report(replace(PAPER, judge="someone/unpriced"))


def test_an_unknown_card_is_named():
    with pytest.raises(ValueError, match="'H1000' is not in data/accelerators"):
        plan.table(replace(PAPER, card="H1000"))


def test_a_measured_run_is_compared_with_its_plan(tmp_path):
    profile = replace(DEMO, run=os.path.relpath(tmp_path, runs.PROJECT / "runs"))
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "01_moral_vectors.tsv").write_text("s\tmax_rss\n24.0\t500\n")
    measured = plan.took(profile)
    assert measured["took"].tolist() == [24.0]
    assert "1 jobs, planned 12 s, took 24 s" in plan.calibration(profile)


def test_the_demos_plan_agrees_with_the_demos_results(demo_run):
    work = workload.work(DEMO)
    description = json.loads((demo_run / "activations" / "moral-small" / "store.json").read_text())
    assert work.actions == description["rows"]
    size = workload.size(DEMO.sources["moral-small"])
    assert (size.layers, size.width) == (description["layers"], description["width"])
    verdicts = jobs.job(DEMO, "08_judging").judge_calls
    folder = demo_run / "judgements" / "moral-small"
    asked = sum(len(pd.read_parquet(folder / f"{name}.parquet")) for name in ("absolute", "pairwise", "sweep_pairwise"))
    second = DEMO.second_judge_prompts * (2 * len(DEMO.arms) + 2 * (len(DEMO.arms) - 1))
    assert verdicts == asked + second
