"""What every job of a profile takes, before it is run: time, memory, GPUs, tokens, arithmetic, disk.

The same numbers are what `make plan` prints (:mod:`workflow.plan`) and what Snakemake reserves for a job.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lib.paper import FOUNDATIONS
from lib.run.profile import Profile
from lib.run.resources import (
    DIAGNOSIS_PROCESSES,
    LARGE,
    PROCESS_BYTES,
    Reading,
    Size,
    diagnosis_memory,
    gpu,
    rows_per_chunk,
)
from lib.run.rules import layer_groups
from lib.sae.recipe import Recipe, recipe_of
from workflow import machine
from workflow.workload import ASSUMED, UNKNOWN, Work, answers, as_published, gold_pairs, size, work

TUNED_ARMS = 4
"""Aligned, and the controls trained the same way on the true labels or none; those on shuffled labels come besides."""

SMALL_MODEL_BYTES = 100e6
"""A smaller model is run on the CPU: a GPU would not make it faster."""


@dataclass(frozen=True)
class Job:
    """One job's estimate.

    Attributes:
        stage: of the job.
        model: whose job it is; None where the stage runs for the whole run.
        seconds: wall time.
        memory_bytes: of the host.
        gpus: how many it needs; 0 for a job on the CPU.
        opening: seconds of the wall time to start and to load what every part of the stage loads again.
        part: whether it is one of several that share the stage's work.
    """

    stage: str
    model: str | None
    seconds: float
    memory_bytes: float
    gpus: int = 0
    tokens: float = 0
    flops: float = 0
    disk_bytes: float = 0
    judge_calls: int = 0
    opening: float = 0
    part: bool = False

    def resources(self, attempt: int = 1) -> dict[str, int]:
        """Return what Snakemake reserves: GPUs, memory and minutes; more of each after a job was killed."""
        return {
            "gpu": self.gpus + (attempt - 1 if self.gpus else 0),
            "mem_mb": math.ceil(self.memory_bytes * ASSUMED.memory_headroom / 1e6) * 2 ** (attempt - 1),
            "runtime": math.ceil(10 + self.seconds * ASSUMED.runtime_headroom / 60) * attempt,
        }


def parts(profile: Profile, stage: str) -> int:
    """Return among how many jobs a stage's work is shared: rows, layers or arms; 1 if it is not."""
    if profile.parts == 1:
        return 1
    layers = len(profile.layers)
    shared = {"activations": profile.parts, "sae": layers, "alignment": layers}
    return (shared | {"steering": min(profile.parts, len(profile.arms))}).get(stage, 1)


def jobs(profile: Profile) -> Iterator[Job]:
    """Estimate every job of a profile, in the order of the stages; where a stage is shared, the parts, then the whole."""
    for whole in _stages(profile):
        number = parts(profile, whole.stage)
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


def job(profile: Profile, stage: str, model: str | None = None, *, part: bool = False) -> Job:
    """Return the estimate of one job, or of one of its parts; ``model`` is given for stages that run per model.

    The whole that joins the parts is given what the stage would take alone: it makes what a part failed to make.
    """
    candidates = jobs(profile) if part else _stages(profile)
    return next(one for one in candidates if one.stage == stage and model in (None, one.model) and one.part == part)


def _stages(profile: Profile) -> Iterator[Job]:
    amount = work(profile)
    sizes = {name: size(source) or UNKNOWN for name, source in profile.sources.items()}
    steered = sizes[profile.sae_model]
    yield _cpu_job(profile, "vectors", amount.annotations * 2e3, amount.annotations * 2e4)
    for name, model in sizes.items():
        yield _activations(profile, name, model, amount)
    for name, model in sizes.items():
        yield _diagnosis(profile, name, model.first(profile.first_layers), amount)
    yield _cpu_job(profile, "comparison", 0, 0)
    arms = TUNED_ARMS + profile.label_shuffles
    epochs = {"sae": _recipe(profile, steered, amount).epochs, "alignment": arms * profile.alignment_epochs}
    for stage in epochs:
        yield _autoencoders(profile, stage, steered, amount, epochs=epochs[stage])
    yield _steering(profile, steered, amount)
    yield _judging(profile, amount)
    yield _cpu_job(profile, "claims", 0, 0.25e9)


def planned_gpu(profile: Profile) -> str | None:
    """Return the GPU that jobs are planned for: the profile's, else this machine's; None if they run on the CPU."""
    return None if profile.device == "cpu" else profile.gpu or machine.gpu()


def _threads(profile: Profile) -> int:
    """Return the cores of a job: the profile's; no more than this machine has, unless a GPU of another one is named."""
    return profile.threads if profile.gpu else min(profile.threads, os.cpu_count() or 1)


def _cores(profile: Profile) -> float:
    """Return how many times as fast as one core a job's cores are together."""
    return 1 + (_threads(profile) - 1) * ASSUMED.share_of_further_cores


def _cpu_job(profile: Profile, stage: str, flops: float, memory: float) -> Job:
    seconds = ASSUMED.seconds_to_start_a_job + flops / (machine.rates().product * _cores(profile))
    return Job(stage, None, seconds, ASSUMED.gigabytes_of_a_job * 1e9 + memory, flops=flops)


def _gpus(profile: Profile, weights: float, batch: float = 0) -> int:
    name = planned_gpu(profile)
    if name is None or weights < SMALL_MODEL_BYTES:
        return 0
    needed = max(weights * ASSUMED.memory_headroom, weights + batch)
    return math.ceil(needed / (gpu(name)["memory_gigabytes"] * 1e9))


def _rate(profile: Profile, gpus: int, dtype: str, share: float) -> float:
    """Return the FLOPs per second that a job sustains: a share of a GPU's peak, or what this machine's cores did."""
    name = planned_gpu(profile)
    if not gpus or name is None:
        return machine.rates().forward * _cores(profile)
    column = "float32_teraflops" if dtype == "float32" else "bf16_teraflops"
    return gpu(name)[column] * 1e12 * share


def _with_torch(profile: Profile, weights: float, gpus: int) -> float:
    """Return the bytes of a process that holds a model: on a GPU, the host holds weights only while it reads them."""
    return ASSUMED.gigabytes_of_a_job_with_torch * 1e9 + (min(weights, 20e9) if gpus else weights)


def _activations(profile: Profile, name: str, model: Size, amount: Work) -> Job:
    rows = amount.actions if profile.rows_of(name) == "all" else amount.diagnosed(profile.probe_rows)
    reading = Reading(model.first(profile.first_layers), rows, rows * amount.tokens_per_action, profile)
    weights = reading.weight_bytes
    gpus = _gpus(profile, weights, reading.batch_bytes)
    # The layers of a model on several GPUs work one after the other, so more GPUs do not make it faster.
    opening = ASSUMED.seconds_to_start_a_job + 5 + weights / (ASSUMED.load_gigabytes_per_second * 1e9)
    batches = math.ceil(rows / min(reading.rows_per_batch, rows_per_chunk(reading)))
    forward = reading.flops / _rate(profile, gpus, profile.dtype, ASSUMED.reading_share)
    forward += batches * ASSUMED.seconds_per_batch
    writing = reading.store_bytes / (machine.rates().stored * _cores(profile))
    # Beside a GPU chunks are written while it works; on the CPU both want the cores. Then all is read back once.
    seconds = opening + (max(forward, writing) if gpus else forward + writing) + writing / 2
    memory = _with_torch(profile, weights, gpus) + reading.chunk_bytes + (0 if gpus else reading.batch_bytes)
    disk = reading.store_bytes * ASSUMED.compressed_share
    return Job("activations", name, seconds, memory, gpus, reading.tokens, reading.flops, disk, opening=opening)


def _diagnosis(profile: Profile, name: str, model: Size, amount: Work) -> Job:
    # All arms at some layers, the published one and the last token at the others, two that are the same in every layer.
    n, d = amount.subset, model.width
    thorough = min(profile.control_layers, model.layers)
    arms = 5 * thorough + 2 * (model.layers - thorough) + 2
    # Eigenvectors of the covariance, sums of products, all pairs of points, resamples. What takes the time are trees and
    # ranks, which no rate of arithmetic tells; it was measured to grow with the power 1.5 of the rows.
    draws = profile.bootstrap_draws + profile.permutations
    flops = arms * (6 * d**3 + n * n * d / 2 + n * d * d + draws * 4 * n * d)
    large = n * d >= LARGE
    each = ASSUMED.diagnosis_seconds_per_large_arm if large else ASSUMED.diagnosis_seconds_per_arm
    each *= (n / ASSUMED.rows_of_that_arm) ** 1.5
    # More than one core per process helps only linear algebra, so it is taken to help no further.
    processes = min(_threads(profile), DIAGNOSIS_PROCESSES) if large else 1
    needed = diagnosis_memory(n, min(amount.annotations, profile.probe_rows), d)
    memory = _with_torch(profile, 0, 0) + (processes * needed if large else needed - PROCESS_BYTES)
    # The decisions: ridge by kernels, every penalty anew, for two poolings of these layers and four controls.
    readings = 2 * thorough + 4
    probed, rows = min(amount.annotations, profile.probe_rows), n / len(FOUNDATIONS)
    problems = {rows: (5, 1), rows / 2: (10, 1), probed: (1, 10)}
    kernels = sum(
        count * 7 * size**2 * (4 * size + 2 * profile.permutations * targets)
        for size, (count, targets) in problems.items()
    )
    decided = readings * (ASSUMED.seconds_per_reading + kernels / machine.rates().product)
    seconds = ASSUMED.seconds_to_start_a_job + (arms * each + decided) / processes
    return Job("diagnosis", name, seconds, memory, flops=flops + readings * kernels)


def _autoencoders(profile: Profile, stage: str, model: Size, amount: Work, *, epochs: int) -> Job:
    layers, weights = len(profile.layers), _autoencoder_bytes(profile, model, amount)
    flops = 6 * weights / 4 * 0.8 * amount.exploded * epochs * layers
    training = 4 * weights  # weights, gradients and two moments
    gpus = _gpus(profile, training)
    opening = ASSUMED.seconds_to_start_a_job
    rate = _rate(profile, gpus, "float32", ASSUMED.training_share) * (1 if gpus else ASSUMED.training_share)
    seconds = opening + flops / rate
    # Layers are read one after another: the rows as stored, by split, and once more as they are trained on.
    memory = _with_torch(profile, 0, gpus) + 3 * amount.exploded * model.width * 4 + training
    disk = layers * weights  # of alignment one arm is stored whole, of the others the tuned latents
    return Job(stage, profile.sae_model, seconds, memory, gpus, flops=flops, disk_bytes=disk, opening=opening)


def _recipe(profile: Profile, model: Size, amount: Work) -> Recipe:
    return recipe_of(profile, rows=int(0.8 * amount.exploded), d_in=model.width)


def _autoencoder_bytes(profile: Profile, model: Size, amount: Work) -> float:
    return 2 * model.width * _recipe(profile, model, amount).d_sae * 4


def _steering(profile: Profile, model: Size, amount: Work) -> Job:
    weights, autoencoder = model.weight_bytes(profile.dtype, profile.device), _autoencoder_bytes(profile, model, amount)
    # One per layer steered at once, and as many that nothing trained.
    held = 2 * max(map(len, layer_groups(profile))) * autoencoder
    gpus = _gpus(profile, weights + held)
    asked = answers(profile, amount)
    n_answers = sum(conditions * prompts for conditions, _, prompts in asked)
    batches = sum(conditions * math.ceil(prompts / profile.steering_batch) for conditions, _, prompts in asked)
    tokens = n_answers * (ASSUMED.tokens_per_prompt + profile.max_new_tokens)
    step = ASSUMED.seconds_per_generation_step
    name = planned_gpu(profile)
    if gpus and name:
        bandwidth = gpu(name)["bandwidth_gigabytes_per_second"] * 1e9
        step += (weights + autoencoder) / (bandwidth * ASSUMED.generation_share_of_bandwidth)
    else:
        computed = model.forward_flops(profile.steering_batch) / _rate(profile, 0, profile.dtype, 1)
        step += max(computed, (weights + autoencoder) / (ASSUMED.memory_gigabytes_per_second * 1e9))
    opening = ASSUMED.seconds_to_start_a_job + weights / (ASSUMED.load_gigabytes_per_second * 1e9)
    seconds = opening + batches * profile.max_new_tokens * step
    memory = _with_torch(profile, weights, gpus) + held
    flops = model.forward_flops(tokens) + autoencoder / 2 * tokens
    return Job("steering", profile.sae_model, seconds, memory, gpus, tokens, flops, n_answers * 3e3, opening=opening)


def _judging(profile: Profile, amount: Work) -> Job:
    # Two scores per answer, and two orders of the comparison with the baseline's; of the sweep, comparisons only. By the
    # published protocol one order. Each judge has pairs of its own to prove itself, in two orders and once more.
    (conditions, steered, prompts), (_, swept, sweep_prompts) = answers(profile, amount)
    seen = min(profile.second_judge_prompts or prompts, prompts) if profile.second_judge else 0
    calls = (prompts + seen) * 2 * (conditions + steered) + sweep_prompts * 2 * swept
    own, against = as_published(profile)
    calls += prompts * (2 * own + against) + 3 * gold_pairs(profile) * (2 if profile.second_judge else 1)
    offline = profile.judge == "offline"
    each = ASSUMED.seconds_per_offline_verdict if offline else ASSUMED.seconds_per_judge_call
    seconds = ASSUMED.seconds_to_start_a_job + calls * each
    memory = _with_torch(profile, 0, 0) + 0.1e9 + calls * 1e4
    return Job("judging", profile.sae_model, seconds, memory, disk_bytes=calls * 6e3, judge_calls=calls)
