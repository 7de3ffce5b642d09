"""What alignment did, on rows it never saw: every arm by the same measures, with intervals clustered by action."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from lib.alignment.selection import Selection
from lib.paper import CATEGORIES, OPPOSITES
from lib.sae.model import ROWS_AT_ONCE, SparseAutoencoder, fraction_of_variance_unexplained
from lib.sae.rows import Rows
from lib.stats import cluster_weights, interval, interval_around, pearson, spearman, standard, weighted_correlation

BETTER = {"gradient": 1, "opposing_similarity": -1, "fvu": -1}
"""What alignment is judged by -> 1 where more is better, -1 where less is."""

BEST = "minus best control"


class Applied(NamedTuple):
    """An arm on held-out rows: mean activation of every category's latents [rows, 10], squared errors [rows]."""

    activity: np.ndarray
    errors: np.ndarray


Draws = Mapping[str, Sequence[Applied]]
"""Arm -> what it did: once, or once per permutation of the labels."""


@torch.no_grad()
def apply(sae: SparseAutoencoder, selection: Selection, rows: np.ndarray) -> Applied:
    """Apply an autoencoder, with the latents that stand for each category, to raw rows [rows, d_in]."""
    tuned = torch.from_numpy(selection.tuned).to(sae.W_enc.device)
    readout, activity, errors = torch.from_numpy(selection.readout).to(tuned.device), [], []
    for part in torch.as_tensor(rows, dtype=torch.float32).split(ROWS_AT_ONCE):
        x = part.to(tuned.device)
        x_hat, feature_acts = sae(x)
        activity.append((feature_acts[:, tuned] @ readout).double().cpu())
        errors.append(((x - x_hat).double() ** 2).sum(dim=1).cpu())
    return Applied(torch.cat(activity).numpy(), torch.cat(errors).numpy())


@torch.no_grad()
def read(directions: SparseAutoencoder, rows: np.ndarray, *, rectified: bool) -> Applied:
    """Read ten directions of raw rows [rows, d_in], as latents that fire where ``rectified``; their errors are NaN."""
    x = torch.as_tensor(rows, dtype=torch.float32, device=directions.W_enc.device)
    activity = (directions.encode if rectified else directions.hidden_pre)(x)
    return Applied(activity.double().cpu().numpy(), np.full(len(rows), np.nan))


def evaluate(arms: Draws, test: Rows, *, draws: int, seed: int) -> pd.DataFrame:
    """Measure every arm on held-out rows, from what :func:`apply` gave for it.

    Resamples of actions, ``draws`` of them, are the same for all arms, so that differences are paired. An arm with several
    permutations of the labels has their mean as its value; its resamples take turns among them, so that intervals hold both.

    Returns:
        Columns ``arm, metric, category, value, ci_low, ci_high, n``. Metrics: ``spearman`` of a category's mean activation
        with its typicality over all rows (a category, and ``all`` for the mean); ``gradient``, the same over the rows of the
        category alone, which telling categories apart does not raise (``all``: all entries together, ranked within their
        category); ``opposing_similarity``, the correlation over rows of the activations of opposing categories (``all``: the
        mean of the five); ``fvu``, NaN for directions. For ``aligned`` the differences ``spearman minus untuned``,
        ``... minus shuffled`` and so on for every other arm, for ``shuffled`` the one to ``untuned``; and for each metric of
        ``BETTER`` the one to whichever other arm is best at it, ``gradient minus best control``. Its interval is wider, by
        Bonferroni for the number of arms that could have been the best.
    """
    weights = cluster_weights(test.actions, draws, seed)
    measured = {arm: _in_turn([_measures(one, test, weights) for one in several]) for arm, several in arms.items()}
    records = [
        (arm, *key, values[0], *interval(values[1:])) for arm, of in measured.items() for key, values in of.items()
    ]
    differences = [("aligned", other) for other in measured if other != "aligned"] + [("shuffled", "untuned")]
    for arm, other in differences:
        for (metric, category), values in measured.get(arm, {}).items():
            if category == "all" and other in measured:
                less = values - measured[other][metric, category]
                records.append((arm, f"{metric} minus {other}", category, less[0], *interval(less[1:])))
    for metric, sign in BETTER.items():
        values = {arm: of[metric, "all"] for arm, of in measured.items() if np.isfinite(of[metric, "all"][0])}
        if "aligned" in values and len(values) > 1:
            aligned = values.pop("aligned")
            less = aligned - max(values.values(), key=lambda drawn: sign * drawn[0])
            corrected = interval_around(less[0], less[1:], error=0.05 / len(values))
            records.append(("aligned", f"{metric} {BEST}", "all", less[0], *corrected))
    table = pd.DataFrame(records, columns=["arm", "metric", "category", "value", "ci_low", "ci_high"])
    return table.assign(n=len(test.x))


def against_best(alignment: pd.DataFrame) -> pd.DataFrame:
    """Set the aligned arm beside the best control at each measure, from the table of :func:`evaluate` with ``layer``.

    Returns:
        Columns ``layer, metric, aligned, control`` (its name), ``best`` (its value), ``difference, ci_low, ci_high`` (corrected
        for the number of controls) and ``adds``: "better", "worse" or "nothing", where the interval holds 0.
    """
    records, whole = [], alignment[alignment["category"] == "all"]
    for (layer, metric), row in whole[whole["metric"].str.endswith(BEST)].set_index(["layer", "metric"]).iterrows():
        name = metric.removesuffix(f" {BEST}")
        values = whole[(whole["layer"] == layer) & (whole["metric"] == name)].set_index("arm")["value"].dropna()
        control = (BETTER[name] * values.drop("aligned")).idxmax()
        low, high = sorted((BETTER[name] * row["ci_low"], BETTER[name] * row["ci_high"]))
        adds = "better" if low > 0 else "worse" if high < 0 else "nothing"
        measured = (values["aligned"], control, values[control], row["value"], row["ci_low"], row["ci_high"])
        records.append((layer, name, *measured, adds))
    columns = ["layer", "metric", "aligned", "control", "best", "difference", "ci_low", "ci_high", "adds"]
    return pd.DataFrame(records, columns=columns)


def in_words(table: pd.DataFrame) -> list[str]:
    """Say what alignment adds over the best control, one sentence per line of :func:`against_best`."""
    what = {
        "gradient": "Correlation with typicality within a category",
        "opposing_similarity": "Correlation of opposing categories (lower is better)",
        "fvu": "Fraction of variance unexplained (lower is better)",
    }
    adds = {
        "better": "alignment is better than the best control",
        "worse": "alignment is worse than the best control",
        "nothing": "alignment adds nothing that these rows can tell from the best control",
    }
    return [
        f"After layer {row.layer}. {what[row.metric]}: aligned {row.aligned:.3f}, {row.control} {row.best:.3f}; difference "
        f"{row.difference:.3f} ({row.ci_low:.3f} to {row.ci_high:.3f}): **{adds[row.adds]}**."
        for row in table.itertuples()
    ]


def similarities(arms: Draws, vectors: np.ndarray) -> pd.DataFrame:
    """Correlate the activations of all pairs of categories over rows, for the annotators' vectors and every arm.

    Returns:
        Columns ``arm`` (``annotators`` first), ``category``, ``other``, ``value`` (the mean over an arm's permutations); NaN
        where an activation is constant.
    """
    activity = {"annotators": [vectors]} | {arm: [one.activity for one in several] for arm, several in arms.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.ravel([np.mean([np.corrcoef(one.T) for one in several], axis=0) for several in activity.values()])
    labels = pd.MultiIndex.from_product([activity, CATEGORIES, CATEGORIES], names=["arm", "category", "other"])
    return pd.Series(values, labels, name="value").reset_index()


def likeness(similar: pd.DataFrame) -> pd.DataFrame:
    """Correlate each arm's ten-by-ten similarity with the annotators', over 45 pairs: columns ``arm, correlation``."""
    upper = similar[similar["category"].map(CATEGORIES.index) < similar["other"].map(CATEGORIES.index)]
    by_arm = upper.pivot(index=["category", "other"], columns="arm", values="value")
    arms = [arm for arm in similar["arm"].unique() if arm != "annotators"]
    return pd.DataFrame([(arm, by_arm["annotators"].corr(by_arm[arm])) for arm in arms], columns=["arm", "correlation"])


Measures = dict[tuple[str, str], np.ndarray]


def _in_turn(several: list[Measures]) -> Measures:
    """Join the measures of an arm's permutations: the mean first, then the resamples of each in turn."""
    joined = {}
    for key in several[0]:
        values = np.array([one[key] for one in several])
        joined[key] = values[np.arange(values.shape[1]) % len(values), np.arange(values.shape[1])]
        joined[key][0] = values[:, 0].mean()
    return joined


def _measures(applied: Applied, test: Rows, weights: np.ndarray) -> Measures:
    """Return (metric, category) -> values [draws] under every line of weights [draws, rows]."""
    measures, ranked = {}, []
    for index, category in enumerate(CATEGORIES):
        activity, typicality = applied.activity[:, index], test.vectors[:, index]
        inside = typicality > 0
        measures["spearman", category] = spearman(activity, typicality, weights)
        x, y = (standard(rankdata(values[inside])) for values in (activity, typicality))
        measures["gradient", category] = weighted_correlation(x, y, weights[:, inside])
        if np.isfinite(measures["gradient", category][0]):
            ranked.append((x, y, weights[:, inside]))
    for virtue, vice in OPPOSITES.items():
        poles = (applied.activity[:, CATEGORIES.index(category)] for category in (virtue, vice))
        measures["opposing_similarity", f"{virtue}-{vice}"] = pearson(*poles, weights)
    # Every typicality above 0 counts equally, as in the loss; some categories have few.
    nothing = np.full(len(weights), np.nan)
    together = [np.concatenate(parts, axis=-1) for parts in zip(*ranked, strict=True)]
    measures["gradient", "all"] = weighted_correlation(*together) if ranked else nothing
    for metric in ("spearman", "opposing_similarity"):
        values = np.array([value for (name, _), value in measures.items() if name == metric])
        # A category without latents says nothing; the mean is over those that have some.
        some = np.isfinite(values[:, 0])
        measures[metric, "all"] = np.nanmean(values[some], axis=0) if some.any() else nothing
    x, errors, counts = (torch.tensor(part) for part in (test.x, applied.errors, weights))
    measures["fvu", "all"] = fraction_of_variance_unexplained(x, errors, counts).numpy()
    return measures
