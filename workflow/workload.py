"""How much there is to do, known without opening a model: rows, tokens, prompts, sizes of models, and what is assumed.

Sizes come from the registry (``data/models.csv``) or from a local model's ``config.json`` and file headers, counts from
the annotations if they lie here, else from the paper. What no table can know is an assumption, with a name and a value.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFReader

from lib.activations.sizes import EXPERTS, EXPERTS_PER_TOKEN, active_parameters
from lib.run.files import read_text, resolve, short
from lib.run.keys import DRAWN_ARMS, ArmName
from lib.run.profile import ModelSource, Profile
from lib.run.resources import ResourceError, Size, configuration_in, registered_size, tensors_in
from lib.run.rules import layer_groups
from lib.run.table import STAGES
from lib.vectors import moral_vectors, social_chemistry


@dataclass(frozen=True)
class Assumptions:
    """What the plan cannot know. Shares are those of a GPU's peak rate; seconds and bytes were measured on the demo, those of a
    large arm on a model of 135M parameters."""

    tokens_per_word: float = 1.2
    tokens_per_action: float = 14.0
    tokens_per_prompt: float = 70.0
    reading_share: float = 0.35
    training_share: float = 0.4
    generation_share_of_bandwidth: float = 0.3
    seconds_per_generation_step: float = 0.02
    seconds_per_batch: float = 0.05
    load_gigabytes_per_second: float = 1.0
    memory_gigabytes_per_second: float = 10.0
    share_of_further_cores: float = 0.6
    compressed_share: float = 0.83
    seconds_to_start_a_job: float = 12.0
    diagnosis_seconds_per_arm: float = 10.5
    diagnosis_seconds_per_large_arm: float = 25.0
    seconds_per_reading: float = 6
    rows_of_that_arm: float = 10_000.0
    seconds_per_offline_verdict: float = 0.028
    seconds_per_judge_call: float = 0.3
    judge_tokens_read: float = 900.0
    judge_tokens_written: float = 120.0
    gigabytes_of_a_job: float = 0.6
    gigabytes_of_a_job_with_torch: float = 0.7
    memory_headroom: float = 1.25
    runtime_headroom: float = 3.0


ASSUMED = Assumptions()

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH = ("hidden_size", "n_embd", "d_model")
"""Keys of a configuration, of which each family has one."""

UNKNOWN = Size(8e9, 8e9, 36, 4096)
"""A model of unknown size is planned for as an 8B model."""


class Work(NamedTuple):
    """How much there is to read: rows, distinct actions, tokens per action, rows of the diagnosis, prompts."""

    annotations: int
    exploded: int
    actions: int
    tokens_per_action: float
    subset: int
    prompts: int
    source: str

    def diagnosed(self, probe_rows: int) -> int:
        """Return how many actions the diagnosis reads: those of its subset and of the probes, drawn independently."""
        subset = min(self.subset, self.actions)
        probed = self.actions * min(1, probe_rows / self.annotations)
        return math.ceil(subset + probed - subset * probed / self.actions)


PUBLISHED = Work(203_431, 251_334, 203_431, ASSUMED.tokens_per_action, 16_147, 1_000, "published counts")
"""Every annotation taken as a distinct action, which is an upper bound."""


def work(profile: Profile) -> Work:
    """Count the rows of the profile's annotations and prompts; published counts stand in for files not here.

    Raises:
        CompanionError: the annotations or the prompts cannot be read.
    """
    amount = PUBLISHED
    path = resolve(profile.annotations)
    if profile.annotations != social_chemistry.DOWNLOAD and path.is_file():
        amount = _counted(path, profile.agreement)
    prompts = resolve(profile.prompts)
    if prompts.is_file():
        lines = [line for line in read_text(prompts).splitlines() if line.strip()]
        amount = amount._replace(prompts=len(lines))
    return amount._replace(prompts=min(amount.prompts, profile.prompt_limit or amount.prompts))


@cache
def _counted(path: Path, agreement: str) -> Work:
    rows, _ = social_chemistry.clean(social_chemistry.read(path, agreement))
    actions = rows["action"].drop_duplicates()
    tokens = (actions.str.split().str.len().mean() + 2) * ASSUMED.tokens_per_word
    exploded = moral_vectors.explode(moral_vectors.vectorise(rows, agreement), seed=0)
    subset = len(moral_vectors.draw_subset(exploded))
    return Work(len(rows), len(exploded), len(actions), tokens, subset, 0, short(path))


def answers(profile: Profile, amount: Work) -> list[tuple[int, int, int]]:
    """Return the conditions, those of them that are steered, and prompts; of the main comparison and of the sweep, if any."""
    main, swept = (_conditions(profile, arms) for arms in (profile.arms, profile.sweep_arms))
    samples, strengths = profile.samples, len(profile.sweep_strengths)
    few = min(profile.sweep_prompts, amount.prompts)
    return [
        (samples * (main + ("baseline" in profile.arms)), samples * main, amount.prompts),
        (samples * (swept * strengths + ("baseline" in profile.sweep_arms)), samples * swept * strengths, few),
    ]


def as_published(profile: Profile) -> tuple[int, int]:
    """Return the conditions that are judged by the published protocol too, and those of them that are steered."""
    arms = [arm for arm in profile.arms if arm in profile.published_arms]
    steered = profile.samples * _conditions(profile, arms)
    return steered + profile.samples * ("baseline" in arms), steered


def gold_pairs(profile: Profile) -> int:
    """Return the pairs with a known better answer by which each judge is judged."""
    pairs = len(resolve(STAGES["judging"].inputs["gold"]).read_text(encoding="utf-8").splitlines())
    return min(profile.gold_pairs or pairs, pairs)


def _conditions(profile: Profile, arms: list[ArmName]) -> int:
    """Count an arm's groups of layers and replicates, at one strength and without the baseline."""
    copies = {"baseline": 0} | dict.fromkeys(DRAWN_ARMS, profile.replicates)
    return len(layer_groups(profile)) * sum(copies.get(arm, 1) for arm in arms)


@cache
def size(source: ModelSource) -> Size | None:
    """Return a model's size from its files or from the registry; None if neither knows it.

    Raises:
        ResourceError: one of its files is damaged.
    """
    if source.path:
        return _size_on_disk(resolve(source.path))
    return _size_in_gguf(resolve(source.gguf)) if source.gguf else registered_size(source.source)


def _size_on_disk(directory: Path) -> Size | None:
    if not (directory / "config.json").exists():
        return None
    config = configuration_in(directory)
    counts: dict[str, int] = {}
    for file in directory.glob("*.safetensors"):
        counts |= {name: _numbers(name, item) for name, item in tensors_in(file).items()}
    layers, width = (next((config[key] for key in keys if config.get(key)), None) for keys in (LAYERS, WIDTH))
    if layers is None or width is None:
        return None
    return Size(sum(counts.values()), active_parameters(counts, config), layers, width)


def _numbers(name: str, tensor: dict[str, Any]) -> int:
    """Return how many parameters a tensor of a safetensors header holds; MXFP4 packs two into a byte, beside scales."""
    count = math.prod(tensor["shape"])
    if tensor["dtype"] != "U8":
        return count
    return 0 if name.endswith("_scales") else 2 * count if name.endswith("_blocks") else count


def _size_in_gguf(file: Path) -> Size | None:
    if not file.is_file():
        return None
    try:
        reader = GGUFReader(file)
        kind = reader.fields["general.architecture"].contents()
        layers, width = (int(reader.fields[f"{kind}.{key}"].contents()) for key in ("block_count", "embedding_length"))
    except (ValueError, IndexError, KeyError) as error:
        raise ResourceError(f"{short(file)} is no whole GGUF file ({error}). Download it again.") from None
    counts = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    routing = {EXPERTS[0]: f"{kind}.expert_count", EXPERTS_PER_TOKEN: f"{kind}.expert_used_count"}
    config = {key: reader.fields[field].contents() for key, field in routing.items() if field in reader.fields}
    return Size(sum(counts.values()), active_parameters(counts, config), layers, width)
