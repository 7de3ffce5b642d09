"""Profiles: one YAML file says everything about a run.

A profile is flat; its keys are the notebooks' parameters plus ``run``, ``models`` and ``sae_model``. Keys left
out take the defaults below, which are those of the paper or of its released recipe where one is published.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import yaml

from lib import identity, runs
from lib.parameters import STAGES, Agreement, Arm, Device, DType, Keep, ParameterError, Pooling


@dataclass(frozen=True)
class ModelSource:
    """A model of a profile: a short name and either a local directory or a hub id."""

    name: str
    path: str | None = None
    hub: str | None = None
    revision: str | None = None

    @property
    def source(self) -> str:
        """Where the weights come from: the directory or the hub id."""
        return self.path or self.hub or ""


@dataclass(frozen=True)
class Profile:
    """A whole run. Field names are the profile's keys."""

    run: str
    annotations: str
    models: list[dict[str, Any]]
    sae_model: str
    prompts: str
    layers: list[int]
    accept_unverified: bool = False
    agreement: Agreement = "action-agree"
    keep: Keep = "m"
    dtype: DType = "float32"
    token_budget: int = 4096
    device: Device = "auto"
    store_dtype: DType = "float32"
    first_layers: int | None = None
    trust_remote_code: str | None = None
    pooling: Pooling = "mean"
    bootstrap_draws: int = 200
    permutations: int = 200
    control_layers: int = 6
    probe_rows: int = 25_000
    equivalence_margin: float = 0.1
    split: str = "grouped"
    sae_source: str = "train"
    sae_activation: str = "relu"
    expansion: int = 16
    target_l0: float = 100.0
    sae_epochs: int = 200
    learning_rate: float = 1e-4
    batch_size: int = 4096
    alignment_epochs: int = 50
    alignment_learning_rate: float = 1e-4
    alignment_batch_size: int = 512
    alignment_objective: str = "six-term"
    # random-weights is a control of alignment, where it is measured; it answers too if a profile names it.
    arms: list[Arm] = field(default_factory=lambda: [arm for arm in get_args(Arm) if arm != "random-weights"])
    strength: float = 1.0
    mode: str = "add"
    features: str = "all"
    positions: str = "all"
    prompt_limit: int | None = None
    decoding: str = "equal"
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    steering_batch: int = 16
    sweep_arms: list[Arm] = field(default_factory=lambda: ["baseline", "aligned", "untuned", "random-direction"])
    sweep_strengths: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0, 2.0])
    sweep_prompts: int = 50
    ordinary_text: str = "data/ordinary_text.jsonl"
    judge: str = "offline"
    second_judge: str | None = None
    second_judge_prompts: int | None = None
    flames_scorer: str | None = None
    rubric_language: str = "zh"
    judge_calls: int | None = None
    judge_tokens: int | None = None
    claims: str = "data/published_claims.csv"
    seed: int = 0
    threads: int = 1
    card: str = "H100"
    parts: int = 1

    @property
    def sources(self) -> dict[str, ModelSource]:
        """The models by name, each entry's keys checked."""
        known = [item.name for item in fields(ModelSource)]
        sources = {}
        for entry in self.models:
            runs.check_names(list(entry), known, "key of a model in the profile")
            model = runs.build(ModelSource, entry, "a model in the profile")
            if bool(model.path) == bool(model.hub):
                raise ParameterError(f"model {model.name!r} needs either `path:` (a directory) or `hub:` (a hub id)")
            if model.name in sources:
                raise ParameterError(f"two models are named {model.name!r}; names must differ")
            sources[model.name] = model
        return sources

    def stage_parameters(self, notebook: str, model: str | None = None) -> dict[str, Any]:
        """Return the parameters of one notebook, as papermill takes them."""
        model = model or self.sae_model
        source = self.sources[model]
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {
            "run_dir": f"runs/{self.run}",
            "model": model,
            "models": list(self.sources),
            "model_source": source.source,
            "revision": source.revision,
            "show_content": False,
        }
        return {item.name: values[item.name] for item in fields(STAGES[notebook].parameters)}


def load_profile(path: str | Path) -> Profile:
    """Read and check a profile.

    Raises:
        ParameterError: the file is not there or is not a mapping, or a key is unknown (the nearest right one is
            named), missing or of the wrong type.
    """
    file = Path(path).expanduser()
    file = file if file.is_absolute() or file.exists() else runs.resolve(file)
    if not file.exists():
        raise ParameterError(f"profile not found: {path}")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ParameterError(f"profile {file.name} should be a mapping of keys to values, got {type(content).__name__}")
    runs.check_names(list(content), [item.name for item in fields(Profile)], f"key in profile {file.name}")
    profile = runs.build(Profile, content, f"profile {file.name}")
    if profile.sae_model not in profile.sources:
        raise ParameterError(
            f"profile {file.name}: sae_model is {profile.sae_model!r}, which is not among the models "
            f"{', '.join(profile.sources)}"
        )
    for notebook, stage in STAGES.items():
        runs.build(stage.parameters, profile.stage_parameters(notebook), f"profile {file.name}")
    return profile


def refuse_other_results(profile: Profile) -> None:
    """Stop before anything runs if a finished stage of this run was made with other parameters.

    Raises:
        runs.MismatchError: names the stage's directory and the field that differs.
    """
    for notebook, stage in STAGES.items():
        models = list(profile.sources) if notebook in PER_MODEL else [profile.sae_model]
        for model in models:
            values = profile.stage_parameters(notebook, model)
            wanted = runs.build(stage.parameters, values, f"profile, notebook {notebook}")
            directory = runs.stage_directory(notebook, wanted)
            if (directory / "manifest.json").exists():
                recorded = runs.read_manifest(directory)["identity"]["parameters"]
                # A run that went on without a failed model is completed by the next one, not refused.
                if set(recorded.get("models", [])) < set(values.get("models", [])):
                    recorded |= {"models": values["models"]}
                asked = {"parameters": identity.identifying_parameters(wanted)}
                identity.refuse_difference(directory, {"parameters": recorded}, asked)


PER_MODEL = ("02_residual_streams", "03_diagnosis")
"""Notebooks that run once for every model of the profile."""
