"""Which latents are moral features: correlation of every latent with the ten dimensions, and three criteria.

Published (released recipe): *strict* if max|r| > .1 and more than 1.5 times the second largest; the identification
*report* instead calls a latent mono-semantic if exactly one |r| > .1, or two that are an opposing pair. The tuned set is
the strict ones, the 50 most positively correlated per dimension and the 20 per pole used for contrast pairs. *Careful*
compares the largest |r| with a permutation null, with the false-discovery rate controlled. The null moves whole
actions, because rows of one action share a representation, and it is pooled over latents that fire about equally often,
because the null of a latent that fires on a few rows has heavy tails.
"""

import numpy as np
import pandas as pd
import torch
from statsmodels.stats.multitest import multipletests

from lib.foundations import CATEGORIES
from lib.sae.model import SparseAutoencoder

THRESHOLD = 0.1
DOMINANCE = 1.5
TOP = 50
CONTRAST = 20
FALSE_DISCOVERY_RATE = 0.05
ACTIVITY_BINS = 10
PERMUTATIONS_AT_ONCE = 20


@torch.no_grad()
def correlations(sae: SparseAutoencoder, rows: np.ndarray, vectors: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """Correlate every latent with every moral dimension in one pass over the rows.

    Args:
        sae: the autoencoder.
        rows: raw pooled residual streams, [rows, width].
        vectors: moral vectors, [rows, 10], or any other columns.
        chunk: rows at a time; memory grows with chunk x latents, not with rows.

    Returns:
        Pearson correlations [latents, columns]; 0 for a latent, or a dimension, that does not vary.
    """
    y = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float64))
    y = y - y.mean(dim=0)
    sums, squares = (torch.zeros(sae.latents, dtype=torch.float64) for _ in range(2))
    products = torch.zeros(sae.latents, y.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), chunk):
        z = sae.encode(torch.from_numpy(np.ascontiguousarray(rows[start : start + chunk]))).double()
        sums += z.sum(dim=0)
        squares += (z**2).sum(dim=0)
        products += z.T @ y[start : start + chunk]
    spread = (squares - sums**2 / len(rows)).clamp_min(0).sqrt()[:, None] * (y**2).sum(dim=0).sqrt()
    return torch.where(spread > 1e-9, products / spread.clamp_min(1e-12), 0.0).numpy()


def identify(
    sae: SparseAutoencoder,
    rows: np.ndarray,
    vectors: np.ndarray,
    permutations: int,
    seed: int,
    actions: np.ndarray | None = None,
) -> pd.DataFrame:
    """Apply the published criteria and the careful one to every latent.

    Args:
        sae: the autoencoder.
        rows: raw pooled residual streams of validation rows, [rows, width].
        vectors: their moral vectors, [rows, 10].
        permutations: shuffles of the labels among actions, for the null of the careful criterion.
        seed: of the shuffles.
        actions: action of every row, [rows]; without them every row counts as an action of its own.

    Returns:
        One row a latent: ``latent``, the ten correlations ``r_care`` ..., ``category`` of the largest |r|, ``largest``,
        ``activity`` (share of rows that activate it), ``alive`` (it is not 0), ``strict``, ``report``, ``careful`` and ``tuned``.
    """
    actions = np.arange(len(rows)) if actions is None else actions
    r = correlations(sae, rows, vectors)
    table = pd.DataFrame(r, columns=[f"r_{category}" for category in CATEGORIES])
    table.insert(0, "latent", np.arange(len(r)))
    size = np.abs(r)
    ordered = np.sort(size, axis=1)
    table["category"] = np.array(CATEGORIES)[size.argmax(axis=1)]
    table["largest"] = ordered[:, -1]
    table["activity"] = activity_of(sae, rows)
    table["alive"] = table["activity"] > 0
    table["strict"] = (ordered[:, -1] > THRESHOLD) & (ordered[:, -1] > DOMINANCE * ordered[:, -2])
    table["report"] = _report(size > THRESHOLD)
    table["careful"] = careful(
        ordered[:, -1], null_maxima(sae, rows, vectors, actions, permutations, seed), table["activity"].to_numpy()
    )
    table["tuned"] = table["strict"] | _top_positive(r)
    return table


def _report(above: np.ndarray) -> np.ndarray:
    count = above.sum(axis=1)
    pairs = above.reshape(len(above), -1, 2).all(axis=2).any(axis=1)
    return (count == 1) | ((count == 2) & pairs)


def careful(largest: np.ndarray, null: np.ndarray, activity: np.ndarray) -> np.ndarray:
    """Return which latents correlate beyond chance: Benjamini-Hochberg over the alive ones.

    Args:
        largest: the largest |r| of every latent, [latents].
        null: the same under permuted labels, [latents, permutations]; it is pooled within bins of equal activity.
        activity: share of rows that activate a latent, [latents]; a latent without activity is never chosen.
    """
    chosen = np.zeros(len(largest), dtype=bool)
    alive = np.flatnonzero(activity > 0)
    if len(alive) == 0 or null.shape[1] == 0:
        return chosen
    p = np.ones(len(alive))
    edges = np.unique(np.quantile(activity[alive], np.linspace(0, 1, ACTIVITY_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, activity[alive])
    for which in np.unique(bins):
        members = alive[bins == which]
        pooled = np.sort(null[members].ravel())
        reached = len(pooled) - np.searchsorted(pooled, largest[members] - 1e-12)
        p[bins == which] = (1 + reached) / (1 + len(pooled))
    chosen[alive] = multipletests(p, FALSE_DISCOVERY_RATE, method="fdr_bh")[0]
    return chosen


def null_maxima(
    sae: SparseAutoencoder, rows: np.ndarray, vectors: np.ndarray, actions: np.ndarray, permutations: int, seed: int
) -> np.ndarray:
    """Return the largest |r| of every latent under labels permuted among actions, [latents, permutations]."""
    generator = np.random.default_rng(seed)
    found = [np.zeros((sae.latents, 0))]
    for start in range(0, permutations, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, permutations - start)
        shuffled = np.hstack([vectors[permuted_by_action(actions, generator)] for _ in range(count)])
        r = np.abs(correlations(sae, rows, shuffled))
        found.append(r.reshape(sae.latents, count, vectors.shape[1]).max(axis=2))
    return np.hstack(found)


def permuted_by_action(actions: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return positions [rows] that move labels of whole actions, among actions with equally many rows.

    Rows of one action share a representation, so permuting single rows would understate what chance can do.
    """
    _, of_row, counts = np.unique(actions, return_inverse=True, return_counts=True)
    by_action, starts = np.argsort(of_row, kind="stable"), np.cumsum(counts) - counts
    moved = np.empty(len(actions), dtype=int)
    for size in np.unique(counts):
        here = np.flatnonzero(counts == size)
        there = generator.permutation(here)
        span = np.arange(size)
        moved[by_action[starts[here][:, None] + span]] = by_action[starts[there][:, None] + span]
    return moved


@torch.no_grad()
def activity_of(sae: SparseAutoencoder, rows: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """Return the share of rows that activate every latent, [latents]."""
    counts = torch.zeros(sae.latents, dtype=torch.float64)
    for start in range(0, len(rows), chunk):
        z = sae.encode(torch.from_numpy(np.ascontiguousarray(rows[start : start + chunk])))
        counts += (z > 0).sum(dim=0)
    return (counts / len(rows)).numpy()


def _top_positive(r: np.ndarray) -> np.ndarray:
    chosen = np.zeros(len(r), dtype=bool)
    for dimension in range(r.shape[1]):
        best = top_latents(r, dimension, max(TOP, CONTRAST))
        chosen[best] = True
    return chosen


def top_latents(r: np.ndarray, dimension: int, count: int) -> np.ndarray:
    """Return the latents most positively correlated with a dimension, r > .1, at most ``count``."""
    order = np.argsort(-r[:, dimension], kind="stable")[:count]
    return order[r[order, dimension] > THRESHOLD]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Count latents by category and criterion: columns ``category, criterion, latents``."""
    parts = [
        table[table[name]]
        .groupby("category")
        .size()
        .reindex(CATEGORIES, fill_value=0)
        .rename("latents")
        .reset_index()
        .assign(criterion=name)
        for name in ("strict", "report", "careful", "tuned")
    ]
    return pd.concat(parts, ignore_index=True)[["category", "criterion", "latents"]]
