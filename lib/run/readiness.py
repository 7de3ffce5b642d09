"""What a profile names must be there before its first job: files, models, layers, GPUs and the keys of judges.

A profile can be right and not yet runnable here, so :func:`lib.run.profile.load_profile` does not ask; a run does, once, and
says everything that is missing.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from lib.run.files import CompanionError, read_text, resolve, short
from lib.run.judge_names import local_source
from lib.run.profile import ModelSource, Profile, load_profile, problem_lines, profile_file
from lib.run.resources import ResourceError, blocks_in_gguf, configuration_in, gpu, tensors_in
from lib.run.validation import ParameterError, nearest
from lib.run.yaml_lines import Location, Problem, read_yaml

FILES = ("annotations", "prompts", "ordinary_text", "claims")
"""Keys that name a file."""

TEXTS = ("prompts", "ordinary_text")
"""Those of them whose whole text is read as it is."""

HUB_ID = r"[^./~][^/]*/[^/]+"
"""Shape of a hub's id, ``owner/name``; anything else names a place here."""

JUDGE_KEYS = {"anthropic": "ANTHROPIC_API_KEY", "google": "GOOGLE_API_KEY", "openai": "OPENAI_API_KEY"}
"""Inspect's provider -> the environment variable that holds its key; others say themselves what they lack."""


def ready(path: str | Path, only: Collection[str] = ()) -> Profile:
    """Read a profile whose run is about to start.

    ``only`` names what to ask about, such as ``annotations`` and ``models.0``; by default it is everything.

    Raises:
        ParameterError: of :func:`load_profile`, or everything that this machine lacks for the run, a line each.
    """
    profile = load_profile(path)
    file = profile_file(path)
    document = read_yaml(file.read_bytes())
    asked = [(where, said) for where, said in _lacking(profile) if not only or ".".join(map(str, where)) in only]
    if lacking := [Problem(document.line(where), said) for where, said in asked]:
        raise ParameterError(problem_lines(file, lacking))
    return profile


def _lacking(profile: Profile) -> Iterator[tuple[Location, str]]:
    for key in FILES:
        path = getattr(profile, key)
        if path != "download" and not resolve(path).is_file():
            yield (key,), f"{key}: {_not_there(path)}"
        elif key in TEXTS:
            try:
                read_text(resolve(path))
            except CompanionError as error:
                yield (key,), f"{key}: {error}"
    for index, source in enumerate(profile.models):
        if why := _unreadable(source):
            yield ("models", index), f"models.{index}.{'gguf' if source.gguf else 'path'}: {why}"
        elif blocks := layers_of(source):
            asked = {"first_layers": (profile.first_layers or 0, blocks)}
            if source.name == profile.sae_model:
                asked["layers"] = (1 + max(profile.layers), profile.first_layers or blocks)
            for key, (needed, there) in asked.items():
                if needed > there:
                    yield (key,), f"{key}: {source.name} has {blocks} layers, 0 to {blocks - 1}; {key} asks for more"
    for key, source in _local_judges(profile):
        if why := _unreadable(source):
            yield (key,), f"{key}: {why}"
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
    """Return how many decoder blocks a local model has; None for one that is not on disk or does not say.

    Raises:
        ResourceError: its configuration or its file is damaged.
    """
    if source.gguf:
        return blocks_in_gguf(resolve(source.gguf))
    return configuration_in(resolve(source.path)).get("num_hidden_layers") if source.path else None


def _local_judges(profile: Profile) -> Iterator[tuple[str, ModelSource]]:
    """Yield the judges that should lie on this machine, as models, each with its key."""
    for key in ("judge", "second_judge"):
        source = local_source(getattr(profile, key) or "")
        if source and source.endswith(".gguf"):
            yield key, ModelSource(name=key, gguf=source)
        elif source and (resolve(source).is_dir() or not re.fullmatch(HUB_ID, source)):
            yield key, ModelSource(name=key, path=source)
    if profile.flames_scorer:
        yield "flames_scorer", ModelSource(name="flames_scorer", path=profile.flames_scorer)


def _unreadable(source: ModelSource) -> str | None:
    """Say why a local model cannot be read, as far as the starts of its files tell; None for one that can, or a hub's."""
    if not source.file:
        return None
    file = resolve(source.file)
    if not file.is_file():
        return "holds no config.json" if source.path and file.parent.is_dir() else _not_there(source.source)
    try:
        layers_of(source)
        for weights in file.parent.glob("*.safetensors") if source.path else ():
            tensors_in(weights)
    except ResourceError as error:
        return str(error)
    return None


def _not_there(path: str) -> str:
    place = resolve(path)
    if place.is_dir():
        return f"{short(place)} is a directory; a file is needed."
    around = sorted(other.name for other in place.parent.iterdir()) if place.parent.is_dir() else []
    return f"{short(place)} is not there.{nearest(place.name, around)} Paths start at the project root."
