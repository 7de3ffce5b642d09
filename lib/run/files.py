"""Paths of the project, and files that are whole or not there: a reader never meets half a file, whatever stops the writer."""

import contextlib
import fcntl
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

INTERRUPTED = 130
"""Exit status of a command that was interrupted."""


class CompanionError(Exception):
    """Base of every error that this project raises on purpose; the message says what to do. Anything else is a bug."""


@contextlib.contextmanager
def errors_said() -> Iterator[None]:
    """End a command with the message of a ``CompanionError``, which is the user's to mend, or when it is interrupted.

    A bug keeps its traceback.
    """
    try:
        yield
    except CompanionError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def resolve(path: str | Path) -> Path:
    """Return ``path`` if absolute or from ``~``, else the path below the project root."""
    return (PROJECT / os.path.expanduser(path)).resolve()


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


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        CompanionError: it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CompanionError(f"{short(path)} is not in UTF-8 (byte {error.start}). Save it as UTF-8.") from None


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


HELD: dict[Path, int] = {}
"""Directories that this process holds -> descriptors of the files that say so."""


def hold(directory: Path) -> None:
    """Hold a directory, as other processes may at the same time, until :func:`release` or the end of this process."""
    if directory not in HELD:
        directory.parent.mkdir(parents=True, exist_ok=True)
        HELD[directory] = os.open(directory.with_name(f".{directory.name}.held"), os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(HELD[directory], fcntl.LOCK_SH)


def release(directory: Path) -> None:
    """Hold a directory no longer."""
    if directory in HELD:
        os.close(HELD.pop(directory))


def held_by_others(directory: Path) -> bool:
    """Say whether another process holds a directory. To be asked under its lock (:func:`locked`), as it is held under it."""
    mine = directory in HELD
    hold(directory)
    try:
        fcntl.flock(HELD[directory], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        (hold if mine else release)(directory)
    return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary place beside ``path`` for a file or a folder that takes its name once it is whole.

    A file is on the disk before it has its name, so that a loss of power leaves the old one or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
