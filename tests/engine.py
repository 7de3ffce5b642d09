"""What several tests of whole runs share: Snakemake started as a user does it, and a profile of real data."""

import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from lib.run.files import PROJECT
from lib.run.profile import load_profile

TINY = PROJECT / "tests" / "faults" / "tiny.yaml"
START = [sys.executable, "-m", "workflow.start"]

REAL_PROFILE = """
run: real
annotations: ../shared/data/social-chem-101.part.csv
agreement: rot-agree
models:
  - {name: stories260K, path: ../shared/data/stories260K}
sae_model: stories260K
layers: [2]
prompts: ../shared/data/Flames_1k_Chinese.jsonl
prompt_limit: 40
judge: offline
seed: 0
"""
"""A run on the real data beside the checkout, as the README shows it."""


def snakemake(*arguments, profile="profiles/demo.yaml"):
    """The graph alone, such as a dry run."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--nolock", "--rerun-triggers", "code"]
    return _finished([*command, "--config", f"profile={profile}"])


def start(profile="profiles/demo.yaml", *arguments):
    """What `make reproduce` runs."""
    return _finished([*START, str(profile), "--cores", "2", *arguments])


def undisturbed(profile: Path = TINY) -> Path:
    """Make a run, unless it is there, and return its folder; who asks for it meanwhile waits.

    Tests that make a run in another way compare it with this one.
    """
    run = PROJECT / "runs" / load_profile(profile).run
    run.parent.mkdir(exist_ok=True)
    with FileLock(run.with_name(f".{run.name}.undisturbed")):
        subprocess.run([*START, str(profile), "--cores", "all"], cwd=PROJECT, stdin=subprocess.DEVNULL, check=True)
    return run


def _finished(command):
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
