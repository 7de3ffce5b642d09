"""The diagnosis of one model at the paper's size: 203,431 actions of which 16,135 are diagnosed, width 4,096, 36 layers.

    python benchmarks/paper_size.py

Draws, probes and control layers are those of ``profiles/paper.yaml``. A model's worth of residual streams would fill
240 GB, so one layer is made up, in bfloat16, and read from its store as often as needed: by one layer and by three with the
arms that every layer has, and by one with all controls. Seconds of 36 layers follow from these, so they are an estimate,
and its terms stand beside it in ``paper_size.csv``. The spectrum of the rows falls slowly: 95% of the variance takes over
1,000 components, more than residual streams of language models are known to need, which makes clustering slower.
"""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from cells import machine, versions

from lib import files, residuals, runs, store
from lib.diagnosis import layers
from lib.foundations import CATEGORIES, FOUNDATIONS, category_of
from lib.profiles import load_profile

ACTIONS, DIAGNOSED, WIDTH, LAYERS = 203_431, 16_135, 4_096, 36
PAPER = load_profile("profiles/paper.yaml").stage_parameters("03_diagnosis", "qwen3-8b")


class OneLayer(store.ActivationStore):
    """A store of one layer that is read as if it had several."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(directory)
        self.layers = count

    def read(self, layer: int, pooling: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the one layer, whichever is asked for."""
        return super().read(0, pooling, rows)


def make_store(directory: Path) -> None:
    """Write a layer of made-up residual streams."""
    generator = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5000)])
    drawn = generator.choice(words, (ACTIONS, 6))
    actions = [f"{' '.join(line)} {row}" for row, line in enumerate(drawn)]
    index = pd.DataFrame({"action": actions, "tokens": generator.integers(6, 30, ACTIONS)})
    target = store.create_store(directory, index, 1, WIDTH, residuals.POOLINGS, dtype="bfloat16")
    scale = (np.arange(1, WIDTH + 1) ** -0.6).astype(np.float32)
    for rows in target.chunks():
        shared = generator.standard_normal((1, len(rows), WIDTH), dtype=np.float32)
        target.write_chunk(rows, {name: pooled * scale for name, pooled in _variants(shared, generator)})


def _variants(shared: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for name in residuals.POOLINGS:
        yield name, shared + 0.3 * generator.standard_normal(shared.shape, dtype=np.float32)


def labels(actions: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return annotations, one an action, and a diagnosis subset of them, with random labels."""
    generator = np.random.default_rng(1)
    ids = np.array([f"row{number}" for number in range(ACTIONS)])
    foundation = generator.choice(FOUNDATIONS, ACTIONS)
    polarity = generator.choice(["virtue", "vice", "neutral"], ACTIONS)
    typicality = generator.choice([0.125, 0.25, 0.375, 0.5, 0.75, 1.0], ACTIONS)
    typicality = np.where(polarity == "neutral", 0, typicality)
    vectors = np.zeros((ACTIONS, len(CATEGORIES)))
    for row in np.flatnonzero(polarity != "neutral"):
        vectors[row, CATEGORIES.index(category_of(foundation[row], polarity[row]))] = typicality[row]
    annotations = pd.DataFrame(vectors, columns=list(CATEGORIES)).assign(id=ids, action=actions)
    annotations["foundations"] = [[name] for name in foundation]
    columns = {"id": ids, "foundation": foundation, "polarity": polarity, "typicality": typicality}
    subset = pd.DataFrame(columns | {"is_prototype": typicality == 1.0})
    return annotations, subset.sample(DIAGNOSED, random_state=1).reset_index(drop=True)


def seconds(directory: Path, count: int, control_layers: int) -> tuple[float, float]:
    """Return wall and processor seconds of a diagnosis of ``count`` layers."""
    activations = OneLayer(directory, count)
    annotations, subset = labels(activations.actions)
    wall, processor = time.perf_counter(), time.process_time()
    layers.diagnose(
        activations, annotations, subset, "made up", "mean", PAPER["bootstrap_draws"], PAPER["permutations"],
        control_layers, PAPER["probe_rows"], seed=0,
    )  # fmt: skip
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Measure one layer, three layers and one layer with all controls; print and record what 36 layers would take."""
    with TemporaryDirectory() as folder:
        directory = Path(folder) / "activations"
        make_store(directory)
        amounts = {"one": (1, 0), "three": (3, 0), "controls": (1, 1)}
        found = {name: seconds(directory, *amount) for name, amount in amounts.items()}
    row: dict[str, object] = {"layers": LAYERS, "control_layers": PAPER["control_layers"]}
    for place, kind in enumerate(("wall", "processor")):
        one, three, controls = (found[name][place] for name in amounts)
        layer = (three - one) / 2
        terms = {"a_layer": layer, "once": one - layer, "controls_a_layer": controls - one}
        row |= {f"{kind}_seconds_{name}": round(value, 1) for name, value in terms.items()}
        whole = LAYERS * layer + terms["once"] + PAPER["control_layers"] * terms["controls_a_layer"]
        row[f"{kind}_minutes_estimated"] = round(whole / 60, 1)
    row["peak_gigabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    row |= {"machine": machine(), **versions()}
    files.write_text_atomically(runs.PROJECT / "benchmarks" / "paper_size.csv", pd.DataFrame([row]).to_csv(index=False))
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
