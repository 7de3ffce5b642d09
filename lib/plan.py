"""What a profile will take, before it is run: jobs, tokens, arithmetic, hours, disk, judge calls and cost.

    python -m lib.plan profiles/paper.yaml

Nothing is downloaded and no model is opened: sizes come from the registry (``data/models.csv``) or from a local
model's ``config.json`` and file headers, counts from the annotations if they lie here, else from the paper. What no
table can know is an assumption, listed with the result. The same numbers are the resources that Snakemake asks for.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lib import runs, social_chemistry
from lib.parameters import STAGES
from lib.profiles import ModelSource, Profile, load_profile

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
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
POOLINGS = 4
TUNED_ARMS = 3
"""Aligned, and the two controls that are trained the same way."""
PRICES = {"google/gemini-2.5-flash": (0.30, 2.50), "google/gemini-2.5-flash-lite": (0.10, 0.40)}
"""Judge -> dollars for a million tokens read and written (Google's price list, 2025)."""
SMALL_MODEL_BYTES = 100e6
"""A smaller model is run on the processor: a card would not make it faster."""


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


class Size(NamedTuple):
    """A model: parameters, those active for one token, decoder blocks, width."""

    parameters: float
    active: float
    layers: int
    width: int


@dataclass(frozen=True)
class Job:
    """One job's estimate. ``seconds`` is wall time; ``cards`` is 0 for a job of the processor."""

    notebook: str
    model: str | None
    seconds: float
    memory_bytes: float
    cards: int = 0
    tokens: float = 0
    flops: float = 0
    disk_bytes: float = 0
    judge_calls: int = 0

    def resources(self, attempt: int = 1) -> dict[str, int]:
        """Return what Snakemake reserves: cards, memory and minutes; more of each after a job was killed."""
        return {
            "gpu": self.cards + (attempt - 1 if self.cards else 0),
            "mem_mb": math.ceil(self.memory_bytes * ASSUMED.memory_headroom / 1e6) * 2 ** (attempt - 1),
            "runtime": math.ceil(10 + self.seconds * ASSUMED.runtime_headroom / 60) * attempt,
        }


# ------------------------------------------------------------------------------------- sizes of things


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


@cache
def registry() -> pd.DataFrame:
    """Return the registry of models, indexed by hub id."""
    return pd.read_csv(runs.PROJECT / "data" / "models.csv").set_index("hub")


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
    if source.hub not in registry().index:
        return None
    row = registry().loc[source.hub]
    return Size(row["parameters_billions"] * 1e9, row["active_billions"] * 1e9, row["layers"], row["width"])


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


# --------------------------------------------------------------------------------------------- jobs


def jobs(profile: Profile) -> Iterator[Job]:
    """Estimate every job of a profile, in the order of the stages. Models of unknown size count as an 8B model."""
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


def job(profile: Profile, notebook: str, model: str | None = None) -> Job:
    """Return the estimate of one job; ``model`` is given for the stages that run once a model."""
    found = [one for one in jobs(profile) if one.notebook == notebook and model in (None, one.model)]
    return found[0]


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
    seconds = ASSUMED.seconds_to_start_a_job + 5 + weights / (ASSUMED.load_gigabytes_per_second * 1e9)
    seconds += flops / _rate(profile, cards, profile.dtype, ASSUMED.reading_share)
    memory = 1.5e9 + (min(weights, 20e9) if cards else weights) + POOLINGS * model.layers * 512 * model.width * 16
    return Job("02_residual_streams", name, seconds, memory, cards, tokens, flops, store)


def _diagnosing(profile: Profile, name: str, model: Size, amount: Work) -> Job:
    # Eigenvalues of nested folds, sums of products, all pairs of points, resamples.
    n, d = amount.subset, model.width
    pairs, resamples = n * n * d / 4, (profile.bootstrap_draws + profile.permutations) * 8 * n * d
    flops = model.layers * (250 * d**3 + 8 * n * d * d + pairs + resamples)
    seconds = ASSUMED.seconds_to_start_a_job + model.layers * ASSUMED.diagnosis_seconds_per_layer
    memory = 1e9 + amount.actions * d * 4 + n * d * 8 * 6 + n * n * 8
    return Job("03_diagnosis", name, seconds + flops / _cores(profile), memory, flops=flops)


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
    seconds = ASSUMED.seconds_to_start_a_job + flops / _rate(profile, cards, "float32", ASSUMED.training_share)
    memory = 1.5e9 + amount.exploded * model.width * 4 * (len(profile.layers) + 1) + 4 * autoencoder
    return Job(notebook, profile.sae_model, seconds, memory, cards, flops=flops, disk_bytes=disk)


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
    seconds = ASSUMED.seconds_to_start_a_job + weights / (ASSUMED.load_gigabytes_per_second * 1e9)
    seconds += batches * profile.max_new_tokens * step
    memory = 1.5e9 + (min(weights, 20e9) if cards else weights) + sum(one[1] for one in asked) * autoencoder
    flops = 2 * (model.active + autoencoder / 4) * tokens
    return Job("07_steering", profile.sae_model, seconds, memory, cards, tokens, flops, answers * 3e3)


def _judging(profile: Profile, amount: Work) -> Job:
    # Two scores an answer, and two orders of the comparison with the baseline's answer.
    calls = sum(prompts * 2 * (conditions + steered) for conditions, steered, prompts in _answers(profile, amount))
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


# ------------------------------------------------------------------------------------------ the report


def table(profile: Profile) -> pd.DataFrame:
    """Return one row a stage and one for the whole: jobs, tokens, FLOPs, card hours, processor hours, disk, judging."""
    rows = pd.DataFrame([{item.name: getattr(one, item.name) for item in fields(one)} for one in jobs(profile)])
    rows["gpu_hours"] = rows["seconds"] / 3600 * rows["cards"]
    rows["cpu_hours"] = (rows["seconds"] / 3600).where(rows["cards"] == 0, 0.0)
    rows["disk_gigabytes"] = rows["disk_bytes"] / 1e9
    rows["cost_dollars"] = (rows["judge_calls"] * cost_of_a_call(profile.judge)).where(rows["judge_calls"] > 0, 0.0)
    sums = ["tokens", "flops", "gpu_hours", "cpu_hours", "disk_gigabytes", "judge_calls", "cost_dollars"]
    stages = rows.groupby("notebook", sort=False)
    result = stages.size().rename("jobs").to_frame().join(stages[sums].sum(min_count=1)).join(stages["cards"].max())
    whole = result.sum(skipna=False).to_frame("all").T
    whole["cards"] = result["cards"].max()
    return pd.concat([result, whole]).rename_axis("stage").reset_index()


def cost_of_a_call(judge: str) -> float:
    """Return dollars for one question to a judge: 0 for the offline rule, NaN for a judge without a known price."""
    if judge == "offline":
        return 0.0
    read, written = PRICES.get(judge, (math.nan, math.nan))
    return (read * ASSUMED.judge_tokens_read + written * ASSUMED.judge_tokens_written) / 1e6


def took(profile: Profile) -> pd.DataFrame:
    """Return planned and measured seconds of every job of a run that has been measured.

    Snakemake writes the wall time of a job into ``runs/<run>/benchmarks``.
    """
    rows = []
    for one in jobs(profile):
        path = runs.resolve(f"runs/{profile.run}/benchmarks/{job_name(one.notebook, one.model)}.tsv")
        if path.exists():
            measured = pd.read_csv(path, sep="\t").iloc[-1]
            rows.append(
                (one.notebook, one.model, one.seconds, measured["s"], one.memory_bytes / 1e6, measured["max_rss"])
            )
    return pd.DataFrame(rows, columns=["stage", "model", "planned", "took", "planned_mb", "peak_mb"])


def job_name(notebook: str, model: str | None) -> str:
    """Return the name of a job's files: the notebook, and the model where a stage has one of its own."""
    return f"{notebook}.{model}" if model and "{model}" in STAGES[notebook].directory else notebook


def calibration(profile: Profile) -> str:
    """Say in one line how a measured run compares with its plan."""
    measured = took(profile)
    if measured.empty:
        return f"calibration: run {profile.run!r} has not been measured here; `make reproduce` measures the demo"
    ratio = measured["took"].sum() / measured["planned"].sum()
    stages = measured.groupby("stage")[["planned", "took"]].sum()
    parts = ", ".join(f"{name[:2]} {row['took'] / row['planned']:.1f}" for name, row in stages.iterrows())
    return (
        f"calibration: run {profile.run!r}, {len(measured)} jobs, planned {measured['planned'].sum():.0f} s, took "
        f"{measured['took'].sum():.0f} s ({ratio:.2f} of the plan; by stage {parts}); most memory "
        f"{measured['peak_mb'].max():,.0f} MB, planned {measured['planned_mb'].max():,.0f} MB"
    )


def report(profile: Profile) -> str:
    """Return the plan as text: table, assumptions, calibration."""
    amount, lines = work(profile), table(profile)
    unknown = [name for name, source in profile.sources.items() if size(source) is None]
    shown = lines.assign(
        jobs=lines["jobs"].map("{:.0f}".format),
        cards=lines["cards"].map("{:.0f}".format),
        tokens=lines["tokens"].map(lambda value: f"{value / 1e6:,.1f} M" if value else "-"),
        flops=lines["flops"].map(lambda value: f"{value:.1e}" if value else "-"),
        gpu_hours=lines["gpu_hours"].map(lambda value: f"{value:,.1f}" if value else "-"),
        cpu_hours=lines["cpu_hours"].map("{:,.2f}".format),
        disk_gigabytes=lines["disk_gigabytes"].map("{:,.2f}".format),
        judge_calls=lines["judge_calls"].map(lambda value: f"{value:,.0f}" if value else "-"),
        cost_dollars=lines["cost_dollars"].map(lambda value: "unknown" if math.isnan(value) else f"{value:,.2f}"),
    ).rename(columns={"cards": "cards_a_job", "disk_gigabytes": "disk_GB", "cost_dollars": "judge_$"})
    assumed = "\n".join(f"  {item.name} = {getattr(ASSUMED, item.name):g}" for item in fields(ASSUMED))
    counts = f"{amount.annotations:,} annotations, {amount.actions:,} distinct actions, {amount.prompts:,} prompts"
    return "\n".join(
        [
            f"Plan of run {profile.run!r}: {len(profile.models)} models; {counts} ({amount.source}); "
            f"GPU hours are hours of one {profile.card}, processor hours on {profile.threads} cores.",
            shown.to_string(index=False),
            *(
                [f"Taken as an 8B model, because the registry does not know it: {', '.join(unknown)}"]
                if unknown
                else []
            ),
            f"Assumptions:\n{assumed}",
            calibration(profile),
        ]
    )


def main() -> None:
    """Print the plan of a profile and, beside another one, how the demo's plan compared with what it took."""
    profile = load_profile(sys.argv[1])
    print(report(profile))
    if profile.run != "demo":
        print(calibration(load_profile("profiles/demo.yaml")))


if __name__ == "__main__":
    main()
