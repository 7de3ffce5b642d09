"""Reserving cards, with a stand-in for nvidia-smi: no two jobs share one, and a job of the processor gets none."""

import json
import os
import subprocess
import sys

import pytest

from lib import accelerators, runs

SMI = """#!/bin/sh
case "$1" in
  *query-gpu*) printf '0, GPU-a\\n1, GPU-b\\n2, GPU-c\\n';;
  *) cat "$(dirname "$0")/computing";;
esac
"""


@pytest.fixture
def three_cards(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "computing").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(accelerators.VISIBLE, raising=False)
    monkeypatch.setattr(accelerators, "LOCKS", tmp_path / "companion-cards")
    return tmp_path


def test_every_job_gets_cards_of_its_own(three_cards):
    with accelerators.reserved(1) as first, accelerators.reserved(2) as second:
        assert first == "GPU-a"
        assert second == "GPU-b,GPU-c"


def test_a_released_card_is_free_again(three_cards):
    with accelerators.reserved(3):
        pass
    with accelerators.reserved(3) as again:
        assert again == "GPU-a,GPU-b,GPU-c"


def test_a_card_on_which_another_program_computes_is_left_alone(three_cards):
    (three_cards / "computing").write_text("GPU-a\n")
    with accelerators.reserved(1) as visible:
        assert visible == "GPU-b"


def test_a_job_of_the_processor_sees_no_card(three_cards):
    with accelerators.reserved(0) as visible:
        assert visible == ""


def test_a_cluster_narrows_the_choice(three_cards, monkeypatch):
    monkeypatch.setenv(accelerators.VISIBLE, "2")
    with accelerators.reserved(1) as visible:
        assert visible == "GPU-c"


def test_more_cards_than_there_are_is_an_error(three_cards):
    with pytest.raises(ValueError, match="4 cards are asked for and this machine has 3"), accelerators.reserved(4):
        pass


def test_without_cards_the_environment_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with accelerators.reserved(1) as visible:
        assert visible is None


def test_jobs_of_many_processes_take_turns_on_three_cards(three_cards):
    code = "import sys, time; from pathlib import Path; from lib import accelerators\n"
    code += "with accelerators.reserved(1) as card:\n"
    code += "    taken = Path(sys.argv[1]) / card; taken.mkdir(); time.sleep(0.3); taken.rmdir(); print(card)"
    command = [sys.executable, "-c", code, str(three_cards)]
    jobs = [subprocess.Popen(command, cwd=runs.PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    # A card that two jobs hold at once would make `mkdir` fail in the second.
    outputs = [job.communicate(timeout=120)[0].strip() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 5
    assert set(outputs) <= {"GPU-a", "GPU-b", "GPU-c"}


def test_a_killed_job_lets_go_of_its_card(three_cards):
    hold = "import time; print('held', flush=True); time.sleep(60)"
    code = "from lib import accelerators\nwith accelerators.reserved(3): exec(" + json.dumps(hold) + ")"
    job = subprocess.Popen([sys.executable, "-c", code], cwd=runs.PROJECT, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    job.kill()
    job.wait()
    with accelerators.reserved(3) as visible:
        assert visible.count("GPU") == 3
