"""One lock file, installed the same way by make and by conda; and the two commands exist."""

import re
import subprocess
from importlib import metadata

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.provenance import PROJECT


def requirements(name):
    lines = (PROJECT / name).read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def test_every_line_of_the_lock_is_an_exact_version():
    lock = requirements("requirements.lock")
    assert len(lock) > 100
    for requirement in lock.values():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert requirement.url is None


def test_the_lock_satisfies_what_the_project_asks_for():
    lock = requirements("requirements.lock")
    for name, wanted in requirements("requirements.in").items():
        version = str(lock[name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{name} {version} does not satisfy {wanted}"


def test_conda_installs_the_same_lock_as_make():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    conda = [entry.split("=")[0] for entry in environment["dependencies"] if isinstance(entry, str)]
    assert not set(conda) & set(requirements("requirements.lock")), "a package pinned twice can disagree with itself"
    assert "install --quiet --disable-pip-version-check -r requirements.lock" in (PROJECT / "Makefile").read_text()


def test_this_environment_is_the_lock():
    for name, requirement in requirements("requirements.lock").items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(metadata.version(name)), requirement


def test_nnsight_is_held_below_its_next_minor_version():
    assert str(requirements("requirements.in")["nnsight"].specifier) in ("<0.9,>=0.8.1", ">=0.8.1,<0.9")


def test_git_keeps_lib_and_leaves_out_runs():
    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=PROJECT).returncode == 0

    assert not ignored("lib/runs.py")
    assert not ignored("data/demo/models/moral-small/model.safetensors")
    assert ignored("runs/demo/vectors/annotations.parquet")
    assert ignored("data/raw/social-chem-101.zip")


def test_make_lists_the_two_commands():
    text = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert "make reproduce" in text
    assert "make test" in text
