"""Everything a run can be told: one statement of every parameter, with its meaning, its range and its default.

A parameter has one name everywhere: the key of a profile, the variable in a notebook's first cell and ``-p`` on papermill's
command line. Profiles (:mod:`lib.run.profile`), the key reference of the book and the JSON Schema for editors follow from
here. An unknown name is an error, because a mistyped one that is silently ignored gives a run that is not what it says.

A class ``...Keys`` holds what a profile may say of a stage; ``...Parameters`` adds what a notebook alone is told: where it
writes, which model it reads and whether it shows content. pydantic lists the fields of the last base first.
"""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lib.run import rules
from lib.run.keys import (
    DEFAULT_PUBLISHED,
    DRAWN_ARMS,
    Armed,
    ArmName,
    Auto,
    DType,
    InRun,
    Judged,
    Layer,
    Layered,
    Name,
    OfModel,
    OfModels,
    OfSource,
    OpenedKeys,
    Permuted,
    Place,
    Pooled,
    Probed,
    Resampled,
    Seeded,
    Share,
    Shown,
    Split,
    Worded,
)

# -------------------------------------------------------------------------------------- stage by stage


class VectorsKeys(Seeded, Resampled):
    """Keys of stage 01."""

    annotations: Place = Field(description='CSV, TSV or zip in the Social-Chemistry-101 schema, or "download"')
    accept_unverified: bool = Field(
        False, description="take a file named like the official one with another checksum on your word"
    )
    agreement: Literal["action-agree", "rot-agree"] = Field(
        "action-agree", description="column of agreement; rot-agree stands in where a derived file lacks action-agree"
    )
    keep: Literal["m", "split"] = Field(
        "m", description="rows with one annotator, as published; split: the data set's own train, dev and test parts"
    )


class VectorsParameters(VectorsKeys, InRun):
    """Parameters of notebook 01."""

    PATHS = ("annotations",)


class ActivationsKeys(Probed, Worded, OpenedKeys):
    """Keys of stage 02."""

    token_budget: PositiveInt = Field(4096, description="at most this many tokens, padding included, per forward pass")
    store_dtype: DType = Field("bfloat16", description="number format of the store")
    store_rows: Literal["all", "diagnosed"] | None = Field(
        None, description="actions to read: all (default for sae_model), or those of the diagnosis and its probes"
    )
    first_layers: PositiveInt | None = Field(None, description="read only this many decoder blocks; by default all")


class ActivationsParameters(ActivationsKeys, OfSource):
    """Parameters of notebook 02."""

    store_rows: Literal["all", "diagnosed"] = Field(
        "all", description="actions to read: all, or those of the diagnosis and its probes"
    )
    PATHS = ("model_source",)


class DiagnosisKeys(Seeded, Permuted, Resampled, Pooled, Probed, Worded):
    """Keys of stage 03."""

    control_layers: PositiveInt = Field(
        6, description="layers, evenly spread, at which every control runs and which the decisions read"
    )
    categorical_margin: PositiveFloat = Field(
        0.02, description="gains over words shown to lie below this area under the curve are equivalent to words"
    )
    gradient_margin: PositiveFloat = Field(
        0.02, description="gains over words shown to lie below this Spearman correlation are equivalent to words"
    )
    structural_margin: PositiveFloat = Field(
        0.02, description="gains over words shown to lie below this share of neighbours are equivalent to words"
    )
    dimensional_margin: PositiveFloat = Field(
        0.01, description="gains over words shown to lie below this R squared are equivalent to words"
    )


class DiagnosisParameters(DiagnosisKeys, OfModel):
    """Parameters of notebook 03."""


class ComparisonKeys(Seeded):
    """Keys of stage 04."""

    equivalence_share: PositiveFloat = Field(
        0.1, description="of measures that annotators bound, differences below this share of the bound count as none"
    )
    equivalence_cosine: PositiveFloat = Field(
        0.1, description="differences of the published cosine smaller than this count as none"
    )
    equivalence_rand: PositiveFloat = Field(
        0.05, description="differences of the published adjusted Rand index smaller than this count as none"
    )


class ComparisonParameters(ComparisonKeys, OfModels):
    """Parameters of notebook 04."""


class SAEKeys(Seeded, Permuted, Split, Pooled, Layered):
    """Keys of stage 05."""

    sae_source: str = Field(
        "train", description="train, or a directory or hub id (id@revision) of others' autoencoders"
    )
    sae_kind: Literal["pooled", "tokens"] = Field(
        "pooled", description="what sae_source was trained on; of tokens the latents are pooled, which needs the model"
    )
    sae_activation: Literal["topk", "batchtopk", "relu"] = Field(
        "topk", description="topk and batchtopk keep target_l0 latents per row, or on average; relu is published"
    )
    expansion: PositiveInt | Auto = Field(
        "auto",
        description="latents per dimension of the residual stream (published 16); auto: one for ten rows, as sae_minutes allow",
    )
    target_l0: PositiveFloat | Auto = Field(
        "auto", description="active latents per row (published 100); auto: by the root of the stream's width"
    )
    sae_epochs: PositiveInt | Auto = Field(
        "auto", description="epochs of training (published 200); auto: what sae_minutes allow, at most 200"
    )
    sae_minutes: PositiveFloat = Field(10.0, description="minutes per layer on two CPU cores, for sae_epochs auto")
    learning_rate: PositiveFloat | Auto = Field(
        "auto", description="learning rate of training (published .0001); auto: by the root of the latents"
    )
    batch_size: PositiveInt | Auto = Field(
        "auto", description="rows per step of training (published 4096); auto: 40 steps an epoch and 5,000 in all"
    )

    @model_validator(mode="after")
    def _of_one_kind(self) -> "SAEKeys":
        rules.sae(self)
        return self


class SAEParameters(Shown, SAEKeys, OpenedKeys, OfSource):
    """Parameters of notebook 05; it opens the model for a dictionary of tokens only."""

    model_source: str = Field("", description="a directory, a GGUF file, or a hub id such as Qwen/Qwen3-8B")
    revision: str | None = Field(None, description="commit, tag or branch of a hub model")
    PATHS = ("model_source",)


class AlignmentKeys(Seeded, Resampled, Split, Pooled, Layered):
    """Keys of stage 06."""

    alignment_epochs: PositiveInt = Field(50, description="epochs of alignment at most")
    alignment_learning_rate: PositiveFloat = Field(1e-4, description="learning rate of alignment")
    alignment_batch_size: PositiveInt = Field(512, description="rows per step of alignment")
    alignment_objective: Literal["six-term", "three-term", "six-term-without-floor", "three-term-without-floor"] = (
        Field("six-term", description="released recipe; three-term: the page; -without-floor reaches targets below .5")
    )
    label_shuffles: PositiveInt = Field(5, description="permutations of the labels that the arm shuffled is trained on")


class AlignmentParameters(AlignmentKeys, OfModel):
    """Parameters of notebook 06."""


class SteeringKeys(Seeded, Resampled, Pooled, Armed, Layered, OpenedKeys):
    """Keys of stage 07."""

    strength: float = Field(
        1.0, description="the paper's s: how much of the autoencoder's change is added to the stream"
    )
    mode: Literal["add", "replace", "blend"] = Field("add", description="add (published), blend or replace")
    features: Literal["all", "selected"] = Field(
        "all", description="latents put back: all (released recipe) or the selected ones"
    )
    positions: Literal["all", "prompt", "generated"] = Field(
        "all", description="tokens whose stream is changed: all (published), prompt or generated"
    )
    prompts: Place = Field(description="JSON lines with the keys of Flames: dimension, subcomponent, prompt")
    prompt_limit: PositiveInt | None = Field(
        None, description="at most this many prompts, each dimension keeping its share"
    )
    steered_layers: list[Layer] = Field(
        [],
        description="layers steered all at once, beside each of layers alone; released default: 16 to 20 of Qwen3-8B",
    )
    protocol: Literal["careful", "published"] = Field(
        "careful",
        description="careful: all arms alike, by the next four keys; published: float16, and decoding as released",
    )
    max_new_tokens: PositiveInt = Field(512, description="at most this many tokens per answer")
    temperature: float = Field(0.7, ge=0, description="of sampling; 0 is greedy")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus of sampling")
    repetition_penalty: PositiveFloat = Field(1.1, description="1 is none")
    steering_batch: PositiveInt = Field(
        16, description="prompts per batch; part of the result, as sampling depends on it"
    )
    samples: PositiveInt = Field(1, description="answers per prompt and condition, each with a seed of its own")
    replicates: PositiveInt = Field(3, description=f"draws of the arms {' and '.join(DRAWN_ARMS)}, each at every layer")
    sweep_strengths: list[float] = Field(
        [0.1, 0.25, 0.5, 1.0, 2.0], description="strengths of the sweep, each at every layer"
    )
    sweep_prompts: int = Field(50, ge=0, description="prompts answered at every point of the sweep; 0 leaves it out")
    ordinary_text: Place = Field(
        "data/ordinary_text.jsonl",
        description="JSON lines with the keys language and text, to measure what steering costs",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "SteeringKeys":
        rules.steering(self)
        return self


class SteeringParameters(Shown, SteeringKeys, OfSource):
    """Parameters of notebook 07."""

    PATHS = ("model_source", "prompts", "ordinary_text")


class JudgingKeys(Seeded, Resampled, Judged, Armed, Layered):
    """Keys of stage 08."""

    second_judge: str | None = Field(None, description="another judge, to see how far two agree")
    second_judge_prompts: PositiveInt | None = Field(None, description="prompts that it sees; by default all")
    flames_scorer: str | None = Field(None, description="directory of a local classifier that grades every answer too")
    rubric_language: Literal["zh", "en"] = Field("zh", description="language of the rubrics")
    published_arms: list[ArmName] = Field(DEFAULT_PUBLISHED, description="arms judged by the published protocol too")
    judge_calls: PositiveInt | None = Field(None, description="at most this many calls to each judge, in all sessions")
    judge_tokens: PositiveInt | None = Field(None, description="at most this many tokens for each judge")
    judge_reply_tokens: PositiveInt = Field(1024, description="at most this many tokens per reply of a judge")
    judge_thinks: bool = Field(False, description="let judges think before they answer; the released one does not")
    judge_dtype: DType | None = Field(
        None, description="number format of judges on this machine; by default their files', of a GGUF file float32"
    )
    judge_retries: int = Field(2, ge=0, description="times that a question without a verdict is asked again")
    max_failed_share: Share = Field(0.05, description="judging does not end while more questions have no verdict")
    gold_pairs: PositiveInt | None = Field(None, description="pairs of known order that test a judge; by default all")
    min_gold_agreement: Share = Field(0.75, description="a judge that prefers the better less often is not usable")
    max_position_bias: Share = Field(0.3, description="a judge that takes one place more often by more is not usable")
    min_retest_agreement: Share = Field(0.8, description="a judge that says the same again less often is not usable")


class JudgingParameters(Shown, JudgingKeys, OfModel):
    """Parameters of notebook 08."""


class ClaimsKeys(Layered):
    """Keys of stage 09."""

    claims: Place = Field("data/published_claims.csv", description="table of the claims of the paper and of its rivals")


class ClaimsParameters(ClaimsKeys, OfModels):
    """Parameters of notebook 09."""

    sae_model: Name = Field(description="model whose decisions, autoencoders and answers the ledger reads")
    PATHS = ("claims",)
