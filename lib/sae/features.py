"""Which latents are moral features: correlation of every latent with the ten dimensions, and three criteria.

Published (released recipe): *strict* if max|r| > .1 and more than 1.5 times the second largest; the identification
*report* instead calls a latent mono-semantic if exactly one |r| > .1, or two that are an opposing pair. The tuned set is
the strict ones, the 50 most positively correlated per dimension and the 20 per pole used for contrast pairs. *Careful*
adds a permutation null with the false-discovery rate controlled.
"""

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from lib.foundations import CATEGORIES
from lib.sae.model import SparseAutoencoder

THRESHOLD = 0.1
DOMINANCE = 1.5
TOP = 50
CONTRAST = 20
FALSE_DISCOVERY_RATE = 0.05


@torch.no_grad()
def correlations(sae: SparseAutoencoder, rows: np.ndarray, vectors: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """Correlate every latent with every moral dimension in one pass over the rows.

    Args:
        sae: the autoencoder.
        rows: raw pooled residual streams, [rows, width].
        vectors: moral vectors, [rows, 10].
        chunk: rows at a time; memory grows with chunk x latents, not with rows.

    Returns:
        Pearson correlations [latents, 10]; 0 for a latent, or a dimension, that does not vary.
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
    sae: SparseAutoencoder, rows: np.ndarray, vectors: np.ndarray, permutations: int, seed: int
) -> pd.DataFrame:
    """Apply the published criteria and the careful one to every latent.

    Args:
        sae: the autoencoder.
        rows: raw pooled residual streams of validation rows, [rows, width].
        vectors: their moral vectors, [rows, 10].
        permutations: draws of shuffled labels, from which the null's spread is estimated for every latent.
        seed: of the shuffles.

    Returns:
        One row a latent: ``latent``, the ten correlations ``r_care`` ..., ``category`` of the largest |r|, ``largest``,
        ``alive`` (some row activates it), ``strict``, ``report``, ``careful`` and ``tuned``.
    """
    r = correlations(sae, rows, vectors)
    generator = np.random.default_rng(seed)
    null = np.array([correlations(sae, rows, generator.permutation(vectors)) for _ in range(min(permutations, 20))])
    table = pd.DataFrame(r, columns=[f"r_{category}" for category in CATEGORIES])
    table.insert(0, "latent", np.arange(len(r)))
    size = np.abs(r)
    ordered = np.sort(size, axis=1)
    table["category"] = np.array(CATEGORIES)[size.argmax(axis=1)]
    table["largest"] = ordered[:, -1]
    table["alive"] = size.max(axis=1) > 0
    table["strict"] = (ordered[:, -1] > THRESHOLD) & (ordered[:, -1] > DOMINANCE * ordered[:, -2])
    table["report"] = _report(size > THRESHOLD)
    table["careful"] = _careful(r, null)
    table["tuned"] = table["strict"] | _top_positive(r)
    return table


def _report(above: np.ndarray) -> np.ndarray:
    count = above.sum(axis=1)
    pairs = above.reshape(len(above), -1, 2).all(axis=2).any(axis=1)
    return (count == 1) | ((count == 2) & pairs)


def _careful(r: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Largest correlation against a normal null with each latent's permuted spread, Benjamini-Hochberg over latents."""
    spread = null.std(axis=(0, 2))
    alive = spread > 0
    p = np.ones(len(r))
    z = np.abs(r[alive]).max(axis=1) / spread[alive]
    # The largest of ten correlations: Bonferroni within a latent.
    p[alive] = np.minimum(1, 2 * norm.sf(z) * r.shape[1])
    return multipletests(p, FALSE_DISCOVERY_RATE, method="fdr_bh")[0]


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
