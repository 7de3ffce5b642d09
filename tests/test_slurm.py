"""A tiny run on a real Slurm of two nodes, with a job killed and a node drained: what `make test-slurm` does."""

import subprocess
import sys

import pytest

from lib import runs


@pytest.mark.pipeline
def test_a_run_on_slurm_survives_a_kill_and_a_drain_with_the_tables_of_a_local_run():
    command = [sys.executable, "tests/slurm/run.py", "tests/faults/tiny.yaml"]
    result = subprocess.run(command, cwd=runs.PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    last = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""
    if last.startswith("skipped:"):
        pytest.skip(last.removeprefix("skipped: "))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
