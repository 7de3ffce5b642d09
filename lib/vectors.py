"""Annotations become ten-dimensional moral vectors, exploded rows, splits and the diagnosis subset.

The published recipe (released code): v = judgment / 2, w = agreement / 4, virtue = max(0, v) w, vice = max(0, -v) w; every
foundation that an annotation names gets the same pair. Beside the published split by annotation stands a careful one,
grouped by normalised action text, so that no action is on both sides.
"""

import random
import re

import numpy as np
import pandas as pd

from lib.foundations import CATEGORIES, FOUNDATIONS, category_of
from lib.statistics import cluster_weights, interval

PUBLISHED_SEED = 42
SPLITS = ("train", "validation", "test")
TYPICALITIES = (0.125, 0.25, 0.375, 0.5, 0.75)
PER_STRATUM = 300
PROTOTYPES = 150
"""Rows of the diagnosis subset: at most 300 a stratum, at most 150 at typicality 1."""


def annotations(cleaned: pd.DataFrame, agreement_source: str) -> pd.DataFrame:
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
    for foundation, (virtue, vice) in zip(
        FOUNDATIONS, zip(CATEGORIES[::2], CATEGORIES[1::2], strict=True), strict=True
    ):
        names_it = cleaned["rot-moral-foundations"].str.contains(foundation, regex=False).to_numpy(bool)
        frame[virtue] = np.where(names_it, frame["virtue"], 0.0)
        frame[vice] = np.where(names_it, frame["vice"], 0.0)
    frame["agreement_source"] = agreement_source
    return frame


def exploded(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return one row per annotation and foundation that it names, with polarity, typicality and both splits.

    Args:
        table: as :func:`annotations` returns it.
        seed: of the careful split; the published one always uses 42.
    """
    rows = table[["id", "action", "foundations", "virtue", "vice"]].copy()
    rows["split_published"] = published_split(len(rows))
    rows["split_grouped"] = grouped_split(rows["action"], seed)
    rows = rows.explode("foundations", ignore_index=True).rename(columns={"foundations": "foundation"})
    rows["polarity"] = np.select([rows["virtue"] > 0, rows["vice"] > 0], ["virtue", "vice"], "neutral")
    rows["typicality"] = np.maximum(rows["virtue"], rows["vice"])
    return rows[["id", "foundation", "polarity", "typicality", "split_published", "split_grouped"]]


def distinct(table: pd.DataFrame) -> pd.DataFrame:
    """Return one vector for each distinct action, which the careful recipe uses where repeated actions would count twice.

    Args:
        table: as :func:`annotations` returns it.

    Returns:
        Columns ``action`` (its first spelling), ``multiplicity`` (annotations of it), ``judged_neutral`` and
        ``nobody_agrees`` (how many of these are neutral, by which reason), the ten categories (means, 0..1) and
        ``spread_<category>`` (standard deviations between annotations; missing where there is one).
    """
    names = list(CATEGORIES)
    grouped = table.assign(
        action_key=table["action"].map(normalise),
        judged_neutral=table["judgment"] == 0,
        nobody_agrees=table["agreement"] == 0,
    ).groupby("action_key", sort=False)
    counts_ = grouped.agg(
        action=("action", "first"), multiplicity=("action", "size"), judged_neutral=("judged_neutral", "sum"),
        nobody_agrees=("nobody_agrees", "sum"),
    )  # fmt: skip
    spread = grouped[names].std(ddof=1).add_prefix("spread_")
    return pd.concat([counts_, grouped[names].mean(), spread], axis=1).reset_index(drop=True)


def published_split(annotations: int) -> np.ndarray:
    """Split annotations 80/10/10 as published, shape [annotations].

    numpy's legacy generator, seeded with 42, shuffles the positions in file order once; cuts are rounded down.
    """
    order = np.arange(annotations)
    np.random.RandomState(PUBLISHED_SEED).shuffle(order)
    first, second = int(annotations * 0.8), int(annotations * 0.8) + int(annotations * 0.1)
    split = np.empty(annotations, dtype=object)
    split[order[:first]], split[order[first:second]], split[order[second:]] = SPLITS
    return split


def grouped_split(actions: pd.Series, seed: int) -> np.ndarray:
    """Split rows 80/10/10 by normalised action text, shape [rows]: all rows of an action are on one side."""
    normalised = actions.map(normalise)
    distinct = np.array(sorted(normalised.unique()), dtype=object)
    order = np.random.default_rng(seed).permutation(len(distinct))
    first, second = int(len(distinct) * 0.8), int(len(distinct) * 0.9)
    side = dict(zip(distinct[order], np.repeat(SPLITS, [first, second - first, len(distinct) - second]), strict=True))
    return normalised.map(side).to_numpy(object)


def normalise(action: str) -> str:
    """Reduce an action to what makes it the same action: lower case, words only, single spaces."""
    return " ".join(re.findall(r"\w+", action.lower()))


def subset(rows: pd.DataFrame) -> pd.DataFrame:
    """Draw the diagnosis subset as published.

    Python's generator is seeded with 42 once; then, foundation by foundation, ``random.sample`` draws virtue .125 to .75,
    virtue 1, vice .125 to .75, vice 1 and neutral. ``random.sample`` draws positions, so which rows are drawn from a
    stratum depends on the order of the rows within it and on the sizes of this and all earlier strata, and on nothing
    else: neither on how strata lie among each other in the file, nor on texts or ids.

    Args:
        rows: as :func:`exploded` returns it.

    Returns:
        Columns ``id, foundation, polarity, typicality, is_prototype``. Strata smaller than asked for are taken whole.
    """
    generator = random.Random(PUBLISHED_SEED)
    strata = rows.groupby(["foundation", "polarity", "typicality"], sort=False).indices
    chosen: list[int] = []
    for foundation in FOUNDATIONS:
        wanted = [(pole, level, PER_STRATUM) for pole in ("virtue", "vice") for level in TYPICALITIES]
        wanted.insert(len(TYPICALITIES), ("virtue", 1.0, PROTOTYPES))
        wanted += [("vice", 1.0, PROTOTYPES), ("neutral", 0.0, PER_STRATUM)]
        for polarity, typicality, size in wanted:
            candidates = strata.get((foundation, polarity, typicality), np.array([], dtype=int)).tolist()
            chosen += generator.sample(candidates, min(size, len(candidates)))
    drawn = rows.iloc[chosen][["id", "foundation", "polarity", "typicality"]].reset_index(drop=True)
    drawn["is_prototype"] = drawn["typicality"] == 1.0
    return drawn


def counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Count exploded rows by foundation, polarity, typicality and published split, one column a split."""
    table = rows.groupby(["foundation", "polarity", "typicality", "split_published"]).size().unstack(fill_value=0)
    return table.reindex(columns=list(SPLITS), fill_value=0).reset_index().rename_axis(columns=None)


def overlap(table: pd.DataFrame) -> pd.DataFrame:
    """Return which foundations annotations name together.

    Args:
        table: as :func:`annotations` returns it.

    Returns:
        Columns ``named, also_named, share``: of the annotations that name the first, how many also name the second.
    """
    names = {name: np.array([name in named for named in table["foundations"]], dtype=bool) for name in FOUNDATIONS}
    records = [
        (first, second, float((names[first] & names[second]).sum() / max(names[first].sum(), 1)))
        for first in FOUNDATIONS
        for second in FOUNDATIONS
    ]
    return pd.DataFrame(records, columns=["named", "also_named", "share"])


def lengths(rows: pd.DataFrame, table: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    """Return the mean length of actions by polarity and typicality: a mean over tokens confounds length with morality.

    Args:
        rows: as :func:`exploded` returns it.
        table: as :func:`annotations` returns it.
        draws: bootstrap resamples of actions.
        seed: of the resamples.

    Returns:
        Columns ``polarity, typicality, value`` (words), ``ci_low, ci_high, n``.
    """
    merged = rows.merge(table[["id", "action"]], on="id", validate="many_to_one")
    merged["words"] = merged["action"].str.split().str.len()
    records = []
    for (polarity, typicality), part in merged.groupby(["polarity", "typicality"]):
        # Sums by action first: resampling a few thousand actions costs no more than that.
        sums = part.groupby("action")["words"].agg(["sum", "size"]).to_numpy(float)
        weights = cluster_weights(np.arange(len(sums)), draws, seed)
        totals = weights @ sums
        means = totals[:, 0] / np.maximum(totals[:, 1], 1)
        records.append((polarity, typicality, means[0], *interval(means[1:]), len(part)))
    return pd.DataFrame(records, columns=["polarity", "typicality", "value", "ci_low", "ci_high", "n"])


def most_typical(rows: pd.DataFrame, table: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """Return the actions that most annotations call typical of each pole, columns ``category, action, annotations``.

    Ties are broken by the order of the file.
    """
    typical = rows[(rows["typicality"] == 1.0) & (rows["polarity"] != "neutral")]
    typical = typical.merge(table[["id", "action"]], on="id", validate="many_to_one")
    pairs = zip(typical["foundation"], typical["polarity"], strict=True)
    typical["category"] = [category_of(foundation, polarity) for foundation, polarity in pairs]
    found = typical.groupby(["category", "action"], sort=False).size().rename("annotations").reset_index()
    found = found.sort_values("annotations", ascending=False, kind="stable").groupby("category", sort=False).head(count)
    order = found["category"].map(CATEGORIES.index)
    return found.assign(order=order).sort_values("order", kind="stable").drop(columns="order").reset_index(drop=True)
