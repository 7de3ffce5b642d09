"""The paper's row counts beside a run's, cell by cell: the check that the published recipe was followed to the letter.

Only the official file can match them. Other annotations get the same table, which then says nothing about the recipe.
"""

import pandas as pd

from lib.run.files import PROJECT
from lib.vectors.moral_vectors import PER_STRATUM, PROTOTYPES, SPLITS

BUCKETS = PROJECT / "data" / "published_bucket_counts.csv"
"""Exploded rows by foundation, polarity and typicality in training and validation, from index files the authors released."""

TOTALS = {
    "annotations": 203_431,
    "annotations, train": 162_744,
    "annotations, validation": 20_343,
    "annotations, test": 20_344,
    "exploded rows": 251_334,
    "exploded rows, train": 201_023,
    "exploded rows, validation": 25_170,
    "exploded rows, test": 25_141,
    "subset rows (the paper's page)": 16_315,
    "subset rows (notes on a later study)": 16_135,
}
"""What the paper's page, the released recipe and later notes say of the official file."""


def totals(exploded: pd.DataFrame, subset: pd.DataFrame) -> pd.DataFrame:
    """Compare the sums of what :func:`lib.vectors.moral_vectors.explode` and ``draw_subset`` return.

    Returns:
        Columns ``quantity, published, obtained, difference``.
    """
    annotations = exploded.drop_duplicates("id")
    obtained = {"annotations": len(annotations), "exploded rows": len(exploded)}
    for split in SPLITS:
        obtained[f"annotations, {split}"] = int((annotations["split_published"] == split).sum())
        obtained[f"exploded rows, {split}"] = int((exploded["split_published"] == split).sum())
    frame = pd.DataFrame({"quantity": list(TOTALS), "published": list(TOTALS.values())})
    frame["obtained"] = [len(subset) if name.startswith("subset") else obtained[name] for name in TOTALS]
    return frame.assign(difference=frame["obtained"] - frame["published"])


def cells(exploded: pd.DataFrame) -> pd.DataFrame:
    """Compare exploded rows cell by cell.

    Returns:
        Columns ``foundation, polarity, typicality, split, published, obtained, difference`` for training and validation;
        a cell that only one side has counts 0 on the other.
    """
    cell = ["foundation", "polarity", "typicality", "split"]
    published = pd.read_csv(BUCKETS).melt(cell[:-1], var_name="split", value_name="published")
    rows = exploded[exploded["split_published"] != "test"].rename(columns={"split_published": "split"})
    frame = published.merge(rows.value_counts(cell).reset_index(name="obtained"), on=cell, how="outer")
    frame[["published", "obtained"]] = frame[["published", "obtained"]].fillna(0).astype(int)
    return frame.assign(difference=frame["obtained"] - frame["published"])


def expected_subset() -> int:
    """Return how many rows the published cells let one expect in the diagnosis subset.

    The cells cover training and validation, nine tenths of the rows; every stratum is taken to be a ninth larger with the
    test split, and cut at its quota.
    """
    buckets = pd.read_csv(BUCKETS)
    quota = buckets["typicality"].eq(1.0).map({True: PROTOTYPES, False: PER_STRATUM})
    whole = (buckets["train"] + buckets["validation"]) * 10 / 9
    return round(whole.clip(upper=quota).sum())


def agree(table: pd.DataFrame) -> str:
    """Say in one sentence whether a table of this module shows the published counts."""
    differing = int((table["difference"] != 0).sum())
    some = f"{differing} of {len(table)} counts differ from those published."
    return some if differing else f"All {len(table)} counts are as published."
