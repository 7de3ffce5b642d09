"""The page of errors: every one that this project raises on purpose, what it means and when, from the docstrings."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import lib
import workflow
from lib.run.files import CompanionError


def errors_page() -> str:
    """Return a Markdown part for each error of ``lib`` and ``workflow``: what it means, and when which function raises it."""
    modules = [module for package in (lib, workflow) for module in _modules(package)]
    raised: dict[str, list[str]] = {}
    for module in modules:
        for place, doc in _docstrings(module):
            for name, when in raises(doc):
                raised.setdefault(name, []).append(f"* `{place}`: {plain(when)}")
    parts = []
    for error in sorted(_errors(modules), key=lambda error: error.__name__):
        kind = error.__bases__[0]
        base = "" if kind is CompanionError else f" A kind of `{kind.__name__}`."
        parts.append(f"## {error.__name__}\n\n{plain(inspect.getdoc(error) or '')}{base}")
        parts += ["\n".join(lines)] if (lines := raised.get(error.__name__)) else []
    return "\n\n".join(parts)


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def _errors(modules: list[ModuleType]) -> set[type[CompanionError]]:
    values = (value for module in modules for value in vars(module).values() if inspect.isclass(value))
    return {value for value in values if issubclass(value, CompanionError) and value is not CompanionError}


def _docstrings(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield the place and the docstring of every function and method that a module defines itself."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__:
            methods = vars(value).items() if inspect.isclass(value) else ()
            for label, item in ((name, value), *((f"{name}.{method}", item) for method, item in methods)):
                if inspect.isfunction(item) and (doc := inspect.getdoc(item)):
                    yield f"{module.__name__}.{label}", doc


def raises(doc: str) -> Iterator[tuple[str, str]]:
    """Yield name and condition of every error under ``Raises:`` in a docstring; a name loses its module."""
    if section := re.search(r"^Raises:\n((?: {4}.*\n?|\n)+)", doc, re.MULTILINE):
        for name, when in re.findall(r"^ {4}([\w.]+): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE):
            yield name.rpartition(".")[2], when


def plain(text: str) -> str:
    """Return a docstring's text as one paragraph of Markdown: roles and double quotes of code become plain code."""
    code = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"\s+", " ", code).strip()
