"""What decides a stage's results: its parameters, inputs, packages and code, and where two such statements differ.

Results of one identity are never read as those of another, and the reader is told which field differs.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.provenance import code_hash, sha256_of, short

PACKAGES = (
    "torch", "transformers", "nnsight", "tokenizers", "numpy", "pandas", "scipy", "scikit-learn",
    "statsmodels", "zarr", "inspect-ai",
)  # fmt: skip
"""Packages whose version can change a number; their versions are part of a stage's identity."""


class MismatchError(RuntimeError):
    """A stage directory holds results of another identity than the one asked for."""


def identity_of(name: str, parameters: Any, inputs: Mapping[str, Path], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a stage's results.

    Args:
        name: notebook name, a key of ``lib.parameters.STAGES``.
        parameters: the stage's dataclass of parameters.
        inputs: name -> file or directory, of which the hash counts.
        facts: anything else that decides the results.
    """
    return {
        "parameters": identifying_parameters(parameters),
        "inputs": {key: sha256_of(path) for key, path in inputs.items()},
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "facts": dict(facts),
        "code": code_hash(name),
    }


def identifying_parameters(parameters: Any) -> dict[str, Any]:
    """Return the parameters that decide a stage's results: all but where it writes and what it shows."""
    ignored = ("run_dir", "show_content", *getattr(type(parameters), "PATHS", ()))
    return {name: value for name, value in asdict(parameters).items() if name not in ignored}


def refuse_difference(directory: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ``MismatchError`` naming the first field in which two identities differ."""
    for label, here, there in _differences(wanted, recorded):
        raise MismatchError(
            f"{short(directory)} holds results made with {label} = {there!r}, but {here!r} is asked for. "
            f"Use another run directory, or remove {short(directory)} and run again."
        )


def _differences(wanted: Any, recorded: Any, label: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(wanted, Mapping) and isinstance(recorded, Mapping):
        for key in sorted(wanted.keys() | recorded.keys()):
            yield from _differences(wanted.get(key), recorded.get(key), f"{label}.{key}" if label else key)
    elif wanted != recorded:
        yield label, wanted, recorded
