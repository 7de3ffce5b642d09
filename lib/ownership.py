"""Whose an object store is: two runs never write into one, whichever machines they are on.

Within a run's directory the operating system's locks decide who writes. Two machines with directories of their own would
not see each other's locks and would mix two runs in one store, so the first to come leaves its name there, by a write that
fails where the object exists. A name is a random number that lies in the run's directory: processes that share the
directory, on whatever machine, share the store.
"""

import json
import socket
import time
import uuid
from pathlib import Path

from fsspec.core import url_to_fs

from lib import files

NAME = "owner.json"


class OwnershipError(RuntimeError):
    """The store belongs to another run; says to which."""


def claim(url: str, directory: Path) -> None:
    """Take the store at ``url`` for the run of a stage's directory, or find that it is that run's already.

    On S3 the claim is exclusive; elsewhere (fsspec has no other exclusive write) two runs that begin within the same moment
    may both believe that it is theirs.

    Args:
        url: of the store, any that fsspec knows.
        directory: of the stage; the run's name lies beside it.

    Raises:
        OwnershipError: the store belongs to another run.
    """
    filesystem, root = url_to_fs(url)
    place, name = f"{root}/{NAME}", _name(directory)
    about = {"run": name, "directory": str(directory), "machine": socket.gethostname()}
    about["since"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        filesystem.pipe_file(place, json.dumps(about).encode(), mode="create")
    except OSError:
        if not filesystem.exists(place):
            raise
        found = json.loads(filesystem.cat_file(place))
        if found["run"] != name:
            raise OwnershipError(
                f"{url} belongs to the run in {found['directory']} on {found['machine']}, since {found['since']}. Two runs "
                f"never share a store: use another COMPANION_STORE, or, if that run is gone, delete {url}."
            ) from None


def _name(directory: Path) -> str:
    path = directory.parent / ".owner"
    with files.locked(path):
        if not path.exists():
            files.write_text_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")
