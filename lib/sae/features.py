"""Which latents are moral features: correlation of every latent with the ten dimensions, and three criteria.

Published (released recipe): *strict* if max|r| > .1 and more than 1.5 times the second largest; the identification
*report* instead calls a latent mono-semantic if exactly one |r| > .1, or two that are an opposing pair. The tuned set is
the strict ones, the 50 most positively correlated per dimension and the 20 per pole used for contrast pairs. *Careful*
compares the largest |r| with a permutation null, with the false-discovery rate controlled. The null moves whole
actions, because rows of one action share a representation, and it is pooled over latents that fire about equally often,
because the null of a latent that fires on a few rows has heavy tails. A maximum over many latents is too large by
selection, so what is chosen on the validation rows is reported on the training rows, whose labels played no part in it.
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
CHOSEN_ON, REPORTED_ON = "validation", "train"
LATENTS_AT_ONCE = 2**24
"""Activations held at a time; rows a chunk follow from it, so memory does not grow with rows or latents."""


@torch.no_grad()
def correlations(sae: SparseAutoencoder, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlate every latent with every column, in one pass over the rows.

    Memory: ``LATENTS_AT_ONCE`` activations and the sums [latents, columns], however many rows there are.

    Args:
        sae: the autoencoder; it is computed where its weights lie.
        rows: raw pooled residual streams, [rows, width].
        columns: moral vectors, [rows, 10], or any other columns beside each other.

    Returns:
        Pearson correlations [latents, columns], 0 for a latent or a column that does not vary; and the share of rows that
        activate every latent, [latents].
    """
    device, chunk = sae.W_enc.device, max(1, LATENTS_AT_ONCE // sae.latents)
    y = torch.from_numpy(np.ascontiguousarray(columns, dtype=np.float32)).to(device)
    y -= y.mean(dim=0, dtype=torch.float64)
    # Sums of single latents are float64; no activation is ever copied into it.
    sums, squares, fired = (torch.zeros(sae.latents, dtype=torch.float64, device=device) for _ in range(3))
    products = torch.zeros(sae.latents, y.shape[1], device=device)
    for start in range(0, len(rows), chunk):
        part = torch.from_numpy(np.ascontiguousarray(rows[start : start + chunk])).to(device)
        z = sae.encode(part)
        sums += z.sum(dim=0, dtype=torch.float64)
        squares += torch.linalg.vector_norm(z, dim=0, dtype=torch.float64) ** 2
        fired += torch.count_nonzero(z, dim=0)
        products.addmm_(z.T, y[start : start + chunk])
    variance = squares - sums**2 / len(rows)
    # What is constant up to rounding does not vary; in place, because with a null there are thousands of columns.
    products *= torch.where(variance > 1e-12 * squares, variance.clamp_min(1e-30).rsqrt(), 0.0).float()[:, None]
    spread = torch.linalg.vector_norm(y, dim=0, dtype=torch.float64)
    products *= torch.where(spread > 1e-6, 1 / spread, 0.0).float()
    return products.cpu().numpy(), (fired / len(rows)).cpu().numpy()


def identify(
    sae: SparseAutoencoder,
    rows: np.ndarray,
    vectors: np.ndarray,
    permutations: int,
    seed: int,
    actions: np.ndarray | None = None,
    elsewhere: tuple[np.ndarray, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Apply the published criteria and the careful one to every latent.

    Args:
        sae: the autoencoder.
        rows: raw pooled residual streams of validation rows, [rows, width].
        vectors: their moral vectors, [rows, 10].
        permutations: shuffles of the labels among actions, for the null of the careful criterion.
        seed: of the shuffles.
        actions: action of every row, [rows]; without them every row counts as an action of its own.
        elsewhere: rows and vectors of another split, on which the choice is reported.

    Returns:
        One row a latent: ``latent``, the ten correlations ``r_care`` ..., ``category`` of the largest |r|, ``largest``,
        ``activity`` (share of rows that activate it), ``alive`` (it is not 0), ``strict``, ``report``, ``careful`` and
        ``tuned``; with ``elsewhere`` also ``elsewhere``, the correlation with ``category`` there, and ``replicated``:
        the category is again the one of the largest |r|, with the same sign.
    """
    actions = np.arange(len(rows)) if actions is None else actions
    generator = np.random.default_rng(seed)
    labels = vectors.astype(np.float32)
    shuffled = [labels[permuted_by_action(actions, generator)] for _ in range(permutations)]
    r, activity = correlations(sae, rows, np.hstack([labels, *shuffled]))
    # The null in the same pass: the largest |r| of every latent under labels permuted among actions.
    r, *nulls = np.split(r, permutations + 1, axis=1)
    r = r.astype(np.float64)
    null = np.array([np.abs(part).max(axis=1) for part in nulls]).reshape(permutations, len(r)).T
    size = np.abs(r)
    ordered, own = np.sort(size, axis=1), size.argmax(axis=1)
    table = pd.DataFrame(r, columns=[f"r_{category}" for category in CATEGORIES])
    table.insert(0, "latent", np.arange(len(r)))
    table["category"] = np.array(CATEGORIES)[own]
    table["largest"] = ordered[:, -1]
    table["activity"] = activity
    table["alive"] = activity > 0
    table["strict"] = (ordered[:, -1] > THRESHOLD) & (ordered[:, -1] > DOMINANCE * ordered[:, -2])
    table["report"] = _report(size > THRESHOLD)
    table["careful"] = careful(ordered[:, -1], null, activity)
    table["tuned"] = table["strict"] | _top_positive(r)
    if elsewhere is not None:
        there, _ = correlations(sae, *elsewhere)
        each = np.arange(len(r))
        table["elsewhere"] = there[each, own]
        table["replicated"] = (np.abs(there).argmax(axis=1) == own) & (there[each, own] * r[each, own] > 0)
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


def replication(table: pd.DataFrame) -> pd.DataFrame:
    """Say what became of the chosen latents on rows that played no part in the choice.

    Returns:
        One row a criterion: ``criterion, chosen_on, latents, r_chosen`` (mean largest |r|), ``reported_on, r_reported``
        (mean correlation with the same category there, counted positive in the direction chosen) and ``replicated``
        (share; by chance 1/20). NaN where nothing was chosen.
    """
    records = []
    for name in ("strict", "report", "careful"):
        chosen = table[table[name]]
        own = chosen[[f"r_{category}" for category in CATEGORIES]].to_numpy()
        signs = np.sign(own[np.arange(len(own)), np.abs(own).argmax(axis=1)]) if len(own) else np.zeros(0)
        reported = (signs * chosen["elsewhere"]).mean()
        records.append(
            (name, CHOSEN_ON, len(chosen), chosen["largest"].mean(), REPORTED_ON, reported, chosen["replicated"].mean())
        )
    columns = ["criterion", "chosen_on", "latents", "r_chosen", "reported_on", "r_reported", "replicated"]
    return pd.DataFrame(records, columns=columns)


@torch.no_grad()
def most_activating(
    sae: SparseAutoencoder, rows: np.ndarray, vectors: np.ndarray, actions: np.ndarray, table: pd.DataFrame, count: int
) -> pd.DataFrame:
    """Return the actions that activate most the tuned latent of the largest r of every category.

    Args:
        sae: the autoencoder.
        rows: raw pooled residual streams, [rows, width].
        vectors: moral vectors, [rows, 10].
        actions: action of every row, [rows]; each is listed once a latent.
        table: of :func:`identify`.
        count: actions a latent.

    Returns:
        Columns ``category, latent, rank, activation, typicality`` (of the category), ``action``.
    """
    tuned = table[table["tuned"]]
    best = {
        category: int(tuned.loc[tuned[f"r_{category}"].idxmax(), "latent"])
        for category in CATEGORIES
        if (tuned[f"r_{category}"] > THRESHOLD).any()
    }
    parts = torch.from_numpy(np.ascontiguousarray(rows)).split(max(1, LATENTS_AT_ONCE // sae.latents))
    chosen, device = list(best.values()), sae.W_enc.device
    z = torch.cat([sae.encode(part.to(device))[:, chosen].cpu() for part in parts]).numpy()
    records = []
    for place, (category, latent) in enumerate(best.items()):
        order = np.argsort(-z[:, place], kind="stable")
        once = order[np.sort(np.unique(actions[order], return_index=True)[1])][:count]
        typicality = vectors[once, CATEGORIES.index(category)]
        records += [
            (category, latent, rank, z[row, place], value, actions[row])
            for rank, (row, value) in enumerate(zip(once, typicality, strict=True), 1)
            if z[row, place] > 0
        ]
    return pd.DataFrame(records, columns=["category", "latent", "rank", "activation", "typicality", "action"])
