"""What CONVENTIONS.md and the README say of the tree is so: paths exist, and names stand in the files named."""

import re
from importlib import import_module

import pytest

from lib.run.files import PROJECT
from lib.run.table import STAGES

CONVENTIONS = (PROJECT / "CONVENTIONS.md").read_text(encoding="utf-8")
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PATH = r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|py))`"


def layout():
    """Lines of the README's Layout: (path, what is said of it)."""
    section = README[README.index("## Layout") : README.index("## Licence")]
    block = re.search(r"```text\n(.*?)```", section, re.DOTALL)[1]
    return [line.split(maxsplit=1) for line in block.splitlines()]


@pytest.mark.parametrize("path", sorted(set(re.findall(PATH, CONVENTIONS))))
def test_every_path_in_the_conventions_exists(path):
    assert (PROJECT / path).exists() or list((PROJECT / "lib").glob(f"*/{path}"))


def test_names_stand_in_the_files_that_the_conventions_name():
    named = re.findall(PATH + r" \(([^)]*)\)", CONVENTIONS)
    assert len(named) > 8
    for path, names in named:
        text = (PROJECT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", text), f"{name} is not in {path}"


def test_the_layout_fits_the_tree_in_ten_lines():
    assert len(layout()) <= 10
    for path, said in layout():
        assert (PROJECT / path).is_dir(), path
        for name in re.findall(r"[\w-]+\.(?:py|ipynb|csv)|Snakefile|golden/", said):
            assert list((PROJECT / path).rglob(name)), f"{name} is not in {path}"


def test_the_layout_leaves_no_directory_of_the_project_out():
    tracked = {path.name for path in PROJECT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    tracked -= {"runs", "build", "shared"} | {name for name in tracked if name.endswith(".egg-info")}
    assert tracked == {path.split("/")[0] for path, _ in layout()}


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_the_readme_names_every_stage_as_the_table_of_stages_does(stage):
    row = next(line for line in README.splitlines() if line.startswith(f"| [{stage.notebook}]"))
    assert f"(notebooks/{stage.notebook}.ipynb)" in row
    assert f"`{stage.directory('<model>')}/`" in row
    assert f"[{stage.number:02d} {stage.name}]" in README, "in the drawing"


def test_references_in_docstrings_and_pages_lead_somewhere():
    """A name in :func:`...` that has moved is found here and not by a reader."""
    files = [path for folder in ("lib", "workflow", "docs") for path in (PROJECT / folder).rglob("*.py")]
    for path in files:
        for name in re.findall(
            r":(?:mod|class|func|data|meth):`~?((?:lib|workflow)\.[\w.]+)`", path.read_text("utf-8")
        ):
            assert resolves(name), f"{path.relative_to(PROJECT)} refers to {name}"


def resolves(name):
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            item = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[count:]:
                item = getattr(item, part)
        except AttributeError:
            return False
        return True
    return False
