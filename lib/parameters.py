"""Everything a run can be told: the parameters of each notebook and the keys of a profile.

A parameter has one name everywhere: the key in a profile, the variable in a notebook and ``-p`` on papermill's
command line. An unknown key is an error, because a mistyped one that is silently ignored gives a run that is not
what its profile says.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple


class ParameterError(ValueError):
    """A parameter has an unknown name, a wrong type or no value."""


Agreement = Literal["action-agree", "rot-agree"]
DType = Literal["float32", "bfloat16", "float16"]
Pooling = Literal["mean", "mean_without_first", "action", "last"]
Arm = Literal["baseline", "aligned", "untuned", "shuffled", "random"]


@dataclass(frozen=True)
class MoralVectors:
    """Parameters of notebook 01."""

    run_dir: str
    annotations: str
    agreement: Agreement
    seed: int
    PATHS: ClassVar = ("annotations",)


@dataclass(frozen=True)
class ResidualStreams:
    """Parameters of notebook 02; ``model_source`` is a local directory or a hub id."""

    run_dir: str
    model: str
    model_source: str
    revision: str | None
    dtype: DType
    token_budget: int
    PATHS: ClassVar = ("model_source",)


@dataclass(frozen=True)
class Diagnosis:
    """Parameters of notebook 03."""

    run_dir: str
    model: str
    pooling: Pooling
    bootstrap_draws: int
    permutations: int
    seed: int


@dataclass(frozen=True)
class CompareModels:
    """Parameters of notebook 04; ``models`` names the diagnoses to compare."""

    run_dir: str
    models: list[str]
    equivalence_margin: float
    seed: int


@dataclass(frozen=True)
class SparseAutoencoders:
    """Parameters of notebook 05."""

    run_dir: str
    model: str
    layers: list[int]
    pooling: Pooling
    expansion: int
    target_l0: float
    sae_epochs: int
    learning_rate: float
    batch_size: int
    permutations: int
    seed: int


@dataclass(frozen=True)
class FeatureAlignment:
    """Parameters of notebook 06."""

    run_dir: str
    model: str
    layers: list[int]
    pooling: Pooling
    alignment_epochs: int
    alignment_learning_rate: float
    alignment_objective: Literal["six-term", "three-term"]
    bootstrap_draws: int
    seed: int


@dataclass(frozen=True)
class Steering:
    """Parameters of notebook 07."""

    run_dir: str
    model: str
    model_source: str
    revision: str | None
    dtype: DType
    layers: list[int]
    arms: list[Arm]
    strength: float
    mode: Literal["add", "replace", "blend"]
    features: Literal["all", "selected"]
    prompts: str
    prompt_limit: int | None
    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    steering_batch: int
    seed: int
    show_content: bool
    PATHS: ClassVar = ("model_source", "prompts")


@dataclass(frozen=True)
class Judging:
    """Parameters of notebook 08; ``judge`` is ``offline`` or any model name that Inspect knows."""

    run_dir: str
    model: str
    arms: list[Arm]
    layers: list[int]
    judge: str
    bootstrap_draws: int
    seed: int
    show_content: bool


@dataclass(frozen=True)
class Claims:
    """Parameters of notebook 09."""

    run_dir: str
    models: list[str]
    sae_model: str
    layers: list[int]
    judge: str
    claims: str
    PATHS: ClassVar = ("claims",)


class StageSpecification(NamedTuple):
    """A notebook's parameters and the directory, below a run's, that it alone writes."""

    parameters: type
    directory: str


STAGES: dict[str, StageSpecification] = {
    "01_moral_vectors": StageSpecification(MoralVectors, "vectors"),
    "02_residual_streams": StageSpecification(ResidualStreams, "activations/{model}"),
    "03_diagnosis": StageSpecification(Diagnosis, "diagnosis/{model}"),
    "04_compare_models": StageSpecification(CompareModels, "comparison"),
    "05_sparse_autoencoders": StageSpecification(SparseAutoencoders, "sae/{model}"),
    "06_feature_alignment": StageSpecification(FeatureAlignment, "alignment/{model}"),
    "07_steering": StageSpecification(Steering, "responses/{model}"),
    "08_judging": StageSpecification(Judging, "judgements/{model}"),
    "09_claims": StageSpecification(Claims, "claims"),
}
"""Notebook -> its parameters and its directory."""
