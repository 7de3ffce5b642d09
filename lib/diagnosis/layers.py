"""One model through all four analyses, layer by layer, with every arm: what notebook 03 calls.

An arm of a layer is read, analysed and let go, so memory does not grow with the number of layers. Much of the work (spanning
trees, ranks, small steps of training) uses one core whatever library does it, so arms of a wide model go through processes
side by side.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import psutil
from joblib import Parallel, cpu_count, delayed
from statsmodels.stats.multitest import multipletests
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from lib.diagnosis import controls, linear, matrices
from lib.diagnosis.categorical import categorical, separability
from lib.diagnosis.controls import PUBLISHED, SAME_IN_EVERY_LAYER
from lib.diagnosis.dimensional import published, ridge
from lib.diagnosis.gradient import gradient
from lib.diagnosis.structural import structural
from lib.diagnosis.tidy import unusable
from lib.foundations import CATEGORIES, category_of
from lib.store import ActivationStore
from lib.workload import DIAGNOSIS_PROCESSES, diagnosis_memory

KINDS = ("categorical", "gradient", "structural", "dimensional")
WITH_NULLS = (PUBLISHED, "last")
"""Representations whose labels are shuffled too: what the paper reports, and what the verdicts read."""
LARGE = 4e6
"""Values in the subset's representation below which an arm takes less time than a process, or a card, needs to start."""


@dataclass(frozen=True)
class Inputs:
    """What the analyses of every arm share.

    Attributes:
        store: pooled residual streams.
        subset: the diagnosis subset with ``action`` and ``category``.
        vectors: moral vectors of the probed annotations, [probed rows, 10].
        actions: action of each of them, [probed rows].
        topics: foundations of each of them, as one text, [probed rows].
        places: rows of the store, [rows + probed rows]: of the subset, then of the probed annotations.
        pooling: of the published arm.
        thorough: layers at which every arm is run.
        draws: bootstrap resamples.
        shuffles: draws of the label shuffles.
        seed: of everything random.
    """

    store: ActivationStore
    subset: pd.DataFrame
    vectors: np.ndarray
    actions: np.ndarray
    topics: np.ndarray
    places: np.ndarray
    pooling: str
    thorough: list[int]
    draws: int
    shuffles: int
    seed: int

    def arms(self) -> list[tuple[int, str]]:
        """Name the layer and the arm of everything that is due."""
        names = controls.arms_of(self.store.poolings, self.pooling)
        return [(layer, arm) for layer in range(self.store.layers) for arm in names if self._due(layer, arm)]

    def _due(self, layer: int, arm: str) -> bool:
        if arm in SAME_IN_EVERY_LAYER:
            return layer == 0
        return layer in self.thorough or arm in WITH_NULLS

    @property
    def large(self) -> bool:
        """Whether an arm is worth a process of its own, and a card where there is one."""
        return len(self.subset) * self.store.width >= LARGE

    def clustered(self, layer: int, arm: str) -> bool:
        """Say whether an arm is clustered, which takes most of its time."""
        return arm == PUBLISHED or layer in self.thorough

    def representations(self, layer: int, arm: str) -> list[np.ndarray]:
        """Return the representation of the subset [rows, width] and of the probed annotations [probed rows, width]."""
        index, count = self.store.index.iloc[self.places], len(self.subset)
        lengths = np.split(index["tokens"].to_numpy(), [count])
        if arm == "length_only":
            return [controls.length_features(tokens) for tokens in lengths]
        if arm == "words_only":
            values = controls.words_only(index["action"].tolist(), self.store.width, self.seed)
        else:
            values = self.store.read(layer, controls.pooling_of(arm, self.pooling), self.places)
        parts = np.split(values, [count])
        if arm == "length_removed":
            return [controls.without_length(part, tokens) for part, tokens in zip(parts, lengths, strict=True)]
        return parts


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
    actions = probed["action"].to_numpy()
    inputs = Inputs(
        store,
        rows,
        probed[list(CATEGORIES)].to_numpy(),
        actions,
        probed["foundations"].str.join("|").to_numpy(),
        store.rows_of(np.concatenate([rows["action"], actions])),
        pooling,
        spread(store.layers, control_layers),
        draws,
        shuffles,
        seed,
    )
    due = inputs.arms()
    # Long ones first, so that no core waits at the end.
    queue = sorted(due, key=lambda place: not inputs.clustered(*place))
    # Arguments go to the processes as they are: what is large, a process reads itself.
    side_by_side = Parallel(processes(inputs), return_as="generator", max_nbytes=None)
    # Cores beyond the processes go to the linear algebra of each.
    threads = max(1, cpu_count() // DIAGNOSIS_PROCESSES)
    results = side_by_side(delayed(analyse)(inputs, layer, arm, threads) for layer, arm in queue)
    found = dict(zip(queue, tqdm(results, desc=f"diagnosis of {model}", total=len(queue), unit="arm"), strict=True))
    tables: dict[str, list[pd.DataFrame]] = {kind: [] for kind in KINDS}
    for layer, arm in due:
        once = arm in SAME_IN_EVERY_LAYER
        origin = controls.pooling_of(arm, pooling)
        for kind, frames in found[layer, arm].items():
            for frame in frames:
                tables[kind] += [
                    _placed(frame, model, here, origin) for here in (range(store.layers) if once else [layer])
                ]
    return {kind: corrected(pd.concat(frames, ignore_index=True)) for kind, frames in tables.items()}


def processes(inputs: Inputs) -> int:
    """Return how many arms to analyse side by side: what cores and free memory allow; one where it is not worth more."""
    if not inputs.large:
        return 1
    needed = diagnosis_memory(len(inputs.subset), len(inputs.actions), inputs.store.width)
    room = psutil.virtual_memory().available // needed
    return max(1, min(cpu_count(), DIAGNOSIS_PROCESSES, int(room)))


def analyse(inputs: Inputs, layer: int, arm: str, threads: int) -> dict[str, list[pd.DataFrame]]:
    """Run every analysis of one arm of one layer, with so many threads of linear algebra: kind -> frames."""
    draws, seed, subset = inputs.draws, inputs.seed, inputs.subset
    shuffles = inputs.shuffles if arm in WITH_NULLS else 0
    device = matrices.card() if inputs.large else None
    found: dict[str, list[pd.DataFrame]] = {kind: [] for kind in KINDS}
    with threadpool_limits(threads):
        x, x_probed = inputs.representations(layer, arm)
        covariance = None if unusable(x) else matrices.covariance(x, device)
        features = linear.features(x, x_probed, covariance=covariance)
        of_x, of_x_probed = features[: len(x)], features[len(x) :]
        probed = (inputs.vectors, inputs.actions)
        found["dimensional"].append(ridge(of_x_probed, *probed, inputs.topics, draws, seed, arm, shuffles > 0))
        if arm == PUBLISHED:
            found["dimensional"].append(published(x_probed, *probed, draws, seed))
        found["categorical"] = [
            categorical(x, subset, draws, inputs.shuffles, seed, arm),
            separability(of_x, subset, draws, shuffles, seed, arm),
        ]
        found["gradient"].append(gradient(x, subset, draws, shuffles, seed, arm))
        if inputs.clustered(layer, arm):
            resampled = layer in inputs.thorough
            found["structural"].append(
                structural(x, subset, draws, shuffles, seed, arm, resampled, of_x, covariance, device)
            )
    return found


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
