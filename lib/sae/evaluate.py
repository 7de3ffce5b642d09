"""What alignment did, on rows it never saw: every arm by the same measures, with intervals clustered by action."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from lib.foundations import CATEGORIES, OPPOSITES
from lib.sae.model import ROWS_AT_ONCE, SparseAutoencoder, fraction_of_variance_unexplained
from lib.sae.tuned import Selection, averaging
from lib.statistics import cluster_weights, interval, standard, weighted_correlation

COLUMNS = ["arm", "metric", "category", "value", "ci_low", "ci_high", "n"]


class Applied(NamedTuple):
    """An arm on held-out rows: mean activation of every category's latents [rows, 10], squared errors [rows]."""

    activity: np.ndarray
    missed: np.ndarray


@torch.no_grad()
def apply(sae: SparseAutoencoder, selection: Selection, rows: np.ndarray) -> Applied:
    """Apply an autoencoder, with the latents that stand for each category, to raw rows [rows, width]."""
    device = sae.W_enc.device
    means = averaging(selection.top, len(selection.tuned)).to(device)
    found, missed = [], []
    for part in torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).split(ROWS_AT_ONCE):
        x = part.to(device)
        x_hat, z = sae(x)
        found.append((z[:, torch.from_numpy(selection.tuned)] @ means).double().cpu())
        missed.append(((x - x_hat).double() ** 2).sum(dim=1).cpu())
    return Applied(torch.cat(found).numpy(), torch.cat(missed).numpy())


def evaluate(
    arms: dict[str, Applied], rows: np.ndarray, vectors: np.ndarray, actions: np.ndarray, draws: int, seed: int
) -> pd.DataFrame:
    """Measure every arm on held-out rows.

    Args:
        arms: name -> what :func:`apply` gave for it.
        rows: raw pooled residual streams, [rows, width].
        vectors: moral vectors, [rows, 10].
        actions: action of every row, [rows].
        draws: bootstrap resamples of actions, the same for all arms, so that differences are paired.
        seed: of the resamples.

    Returns:
        Columns ``COLUMNS``. Metrics: ``spearman`` of a category's mean activation with its typicality over all rows (a
        category, and ``all`` for the mean); ``gradient``, the same over the rows of the category alone, which telling
        categories apart does not raise (``all``: all entries together, ranked within their
        category); ``opposing_similarity``, the correlation over rows of the activations of opposing
        categories (``all``: the mean of the five); ``fvu``. For ``aligned`` the differences ``spearman minus untuned``,
        ``... minus shuffled`` and so on for every other arm, for ``shuffled`` the one to ``untuned``; their intervals are
        paired.
    """
    weights = cluster_weights(actions, draws, seed)
    found = {arm: _measures(applied, rows, vectors, weights) for arm, applied in arms.items()}
    records = [(arm, *key, values) for arm, measures in found.items() for key, values in measures.items()]
    differences = [("aligned", other) for other in found if other != "aligned"] + [("shuffled", "untuned")]
    records += [
        (arm, f"{metric} minus {other}", category, values - found[other][metric, category])
        for arm, other in differences
        if arm in found and other in found
        for (metric, category), values in found[arm].items()
        if category == "all"
    ]
    return pd.DataFrame(
        [(*labels, values[0], *interval(values[1:]), len(rows)) for *labels, values in records], columns=COLUMNS
    )


def similarities(arms: dict[str, Applied], vectors: np.ndarray) -> pd.DataFrame:
    """Correlate the activations of all pairs of categories over rows, for people and every arm.

    Returns:
        Columns ``arm`` (``people`` first), ``category``, ``other``, ``value``; NaN where an activation is constant.
    """
    records = []
    for arm, values in ({"people": vectors} | {arm: applied.activity for arm, applied in arms.items()}).items():
        with np.errstate(invalid="ignore", divide="ignore"):
            matrix = np.corrcoef(values.T)
        records += [(arm, a, b, matrix[i, j]) for i, a in enumerate(CATEGORIES) for j, b in enumerate(CATEGORIES)]
    return pd.DataFrame(records, columns=["arm", "category", "other", "value"])


def likeness(similar: pd.DataFrame) -> pd.DataFrame:
    """Say how like people's each arm's ten-by-ten similarity is: columns ``arm, correlation`` over the 45 pairs."""
    upper = similar[similar["category"].map(CATEGORIES.index) < similar["other"].map(CATEGORIES.index)]
    by_arm = upper.pivot(index=["category", "other"], columns="arm", values="value")
    others = [arm for arm in similar["arm"].unique() if arm != "people"]
    return pd.DataFrame([(arm, by_arm["people"].corr(by_arm[arm])) for arm in others], columns=["arm", "correlation"])


def _measures(
    applied: Applied, rows: np.ndarray, vectors: np.ndarray, weights: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    a, measures = applied.activity, {}
    entries = []
    for index, category in enumerate(CATEGORIES):
        for metric, here in (("spearman", np.full(len(rows), True)), ("gradient", vectors[:, index] > 0)):
            x, y = (standard(rankdata(values[here, index])) for values in (a, vectors))
            measures[metric, category] = weighted_correlation(x, y, weights[:, here])
            if metric == "gradient" and np.isfinite(measures[metric, category][0]):
                entries.append((x, y, weights[:, here]))
    pairs = [(CATEGORIES.index(virtue), CATEGORIES.index(vice)) for virtue, vice in OPPOSITES.items()]
    for i, j in pairs:
        value = weighted_correlation(standard(a[:, i]), standard(a[:, j]), weights)
        measures["opposing_similarity", f"{CATEGORIES[i]}-{CATEGORIES[j]}"] = value
    # Every typicality above 0 counts equally, as in the loss; some categories have few.
    nothing = np.full(len(weights), np.nan)
    measures["gradient", "all"] = (
        weighted_correlation(*(np.concatenate(part, axis=-1) for part in zip(*entries, strict=True)))
        if entries
        else nothing
    )
    for metric in ("spearman", "opposing_similarity"):
        values = np.array([value for (name, _), value in measures.items() if name == metric])
        # A category without latents says nothing; the mean is over those that have some.
        some = np.isfinite(values[:, 0])
        measures[metric, "all"] = np.nanmean(values[some], axis=0) if some.any() else nothing
    x, missed, counts = (torch.tensor(part) for part in (rows, applied.missed, weights))
    measures["fvu", "all"] = fraction_of_variance_unexplained(x, missed, counts).numpy()
    return measures
