"""Numbers of the demo run that may move only within stated tolerances.

``python tests/golden.py`` writes them anew from ``runs/demo``; do so only when a change of numbers is meant, and say why.
"""

import sys
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "golden"

# Table -> (its file in the run, what identifies a row, the numbers, absolute tolerance). Counts are exact. Statistics of
# activations move a little with the CPU's arithmetic; a trained autoencoder's more.
TABLES = {
    "counts": ("vectors/exploded.parquet", ["foundation", "polarity", "typicality", "split_published"], ["rows"], 0),
    "headlines": ("comparison/headlines.parquet", ["model", "kind"], ["ours", "words", "careful"], 0.03),
    "alignment": ("alignment/moral-small/alignment.parquet", ["layer", "arm", "metric"], ["value"], 0.15),
}


def current(run: Path, name: str) -> pd.DataFrame:
    """Read one table of a run in the form in which it is kept."""
    file, keys, numbers, _ = TABLES[name]
    table = pd.read_parquet(run / file)
    if name == "counts":
        table = table.groupby(keys).size().rename("rows").reset_index()
    if name == "alignment":
        table = table[table["category"] == "all"]
    return table[[*keys, *numbers]].sort_values(keys).reset_index(drop=True)


def write() -> None:
    """Keep the numbers of the present demo run."""
    FOLDER.mkdir(exist_ok=True)
    for name in TABLES:
        current(PROJECT / "runs" / "demo", name).to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    sys.exit(write())
