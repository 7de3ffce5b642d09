"""Figures of stage 09: the ledger."""

import pandas as pd
from matplotlib.figure import Figure

from lib.claims.ledger import DIFFERS, EXPLAINED, INCONCLUSIVE, NOT_COMPARABLE, NOT_RUN, REPRODUCED

LOOKS = {
    REPRODUCED: ("#228833", "white"),
    EXPLAINED: ("#CCBB44", "black"),
    DIFFERS: ("#AA3377", "white"),
    INCONCLUSIVE: ("#66CCEE", "black"),
    NOT_COMPARABLE: ("#BBBBBB", "black"),
    NOT_RUN: ("#EEEEEE", "black"),
}
"""Outcome -> the colour of its bar and of the number in it."""


def claims_by_stage(frame: pd.DataFrame) -> Figure:
    """Number of scientific claims by paper, stage and decision; ``frame`` is the ledger."""
    place = "arXiv " + frame["paper"].astype(str) + ", " + frame["stage"]
    counts = frame.groupby([place, "decision"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(LOOKS), fill_value=0)
    colours = {name: bar for name, (bar, _) in LOOKS.items()}
    ax = counts.plot.barh(stacked=True, color=colours, width=0.7, legend=False, figsize=(8.5, 4.2))
    for bars, (_, number) in zip(ax.containers, LOOKS.values(), strict=True):
        texts = [f"{count:.0f}" if count else "" for count in bars.datavalues]
        ax.bar_label(bars, texts, label_type="center", color=number, size="small")
    ax.set(xlabel="number of claims", ylabel="")
    ax.grid(visible=False, axis="y")
    ax.invert_yaxis()
    ax.figure.legend(loc="outside upper left", ncols=len(LOOKS), frameon=False, fontsize="x-small")
    return ax.figure
