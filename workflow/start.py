"""Start a run, or go on with one: what ``make reproduce`` and ``make slurm`` call.

    python -m workflow.start profiles/demo.yaml [Snakemake's own arguments]

The profile is checked whole, results of another identity are found, then Snakemake runs what is missing. If models fail, the
others are compared without them. One process at a time works on a run: it holds a lock that the operating system releases
however the process ends, so nothing is ever unlocked by hand. Whatever ends the run, the same command goes on from there.
"""

import argparse
import contextlib
import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import psutil
from filelock import FileLock, Timeout

from lib.run.files import CompanionError, errors_said, resolve, write_text_atomically
from lib.run.profile import Profile
from lib.run.readiness import ready
from workflow import report
from workflow.freshness import freshen

SNAKEMAKE = [
    sys.executable, "-m", "snakemake", "--quiet", "host", "rules", "--keep-going", "--keep-incomplete",
    "--rerun-incomplete", "--nolock", "--rerun-triggers", "code",
]  # fmt: skip
"""Snakemake without its own lock, which a killed process leaves behind, and without triggers by date: a job runs when its
notebook is missing or when a job whose results it reads runs. It still runs a job whose input is large and newer than its
notebook, so :func:`workflow.freshness.freshen` leaves none that is."""

GRACE_SECONDS = 5
"""How long jobs have to end by themselves before they are told, and told again."""

DIES_WITH_PARENT = 1
"""Linux' option of ``prctl`` that sets the signal which a process gets when its parent dies."""


class BusyError(CompanionError):
    """Another process works on the same run."""


def start(path: str, arguments: Sequence[str] = ()) -> int:
    """Make what is missing of a run, and say what came out; return the exit status.

    Raises:
        ParameterError: the profile is wrong, or this machine lacks something for it.
        BusyError: another process works on this run.
    """
    profile = ready(path)
    with at_work(profile):
        status = snakemake(*arguments, "--config", f"profile={path}")
        if status and 0 < len(report.diagnosed(profile)) < len(profile.sources):
            # A failed model is left out of the comparison, and the last lines say which and why.
            report.take_away(profile)
            snakemake(*arguments, "--config", f"profile={path}", "partial=true")
        return report.show(profile) or int(status != 0)


@contextlib.contextmanager
def at_work(profile: Profile) -> Iterator[None]:
    """Hold a run, whose notebooks of stale results are taken away first, against any other process.

    Raises:
        BusyError: another process works on this run.
    """
    run = resolve(f"runs/{profile.run}")
    run.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(run / ".lock", blocking=False), run / ".owner"
    try:
        held = lock.acquire()
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise BusyError(f"{who} is at work on runs/{profile.run}. Wait until it ends, or stop it.") from None
    with held:
        write_text_atomically(owner, f"process {psutil.Process().pid}")
        try:
            for line in freshen(profile):
                print(line, flush=True)
            yield
        finally:
            owner.unlink(missing_ok=True)


def snakemake(*arguments: str) -> int:
    """Run Snakemake and return its exit status; nothing it started is left behind after Ctrl-C."""
    process = subprocess.Popen([*SNAKEMAKE, *arguments], preexec_fn=die_with_parent)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with_jobs = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        # After Ctrl-C the terminal has told Snakemake and its jobs as well; after another signal nobody has.
        for tell in (psutil.Process.is_running, psutil.Process.terminate, psutil.Process.kill):
            for each in with_jobs:
                with contextlib.suppress(psutil.NoSuchProcess):
                    tell(each)
            if not psutil.wait_procs(with_jobs, timeout=GRACE_SECONDS)[1]:
                break
        raise


def die_with_parent() -> None:
    """Have a child told to end when its parent dies, however that dies (Linux); for ``preexec_fn``."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    profile, arguments = parser.parse_known_args()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    return start(profile.profile, arguments)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    with errors_said():
        sys.exit(main())
