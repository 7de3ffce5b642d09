"""Figures of stage 03: the four analyses of one model by layer, each with its nulls."""

from collections.abc import Collection

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import plotting
from lib.diagnosis.controls import SAME_IN_EVERY_LAYER
from lib.diagnosis.decisions import GAIN_UNITS, UNITS
from lib.diagnosis.measurement import BESIDE, WORDLIKE
from lib.paper import COLOURS, FOUNDATION_COLOURS, FOUNDATIONS

REPRESENTATIONS = {
    "published": "as published",
    "mean": "mean over tokens",
    "mean_without_first": "without first token",
    "action": "action's tokens",
    "last": "last token",
    "length_removed": "length regressed out",
}
COLOURS_OF_LINES = sns.color_palette("colorblind")
REPRESENTATION_COLOURS = dict(zip(REPRESENTATIONS.values(), COLOURS_OF_LINES, strict=False))
WITHOUT_LENGTH = {name: REPRESENTATIONS[name] for name in ("length_removed", "mean_without_first", "last")}
NOT_OPPOSED = {"length_only": "from length alone", "cross_foundation": "categories not opposed"}
CLUSTERINGS = {
    "published": "clusters, points that are not noise",
    "all_points": "clusters, all points",
    "discriminant": "linear discriminant that learns the labels",
}
PROBES = {
    "published probe": ("published", "r2"),
    "published probe, adjusted": ("published", "adjusted_r2"),
    "ridge, grouped by action": ("ridge", "r2"),
    "ridge, shuffled within foundations": ("shuffled_within_foundations", "r2"),
    "ridge, shuffled": ("shuffled", "r2"),
}


def opposing_cosines(frame: pd.DataFrame) -> Figure:
    """Cosine of opposing prototypes by layer, one line per foundation; ``frame`` is the table of the categorical analysis."""
    figure, ax = plt.subplots(figsize=(9, 4.2))
    chosen = frame[(frame["metric"] == "opposing_cosine") & (frame["foundation"] != "all")]
    plotting.lines(ax, chosen[chosen["arm"] == "published"], "foundation", FOUNDATION_COLOURS)
    plotting.band(ax, chosen[chosen["arm"] == "shuffled"], "labels shuffled (95%)")
    halves = chosen[chosen["arm"] == "random_pair"].groupby("layer")["value"].mean()
    ax.plot(halves.index, halves, color="black", linestyle="--", label="poles drawn at random, mean")
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set(ylabel="cosine of opposing prototypes", ylim=(-1.05, 1.05))
    plotting.layer_axis(ax)
    plotting.legend(ax)
    return figure


def cosines_explained(frame: pd.DataFrame) -> Figure:
    """Cosine of opposing prototypes by layer, mean over foundations: as published beside what length alone gives, and read
    without the length, dotted where corrected for noise; ``frame`` is what :func:`lib.diagnosis.cosine.measure` returns.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    chosen = frame[(frame["metric"] == "opposing_cosine") & (frame["foundation"] == "all")].astype({"layer": float})
    plotting.lines(
        left, chosen[chosen["arm"] == "published"].assign(label="as published"), "label", {"as published": "black"}
    )
    for (arm, label), linestyle in zip(NOT_OPPOSED.items(), ("--", "-."), strict=True):
        part = chosen[chosen["arm"] == arm]
        left.plot(part["layer"], part["value"], color="#CC3311", linestyle=linestyle, label=label)
    for arm, label in WITHOUT_LENGTH.items():
        colour = REPRESENTATION_COLOURS[label]
        plotting.lines(right, chosen[chosen["arm"] == arm].assign(label=label), "label", {label: colour})
        corrected = chosen[chosen["arm"] == f"corrected, {arm}"]
        right.plot(corrected["layer"], corrected["value"], color=colour, linestyle=":")
    for ax in (left, right):
        ax.axhline(0, color="0.4", linewidth=0.8)
    left.set(ylabel="cosine of opposing prototypes", ylim=(-1.05, 1.05))
    _shared_axes(figure)
    return figure


def representations(frame: pd.DataFrame) -> Figure:
    """Careful measure by layer, one line per representation of the same rows, with its nulls in grey; ``frame`` is what
    :func:`lib.diagnosis.decisions.careful_rows` returns.
    """
    figure, ax = plt.subplots(figsize=(9, 4.2))
    named = frame.assign(label=frame["representation"].map(REPRESENTATIONS)).dropna(subset="label")
    # Regressing length out often changes nothing; dashes let the line below show.
    for removed, part in named.groupby(named["representation"] == "length_removed"):
        plotting.lines(ax, part, "label", REPRESENTATION_COLOURS, linestyle="--" if removed else "-")
    for (name, label), linestyle in zip(SAME_IN_EVERY_LAYER.items(), (":", "--"), strict=True):
        _line(ax, frame[frame["representation"] == name], label, color="0.35", linestyle=linestyle)
    plotting.band(ax, frame[frame["representation"] == "shuffled"], "labels shuffled, last token (95%)")
    _ceiling(ax, frame)
    ax.set(ylabel=UNITS[frame["kind"].iloc[0]])
    plotting.layer_axis(ax)
    plotting.legend(ax)
    return figure


def gains(frame: pd.DataFrame) -> Figure:
    """Gain of words + model over words alone by layer, with simultaneous 95% intervals, one panel per kind; lines are what
    controls gain without the model's blocks. ``frame`` is the table of the gains with the column ``margin``.
    """
    kinds = list(frame["kind"].unique())
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True)
    for ax, kind in zip(axes.flat, kinds, strict=False):
        own = frame[frame["kind"] == kind]
        margin = own["margin"].iloc[0]
        ax.axhspan(-margin, margin, color="0.9", label="margin")
        ax.axhline(0, color="0.4", linewidth=0.8)
        read = own[own["layer"].notna()]
        for offset, (pooling, part) in enumerate(read.groupby("pooling", sort=False)):
            label = REPRESENTATIONS.get(pooling, pooling)
            colour, places = REPRESENTATION_COLOURS.get(label, "black"), part["layer"] + 0.1 * offset
            ends = (part["gain"] - part["ci_low"], part["ci_high"] - part["gain"])
            ax.errorbar(places, part["gain"], yerr=ends, color=colour, marker="o", markersize=4, capsize=2, label=label)
        for (name, label), linestyle in zip((WORDLIKE | BESIDE).items(), (":", "--", "-.", "-"), strict=True):
            value = own.loc[own["pooling"] == name, "gain"]
            ends = [read["layer"].min(), read["layer"].max()]
            ax.plot(ends, [value.max()] * 2, color="0.35", linestyle=linestyle, label=label)
        ax.set_title(kind, fontsize="small")
        ax.set_ylabel(f"gain, {GAIN_UNITS[kind]}")
    for ax in axes.flat[len(kinds) :]:
        ax.set_visible(False)
    _shared_axes(figure)
    return figure


def gradients(frame: pd.DataFrame) -> Figure:
    """Spearman correlation of typicality and nearness to the prototype by layer, as published, one panel per foundation;
    ``frame`` is the table of the gradient with the ceiling.
    """
    figure, axes = plt.subplots(1, len(FOUNDATIONS), figsize=(9, 3.6), sharey=True)
    chosen = frame[frame["metric"] == "spearman"]
    for ax, foundation in zip(axes, FOUNDATIONS, strict=True):
        poles = foundation.split("-")
        part = chosen[chosen["category"].isin(poles)]
        plotting.lines(ax, part[part["arm"] == "published"], "category", COLOURS)
        plotting.band(ax, part[part["arm"] == "shuffled"], "typicality shuffled (95%)")
        _ceiling(ax, chosen)
        ax.axhline(0.55, color="0.4", linewidth=1, linestyle=":", label="published bound of every peak")
        for pole, side in zip(poles, ("left", "right"), strict=True):
            ax.set_title(pole, loc=side, color=COLOURS[pole], fontsize="small")
    axes[0].set_ylabel("Spearman correlation with typicality")
    _shared_axes(figure, hidden=COLOURS)
    return figure


def clusters(frame: pd.DataFrame) -> Figure:
    """Adjusted Rand index of clusters and labels by layer, pooled as published, one panel per labelling; ``frame`` is the table
    of the structural analysis.
    """
    chosen = frame[frame["metric"] == "adjusted_rand"]
    targets = [target for target in chosen["target"].unique() if target != "all"]
    figure, axes = plt.subplots(1, len(targets) + 1, figsize=(9, 3.6))
    named = chosen.assign(label=chosen["arm"].map(CLUSTERINGS)).dropna(subset="label")
    palette = dict(zip(CLUSTERINGS.values(), COLOURS_OF_LINES, strict=False))
    for ax, target in zip(axes[:-1], targets, strict=True):
        plotting.band(ax, chosen[(chosen["target"] == target) & (chosen["arm"] == "shuffled")], "labels shuffled (95%)")
        plotting.lines(ax, named[named["target"] == target], "label", palette)
        ax.set_title(target, fontsize="small")
        if ax is not axes[0]:
            ax.sharey(axes[0])
            ax.tick_params(labelleft=False)
    axes[0].set_ylabel("adjusted Rand index")
    coverage = frame[(frame["arm"] == "published") & (frame["metric"] == "coverage")]
    axes[-1].bar(coverage["layer"], coverage["value"], color="0.7", width=0.6)
    axes[-1].set_ylim(0, 1)
    axes[-1].set_title("share of points\nthat are not noise", fontsize="small")
    _shared_axes(figure)
    return figure


def probes(frame: pd.DataFrame) -> Figure:
    """R squared of linear probes on held-out rows by layer, pooled as published, mean over the ten dimensions; ``frame`` is the
    table of the dimensional analysis with the ceiling.
    """
    figure, ax = plt.subplots(figsize=(9, 4.2))
    whole = frame[frame["target"] == "all"]
    for (label, (arm, metric)), colour in zip(PROBES.items(), COLOURS_OF_LINES, strict=False):
        part = whole[(whole["arm"] == arm) & (whole["metric"] == metric)]
        plotting.lines(ax, part.assign(label=label), "label", {label: colour})
    _ceiling(ax, whole)
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set(ylabel="R squared on held-out rows")
    plotting.layer_axis(ax)
    plotting.legend(ax)
    return figure


def _line(ax: Axes, frame: pd.DataFrame, label: str, *, color: str, linestyle: str) -> None:
    part = frame.sort_values("layer")
    ax.plot(part["layer"], part["value"], color=color, linestyle=linestyle, label=label)
    ax.fill_between(part["layer"], part["ci_low"], part["ci_high"], color=color, alpha=0.08, linewidth=0)


def _ceiling(ax: Axes, frame: pd.DataFrame) -> None:
    part = frame[frame["arm"] == "ceiling"]
    if len(part):
        _line(ax, part, "oracle that knows the mean opinion", color="black", linestyle="--")


def _shared_axes(figure: Figure, hidden: Collection[str] = ()) -> None:
    """Label every panel's layers, and put one legend above all panels, without the ``hidden`` labels."""
    handles = {}
    for ax in figure.axes:
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("after layer")
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = {label: handle for label, handle in handles.items() if label not in hidden}
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=2, frameon=False, fontsize="x-small")
