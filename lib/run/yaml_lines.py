"""YAML with line numbers, so that what is wrong with a profile can be said where it stands.

PyYAML takes the last of two equal keys without a word, reads ``1e-4`` as text and ``2026-11-30`` as a date; here the first is
a problem, the second a number and the third text, as YAML 1.2 has it.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

Location = tuple[str | int, ...]
"""Where a value stands: keys and indices from the top."""


class Problem(NamedTuple):
    """Something wrong with a file: the line, counted from 1 (0: the file as a whole), and what it is."""

    line: int
    text: str


class Document(NamedTuple):
    """What a YAML file holds, the line of every key and list entry, and the problems that YAML itself hides."""

    content: Any
    lines: dict[Location, int]
    problems: list[Problem]

    def line(self, location: Location) -> int:
        """Return the line of a value, or that of the nearest thing around it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 0)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2, which has no dates."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str | bytes) -> Document:
    """Read a YAML text, or its bytes; what is no YAML in UTF-8 is a problem of the document, whose content is then None."""
    try:
        loader = Loader(text if isinstance(text, str) else text.decode("utf-8"))
        node = loader.get_single_node()
        if node is None:
            return Document(None, {}, [])
        lines = dict(_lines(node, ()))
        problems = list(_duplicates(node))
        return Document(loader.construct_document(node), lines, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return Document(None, {}, [Problem(mark.line + 1 if mark else 0, f"is no YAML: {error.problem}")])
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        return Document(None, {}, [Problem(line, f"is not in UTF-8: {error.reason}; save it as UTF-8")])
    except RecursionError:
        return Document(None, {}, [Problem(0, "is no YAML: values stand within themselves, or too deep")])
    except (yaml.YAMLError, ValueError) as error:
        return Document(None, {}, [Problem(0, f"is no YAML: {error}")])


def _lines(node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    yield location, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*location, str(key.value))
            yield from _lines(value, below)
            yield below, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*location, index))


def _duplicates(node: yaml.Node) -> Iterator[Problem]:
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                yield Problem(
                    line, f"{key.value}: is there twice, first in line {first[key.value]}; keep one of the two"
                )
            first.setdefault(str(key.value), line)
            children = [*children, value]
    for child in children:
        yield from _duplicates(child)
