"""Figures of stage 06: the arms on held-out rows, the terms of the objective, and the similarity of categories."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.paper import CATEGORIES
from lib.plotting import ARM_COLOURS

MEASURES = {
    "spearman": "Spearman with typicality,\nall rows",
    "gradient": "Spearman with typicality,\nwithin the category",
    "opposing_similarity": "correlation of\nopposing categories",
    "fvu": "fraction of variance\nunexplained (log scale)",
}


def alignment_arms(frame: pd.DataFrame) -> Figure:
    """Four measures on held-out rows, one point with its 95% interval per arm and layer.

    ``frame`` is the table ``alignment``; layers of an arm stand below each other, the first one on top.
    """
    whole = frame[frame["category"] == "all"]
    arms, layers = (list(whole[column].unique()) for column in ("arm", "layer"))
    height = 1.3 + len(arms) * (0.25 + 0.12 * len(layers))
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(9, height), sharey=True)
    offsets = np.linspace(-0.3, 0.3, len(layers)) if len(layers) > 1 else [0]
    for ax, (metric, label) in zip(axes, MEASURES.items(), strict=True):
        for row in whole[whole["metric"] == metric].itertuples():
            y, colour = arms.index(row.arm) + offsets[layers.index(row.layer)], ARM_COLOURS[row.arm]
            ax.plot([row.ci_low, row.ci_high], [y, y], color=colour, linewidth=2)
            ax.plot(row.value, y, "o", color=colour)
            if 1 < len(layers) <= 4:
                at_end = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
                ax.annotate(str(row.layer), (row.ci_high, y), fontsize="xx-small", color="0.3", **at_end)
        if metric != "fvu":
            ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set_xlabel(label, fontsize="small")
        ax.tick_params(axis="x", labelsize="small")
        ax.margins(x=0.12)
    axes[-1].set_xscale("log")
    axes[0].set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
    return figure


def losses(frame: pd.DataFrame) -> Figure:
    """Terms of the objective by epoch, one panel per term, one colour per arm.

    ``frame`` has ``arm, epoch, split, term, value``; solid lines are training rows, dashed ones validation rows.
    """
    terms, arms = (list(frame[column].unique()) for column in ("term", "arm"))
    figure, grid = plt.subplots(-(-len(terms) // 3), 3, figsize=(9, 2.4 * -(-len(terms) // 3)), sharex=True)
    dashes = {"train": "-", "validation": "--"}
    for ax, term in zip(grid.flat, terms, strict=False):
        for (arm, split), part in frame[frame["term"] == term].groupby(["arm", "split"], sort=False):
            ax.plot(part["epoch"], part["value"], color=ARM_COLOURS[arm], linestyle=dashes[split])
        ax.set_title(term, fontsize="medium")
        ax.tick_params(labelsize="small")
    for ax in grid.flat[max(0, len(terms) - 3) : len(terms)]:
        ax.set_xlabel("epoch", fontsize="small")
        ax.tick_params(labelbottom=True)
    for ax in grid.flat[len(terms) :]:
        ax.set_visible(False)
    figure.supylabel("mean over rows", fontsize="medium")
    handles = [Line2D([], [], color=ARM_COLOURS[arm], label=arm) for arm in arms]
    handles += [Line2D([], [], color="0.3", linestyle=style, label=split) for split, style in dashes.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small", frameon=False)
    return figure


def category_similarity(frame: pd.DataFrame) -> Figure:
    """Ten-by-ten correlations of the categories over rows, for the annotators and for each arm.

    ``frame`` has ``arm, category, other, value``.
    """
    arms, order = list(frame["arm"].unique()), list(CATEGORIES)
    columns = 3 if len(arms) <= 6 else 4
    lines = -(-len(arms) // columns)
    # Square panels leave the usual layout no room for their labels; the compressed one makes it.
    size = {"figsize": (9, 2.6 * lines + 0.6), "layout": "compressed"}
    figure, grid = plt.subplots(lines, columns, sharex=True, sharey=True, **size)
    for ax, arm in zip(grid.flat, arms, strict=False):
        matrix = frame[frame["arm"] == arm].pivot(index="category", columns="other", values="value").loc[order, order]
        sns.heatmap(matrix, vmin=-1, vmax=1, cmap="RdBu_r", square=True, ax=ax, cbar=False)
        ax.set(xlabel="", ylabel="")
        ax.set_title(arm, fontsize="medium")
        ax.tick_params(labelsize="x-small")
    for ax in grid.flat[len(arms) :]:
        ax.set_visible(False)
    figure.colorbar(grid.flat[0].collections[0], ax=grid, label="correlation over rows", shrink=0.6)
    return figure
