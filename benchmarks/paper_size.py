"""The diagnosis of one model at the paper's size: 16,135 actions, width 4,096, 36 layers, four poolings.

    python benchmarks/paper_size.py

A model's worth of made-up residual streams would fill 38 GB, so one layer's are made and read as often as needed: some
layers with the arms that every layer has, one with all controls. Seconds of 36 layers follow from these, so they are an
estimate, and its terms stand in ``paper_size.csv`` beside it. The spectrum of the rows falls slowly, so that 95% of variance
takes over 1,000 components, which is more than residual streams of language models need, and slower.
"""

import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from cells import machine, versions

from lib import files, runs
from lib.diagnosis import layers
from lib.foundations import CATEGORIES, FOUNDATIONS, category_of

ROWS, WIDTH, LAYERS = 16_135, 4_096, 36
POOLINGS = ["mean", "mean_without_first", "action", "last"]
DRAWS = 200
CONTROL_LAYERS = 3
PROBE_ROWS = 25_000


class OneLayer:
    """A store whose layers are all the same; every read comes from the disk, in float16."""

    poolings, width = POOLINGS, WIDTH

    def __init__(self, folder: Path, count: int) -> None:
        generator = np.random.default_rng(0)
        self.folder, self.layers = folder, count
        words = [f"word{number}" for number in range(500)]
        self.actions = [f"{generator.choice(words)} {generator.choice(words)} {row}" for row in range(ROWS)]
        self.index = pd.DataFrame({"action": self.actions, "tokens": generator.integers(6, 30, ROWS)})
        if not any(folder.iterdir()):
            scale = (np.arange(1, WIDTH + 1) ** -0.6).astype(np.float32)
            shared = generator.standard_normal((ROWS, WIDTH), dtype=np.float32) * scale
            for name in POOLINGS:
                own = generator.standard_normal((ROWS, WIDTH), dtype=np.float32) * scale
                np.save(folder / f"{name}.npy", (shared + 0.3 * own).astype(np.float16))

    def rows_of(self, actions: np.ndarray) -> np.ndarray:
        """Return the row of every action."""
        return pd.Index(self.actions).get_indexer(list(actions))

    def read(self, layer: int, pooling: str) -> np.ndarray:
        """Return a pooling, [rows, width]; the layer does not matter."""
        return np.load(self.folder / f"{pooling}.npy").astype(np.float32)


def labels(store: OneLayer) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return annotations and a diagnosis subset with random labels, one row an action."""
    generator = np.random.default_rng(1)
    ids = [f"row{number}" for number in range(ROWS)]
    foundation = generator.choice(FOUNDATIONS, ROWS)
    polarity = generator.choice(["virtue", "vice", "neutral"], ROWS)
    typicality = np.where(polarity == "neutral", 0, generator.choice([0.125, 0.25, 0.375, 0.5, 0.75, 1.0], ROWS))
    vectors = np.zeros((ROWS, len(CATEGORIES)))
    for row in np.flatnonzero(polarity != "neutral"):
        vectors[row, CATEGORIES.index(category_of(foundation[row], polarity[row]))] = typicality[row]
    annotations = pd.DataFrame(vectors, columns=list(CATEGORIES)).assign(id=ids, action=store.actions)
    annotations["foundations"] = [[name] for name in foundation]
    columns = {"id": ids, "foundation": foundation, "polarity": polarity, "typicality": typicality}
    return annotations, pd.DataFrame(columns | {"is_prototype": typicality == 1.0})


def seconds(folder: Path, count: int, control_layers: int) -> tuple[float, float]:
    """Return wall and processor seconds of a diagnosis of ``count`` layers."""
    store = OneLayer(folder, count)
    annotations, subset = labels(store)
    wall, processor = time.perf_counter(), time.process_time()
    layers.diagnose(store, annotations, subset, "made up", "mean", DRAWS, DRAWS, control_layers, PROBE_ROWS, seed=0)
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Measure one layer, three layers and one layer with all controls; print and record what 36 layers would take."""
    with TemporaryDirectory() as folder:
        found = {name: seconds(Path(folder), *amount) for name, amount in
                 {"one": (1, 0), "three": (3, 0), "controls": (1, 1)}.items()}  # fmt: skip
    row: dict[str, object] = {"layers": LAYERS, "control_layers": CONTROL_LAYERS}
    for place, kind in enumerate(("wall", "processor")):
        layer = (found["three"][place] - found["one"][place]) / 2
        row[f"{kind}_seconds_a_layer"] = round(layer, 1)
        row[f"{kind}_seconds_of_what_is_done_once"] = round(found["one"][place] - layer, 1)
        row[f"{kind}_seconds_of_controls_a_layer"] = round(found["controls"][place] - found["one"][place], 1)
        terms = (
            LAYERS * layer,
            found["one"][place] - layer,
            CONTROL_LAYERS * (found["controls"][place] - found["one"][place]),
        )
        row[f"{kind}_minutes_estimated"] = round(sum(terms) / 60, 1)
    row["peak_gigabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    row |= {"machine": machine(), **versions()}
    files.write_text_atomically(runs.PROJECT / "benchmarks" / "paper_size.csv", pd.DataFrame([row]).to_csv(index=False))
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
