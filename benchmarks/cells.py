"""Measured cells: a ratio to a named peer in one run, with what it was measured on."""

import importlib.metadata
import os
import platform
import re
import statistics

import pandas as pd

from lib import runs

RESULTS = runs.PROJECT / "benchmarks" / "results"


def record(cell: str, peer: str, ours: list[float], peers: list[float]) -> None:
    """Print a cell and keep it in ``benchmarks/results/``.

    Args:
        cell: what was measured.
        peer: what it was measured against.
        ours: seconds of every round.
        peers: seconds of the peer in the same rounds, taken in turn.
    """
    ratios = [theirs / mine for mine, theirs in zip(ours, peers, strict=True)]
    row = {
        "cell": cell,
        "peer": peer,
        "ours_seconds": round(statistics.median(ours), 4),
        "peer_seconds": round(statistics.median(peers), 4),
        "times_faster_min": round(min(ratios), 3),
        "times_faster_median": round(statistics.median(ratios), 3),
        "times_faster_max": round(max(ratios), 3),
        "rounds": len(ratios),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "pandas", "numpy")},
    }
    slug = re.sub(r"\W+", "-", f"{cell} {peer}".lower()).strip("-")
    runs.write_text_atomically(RESULTS / f"{slug}.csv", pd.DataFrame([row]).to_csv(index=False))
    print(
        f"{cell}, against {peer}: {row['times_faster_median']} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
    )
