"""One model through all four analyses, layer by layer, with every arm: what notebook 03 calls.

A layer is read, analysed and let go, so memory does not grow with the number of layers. Much of the work (spanning trees,
ranks, small steps of training) uses one core whatever library does it, so threads share it: one clusters, because two
matrices of distances would not fit, one does the rest, and the main thread reads ahead.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from lib.diagnosis import controls, linear
from lib.diagnosis.categorical import categorical, separability
from lib.diagnosis.controls import PUBLISHED, SAME_IN_EVERY_LAYER
from lib.diagnosis.dimensional import published, ridge
from lib.diagnosis.gradient import gradient
from lib.diagnosis.structural import structural
from lib.foundations import CATEGORIES, category_of
from lib.store import ActivationStore

KINDS = ("categorical", "gradient", "structural", "dimensional")
WITH_NULLS = (PUBLISHED, "last")
"""Representations whose labels are shuffled too: what the paper reports, and what the verdicts read."""


def diagnose(
    store: ActivationStore,
    annotations: pd.DataFrame,
    subset: pd.DataFrame,
    model: str,
    pooling: str,
    draws: int,
    shuffles: int,
    control_layers: int,
    probe_rows: int,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Run the four analyses and their controls on every layer of a store.

    Args:
        store: pooled residual streams.
        annotations: as notebook 01 writes them.
        subset: the diagnosis subset of notebook 01.
        model: name for the tables.
        pooling: of the published arm; the other poolings become controls.
        draws: bootstrap resamples.
        shuffles: draws of the label shuffles.
        control_layers: at how many layers, evenly spread, every arm is run. At the others only ``WITH_NULLS`` are, the
            second of them without clustering: clustering takes most of the time of a wide model.
        probe_rows: at how many annotations at most, drawn by action, the probes are fitted and scored.
        seed: of everything random.

    Returns:
        One tidy frame for each of ``KINDS``: ``model, layer, pooling`` and the columns of the analysis. In the rows of a
        null, ``p_corrected`` is ``p`` by Benjamini and Hochberg's procedure over all layers and labels of that null.
    """
    rows = with_labels(subset, annotations)
    probed = sample_of_actions(annotations, probe_rows, seed)
    vectors, actions = probed[list(CATEGORIES)].to_numpy(), probed["action"].to_numpy()
    topics = probed["foundations"].str.join("|").to_numpy()
    used, places = np.unique(store.rows_of(np.concatenate([rows["action"], actions])), return_inverse=True)
    of_subset, of_probed = places[: len(rows)], places[len(rows) :]
    texts, tokens = (store.index[column].to_numpy()[used] for column in ("action", "tokens"))
    thorough = spread(store.layers, control_layers)
    tables: dict[str, list[pd.DataFrame]] = {kind: [] for kind in KINDS}
    waiting: deque[tuple[range | list[int], str, dict[str, list[Future[pd.DataFrame]]]]] = deque()

    def collect() -> None:
        places, origin, found = waiting.popleft()
        for kind, frames in found.items():
            tables[kind] += [_placed(frame.result(), model, here, origin) for frame in frames for here in places]

    threads = max(1, (os.cpu_count() or 1) // 2)
    # OpenMP's limit holds for the thread that sets it, so every worker sets it too.
    limited = {"initializer": threadpool_limits, "initargs": (threads,)}
    with (
        threadpool_limits(threads),
        ThreadPoolExecutor(1, **limited) as clusters,
        ThreadPoolExecutor(1, **limited) as rest,
    ):
        for layer in tqdm(range(store.layers), desc=f"diagnosis of {model}", unit="layer"):
            words = controls.words_only(texts, store.width, seed) if layer == 0 else None
            pooled = OneAtATime(store, layer, used)
            for arm in controls.arms_of(store.poolings, pooling):
                once = arm in SAME_IN_EVERY_LAYER
                if layer > 0 if once else layer not in thorough and arm not in WITH_NULLS:
                    continue
                x, x_probed = (
                    controls.representation(arm, pooled, index, pooling, tokens, words)
                    for index in (of_subset, of_probed)
                )
                features = linear.features(x, x_probed)
                of_x, of_x_probed = features[: len(x)], features[len(x) :]
                while len(waiting) > 1:  # more would be more representations in memory
                    collect()
                drawn = shuffles if arm in WITH_NULLS else 0
                found: dict[str, list[Future[pd.DataFrame]]] = {kind: [] for kind in KINDS}
                if arm == PUBLISHED or layer in thorough:
                    arguments = (x, rows, draws, drawn, seed, arm, layer in thorough, of_x)
                    found["structural"].append(clusters.submit(structural, *arguments))
                found["categorical"] = [
                    rest.submit(categorical, x, rows, draws, shuffles, seed, arm),
                    rest.submit(separability, of_x, rows, draws, drawn, seed, arm),
                ]
                found["gradient"].append(rest.submit(gradient, x, rows, draws, drawn, seed, arm))
                arguments = (of_x_probed, vectors, actions, topics, draws, seed, arm, drawn > 0)
                found["dimensional"].append(rest.submit(ridge, *arguments))
                if arm == PUBLISHED:
                    found["dimensional"].append(rest.submit(published, x_probed, vectors, actions, draws, seed))
                origin = "none" if once else arm if arm in store.poolings else pooling
                waiting.append((range(store.layers) if once else [layer], origin, found))
        while waiting:
            collect()
    return {kind: corrected(pd.concat(frames, ignore_index=True)) for kind, frames in tables.items()}


class OneAtATime(Mapping[str, np.ndarray]):
    """The poolings of a layer, read when asked for; the one read last is kept, so that memory holds one at a time.

    Args:
        store: pooled residual streams.
        layer: index of the decoder block.
        used: rows of the store to keep, [rows].
    """

    def __init__(self, store: ActivationStore, layer: int, used: np.ndarray) -> None:
        self.store, self.layer, self.used = store, layer, used
        self.kept: tuple[str, np.ndarray] | None = None

    def __getitem__(self, pooling: str) -> np.ndarray:
        if self.kept is None or self.kept[0] != pooling:
            self.kept = None  # lets go of it before the next is read
            self.kept = pooling, self.store.read(self.layer, pooling, self.used)
        return self.kept[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.poolings)

    def __len__(self) -> int:
        return len(self.store.poolings)


def spread(layers: int, count: int) -> list[int]:
    """Return ``count`` layers, evenly spread from the first to the last; all if there are no more."""
    return sorted({int(layer) for layer in np.linspace(0, layers - 1, min(count, layers)).round()})


def sample_of_actions(annotations: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """Return all annotations, or, if there are more than ``rows``, those of randomly drawn actions, ``rows`` at most."""
    if len(annotations) <= rows:
        return annotations
    codes, distinct = pd.factorize(annotations["action"], sort=True)
    drawn = np.random.default_rng(seed).permutation(len(distinct))
    kept = drawn[np.cumsum(np.bincount(codes)[drawn]) <= rows]
    return annotations[np.isin(codes, kept)]


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``p_corrected``: p over all layers and labels of each null, false discovery rate by Benjamini and Hochberg.

    Rows that summarise others (label ``all``) are corrected among themselves.
    """
    label = frame.columns[3]
    result = frame.assign(p_corrected=np.nan)
    tested = frame[frame["p"].notna()]
    for _, part in tested.groupby(["arm", "metric", tested[label] == "all"]):
        result.loc[part.index, "p_corrected"] = multipletests(part["p"], method="fdr_bh")[1]
    return result


def with_labels(subset: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """Add ``action`` and ``category`` (of the pole; empty for neutral) to the rows of the subset."""
    rows = subset.merge(annotations[["id", "action"]], on="id", how="left", validate="many_to_one")
    pairs = zip(rows["foundation"], rows["polarity"], strict=True)
    rows["category"] = ["" if pole == "neutral" else category_of(foundation, pole) for foundation, pole in pairs]
    return rows


def _placed(frame: pd.DataFrame, model: str, layer: int, pooling: str) -> pd.DataFrame:
    placed = frame.copy()
    for name, value in (("pooling", pooling), ("layer", layer), ("model", model)):
        placed.insert(0, name, value)
    return placed
