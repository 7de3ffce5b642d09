"""Break things at every boundary of stages, run again, and compare tables with those of an undisturbed run.

    python tests/faults/run.py [--kinds kill,remove] [--stages activations,sae] [--workers 2]

For every stage and kind of fault: the undisturbed run is copied as it was before that stage (or, for faults of what is
already written, after it), the fault happens, the same command is given again, and the stage's tables must be the
undisturbed ones byte for byte. Nothing else may be needed than what the README says: for damaged files `make verify`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import runs_compared  # noqa: E402
from engine import tiny  # noqa: E402

from lib.run.files import CompanionError  # noqa: E402
from lib.run.table import STAGES  # noqa: E402
from workflow.report import job_name  # noqa: E402

TINY = tiny()
PROFILE = yaml.safe_load(TINY.read_text())
REFERENCE = ROOT / "runs" / PROFILE["run"]
MODEL = PROFILE["sae_model"]
WAIT_SECONDS = 600
WITHOUT_ROOTS_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


class NotHere(CompanionError):
    """This machine cannot stage this fault; the message says what it lacks."""


class Case:
    """One stage of one copied run, before or after it has run."""

    def __init__(self, kind: str, stage: str) -> None:
        self.kind, self.stage = kind, stage
        self.name = f"faults-{kind}-{stage}"
        self.run = ROOT / "runs" / self.name
        self.directory = self.run / STAGES[stage].directory(MODEL)
        self.notebook = self.run / "notebooks" / f"{job_name(stage, MODEL)}.ipynb"
        self.profile = ROOT / "runs" / f".{self.name}.yaml"
        self.log = ROOT / "runs" / f".{self.name}.log"
        self.must_stay: tuple[Path, int] | None = None

    def prepare(self, finished: bool) -> None:
        """Copy the undisturbed run, with or without this stage."""
        shutil.copytree(REFERENCE, self.run, dirs_exist_ok=True)
        self.profile.write_text(yaml.safe_dump(PROFILE | {"run": self.name}))
        if not finished:
            shutil.rmtree(self.directory)
            self.notebook.unlink()

    def command(self) -> list[str]:
        """What a user types, and types again after the fault."""
        return ["make", "--no-print-directory", "reproduce", f"PROFILE={self.profile.relative_to(ROOT)}", "CORES=1"]

    def start(self, prefix: tuple[str, ...] = ()) -> psutil.Popen:
        """Start the command in the background."""
        with self.log.open("a") as log:
            return psutil.Popen(
                [*prefix, *self.command()], cwd=ROOT, stdout=log, stderr=log, start_new_session=True, preexec_fn=_hear
            )

    def must_fail(self, saying: str, prefix: tuple[str, ...] = ()) -> None:
        """Give the command where it cannot work; it must stop and say why."""
        if self.start(prefix).wait(WAIT_SECONDS) == 0:
            raise AssertionError(f"the stage finished in spite of: {saying}")
        if saying not in self.log.read_text(errors="replace"):
            raise AssertionError(f"the stage stopped without saying {saying!r}; see {self.log.relative_to(ROOT)}")

    def again(self) -> list[str]:
        """Give the command once more; returns what differs from the undisturbed run."""
        status = self.start().wait(WAIT_SECONDS)
        failed = [f"exit status {status}"] if status else []
        if self.must_stay and self.must_stay[0].stat().st_mtime_ns != self.must_stay[1]:
            failed.append("what was finished was computed again")
        return failed + runs_compared.differences(REFERENCE, self.run)

    def begun(self, process: psutil.Popen) -> None:
        """Wait until the stage has begun to compute."""
        _until(lambda: (self.directory / "plan.json").exists() or not process.is_running(), "the stage to begin")

    def remove(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.profile.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the log of a fault that was survived; that of any other stays to be read."""
        self.log.unlink(missing_ok=True)


def _hear() -> None:
    """Let a command be interrupted even where this suite runs in the background, whose children would not hear of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _until(true: Callable[[], bool], event: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited too long for {event}")
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------- faults


def kill(case: Case) -> None:
    """Everything that works on the stage dies at once, as by the power or the out-of-memory killer."""
    case.prepare(finished=False)
    process = case.start()
    case.begun(process)
    for each in [*process.children(recursive=True), process]:
        if each.is_running():
            each.kill()
    process.wait()


def kill_while_drawing(case: Case) -> None:
    """Everything dies after the stage is finished and before its figures are drawn; nothing is computed again."""
    case.prepare(finished=False)
    process = case.start()
    manifest = case.directory / "manifest.json"
    _until(lambda: manifest.exists() or not process.is_running(), "the stage to finish")
    for each in [*process.children(recursive=True), process]:
        if each.is_running():
            each.kill()
    process.wait()
    case.must_stay = (manifest, manifest.stat().st_mtime_ns)


def interrupt(case: Case) -> None:
    """Ctrl-C: the terminal interrupts the whole process group; nothing may stay behind, and no second pass starts."""
    case.prepare(finished=False)
    process = case.start()
    case.begun(process)
    family = process.children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(WAIT_SECONDS)
    if left := [each.pid for each in family if _lives(each)]:
        raise AssertionError(f"processes stay behind: {left}")
    if "Stopped. The same command goes on from here." not in case.log.read_text(errors="replace"):
        raise AssertionError("the interruption was not said")


def kill_the_command(case: Case) -> None:
    """Only the command itself is killed; what it started must end by itself."""
    case.prepare(finished=False)
    process = case.start()
    case.begun(process)
    family = process.children(recursive=True)
    starter = next(each for each in family if "workflow.start" in each.cmdline())
    starter.kill()
    _until(lambda: not any(_lives(each) for each in family), "jobs to end")
    process.wait(WAIT_SECONDS)


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def cut(case: Case) -> None:
    """The kernel loses its connection: papermill dies, and nothing may stay behind."""
    case.prepare(finished=False)
    process = case.start()
    case.begun(process)
    family = process.children(recursive=True)
    for each in family:
        if each.is_running() and "papermill" in each.cmdline():
            each.kill()
    process.wait(WAIT_SECONDS)
    if left := [each.pid for each in family if _lives(each) and "snakemake" not in " ".join(each.cmdline())]:
        raise AssertionError(f"processes stay behind: {left}")


def fill_disk(case: Case) -> None:
    """No space is left when the stage writes."""
    case.run.mkdir(parents=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(case.run)], capture_output=True
    ).returncode:
        case.run.rmdir()
        raise NotHere("a small file system cannot be mounted; needs root")
    case.prepare(finished=False)
    filler = case.run / "filler"
    free = shutil.disk_usage(case.run).free
    subprocess.run(["fallocate", "-l", str(free), str(filler)], check=True)
    case.must_fail("No space left on device")
    filler.unlink()


def revoke(case: Case) -> None:
    """The run's directory may no longer be written."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        raise NotHere("root may write everywhere, and setpriv, which takes that right away, is not installed")
    case.prepare(finished=False)
    parent = case.directory.parent
    parent.chmod(0o555)
    try:
        case.must_fail("Permission denied", tuple(WITHOUT_ROOTS_RIGHTS) if os.geteuid() == 0 else ())
    finally:
        parent.chmod(0o755)


def corrupt(case: Case) -> None:
    """A byte in the middle of the stage's largest result changes; `make verify` notices."""
    case.prepare(finished=True)
    file = _largest_result(case)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    _verify(case)


def remove(case: Case) -> None:
    """The stage's largest result is gone; `make verify` notices."""
    case.prepare(finished=True)
    _largest_result(case).unlink()
    _verify(case)


def _largest_result(case: Case) -> Path:
    files = [
        path for path in case.directory.rglob("*") if path.is_file() and "/." not in str(path.relative_to(case.run))
    ]
    aside = ("manifest.json", "plan.json")
    return max(
        (path for path in files if path.name not in aside and "logs" not in path.parts), key=lambda p: p.stat().st_size
    )


def _verify(case: Case) -> None:
    command = [sys.executable, "-m", "workflow.verify", str(case.profile)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    if (case.directory / "manifest.json").exists():
        raise AssertionError("the damage was not noticed")


KINDS: dict[str, Callable[[Case], None]] = {
    "kill": kill,
    "draw": kill_while_drawing,
    "interrupt": interrupt,
    "orphan": kill_the_command,
    "cut": cut,
    "full": fill_disk,
    "revoke": revoke,
    "corrupt": corrupt,
    "remove": remove,
}


def survive(kind: str, stage: str) -> str:
    """Stage one fault and repair it; returns ``survived``, ``skipped: why`` or what went wrong."""
    case = Case(kind, stage)
    case.remove()
    case.forget()
    try:
        KINDS[kind](case)
        wrong = case.again()
    except NotHere as missing:
        return f"skipped: {missing}"
    except (AssertionError, RuntimeError, subprocess.CalledProcessError, psutil.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if os.path.ismount(case.run):
            subprocess.run(["umount", "-l", str(case.run)], check=True)
        case.remove()
    if wrong:
        return f"differs: {', '.join(wrong[:3])}"
    case.forget()
    return "survived"


def main() -> int:
    """Run the undisturbed pipeline, then every fault at every boundary, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    subprocess.run(["make", "reproduce", f"PROFILE={TINY.relative_to(ROOT)}"], cwd=ROOT, check=True)
    stages = [stage for stage in STAGES if stage in asked.stages.split(",")]
    cases = [(kind, stage) for kind in asked.kinds.split(",") for stage in stages]
    started = time.monotonic()
    outcomes = []
    with ThreadPoolExecutor(asked.workers) as pool:
        for (kind, stage), outcome in zip(cases, pool.map(lambda case: survive(*case), cases), strict=True):
            outcomes.append(outcome)
            print(f"{kind:8} {stage:12} {outcome}", flush=True)
    tried = [outcome for outcome in outcomes if not outcome.startswith("skipped")]
    survived = tried.count("survived")
    print(
        f"{len(tried)} faults tried, {survived} survived, {len(outcomes) - len(tried)} skipped, "
        f"in {time.monotonic() - started:.0f} s"
    )
    return int(survived < len(tried) or not tried)


if __name__ == "__main__":
    sys.exit(main())
