"""Profiles: one flat YAML file says everything about a run.

Its keys are those of the stages (:mod:`lib.run.parameters`) and the ones below. Keys left out take their defaults, which are
those of the paper or of its released recipe where one is published.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError

from lib.run import parameters as p
from lib.run.files import PROJECT, CompanionError, resolve, short
from lib.run.judge_names import misnamed
from lib.run.keys import Name, Parameters, Template
from lib.run.table import STAGES
from lib.run.validation import ParameterError, nearest, problems_of
from lib.run.yaml_lines import Document, Problem, read_yaml


class ModelSource(Parameters):
    """A model of a profile: a short name and one of a local directory, a GGUF file, a hub id or another model's name."""

    name: Name = Field(description="short name, used in paths and tables")
    path: str | None = Field(None, description="local directory in Hugging Face layout")
    hub: str | None = Field(None, description="hub id such as Qwen/Qwen3-8B")
    gguf: str | None = Field(None, description="local GGUF file; its weights are unpacked to the dtype asked for")
    like: str | None = Field(
        None, description="name of another model: an untrained twin of it, with random weights drawn from the seed"
    )
    revision: str | None = Field(None, description="commit, tag or branch of the hub model")
    trust_remote_code: bool = Field(False, description="run Python code that the model brings; read it first")
    template: Template | None = Field(
        None,
        description="words around every action, by default the profile's; another entry of a model, with a name and words of "
        "its own, is one more reading of it",
    )
    store_rows: Literal["all", "diagnosed"] | None = Field(
        None, description="actions that this model reads, by default as the profile's store_rows says"
    )

    @property
    def source(self) -> str:
        """Where the model comes from: the directory, the file or the hub id."""
        return self.path or self.gguf or self.hub or ""

    @property
    def file(self) -> str | None:
        """A local file that must be there to open the model."""
        return f"{self.path}/config.json" if self.path else self.gguf


class Profile(
    p.ClaimsKeys,
    p.JudgingKeys,
    p.SteeringKeys,
    p.AlignmentKeys,
    p.SAEKeys,
    p.ComparisonKeys,
    p.DiagnosisKeys,
    p.ActivationsKeys,
    p.VectorsKeys,
):
    """A whole run. Field names are the profile's keys."""

    run: Name = Field(description="name of the run; results go to runs/<run>")
    models: list[ModelSource] = Field(
        min_length=1, description="models, each with name and one of path, hub, gguf, like"
    )
    sae_model: Name = Field(description="the model that gets autoencoders, is aligned, steered and judged")
    untrained_twin: str | None = Field(
        None, description="model of the run that is sae_model with random weights; by default the one that is like it"
    )
    threads: PositiveInt = Field(1, description="CPU cores that one job uses")
    gpu: str | None = Field(
        None,
        description="GPU that jobs are planned for (data/accelerators.csv); by default this machine's, if it has one",
    )
    parts: PositiveInt = Field(1, description="jobs among which a stage's rows, layers or arms are shared")

    @property
    def sources(self) -> dict[str, ModelSource]:
        """The models by name; an untrained twin has the source of the model it is like."""
        named = {model.name: model for model in self.models}
        return {
            name: named[model.like].model_copy(update=model.model_dump(exclude_unset=True)) if model.like else model
            for name, model in named.items()
        }

    @property
    def twins(self) -> dict[str, str]:
        """Untrained twin -> the model that it is of, by ``like`` and by ``untrained_twin``."""
        of_sae_model = {self.untrained_twin: self.sae_model} if self.untrained_twin in self.sources else {}
        return {model.name: model.like for model in self.models if model.like} | of_sae_model

    @property
    def readings(self) -> dict[str, str]:
        """Another reading of a trained model, under a template of its own -> the reading of the same model that came first."""
        first: dict[tuple[str, str | None], str] = {}
        of = {
            model.name: first.setdefault((model.source, model.revision), model.name)
            for model in self.models
            if not model.like
        }
        return {name: model for name, model in of.items() if name != model}

    def rows_of(self, model: str) -> Literal["all", "diagnosed"]:
        """Return which actions a model reads: autoencoders train on all, the diagnosis needs some."""
        return self.sources[model].store_rows or self.store_rows or ("all" if model == self.sae_model else "diagnosed")

    def stage_parameters(self, stage: str, model: str | None = None) -> dict[str, Any]:
        """Return the parameters of one notebook, as papermill takes them; ``model`` is ``sae_model`` by default."""
        model = model or self.sae_model
        source = self.sources[model]
        values = self.model_dump() | {
            "run_dir": f"runs/{self.run}",
            "model": model,
            "models": list(self.sources),
            "twins": self.twins,
            "readings": self.readings,
            "model_source": source.source,
            "revision": source.revision,
            "trust_remote_code": source.trust_remote_code,
            "untrained": self.seed if source.like else None,
            "template": source.template or self.template,
            "show_content": False,
            "store_rows": self.rows_of(model),
        }
        return {name: values[name] for name in STAGES[stage].parameters.model_fields}


def load_profile(path: str | Path) -> Profile:
    """Read and check a profile.

    Raises:
        ParameterError: all that is wrong with it, a line each, with the line of the file, the value, what is allowed and
            the nearest right name: no file, no YAML in UTF-8, a key twice, unknown, missing, out of range or of the wrong type,
            models or arms that do not fit together.
    """
    file = profile_file(path)
    document = read_yaml(file.read_bytes())
    problems, profile = [*document.problems], None
    if isinstance(document.content, dict):
        try:
            profile = Profile.model_validate(document.content)
        except ValidationError as error:
            problems += [Problem(document.line(where), said) for where, said in problems_of(error, Profile)]
        except CompanionError as error:  # keys that are right by themselves (lib/run/rules.py)
            problems.append(Problem(0, str(error)))
        problems += _misfits(document)
    elif not problems:
        kind = type(document.content).__name__
        problems = [Problem(0, f"should be a mapping of keys to values, got {kind}")]
    if problems or profile is None:
        raise ParameterError(problem_lines(file, problems))
    return profile


def profile_file(path: str | Path) -> Path:
    """Return the file of a profile, named from here or from the project root, or raise ``ParameterError``."""
    file = Path(path).expanduser()
    file = file if file.is_file() else resolve(file)
    if not file.is_file():
        others = sorted(other.stem for other in (PROJECT / "profiles").glob("*.yaml"))
        known = ", ".join(f"profiles/{name}.yaml" for name in others)
        raise ParameterError(f"profile not found: {path}.{nearest(file.stem, others)} There are: {known}.")
    return file


def problem_lines(file: Path, problems: Iterable[Problem]) -> str:
    """Write the problems of a file, a line each, in the file's order."""
    place = short(file) if file.resolve().is_relative_to(PROJECT) else file.name
    lines = [f"{place}{f', line {line}' if line else ''}: {text}" for line, text in sorted(problems)]
    return "\n".join(lines)


def _misfits(document: Document) -> Iterator[Problem]:
    """What is right by itself and wrong together; reads the values as they stand, as some may be wrong by themselves."""
    content = document.content
    listed = content["models"] if isinstance(content.get("models"), list) else []
    models = {index: entry for index, entry in enumerate(listed) if isinstance(entry, dict)}
    yield from _misfits_of_models(document, models)
    names = [entry["name"] for entry in models.values() if isinstance(entry.get("name"), str)]
    yield from _misfits_of_roles(document, names)
    for key in ("layers", "arms", "sweep_arms", "sweep_strengths"):
        values = content.get(key)
        for index, value in enumerate(values if isinstance(values, list) else []):
            if value in values[:index]:
                yield Problem(document.line((key, index)), f"{key}: {value!r} is there twice")
    for key in ("arms", "sweep_arms"):
        if isinstance(arms := content.get(key), list) and arms and "baseline" not in arms:
            yield Problem(document.line((key,)), f"{key}: lacks baseline, with which the other arms are compared")
    for key in ("judge", "second_judge"):
        if isinstance(judge := content.get(key), str) and (why := misnamed(judge)):
            yield Problem(document.line((key,)), f"{key}: {why}")


def _misfits_of_models(document: Document, models: Mapping[int, Mapping[str, Any]]) -> Iterator[Problem]:
    trained = [entry.get("name") for entry in models.values() if not entry.get("like")]
    for index, entry in models.items():
        line, name, like = document.line(("models", index)), entry.get("name"), entry.get("like")
        first = next(other for other, known in models.items() if known.get("name") == name)
        if name is not None and first != index:
            before = document.line(("models", first))
            yield Problem(line, f"two models are named {name!r}, the first in line {before}")
        sources = [key for key in ("path", "hub", "gguf", "like") if entry.get(key)]
        if len(sources) != 1:
            said = "needs one of path (a directory), hub (a hub id), gguf (a GGUF file) and like (another model's name)"
            yield Problem(line, f"models.{index}: {said}, got {' and '.join(sources) or 'none'}")
        if like and like not in trained:
            said = f"models.{index}.like: {like!r} is no trained model of the profile."
            yield Problem(line, said + nearest(str(like), [*map(str, trained)]))


def _misfits_of_roles(document: Document, names: Sequence[str]) -> Iterator[Problem]:
    sae_model, twin = document.content.get("sae_model"), document.content.get("untrained_twin")
    if names and isinstance(sae_model, str) and sae_model not in names:
        said = f"sae_model: {sae_model!r} is not among the models {', '.join(names)}.{nearest(sae_model, names)}"
        yield Problem(document.line(("sae_model",)), said)
    others = [name for name in names if name != sae_model]
    if names and isinstance(twin, str) and twin not in others:
        known = ", ".join(others) or "there are none"
        why = "is sae_model itself" if twin == sae_model else f"is none of the other models ({known})"
        said = f"untrained_twin: {twin!r} {why}.{nearest(twin, others)}"
        yield Problem(
            document.line(("untrained_twin",)), f"{said} A model with `like: {sae_model}` needs no untrained_twin."
        )
