"""What the cosine of opposing prototypes measures: how virtues and vices lie, or how long their actions are?

The published cosine (section 3, analysis 1) is that of two mean-pooled, centred prototypes. A first token with a very large
activation makes such a mean encode one over the length, so the same cosine is computed from length alone, without it, without
the first token, at the last token, and between categories that do not oppose each other.

Noise changes it too. A prototype is a true mean plus noise that is independent between actions; the noise adds its variance
over n to the squared norm, and so pulls the cosine toward 0. A product of rows of two *different* actions holds no noise on
average. The mean of these products, over all such pairs, is the product of the means of two random halves of the actions,
averaged over all ways to halve them. Divided by the roots of both poles' own, it estimates the cosine of the true means:
Spearman's (1904) correction for attenuation, with the split-half covariance of vectors. The centre, a mean of all rows of the
subset, counts as known.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lib.activations.store import ActivationStore
from lib.diagnosis import controls, matrices
from lib.diagnosis.categorical import CROSS_PAIRS
from lib.diagnosis.controls import PUBLISHED, named
from lib.diagnosis.decisions import middle
from lib.diagnosis.layers import with_labels
from lib.diagnosis.tidy import MEASURED, MINIMUM_ROWS, cosine_row, mean_of, missing, table, unusable
from lib.paper import CATEGORIES, FOUNDATIONS
from lib.run.parameters import DiagnosisParameters
from lib.stats import cluster_weights, interval

POOLINGS = ("mean", "mean_without_first", "last")
"""Poolings that stand beside the published one, where the store has them."""

COLUMNS = ["model", "layer", "pooling", "foundation", *MEASURED]
MOSTLY, HARDLY = 2 / 3, 1 / 3
"""Shares of the published cosine's way from *without length* to *length alone* that decide on length."""

EXPLAINED, NOT_EXPLAINED = "explained by length", "not explained by length"
IN_PART, UNDECIDED = "explained by length in part at least", "undecided"


@dataclass(frozen=True)
class Typical:
    """The rows that make prototypes.

    Attributes:
        member: which category's row each is, [rows, 10], of ones and zeros.
        weights: of every row in every resample of actions, [draws + 1, rows]; the first line is all ones.
        apart: 1 where two rows are of different actions, else 0, [rows, rows].
    """

    member: np.ndarray
    weights: np.ndarray
    apart: np.ndarray

    @classmethod
    def of(cls, actions: np.ndarray, categories: np.ndarray, *, draws: int, seed: int) -> "Typical":
        """Describe typical rows by their action and category, [rows]."""
        member = (categories[:, None] == np.array(CATEGORIES, dtype=object)).astype(float)
        codes = pd.factorize(actions)[0]
        return cls(member, cluster_weights(actions, draws, seed), (codes[:, None] != codes).astype(np.float32))

    def sums(self, gram: np.ndarray) -> np.ndarray:
        """Sum a matrix [rows, rows] over the pairs of every two categories in every resample, [draws + 1, 10, 10]."""
        result = np.empty((len(self.weights), len(CATEGORIES), len(CATEGORIES)))
        for index, member in enumerate(self.member.T.astype(bool)):
            result[:, index] = (self.weights[:, member] @ gram[member] * self.weights) @ self.member
        return result

    def products(self, rows: np.ndarray, corrected: bool) -> np.ndarray:
        """Return the products of every two prototypes, [draws + 1, 10, 10], of centred rows [rows, width].

        ``corrected`` leaves out pairs of one action; NaN for a category with fewer than ``MINIMUM_ROWS`` rows.
        """
        gram = rows @ rows.T
        if corrected:
            total, pairs = self.sums(gram * self.apart), self.sums(self.apart)
        else:
            total, pairs = self.sums(gram), self.sums(np.ones_like(gram))
        few = self.member.sum(axis=0) < MINIMUM_ROWS
        return np.where((pairs > 0) & ~few & ~few[:, None], total / np.maximum(pairs, 1), np.nan)


def cosines(products: np.ndarray) -> np.ndarray:
    """Return the cosines of prototypes from their products, both [draws, 10, 10], at most 1 in size.

    NaN where a squared norm is not above 0.
    """
    norms = products.diagonal(axis1=1, axis2=2)
    norms = np.sqrt(np.where(norms > 1e-20, norms, np.nan))
    return np.clip(products / (norms[:, :, None] * norms[:, None, :]), -1, 1)


def measure(
    store: ActivationStore, annotations: pd.DataFrame, *, subset: pd.DataFrame, parameters: DiagnosisParameters
) -> pd.DataFrame:
    """Return the cosine of opposing prototypes of every layer, as published and by what could explain it.

    Args:
        store: pooled residual streams.
        annotations: as notebook 01 writes them.
        subset: the diagnosis subset of notebook 01.
        parameters: of the stage.

    Returns:
        Columns ``COLUMNS``. Metric ``opposing_cosine`` of every foundation and ``all`` (their mean), in the arms
        ``published``, ``length_removed``, ``length_only`` (prototypes predicted from length and its inverse),
        ``cross_foundation`` (``all`` only) and other poolings, and as ``corrected`` for noise, where ``all`` is over the
        foundations whose prototypes can be told from noise. Intervals resample the actions of the typical rows; centre and
        regression are held fixed. Metric ``explained_by_length`` is d / (d + e), with d the mean distance of the published
        cosines to those without length and e to those of length alone: 1 if the published cosine is that of length alone, 0
        if it stays when length goes; its row without a layer is over the middle third of the layers, the paper's headline.
    """
    rows = with_labels(subset, annotations)
    typical = rows["is_prototype"].to_numpy(bool)
    where = store.rows_of(rows["action"])
    actions, categories = (rows.loc[typical, name].to_numpy(object) for name in ("action", "category"))
    prototypes = Typical.of(actions, categories, draws=parameters.bootstrap_draws, seed=parameters.seed)
    design = controls.length_features(store.index["tokens"].to_numpy()[where]).astype(np.float32)
    others = [name for name in POOLINGS if name in store.poolings and name != parameters.pooling]
    frames, distances = [], []
    for layer in tqdm(range(store.layers), desc=f"cosines of {parameters.model}", unit="layer"):
        x = store.read(layer, parameters.pooling, where)
        if reason := unusable(x) or ("" if typical.any() else "no category has a prototype"):
            records = [missing(("all", PUBLISHED, "opposing_cosine"), n=int(typical.sum()), reason=reason)]
            frames.append(table("foundation", records).assign(layer=layer))
            continue
        x = matrices.centred(x)
        of_length = design[typical] @ (np.linalg.pinv(design) @ x)
        inputs = {PUBLISHED: x[typical], "length_removed": x[typical] - of_length, "length_only": of_length}
        inputs |= {name: matrices.centred(store.read(layer, name, where))[typical] for name in others}
        records, opposing = _of_layer(inputs, prototypes)
        distances.append([_distances(opposing[PUBLISHED], opposing[arm]) for arm in ("length_removed", "length_only")])
        records.append(_explained(np.array(distances[-1:]), n=len(actions)))
        frames.append(table("foundation", records).assign(layer=layer))
    if distances:
        headline = np.array(distances[middle(len(distances))])
        frames.append(table("foundation", [_explained(headline, n=len(actions))]))
    result = pd.concat(frames, ignore_index=True).assign(model=parameters.model)
    result["layer"] = result["layer"].astype("Int64")
    representation = result["arm"].str.split(", ").str[-1]
    result["pooling"] = representation.where(representation.isin(POOLINGS), parameters.pooling)
    return result[COLUMNS]


def _of_layer(inputs: dict[str, np.ndarray], typical: Typical) -> tuple[list[tuple], dict[str, np.ndarray]]:
    """Return the rows of one layer, and the opposing cosines of every arm, [draws + 1, foundations]."""
    records: list[tuple] = []
    opposing = {}
    for arm, rows in inputs.items():
        # What length alone predicts holds no noise of its own: every row of one length is the same.
        for corrected in (False,) if arm == "length_only" else (False, True):
            products = typical.products(rows, corrected)
            matrix, name = cosines(products), named("corrected", arm) if corrected else arm
            pairs = [matrix[:, 2 * index, 2 * index + 1] for index in range(len(FOUNDATIONS))]
            opposing[name] = np.stack(pairs, axis=1)
            records += _rows(pairs, products, typical=typical, arm=name, corrected=corrected)
            if arm == PUBLISHED and not corrected:
                cross = mean_of([matrix[:, i, j] for i, j in CROSS_PAIRS])
                key = ("all", "cross_foundation", "opposing_cosine")
                records.append(cosine_row(key, cross, n=len(rows), reason="no two categories have prototypes"))
    return records, opposing


def _rows(pairs: list[np.ndarray], products: np.ndarray, *, typical: Typical, arm: str, corrected: bool) -> list[tuple]:
    """Return the rows of five foundations and their mean; a norm that noise alone could give has no corrected cosine."""
    counts = typical.member.sum(axis=0).astype(int).reshape(-1, 2).sum(axis=1)
    norms = products.diagonal(axis1=1, axis2=2)
    records, told_apart = [], []
    for index, (foundation, values) in enumerate(zip(FOUNDATIONS, pairs, strict=True)):
        key, reason = (foundation, arm, "opposing_cosine"), f"a pole has fewer than {MINIMUM_ROWS} typical rows"
        lowest = [interval(norms[1:, pole])[0] for pole in (2 * index, 2 * index + 1)]
        if corrected and np.isfinite(lowest).all() and min(lowest) <= 0:
            why = "a prototype cannot be told from noise"
            records.append(missing(key, n=int(counts[index]), reason=why))
            continue
        told_apart.append(values)
        records.append(cosine_row(key, values, n=int(counts[index]), reason=reason))
    key, whole = ("all", arm, "opposing_cosine"), mean_of(told_apart)
    return [*records, cosine_row(key, whole, n=int(counts.sum()), reason="no foundation has two prototypes")]


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the mean distance over foundations in every resample, [draws + 1]."""
    return mean_of(list(np.abs(first - second).T))


def _explained(distances: np.ndarray, *, n: int) -> tuple:
    """Return the row of ``explained_by_length`` from distances [layers, 2, draws + 1] to *without* and *length alone*."""
    without, alone = distances.mean(axis=0)
    with np.errstate(invalid="ignore"):
        share = without / (without + alone)
    found = cosine_row(("all", PUBLISHED, "explained_by_length"), share, n=n, reason="no foundation has prototypes")
    return (*found[:4], max(found[4], 0.0), *found[5:])


def decision(share: pd.Series) -> str:
    """Say whether length explains the published cosine, from a row of ``explained_by_length``.

    It does where the whole 95% interval covers at least ``MOSTLY`` of the way from the cosine without length to that of length
    alone; it does not where the whole interval lies below ``HARDLY``; in part at least where it lies above ``HARDLY``.
    """
    if share["ci_low"] >= MOSTLY:
        return EXPLAINED
    if share["ci_high"] <= HARDLY:
        return NOT_EXPLAINED
    return IN_PART if share["ci_low"] > HARDLY else UNDECIDED


def in_the_middle(found: pd.DataFrame) -> pd.Series:
    """Return arm -> mean over the middle of the layers that have one of the cosines of :func:`measure`, all foundations."""
    shares = found[(found["metric"] == "explained_by_length") & found["value"].notna()]
    known = sorted(shares["layer"].dropna())
    opposing = found[(found["metric"] == "opposing_cosine") & (found["foundation"] == "all")]
    return opposing[opposing["layer"].isin(known[middle(len(known))])].groupby("arm")["value"].mean()


def sentence(found: pd.DataFrame) -> str:
    """Say with the numbers of :func:`measure` whether length explains the published cosine."""
    shares = found[(found["metric"] == "explained_by_length") & found["value"].notna()]
    headline, by_layer = shares[shares["layer"].isna()], shares[shares["layer"].notna()]
    if headline.empty:
        return "No foundation has two prototypes, so there is no cosine to explain."
    mean = in_the_middle(found).map("{:.2f}".format)
    value, low, high = (f"{headline[column].item():.0%}" for column in ("value", "ci_low", "ci_high"))
    alike = (by_layer.apply(decision, axis=1) == EXPLAINED).sum()
    return (
        f"In the middle layers the published cosine of opposing prototypes is {mean[PUBLISHED]} ({decision(headline.iloc[0])}): "
        f"length alone gives {mean['length_only']}, categories that do not oppose each other {mean['cross_foundation']}, and "
        f"with length regressed out {mean['length_removed']} is left. Length accounts for {value} ({low} to {high}) of the way "
        f"from without length to length alone; it explains the cosine at {alike} of {len(by_layer)} layers."
    )
