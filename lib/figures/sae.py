"""Figures of stages 5 and 6: training, the latents found and what alignment did to them."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.figures import style
from lib.foundations import CATEGORIES, COLOURS

CRITERIA = ("strict", "report", "careful", "tuned")


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


def moral_latents(frame: pd.DataFrame) -> Axes:
    """Number of latents by layer and category, one panel a criterion; ``frame`` has ``layer, category, criterion, latents``."""
    height = 0.7 + 0.3 * frame["layer"].nunique()
    _, axes = plt.subplots(len(CRITERIA), 1, figsize=(8, 1 + len(CRITERIA) * height), sharex=True)
    for ax, criterion in zip(axes, CRITERIA, strict=True):
        counts = frame[frame["criterion"] == criterion].pivot(index="layer", columns="category", values="latents")
        sns.heatmap(
            counts[list(CATEGORIES)], annot=True, fmt="d", cmap="Blues", vmin=0, cbar=False, ax=ax, linewidths=1,
            annot_kws={"fontsize": "small"},
        )  # fmt: skip
        ax.set(xlabel="", ylabel="layer")
        ax.set_title(criterion, loc="left", fontsize="medium")
        ax.tick_params(axis="y", rotation=0)
        ax.tick_params(axis="x", rotation=40)
    return axes[0]


def losses(frame: pd.DataFrame) -> Axes:
    """Terms of the objective by epoch, one panel a term, one line an arm; ``frame`` has ``arm, epoch, split, term, value``.

    Solid lines are training rows, dashed ones validation rows.
    """
    terms = list(frame["term"].unique())
    _, axes = plt.subplots(1, len(terms), figsize=(2.6 * len(terms), 3.4), squeeze=False)
    for ax, term in zip(axes[0], terms, strict=True):
        for (arm, split), part in frame[frame["term"] == term].groupby(["arm", "split"], sort=False):
            dashes, label = ("-", arm) if split == "train" else ("--", None)
            ax.plot(part["epoch"], part["value"], color=style.ARM_COLOURS[arm], linestyle=dashes, label=label)
        ax.set(title=term, xlabel="epoch")
    axes[0][0].set_ylabel("mean over rows")
    style.legend(axes[0][-1], "arm")
    return axes[0][0]


def alignment_arms(frame: pd.DataFrame) -> Axes:
    """Four panels, one point with interval an arm; ``frame`` as ``sae.evaluate`` writes it, with ``layer``."""
    panels = {
        "spearman": "Spearman with typicality, all rows",
        "gradient": "Spearman within the category",
        "opposing_similarity": "correlation of opposing categories",
        "fvu": "fraction of variance unexplained",
    }
    _, axes = plt.subplots(1, len(panels), figsize=(12.5, 3.8))
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
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
        ax.axhline(0, color="0.4", linewidth=0.8)
    return axes[0]


def category_similarity(frame: pd.DataFrame) -> Axes:
    """Ten-by-ten correlations, one panel an arm; ``frame`` has ``arm, category, other, value``."""
    arms = list(frame["arm"].unique())
    columns = min(3, len(arms))
    figure, grid = plt.subplots(-(-len(arms) // columns), columns, figsize=(11, 3.6 * -(-len(arms) // columns) + 0.6))
    axes = list(grid.flat)
    for ax in axes[len(arms) :]:
        ax.set_visible(False)
    for place, (ax, arm) in enumerate(zip(axes, arms, strict=False)):
        matrix = frame[frame["arm"] == arm].pivot(index="category", columns="other", values="value")
        matrix = matrix.reindex(index=list(COLOURS), columns=list(COLOURS))
        sns.heatmap(
            matrix, vmin=-1, vmax=1, cmap="RdBu_r", square=True, ax=ax, cbar=False,
            xticklabels=place >= len(arms) - columns, yticklabels=place % columns == 0,
        )  # fmt: skip
        ax.set(xlabel="", ylabel="")
        ax.set_title(arm, fontsize="medium")
        ax.tick_params(labelsize=8)
    figure.colorbar(axes[0].collections[0], ax=axes, label="correlation over rows", shrink=0.6)
    return axes[0]
