"""Claims about the annotations and what stage 1 makes of them."""

from collections.abc import Iterator

import pandas as pd

from lib.evidence.rows import Row, count_row
from lib.foundations import FOUNDATIONS

CELLS = [(foundation, polarity) for foundation in FOUNDATIONS for polarity in ("virtue", "vice", "neutral")]
EXAMPLES = {
    "example-trust": ("doing something that causes other people to lose trust in you", "betrayal"),
    "example-partner-harm": ("cheating on your significant other", "harm"),
    "example-partner-betrayal": ("cheating on your significant other", "betrayal"),
}
"""Claim -> the action and the category that the project page shows."""

CLAIMS_OF_THE_DOWNLOAD = ("file-rows", "file-columns")
CLAIMS_OF_THE_FILE = (
    "annotations", "exploded", "annotations-train", "annotations-validation", "annotations-test", "exploded-train",
    "exploded-validation", "exploded-test", *(f"exploded-train-{cell[0]}-{cell[1]}" for cell in CELLS), *EXAMPLES,
    "subset", "subset-page", "subset-expected", "shared-actions",
)  # fmt: skip


def of_vectors(
    annotations: pd.DataFrame, exploded: pd.DataFrame, subset: pd.DataFrame, official: bool
) -> Iterator[Row]:
    """Counts of stage 1, and how many held-out rows share their action with a training row.

    They are claims about one file; other annotations cannot speak to them, which ``official`` says.
    """
    yield count_row("typicality-levels", exploded["typicality"].nunique())
    for claim in CLAIMS_OF_THE_DOWNLOAD:
        yield {"id": claim, "reason": "the file's checksum stands for it; stage 1 keeps cleaned rows only"}
    if not official:
        for claim in CLAIMS_OF_THE_FILE:
            yield {"id": claim, "reason": "the annotations are not the official Social-Chemistry-101 file"}
        return
    yield count_row("annotations", len(annotations))
    yield count_row("exploded", len(exploded))
    for split in ("train", "validation", "test"):
        of_split = exploded[exploded["split_published"] == split]
        yield count_row(f"annotations-{split}", of_split["id"].nunique())
        yield count_row(f"exploded-{split}", len(of_split))
    training = exploded[exploded["split_published"] == "train"]
    for foundation, polarity in CELLS:
        cell = (training["foundation"] == foundation) & (training["polarity"] == polarity)
        yield count_row(f"exploded-train-{foundation}-{polarity}", int(cell.sum()))
    for claim in ("subset", "subset-page", "subset-expected"):
        yield count_row(claim, len(subset))
    for claim, (action, category) in EXAMPLES.items():
        found = annotations.loc[annotations["action"] == action, category]
        # One action may have several annotations; the page shows one of them.
        named = found[found > 0]
        yield (
            {"id": claim, "ours": named.max(), "n": len(found)}
            if len(named)
            else {"id": claim, "reason": f"no annotation of this action names {category}"}
        )
    rows = exploded.merge(annotations[["id", "action"]], on="id")
    training = rows["split_published"] == "train"
    shared = rows.loc[~training, "action"].isin(set(rows.loc[training, "action"]))
    grouped = rows["split_grouped"] == "train"
    control = rows.loc[~grouped, "action"].isin(set(rows.loc[grouped, "action"])).mean()
    yield {
        "id": "shared-actions", "ours": shared.mean(), "n": len(shared), "control": "split grouped by action",
        "control_value": control,
    }  # fmt: skip
