"""The ceiling: how well labels of one annotator each can be predicted at all, and how well annotators predict each other.

A label is one annotator's opinion, so even an oracle that knows the mean opinion of every action misses labels. That is the
most a model can reach; one annotator's opinion, which is noisy too, predicts another's less well. Social-Chemistry-101 gave
some rules of thumb to 5 or 50 annotators, and these say how far opinions spread. Every item counts the same, however many
annotators it had.
"""

from dataclasses import dataclass

import krippendorff
import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lib.paper import CATEGORIES, FOUNDATIONS
from lib.stats import cluster_weights, interval_around, weighted_correlation
from lib.vectors.moral_vectors import explode

LEVELS = np.array([0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0])
"""Every value that a dimension of a moral vector can take."""

METRICS = ("annotator_spearman", "annotator_r2", "r2", "krippendorff_alpha")
"""Agreement between annotators; the third is what an oracle explains."""

SPEARMANS = ("spearman", "spearman_without_prototypes")
LABELLINGS = ("foundation", "polarity", "foundation and polarity")
COLUMNS = ["dimension", "metric", "value", "ci_low", "ci_high", "n", "reason"]
MINIMUM_ITEMS = 20
PANEL = 4
"""Other annotators of an item that the oracle is extrapolated from, together with half as many."""

Values = dict[tuple[str, str], tuple[np.ndarray, int]]
"""(Dimension, foundation, labelling or ``mean``; metric) -> value and its resamples, [draws + 1], and number of items."""


def measure_ceiling(
    judged: pd.DataFrame, items: pd.Series, *, subset: pd.DataFrame, draws: int, seed: int
) -> pd.DataFrame:
    """Measure what an oracle reaches and how well annotators agree, with intervals over items.

    Args:
        judged: moral vectors of the rows of items with several annotators, as :func:`moral_vectors.vectorise` returns them.
        items: what a row's annotator was asked to judge, [rows]; rows of one item are by different annotators.
        subset: the diagnosis subset, whose strata the oracle's rows are weighted to.
        draws: bootstrap resamples of items.
        seed: of the resamples.

    Returns:
        Columns ``COLUMNS``; ``n`` is the number of items, ``reason`` says why a value is missing.

        Of an oracle that knows the mean opinion on every item: ``r2`` of every dimension, over annotations as they come (the
        Pearson correlation of two annotators), and, through the diagnosis subset, ``auc`` of every foundation, ``spearman``
        and ``spearman_without_prototypes`` of every category, each with their ``mean``, and ``adjusted_rand`` of every
        labelling (see :func:`oracle`).

        Of annotators, for every dimension and ``mean``: ``annotator_spearman`` of two annotators; ``annotator_r2``, the
        variance of one that a linear reading of the other explains; ``krippendorff_alpha`` at interval level (Krippendorff,
        2011).
    """
    how = {"draws": draws, "seed": seed}
    return tabulated(agreement(judged, items, **how) | oracle(judged, items, subset=subset, **how))


def tabulated(values: Values) -> pd.DataFrame:
    """Bring values into a frame with ``COLUMNS``; intervals are ``stats.interval_around``."""
    records = []
    for (name, metric), (samples, count) in values.items():
        why = "" if np.isfinite(samples[0]) else "not computed, because labels or annotators do not vary"
        if count < MINIMUM_ITEMS:
            why = f"not computed, because {count} items have enough annotators, fewer than {MINIMUM_ITEMS}"
        low, high = np.clip(interval_around(samples[0], samples[1:]), -1, 1)
        records.append((name, metric, samples[0], low, high, count, why))
    return pd.DataFrame(records, columns=COLUMNS)


def agreement(judged: pd.DataFrame, items: pd.Series, *, draws: int, seed: int) -> Values:
    """Return ``METRICS`` of every dimension and ``mean``, over the items with at least two annotators."""
    several = items.duplicated(keep=False).to_numpy()
    codes, distinct = pd.factorize(items[several])
    count = len(distinct)
    values = np.full((len(CATEGORIES), len(METRICS), draws + 1), np.nan)
    if count >= MINIMUM_ITEMS:
        weights = cluster_weights(np.arange(count), draws, seed)
        counts = (level_counts(judged.loc[several, name].to_numpy(), codes) for name in CATEGORIES)
        values = np.array([_agreement(of_category, weights) for of_category in counts])
    mean = _mean(values)
    named = zip((*CATEGORIES, "mean"), (*values, mean), strict=True)
    return {(name, metric): (line, count) for name, lines in named for metric, line in zip(METRICS, lines, strict=True)}


def oracle(judged: pd.DataFrame, items: pd.Series, *, subset: pd.DataFrame, draws: int, seed: int) -> Values:
    """Return the scores against one annotator of an oracle that knows the mean opinion of every item.

    They are ``auc``, ``spearman``, ``spearman_without_prototypes`` and ``adjusted_rand``, called like a model's.

    A label is predicted by the mean of 4 other annotators of its item, and by the mean of 2, in the sampling and scoring of
    the diagnosis: a row counts as much as its stratum of foundation, polarity and typicality has rows in the subset.
    The mean of j others departs from opinion by 1/j of the spread between annotators, so one over the squared correlation
    falls along a line in 1/j, whose end at 0 is the oracle; likewise one over the squared distance of two normal classes,
    which an area under the curve is the probability of. Assumed is that an item's annotators are a random sample and that
    departures from their mean are alike for all. ``adjusted_rand`` has no such law: it is that of the most common label of
    4 others, which the oracle should exceed.

    Items need 5 annotators. Arguments as for :func:`measure_ceiling`.
    """
    kept = (items.map(items.value_counts()) > PANEL).to_numpy()
    codes, distinct = pd.factorize(items[kept])
    count = len(distinct)
    keys = [*((name, "auc") for name in FOUNDATIONS), *((name, metric) for name in CATEGORIES for metric in SPEARMANS)]
    of_panels = dict.fromkeys(keys, np.full((2, draws + 1), np.nan))
    values = {(name, "adjusted_rand"): np.full(draws + 1, np.nan) for name in LABELLINGS}
    if count >= MINIMUM_ITEMS:
        panels = Panels.of(judged[kept].reset_index(drop=True), codes, subset, seed=seed)
        scores = [panels.scores(line) for line in cluster_weights(np.arange(count), draws, seed)]
        of_panels = {key: np.array([of_draw[key] for of_draw in scores]).T for key in keys}
        values = {key: np.array([of_draw[key] for of_draw in scores]) for key in values}
    for metric in ("auc", *SPEARMANS):
        # The mean first: the end of the line through two noisy scores is noisier than either.
        of_panels["mean", metric] = _mean(np.array([lines for key, lines in of_panels.items() if key[1] == metric]))
    for (name, metric), lines in of_panels.items():
        reached = extrapolated(*lines)
        values[name, metric] = norm.cdf(reached / np.sqrt(2)) if metric == "auc" else np.minimum(reached, 1)
    return {key: (line, count) for key, line in values.items()}


@dataclass(frozen=True)
class Panels:
    """Labels with what other annotators of the same item say.

    Attributes:
        rows: exploded labels with ``item, foundation, polarity, typicality``, ``share`` (one over the annotators of the
            item) and ``wanted`` (rows that the subset has of the row's stratum).
        opinions: number of other annotators -> their mean vector, [rows, 10].
        common: labelling -> the most common label among ``PANEL`` others, [rows].
    """

    rows: pd.DataFrame
    opinions: dict[int, np.ndarray]
    common: dict[str, np.ndarray]

    @classmethod
    def of(cls, judged: pd.DataFrame, items: np.ndarray, subset: pd.DataFrame, *, seed: int) -> "Panels":
        """Give every label a panel: the annotators that follow it in a random circle of its item's, integers [rows]."""
        order = np.lexsort((np.random.default_rng(seed).random(len(items)), items))
        judged, items = judged.iloc[order].reset_index(drop=True), items[order]
        size = np.bincount(items)[items]
        start = np.searchsorted(items, items)
        place = np.arange(len(items)) - start
        others = np.stack([start + (place + step) % size for step in range(1, PANEL + 1)])
        vectors = judged[list(CATEGORIES)].to_numpy()
        rows = explode(judged.assign(id=np.arange(len(judged))), seed)
        of_row = rows["id"].to_numpy()
        strata = ["foundation", "polarity", "typicality"]
        wanted = subset.groupby(strata).size().rename("wanted").reset_index()
        rows = rows.merge(wanted, on=strata, how="left").fillna({"wanted": 0})
        rows = rows.assign(item=items[of_row], share=1 / size[of_row])
        opinions = {count: vectors[others[:count]].mean(axis=0)[of_row] for count in (PANEL // 2, PANEL)}
        return cls(rows, opinions, _most_common(rows, others))

    def scores(self, weights: np.ndarray) -> dict[tuple[str, str], float | list[float]]:
        """Return the scores of both panels, for ``auc`` as distances, under weights of the items, [items]."""
        rows, foundation, polarity = self.rows, self.rows["foundation"].to_numpy(), self.rows["polarity"].to_numpy()
        typicality, mass = rows["typicality"].to_numpy(), pd.Series(weights[rows["item"]] * rows["share"].to_numpy())
        in_stratum = mass.groupby([foundation, polarity, typicality]).transform("sum")
        weight = (mass * rows["wanted"] / in_stratum.where(in_stratum > 0, np.inf)).to_numpy()
        weight, scores = weight / max(weight.sum(), 1e-12), {}
        for index, name in enumerate(FOUNDATIONS):
            here = (foundation == name) & (weight > 0)
            signed = {
                count: opinion[:, 2 * index] - opinion[:, 2 * index + 1] for count, opinion in self.opinions.items()
            }
            pole = here & (polarity != "neutral")
            scores[name, "auc"] = [
                _distance(polarity[pole] == "virtue", x[pole], weight[pole]) for x in signed.values()
            ]
            for category, column, other in zip(name.split("-"), (0, 1), ("vice", "virtue"), strict=True):
                member = here & (polarity != other)
                for metric, chosen in zip(SPEARMANS, (member, member & (typicality < 1)), strict=True):
                    scores[category, metric] = [
                        weighted_spearman(opinion[chosen, 2 * index + column], typicality[chosen], weight[chosen])
                        for opinion in self.opinions.values()
                    ]
        for target, labels in _labels(rows).items():
            scores[target, "adjusted_rand"] = weighted_rand(labels, self.common[target], weight)
        return scores


def extrapolated(half: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the scores at infinitely many annotators from those at ``PANEL`` / 2 and ``PANEL``; see :func:`oracle`.

    At most twice the latter: where a score is hardly above chance, the line through two such scores can end anywhere.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        end = 2 / whole**2 - 1 / half**2
        reached = np.where(end > 0, end**-0.5, np.inf)
    return np.where((half > 0) & (whole > 0), np.minimum(reached, 2 * whole), whole)


def weighted_rand(labels: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> float:
    """Return the adjusted Rand index of a large sample of weighted rows; weights sum to 1."""
    table = pd.Series(weights).groupby([labels, groups]).sum()
    both, of_labels, of_groups = (
        float((sums**2).sum()) for sums in (table, table.groupby(level=0).sum(), table.groupby(level=1).sum())
    )
    expected, highest = of_labels * of_groups, (of_labels + of_groups) / 2
    return (both - expected) / (highest - expected) if highest > expected else np.nan


def weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Return Spearman's correlation of weighted rows; ties have the middle rank. NaN where either is constant."""
    if len(x) == 0:
        return np.nan
    ranks = []
    for values in (x, y):
        level = np.unique(values, return_inverse=True)[1]
        mass = np.bincount(level, weights) / weights.sum()
        ranks.append((np.cumsum(mass) - mass / 2)[level])
    return float(weighted_correlation(*ranks, weights[None])[0])


def _distance(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Return the distance of two normal classes, in standard deviations, that have this area under the curve."""
    if len(np.unique(positive)) < 2:
        return np.nan
    area = roc_auc_score(positive, scores, sample_weight=weights)
    return float(np.sqrt(2) * norm.ppf(np.clip(area, 1e-9, 1 - 1e-9)))


def _labels(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    both = rows["foundation"] + " " + rows["polarity"]
    columns = (rows["foundation"], rows["polarity"], both)
    return {target: column.to_numpy(object) for target, column in zip(LABELLINGS, columns, strict=True)}


def _most_common(rows: pd.DataFrame, others: np.ndarray) -> dict[str, np.ndarray]:
    """Labelling -> the label that the panels of labels, ``others`` [4, labels], give most often, [exploded rows]."""
    common = {}
    for target, labels in _labels(rows).items():
        said = pd.DataFrame({"id": rows["id"], "label": labels})
        panel = pd.DataFrame({"row": np.tile(np.arange(others.shape[1]), PANEL), "id": others.ravel()}).merge(
            said, on="id"
        )
        votes = panel.groupby(["row", "label"]).size().sort_values(kind="stable").reset_index()
        common[target] = rows["id"].map(votes.drop_duplicates("row", keep="last").set_index("row")["label"]).to_numpy()
    return common


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis; those whose value is missing are left out of the resamples too."""
    defined = np.isfinite(values[..., :1])
    return values.mean(axis=0, where=defined) if defined.any() else np.full(values.shape[1:], np.nan)


def level_counts(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Count how many annotators gave an item each of ``LEVELS``, [items, 7], from values and item numbers [rows]."""
    counts = np.zeros((items.max() + 1, len(LEVELS)))
    np.add.at(counts, (items, np.searchsorted(LEVELS, values)), 1)
    return counts


def pair_tables(counts: np.ndarray) -> np.ndarray:
    """Return the share of each pair of levels among all ordered pairs of an item's annotators, [items, 7, 7].

    ``counts`` as :func:`level_counts` returns them, with at least two annotators per item.
    """
    pairs = counts[:, :, None] * counts[:, None, :]
    # No annotator is paired with themselves.
    pairs -= np.eye(counts.shape[1]) * counts[:, :, None]
    total = counts.sum(axis=1)
    return pairs / (total * (total - 1))[:, None, None]


def table_correlation(tables: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of symmetric tables of shares [draws, k, k] under scores [draws, k]; NaN if constant."""
    margin = tables.sum(axis=2)
    mean = (margin * scores).sum(axis=1)
    variance = (margin * scores**2).sum(axis=1) - mean**2
    covariance = np.einsum("dij,di,dj->d", tables, scores, scores) - mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 1e-12, covariance / variance, np.nan)


def _agreement(counts: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Return each of ``METRICS`` under every row of item weights [draws, items], each [draws]."""
    tables = np.einsum("di,ijk->djk", weights, pair_tables(counts)) / weights.sum(axis=1)[:, None, None]
    margin = tables.sum(axis=2)
    midranks = np.cumsum(margin, axis=1) - margin / 2
    pearson = table_correlation(tables, np.broadcast_to(LEVELS, margin.shape))
    at = {"value_domain": LEVELS, "level_of_measurement": "interval"}
    resampled = (np.repeat(counts, times, axis=0) for times in weights.astype(int))
    with np.errstate(invalid="ignore"):
        alpha = np.array([krippendorff.alpha(value_counts=drawn, **at) for drawn in resampled])
    return [table_correlation(tables, midranks), np.sign(pearson) * pearson**2, pearson, alpha]
