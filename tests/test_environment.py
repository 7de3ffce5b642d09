"""One lock for all groups of packages, installed the same way by make and by conda; and the two commands exist."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.run.files import PROJECT

ABOUT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
GROUPS = ABOUT["optional-dependencies"]
OURS = {"lib", "workflow", "docs", "conftest"}


def named(lines):
    parsed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def asked(*groups):
    """What `make reproduce` needs, and the groups; a group that names the project names other groups of it."""
    wanted = named([line for lines in (ABOUT["dependencies"], *map(GROUPS.get, groups)) for line in lines])
    others = wanted.pop(ABOUT["name"], None)
    return wanted | (asked(*others.extras) if others else {})


LOCK = named((PROJECT / "requirements.lock").read_text().splitlines())


def test_every_line_of_the_lock_is_an_exact_version():
    assert len(LOCK) > 100
    for requirement in LOCK.values():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert requirement.url is None


def test_the_lock_satisfies_what_the_project_asks_for():
    for name, wanted in asked(*GROUPS).items():
        version = str(LOCK[name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{name} {version} does not satisfy {wanted}"


@pytest.mark.parametrize(
    ("folders", "groups"), [(("lib", "workflow"), ()), (("docs",), ("book",)), (("tests", "benchmarks"), ("test",))]
)
def test_a_group_names_what_its_code_imports(folders, groups):
    imported = set()
    for file in [file for folder in folders for file in (PROJECT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            imported |= {name.split(".")[0] for name in names}
    distributions = metadata.packages_distributions()
    outside = {name for name in imported - sys.stdlib_module_names - OURS if name in distributions}
    assert outside
    unnamed = {
        name for name in outside if not {canonicalize_name(d) for d in distributions[name]} & asked(*groups).keys()
    }
    assert not unnamed, "imported, and in no group of pyproject.toml that is installed for it"


def test_conda_installs_the_same_versions_as_make():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c requirements.lock", "-e .[lab,book]"]
    conda = [entry.split("=")[0] for entry in environment["dependencies"] if isinstance(entry, str)]
    assert not set(conda) & LOCK.keys(), "a package pinned twice can disagree with itself"


def test_a_dev_container_makes_the_environment_of_lab_with_torch_of_the_lock():
    container = json.loads((PROJECT / ".devcontainer" / "devcontainer.json").read_text())
    version, last = re.fullmatch(r".*torch==(\S+) .* && make (\S+)", container["postCreateCommand"]).groups()
    assert f"=={version}" == str(LOCK["torch"].specifier)
    # A target that make knows: asked to be made anew, it installs the group of `make lab`.
    planned = subprocess.run(["make", "-nB", last], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert INSTALLS.findall(planned) == ["", "lab"]


INSTALLS = re.compile(r'pip install .*-c requirements\.lock -e "?\.(?:\[(\w+)\])?"?$', re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "groups"),
    [
        ("setup", [""]),
        ("reproduce", [""]),
        ("plan", [""]),
        ("lab", ["", "lab"]),
        ("book", ["", "book"]),
        ("slurm", ["", "cluster"]),
        ("test", ["", "test"]),
        ("test-fast", ["", "test"]),
    ],
)
def test_a_target_installs_its_group_and_no_other(tmp_path, target, groups):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(PROJECT / name, tmp_path)

    def installed(*arguments):
        command = ["make", "-n", target, *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return INSTALLS.findall(result.stdout)

    assert installed() == groups
    assert installed("ENV=conda") == [], "an environment of one's own is left as it is"


def test_this_environment_is_the_lock():
    installed = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    assert asked(*GROUPS).keys() <= installed.keys()
    for name, requirement in LOCK.items():
        assert name not in installed or requirement.specifier.contains(installed[name]), requirement


def test_nnsight_is_held_below_its_next_minor_version():
    assert str(asked()["nnsight"].specifier) in ("<0.9,>=0.8.1", ">=0.8.1,<0.9")


def test_git_keeps_lib_and_leaves_out_runs():
    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=PROJECT).returncode == 0

    assert not ignored("lib/run/stage.py")
    assert not ignored("data/demo/models/moral-small/model.safetensors")
    assert ignored("runs/demo/vectors/annotations.parquet")
    assert ignored("data/raw/social-chem-101.zip")


def test_make_lists_the_two_commands():
    text = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert "make reproduce" in text
    assert "make test" in text
