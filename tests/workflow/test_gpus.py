"""Reserving GPUs, with a stand-in for nvidia-smi: no two jobs share one, and a job on the CPU gets none."""

import json
import os
import subprocess
import sys

import pytest

from lib.run.files import PROJECT
from lib.run.resources import ResourceError
from workflow import gpus

SMI = """#!/bin/sh
case "$1" in
  *query-gpu*) printf '0, GPU-a\\n1, GPU-b\\n2, GPU-c\\n';;
  *) cat "$(dirname "$0")/computing";;
esac
"""


@pytest.fixture
def three_gpus(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "computing").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setattr(gpus, "LOCKS", tmp_path / "companion" / "gpus")
    return tmp_path


def test_every_job_gets_gpus_of_its_own(three_gpus):
    with gpus.reserved(1) as first, gpus.reserved(2) as second:
        assert first == "GPU-a"
        assert second == "GPU-b,GPU-c"


def test_a_released_gpu_is_free_again(three_gpus):
    with gpus.reserved(3):
        pass
    with gpus.reserved(3) as again:
        assert again == "GPU-a,GPU-b,GPU-c"


def test_a_gpu_on_which_another_program_computes_is_left_alone(three_gpus):
    (three_gpus / "computing").write_text("GPU-a\n")
    with gpus.reserved(1) as visible:
        assert visible == "GPU-b"


def test_a_job_that_waits_says_for_whom(three_gpus):
    (three_gpus / "computing").write_text("GPU-c\n")
    code = "from workflow import gpus\nwith gpus.reserved(2, poll_seconds=0.05) as names:\n    print(names)"
    with gpus.reserved(1):
        waiting = subprocess.Popen(
            [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        said = waiting.stderr.readline()
    taken, also_said = waiting.communicate(timeout=60)
    holder = f"the job of process {os.getpid()} holds GPU 0"
    assert said == f"waiting for 2 of 3 GPUs: {holder}, another program computes on GPU 2\n"
    assert taken == "GPU-a,GPU-b\n"
    assert also_said == "", "said once, not at every look"


def test_a_job_on_the_cpu_sees_no_gpu(three_gpus):
    with gpus.reserved(0) as visible:
        assert visible == ""


def test_a_cluster_narrows_the_choice(three_gpus, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "2")
    with gpus.reserved(1) as visible:
        assert visible == "GPU-c"


def test_more_gpus_than_there_are_is_an_error(three_gpus):
    with pytest.raises(ResourceError, match="4 GPUs are asked for and this machine has 3"), gpus.reserved(4):
        pass


def test_without_gpus_the_environment_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with gpus.reserved(1) as visible:
        assert visible is None


def test_jobs_of_many_processes_take_turns_on_three_gpus(three_gpus):
    code = "import sys, time; from pathlib import Path; from workflow import gpus\n"
    code += "with gpus.reserved(1) as gpu:\n"
    code += "    taken = Path(sys.argv[1]) / gpu; taken.mkdir(); time.sleep(0.3); taken.rmdir(); print(gpu)"
    command = [sys.executable, "-c", code, str(three_gpus)]
    jobs = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    # A GPU that two jobs hold at once would make `mkdir` fail in the second.
    outputs = [job.communicate(timeout=120)[0].strip() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 5
    assert set(outputs) <= {"GPU-a", "GPU-b", "GPU-c"}


def test_a_killed_job_lets_go_of_its_gpu(three_gpus):
    hold = "import time; print('held', flush=True); time.sleep(60)"
    code = "from workflow import gpus\nwith gpus.reserved(3): exec(" + json.dumps(hold) + ")"
    job = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    job.kill()
    job.wait()
    with gpus.reserved(3) as visible:
        assert visible.count("GPU") == 3


def test_the_locks_are_the_users_alone(three_gpus):
    with gpus.reserved(1):
        assert (gpus.LOCKS.stat().st_mode & 0o777, (gpus.LOCKS / "GPU-a").stat().st_mode & 0o777) == (0o700, 0o600)
