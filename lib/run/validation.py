"""Parameters are checked before anything is computed: unknown names, missing values, wrong types, values out of range."""

import ast
import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lib.run.files import CompanionError
from lib.run.keys import PATTERNS
from lib.run.table import STAGES


class ParameterError(CompanionError):
    """A parameter has an unknown name, a value that it cannot have, or no value."""


Schema = TypeVar("Schema", bound=BaseModel)


def build(schema: type[Schema], values: Mapping[str, Any], where: str) -> Schema:
    """Make a typed object from ``values``.

    Raises:
        ParameterError: an unknown name (with the nearest right one), a missing one, or a value out of range or of the
            wrong type. ``where`` says whose values they are.
    """
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise ParameterError("\n".join(f"{where}: {said}" for _, said in problems_of(error, schema))) from None


def validated(stage: str, namespace: Mapping[str, Any]) -> Any:
    """Return a notebook's frozen ``STAGES[stage].parameters``, checked by name, type and range.

    ``namespace`` is the notebook's ``globals()``. Besides the values it holds, the names that a batch run
    injected (papermill's cell that starts with ``# Parameters``) are read from IPython's history, because
    papermill accepts any ``-p NAME`` and a mistyped one would otherwise be ignored.

    Raises:
        ParameterError: an unknown name, a missing one, or a value that it cannot have.
    """
    schema, where = STAGES[stage].parameters, f"notebook {STAGES[stage].notebook}"
    for source in namespace.get("In", []):
        if source.lstrip().startswith("# Parameters"):
            for name in set(assigned_names(source)) - set(schema.model_fields):
                raise ParameterError(f"{where}: {name}: {unknown(name, schema.model_fields)}")
    values = {name: namespace[name] for name in schema.model_fields if name in namespace}
    return build(schema, values, where)


def problems_of(error: ValidationError, schema: type[BaseModel]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield where each of pydantic's complaints stands, and what it is: the value, what is allowed, the nearest right one."""
    by_place: dict[tuple[str | int, ...], list[Any]] = {}
    for problem in error.errors():
        # Of a value that may be of several types pydantic names each: ("batch_size", "constrained-int").
        place = tuple(part for part in problem["loc"] if isinstance(part, int) or part.isidentifier())
        by_place.setdefault(place, []).append(problem)
    for place, problems in by_place.items():
        name = ".".join(map(str, place))
        yield place, f"{name}: " + ", or ".join(_said(problem, schema) for problem in problems)


def _said(problem: Mapping[str, Any], schema: type[BaseModel]) -> str:
    value = problem["input"]
    match problem["type"]:
        case "missing":
            return "has no value, and needs one"
        case "extra_forbidden":
            return unknown(str(problem["loc"][-1]), _fields(schema, problem["loc"]))
        case "string_pattern_mismatch":
            pattern = problem["ctx"]["pattern"]
            return f"should {PATTERNS.get(pattern, f'match {pattern}')}, got {value!r}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            return f"{problem['msg']}, got {value!r}.{nearest(str(value), allowed)}"
        case kind:
            hint = " (on papermill's command line, give lists with -y, e.g. -y 'layers: [2]')"
            return f"{problem['msg']}, got {value!r} of type {type(value).__name__}{hint if 'list' in kind else ''}"


def _fields(schema: type[BaseModel], location: tuple[str | int, ...]) -> Collection[str]:
    """Names that may stand at a location: the schema's, or those of the list entries that it lies in."""
    for key in location[:-1]:
        if isinstance(key, str):
            (schema,) = get_args(schema.model_fields[key].annotation)
    return schema.model_fields


def unknown(name: str, known: Collection[str]) -> str:
    """Say that a name is not known, which is nearest, and which there are."""
    return f"is no parameter.{nearest(name, known)} Known: {', '.join(sorted(known))}."


def nearest(value: str, allowed: Collection[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of ``allowed``; nothing where none resembles the value."""
    close = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def assigned_names(source: str) -> list[str]:
    """Return the names that a cell of plain assignments assigns, in order."""
    nodes = ast.walk(ast.parse(source))
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
