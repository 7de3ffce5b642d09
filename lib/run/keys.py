"""The parts that the stages' parameters are made of: types, names of arms and poolings, and keys that several stages share.

A class here holds one subject; :mod:`lib.run.parameters` puts them together, stage by stage.
"""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from lib.paper import TEMPLATE

DType = Literal["float32", "bfloat16", "float16"]
Pooling = Literal["mean", "mean_without_first", "action", "last"]
ArmName = Literal[
    "baseline", "aligned", "untuned", "shuffled", "random", "random-weights", "random-sae", "random-direction",
    "mean-difference",
]  # fmt: skip
DEFAULT_ARMS = [arm for arm in get_args(ArmName) if arm != "random-weights"]
DRAWN_ARMS: tuple[ArmName, ...] = ("random-direction", "random-sae")
"""Arms of stage 07 that are drawn at random: one draw per layer and replicate."""
DEFAULT_PUBLISHED = ["baseline", "aligned", "untuned"]
DEFAULT_SWEEP = ["baseline", "aligned", "untuned", "random-direction"]
Layer = Annotated[int, Field(ge=0)]
NAME, TEMPLATE_SHAPE = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", r"^[^{}]*\{action\}[^{}]*$"
PATTERNS = {
    NAME: "be a plain name of letters, digits, '.', '_' and '-'",
    TEMPLATE_SHAPE: "hold {action} once and no other braces",
}
"""Pattern of a text -> what the text should do, for a user whose text does not."""
Name = Annotated[str, Field(pattern=NAME, max_length=64)]
"""A plain name, which is part of paths."""
Template = Annotated[str, Field(pattern=TEMPLATE_SHAPE)]
"""Words around an action, such as ``{action} is morally``; ``{action}``, which stands there once, alone is none."""
Place = Annotated[str, Field(min_length=1)]
"""A file, absolute or from the project root."""
Auto = Literal["auto"]
"""A size that follows from the data; :mod:`lib.sae.recipe` says how."""
Share = Annotated[float, Field(ge=0, le=1)]


class Parameters(BaseModel):
    """Frozen and strict: no unknown names, no conversions but from int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    PATHS: ClassVar[tuple[str, ...]] = ()
    """Parameters that name files: the files' hashes decide the results, not their places."""


# ------------------------------------------------------------------- keys that several stages share


class Seeded(Parameters):
    """Stages that draw at random."""

    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="seed of everything drawn; the published split and subset always use 42"
    )


class Resampled(Parameters):
    """Stages with bootstrap intervals."""

    bootstrap_draws: PositiveInt = Field(200, description="bootstrap resamples for every interval")


class Permuted(Parameters):
    """Stages with label shuffles."""

    permutations: PositiveInt = Field(200, description="draws of every label shuffle, whole actions at a time")


class Layered(Parameters):
    """Stages of the model with sparse autoencoders."""

    layers: list[Layer] = Field(min_length=1, description="layers (decoder blocks, from 0) with an autoencoder each")


class Pooled(Parameters):
    """Stages that read one pooling as the published one."""

    pooling: Pooling = Field("mean", description="pooling of the published arm and of the autoencoders")


class Probed(Parameters):
    """Stages that need the rows that the probes read."""

    probe_rows: PositiveInt = Field(
        4_000, description="at most this many annotations are read by ridge and the decision on dimensions"
    )


class Worded(Parameters):
    """Stages that read actions inside a prompt, or say what was read."""

    template: Template = Field(
        TEMPLATE, description="words around every action, which stands for {action}; {action} alone is none"
    )


class Split(Parameters):
    """Stages that train on one side of a split."""

    split: Literal["grouped", "published"] = Field(
        "grouped", description="grouped by action, or published: by annotation, so that actions recur across its sides"
    )


class OpenedKeys(Parameters):
    """How a model is opened."""

    dtype: DType = Field("float32", description="number format of the model's weights and activations")
    device: Literal["auto", "cpu", "cuda", "8bit", "4bit", "remote"] = Field(
        "auto",
        description="auto (all GPUs, else the CPU), cpu, cuda (one GPU), 8bit or 4bit (quantised), remote (NDIF)",
    )


class Armed(Parameters):
    """The arms that answer prompts."""

    arms: list[ArmName] = Field(DEFAULT_ARMS, min_length=1, description="arms that answer every prompt")
    sweep_arms: list[ArmName] = Field(DEFAULT_SWEEP, description="arms that answer at every strength of the sweep")


class Judged(Parameters):
    """Who judges."""

    judge: str = Field(
        "offline",
        description="offline (a rule that counts words), hf/ and a directory, GGUF file or hub id, or a name that Inspect knows",
    )


# ----------------------------------------------------------- what a notebook is told besides the keys


class InRun(Parameters):
    """Every stage."""

    run_dir: str = Field(description="where this run writes, absolute or relative to the project root")


class OfModel(InRun):
    """Stages that run once per model."""

    model: Name = Field(description="short name of the model, used in paths and tables")


class OfSource(OfModel):
    """Stages that open the model."""

    model_source: str = Field(description="a directory, a GGUF file, or a hub id such as Qwen/Qwen3-8B")
    revision: str | None = Field(description="commit, tag or branch of a hub model")
    trust_remote_code: bool = Field(False, description="run Python code that the model brings")
    untrained: int | None = Field(None, ge=0, description="seed of random weights in place of the model's own")


class OfModels(InRun):
    """Stages that read all models of a run."""

    models: list[Name] = Field(min_length=1, description="short names of the models of this run")
    twins: dict[Name, Name] = Field(
        {},
        description="untrained twin -> the model that it is of: a control, never one of the models that a claim is about",
    )
    readings: dict[Name, Name] = Field(
        {}, description="another reading of a model, under other words -> the first one: the same model, counted once"
    )


class Shown(Parameters):
    """Stages whose notebook can show text that may offend."""

    show_content: bool = Field(description="show actions, prompts and answers")
