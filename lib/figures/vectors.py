"""Figures of stage 1: the moral vectors of the annotations."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.figures import style
from lib.foundations import FOUNDATION_COLOURS, FOUNDATIONS


def typicality_counts(frame: pd.DataFrame) -> Axes:
    """Rows by foundation, polarity and typicality: ``frame`` has ``foundation, polarity, typicality, rows``."""
    _, axes = plt.subplots(1, len(FOUNDATION_COLOURS), figsize=(11, 3.2), sharey=True)
    levels = sorted(frame["typicality"].unique())
    for ax, foundation in zip(axes, FOUNDATION_COLOURS, strict=True):
        part = frame[frame["foundation"] == foundation]
        sns.barplot(
            part, x="typicality", y="rows", hue="polarity", hue_order=list(style.POLARITY_COLOURS),
            palette=style.POLARITY_COLOURS, order=levels, ax=ax, legend=ax is axes[-1],
        )  # fmt: skip
        ax.set(title=foundation, xlabel="typicality (0 to 1)", ylabel="exploded rows")
        ax.tick_params(axis="x", rotation=60)
    style.legend(axes[-1], "polarity")
    return axes[0]


def foundation_overlap(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Which foundations are named together: ``frame`` has ``named, also_named, share`` (of the rows that name the first)."""
    matrix = frame.pivot(index="named", columns="also_named", values="share").loc[list(FOUNDATIONS), list(FOUNDATIONS)]
    ax = style.axes(ax, figsize=(6.5, 4.2))
    label = "share of annotations"
    sns.heatmap(matrix, vmin=0, vmax=1, cmap="Blues", annot=True, fmt=".2f", ax=ax, cbar_kws={"label": label})
    ax.set(xlabel="of these, also name", ylabel="annotations that name")
    plt.setp(ax.get_xticklabels(), rotation=30, ha="right")
    return ax


def judgment_against_agreement(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Annotations by judgment and expected agreement: ``frame`` has ``judgment, agreement, rows``."""
    matrix = frame.pivot(index="agreement", columns="judgment", values="rows").fillna(0).sort_index(ascending=False)
    ax = style.axes(ax, figsize=(6, 3.8))
    sns.heatmap(matrix, cmap="Blues", annot=True, fmt=",.0f", ax=ax, cbar_kws={"label": "annotations"})
    ax.set(
        xlabel="judgment of the action (-2 very bad, 2 very good)",
        ylabel="agreement (0 none, 4 all)",
    )
    return ax


def length_by_typicality(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean number of words of an action by typicality, one line a polarity.

    ``frame`` has ``polarity, typicality, value, ci_low, ci_high``.
    """
    ax = style.axes(ax, figsize=(7, 3.8))
    for polarity, part in frame.groupby("polarity", sort=False):
        colour = style.POLARITY_COLOURS[polarity]
        spread = np.abs(part[["ci_low", "ci_high"]].to_numpy().T - part["value"].to_numpy())
        ax.errorbar(part["typicality"], part["value"], yerr=spread, color=colour, marker="o", capsize=3, label=polarity)
    ax.set(xlabel="typicality (0 to 1)", ylabel="words per action, mean")
    style.legend(ax, "polarity")
    return ax
