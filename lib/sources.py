"""Where a model comes from: a directory, or a commit on a hub; and whether code of its own may run."""

import json
from pathlib import Path

import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lib import runs


class ModelError(ValueError):
    """A model cannot be opened or does not look as expected; the message says what to do."""


def fingerprint(source: str, revision: str | None = None) -> dict[str, str]:
    """Say exactly which weights ``source`` means: hashes of a directory's files, or the commit of a hub model."""
    location, commit = located(source, revision)
    if commit is not None:
        return {"hub": location, "commit": commit}
    files = [*Path(location).glob("*.safetensors"), *Path(location).glob("*.json")]
    return {file.name: runs.sha256_of_file(file) for file in sorted(files)}


def trusted(source: str, location: str, commit: str | None, trust_remote_code: str | None) -> bool:
    """Decide whether a model's own code may run: only if the user names the model."""
    if trust_remote_code is not None and trust_remote_code != source:
        raise ModelError(f"trust_remote_code names {trust_remote_code!r}, but the model is {source!r}")
    config = json.loads(_config_file(location, commit).read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(f"{source}/config.json names no model_type")
    if trust_remote_code is None and model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ModelError(
                f"{source} brings its own Python code, which is not run. Read it; to run it all the same, "
                f"set trust_remote_code: {source}"
            )
        raise ModelError(
            f"model_type {model_type!r} of {source} is not known to transformers {transformers.__version__}"
        )
    return trust_remote_code is not None


def _config_file(location: str, revision: str | None) -> Path:
    if Path(location).is_dir():
        return Path(location) / "config.json"
    return Path(hf_hub_download(location, "config.json", revision=revision))


def located(source: str, revision: str | None) -> tuple[str, str | None]:
    """Return the directory of a model and None, or its hub id and the commit that ``revision`` means now."""
    location = _place(source)
    if Path(location).is_dir():
        return location, None
    try:
        # The hub's cache names the folder of a file after its commit; without a network, the cached one is taken.
        return location, _config_file(location, revision).parent.name
    except GatedRepoError as error:
        raise ModelError(
            f"{source} is gated: accept its licence at https://huggingface.co/{source} and log in with "
            "`.venv/bin/hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{source} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{source} is neither a directory of the project nor a model of the hub") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{source} is not in the cache of the hub and the hub cannot be reached. Connect, or download it "
            f"elsewhere (`hf download {source}`) and give the directory."
        ) from error


def _place(source: str) -> str:
    directory = Path(source).expanduser()
    directory = directory if directory.is_absolute() else runs.resolve(directory)
    looks_like_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if not directory.exists() and looks_like_hub_id:
        return source
    if not directory.is_dir():
        raise ModelError(
            f"model directory not found: {source}. Paths start at the project root; a hub id is owner/name."
        )
    if not (directory / "config.json").exists():
        raise ModelError(f"{source} has no config.json: not a model in Hugging Face layout")
    if not list(directory.glob("*.safetensors")):
        raise ModelError(f"{source} has no .safetensors file; other weight formats are not read")
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise ModelError(f"{source} has no tokenizer; put tokenizer.json and tokenizer_config.json beside the weights")
    return str(directory)
