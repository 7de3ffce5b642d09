"""The plan of a run, against counts made by hand and against what the demo run holds."""

import json
import os
import socket
import subprocess
import sys

import pandas as pd
import pytest

from lib.alignment import arms
from lib.run.files import PROJECT
from lib.run.profile import load_profile
from lib.run.resources import ResourceError
from lib.run.table import STAGES
from workflow import estimates, machine, plan, workload

PAPER = load_profile("profiles/paper.yaml")
DEMO = load_profile("profiles/demo.yaml")


def replace(profile, **changes):
    return profile.model_copy(update=changes)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("a plan must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refused)


RATES = machine.Rates(machine="a machine", product=100e9, forward=50e9, stored=200e6)


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch):
    """A machine without a GPU, of two cores whose rates are known."""
    monkeypatch.setattr(machine, "rates", lambda: RATES)
    monkeypatch.setattr(machine, "gpu", lambda: None)
    monkeypatch.setattr(estimates.os, "cpu_count", lambda: 2)


def test_the_papers_run_has_two_jobs_per_model_and_seven_more():
    planned = list(estimates.jobs(PAPER))
    assert len(planned) == 2 * 23 + 7
    assert [name for name in dict.fromkeys(one.stage for one in planned)] == list(STAGES)


def test_every_model_of_the_paper_is_known():
    assert all(workload.size(source) for source in PAPER.sources.values())


def test_judge_calls_are_counted_as_they_are_asked():
    """Scores of safety and emotion for every answer, and both orders of every comparison with the baseline.

    By the published protocol the same for three arms of two steered, in one order; and each judge's own pairs thrice.
    """
    # Two arms are drawn three times each; each layer is steered alone, and five of them at once.
    steered = (len([arm for arm in PAPER.arms if arm != "baseline"]) + 2 * 2) * 37
    prompts = workload.work(PAPER).prompts
    once = replace(PAPER, sweep_prompts=0, second_judge=None)
    calls = prompts * (2 * (steered + 1) + 2 * steered)
    gold, published = 3 * 63, prompts * (2 * (2 * 37 + 1) + 2 * 37)
    assert estimates.job(once, "judging").judge_calls == calls + gold + published
    assert estimates.job(replace(once, published_arms=[], gold_pairs=1), "judging").judge_calls == calls + 3
    twice = replace(once, second_judge=PAPER.judge, second_judge_prompts=100)
    assert estimates.job(twice, "judging").judge_calls == calls + calls * 100 // prompts + published + 2 * gold
    swept = (len([arm for arm in PAPER.sweep_arms if arm != "baseline"]) + 2) * len(PAPER.sweep_strengths) * 37
    sweep = replace(once, sweep_prompts=50)
    assert estimates.job(sweep, "judging").judge_calls == calls + published + gold + 50 * 2 * swept


def test_large_models_get_as_many_gpus_as_their_weights_need_and_small_ones_none():
    needed = {name: estimates.job(PAPER, "activations", name).gpus for name in PAPER.sources}
    assert needed["qwen3-8b"] == 1
    assert needed["qwen3-235b-a22b"] == 8  # 470 GB and headroom on GPUs of 80 GB
    assert all(job.gpus == 0 for job in estimates.jobs(DEMO))
    on_the_cpu = {"vectors", "diagnosis", "comparison", "judging", "claims"}
    assert not any(job.gpus for job in estimates.jobs(PAPER) if job.stage in on_the_cpu)


def test_a_mixture_of_experts_costs_what_its_active_parameters_cost():
    dense = estimates.job(PAPER, "activations", "qwen3-32b")
    sparse = estimates.job(PAPER, "activations", "qwen3-235b-a22b")
    assert sparse.flops < dense.flops
    assert sparse.memory_bytes > 0


def test_a_killed_job_gets_more_memory_and_time():
    job = estimates.job(PAPER, "activations", "qwen3-8b")
    first, second = job.resources(1), job.resources(2)
    assert second["mem_mb"] == 2 * first["mem_mb"]
    assert second["runtime"] > first["runtime"]
    assert second["gpu"] == first["gpu"] + 1
    assert estimates.job(PAPER, "diagnosis", "qwen3-8b").resources(3)["gpu"] == 0


def test_more_of_a_thing_costs_more():
    longer = replace(PAPER, sae_epochs=2 * PAPER.sae_epochs)
    assert estimates.job(longer, "sae").flops == 2 * estimates.job(PAPER, "sae").flops
    assert plan.table(replace(PAPER, layers=[1])).iloc[-1]["gpu_hours"] < plan.table(PAPER).iloc[-1]["gpu_hours"]


def test_the_whole_is_the_sum_of_the_stages():
    table = plan.table(PAPER)
    for column in ("jobs", "tokens", "flops", "gpu_hours", "disk_gigabytes", "judge_calls", "cost_dollars"):
        assert table[column].iloc[:-1].sum() == pytest.approx(table[column].iloc[-1])


def test_parts_share_the_work_of_their_stage_and_the_whole_costs_what_it_costs_to_open():
    shared = replace(PAPER, parts=4)
    planned = list(estimates.jobs(shared))
    assert len(planned) == len(list(estimates.jobs(PAPER))) + sum(
        estimates.parts(shared, one.stage) for one in estimates.jobs(PAPER) if estimates.parts(shared, one.stage) > 1
    )
    once, several = plan.table(PAPER).iloc[-1], plan.table(shared).iloc[-1]
    for column in ("tokens", "flops", "disk_gigabytes", "judge_calls"):
        assert several[column] == pytest.approx(once[column])
    assert several["gpu_hours"] > once["gpu_hours"]
    whole, part = (estimates.job(shared, "sae", part=which) for which in (False, True))
    assert part.seconds - part.opening == pytest.approx((whole.seconds - whole.opening) / 36)
    assert part.resources()["runtime"] < whole.resources()["runtime"]


def test_the_tuned_arms_of_the_plan_are_those_of_the_alignment():
    assert len(set(arms.FOLDERS) - {"untuned", "random-untuned", "shuffled", *arms.DIRECTIONS}) == estimates.TUNED_ARMS


def test_the_report_shows_its_assumptions_and_its_calibration():
    text = plan.report(PAPER)
    assert "reading_share = 0.35" in text
    assert "calibration: run 'paper'" in text
    assert "unknown" in plan.report(replace(PAPER, judge="someone/unpriced"))


def test_a_machine_without_a_gpu_plans_hours_of_its_own_cpu(monkeypatch):
    on_the_cpu = replace(PAPER, gpu=None)
    assert plan.table(on_the_cpu)["gpu_hours"].sum() == 0
    assert not any(one.gpus for one in estimates.jobs(on_the_cpu))
    one = estimates.job(on_the_cpu, "activations", "qwen3-0.6b")
    cores = 1 + workload.ASSUMED.share_of_further_cores  # of the 16 that the profile asks for, there are two
    assert one.seconds - one.opening == pytest.approx(one.flops / (50e9 * cores), rel=0.1)
    assert "nothing runs on a GPU" in plan.report(on_the_cpu)
    monkeypatch.setattr(machine, "gpu", lambda: "A100-80GB")
    assert estimates.job(on_the_cpu, "activations", "qwen3-8b").gpus == 1
    assert estimates.planned_gpu(PAPER) == "H100"
    assert estimates.planned_gpu(replace(PAPER, device="cpu")) is None


def test_writing_counts_beside_a_gpu_and_after_the_cpu(monkeypatch):
    reading = estimates.job(PAPER, "activations", "qwen3-8b")
    written = 4 * 36 * 4096 * 2 * 203_431
    cores = 1 + 15 * workload.ASSUMED.share_of_further_cores
    monkeypatch.setattr(machine, "rates", lambda: RATES.model_copy(update={"stored": 1e6}))
    slow = estimates.job(PAPER, "activations", "qwen3-8b")
    assert slow.seconds - slow.opening == pytest.approx(1.5 * written / (1e6 * cores))
    assert reading.seconds < slow.seconds / 10
    small = replace(DEMO, gpu=None)
    fast, monkeys = estimates.job(small, "activations", "moral-small"), RATES.model_copy(update={"stored": 1e5})
    monkeypatch.setattr(machine, "rates", lambda: monkeys)
    assert estimates.job(small, "activations", "moral-small").seconds > fast.seconds + 10


def test_only_what_later_stages_read_is_stored():
    """Of 23 models, 22 are diagnosed only: the paper's run needs less than 1.5 TB, of 11.9 TB with all in float32."""
    disk = {one.model: one.disk_bytes for one in estimates.jobs(PAPER) if one.stage == "activations"}
    rows = workload.work(PAPER).diagnosed(PAPER.probe_rows)
    assert 16_147 + PAPER.probe_rows > rows > 16_147
    assert disk["qwen3-8b-base"] / disk["qwen3-8b"] == pytest.approx(rows / 203_431)
    assert plan.table(PAPER)["disk_gigabytes"].iloc[-1] < 1_500
    everything = replace(PAPER, store_rows="all", store_dtype="float32")
    assert plan.table(everything)["disk_gigabytes"].iloc[-1] > 9_000


def test_the_plan_starts_without_torch_where_the_rates_are_known(tmp_path):
    code = (
        "import sys; from workflow import machine; machine.rates = lambda: machine.Rates(machine='m', product=1e9, "
        "forward=1e9, stored=1e6); from workflow import plan; from lib.run.profile import load_profile; "
        "plan.report(load_profile('profiles/paper.yaml')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_the_demos_memory_is_planned_within_a_half(demo_run):
    """Time is not compared: a busy machine is no failure. `make plan` prints both.

    Snakemake looks at a job's memory now and then, so it can miss the peak of a short one, and never sees more than there was.
    """
    measured = plan.took(DEMO)
    if measured.empty:
        pytest.skip("the demo run was not made by Snakemake, which measures")
    planned = measured["planned_mb"] / measured["peak_mb"]
    assert planned.min() > 1 / 1.5
    assert planned.median() < 1.5


def test_an_unknown_gpu_is_named():
    with pytest.raises(ResourceError, match="'H1000' is not in data/accelerators"):
        plan.table(replace(PAPER, gpu="H1000"))


def test_a_measured_run_is_compared_with_its_plan(tmp_path):
    profile = replace(DEMO, run=os.path.relpath(tmp_path, PROJECT / "runs"))
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "01_vectors.tsv").write_text("s\tmax_rss\tcpu_time\n24.0\t500\t9.0\n")
    measured = plan.took(profile)
    assert measured["took"].tolist() == [24.0]
    assert "1 jobs, planned 12 s, took 24 s" in plan.calibration(profile)
    assert "2.00 of the plan" in plan.calibration(profile)
    assert "9 s of CPU time" in plan.calibration(profile)


def test_the_demos_plan_agrees_with_the_demos_results(demo_run):
    work = workload.work(DEMO)
    description = json.loads((demo_run / "activations" / "moral-small" / "store.json").read_text())
    assert work.actions == description["rows"]
    assert work.subset == len(pd.read_parquet(demo_run / "vectors" / "subset.parquet"))
    size = workload.size(DEMO.sources["moral-small"])
    assert (size.layers, size.width) == (description["layers"], description["width"])
    verdicts = estimates.job(DEMO, "judging").judge_calls
    folder = demo_run / "judging" / "moral-small"
    tables = ("absolute", "pairwise", "sweep_pairwise", "published_absolute", "published_pairwise")
    asked = sum(len(pd.read_parquet(folder / f"{name}.parquet")) for name in tables)
    (conditions, steered, _), _ = workload.answers(DEMO, work)
    second = DEMO.second_judge_prompts * 2 * (conditions + steered)
    assert verdicts == asked + second + 2 * 3 * workload.gold_pairs(DEMO)
