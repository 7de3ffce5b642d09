"""Figures of stage 01: the moral vectors of the annotations."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.paper import COLOURS, FOUNDATIONS

POLARITIES = {"vice": "#CC3311", "neutral": "grey", "virtue": "#0077BB"}
"""Polarity -> its colour over all foundations, from left to right on an axis of typicality."""


def typicality_counts(frame: pd.DataFrame) -> Figure:
    """Exploded rows of each foundation by typicality: vices to the left, virtues to the right, neutral rows in the middle.

    ``frame`` has ``foundation, polarity, typicality, rows``.
    """
    figure, axes = plt.subplots(1, len(FOUNDATIONS), figsize=(9, 2.8), sharey=True)
    for ax, foundation in zip(axes, FOUNDATIONS, strict=True):
        virtue, vice = foundation.split("-")
        names = {"vice": (vice, COLOURS[vice]), "neutral": ("", "grey"), "virtue": (virtue, COLOURS[virtue])}
        for polarity, part in frame[frame["foundation"] == foundation].groupby("polarity"):
            side = -1 if polarity == "vice" else 1
            ax.bar(side * part["typicality"], part["rows"], width=0.1, color=names[polarity][1], linewidth=0)
        _typicality_axis(ax, names)
    axes[0].set_ylabel("exploded rows")
    axes[2].set_xlabel("typicality (0: neutral)")
    return figure


def foundation_overlap(frame: pd.DataFrame) -> Figure:
    """Which foundations are named together: ``frame`` has ``named, also_named, share`` (of the rows that name the first)."""
    others = frame[frame["named"] != frame["also_named"]]
    matrix = others.pivot(index="named", columns="also_named", values="share").loc[list(FOUNDATIONS), list(FOUNDATIONS)]
    ax = _heatmap(matrix, ".0%")
    ax.set(xlabel="share of these that also name", ylabel="annotations that name")
    ax.set_xticks(ax.get_xticks(), [name.replace("-", "-\n") for name in FOUNDATIONS], rotation=0)
    return ax.figure


def judgment_against_agreement(frame: pd.DataFrame) -> Figure:
    """Annotations by judgment and expected agreement: ``frame`` has ``judgment, agreement, rows``."""
    matrix = frame.pivot(index="agreement", columns="judgment", values="rows").fillna(0).sort_index(ascending=False)
    ax = _heatmap(matrix.rename(index=int, columns=int), ",.0f")
    ax.set(xlabel="judgment of the action (-2 very bad, 2 very good)", ylabel="expected agreement\n(0 nobody, 4 all)")
    return ax.figure


def length_by_typicality(frame: pd.DataFrame) -> Figure:
    """Mean number of words of an action by typicality, vices to the left and virtues to the right, with 95% intervals.

    ``frame`` has ``polarity, typicality, value, ci_low, ci_high``.
    """
    figure, ax = plt.subplots(figsize=(7, 3.4))
    for polarity, part in frame.sort_values("typicality").groupby("polarity"):
        side = -1 if polarity == "vice" else 1
        spread = [part["value"] - part["ci_low"], part["ci_high"] - part["value"]]
        place, colour = side * part["typicality"], POLARITIES[polarity]
        ax.errorbar(place, part["value"], yerr=spread, color=colour, marker="o", capsize=3)
    _typicality_axis(ax, {polarity: (polarity, colour) for polarity, colour in POLARITIES.items()})
    ax.set(xlabel="typicality (0: neutral)", ylabel="words per action, mean")
    return figure


def _typicality_axis(ax: Axes, names: Mapping[str, tuple[str, str]]) -> None:
    for side, polarity in zip(("left", "center", "right"), POLARITIES, strict=True):
        name, colour = names[polarity]
        ax.set_title(f" {name} ", loc=side, color=colour, size="small")
    ax.set(xlim=(-1.1, 1.1), xticks=[-1, -0.5, 0, 0.5, 1], xticklabels=["1", ".5", "0", ".5", "1"])
    ax.grid(visible=False, axis="x")


def _heatmap(matrix: pd.DataFrame, number: str) -> Axes:
    _, ax = plt.subplots(figsize=(7, 3.6))
    sns.heatmap(matrix, vmin=0, cmap="Blues", annot=True, fmt=number, cbar=False, linewidths=1, ax=ax)
    ax.set_facecolor("0.95")
    ax.grid(visible=False)
    ax.tick_params(axis="y", rotation=0)
    return ax
