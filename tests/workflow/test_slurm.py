"""A tiny run on a real Slurm of two nodes, with a job killed and a node drained: what `make test-slurm` does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from engine import tiny

from lib.run.files import PROJECT
from workflow.start import die_with_parent


@pytest.mark.pipeline
@pytest.mark.slurm
def test_a_run_on_slurm_survives_a_kill_and_a_drain_with_the_tables_of_a_local_run():
    command = [sys.executable, "tests/slurm/run.py", str(tiny())]
    result = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    last = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""
    if last.startswith("skipped:"):
        pytest.skip(last.removeprefix("skipped: "))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that starts the cluster, with a file of ours in the place where every job looks for one."""
    monkeypatch.syspath_prepend(str(PROJECT / "tests" / "slurm"))
    import cluster

    monkeypatch.setattr(cluster, "SYSTEM_WIDE", tmp_path / "etc" / "slurm.conf")
    cluster.SYSTEM_WIDE.parent.mkdir()
    return cluster


def linked(cluster: ModuleType, folder: Path, first_line: str, pids: str) -> None:
    folder.mkdir()
    (folder / "slurm.conf").write_text(f"{first_line}\nSlurmUser=root\n")
    (folder / "pids").write_text(pids)
    cluster.SYSTEM_WIDE.symlink_to(folder / "slurm.conf")


def test_a_free_machine_and_the_link_of_a_removed_folder_are_no_obstacle(cluster, tmp_path):
    assert cluster.obstacle() == ""
    cluster.SYSTEM_WIDE.symlink_to(tmp_path / "gone" / "slurm.conf")
    assert cluster.obstacle() == ""


def test_what_a_killed_test_left_is_no_obstacle(cluster, tmp_path):
    # The number of a process that runs, but is none of Slurm's.
    linked(cluster, tmp_path / "cluster", "ClusterName=companion", f"{os.getpid()}\n999999999")
    assert cluster.obstacle() == ""


def test_a_test_cluster_that_still_runs_is_named_with_the_way_to_end_it(cluster, tmp_path):
    program = tmp_path / "slurmctld"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            linked(cluster, tmp_path / "cluster", "ClusterName=companion", str(process.pid))
            assert "cluster.py stop" in cluster.obstacle()
        finally:
            process.kill()


def test_a_cluster_that_is_not_ours_is_left_alone(cluster, tmp_path):
    linked(cluster, tmp_path / "cluster", "ClusterName=production", "")
    assert "belongs to a cluster" in cluster.obstacle()
    cluster.SYSTEM_WIDE.unlink()
    cluster.SYSTEM_WIDE.write_text("ClusterName=companion\n")
    assert "belongs to a cluster" in cluster.obstacle()
    with pytest.raises(RuntimeError, match="must not disturb"):
        cluster.start(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
