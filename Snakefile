"""The graph of notebooks: Snakemake runs the nine stages of one profile, each notebook through papermill.

    snakemake --cores all --config profile=profiles/demo.yaml             # this machine
    snakemake --profile profiles/slurm --config profile=profiles/paper.yaml    # a cluster

A job is a notebook with its parameters; what it promises is the manifest of its stage. Parameters of finished stages
are compared with the profile before anything runs: results of another identity are refused, never reused. What a job
reserves (cards, memory, minutes) is what `make plan` says, and more of it after a job was killed for memory.

With `partial=true` the models are compared that have been diagnosed, for runs in which a model failed.
"""

import json
import sys

from snakemake.exceptions import WorkflowError

from lib import failures, jobs, parts, runs
from lib.parameters import STAGES, ParameterError
from lib.profiles import PER_MODEL, load_profile, refuse_other_results
from lib.provenance import sha256_of_json

try:
    PROFILE_FILE = config.get("profile", "profiles/demo.yaml")
    PROFILE = load_profile(PROFILE_FILE)
    refuse_other_results(PROFILE)
except (ParameterError, runs.MismatchError) as error:
    raise WorkflowError(str(error))

RUN = f"runs/{PROFILE.run}"
PARTIAL = str(config.get("partial", False)).lower() == "true"
MODELS = failures.diagnosed(PROFILE) if PARTIAL else list(PROFILE.sources)
PYTHON = sys.executable


def files(notebook):
    """What a stage reads from outside the run; its models apart, and what it downloads."""
    values, paths = PROFILE.stage_parameters(notebook), getattr(STAGES[notebook].parameters, "PATHS", ())
    return [values[name] for name in paths if name != "model_source" and values[name] not in (None, "download")]


wildcard_constraints:
    model="[^/]+",
    part=r"\d+",


onstart:
    if missing := [path for notebook in STAGES for path in files(notebook) if not runs.resolve(path).exists()]:
        raise WorkflowError(f"input not found: {missing[0]}. Paths start at the project root; see README.")


def manifest(notebook, model="{model}"):
    """The file that says a stage is finished."""
    return f"{RUN}/{STAGES[notebook].directory}/manifest.json".format(model=model)


def named(notebook, folder, suffix):
    """A job's file in one of the run's folders."""
    return f"{RUN}/{folder}/{jobs.job_name(notebook, '{model}')}.{suffix}"


def inputs(notebook, whole=True):
    """Manifests of the stages that a job reads, files from outside, a local model's configuration, and a whole's parts."""

    def of_job(wildcards):
        model = wildcards.get("model")
        # A file that has yet to be fetched is missed when the run starts, not when its graph is shown.
        found = [path for path in files(notebook) if runs.resolve(path).exists()]
        for stage in jobs.NEEDS[notebook]:
            each = MODELS if notebook == "04_compare_models" else [model or PROFILE.sae_model]
            found += [manifest(stage, name) for name in each]
        if notebook == "02_residual_streams" and (path := PROFILE.sources[model].path):
            found.append(f"{path}/config.json")
        return found + (parts.markers(PROFILE, notebook, model) if whole else [])

    return of_job


def parameters(notebook):
    """The notebook's parameters as JSON, for a job's wildcards."""

    def of_job(wildcards):
        values = PROFILE.stage_parameters(notebook, wildcards.get("model"))
        return json.dumps(values | ({"models": MODELS} if "models" in values else {}))

    return of_job


def code(notebook):
    """A hash of everything a notebook runs, so that changed code is a reason to run it again."""
    return lambda wildcards: sha256_of_json([runs.notebook_code(notebook), runs.code_hash(notebook)])


def reserved(notebook, resource, part=False):
    """Cards (gpu), memory (mem_mb) or minutes (runtime) of a job or a part of it, for the given attempt."""

    def of_job(wildcards, attempt):
        return jobs.job(PROFILE, notebook, wildcards.get("model"), part).resources(attempt)[resource]

    return of_job


EXECUTE = (
    "{PYTHON} -m lib.notebooks execute notebooks/{params.notebook}.ipynb {output.notebook:q} {params.parameters:q} "
    "--log {log:q} --cards {resources.gpu} --attempt {resources.attempt}"
)


# Every stage is a target of its own: a stage whose output was removed is made again even where later ones are there.
rule all:
    input:
        failures.possible_targets(PROFILE, MODELS, manifest) if PARTIAL else [
            manifest(notebook, model)
            for notebook in STAGES
            for model in (MODELS if notebook in PER_MODEL else [PROFILE.sae_model])
        ],


for NOTEBOOK in STAGES:

    rule:
        name:
            NOTEBOOK[3:]
        input:
            inputs(NOTEBOOK),
        output:
            manifest=manifest(NOTEBOOK),
            notebook=named(NOTEBOOK, "notebooks", "ipynb"),
        log:
            named(NOTEBOOK, "logs", "log"),
        benchmark:
            named(NOTEBOOK, "benchmarks", "tsv")
        params:
            notebook=NOTEBOOK,
            parameters=parameters(NOTEBOOK),
            code=code(NOTEBOOK),
        threads: PROFILE.threads
        resources:
            gpu=reserved(NOTEBOOK, "gpu"),
            mem_mb=reserved(NOTEBOOK, "mem_mb"),
            runtime=reserved(NOTEBOOK, "runtime"),
            attempt=lambda wildcards, attempt: attempt,
        shell:
            EXECUTE


# With `parts: 4` in the profile a stage that can be shared is shared: its parts run side by side, then the whole.
for NOTEBOOK in parts.split(PROFILE):

    rule:
        name:
            f"{NOTEBOOK[3:]}_part"
        input:
            inputs(NOTEBOOK, whole=False),
        output:
            temp(parts.marker(PROFILE, NOTEBOOK, "{part}")),
        log:
            named(NOTEBOOK, "logs/parts", "{part}.log"),
        params:
            notebook=NOTEBOOK,
            executed=named(NOTEBOOK, "notebooks/parts", "{part}.ipynb"),
            parameters=parameters(NOTEBOOK),
        threads: PROFILE.threads
        resources:
            gpu=reserved(NOTEBOOK, "gpu", part=True),
            mem_mb=reserved(NOTEBOOK, "mem_mb", part=True),
            runtime=reserved(NOTEBOOK, "runtime", part=True),
            attempt=lambda wildcards, attempt: attempt,
        shell:
            EXECUTE.replace("{output.notebook:q}", "{params.executed:q}") + " --part {output:q}"
