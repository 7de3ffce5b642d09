"""One model through all four analyses, layer by layer, with every arm: what notebook 03 calls.

A layer is read, analysed and let go, so memory does not grow with the number of layers.
"""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lib.diagnosis import categorical, dimensional, gradient, structural
from lib.diagnosis.controls import PUBLISHED, representations
from lib.foundations import CATEGORIES, category_of
from lib.store import ActivationStore

KINDS = ("categorical", "gradient", "structural", "dimensional")


def diagnose(
    store: ActivationStore,
    annotations: pd.DataFrame,
    subset: pd.DataFrame,
    model: str,
    pooling: str,
    draws: int,
    permutations: int,
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
        permutations: draws of the label shuffles.
        seed: of everything random.

    Returns:
        One tidy frame for each of ``KINDS``: ``model, layer, pooling`` and the columns of the analysis.
    """
    rows = with_labels(subset, annotations)
    of_subset, of_all = store.rows_of(rows["action"]), store.rows_of(annotations["action"])
    lengths = store.index["tokens"].to_numpy()[of_subset]
    vectors, actions = annotations[list(CATEGORIES)].to_numpy(), annotations["action"].to_numpy()
    topics = annotations["foundations"].str.join("|").to_numpy()
    tables: dict[str, list[pd.DataFrame]] = {kind: [] for kind in KINDS}
    for layer in tqdm(range(store.layers), desc=f"diagnosis of {model}", unit="layer"):
        poolings = {name: store.read(layer, name) for name in store.poolings}
        arms = representations({name: values[of_subset] for name, values in poolings.items()}, lengths, pooling)
        found: dict[str, list[pd.DataFrame]] = {kind: [] for kind in KINDS}
        for arm, values in arms.items():
            found["categorical"].append(categorical.categorical(values, rows, draws, permutations, seed, arm))
            found["gradient"].append(gradient.gradient(values, rows, draws, permutations, seed, arm))
            label = "auc" if arm == PUBLISHED else f"auc, {arm}"
            found["categorical"].append(categorical.separability(values, rows, draws, seed, label))
        found["structural"].append(structural.structural(arms[PUBLISHED], rows, draws, permutations, seed))
        found["structural"].append(structural.supervised(arms[PUBLISHED], rows, draws, seed))
        probed = dimensional.dimensional(poolings[pooling][of_all], vectors, actions, topics, draws, seed)
        last = dimensional.ridge(poolings["last"][of_all], vectors, actions, draws, seed, "ridge, last")
        within = dimensional.shuffled_within(vectors, topics, np.random.default_rng(seed))
        null = dimensional.ridge(
            poolings["last"][of_all], within, actions, draws, seed, "shuffled_within_foundations, last"
        )
        found["dimensional"] += [probed, last, null]
        for kind, frames in found.items():
            frame = pd.concat(frames, ignore_index=True)
            frame.insert(0, "pooling", frame["arm"].map(lambda arm: _pooling_of(arm, pooling, store.poolings)))
            frame.insert(0, "layer", layer)
            frame.insert(0, "model", model)
            tables[kind].append(frame)
    return {kind: pd.concat(frames, ignore_index=True) for kind, frames in tables.items()}


def with_labels(subset: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """Add ``action`` and ``category`` (of the pole; empty for neutral) to the rows of the subset."""
    rows = subset.merge(annotations[["id", "action"]], on="id", how="left", validate="many_to_one")
    pairs = zip(rows["foundation"], rows["polarity"], strict=True)
    rows["category"] = ["" if pole == "neutral" else category_of(foundation, pole) for foundation, pole in pairs]
    return rows


def _pooling_of(arm: str, published: str, poolings: list[str]) -> str:
    named = arm.split(", ")[-1]
    if named == "length_only":
        return "none"
    return named if named in poolings else published
