"""How much there is to do, known without opening a model: rows, tokens, prompts, sizes of models, rates of cards.

Sizes come from the registry (``data/models.csv``) or from a local model's ``config.json`` and file headers, counts from
the annotations if they lie here, else from the paper. What no table can know is an assumption, with a name and a value.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lib import runs, social_chemistry
from lib.profiles import ModelSource, Profile
from lib.registry import Size, registry, size_from_registry


@dataclass(frozen=True)
class Assumptions:
    """What the plan cannot know. Rates are sustained shares of a card's peak; seconds were measured on the demo."""

    tokens_per_word: float = 1.2
    tokens_per_action: float = 14.0
    tokens_per_prompt: float = 70.0
    reading_share: float = 0.35
    training_share: float = 0.4
    writing_share_of_bandwidth: float = 0.3
    seconds_per_written_token_step: float = 0.02
    load_gigabytes_per_second: float = 1.0
    core_gigaflops: float = 20.0
    seconds_to_start_a_job: float = 12.0
    diagnosis_seconds_per_layer: float = 6.0
    seconds_per_offline_verdict: float = 0.015
    seconds_per_judge_call: float = 0.3
    judge_tokens_read: float = 900.0
    judge_tokens_written: float = 120.0
    memory_headroom: float = 1.25
    runtime_headroom: float = 3.0


ASSUMED = Assumptions()


class Work(NamedTuple):
    """How much there is to read: rows, distinct actions, tokens an action, rows of the diagnosis, prompts."""

    annotations: int
    exploded: int
    actions: int
    tokens_per_action: float
    subset: int
    prompts: int
    source: str


PUBLISHED = Work(203_431, 251_334, 203_431, ASSUMED.tokens_per_action, 16_147, 1_000, "published counts")
"""Every annotation taken as a distinct action, which is an upper bound."""


def work(profile: Profile) -> Work:
    """Count the rows of the profile's annotations and prompts; published counts stand in for files not here."""
    found = PUBLISHED
    path = runs.resolve(profile.annotations)
    if profile.annotations != social_chemistry.DOWNLOAD and path.is_file():
        found = _counted(path, profile.agreement)
    prompts = runs.resolve(profile.prompts)
    if prompts.is_file():
        lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = found._replace(prompts=len(lines))
    return found._replace(prompts=min(found.prompts, profile.prompt_limit or found.prompts))


@cache
def _counted(path: Path, agreement: str) -> Work:
    rows, _ = social_chemistry.clean(social_chemistry.read(path, agreement))
    actions = rows["action"].drop_duplicates()
    foundations = rows["rot-moral-foundations"].str.count(r"\|") + 1
    tokens = (actions.str.split().str.len().mean() + 2) * ASSUMED.tokens_per_word
    exploded = int(foundations.sum())
    return Work(len(rows), exploded, len(actions), tokens, min(exploded, PUBLISHED.subset), 0, runs.short(path))


DIAGNOSIS_PROCESSES = 4
"""At most so many arms are diagnosed side by side; each holds a matrix of distances."""


def diagnosis_memory(rows: int, probed: int, width: int) -> float:
    """Return the bytes that a process needs to diagnose one arm of one layer: distances, or residual streams as read.

    Args:
        rows: of the diagnosis subset.
        probed: annotations that the probes read.
        width: of the residual stream.
    """
    return 1e9 + 4 * max(rows * (rows + 2 * width), 3 * (rows + probed) * width)


@cache
def accelerator(name: str) -> pd.Series:
    """Return a card's memory and rates.

    Raises:
        ValueError: the card is not in ``data/accelerators.csv``.
    """
    table = pd.read_csv(runs.PROJECT / "data" / "accelerators.csv").set_index("name")
    if name not in table.index:
        raise ValueError(f"card {name!r} is not in data/accelerators.csv, which has {', '.join(table.index)}")
    return table.loc[name]


@cache
def size(source: ModelSource) -> Size | None:
    """Return a model's size from its files or from the registry; None if neither knows it."""
    if source.path:
        return _size_on_disk(runs.resolve(source.path))
    known = registry().set_index("hub")
    return size_from_registry(known.loc[source.hub].to_dict()) if source.hub in known.index else None


def _size_on_disk(directory: Path) -> Size | None:
    if not (directory / "config.json").exists():
        return None
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    parameters = 0
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        parameters += sum(math.prod(item["shape"]) for name, item in header.items() if name != "__metadata__")
    return Size(parameters, parameters, config["num_hidden_layers"], config["hidden_size"])
