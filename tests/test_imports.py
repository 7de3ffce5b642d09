"""The house's one direction: later stages import earlier ones, never back, and nothing in `lib/` knows the engine or the book."""

import ast
import builtins
import inspect
from importlib import import_module

import pytest

from lib.run.files import PROJECT, CompanionError
from lib.run.table import STAGES

GROUND = ("run", "paper", "stats", "plotting")
FLOOR = dict.fromkeys(GROUND, 0) | {name: stage.number for name, stage in STAGES.items()} | {"explore": 10}
"""Package or module of `lib` -> its floor; a module may import from its own floor and from those below."""

ONLY = {"nnsight": {"activations", "steering", "judging"}, "inspect_ai": {"judging"}}
"""Library -> the stages that may know it. Judging takes nnsight's `save` off all objects while Inspect starts."""

MODULES = sorted((PROJECT / "lib").rglob("*.py"))


def imported(path):
    """Names of all modules that a file imports, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def room(path):
    """The package or module right below `lib` that a file belongs to."""
    return path.relative_to(PROJECT / "lib").with_suffix("").parts[0]


def below_lib(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "lib" and len(parts) > 1 and parts[1] in FLOOR else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_imports_go_one_way(path):
    if (own := room(path)) == "__init__":
        return
    names = imported(path)
    assert not {name for name in names if name.split(".")[0] in ("workflow", "docs", "tests", "benchmarks")}
    higher = {other for name in names if (other := below_lib(name)) and FLOOR[other] > FLOOR[own]}
    assert not higher, f"{own} may not import {', '.join(sorted(higher))}"
    for library, allowed in ONLY.items():
        assert own in allowed or library not in {name.split(".")[0] for name in names}, (
            f"{library} belongs to {allowed}"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_only_notebooks_import_figures(path):
    assert not {name for name in imported(path) if name.split(".")[-1] == "figures"}


def test_the_contract_would_see_a_step_up(tmp_path):
    path = tmp_path / "early.py"
    path.write_text("def f():\n    from lib.judging.sessions import judge\n")
    assert FLOOR["judging"] > FLOOR["vectors"]
    assert {below_lib(name) for name in imported(path)} == {"judging"}


def test_every_room_is_a_stage_or_stands_beside_them():
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert rooms == set(FLOOR)


def test_no_module_is_longer_than_a_reader_keeps_in_mind():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 320} == {}


def test_errors_of_the_project_share_one_base():
    """A caller tells our errors from bugs by their base; none of them is a built-in one."""
    wrong = []
    for path in [*MODULES, *sorted((PROJECT / "workflow").glob("*.py"))]:
        name = ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        for label, item in inspect.getmembers(import_module(name), inspect.isclass):
            if item.__module__ == name and issubclass(item, Exception) and not issubclass(item, CompanionError):
                wrong.append(f"{name}.{label}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                raised = node.exc.func.id
                if hasattr(builtins, raised) and raised not in ("AssertionError", "KeyboardInterrupt", "SystemExit"):
                    wrong.append(f"{name}:{node.lineno} raises {raised}")
    assert wrong == []
