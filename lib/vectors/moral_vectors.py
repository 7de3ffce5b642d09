"""Annotations become ten-dimensional moral vectors, exploded rows, splits and the diagnosis subset.

The published recipe (released code): v = judgment / 2, w = agreement / 4, virtue = max(0, v) w, vice = max(0, -v) w; every
foundation that an annotation names gets the same pair. Beside the published split by annotation stands a careful one,
grouped by normalised action text, so that no action is on both sides.

In all functions, ``annotations`` is the frame that :func:`vectorise` returns and ``exploded`` the one of :func:`explode`.
"""

import random
import re

import numpy as np
import pandas as pd

from lib.paper import CATEGORIES, FOUNDATIONS, category_of
from lib.stats import cluster_weights, interval

PUBLISHED_SEED = 42
"""Of everything that the released recipe draws."""

SPLITS = ("train", "validation", "test")
TYPICALITIES = (0.125, 0.25, 0.375, 0.5, 0.75)
PER_STRATUM, PROTOTYPES = 300, 150
"""Rows of the diagnosis subset: at most 300 per stratum, at most 150 at typicality 1."""


def vectorise(cleaned: pd.DataFrame, agreement_source: str) -> pd.DataFrame:
    """Give every cleaned row its id and its moral vector.

    Args:
        cleaned: columns ``action``, ``rot-moral-foundations``, ``action-moral-judgment`` (-2..2), ``agreement`` (0..4).
        agreement_source: name of the column that agreement was read from.

    Returns:
        Columns ``id, action, foundations, judgment, agreement, virtue, vice``, ``neutral_because`` (empty, ``judgment is
        0``, ``agreement is 0`` or ``both``), the ten categories (0..1) and ``agreement_source``, in the order of the
        cleaned rows.
    """
    value = cleaned["action-moral-judgment"].to_numpy(float) / 2
    weight = cleaned["agreement"].to_numpy(float) / 4
    named = cleaned["rot-moral-foundations"].str.split("|")
    frame = pd.DataFrame(
        {
            "id": [f"socialchem_{index:06d}" for index in range(len(cleaned))],
            "action": cleaned["action"].to_numpy(),
            "foundations": [sorted(set(names), key=FOUNDATIONS.index) for names in named],
            "judgment": cleaned["action-moral-judgment"].to_numpy(float),
            "agreement": cleaned["agreement"].to_numpy(float),
            "virtue": np.maximum(0, value) * weight + 0.0,  # no negative zero
            "vice": np.maximum(0, -value) * weight + 0.0,
            # Two things that the paper's neutral mixes.
            "neutral_because": np.select(
                [(value == 0) & (weight == 0), value == 0, weight == 0], ["both", "judgment is 0", "agreement is 0"], ""
            ),
        }
    )
    for foundation in FOUNDATIONS:
        names_it = cleaned["rot-moral-foundations"].str.contains(foundation, regex=False).to_numpy(bool)
        for pole in ("virtue", "vice"):
            frame[category_of(foundation, pole)] = np.where(names_it, frame[pole], 0.0)
    frame["agreement_source"] = agreement_source
    return frame


def explode(annotations: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return one row per annotation and foundation that it names, with polarity, typicality and both splits.

    ``seed`` is that of the careful split; the published one always uses 42.
    """
    rows = annotations[["id", "action", "foundations", "virtue", "vice"]].copy()
    rows["split_published"] = published_split(len(rows))
    rows["split_grouped"] = grouped_split(rows["action"], seed)
    rows = rows.explode("foundations", ignore_index=True).rename(columns={"foundations": "foundation"})
    rows["polarity"] = np.select([rows["virtue"] > 0, rows["vice"] > 0], ["virtue", "vice"], "neutral")
    rows["typicality"] = np.maximum(rows["virtue"], rows["vice"])
    return rows[["id", "foundation", "polarity", "typicality", "split_published", "split_grouped"]]


def by_action(annotations: pd.DataFrame) -> pd.DataFrame:
    """Return one vector per distinct action, which the careful recipe uses where repeated actions would count twice.

    Returns:
        Columns ``action`` (its first spelling), ``multiplicity`` (annotations of it), ``judged_neutral`` and
        ``nobody_agrees`` (how many of these are neutral, by which reason), the ten categories (means, 0..1) and
        ``spread_<category>`` (standard deviations between annotations; missing where there is one).
    """
    names = list(CATEGORIES)
    grouped = annotations.assign(
        action_key=annotations["action"].map(normalise),
        judged_neutral=annotations["judgment"] == 0,
        nobody_agrees=annotations["agreement"] == 0,
    ).groupby("action_key", sort=False)
    multiplicities = grouped.agg(
        action=("action", "first"), multiplicity=("action", "size"), judged_neutral=("judged_neutral", "sum"),
        nobody_agrees=("nobody_agrees", "sum"),
    )  # fmt: skip
    spread = grouped[names].std(ddof=1).add_prefix("spread_")
    return pd.concat([multiplicities, grouped[names].mean(), spread], axis=1).reset_index(drop=True)


def published_split(n_annotations: int) -> np.ndarray:
    """Split annotations 80/10/10 as published, shape [n_annotations].

    numpy's legacy generator, seeded with 42, shuffles the positions in file order once; cuts are rounded down.
    """
    order = np.random.RandomState(PUBLISHED_SEED).permutation(n_annotations)
    train, validation = int(n_annotations * 0.8), int(n_annotations * 0.1)
    split = np.empty(n_annotations, dtype=object)
    split[order] = np.repeat(SPLITS, [train, validation, n_annotations - train - validation])
    return split


def grouped_split(texts: pd.Series, seed: int) -> np.ndarray:
    """Split rows 80/10/10 by normalised action text, shape [rows]: all rows of an action are on one side."""
    normalised = texts.map(normalise)
    actions = np.array(sorted(normalised.unique()), dtype=object)
    order = np.random.default_rng(seed).permutation(len(actions))
    first, second = int(len(actions) * 0.8), int(len(actions) * 0.9)
    side = dict(zip(actions[order], np.repeat(SPLITS, [first, second - first, len(actions) - second]), strict=True))
    return normalised.map(side).to_numpy(object)


def normalise(action: str) -> str:
    """Reduce an action to what makes it the same action: lower case, words only, single spaces."""
    return " ".join(re.findall(r"\w+", action.lower()))


def draw_subset(exploded: pd.DataFrame) -> pd.DataFrame:
    """Draw the diagnosis subset as published.

    Python's generator is seeded with 42 once; then, foundation by foundation, ``random.sample`` draws virtue .125 to .75,
    virtue 1, vice .125 to .75, vice 1 and neutral. ``random.sample`` draws positions, so which rows are drawn from a
    stratum depends on the order of the rows within it and on the sizes of this and all earlier strata, and on nothing
    else: neither on how strata lie among each other in the file, nor on texts or ids.

    Returns:
        Columns ``id, foundation, polarity, typicality, is_prototype``. Strata smaller than asked for are taken whole.
    """
    generator = random.Random(PUBLISHED_SEED)
    levels = [*((level, PER_STRATUM) for level in TYPICALITIES), (1.0, PROTOTYPES)]
    quotas = [*((pole, *level) for pole in ("virtue", "vice") for level in levels), ("neutral", 0.0, PER_STRATUM)]
    strata = exploded.groupby(["foundation", "polarity", "typicality"], sort=False).indices
    chosen: list[int] = []
    for foundation in FOUNDATIONS:
        for polarity, typicality, quota in quotas:
            stratum = strata.get((foundation, polarity, typicality), np.array([], dtype=int)).tolist()
            chosen += generator.sample(stratum, min(quota, len(stratum)))
    drawn = exploded.iloc[chosen][["id", "foundation", "polarity", "typicality"]].reset_index(drop=True)
    return drawn.assign(is_prototype=drawn["typicality"] == 1.0)


def overlap(annotations: pd.DataFrame) -> pd.DataFrame:
    """Return which foundations annotations name together.

    Returns:
        Columns ``named, also_named, share``: of the annotations that name the first, how many also name the second.
    """
    names = annotations["foundations"].str.join("|").str.get_dummies().reindex(columns=list(FOUNDATIONS), fill_value=0)
    share = (names.T @ names).div(names.sum().clip(lower=1), axis="index")
    return share.rename_axis(index="named", columns="also_named").stack().rename("share").reset_index()


def lengths(exploded: pd.DataFrame, annotations: pd.DataFrame, *, draws: int, seed: int) -> pd.DataFrame:
    """Return the mean length of actions by polarity and typicality: a mean over tokens confounds length with morality.

    Columns ``polarity, typicality, value`` (words), ``ci_low, ci_high`` (of resampled actions), ``n``.
    """
    merged = exploded.merge(annotations[["id", "action"]], on="id", validate="many_to_one")
    merged["words"] = merged["action"].str.split().str.len()
    records = []
    for (polarity, typicality), part in merged.groupby(["polarity", "typicality"]):
        # Sums by action first: resampling a few thousand actions costs no more than that.
        sums = part.groupby("action")["words"].agg(["sum", "size"]).to_numpy(float)
        totals = cluster_weights(np.arange(len(sums)), draws, seed) @ sums
        means = totals[:, 0] / np.maximum(totals[:, 1], 1)
        records.append((polarity, typicality, means[0], *interval(means[1:]), len(part)))
    return pd.DataFrame(records, columns=["polarity", "typicality", "value", "ci_low", "ci_high", "n"])


def most_typical(exploded: pd.DataFrame, annotations: pd.DataFrame, *, count: int = 5) -> pd.DataFrame:
    """Return the actions most often called typical, ties in the order of the file: ``category, action, annotations``."""
    typical = exploded[exploded["typicality"] == 1.0].merge(annotations[["id", "action"]], on="id")
    typical["category"] = [category_of(*pair) for pair in zip(typical["foundation"], typical["polarity"], strict=True)]
    ranked = typical.groupby(["category", "action"], sort=False).size().rename("annotations").reset_index()
    ranked = ranked.sort_values("annotations", ascending=False, kind="stable")
    ranked = ranked.groupby("category", sort=False).head(count)
    return ranked.sort_values("category", key=lambda name: name.map(CATEGORIES.index), kind="stable", ignore_index=True)
