"""Everything a run can be told: the parameters of each notebook and the keys of a profile.

A parameter has one name everywhere: the key in a profile, the variable in a notebook and ``-p`` on papermill's
command line. An unknown key is an error, because a mistyped one that is silently ignored gives a run that is not
what its profile says.
"""

import ast
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple


class ParameterError(ValueError):
    """A parameter has an unknown name, a wrong type or no value."""


Agreement = Literal["action-agree", "rot-agree"]
Keep = Literal["m", "split"]
DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "8bit", "4bit", "remote"]
Pooling = Literal["mean", "mean_without_first", "action", "last"]
Split = Literal["grouped", "published"]
Arm = Literal[
    "baseline", "aligned", "untuned", "shuffled", "random", "random-weights", "random-sae", "random-direction",
    "mean-difference",
]  # fmt: skip


@dataclass(frozen=True)
class MoralVectors:
    """Parameters of notebook 01."""

    run_dir: str
    annotations: str
    accept_unverified: bool
    agreement: Agreement
    keep: Keep
    bootstrap_draws: int
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
    device: Device
    store_dtype: DType
    first_layers: int | None
    trust_remote_code: str | None
    PATHS: ClassVar = ("model_source",)


@dataclass(frozen=True)
class Diagnosis:
    """Parameters of notebook 03."""

    run_dir: str
    model: str
    pooling: Pooling
    bootstrap_draws: int
    permutations: int
    control_layers: int
    probe_rows: int
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
    """Parameters of notebook 05; ``sae_source`` is ``train``, or a local directory or a hub id of autoencoders by others."""

    run_dir: str
    model: str
    layers: list[int]
    pooling: Pooling
    split: Split
    sae_source: str
    sae_activation: Literal["relu", "topk", "batchtopk"]
    expansion: int
    target_l0: float
    sae_epochs: int
    learning_rate: float
    batch_size: int
    permutations: int
    seed: int
    show_content: bool


@dataclass(frozen=True)
class FeatureAlignment:
    """Parameters of notebook 06."""

    run_dir: str
    model: str
    layers: list[int]
    pooling: Pooling
    split: Split
    alignment_epochs: int
    alignment_learning_rate: float
    alignment_batch_size: int
    alignment_objective: Literal["six-term", "three-term", "six-term-without-floor", "three-term-without-floor"]
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
    device: Device
    trust_remote_code: str | None
    layers: list[int]
    arms: list[Arm]
    strength: float
    mode: Literal["add", "replace", "blend"]
    features: Literal["all", "selected"]
    positions: Literal["all", "prompt", "generated"]
    pooling: Pooling
    prompts: str
    prompt_limit: int | None
    decoding: Literal["equal", "published"]
    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    steering_batch: int
    sweep_arms: list[Arm]
    sweep_strengths: list[float]
    sweep_prompts: int
    ordinary_text: str
    bootstrap_draws: int
    seed: int
    show_content: bool
    PATHS: ClassVar = ("model_source", "prompts", "ordinary_text")


@dataclass(frozen=True)
class Judging:
    """Parameters of notebook 08; a judge is ``offline`` or any model name that Inspect knows."""

    run_dir: str
    model: str
    arms: list[Arm]
    layers: list[int]
    sweep_arms: list[Arm]
    judge: str
    second_judge: str | None
    second_judge_prompts: int | None
    flames_scorer: str | None
    rubric_language: Literal["zh", "en"]
    judge_calls: int | None
    judge_tokens: int | None
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


def parameters(stage: str, namespace: Mapping[str, Any]) -> Any:
    """Validate the parameters of a notebook by name and type.

    ``namespace`` is the notebook's ``globals()``. Besides the values it holds, the names that a batch run
    injected (papermill's cell that starts with ``# Parameters``) are read from IPython's history, because
    papermill accepts any ``-p NAME`` and a mistyped one would otherwise be ignored.

    Returns:
        The stage's frozen parameter dataclass, ``STAGES[stage].parameters``.

    Raises:
        ParameterError: an unknown name (with the nearest right one), a missing one or a wrong type.
    """
    schema = STAGES[stage].parameters
    known = [item.name for item in fields(schema)]
    for source in namespace.get("In", []):
        if source.lstrip().startswith("# Parameters"):
            check_names(assigned_names(source), known, f"parameter of notebook {stage}")
    values = {name: namespace[name] for name in known if name in namespace}
    return build(schema, values, f"notebook {stage}")


def check_names(names: list[str], known: list[str], what: str) -> None:
    """Raise ``ParameterError`` for the first of ``names`` that is not ``known``, naming the nearest that is."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ParameterError(
                f"unknown {what}: {name!r}. Did you mean {nearest[0]!r}? Known: {', '.join(sorted(known))}."
            )


def build(schema: type, values: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass from ``values``, checking every type; integers are accepted where floats are due."""
    hints = typing.get_type_hints(schema)
    checked = {name: _checked(name, value, hints[name], where) for name, value in values.items()}
    try:
        return schema(**checked)
    except TypeError as error:
        missing = [item.name for item in fields(schema) if item.name not in checked]
        raise ParameterError(f"{where} lacks a value for: {', '.join(missing)}") from error


def _checked(name: str, value: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not _fits(value, hint):
        expected = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
        hint_text = (
            " (on papermill's command line, give lists with -y, e.g. -y 'layers: [2]')" if "list" in expected else ""
        )
        raise ParameterError(
            f"{where}: {name} should be {expected}, got {value!r} of type {type(value).__name__}{hint_text}"
        )
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if origin is typing.Literal:
        return value in arguments
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, hint)


def assigned_names(source: str) -> list[str]:
    """Return the names that a cell assigns at its top level, in order."""
    targets = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            targets.append(node.target.id)
    return targets
