"""What a profile will take, before it is run: every job with its tokens, arithmetic, hours, memory, GPUs, disk and cost.

    python -m workflow.plan profiles/paper.yaml

Nothing is downloaded and no model is opened, so the graph of 23 models is laid out in seconds. What no table can know is
an assumption (:mod:`workflow.workload`), listed with the result; what this machine does is timed once
(:mod:`workflow.machine`). A run that was measured is compared with its plan.
"""

import math
import sys
from dataclasses import fields

import pandas as pd

from lib.run.files import errors_said, resolve
from lib.run.profile import Profile, load_profile
from workflow import machine
from workflow.estimates import jobs, planned_gpu
from workflow.report import benchmark
from workflow.workload import ASSUMED, size, work

PRICES = {"google/gemini-2.5-flash": (0.30, 2.50), "google/gemini-2.5-flash-lite": (0.10, 0.40)}
"""Judge -> dollars per million tokens read and written (Google's price list, 2025)."""


def table(profile: Profile) -> pd.DataFrame:
    """Return one row per stage and one for the whole: jobs, tokens, FLOPs, GPU hours, CPU hours, disk, judging."""
    rows = pd.DataFrame([{item.name: getattr(one, item.name) for item in fields(one)} for one in jobs(profile)])
    rows["gpu_hours"] = rows["seconds"] / 3600 * rows["gpus"]
    rows["cpu_hours"] = (rows["seconds"] / 3600).where(rows["gpus"] == 0, 0.0)
    rows["disk_gigabytes"] = rows["disk_bytes"] / 1e9
    rows["cost_dollars"] = (rows["judge_calls"] * cost_per_call(profile.judge)).where(rows["judge_calls"] > 0, 0.0)
    sums = ["tokens", "flops", "gpu_hours", "cpu_hours", "disk_gigabytes", "judge_calls", "cost_dollars"]
    stages = rows.groupby("stage", sort=False)
    result = stages.size().rename("jobs").to_frame().join(stages[sums].sum(min_count=1)).join(stages["gpus"].max())
    whole = result.sum(skipna=False).to_frame("all").T
    whole["gpus"] = result["gpus"].max()
    return pd.concat([result, whole]).rename_axis("stage").reset_index()


def cost_per_call(judge: str) -> float:
    """Return dollars for one question to a judge: 0 for the offline rule, NaN for a judge without a known price."""
    if judge == "offline":
        return 0.0
    read, written = PRICES.get(judge, (math.nan, math.nan))
    return (read * ASSUMED.judge_tokens_read + written * ASSUMED.judge_tokens_written) / 1e6


def took(profile: Profile) -> pd.DataFrame:
    """Return planned and measured seconds of every job of a run that has been measured.

    Of a job's wall time and CPU time, which Snakemake measures, the first says little where other work ran beside it.
    """
    rows = []
    for one in (each for each in jobs(profile) if not each.part):
        path = resolve(benchmark(profile, one.stage, one.model))
        if path.exists():
            found = pd.read_csv(path, sep="\t").iloc[-1]
            of_job = one.seconds, found["s"], found["cpu_time"], one.memory_bytes / 1e6, found["max_rss"]
            rows.append((one.stage, one.model, *of_job))
    return pd.DataFrame(rows, columns=["stage", "model", "planned", "took", "cpu", "planned_mb", "peak_mb"])


def calibration(profile: Profile) -> str:
    """Say in one line how a measured run compares with its plan."""
    measured = took(profile)
    if measured.empty:
        return f"calibration: run {profile.run!r} has not been measured here; `make reproduce` measures the demo"
    ratio = measured["took"].sum() / measured["planned"].sum()
    stages = measured.groupby("stage", sort=False)[["planned", "took"]].sum()
    ratios = ", ".join(f"{name} {row['took'] / row['planned']:.1f}" for name, row in stages.iterrows())
    return (
        f"calibration: run {profile.run!r}, {len(measured)} jobs, planned {measured['planned'].sum():.0f} s, took "
        f"{measured['took'].sum():.0f} s ({ratio:.2f} of the plan; by stage {ratios}), {measured['cpu'].sum():.0f} s of CPU "
        f"time; most memory {measured['peak_mb'].max():,.0f} MB, planned {measured['planned_mb'].max():,.0f} MB"
    )


def report(profile: Profile) -> str:
    """Return the plan as text: table, assumptions, calibration."""
    amount, lines = work(profile), table(profile)
    formats = {
        "jobs": "{:.0f}", "tokens": "{:,.1f} M", "flops": "{:.1e}", "gpu_hours": "{:,.1f}", "cpu_hours": "{:,.2f}",
        "disk_gigabytes": "{:,.2f}", "judge_calls": "{:,.0f}", "cost_dollars": "{:,.2f}", "gpus": "{:.0f}",
    }  # fmt: skip
    shown = lines.assign(tokens=lines["tokens"] / 1e6)
    for column, text in formats.items():
        zero = "-" if column in ("tokens", "flops", "gpu_hours", "judge_calls") else text.format(0)
        shown[column] = [
            "unknown" if math.isnan(value) else text.format(value) if value else zero for value in shown[column]
        ]
    shown = shown.rename(columns={"gpus": "gpus_per_job", "disk_gigabytes": "disk_GB", "cost_dollars": "judge_$"})
    unknown = [name for name, source in profile.sources.items() if size(source) is None]
    rates, name = machine.rates(), planned_gpu(profile)
    where = f"GPU hours are hours of one {name}" if name else "nothing runs on a GPU"
    counts = f"{amount.annotations:,} annotations, {amount.actions:,} distinct actions, {amount.prompts:,} prompts"
    return "\n".join(
        [
            f"Plan of run {profile.run!r}: {len(profile.models)} models; {counts} ({amount.source}); "
            f"{where}, CPU hours on {profile.threads} cores of this machine ({rates.machine}; one core: "
            f"{rates.product / 1e9:.0f} GFLOPs/s in a matrix product, {rates.forward / 1e9:.0f} in a forward pass, "
            f"{rates.stored / 1e6:.0f} MB/s into a store).",
            shown.to_string(index=False),
            *([f"Taken as an 8B model, because its size is not known: {', '.join(unknown)}"] if unknown else []),
            "Assumptions:",
            *(f"  {item.name} = {getattr(ASSUMED, item.name):g}" for item in fields(ASSUMED)),
            calibration(profile),
        ]
    )


def main() -> None:
    """Print the plan of a profile and, beside another one, how the demo's plan compared with what it took."""
    profile = load_profile(sys.argv[1])
    print(report(profile))
    if profile.run != "demo":
        print(calibration(load_profile("profiles/demo.yaml")))


if __name__ == "__main__":
    with errors_said():
        main()
