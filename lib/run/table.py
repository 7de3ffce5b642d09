"""The one table of stages: what each is called, is told, reads and writes. Notebooks, workflow and plan read it here.

A stage has one name: notebook ``NN_name``, package ``lib/name``, directory ``runs/<run>/name``, tests ``tests/name``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib.run import parameters as p
from lib.run.keys import Parameters

KINDS = ("categorical", "gradient", "structural", "dimensional")
"""The four kinds of indifference; stage 03 writes a table for each."""


@dataclass(frozen=True)
class StageSpecification:
    """One stage.

    Attributes:
        name: of the stage everywhere.
        number: of its notebook.
        parameters: what its notebook is told.
        inputs: name -> path; ``{...}`` is a parameter, paths in ``{run_dir}`` are results of earlier stages. An input
            named ``{models}`` stands for one per model.
        optional: inputs that are left out where the parameter names no local path.
        per_model: whether the stage writes a directory per model; ``every_model`` whether it runs for all of a run's.
        kept: folders that stay when results of another identity are moved aside: what was paid for and says itself what
            it belongs to.
    """

    name: str
    number: int
    parameters: type[Parameters]
    inputs: Mapping[str, str]
    optional: tuple[str, ...] = ()
    per_model: bool = True
    every_model: bool = False
    kept: tuple[str, ...] = ()

    @property
    def notebook(self) -> str:
        """Name of the notebook, without its suffix."""
        return f"{self.number:02d}_{self.name}"

    def directory(self, model: str | None) -> str:
        """Return the directory below the run's that the stage alone writes."""
        return f"{self.name}/{model}" if self.per_model else self.name

    @property
    def needs(self) -> list[str]:
        """Earlier stages whose results this one reads, in their order."""
        read = {path.split("/")[1] for path in self.inputs.values() if path.startswith("{run_dir}/")}
        return [name for name in STAGES if name in read]

    def input_paths(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return name -> path of every input under these parameters; ``{models}`` becomes one per model."""
        paths = {}
        for name, path in self.inputs.items():
            if name == "{models}":
                paths |= {model: path.format(**values, each=model) for model in values["models"]}
            else:
                paths[name] = path.format(**values)
        return paths


VECTORS = "{run_dir}/vectors"
ROWS = {"annotations": f"{VECTORS}/annotations.parquet", "exploded": f"{VECTORS}/exploded.parquet"}
STREAMS = {"activations": "{run_dir}/activations/{model}"}

STAGES: dict[str, StageSpecification] = {
    stage.name: stage
    for stage in (
        StageSpecification(
            "vectors",
            1,
            p.VectorsParameters,
            {"annotations": "{annotations}", "published_counts": "data/published_bucket_counts.csv"},
            per_model=False,
        ),
        StageSpecification(
            "activations",
            2,
            p.ActivationsParameters,
            {"annotations": ROWS["annotations"], "subset": f"{VECTORS}/subset.parquet"},
            every_model=True,
        ),
        StageSpecification(
            "diagnosis",
            3,
            p.DiagnosisParameters,
            {
                "annotations": ROWS["annotations"],
                "subset": f"{VECTORS}/subset.parquet",
                "ceiling": f"{VECTORS}/ceiling.parquet",
                **STREAMS,
            },
            every_model=True,
        ),
        StageSpecification(
            "comparison",
            4,
            p.ComparisonParameters,
            {
                "{models}": "{run_dir}/diagnosis/{each}",
                "registry": "data/models.csv",
                "demo_registry": "data/demo/models.csv",
            },
            per_model=False,
        ),
        StageSpecification(
            "sae", 5, p.SAEParameters, {**ROWS, **STREAMS, "sae_source": "{sae_source}"}, optional=("sae_source",)
        ),
        StageSpecification("alignment", 6, p.AlignmentParameters, {**ROWS, **STREAMS, "sae": "{run_dir}/sae/{model}"}),
        StageSpecification(
            "steering",
            7,
            p.SteeringParameters,
            {
                "prompts": "{prompts}",
                "ordinary_text": "{ordinary_text}",
                **ROWS,
                **STREAMS,
                "sae": "{run_dir}/sae/{model}",
                "alignment": "{run_dir}/alignment/{model}",
            },
        ),
        StageSpecification(
            "judging",
            8,
            p.JudgingParameters,
            {
                "steering": "{run_dir}/steering/{model}",
                "rubrics": "data/rubrics",
                "gold": "data/judge_gold.jsonl",
            },
            kept=("logs",),
        ),
        StageSpecification(
            "claims",
            9,
            p.ClaimsParameters,
            {
                "claims": "{claims}",
                "settings": "data/published_settings.csv",
                "vectors": VECTORS,
                "{models}": "{run_dir}/diagnosis/{each}",
                "comparison": "{run_dir}/comparison",
                "sae": "{run_dir}/sae/{sae_model}",
                "alignment": "{run_dir}/alignment/{sae_model}",
                "steering": "{run_dir}/steering/{sae_model}",
                "judging": "{run_dir}/judging/{sae_model}",
            },
            per_model=False,
        ),
    )
}
"""Stage -> its specification, in the order in which they run."""
