"""The cards of this machine: which there are, and a reservation that no two jobs can hold at once.

Snakemake counts cards (``--resources gpu=N``) but does not say which one a job gets. Here a job takes a card by name:
it locks a file of that card, which the operating system releases however the job ends, and sees no other card. A job
that asks for none sees none.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LOCKS = Path(tempfile.gettempdir()) / "companion-cards"
"""One file a card, shared by all users of the machine."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Card(NamedTuple):
    """One card: its number, its unique name, and whether another program computes on it."""

    index: str
    uuid: str
    busy: bool


def cards() -> list[Card]:
    """Return the cards that this process may use, by number; none where there is no ``nvidia-smi``.

    A cluster narrows ``CUDA_VISIBLE_DEVICES`` for its jobs; cards outside it are not ours.
    """
    found = [line.split(", ") for line in _nvidia_smi("--query-gpu=index,uuid")]
    computing = {line.strip() for line in _nvidia_smi("--query-compute-apps=gpu_uuid")}
    visible = os.environ.get(VISIBLE)
    allowed = None if visible is None else {name.strip() for name in visible.split(",")}
    return [Card(index, uuid, uuid in computing) for index, uuid in found if allowed is None or {index, uuid} & allowed]


@contextlib.contextmanager
def reserved(count: int, poll_seconds: float = 5.0) -> Iterator[str | None]:
    """Hold ``count`` free cards and yield what ``CUDA_VISIBLE_DEVICES`` must be: their unique names, or nothing.

    Waits until enough cards are free; a job never holds some while it waits for others. Where the machine has no card
    at all it yields None: the job runs on the processor and the environment stays as it is.

    Raises:
        ValueError: more cards are asked for than the machine has.
    """
    known = cards() if count else []
    if count and not known:
        yield None
        return
    if count > len(known):
        raise ValueError(f"{count} cards are asked for and this machine has {len(known)}; use --resources gpu=N")
    with contextlib.ExitStack() as locks:
        chosen = _take(count, locks)
        while len(chosen) < count:
            locks.close()
            time.sleep(poll_seconds)
            chosen = _take(count, locks)
        yield ",".join(chosen)


def _take(count: int, locks: contextlib.ExitStack) -> list[str]:
    chosen: list[str] = []
    for card in cards() if count else []:
        if len(chosen) < count and not card.busy and _lock(card.uuid, locks):
            chosen.append(card.uuid)
    return chosen


def _lock(uuid: str, locks: contextlib.ExitStack) -> bool:
    LOCKS.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user made it, and made it open to all
        LOCKS.chmod(0o777)
    descriptor = os.open(LOCKS / uuid, os.O_RDWR | os.O_CREAT, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    locks.callback(os.close, descriptor)
    return True


def _nvidia_smi(query: str) -> list[str]:
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    if result.returncode:
        print(
            f"nvidia-smi failed, so no card is used: {result.stdout.strip() or result.stderr.strip()}", file=sys.stderr
        )
        return []
    return [line for line in result.stdout.splitlines() if line.strip()]


if __name__ == "__main__":
    print(len(cards()))
