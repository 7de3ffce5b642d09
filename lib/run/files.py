"""Paths of the project, and files that are whole or not there: a reader never meets half a file, whatever stops the writer."""

import contextlib
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from filelock import FileLock

PROJECT = Path(__file__).resolve().parent.parent.parent
"""The project root: relative paths start here, wherever the notebook or the command was started."""


class CompanionError(Exception):
    """Base of every error that this project raises on purpose; the message says what to do. Anything else is a bug."""


@contextlib.contextmanager
def errors_said() -> Iterator[None]:
    """End a command with the message of a ``CompanionError``, which is the user's to mend; a bug keeps its traceback."""
    try:
        yield
    except CompanionError as error:
        sys.exit(str(error))


def resolve(path: str | Path) -> Path:
    """Return ``path`` if absolute, else the path below the project root."""
    return (PROJECT / path).resolve()


def short(path: str | Path) -> str:
    """Write ``path`` relative to the project root, for output that is the same on every machine."""
    return os.path.relpath(resolve(path), PROJECT)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(directory: Path) -> list[str]:
    """Return the paths of all files in ``directory`` and its folders, relative to it and sorted; none if it is not there."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write ``frame`` to ``path`` as parquet, atomically and with the same bytes for the same frame."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")


def locked(directory: Path) -> FileLock:
    """Return a lock that lets one process at a time lay out ``directory``; the lock file lies beside it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(directory.with_name(f".{directory.name}.lock"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary place beside ``path`` for a file or a folder that takes its name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
