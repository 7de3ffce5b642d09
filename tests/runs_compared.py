"""Compare two runs byte by byte, as the tests of clusters and of faults do."""

import hashlib
from pathlib import Path

RESULTS = (".parquet", ".csv", ".jsonl", ".safetensors")


def digests(run: Path) -> dict[str, str]:
    """Sha256 of every table, list of answers, weights and chunk of activations of a run, by path.

    Figures, notebooks and logs are left out.
    """
    digest_of = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        aside = name.startswith(("figures/", "notebooks/", "parts/", "attempts/", "benchmarks/")) or "/." in f"/{name}"
        result = path.suffix in RESULTS or ".zarr/" in name
        if path.is_file() and result and not aside and "/logs/" not in name:
            digest_of[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest_of


def differences(first: Path, second: Path) -> list[str]:
    """Paths that only one run has or whose bytes differ."""
    one, other = digests(first), digests(second)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
