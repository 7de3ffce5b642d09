"""The GPUs of this machine: which there are, and a reservation that no two jobs can hold at once.

Snakemake counts GPUs (``--resources gpu=N``) but does not say which one a job gets. Here a job takes a GPU by name: it
locks a file of that GPU, which the operating system releases however the job ends, and sees no other GPU. A job that
asks for none sees none.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from lib.run.resources import ResourceError

LOCKS = user_cache_path("companion") / "gpus"
"""One file per GPU, of this user alone; that another user computes on a GPU, ``nvidia-smi`` says."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


class GPU(NamedTuple):
    """One GPU: its number, its unique name, and whether another program computes on it."""

    index: str
    uuid: str
    busy: bool


def usable() -> list[GPU]:
    """Return the GPUs that this process may use, by number; none where there is no ``nvidia-smi``.

    A cluster narrows ``CUDA_VISIBLE_DEVICES`` for its jobs; GPUs outside it are not ours.
    """
    listed = [line.split(", ") for line in _nvidia_smi("--query-gpu=index,uuid")]
    computing = {line.strip() for line in _nvidia_smi("--query-compute-apps=gpu_uuid")}
    visible = os.environ.get(VISIBLE)
    allowed = None if visible is None else {name.strip() for name in visible.split(",")}
    return [GPU(index, uuid, uuid in computing) for index, uuid in listed if allowed is None or {index, uuid} & allowed]


def names() -> list[str]:
    """Return what NVIDIA calls the GPUs of this machine; none where there is no ``nvidia-smi``."""
    return _nvidia_smi("--query-gpu=name")


@contextlib.contextmanager
def reserved(count: int, poll_seconds: float = 5.0) -> Iterator[str | None]:
    """Hold ``count`` free GPUs and yield what ``CUDA_VISIBLE_DEVICES`` must be: their unique names, or nothing.

    Waits until enough GPUs are free, and says who holds the others; a job never holds some while it waits. Where the machine
    has no GPU at all it yields None: the job runs on the CPU and the environment stays as it is.

    Raises:
        ResourceError: more GPUs are asked for than the machine has.
    """
    known = usable() if count else []
    if count and not known:
        yield None
        return
    if count > len(known):
        raise ResourceError(f"{count} GPUs are asked for and this machine has {len(known)}; use --resources gpu=N")
    with contextlib.ExitStack() as locks:
        chosen, held = _take(count, locks)
        said: list[str] = []
        while len(chosen) < count:
            locks.close()
            if held != said:
                print(f"waiting for {count} of {len(known)} GPUs: {', '.join(held)}", file=sys.stderr, flush=True)
            time.sleep(poll_seconds)
            said = held
            chosen, held = _take(count, locks)
        yield ",".join(chosen)


def _take(count: int, locks: contextlib.ExitStack) -> tuple[list[str], list[str]]:
    """Lock free GPUs, at most ``count``; return their names, and who holds those that could not be had."""
    LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
    chosen: list[str] = []
    held: list[str] = []
    for gpu in usable() if count else []:
        lock = LOCKS / gpu.uuid
        if len(chosen) == count:
            break
        if gpu.busy:
            held.append(f"another program computes on GPU {gpu.index}")
            continue
        try:
            locks.enter_context(FileLock(lock, mode=0o600, blocking=False))
        except Timeout:
            held.append(f"the job of process {lock.read_text()} holds GPU {gpu.index}")
        else:
            lock.write_text(str(os.getpid()))
            chosen.append(gpu.uuid)
    return chosen, held


def _nvidia_smi(query: str) -> list[str]:
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    if result.returncode:
        reason = result.stdout.strip() or result.stderr.strip()
        print(f"nvidia-smi failed, so no GPU is used: {reason}", file=sys.stderr)
        return []
    return [line for line in result.stdout.splitlines() if line.strip()]


if __name__ == "__main__":
    print(len(usable()))
