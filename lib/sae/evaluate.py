"""What alignment did, on rows it never saw: every arm by the same measures, with intervals clustered by action."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from lib.foundations import CATEGORIES, OPPOSITES
from lib.sae.align import Selection, activity
from lib.sae.model import SparseAutoencoder
from lib.statistics import cluster_weights, interval, standard, weighted_correlation

COLUMNS = ["arm", "metric", "category", "value", "ci_low", "ci_high", "n"]


def evaluate(
    arms: dict[str, tuple[SparseAutoencoder, Selection]],
    rows: np.ndarray,
    vectors: np.ndarray,
    actions: np.ndarray,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Measure every arm on held-out rows.

    Args:
        arms: name -> autoencoder and the latents that stand for each category.
        rows: raw pooled residual streams, [rows, width].
        vectors: moral vectors, [rows, 10].
        actions: action of every row, [rows].
        draws: bootstrap resamples of actions, the same for all arms, so that differences are paired.
        seed: of the resamples.

    Returns:
        Columns ``COLUMNS``. Metrics: ``spearman`` of a category's mean activation with its typicality (a category, and
        ``all`` for the mean); ``opposing_similarity``, the correlation over rows of the activations of opposing
        categories (``all``: the mean of the five); ``fvu``. For ``aligned`` the differences ``spearman minus untuned``,
        ``... minus shuffled`` and so on, for ``shuffled`` the one to ``untuned``; their intervals are paired.
    """
    weights = cluster_weights(actions, draws, seed)
    found: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for arm, (sae, selection) in arms.items():
        a, x_hat = _apply(sae, selection, rows)
        found[arm] = _measures(a, x_hat, rows, vectors, weights)
    records = [(arm, *key, values) for arm, measures in found.items() for key, values in measures.items()]
    for other in ("untuned", "shuffled", "random"):
        if "aligned" in found and other in found:
            pairs = ((key, found["aligned"][key] - found[other][key]) for key in found["aligned"] if key[1] == "all")
            records += [
                ("aligned", f"{metric} minus {other}", category, values) for (metric, category), values in pairs
            ]
    if "shuffled" in found and "untuned" in found:
        pairs = ((key, found["shuffled"][key] - found["untuned"][key]) for key in found["shuffled"] if key[1] == "all")
        records += [("shuffled", f"{metric} minus untuned", category, values) for (metric, category), values in pairs]
    return pd.DataFrame(
        [(*labels, values[0], *interval(values[1:]), len(rows)) for *labels, values in records], columns=COLUMNS
    )


def similarities(
    arms: dict[str, tuple[SparseAutoencoder, Selection]], rows: np.ndarray, vectors: np.ndarray
) -> pd.DataFrame:
    """Correlate the activations of all pairs of categories over rows, for people and every arm.

    Returns:
        Columns ``arm`` (``people`` first), ``category``, ``other``, ``value``; NaN where an activation is constant.
    """
    by_arm = {"people": vectors} | {arm: _apply(sae, selection, rows)[0] for arm, (sae, selection) in arms.items()}
    records = []
    for arm, values in by_arm.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            matrix = np.corrcoef(values.T)
        records += [(arm, a, b, matrix[i, j]) for i, a in enumerate(CATEGORIES) for j, b in enumerate(CATEGORIES)]
    return pd.DataFrame(records, columns=["arm", "category", "other", "value"])


@torch.no_grad()
def _apply(sae: SparseAutoencoder, selection: Selection, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
    parts = [(activity(z[:, selection.tuned], selection.top), x_hat) for x_hat, z in map(sae, x.split(4096))]
    return torch.cat([a for a, _ in parts]).double().numpy(), torch.cat([x_hat for _, x_hat in parts]).numpy()


def _measures(
    a: np.ndarray, x_hat: np.ndarray, rows: np.ndarray, vectors: np.ndarray, weights: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    measures: dict[tuple[str, str], np.ndarray] = {}
    for index, category in enumerate(CATEGORIES):
        x, y = standard(rankdata(a[:, index])), standard(rankdata(vectors[:, index]))
        measures["spearman", category] = weighted_correlation(x, y, weights)
    pairs = [(CATEGORIES.index(virtue), CATEGORIES.index(vice)) for virtue, vice in OPPOSITES.items()]
    for i, j in pairs:
        value = weighted_correlation(standard(a[:, i]), standard(a[:, j]), weights)
        measures["opposing_similarity", f"{CATEGORIES[i]}-{CATEGORIES[j]}"] = value
    for metric in ("spearman", "opposing_similarity"):
        values = np.array([value for (name, _), value in measures.items() if name == metric])
        # A category without latents says nothing; the mean is over those that have some.
        some = np.isfinite(values[:, 0])
        measures[metric, "all"] = np.nanmean(values[some], axis=0) if some.any() else np.full(len(weights), np.nan)
    missed, total = ((rows - x_hat) ** 2).sum(axis=1), weights.sum(axis=1)
    # Centred first: the mean of a residual stream can be thousands of times its spread.
    rows = rows - rows.mean(axis=0, dtype=np.float64)
    spread = weights @ (rows**2).sum(axis=1) - ((weights @ rows) ** 2).sum(axis=1) / total
    measures["fvu", "all"] = weights @ missed / spread
    return measures
