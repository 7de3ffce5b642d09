"""The diagnosis of one model at the paper's size: 203,431 actions of which 16,135 are diagnosed, width 4,096, 36 layers.

    python benchmarks/paper_size.py        # an hour on two cores

Draws, probes and control layers are those of ``profiles/paper.yaml``. A model's worth of residual streams would fill
240 GB, so one layer is made up, in bfloat16, and read from its store 36 times; it lies in the system's cache, which a
model's worth would not. The spectrum of the rows falls slowly: 95% of the variance takes over 1,000 components, more than
residual streams of language models are known to need, which makes clustering slower. Memory is that of all processes
together, what they share counted once, looked at twice a second.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil
from cells import machine, versions
from joblib.externals.loky import get_reusable_executor

from lib.activations import extraction, store
from lib.diagnosis import layers
from lib.paper import CATEGORIES, FOUNDATIONS, category_of
from lib.run.files import PROJECT, write_text_atomically
from lib.run.parameters import DiagnosisParameters
from lib.run.profile import load_profile
from lib.run.validation import build

ACTIONS, DIAGNOSED, WIDTH, LAYERS = 203_431, 16_135, 4_096, 36
PAPER = build(
    DiagnosisParameters, load_profile("profiles/paper.yaml").stage_parameters("diagnosis", "qwen3-8b"), "paper"
)


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
    target = store.create_store(directory, index, layers=1, width=WIDTH, poolings=extraction.POOLINGS, dtype="bfloat16")
    scale = (np.arange(1, WIDTH + 1) ** -0.6).astype(np.float32)
    for rows in target.chunks():
        shared = generator.standard_normal((1, len(rows), WIDTH), dtype=np.float32)
        target.write_chunk(rows, {name: pooled * scale for name, pooled in _variants(shared, generator)})


def _variants(shared: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for name in extraction.POOLINGS:
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


class Memory(threading.Thread):
    """The most bytes that this process and those it started held together, while the block is entered."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        """Look twice a second."""
        this = psutil.Process()
        while not self.ended.wait(0.5):
            self.peak = max(self.peak, sum(_held(process) for process in (this, *this.children(recursive=True))))


def _held(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has just ended
        return 0


def measure(directory: Path, layer_count: int = LAYERS) -> dict[str, object]:
    """Diagnose that many layers; return wall and CPU minutes, memory, and the number of components.

    ``gains_cpu_minutes`` is the part of the decisions: what the control layers add to words.
    """
    activations = OneLayer(directory, layer_count)
    annotations, subset = labels(activations.index["action"].tolist())
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    with Memory() as memory:
        tables = layers.diagnose(activations, annotations, subset=subset, parameters=PAPER)
        get_reusable_executor().shutdown(wait=True)  # seconds of the processes count when they have ended
        before_gains = sum(os.times()[:4])
        layers.gains_over_words(activations, annotations, subset=subset, parameters=PAPER)
        get_reusable_executor().shutdown(wait=True)
    wall, now = time.perf_counter() - wall, sum(os.times()[:4])
    structural = tables["structural"]
    components = structural[(structural["arm"] == "published") & (structural["metric"] == "components")]["value"]
    return {
        "layers": layer_count,
        "control_layers": PAPER.control_layers,
        "rows": DIAGNOSED,
        "width": WIDTH,
        "components": int(components.median()),
        "wall_minutes": round(wall / 60, 1),
        "cpu_minutes": round((now - cpu) / 60, 1),
        "gains_cpu_minutes": round((now - before_gains) / 60, 1),
        "peak_gigabytes": round(memory.peak / 1e9, 2),
    }


def main() -> None:
    """Measure, print and record."""
    with TemporaryDirectory() as folder:
        directory = Path(folder) / "activations"
        make_store(directory)
        row = measure(directory) | {"machine": machine(), **versions()}
    write_text_atomically(PROJECT / "benchmarks" / "paper_size.csv", pd.DataFrame([row]).to_csv(index=False))
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
