"""Measured cells: a ratio to a named peer in one run, with what it was measured on; and how cost grows."""

import importlib.metadata
import os
import platform
import re
import statistics

import numpy as np
import pandas as pd
import torch

from lib.run.files import PROJECT, write_text_atomically

RESULTS = PROJECT / "benchmarks" / "results"


def machine(gpu: bool = False) -> str:
    """Name the class of machine: its GPU for a cell that runs on one, else architecture and number of cores."""
    return torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, and how busy the machine was just before: a mean number of processes."""
    names = ("torch", "transformers", "pandas", "numpy", "scikit-learn")
    about = {"python": platform.python_version(), "load": f"{os.getloadavg()[0]:.1f}"}
    return about | {name: importlib.metadata.version(name) for name in names}


def record(
    cell: str, peer: str, ours: list[float], peers: list[float], gpu: bool = False, tokens: int | None = None
) -> None:
    """Print a cell and keep it in ``benchmarks/results/``.

    Args:
        cell: what was measured.
        peer: what it was measured against.
        ours: seconds of every round.
        peers: seconds of the peer in the same rounds, taken in turn.
        gpu: whether a GPU did the work.
        tokens: how many were read or written in a round, where speed in tokens per second shall be shown too.
    """
    ratios = [theirs / mine for mine, theirs in zip(ours, peers, strict=True)]
    row = {
        "cell": cell,
        "peer": peer,
        **spread("ours_seconds", ours, 4),
        **spread("peer_seconds", peers, 4),
        **spread("times_faster", ratios, 3),
        "rounds": len(ratios),
        "machine": machine(gpu),
        **versions(),
    }
    if tokens is not None:
        row["tokens_per_second"] = " against ".join(
            f"{tokens / statistics.median(side):,.0f}" for side in (ours, peers)
        )
    _keep(f"{cell} {peer} {'gpu' if gpu else 'cpu'}", row)
    speed = f"; {row['tokens_per_second']} tokens/s" if tokens is not None else ""
    print(
        f"{cell}, against {peer}: {row['times_faster_median']} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        f"{speed}"
    )


def record_growth(cell: str, quantity: str, amounts: list[int], seconds: list[list[float]], gpu: bool = False) -> None:
    """Fit how cost grows with an amount, print and keep it: seconds = c * amount ** exponent.

    Args:
        cell: what was measured.
        quantity: what grew: rows, width, layers or models.
        amounts: how much of it, at least three different amounts.
        seconds: of every round, for each amount.
        gpu: whether a GPU did the work.
    """
    exponents = [exponent(amounts, list(of_round)) for of_round in zip(*seconds, strict=True)]
    row = {
        "cell": cell,
        "peer": f"itself, more {quantity}",
        "amounts": " ".join(map(str, amounts)),
        "medians_seconds": " ".join(f"{statistics.median(times):.3f}" for times in seconds),
        **spread("exponent", exponents, 3),
        "rounds": len(exponents),
        "machine": machine(gpu),
        **versions(),
    }
    _keep(f"{cell} growth {quantity} {'gpu' if gpu else 'cpu'}", row)
    print(f"{cell}: cost grows as {quantity} ** {row['exponent_median']} over {row['amounts']}")


def exponent(amounts: list[int], seconds: list[float]) -> float:
    """Fit the exponent of a power law by least squares on logarithms."""
    return float(np.polyfit(np.log(amounts), np.log(seconds), 1)[0])


def spread(name: str, values: list[float], digits: int) -> dict[str, float]:
    """Minimum, median and maximum under one name."""
    numbers = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {f"{name}_{key}": round(value, digits) for key, value in numbers.items()}


def _keep(name: str, row: dict[str, object]) -> None:
    slug = re.sub(r"\W+", "-", name.lower()).strip("-")
    write_text_atomically(RESULTS / f"{slug}.csv", pd.DataFrame([row]).to_csv(index=False))
