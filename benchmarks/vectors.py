"""Stage 1 on a file of the official size and shape, against the row-wise pandas way on the same rows, in one run.

    python benchmarks/vectors.py

The file is generated: 355,922 rows of 25 columns with the official file's shares of missing values and of repeated
annotation, padded to its 147 MB. Its words mean nothing.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from cells import record

from lib.paper import CATEGORIES, FOUNDATIONS
from lib.run.files import PROJECT, write_parquet
from lib.vectors import ceiling, moral_vectors, social_chemistry

ROWS, BYTES = 355_922, 147_421_453
COLUMNS = pd.read_csv(PROJECT / "data/demo/annotations.tsv", sep="\t", nrows=0).columns


def generate(path: Path) -> None:
    """Write a file of the official number of rows, columns and bytes."""
    generator = np.random.default_rng(0)
    words = np.array(["".join(letters) for letters in generator.choice(list("etaoinshrdlu"), (4000, 6))])
    several = generator.random(ROWS) < 0.4
    item = np.where(several, np.arange(ROWS) // 5, np.arange(ROWS))
    texts = words[generator.integers(0, len(words), (ROWS, 8))]
    actions = np.array([" ".join(line) for line in texts])[item]
    names = np.array(["|".join(sorted(set(pair))) for pair in generator.choice(FOUNDATIONS, (2000, 2))])
    given = {
        "m": np.where(several, "5", "1"),
        "split": np.where(several, "dev-extra", "train"),
        "rot-moral-foundations": np.where(
            generator.random(ROWS) < 0.06, "", names[generator.integers(0, len(names), ROWS)]
        ),
        "rot-bad": np.where(generator.random(ROWS) < 0.01, "1", "0"),
        "action": actions,
        "action-moral-judgment": generator.choice(
            ["-2", "-1", "0", "1", "2", ""], ROWS, p=[0.1, 0.3, 0.3, 0.2, 0.08, 0.02]
        ),
        "action-agree": generator.choice(["0", "1", "2", "3", "4"], ROWS, p=[0.02, 0.08, 0.2, 0.5, 0.2]),
        "rot-id": np.array([f"rot/{number}" for number in item]),
    }
    frame = pd.DataFrame({column: given.get(column, "") for column in COLUMNS})
    frame["situation"] = actions
    bare = int(sum(frame[column].str.len().sum() for column in COLUMNS)) + ROWS * len(COLUMNS)
    frame["rot"] = "x" * max(0, round((BYTES - bare) / ROWS))
    frame.to_csv(path, sep="\t", index=False, quoting=3)


def row_by_row(cleaned: pd.DataFrame) -> pd.DataFrame:
    """Make the vectors by a function applied to every row."""

    def vector(row: pd.Series) -> pd.Series:
        value, weight = row["action-moral-judgment"] / 2, row["agreement"] / 4
        pair = max(0.0, value) * weight, max(0.0, -value) * weight
        result = dict.fromkeys(CATEGORIES, 0.0)
        for foundation in row["rot-moral-foundations"].split("|"):
            virtue, vice = foundation.split("-")
            result[virtue], result[vice] = pair
        return pd.Series(result)

    return cleaned.apply(vector, axis=1)


def main() -> None:
    """Generate, measure, print and record."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.tsv"
        generate(path)
        print(f"{path.stat().st_size:,} bytes")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        rows = social_chemistry.read(path)
        cleaned, _ = social_chemistry.clean(rows)
        vectors_started = time.perf_counter()
        annotations = moral_vectors.vectorise(cleaned, "action-agree")
        vectors_seconds = time.perf_counter() - vectors_started
        exploded = moral_vectors.explode(annotations, 0)
        tables = {
            "annotations": annotations,
            "exploded": exploded,
            "subset": moral_vectors.draw_subset(exploded),
            "distinct": moral_vectors.by_action(annotations),
        }
        several, items = social_chemistry.by_several(rows)
        judged = moral_vectors.vectorise(several, "action-agree")
        tables["ceiling"] = ceiling.measure_ceiling(judged, items, subset=tables["subset"], draws=200, seed=0)
        for name, frame in tables.items():
            write_parquet(Path(folder) / f"{name}.parquet", frame)
        whole = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{len(rows):,} rows to all tables: {whole:.1f} s, peak memory of the process {peak / 1e9:.2f} GB")
    print(f"(the generator alone had reached {before / 1e6:.2f} GB)")
    started = time.perf_counter()
    slow = row_by_row(cleaned)
    slow_seconds = time.perf_counter() - started
    assert (slow.to_numpy() == annotations[list(CATEGORIES)].to_numpy()).all(), "the two ways differ"
    record(
        "moral vectors, a file of 355,922 rows",
        "pandas, a function applied to every row",
        [vectors_seconds],
        [slow_seconds],
    )


if __name__ == "__main__":
    main()
