"""One model through all four analyses, layer by layer, with every arm: what notebook 03 calls.

Every arm of every layer is read, analysed and released, so memory does not grow with the number of layers. Much of the work
(spanning trees, ranks, small steps of training) uses one core whatever library does it, so the arms of a wide model are
analysed in parallel processes.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import psutil
from joblib import Parallel, cpu_count, delayed
from statsmodels.stats.multitest import multipletests
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from lib.activations.rows import sample_of_actions
from lib.activations.store import ActivationStore
from lib.diagnosis import controls, linear, matrices
from lib.diagnosis.categorical import categorical, separability
from lib.diagnosis.controls import PUBLISHED, SAME_IN_EVERY_LAYER
from lib.diagnosis.dimensional import Probed, published, ridge
from lib.diagnosis.gradient import gradient
from lib.diagnosis.kinds import kinds_of
from lib.diagnosis.measurement import Reading, measure
from lib.diagnosis.sampling import Sampling
from lib.diagnosis.structural import structural
from lib.diagnosis.tidy import unusable
from lib.paper import CATEGORIES, category_of
from lib.run.parameters import DiagnosisParameters
from lib.run.resources import DIAGNOSIS_PROCESSES, LARGE, diagnosis_memory
from lib.run.table import KINDS
from lib.vectors.moral_vectors import normalise

WITH_NULLS = (PUBLISHED, "last")
"""Representations whose labels are shuffled too: what the paper reports, and where the figures by layer read."""

CAREFUL_POOLINGS = ("last", "mean_without_first")
"""What the decisions read, as far as a store has it: neither holds the first token's large activation."""


@dataclass(frozen=True)
class Inputs:
    """What the analyses of every arm share.

    Attributes:
        store: pooled residual streams.
        subset: the diagnosis subset with ``category`` and ``action``, normalised as the careful split does.
        judged: the annotations of the subset's rows, which the published probe reads.
        probed: the annotations that ridge and the decision on dimensions read.
        store_rows: rows of the store, [rows + probed rows]: of the subset, then of the probed annotations.
        parameters: of the stage.
    """

    store: ActivationStore
    subset: pd.DataFrame
    judged: Probed
    probed: Probed
    store_rows: np.ndarray
    parameters: DiagnosisParameters

    def arms(self) -> list[tuple[int, str]]:
        """Return the layer and the arm of every analysis to run."""
        names = controls.arms_of(self.store.poolings, self.parameters.pooling)
        return [(layer, arm) for layer in range(self.store.layers) for arm in names if self._runs(layer, arm)]

    def _runs(self, layer: int, arm: str) -> bool:
        if arm in SAME_IN_EVERY_LAYER:
            return layer == 0
        return self.thorough(layer) or arm in WITH_NULLS

    def thorough(self, layer: int) -> bool:
        """Say whether every arm runs at a layer."""
        return layer in spread(self.store.layers, self.parameters.control_layers)

    def clustered(self, layer: int, arm: str) -> bool:
        """Say whether an arm is clustered, which takes most of its time."""
        return arm == PUBLISHED or self.thorough(layer)

    @property
    def large(self) -> bool:
        """Whether an arm is worth a process of its own, and a GPU where there is one."""
        return len(self.subset) * self.store.width >= LARGE

    def sampling(self, arm: str) -> Sampling:
        """Return how often to draw for an arm."""
        shuffles = self.parameters.permutations if arm in WITH_NULLS else 0
        return Sampling(self.parameters.bootstrap_draws, shuffles, self.parameters.seed)

    def read(self, reading: Reading) -> np.ndarray:
        """Return one layer and pooling of all rows, [rows, width]: of the subset, then of the probed annotations."""
        return self.store.read(*reading, self.store_rows)

    def representations(self, layer: int, arm: str) -> list[np.ndarray]:
        """Return the representation of the subset [rows, width] and of the probed annotations [probed rows, width]."""
        index, count = self.store.index.iloc[self.store_rows], len(self.subset)
        lengths = np.split(index["tokens"].to_numpy(), [count])
        if arm == "length_only":
            return [controls.length_features(tokens) for tokens in lengths]
        if arm == "words_only":
            values = controls.words_only(index["action"].tolist(), self.store.width, self.parameters.seed)
        else:
            values = self.store.read(layer, controls.pooling_of(arm, self.parameters.pooling), self.store_rows)
        parts = np.split(values, [count])
        if arm == "length_removed":
            return [controls.without_length(part, tokens) for part, tokens in zip(parts, lengths, strict=True)]
        return parts


def diagnose(
    store: ActivationStore, annotations: pd.DataFrame, *, subset: pd.DataFrame, parameters: DiagnosisParameters
) -> dict[str, pd.DataFrame]:
    """Run the four analyses and their controls on every layer of a store.

    Every arm runs at ``parameters.control_layers``; at the other layers only ``WITH_NULLS`` do, the second of them without
    clustering, which takes most of the time of a wide model.

    Args:
        store: pooled residual streams.
        annotations: as notebook 01 writes them.
        subset: the diagnosis subset of notebook 01.
        parameters: of the stage.

    Returns:
        One tidy frame for each of ``KINDS``: ``model, layer, pooling`` and the columns of the analysis. In the rows of a
        null, ``p_corrected`` is ``p`` by Benjamini and Hochberg's procedure over all layers and labels of that null.
    """
    inputs = inputs_of(store, annotations, subset=subset, parameters=parameters)
    arms = inputs.arms()
    # Long ones first, so that no core waits at the end.
    queue = sorted(arms, key=lambda layer_and_arm: not inputs.clustered(*layer_and_arm))
    # Arguments go to the processes as they are: what is large, a process reads itself.
    parallel = Parallel(processes(inputs), return_as="generator", max_nbytes=None)
    # Cores beyond the processes go to the linear algebra of each.
    threads = max(1, cpu_count() // DIAGNOSIS_PROCESSES)
    results = parallel(delayed(analyse)(inputs, layer, arm=arm, threads=threads) for layer, arm in queue)
    progress = tqdm(results, desc=f"diagnosis of {parameters.model}", total=len(queue), unit="arm")
    by_arm = dict(zip(queue, progress, strict=True))
    tables: dict[str, list[pd.DataFrame]] = {kind: [] for kind in KINDS}
    for layer, arm in arms:
        layers = range(store.layers) if arm in SAME_IN_EVERY_LAYER else [layer]
        origin = {"model": parameters.model, "pooling": controls.pooling_of(arm, parameters.pooling)}
        for kind, frames in by_arm[layer, arm].items():
            for frame in frames:
                columns = ["model", "layer", "pooling", *frame]
                tables[kind] += [frame.assign(**origin, layer=number)[columns] for number in layers]
    return {kind: corrected(pd.concat(frames, ignore_index=True)) for kind, frames in tables.items()}


def inputs_of(
    store: ActivationStore, annotations: pd.DataFrame, *, subset: pd.DataFrame, parameters: DiagnosisParameters
) -> Inputs:
    """Bring together what every arm reads; arguments as :func:`diagnose`."""
    rows = with_labels(subset, annotations)
    sample = sample_of_actions(annotations, rows=parameters.probe_rows)
    stored = store.rows_of(np.concatenate([rows["action"], sample["action"]]))
    judged = _probed(annotations.set_index("id").loc[rows["id"]])
    rows["action"] = judged.actions
    return Inputs(store, rows, judged, _probed(sample), stored, parameters)


def _probed(annotations: pd.DataFrame) -> Probed:
    actions = annotations["action"].map(normalise).to_numpy(object)
    return Probed(
        annotations[list(CATEGORIES)].to_numpy(), actions, annotations["foundations"].str.join("|").to_numpy()
    )


def gains_over_words(
    store: ActivationStore,
    annotations: pd.DataFrame,
    *,
    subset: pd.DataFrame,
    parameters: DiagnosisParameters,
    embedding: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Measure what ``CAREFUL_POOLINGS`` of the ``control_layers`` add to words, for the decisions.

    Args and the frame: as :func:`diagnose` and :func:`lib.diagnosis.measurement.measure`. ``embedding`` is the model's own, as
    :func:`lib.activations.extraction.embeddings` returns it; None leaves it out.
    """
    inputs = inputs_of(store, annotations, subset=subset, parameters=parameters)
    index = store.index.iloc[inputs.store_rows]
    actions = np.concatenate([inputs.judged.actions, inputs.probed.actions])
    how = {"permutations": parameters.permutations, "seed": parameters.seed}
    poolings = [name for name in CAREFUL_POOLINGS if name in store.poolings] or [parameters.pooling]
    chosen = spread(store.layers, parameters.control_layers)
    beside = {}
    if embedding is not None:
        beside["embedding"] = embedding.set_index("action").loc[index["action"]].to_numpy(np.float32)
    return measure(
        kinds_of(inputs.subset, inputs.probed, actions=actions, **how),
        actions=actions,
        tokens=index["tokens"].to_numpy(),
        readings=[Reading(layer, pooling) for pooling in poolings for layer in chosen],
        read=inputs.read,
        width=store.width,
        beside=beside,
        seed=parameters.seed,
        processes=processes(inputs),
    )


def processes(inputs: Inputs) -> int:
    """Return how many arms to analyse in parallel: what cores and free memory allow; one where more are not worth it."""
    if not inputs.large:
        return 1
    needed = diagnosis_memory(len(inputs.subset), len(inputs.probed.actions), inputs.store.width)
    room = psutil.virtual_memory().available // needed
    return max(1, min(cpu_count(), DIAGNOSIS_PROCESSES, int(room)))


def analyse(inputs: Inputs, layer: int, *, arm: str, threads: int) -> dict[str, list[pd.DataFrame]]:
    """Run every analysis of one arm of one layer, with ``threads`` threads of linear algebra: kind -> frames."""
    subset, how = inputs.subset, {"sampling": inputs.sampling(arm), "arm": arm}
    device = matrices.gpu() if inputs.large else None
    with threadpool_limits(threads):
        x, x_probed = inputs.representations(layer, arm)
        covariance = None if unusable(x) else matrices.covariance(x, device)
        probing = inputs.sampling(arm) if inputs.thorough(layer) else replace(inputs.sampling(arm), shuffles=0)
        frames = {
            "categorical": [categorical(x, subset, **how), separability(x, subset, **how)],
            "gradient": [gradient(x, subset, **how)],
            "structural": [],
            "dimensional": [ridge(x_probed, inputs.probed, sampling=probing, arm=arm)],
        }
        if arm == PUBLISHED:
            frames["dimensional"].append(published(x, inputs.judged, sampling=inputs.sampling(arm)))
        if inputs.clustered(layer, arm):
            given = {"features": linear.features(x, covariance=covariance), "covariance": covariance, "device": device}
            frames["structural"].append(structural(x, subset, **how, resampled=inputs.thorough(layer), **given))
    return frames


def spread(layers: int, count: int) -> list[int]:
    """Return ``count`` layers, evenly spread from the first to the last; all if there are no more."""
    return sorted({int(layer) for layer in np.linspace(0, layers - 1, min(count, layers)).round()})


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
