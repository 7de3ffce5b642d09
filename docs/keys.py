"""Every key of a profile with its meaning, its values and its default, from the one statement of parameters."""

import json
from collections.abc import Mapping
from typing import Any

from docs.markdown import markdown_table
from lib.run.profile import ModelSource, Profile
from lib.run.table import STAGES, StageSpecification

TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "null": "`null`",
}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
"""Words for JSON Schema's types, and for its bounds of a range."""


def keys_page() -> str:
    """Return every key of a profile as Markdown tables, from the one statement of parameters.

    A table each for the run as a whole, for what several stages share, and for every stage.
    """
    fields = {key: _described(field) for key, field in Profile.model_json_schema()["properties"].items()}
    of_model = {key: _described(field) for key, field in ModelSource.model_json_schema()["properties"].items()}
    of_run = {key: fields.pop(key) for key in Profile.__annotations__}
    readers = {key: [stage for stage in STAGES.values() if key in stage.parameters.model_fields] for key in fields}
    header = ("key", "meaning", "value", "default")
    shared = [
        (f"`{key}`", *fields[key], ", ".join(f"[{stage.number:02d}]({_chapter(stage)})" for stage in stages))
        for key, stages in readers.items()
        if len(stages) > 1
    ]
    parts = ["## The run", markdown_table(header, _rows(of_run)), "Each of `models` has these keys:"]
    parts += [markdown_table(header, _rows(of_model)), "## Shared by stages"]
    parts += [markdown_table((*header, "read by"), shared)]
    for stage in STAGES.values():
        own = {key: fields[key] for key, stages in readers.items() if stages == [stage]}
        parts += [f"## {stage.notebook}", markdown_table(header, _rows(own)), f"[The chapter]({_chapter(stage)})."]
    return "\n\n".join(parts)


def _rows(fields: Mapping[str, tuple[str, str, str]]) -> list[tuple[str, ...]]:
    return [(f"`{key}`", *described) for key, described in fields.items()]


def _chapter(stage: StageSpecification) -> str:
    return f"chapters/{stage.notebook}.ipynb"


def _described(field: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return meaning, possible values and default of a field of a JSON Schema, as Markdown."""
    default = f"`{json.dumps(field['default'])}`" if "default" in field else "must be given"
    return field["description"], _values(field), default


def _values(field: Mapping[str, Any]) -> str:
    """Say which values a field of a JSON Schema takes: type or choices, and range."""
    if "anyOf" in field:
        return " or ".join(_values(choice) for choice in field["anyOf"])
    if "enum" in field:
        return "one of " + ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        entries = "mappings, see below" if "$ref" in field["items"] else _values(field["items"])
        return f"list: {entries}"
    ranges = [f"{words} {field[bound]:g}" for bound, words in BOUNDS.items() if bound in field]
    return " ".join([TYPES[field["type"]], *ranges])
