"""Every job of a profile with what it takes: tokens, arithmetic, wall time, memory, cards, disk and judge calls.

The numbers are what Snakemake reserves for a job and, summed, what :mod:`lib.plan` prints. They follow from
:mod:`lib.workload` alone, so a graph of 23 models is laid out in seconds and without a network.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lib import parts
from lib.parameters import STAGES
from lib.profiles import Profile
from lib.registry import BYTES, POOLINGS, Size
from lib.workload import ASSUMED, DIAGNOSIS_PROCESSES, Work, accelerator, diagnosis_memory, size, work

NEEDS = {
    "01_moral_vectors": [],
    "02_residual_streams": ["01_moral_vectors"],
    "03_diagnosis": ["01_moral_vectors", "02_residual_streams"],
    "04_compare_models": ["03_diagnosis"],
    "05_sparse_autoencoders": ["01_moral_vectors", "02_residual_streams"],
    "06_feature_alignment": ["05_sparse_autoencoders"],
    "07_steering": ["01_moral_vectors", "02_residual_streams", "05_sparse_autoencoders", "06_feature_alignment"],
    "08_judging": ["07_steering"],
    "09_claims": ["04_compare_models", "06_feature_alignment", "08_judging"],
}
"""Stage -> stages whose results it reads; of the same model, and of all models for the comparison."""
TUNED_ARMS = 4
"""Aligned, and the three controls that are trained the same way."""
SMALL_MODEL_BYTES = 100e6
"""A smaller model is run on the processor: a card would not make it faster."""


@dataclass(frozen=True)
class Job:
    """One job's estimate. ``seconds`` is wall time, ``opening`` of them to start and to load what a part loads anew;
    ``cards`` is 0 for a job of the processor.
    """

    notebook: str
    model: str | None
    seconds: float
    memory_bytes: float
    cards: int = 0
    tokens: float = 0
    flops: float = 0
    disk_bytes: float = 0
    judge_calls: int = 0
    opening: float = 0
    part: bool = False

    def resources(self, attempt: int = 1) -> dict[str, int]:
        """Return what Snakemake reserves: cards, memory and minutes; more of each after a job was killed."""
        return {
            "gpu": self.cards + (attempt - 1 if self.cards else 0),
            "mem_mb": math.ceil(self.memory_bytes * ASSUMED.memory_headroom / 1e6) * 2 ** (attempt - 1),
            "runtime": math.ceil(10 + self.seconds * ASSUMED.runtime_headroom / 60) * attempt,
        }


def jobs(profile: Profile) -> Iterator[Job]:
    """Estimate every job of a profile, in the order of the stages; of a stage in parts, the parts and then the join."""
    for whole in _stages(profile):
        number = parts.count(profile, whole.notebook)
        if number == 1:
            yield whole
            continue
        share = replace(
            whole,
            part=True,
            seconds=whole.opening + (whole.seconds - whole.opening) / number,
            tokens=whole.tokens / number,
            flops=whole.flops / number,
            disk_bytes=whole.disk_bytes / number,
        )
        yield from [share] * number
        yield replace(whole, seconds=whole.opening, tokens=0, flops=0, disk_bytes=0)


def job(profile: Profile, notebook: str, model: str | None = None, part: bool = False) -> Job:
    """Return the estimate of one job, or of one of its parts; ``model`` is given for stages that run once a model.

    A join is given the resources of the whole stage: what a part failed to make is made there.
    """
    found = jobs(profile) if part else _stages(profile)
    return next(one for one in found if one.notebook == notebook and model in (None, one.model) and one.part == part)


def _stages(profile: Profile) -> Iterator[Job]:
    """Estimate every stage as one job, for every model that it runs for. Models of unknown size count as an 8B model."""
    amount = work(profile)
    unknown = Size(8e9, 8e9, 36, 4096)
    sizes = {name: size(source) or unknown for name, source in profile.sources.items()}
    steered = sizes[profile.sae_model]
    yield _processor_job(profile, "01_moral_vectors", None, amount.annotations * 2e3, amount.annotations * 2e4)
    for name, model in sizes.items():
        yield _reading(profile, name, model, amount)
    for name, model in sizes.items():
        yield _diagnosing(profile, name, model, amount)
    yield _processor_job(profile, "04_compare_models", None, 0, 0)
    yield _training(profile, steered, amount)
    yield _aligning(profile, steered, amount)
    yield _writing(profile, steered, amount)
    yield _judging(profile, amount)
    yield _processor_job(profile, "09_claims", None, 0, 0)


def _cores(profile: Profile) -> float:
    return profile.threads * ASSUMED.core_gigaflops * 1e9


def _processor_job(profile: Profile, notebook: str, model: str | None, flops: float, memory: float) -> Job:
    seconds = ASSUMED.seconds_to_start_a_job + flops / _cores(profile)
    return Job(notebook, model, seconds, 1e9 + memory, flops=flops)


def _cards(profile: Profile, weights: float) -> int:
    if weights < SMALL_MODEL_BYTES:
        return 0
    return math.ceil(weights * ASSUMED.memory_headroom / (accelerator(profile.card)["memory_gigabytes"] * 1e9))


def _rate(profile: Profile, cards: int, dtype: str, share: float) -> float:
    if not cards:
        return _cores(profile)
    column = "float32_teraflops" if dtype == "float32" else "bf16_teraflops"
    return accelerator(profile.card)[column] * 1e12 * share


def _reading(profile: Profile, name: str, model: Size, amount: Work) -> Job:
    # The layers of a model on several cards work one after the other, so more cards do not make it faster.
    weights = model.parameters * BYTES[profile.dtype]
    cards = _cards(profile, weights)
    tokens = amount.actions * amount.tokens_per_action
    flops = 2 * model.active * tokens
    stored = profile.stage_parameters("02_residual_streams", name).get("store_dtype", "float32")
    store = POOLINGS * model.layers * amount.actions * model.width * BYTES[stored]
    opening = ASSUMED.seconds_to_start_a_job + 5 + weights / (ASSUMED.load_gigabytes_per_second * 1e9)
    seconds = opening + flops / _rate(profile, cards, profile.dtype, ASSUMED.reading_share)
    memory = 1.5e9 + (min(weights, 20e9) if cards else weights) + POOLINGS * model.layers * 512 * model.width * 16
    return Job("02_residual_streams", name, seconds, memory, cards, tokens, flops, store, opening=opening)


def _diagnosing(profile: Profile, name: str, model: Size, amount: Work) -> Job:
    # Eigenvectors of the covariance, sums of products, all pairs of points, resamples; clusters of all arms at some layers.
    n, d = amount.subset, model.width
    clustering = 6 * d**3 + n * n * d / 2
    others = n * d * d + (profile.bootstrap_draws + profile.permutations) * 4 * n * d
    flops = model.layers * (clustering + others) + min(profile.control_layers, model.layers) * 6 * clustering
    seconds = ASSUMED.seconds_to_start_a_job + model.layers * ASSUMED.diagnosis_seconds_per_layer
    side_by_side = min(profile.threads, DIAGNOSIS_PROCESSES)
    memory = 0.7e9 + side_by_side * diagnosis_memory(n, min(amount.annotations, profile.probe_rows), d)
    # Beyond one core a process, only linear algebra gains: more cores are taken to help no further.
    return Job(
        "03_diagnosis",
        name,
        seconds + flops / (side_by_side * ASSUMED.core_gigaflops * 1e9),
        memory,
        flops=flops,
    )


def _training(profile: Profile, model: Size, amount: Work) -> Job:
    latents = profile.expansion * model.width
    flops = 6 * (2 * model.width * latents) * 0.8 * amount.exploded * profile.sae_epochs * len(profile.layers)
    disk = len(profile.layers) * 2 * model.width * latents * 4
    return _layered(profile, "05_sparse_autoencoders", model, amount, flops, disk)


def _aligning(profile: Profile, model: Size, amount: Work) -> Job:
    latents = profile.expansion * model.width
    epochs = TUNED_ARMS * profile.alignment_epochs
    flops = 6 * (2 * model.width * latents) * 0.8 * amount.exploded * epochs * len(profile.layers)
    disk = len(profile.layers) * TUNED_ARMS * 2 * model.width * latents * 4
    return _layered(profile, "06_feature_alignment", model, amount, flops, disk)


def _layered(profile: Profile, notebook: str, model: Size, amount: Work, flops: float, disk: float) -> Job:
    autoencoder = 2 * model.width * profile.expansion * model.width * 4
    cards = _cards(profile, 4 * autoencoder)  # weights, gradients and two moments
    opening = ASSUMED.seconds_to_start_a_job
    seconds = opening + flops / _rate(profile, cards, "float32", ASSUMED.training_share)
    # Layers are read one after another: the rows as stored, by split, and once more as they are trained on.
    memory = 1.5e9 + 3 * amount.exploded * model.width * 4 + 4 * autoencoder
    return Job(notebook, profile.sae_model, seconds, memory, cards, flops=flops, disk_bytes=disk, opening=opening)


def _writing(profile: Profile, model: Size, amount: Work) -> Job:
    weights = model.parameters * BYTES[profile.dtype]
    autoencoder = 2 * model.width * profile.expansion * model.width * 4
    cards = _cards(profile, weights + autoencoder)
    asked = _answers(profile, amount)
    answers = sum(conditions * prompts for conditions, _, prompts in asked)
    batches = sum(conditions * math.ceil(prompts / profile.steering_batch) for conditions, _, prompts in asked)
    tokens = answers * (ASSUMED.tokens_per_prompt + profile.max_new_tokens)
    step = ASSUMED.seconds_per_written_token_step
    if cards:
        bandwidth = accelerator(profile.card)["bandwidth_gigabytes_per_second"] * 1e9
        step += (weights + autoencoder) / (bandwidth * ASSUMED.writing_share_of_bandwidth)
    else:
        step += 2 * model.active * profile.steering_batch / _cores(profile)
    opening = ASSUMED.seconds_to_start_a_job + weights / (ASSUMED.load_gigabytes_per_second * 1e9)
    seconds = opening + batches * profile.max_new_tokens * step
    memory = 1.5e9 + (min(weights, 20e9) if cards else weights) + 2 * autoencoder  # one acts, one is read
    flops = 2 * (model.active + autoencoder / 4) * tokens
    disk = answers * 3e3
    return Job("07_steering", profile.sae_model, seconds, memory, cards, tokens, flops, disk, opening=opening)


def _judging(profile: Profile, amount: Work) -> Job:
    # Two scores an answer, and two orders of the comparison with the baseline's; of the sweep, comparisons only.
    (conditions, steered, prompts), (_, swept, sweep_prompts) = _answers(profile, amount)
    seen = min(profile.second_judge_prompts or prompts, prompts) if profile.second_judge else 0
    calls = (prompts + seen) * 2 * (conditions + steered) + sweep_prompts * 2 * swept
    offline = profile.judge == "offline"
    each = ASSUMED.seconds_per_offline_verdict if offline else ASSUMED.seconds_per_judge_call
    seconds = ASSUMED.seconds_to_start_a_job + calls * each
    return Job("08_judging", profile.sae_model, seconds, 2e9 + calls * 1e4, disk_bytes=calls * 6e3, judge_calls=calls)


def _answers(profile: Profile, amount: Work) -> list[tuple[int, int, int]]:
    """Conditions, those of them that are steered, and prompts; of the main comparison and of the sweep, if any."""
    values = profile.stage_parameters("07_steering")
    sweep, strengths = values.get("sweep_arms", []), values.get("sweep_strengths", [])
    main = _conditions(profile.arms, len(profile.layers))
    swept = _conditions(sweep, len(profile.layers) * len(strengths))
    return [(*main, amount.prompts), (*swept, min(values.get("sweep_prompts", 0), amount.prompts))]


def _conditions(arms: list[str], places: int) -> tuple[int, int]:
    steered = places * len([arm for arm in arms if arm != "baseline"])
    return steered + ("baseline" in arms), steered


def job_name(notebook: str, model: str | None) -> str:
    """Return the name of a job's files: the notebook, and the model where a stage has one of its own."""
    return f"{notebook}.{model}" if model and "{model}" in STAGES[notebook].directory else notebook
