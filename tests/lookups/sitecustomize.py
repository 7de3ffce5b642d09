"""Writes down every host that a Python process looks up; Python imports this by itself where PYTHONPATH names the folder.

Every process, also a kernel, begins with a line of its own, so that an empty record is none.
"""

import os
import socket
import sys
from typing import Any

HERE = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0")
ours = socket.getaddrinfo


def _note(line: str) -> None:
    with open(os.environ["LOOKUPS"], "a", encoding="utf-8") as record:
        record.write(f"{line}\n")


def getaddrinfo(host: Any, *arguments: Any, **more: Any) -> Any:
    """Look up as before, and say for whom."""
    if host not in HERE:
        _note(f"asked for {host} by {' '.join(sys.argv)}")
    return ours(host, *arguments, **more)


socket.getaddrinfo = getaddrinfo
_note("began")
