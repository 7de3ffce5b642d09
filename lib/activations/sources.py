"""Where a model comes from: a directory, a GGUF file or a hub. What is said here is known before its weights are read."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from gguf import GGUFReader
from huggingface_hub import errors, hf_hub_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lib.activations import preflight
from lib.run.files import CompanionError, resolve, sha256_of_file
from lib.run.resources import Size, registered_size

DECIDING = {".json", ".safetensors", ".jinja", ".model", ".txt", ".py"}
"""Suffixes of the files in a model's directory that decide what it computes: chat template, vocabulary and own code too."""


class ModelError(CompanionError):
    """A model cannot be opened or does not look as expected; the message says what to do."""


class Location(NamedTuple):
    """Where transformers finds a model: a directory, perhaps with the GGUF file in it, or a hub id and its commit."""

    place: str
    gguf_file: str | None = None
    commit: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """What ``from_pretrained`` takes beside the place."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {"revision": self.commit} if self.commit else {}


def locate(source: str, revision: str | None = None) -> Location:
    """Find a directory, a file that ends in ``.gguf`` or a hub id with the commit that ``revision`` means now.

    Raises:
        ModelError: it is not there, lacks a file, or the hub does not give it; says why and what to do.
    """
    path = resolve(Path(source).expanduser())
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"GGUF file not found: {source}. Paths start at the project root.")
        return Location(str(path.parent), gguf_file=path.name)
    if path.is_dir():
        _require_files(source, path)
        return Location(str(path))
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(f"model directory not found: {source}. Paths start at the project root; hub ids: owner/name.")
    # The hub's cache names the folder of a file after its commit; without a network, the cached one is taken.
    with readable(source, revision):
        return Location(source, commit=Path(hf_hub_download(source, "config.json", revision=revision)).parent.name)


def fingerprint(source: str, *, revision: str | None = None, untrained: int | None = None) -> dict[str, str]:
    """Say exactly which model ``source`` means: hashes of a directory's files or of a GGUF file, or a hub's commit.

    Of an ``untrained`` twin the configuration and the tokenizer count, not the weights; its seed is a parameter.
    """
    found = locate(source, revision)
    if found.commit:
        return {"hub": found.place, "commit": found.commit}
    if found.gguf_file:
        file = Path(found.place, found.gguf_file)
        return {"gguf": sha256_of_file(file)} if untrained is None else {"gguf header": _sha256_of_header(file)}
    files = [file for file in Path(found.place).iterdir() if file.suffix in DECIDING and file.is_file()]
    if untrained is not None:
        files = [file for file in files if not file.name.endswith((".safetensors", ".index.json"))]
    return {file.name: sha256_of_file(file) for file in sorted(files)}


def configuration(
    source: str, *, first_layers: int | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Return a model's configuration, or that of its first blocks alone, without reading the model's weights.

    Raises:
        ModelError: see :func:`locate`; the model brings code that nobody asked for; or has fewer blocks.
    """
    config = _from_files(AutoConfig, source, revision=revision, trust_remote_code=trust_remote_code)
    if preflight.auto_class(config) is None:
        raise ModelError(f"{source} ({config.model_type}) is not a decoder-only language model of transformers")
    if first_layers is not None:
        text = config.get_text_config()
        whole = text.num_hidden_layers
        if not 1 <= first_layers <= whole:
            raise ModelError(f"first_layers should be from 1 to {whole}, the blocks of {source}, got {first_layers}")
        # Lists with one entry per block, such as the kind of attention, are cut with the blocks.
        for name, value in vars(text).copy().items():
            if isinstance(value, list) and len(value) == whole:
                setattr(text, name, value[:first_layers])
        text.num_hidden_layers = first_layers
    return config


def tokenizer(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, with a padding token, without its weights; errors as of :func:`configuration`."""
    opened = _from_files(AutoTokenizer, source, revision=revision, trust_remote_code=trust_remote_code)
    if opened.pad_token is None:
        opened.pad_token = opened.eos_token or opened.convert_ids_to_tokens(0)  # any will do: the mask hides it
    return opened


def size(source: str, *, first_layers: int | None = None, **origin: Any) -> Size:
    """Return the size that the registry gives, else that of the :func:`configuration` of this ``origin``."""
    if known := registered_size(source):
        return known.first(first_layers)
    return preflight.size_from_config(configuration(source, first_layers=first_layers, **origin))


@contextlib.contextmanager
def readable(source: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub, the disk and transformers raise while a model is read into a ``ModelError`` that says what to do."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{source} is gated: accept its licence at https://huggingface.co/{source} and log in with "
            "`.venv/bin/hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{source} has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"{source} is neither a directory of the project nor a model of the hub") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ModelError(
            f"{source} is not in the cache of the hub and the hub cannot be reached. Connect, or download it "
            f"elsewhere (`hf download {source}`) and give the directory."
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ModelError(
            f"{source} has no config.json on the hub: not a model in Hugging Face layout. Of a repository of GGUF files, "
            f"download one (`hf download {source} FILE`) and give it as `gguf: FILE`."
        ) from error
    except errors.HfHubHTTPError as error:
        raise ModelError(f"the hub does not give {source} now: {error}. Try again later.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{source} cannot be read: {error}") from error


def _from_files(auto_class: Any, source: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """Return what a class such as ``AutoConfig`` makes of a model's files."""
    found = locate(source, revision)
    if not found.gguf_file:
        _refuse_unknown(source, found, trust_remote_code)
    with readable(source, revision):
        return auto_class.from_pretrained(found.place, trust_remote_code=trust_remote_code, **found.options)


def _refuse_unknown(source: str, found: Location, trust_remote_code: bool) -> None:
    """Refuse a model that transformers does not know; its own code runs only if the user says so."""
    file = Path(found.place, "config.json")
    if found.commit:
        with readable(source, found.commit):
            file = Path(hf_hub_download(source, "config.json", revision=found.commit))
    config = json.loads(file.read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if trust_remote_code or kind in CONFIG_MAPPING:
        return
    if "auto_map" in config:
        raise ModelError(
            f"{source} brings its own Python code, which is not run. Read it; to run it all the same, "
            "set trust_remote_code: true beside the model"
        )
    raise ModelError(f"model_type {kind!r} of {source} is not known to transformers {transformers.__version__}")


def _require_files(source: str, directory: Path) -> None:
    if not (directory / "config.json").exists():
        raise ModelError(f"{source} has no config.json: not a model in Hugging Face layout")
    if not list(directory.glob("*.safetensors")):
        raise ModelError(f"{source} has no .safetensors file; other weight formats are not read")
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise ModelError(f"{source} has no tokenizer; put tokenizer.json and tokenizer_config.json beside the weights")


def _sha256_of_header(file: Path) -> str:
    """Return the sha256 of a GGUF file up to its tensors: configuration, tokenizer and shapes."""
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(GGUFReader(file).data_offset)).hexdigest()
