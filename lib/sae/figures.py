"""Figures of stage 05: how training went, and how many latents meet each criterion."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.paper import CATEGORIES
from lib.plotting import legend


def training(frame: pd.DataFrame) -> Figure:
    """Unexplained variance and active latents of validation rows by epoch, one line per layer; dashed is the target.

    ``frame`` has ``layer, epoch, fvu, l0, target_l0``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    first, last = frame["layer"].min(), frame["layer"].max()
    # The end of viridis is too light for lines.
    scale = plt.cm.ScalarMappable(plt.Normalize(first, max(last, first + 1) + 0.2 * (last - first)), "viridis")
    for layer, part in frame.groupby("layer"):
        style = {"color": scale.to_rgba(layer), "marker": "o" if len(part) == 1 else None, "label": f"layer {layer}"}
        left.plot(part["epoch"], part["fvu"], **style)
        right.plot(part["epoch"], part["l0"], **style)
    right.axhline(frame["target_l0"].iloc[0], color="0.4", linestyle="--", linewidth=1)
    left.set(xlabel="epoch", ylabel="fraction of variance unexplained\n(log scale)", yscale="log")
    right.set(xlabel="epoch", ylabel="active latents per row (L0)", ylim=(0, None))
    if frame["layer"].nunique() <= 6:
        legend(right)
    else:
        figure.colorbar(scale, ax=[left, right], label="layer", boundaries=range(first, last + 2))
    return figure


def moral_latents(frame: pd.DataFrame) -> Figure:
    """Number of latents by layer and category, one panel per criterion; darker is more.

    ``frame`` has ``layer, category, criterion, latents``.
    """
    criteria = list(frame["criterion"].unique())
    height = 0.6 + len(criteria) * (0.55 + 0.3 * frame["layer"].nunique())
    figure, axes = plt.subplots(len(criteria), 1, figsize=(9, height), sharex=True)
    for ax, criterion in zip(axes, criteria, strict=True):
        counts = frame[frame["criterion"] == criterion].pivot(index="layer", columns="category", values="latents")
        numbers = {"annot": True, "fmt": "d", "annot_kws": {"fontsize": "small"}}
        sns.heatmap(counts[list(CATEGORIES)], **numbers, cmap="Blues", vmin=0, cbar=False, ax=ax, linewidths=1)
        ax.set(xlabel="", ylabel="layer")
        ax.set_title(criterion, loc="left", fontsize="medium")
        ax.tick_params(axis="y", rotation=0)
    return figure
