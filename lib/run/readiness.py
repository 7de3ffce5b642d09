"""What a profile names must be there before its first job: files, models, layers, GPUs and the keys of judges.

A profile can be right and not yet runnable here, so :func:`lib.run.profile.load_profile` does not ask; a run does, once, and
says everything that is missing.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from lib.run.files import resolve, short
from lib.run.profile import ModelSource, Profile, load_profile, problem_lines, profile_file
from lib.run.resources import ResourceError, gpu
from lib.run.validation import ParameterError, nearest
from lib.run.yaml_lines import Location, Problem, read_yaml

FILES = ("annotations", "prompts", "ordinary_text", "claims", "flames_scorer")
"""Keys that name a file or a directory."""

JUDGE_KEYS = {"anthropic": "ANTHROPIC_API_KEY", "google": "GOOGLE_API_KEY", "openai": "OPENAI_API_KEY"}
"""Inspect's provider -> the environment variable that holds its key; others say themselves what they lack."""


def ready(path: str | Path) -> Profile:
    """Read a profile whose run is about to start.

    Raises:
        ParameterError: of :func:`load_profile`, or everything that this machine lacks for the run, a line each.
    """
    profile = load_profile(path)
    file = profile_file(path)
    document = read_yaml(file.read_text(encoding="utf-8"))
    if lacking := [Problem(document.line(where), said) for where, said in _lacking(profile)]:
        raise ParameterError(problem_lines(file, lacking))
    return profile


def _lacking(profile: Profile) -> Iterator[tuple[Location, str]]:
    for key in FILES:
        path = getattr(profile, key)
        if path and path != "download" and not resolve(path).exists():
            yield (key,), f"{key}: {_not_there(path)}"
    for index, source in enumerate(profile.models):
        if source.gguf and not resolve(source.gguf).is_file():
            yield ("models", index), f"models.{index}.gguf: {_not_there(source.gguf)}"
        elif source.path and not (resolve(source.path) / "config.json").is_file():
            why = "holds no config.json" if resolve(source.path).is_dir() else _not_there(source.path)
            yield ("models", index), f"models.{index}.path: {why}"
        elif blocks := layers_of(source):
            keys = {"first_layers": [profile.first_layers] if profile.first_layers else []}
            if source.name == profile.sae_model:
                keys["layers"] = [layer + 1 for layer in profile.layers]
            for key, needed in keys.items():
                if needed and max(needed) > (blocks if key == "first_layers" else profile.first_layers or blocks):
                    yield (key,), f"{key}: {source.name} has {blocks} layers, 0 to {blocks - 1}; {key} asks for more"
    try:
        if profile.gpu:
            gpu(profile.gpu)
    except ResourceError as error:
        yield ("gpu",), f"gpu: {error}"
    for key in ("judge", "second_judge"):
        variable = JUDGE_KEYS.get((getattr(profile, key) or "").partition("/")[0])
        if variable and not os.environ.get(variable):
            yield (key,), f"{key}: {getattr(profile, key)} needs the environment variable {variable}, which is not set"


def layers_of(source: ModelSource) -> int | None:
    """Return how many decoder blocks a local model has, from its configuration; None for one that is not on disk."""
    if not source.path:
        return None
    config = json.loads((resolve(source.path) / "config.json").read_text(encoding="utf-8"))
    return (config.get("text_config") or config).get("num_hidden_layers")


def _not_there(path: str) -> str:
    place = resolve(path)
    around = sorted(other.name for other in place.parent.iterdir()) if place.parent.is_dir() else []
    return f"{short(place)} is not there.{nearest(place.name, around)} Paths start at the project root."
