"""Which latents are moral features: correlation of every latent with the ten dimensions, and three criteria.

Published (released recipe): *strict* if max|r| > .1 and more than 1.5 times the second largest; the identification
*report* instead calls a latent mono-semantic if exactly one |r| > .1, or two that are an opposing pair. The tuned set is
the strict ones, the 50 most positively correlated per dimension (r > .1) and, of opposing pairs, the 20 of each pole with the
largest positive r, where both poles have some.

*Careful* compares the largest |r| with a permutation null and controls the false-discovery rate. The null moves whole
actions, because rows of one action share a representation. It is pooled over latents that fire about equally often,
because the null of a latent that fires on few rows has heavy tails. A maximum over many latents is too large by
selection, so latents chosen on the validation rows are reported on the training rows, whose labels played no part.
"""

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from statsmodels.stats.multitest import multipletests

from lib import stats
from lib.paper import CATEGORIES
from lib.sae.model import SparseAutoencoder
from lib.sae.rows import Rows

THRESHOLD = 0.1
DOMINANCE = 1.5
TOP = 50
CONTRAST = 20
FALSE_DISCOVERY_RATE = 0.05
ACTIVITY_BINS = 10
CRITERIA = ("strict", "report", "careful", "tuned")
CHOSEN_ON, REPORTED_ON = "validation", "train"
ACTIVATIONS_AT_ONCE = 2**24
"""Feature activations held at a time; the rows per chunk follow from it, so memory grows with neither rows nor latents."""


def activations_of(sae: SparseAutoencoder, rows: np.ndarray | csr_array) -> torch.Tensor:
    """Return the feature activations of a chunk of ``Rows.x``, [rows, d_sae], where the autoencoder's weights lie.

    Those of pooled vectors are computed; those of tokens have been computed and pooled (:mod:`lib.sae.tokens`).
    """
    if isinstance(rows, csr_array):
        return torch.from_numpy(rows.toarray()).to(sae.W_enc.device)
    return sae.encode(torch.from_numpy(rows).to(sae.W_enc.device))


@torch.no_grad()
def correlations(
    sae: SparseAutoencoder, rows: np.ndarray | csr_array, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate every latent with every column, in one pass over the rows, where the autoencoder's weights lie.

    ``rows`` are those of ``Rows.x``, ``columns`` moral vectors [rows, 10] or others side by side.
    Memory: ``ACTIVATIONS_AT_ONCE`` activations and the sums [d_sae, columns], however many rows there are.

    Returns:
        Pearson correlations [d_sae, columns], 0 for a latent or a column that does not vary; and the share of rows that
        activate every latent, [d_sae].
    """
    device, chunk = sae.W_enc.device, max(1, ACTIVATIONS_AT_ONCE // sae.d_sae)
    y = torch.tensor(columns, dtype=torch.float32, device=device)
    y -= y.mean(dim=0, dtype=torch.float64)
    # Sums of single latents are float64; no activation is ever copied into it.
    sums, squares, fired = (torch.zeros(sae.d_sae, dtype=torch.float64, device=device) for _ in range(3))
    products = torch.zeros(sae.d_sae, y.shape[1], device=device)
    for start in range(0, len(y), chunk):
        feature_acts = activations_of(sae, rows[start : start + chunk])
        sums += feature_acts.sum(dim=0, dtype=torch.float64)
        squares += torch.linalg.vector_norm(feature_acts, dim=0, dtype=torch.float64) ** 2
        fired += torch.count_nonzero(feature_acts, dim=0)
        products.addmm_(feature_acts.T, y[start : start + chunk])
    variance = squares - sums**2 / len(y)
    # What is constant up to rounding does not vary; in place, because with a null there are thousands of columns.
    products *= torch.where(variance > 1e-12 * squares, variance.clamp_min(1e-30).rsqrt(), 0.0).float()[:, None]
    spread = torch.linalg.vector_norm(y, dim=0, dtype=torch.float64)
    products *= torch.where(spread > 1e-6, 1 / spread, 0.0).float()
    return products.cpu().numpy(), (fired / len(y)).cpu().numpy()


def identify(sae: SparseAutoencoder, rows: dict[str, Rows], *, permutations: int, seed: int) -> pd.DataFrame:
    """Apply the published criteria and the careful one to every latent.

    ``rows`` are by split: the criteria see those of ``CHOSEN_ON``, and the choice is reported on those of ``REPORTED_ON``.
    ``permutations`` is the number of shuffles of the labels among actions, for the null of the careful criterion.

    Returns:
        One row per latent: ``latent``, the ten correlations ``r_care`` ..., ``category`` of the largest |r|, ``largest``,
        ``activity`` (share of rows that activate it), ``alive`` (activity is not 0), ``strict``, ``report``, ``careful``
        and ``tuned``; on the other split ``elsewhere``, the correlation with ``category``, and ``replicated``: the category
        is again the one of the largest |r|, with the same sign.
    """
    chosen_on, reported_on = rows[CHOSEN_ON], rows[REPORTED_ON]
    labels = chosen_on.vectors.astype(np.float32)
    shuffled = [labels[order] for order in stats.permutations(chosen_on.actions, permutations, seed)]
    # The null in the same pass: the largest |r| of every latent under labels permuted among actions.
    r, activity = correlations(sae, chosen_on.x, np.hstack([labels, *shuffled]))
    r, *nulls = np.split(r, permutations + 1, axis=1)
    r = r.astype(np.float64)
    null = np.array([np.abs(part).max(axis=1) for part in nulls]).reshape(permutations, len(r)).T
    size = np.abs(r)
    ordered, own, latents = np.sort(size, axis=1), size.argmax(axis=1), np.arange(len(r))
    table = pd.DataFrame(r, columns=[f"r_{category}" for category in CATEGORIES])
    table.insert(0, "latent", latents)
    table["category"] = np.array(CATEGORIES)[own]
    table["largest"] = ordered[:, -1]
    table["activity"] = activity
    table["alive"] = activity > 0
    table["strict"] = (ordered[:, -1] > THRESHOLD) & (ordered[:, -1] > DOMINANCE * ordered[:, -2])
    table["report"] = _report(size > THRESHOLD)
    table["careful"] = careful(ordered[:, -1], null, activity)
    table["tuned"] = table["strict"]
    for latents_of in (*(top_latents(r, dimension) for dimension in range(r.shape[1])), *contrasts(r)):
        table.loc[latents_of, "tuned"] = True
    there, _ = correlations(sae, reported_on.x, reported_on.vectors)
    table["elsewhere"] = there[latents, own]
    table["replicated"] = (np.abs(there).argmax(axis=1) == own) & (there[latents, own] * r[latents, own] > 0)
    return table


def _report(above: np.ndarray) -> np.ndarray:
    count = above.sum(axis=1)
    pairs = above.reshape(len(above), -1, 2).all(axis=2).any(axis=1)
    return (count == 1) | ((count == 2) & pairs)


def careful(largest: np.ndarray, null: np.ndarray, activity: np.ndarray) -> np.ndarray:
    """Return which latents correlate beyond chance: Benjamini-Hochberg over those that some row activates.

    ``largest`` [d_sae] is the largest |r| of every latent, ``null`` [d_sae, permutations] the same under permuted labels,
    pooled within bins of equal ``activity`` [d_sae], the share of rows that activate a latent.
    """
    chosen = np.zeros(len(largest), dtype=bool)
    alive = np.flatnonzero(activity > 0)
    if len(alive) == 0:
        return chosen
    p = np.ones(len(alive))
    edges = np.unique(np.quantile(activity[alive], np.linspace(0, 1, ACTIVITY_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, activity[alive])
    for number in np.unique(bins):
        members = alive[bins == number]
        pooled = np.sort(null[members].ravel())
        reached = len(pooled) - np.searchsorted(pooled, largest[members] - 1e-12)
        p[bins == number] = (1 + reached) / (1 + len(pooled))
    chosen[alive] = multipletests(p, FALSE_DISCOVERY_RATE, method="fdr_bh")[0]
    return chosen


def top_latents(r: np.ndarray, dimension: int, *, count: int = TOP, above: float = THRESHOLD) -> np.ndarray:
    """Return the latents most positively correlated with a dimension, at most ``count``, with r [d_sae, 10] ``above``."""
    order = np.argsort(-r[:, dimension], kind="stable")[:count]
    return order[r[order, dimension] > above]


def contrasts(r: np.ndarray) -> list[np.ndarray]:
    """Return the latents that each of the ten dimensions brings to the contrast with its opposite.

    They are the ``CONTRAST`` most positive ones; none of a pair of which one pole has none.
    """
    poles = [top_latents(r, dimension, count=CONTRAST, above=0) for dimension in range(r.shape[1])]
    return [pole if len(poles[dimension ^ 1]) else pole[:0] for dimension, pole in enumerate(poles)]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Count latents by category and criterion: columns ``category, criterion, latents``."""
    counts = table.groupby("category")[list(CRITERIA)].sum().reindex(CATEGORIES, fill_value=0)
    return counts.melt(var_name="criterion", value_name="latents", ignore_index=False).reset_index()


def replication(table: pd.DataFrame) -> pd.DataFrame:
    """Say what became of the chosen latents on rows that played no part in the choice.

    Returns:
        One row per criterion: ``criterion, chosen_on, latents, r_chosen`` (mean largest |r|), ``reported_on, r_reported``
        (mean correlation with the same category there, counted positive in the direction chosen) and ``replicated``
        (share; by chance 1/20). NaN where nothing was chosen.
    """
    r = table.filter(regex="^r_")
    # The larger pole is the one that a latent was chosen for.
    reported = np.sign(r.max(axis=1) + r.min(axis=1)) * table["elsewhere"]
    records = []
    for name in ("strict", "report", "careful"):
        chosen = table[table[name]]
        means = (chosen["largest"].mean(), REPORTED_ON, reported[chosen.index].mean(), chosen["replicated"].mean())
        records.append((name, CHOSEN_ON, len(chosen), *means))
    columns = ["criterion", "chosen_on", "latents", "r_chosen", "reported_on", "r_reported", "replicated"]
    return pd.DataFrame(records, columns=columns)


@torch.no_grad()
def most_activating(sae: SparseAutoencoder, rows: Rows, *, table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the actions that most activate one tuned latent per category: the one of the category's largest r.

    ``table`` is that of :func:`identify`. Each action is listed once per latent, at most ``count`` of them.

    Returns:
        Columns ``category, latent, rank, activation, typicality`` (of the category), ``action``.
    """
    r = table[table["tuned"]].set_index("latent").filter(regex="^r_").set_axis(CATEGORIES, axis="columns")
    best = r.loc[:, (r > THRESHOLD).any()].idxmax()
    chosen, chunk = list(best), max(1, ACTIVATIONS_AT_ONCE // sae.d_sae)
    parts = (rows.x[start : start + chunk] for start in range(0, len(rows.vectors), chunk))
    activation = torch.cat([activations_of(sae, part)[:, chosen].cpu() for part in parts]).numpy()
    records = []
    for (category, latent), values in zip(best.items(), activation.T, strict=True):
        order, typicality = np.argsort(-values, kind="stable"), rows.vectors[:, CATEGORIES.index(category)]
        once = order[~pd.Index(rows.actions[order]).duplicated()][:count]
        records += [
            (category, latent, rank, values[row], typicality[row], rows.actions[row])
            for rank, row in enumerate(once[values[once] > 0], 1)
        ]
    return pd.DataFrame(records, columns=["category", "latent", "rank", "activation", "typicality", "action"])
