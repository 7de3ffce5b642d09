"""What several tests of whole runs share: Snakemake started as a user does it, a small run, and a profile of real data."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock

from lib.run.files import PROJECT, resolve, write_text_atomically
from lib.run.profile import load_profile
from lib.steering.prompts import DIMENSIONS

EXAMPLES = sorted((PROJECT / "profiles" / "examples").glob("*.yaml"))
COLUMNS = ["action", "rot-moral-foundations", "action-moral-judgment", "rot-agree", "rot-bad", "m"]
LITTLE = {
    "layers": [1, 2],
    "bootstrap_draws": 20,
    "permutations": 20,
    "control_layers": 1,
    "probe_rows": 300,
    "sae_epochs": 4,
    "alignment_epochs": 2,
    "arms": ["baseline", "aligned", "random-direction"],
    "max_new_tokens": 8,
    "replicates": 1,
    "sweep_prompts": 2,
    "gold_pairs": 4,
    "second_judge_prompts": 2,
    "judge_retries": 0,
}
"""As little work as every stage still accepts, with something to share between parts."""

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


def snakemake(*arguments, profile="profiles/demo.yaml", **environment):
    """The graph alone, such as a dry run."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--nolock", "--rerun-triggers", "code"]
    return _finished([*command, "--config", f"profile={profile}"], **environment)


def start(profile="profiles/demo.yaml", *arguments):
    """What `make reproduce` runs."""
    return _finished([*START, str(profile), "--cores", "2", *arguments])


def tiny() -> Path:
    """Write the profile of the small run and return its place: what the examples say to change, all changed at once.

    It has a model, annotations (a fifth of the demo's, in a file of fewer columns), prompts and a judge of its own.
    """
    folder = PROJECT / "runs" / ".tiny"
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {}
    for path in EXAMPLES:
        content |= yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = pd.read_csv(resolve(content["annotations"]), sep="\t", dtype=str, keep_default_na=False)
    prompts = [{"dimension": name, "subcomponent": "mine", "prompt": f"{name}?"} for name in DIMENSIONS * 2]
    mine = {"annotations": folder / "mine.csv", "prompts": folder / "mine.jsonl"}
    write_text_atomically(mine["annotations"], rows[COLUMNS][::5].to_csv(index=False))
    write_text_atomically(mine["prompts"], "".join(json.dumps(line) + "\n" for line in prompts))
    content |= LITTLE | {key: str(path) for key, path in mine.items()}
    content |= {
        "run": "tiny",
        "models": [{"name": "mine", "path": "data/demo/models/moral-small"}],
        "sae_model": "mine",
        # The example's judge answers nothing useful: it comes second, so that there is something to judge by.
        "second_judge": content["judge"],
        "judge": "offline",
    }
    write_text_atomically(folder / "tiny.yaml", yaml.safe_dump(content))
    return folder / "tiny.yaml"


def undisturbed(profile: Path) -> Path:
    """Make a run, unless it is there, and return its folder; who asks for it meanwhile waits.

    Tests that make a run in another way compare it with this one.
    """
    run = PROJECT / "runs" / load_profile(profile).run
    run.parent.mkdir(exist_ok=True)
    with FileLock(run.with_name(f".{run.name}.undisturbed")):
        subprocess.run([*START, str(profile), "--cores", "all"], cwd=PROJECT, stdin=subprocess.DEVNULL, check=True)
    return run


def _finished(command, **environment):
    options = {"cwd": PROJECT, "env": os.environ | environment, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, capture_output=True, text=True, **options)
