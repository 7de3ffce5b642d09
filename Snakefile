"""The graph of notebooks: Snakemake runs the nine stages of one profile, each notebook through papermill.

    snakemake --cores all --config profile=profiles/demo.yaml

A job is a notebook with its parameters; what it promises is the manifest of its stage. Parameters of finished stages
are compared with the profile before anything runs: results of another identity are refused, never reused.
"""

import json
import sys

from snakemake.exceptions import WorkflowError

from lib import runs
from lib.parameters import STAGES, ParameterError
from lib.profiles import load_profile, refuse_other_results
from lib.provenance import sha256_of_json

try:
    PROFILE = load_profile(config.get("profile", "profiles/demo.yaml"))
    refuse_other_results(PROFILE)
except (ParameterError, runs.MismatchError) as error:
    raise WorkflowError(str(error))

RUN = f"runs/{PROFILE.run}"
MODELS = list(PROFILE.sources)
SAE_MODEL = PROFILE.sae_model
PYTHON = sys.executable


wildcard_constraints:
    model="[^/]+",


def manifest(notebook, model=None):
    """The file that says a stage is finished."""
    directory = STAGES[notebook].directory
    return f"{RUN}/{directory}/manifest.json" if model is None else manifest(notebook).format(model=model)


def executed(notebook, model=None):
    """Where the executed notebook goes."""
    return f"{RUN}/notebooks/{notebook}.ipynb" if model is None else f"{RUN}/notebooks/{notebook}.{model}.ipynb"


def parameters(notebook):
    """The notebook's parameters as JSON, for a job's wildcards."""
    return lambda wildcards: json.dumps(PROFILE.stage_parameters(notebook, wildcards.get("model")))


def code(notebook):
    """A hash of everything a notebook runs, so that changed code is a reason to run it again."""
    return lambda wildcards: sha256_of_json([runs.notebook_code(notebook), runs.code_hash(notebook)])


def local_weights(wildcards):
    """The weights file of a model in a directory; a hub's are not files of this machine."""
    path = PROFILE.sources[wildcards.model].path
    return [f"{path}/config.json"] if path else []


EXECUTE = "{PYTHON} -m lib.notebooks execute notebooks/{params.notebook}.ipynb {output.notebook:q} {params.parameters:q}"


# Every stage is a target of its own: a stage whose output was removed is made again even where later ones are there.
rule all:
    input:
        manifest("01_moral_vectors"),
        [manifest("02_residual_streams", model) for model in MODELS],
        [manifest("03_diagnosis", model) for model in MODELS],
        manifest("04_compare_models"),
        manifest("05_sparse_autoencoders", SAE_MODEL),
        manifest("06_feature_alignment", SAE_MODEL),
        manifest("07_steering", SAE_MODEL),
        manifest("08_judging", SAE_MODEL),
        manifest("09_claims"),


rule moral_vectors:
    input:
        [] if PROFILE.annotations == "download" else PROFILE.annotations,
    output:
        manifest=manifest("01_moral_vectors"),
        notebook=executed("01_moral_vectors"),
    params:
        notebook="01_moral_vectors",
        parameters=parameters("01_moral_vectors"),
        code=code("01_moral_vectors"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule residual_streams:
    input:
        manifest("01_moral_vectors"),
        local_weights,
    output:
        manifest=manifest("02_residual_streams"),
        notebook=executed("02_residual_streams", "{model}"),
    params:
        notebook="02_residual_streams",
        parameters=parameters("02_residual_streams"),
        code=code("02_residual_streams"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule diagnosis:
    input:
        manifest("01_moral_vectors"),
        manifest("02_residual_streams"),
    output:
        manifest=manifest("03_diagnosis"),
        notebook=executed("03_diagnosis", "{model}"),
    params:
        notebook="03_diagnosis",
        parameters=parameters("03_diagnosis"),
        code=code("03_diagnosis"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule compare_models:
    input:
        [manifest("03_diagnosis", model) for model in MODELS],
    output:
        manifest=manifest("04_compare_models"),
        notebook=executed("04_compare_models"),
    params:
        notebook="04_compare_models",
        parameters=parameters("04_compare_models"),
        code=code("04_compare_models"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule sparse_autoencoders:
    input:
        manifest("01_moral_vectors"),
        manifest("02_residual_streams", SAE_MODEL),
    output:
        manifest=manifest("05_sparse_autoencoders", SAE_MODEL),
        notebook=executed("05_sparse_autoencoders"),
    params:
        notebook="05_sparse_autoencoders",
        parameters=parameters("05_sparse_autoencoders"),
        code=code("05_sparse_autoencoders"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule feature_alignment:
    input:
        manifest("05_sparse_autoencoders", SAE_MODEL),
    output:
        manifest=manifest("06_feature_alignment", SAE_MODEL),
        notebook=executed("06_feature_alignment"),
    params:
        notebook="06_feature_alignment",
        parameters=parameters("06_feature_alignment"),
        code=code("06_feature_alignment"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule steering:
    input:
        manifest("05_sparse_autoencoders", SAE_MODEL),
        manifest("06_feature_alignment", SAE_MODEL),
        PROFILE.prompts,
    output:
        manifest=manifest("07_steering", SAE_MODEL),
        notebook=executed("07_steering"),
    params:
        notebook="07_steering",
        parameters=parameters("07_steering"),
        code=code("07_steering"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule judging:
    input:
        manifest("07_steering", SAE_MODEL),
    output:
        manifest=manifest("08_judging", SAE_MODEL),
        notebook=executed("08_judging"),
    params:
        notebook="08_judging",
        parameters=parameters("08_judging"),
        code=code("08_judging"),
    threads: PROFILE.threads
    shell:
        EXECUTE


rule claims:
    input:
        manifest("04_compare_models"),
        manifest("06_feature_alignment", SAE_MODEL),
        manifest("08_judging", SAE_MODEL),
        PROFILE.claims,
    output:
        manifest=manifest("09_claims"),
        notebook=executed("09_claims"),
    params:
        notebook="09_claims",
        parameters=parameters("09_claims"),
        code=code("09_claims"),
    threads: PROFILE.threads
    shell:
        EXECUTE
