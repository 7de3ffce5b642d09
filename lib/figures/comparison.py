"""Figures of stage 4: the models side by side."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.figures import style


def models_by_kind(frame: pd.DataFrame) -> Axes:
    """Careful measure of every model with its interval, one panel a kind; a grey tick marks the null's upper end.

    ``frame`` as ``comparison.headlines`` returns it.
    """
    careful = frame[frame["measure"] == "careful"]
    kinds = list(careful["kind"].unique())
    _, axes = plt.subplots(
        1, len(kinds), figsize=(3 * len(kinds) + 1, 0.4 * careful["model"].nunique() + 1.6), sharey=True
    )
    for ax, kind in zip(axes, kinds, strict=True):
        part = careful[careful["kind"] == kind].reset_index(drop=True)
        above = part["verdict"].str.startswith("not indifferent")
        for place, row in part.iterrows():
            colour = "#228833" if above[place] else "#AA3377"
            ax.plot([row["ci_low"], row["ci_high"]], [place, place], color=colour, linewidth=2)
            ax.plot(row["value"], place, "o" if above[place] else "s", color=colour)
            ax.plot(row["null_high"], place, "|", color="0.4", markersize=14, markeredgewidth=2)
        ax.set(title=kind, yticks=range(len(part)), yticklabels=part["model"], xlabel=CAREFUL_UNITS[kind])
    axes[0].invert_yaxis()
    return axes[0]


CAREFUL_UNITS = {
    "categorical": "area under the curve (0.5 is chance)",
    "gradient": "Spearman correlation",
    "structural": "adjusted Rand index",
    "dimensional": "R squared",
}


def cosine_heatmap(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean opposing cosine over layers, models by foundations; ``frame`` is the categorical table of all models."""
    chosen = frame[(frame["metric"] == "opposing_cosine") & (frame["arm"] == "published")]
    matrix = chosen.pivot_table(index="model", columns="foundation", values="value", sort=False)
    matrix = matrix.rename(columns={"all": "mean"})
    ax = style.axes(ax, figsize=(7, 0.45 * len(matrix) + 1.8))
    sns.heatmap(matrix, vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".2f", ax=ax, cbar_kws={"label": "cosine"})
    ax.set(xlabel="", ylabel="")
    plt.setp(ax.get_xticklabels(), rotation=30, ha="right")
    return ax


def depth_profiles(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Opposing cosine, mean over foundations, on relative depth, one line a model; ``frame`` has ``depth``."""
    ax = style.axes(ax, figsize=(8, 4))
    chosen = frame[(frame["metric"] == "opposing_cosine") & (frame["arm"] == "published")]
    means = chosen[chosen["foundation"] == "all"]
    style.by_model(ax, means)
    ax.set(ylabel="cosine of opposing prototypes", ylim=(-1.05, 1.05))
    return ax


def careful_profiles(tables: Mapping[str, pd.DataFrame]) -> Axes:
    """The careful measures on relative depth, one panel a kind, one line a model; grey is words without a model.

    ``tables`` maps a kind to the table of all models with ``depth``, reduced to the careful arm and ``words_only``.
    """
    _, axes = plt.subplots(1, len(tables), figsize=(3.6 * len(tables) + 1, 3.8))
    for ax, (kind, frame) in zip(axes, tables.items(), strict=True):
        words = frame["arm"].str.endswith("words_only")
        null = frame[words]
        ax.axhspan(null["ci_low"].min(), null["ci_high"].max(), color="0.5", alpha=0.25, label="words, no model")
        style.by_model(ax, frame[~words])
        ax.set(title=kind, ylabel=CAREFUL_UNITS[kind], xlabel="relative depth")
        if ax is not axes[-1]:
            ax.get_legend().remove()
    return axes[0]
