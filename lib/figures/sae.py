"""Figures of stages 5 and 6: training, the latents found and what alignment did to them."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.figures import style
from lib.foundations import COLOURS


def training(frame: pd.DataFrame) -> Axes:
    """Unexplained variance and L0 by epoch, one line a layer; ``frame`` has ``layer, epoch, fvu, l0``."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    for ax, column, label in (
        (left, "fvu", "fraction of variance unexplained"),
        (right, "l0", "active latents a row (L0)"),
    ):
        sns.lineplot(frame, x="epoch", y=column, hue="layer", palette="viridis", ax=ax, legend=ax is right)
        ax.set(xlabel="epoch", ylabel=label)
        ax.set_ylim(bottom=0)
    return left


def moral_latents(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Number of latents by category and criterion; ``frame`` has ``category, criterion, latents``."""
    ax = style.axes(ax, figsize=(8, 4))
    totals = frame.groupby(["category", "criterion"], sort=False)["latents"].sum().reset_index()
    sns.barplot(totals, x="category", y="latents", hue="criterion", palette="colorblind", ax=ax)
    ax.set(xlabel="", ylabel="number of latents")
    ax.tick_params(axis="x", rotation=40)
    style.legend(ax, "criterion")
    return ax


def alignment_arms(frame: pd.DataFrame) -> Axes:
    """Three panels, one point with interval an arm; ``frame`` as ``sae.evaluate`` writes it, with ``layer``."""
    panels = {
        "spearman": "Spearman with typicality",
        "opposing_similarity": "correlation of opposing categories",
        "fvu": "fraction of variance unexplained",
    }
    _, axes = plt.subplots(1, 3, figsize=(10, 3.6))
    chosen = frame[frame["category"] == "all"]
    for ax, (metric, label) in zip(axes, panels.items(), strict=True):
        part = chosen[chosen["metric"] == metric]
        arms = list(part["arm"].unique())
        for layer, of_layer in part.groupby("layer"):
            for place, (_, row) in enumerate(of_layer.iterrows()):
                ax.plot(
                    [place, place], [row["ci_low"], row["ci_high"]], color=style.ARM_COLOURS[row["arm"]], linewidth=2
                )
                ax.plot(place, row["value"], "o", color=style.ARM_COLOURS[row["arm"]])
                if part["layer"].nunique() > 1:
                    ax.annotate(
                        str(layer), (place, row["value"]), xytext=(5, 0), textcoords="offset points", fontsize=7
                    )
        ax.set(ylabel=label, xticks=range(len(arms)), xticklabels=arms, xlim=(-0.5, len(arms) - 0.5))
        ax.tick_params(axis="x", rotation=30)
        ax.axhline(0, color="0.4", linewidth=0.8)
    return axes[0]


def category_similarity(frame: pd.DataFrame) -> Axes:
    """Ten-by-ten correlations, one panel an arm; ``frame`` has ``arm, category, other, value``."""
    arms = list(frame["arm"].unique())
    _, axes = plt.subplots(1, len(arms), figsize=(3.1 * len(arms) + 1, 3.8))
    for ax, arm in zip(axes, arms, strict=True):
        matrix = frame[frame["arm"] == arm].pivot(index="category", columns="other", values="value")
        matrix = matrix.reindex(index=list(COLOURS), columns=list(COLOURS))
        sns.heatmap(
            matrix, vmin=-1, vmax=1, cmap="RdBu_r", square=True, ax=ax, cbar=arm == arms[-1],
            xticklabels=True, yticklabels=arm == arms[0], cbar_kws={"label": "correlation over rows", "shrink": 0.7},
        )  # fmt: skip
        ax.set(title=arm, xlabel="", ylabel="")
        ax.tick_params(labelsize=7)
    return axes[0]
