"""What a profile will take, before it is run: jobs, tokens, arithmetic, hours, disk, judge calls and cost.

    python -m lib.plan profiles/paper.yaml

Nothing is downloaded and no model is opened. What no table can know is an assumption, listed with the result. The same
numbers are the resources that Snakemake asks for (:mod:`lib.jobs`).
"""

import math
import sys
from dataclasses import fields

import pandas as pd

from lib import runs
from lib.jobs import job_name, jobs
from lib.profiles import Profile, load_profile
from lib.workload import ASSUMED, size, work

PRICES = {"google/gemini-2.5-flash": (0.30, 2.50), "google/gemini-2.5-flash-lite": (0.10, 0.40)}
"""Judge -> dollars for a million tokens read and written (Google's price list, 2025)."""


def table(profile: Profile) -> pd.DataFrame:
    """Return one row a stage and one for the whole: jobs, tokens, FLOPs, card hours, processor hours, disk, judging."""
    rows = pd.DataFrame([{item.name: getattr(one, item.name) for item in fields(one)} for one in jobs(profile)])
    rows["gpu_hours"] = rows["seconds"] / 3600 * rows["cards"]
    rows["cpu_hours"] = (rows["seconds"] / 3600).where(rows["cards"] == 0, 0.0)
    rows["disk_gigabytes"] = rows["disk_bytes"] / 1e9
    rows["cost_dollars"] = (rows["judge_calls"] * cost_of_a_call(profile.judge)).where(rows["judge_calls"] > 0, 0.0)
    sums = ["tokens", "flops", "gpu_hours", "cpu_hours", "disk_gigabytes", "judge_calls", "cost_dollars"]
    stages = rows.groupby("notebook", sort=False)
    result = stages.size().rename("jobs").to_frame().join(stages[sums].sum(min_count=1)).join(stages["cards"].max())
    whole = result.sum(skipna=False).to_frame("all").T
    whole["cards"] = result["cards"].max()
    return pd.concat([result, whole]).rename_axis("stage").reset_index()


def cost_of_a_call(judge: str) -> float:
    """Return dollars for one question to a judge: 0 for the offline rule, NaN for a judge without a known price."""
    if judge == "offline":
        return 0.0
    read, written = PRICES.get(judge, (math.nan, math.nan))
    return (read * ASSUMED.judge_tokens_read + written * ASSUMED.judge_tokens_written) / 1e6


def took(profile: Profile) -> pd.DataFrame:
    """Return planned and measured seconds of every job of a run that has been measured.

    Snakemake writes the wall time of a job into ``runs/<run>/benchmarks``.
    """
    rows = []
    for one in (each for each in jobs(profile) if not each.part):
        path = runs.resolve(f"runs/{profile.run}/benchmarks/{job_name(one.notebook, one.model)}.tsv")
        if path.exists():
            measured = pd.read_csv(path, sep="\t").iloc[-1]
            rows.append(
                (one.notebook, one.model, one.seconds, measured["s"], one.memory_bytes / 1e6, measured["max_rss"])
            )
    return pd.DataFrame(rows, columns=["stage", "model", "planned", "took", "planned_mb", "peak_mb"])


def calibration(profile: Profile) -> str:
    """Say in one line how a measured run compares with its plan."""
    measured = took(profile)
    if measured.empty:
        return f"calibration: run {profile.run!r} has not been measured here; `make reproduce` measures the demo"
    ratio = measured["took"].sum() / measured["planned"].sum()
    stages = measured.groupby("stage")[["planned", "took"]].sum()
    parts = ", ".join(f"{name[:2]} {row['took'] / row['planned']:.1f}" for name, row in stages.iterrows())
    return (
        f"calibration: run {profile.run!r}, {len(measured)} jobs, planned {measured['planned'].sum():.0f} s, took "
        f"{measured['took'].sum():.0f} s ({ratio:.2f} of the plan; by stage {parts}); most memory "
        f"{measured['peak_mb'].max():,.0f} MB, planned {measured['planned_mb'].max():,.0f} MB"
    )


def report(profile: Profile) -> str:
    """Return the plan as text: table, assumptions, calibration."""
    amount, lines = work(profile), table(profile)
    unknown = [name for name, source in profile.sources.items() if size(source) is None]
    shown = lines.assign(
        jobs=lines["jobs"].map("{:.0f}".format),
        cards=lines["cards"].map("{:.0f}".format),
        tokens=lines["tokens"].map(lambda value: f"{value / 1e6:,.1f} M" if value else "-"),
        flops=lines["flops"].map(lambda value: f"{value:.1e}" if value else "-"),
        gpu_hours=lines["gpu_hours"].map(lambda value: f"{value:,.1f}" if value else "-"),
        cpu_hours=lines["cpu_hours"].map("{:,.2f}".format),
        disk_gigabytes=lines["disk_gigabytes"].map("{:,.2f}".format),
        judge_calls=lines["judge_calls"].map(lambda value: f"{value:,.0f}" if value else "-"),
        cost_dollars=lines["cost_dollars"].map(lambda value: "unknown" if math.isnan(value) else f"{value:,.2f}"),
    ).rename(columns={"cards": "cards_a_job", "disk_gigabytes": "disk_GB", "cost_dollars": "judge_$"})
    assumed = "\n".join(f"  {item.name} = {getattr(ASSUMED, item.name):g}" for item in fields(ASSUMED))
    counts = f"{amount.annotations:,} annotations, {amount.actions:,} distinct actions, {amount.prompts:,} prompts"
    return "\n".join(
        [
            f"Plan of run {profile.run!r}: {len(profile.models)} models; {counts} ({amount.source}); "
            f"GPU hours are hours of one {profile.card}, processor hours on {profile.threads} cores.",
            shown.to_string(index=False),
            *(
                [f"Taken as an 8B model, because the registry does not know it: {', '.join(unknown)}"]
                if unknown
                else []
            ),
            f"Assumptions:\n{assumed}",
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
    main()
