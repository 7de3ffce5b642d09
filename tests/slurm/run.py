"""Run a profile through a real Slurm, kill one job and drain one node on the way, and compare with a local run.

    python tests/slurm/run.py [PROFILE]          (default: the demo)

Skips, with a message, where Slurm is not installed, the plugin is missing or the machine belongs to a cluster.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "slurm")]

import cluster  # noqa: E402
import runs_compared  # noqa: E402
from engine import START, undisturbed  # noqa: E402

VICTIM = "diagnosis"
"""Rule of the job that is killed while it computes."""


def start(profile: Path, *arguments: str, environment: dict[str, str] | None = None) -> int:
    """Run a profile as `make reproduce` and `make slurm` do, and return the exit status."""
    return subprocess.run([*START, str(profile), *arguments], cwd=ROOT, env=environment).returncode


class Trouble(threading.Thread):
    """Kills the first job that computes a diagnosis and then drains the node on which another job runs."""

    def __init__(self, run: str, environment: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.run_name, self.environment = run, environment
        self.killed, self.drained, self.partitions = "", "", set()
        self.over = threading.Event()

    def run(self) -> None:
        """Watch the queue until told to stop."""
        while not self.over.wait(1):
            jobs = self._queue()
            self.partitions |= {partition for _, partition, _, state, _ in jobs if state == "RUNNING"}
            if not self.killed:
                self._kill(jobs)
            elif not self.drained and (running := [node for _, _, node, state, _ in jobs if state == "RUNNING"]):
                self.drained = running[-1]
                subprocess.run(
                    ["scontrol", "update", f"nodename={self.drained}", "state=drain", "reason=test"],
                    env=self.environment, check=True,
                )  # fmt: skip
                print(f"--- drained node {self.drained}", flush=True)

    def _queue(self) -> list[list[str]]:
        result = subprocess.run(
            ["squeue", "-h", "-o", "%i|%P|%N|%T|%k"], env=self.environment, capture_output=True, text=True
        )
        return [line.split("|") for line in result.stdout.splitlines()]

    def _kill(self, jobs: list[list[str]]) -> None:
        # In the middle: a diagnosis has begun to write its tables. The comment holds the rule and the model.
        for begun in (ROOT / "runs" / self.run_name / "diagnosis").glob("*/*.parquet"):
            model = begun.parent.name
            for job, _, _, state, comment in jobs:
                if state == "RUNNING" and VICTIM in comment and model in comment and not self.killed:
                    subprocess.run(["scancel", "--full", "--signal=KILL", job], env=self.environment, check=True)
                    self.killed = f"job {job} ({comment})"
                    print(f"--- killed {self.killed}", flush=True)


def main() -> int:
    """Run, compare, report."""
    if absent := cluster.missing_programs():
        print(f"skipped: not installed: {', '.join(absent)}. On Debian, as root: apt-get install slurm-wlm munge")
        return 0
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        print("skipped: snakemake-executor-plugin-slurm is not installed")
        return 0
    if os.geteuid():
        print("skipped: the test starts slurmctld and slurmd, which needs root")
        return 0
    if reason := cluster.obstacle():
        print(f"skipped: {reason}")
        return 0
    # Ended from outside, the cluster's own processes and its link must go too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    source = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "profiles" / "demo.yaml")
    content = yaml.safe_load(source.read_text())
    run = f"{content['run']}-slurm"
    shutil.rmtree(ROOT / "runs" / run, ignore_errors=True)  # what an earlier test left would leave nothing to kill
    local = undisturbed(source)
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / "slurm.yaml"
        profile.write_text(yaml.safe_dump(content | {"run": run}))
        folder = Path(scratch) / "cluster"
        try:
            environment = cluster.start(folder)
            trouble = Trouble(run, environment)
            trouble.start()
            started = time.monotonic()
            status = start(
                profile, "--profile", "profiles/slurm", "--jobs", "2", "--slurm-status-command", "squeue",
                "--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5",
                "--slurm-no-account", "--default-resources", "slurm_partition='left,right'", "--latency-wait", "10",
                environment=environment,
            )  # fmt: skip
            trouble.over.set()
            trouble.join()
        finally:
            cluster.stop(folder)
    different = runs_compared.differences(local, ROOT / "runs" / run)
    compared = len(runs_compared.digests(local))
    print(
        f"Slurm: {'finished' if status == 0 else f'FAILED with status {status}'} in {time.monotonic() - started:.0f} s "
        f"on partitions {', '.join(sorted(trouble.partitions))}; killed: {trouble.killed or 'NOTHING'}; drained: "
        f"{trouble.drained or 'NOTHING'}; {compared} result files compared with the local run, {len(different)} differ"
    )
    for name in different[:10]:
        print(f"  differs: {name}")
    return int(bool(status or different or not trouble.killed or not trouble.drained or not compared))


if __name__ == "__main__":
    sys.exit(main())
