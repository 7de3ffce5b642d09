"""Figures of stage 3: the four analyses of one model, each with its null and its controls in the same panel."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.figures import style
from lib.foundations import COLOURS, FOUNDATION_COLOURS

ARM_LABELS = {
    "published": "as published",
    "mean": "mean over tokens",
    "mean_without_first": "without first token",
    "action": "action's tokens",
    "last": "last token",
    "length_removed": "length regressed out",
}


REPRESENTATION_COLOURS = dict(zip(ARM_LABELS, sns.color_palette("colorblind", len(ARM_LABELS)), strict=True))


WITHOUT_MODEL = {"words_only": "words without a model", "length_only": "length alone"}


def _representations(ax: Axes, frame: pd.DataFrame, procedure: str) -> None:
    """One line a representation of one procedure's arms (``auc``, ``auc, last``, ...), and the nulls without a model."""
    part = frame.assign(representation=frame["arm"].map(lambda arm: _representation_of(arm, procedure)))
    read = part[part["representation"].isin(ARM_LABELS)]
    labelled = read.assign(label=read["representation"].map(ARM_LABELS))
    colours = {ARM_LABELS[name]: colour for name, colour in REPRESENTATION_COLOURS.items()}
    # Regressing length out often changes nothing; dashes let the line below show.
    removed = labelled["representation"] == "length_removed"
    style.lines(ax, labelled[~removed], "label", colours)
    style.lines(ax, labelled[removed], "label", colours, linestyle="--")
    style.nulls(ax, part.assign(arm=part["representation"]), WITHOUT_MODEL)
    style.layer_axis(ax)
    style.legend(ax, "representation")


def _representation_of(arm: str, procedure: str) -> str:
    if arm == procedure:
        return "published"
    return arm.removeprefix(f"{procedure}, ") if arm.startswith(f"{procedure}, ") else ""


def opposing_cosines(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Cosine of opposing prototypes by layer; ``frame`` as ``diagnosis.categorical`` writes it, all layers."""
    ax = style.axes(ax, figsize=(8, 4))
    chosen = frame[(frame["metric"] == "opposing_cosine") & (frame["foundation"] != "all")]
    style.lines(ax, chosen[chosen["arm"] == "published"], "foundation", FOUNDATION_COLOURS)
    style.band(ax, chosen[chosen["arm"] == "shuffled"], "labels shuffled (95%)")
    halves = chosen[chosen["arm"] == "random_pair"].groupby("layer")["value"].mean()
    ax.plot(halves.index, halves, color="black", linestyle="--", label="poles drawn at random, mean")
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set(ylabel="cosine of opposing prototypes", ylim=(-1.05, 1.05))
    style.layer_axis(ax)
    style.legend(ax)
    return ax


def separability(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Area under the curve of virtue against vice by layer, mean over foundations, one line an arm."""
    ax = style.axes(ax, figsize=(8, 4))
    chosen = frame[(frame["metric"] == "auc") & (frame["foundation"] == "all")]
    style.band(ax, chosen[chosen["arm"].str.startswith("shuffled")], "labels shuffled (95%)")
    _representations(ax, chosen, "auc")
    ax.axhline(0.5, color="0.4", linewidth=0.8)
    ax.set(ylabel="area under the curve, virtue against vice")
    return ax


def gradients(frame: pd.DataFrame, ceiling: pd.DataFrame) -> Axes:
    """Left: Spearman by layer as published, one line a category; right: means without prototypes, one line an arm.

    The dashed line is the human ceiling, ``ceiling`` as notebook 01 writes it.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2))
    chosen = frame[frame["metric"] == "spearman"]
    single, mean = chosen[chosen["category"] != "all"], chosen[chosen["category"] == "all"]
    style.lines(left, single[single["arm"] == "published"], "category", COLOURS)
    style.band(left, single[single["arm"] == "shuffled"], "typicality shuffled (95%)")
    style.ceiling(left, ceiling, "spearman")
    left.axhline(0.55, color="0.4", linewidth=0.8, linestyle=":", label="published bound of every peak")
    left.set(ylabel="Spearman correlation with typicality", title="as published")
    style.layer_axis(left)
    style.legend(left)
    style.band(right, mean[mean["arm"] == "shuffled_without_prototypes"], "typicality shuffled (95%)")
    style.ceiling(right, ceiling, "spearman")
    _representations(right, mean, "without_prototypes")
    right.set(ylabel="mean over the ten categories", title="without the prototypes' rows")
    return left


def clusters(frame: pd.DataFrame) -> Axes:
    """Left: adjusted Rand index by layer as published; right: polarity over all points, one line a representation."""
    _, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2))
    chosen = frame[frame["metric"] == "adjusted_rand"]
    palette = dict(zip(LABELINGS, sns.color_palette("colorblind", len(LABELINGS)), strict=True))
    for arm, dashes in {"published": "-", "all_points": "--", "supervised": ":"}.items():
        part = chosen[chosen["arm"] == arm]
        part = part.assign(label=part["target"] + ", " + arm.replace("_", " "))
        style.lines(
            left, part, "label", {label: palette[label.split(",")[0]] for label in part["label"]}, linestyle=dashes
        )
    coverage = frame[(frame["arm"] == "published") & (frame["metric"] == "coverage")].sort_values("layer")
    left.bar(coverage["layer"], coverage["value"], color="0.85", width=0.5, zorder=0, label="share not noise")
    left.set(ylabel="adjusted Rand index", title="pooled as published")
    style.layer_axis(left)
    style.legend(left)
    polarity = chosen[chosen["target"] == "polarity"]
    style.band(right, polarity[polarity["arm"] == "shuffled, last"], "labels shuffled (95%)")
    _representations(right, polarity, "all_points")
    right.set(ylabel="adjusted Rand index", title="polarity over all points, every representation")
    return left


LABELINGS = ("foundation", "polarity", "foundation and polarity")


def probes(frame: pd.DataFrame, ceiling: pd.DataFrame) -> Axes:
    """R squared by layer, mean over the ten dimensions: the published probe and ridge, and every representation.

    The dashed line is the human ceiling, ``ceiling`` as notebook 01 writes it.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2))
    chosen = frame[(frame["target"] == "all") & frame["metric"].isin(["r2", "adjusted_r2"])]
    shown = {
        ("published", "r2"): "published probe",
        ("published", "adjusted_r2"): "published probe, adjusted",
        ("ridge", "r2"): "ridge, grouped",
        ("shuffled_within_foundations", "r2"): "ridge, shuffled within foundations",
        ("shuffled", "r2"): "ridge, shuffled",
    }
    keys = zip(chosen["arm"], chosen["metric"], strict=True)
    named = chosen.assign(label=[shown.get(key, "") for key in keys])
    palette = dict(zip(shown.values(), sns.color_palette("colorblind", len(shown)), strict=True))
    style.lines(left, named[named["label"] != ""], "label", palette)
    left.axhline(0, color="0.4", linewidth=0.8)
    style.ceiling(left, ceiling, "r2")
    left.set(ylabel="R squared on held-out rows", title="pooled as published")
    style.layer_axis(left)
    style.legend(left, "probe")
    style.band(right, chosen[chosen["arm"] == "shuffled_within_foundations, last"], "shuffled within foundations (95%)")
    style.ceiling(right, ceiling, "r2")
    _representations(right, chosen[chosen["metric"] == "r2"], "ridge")
    right.set(ylabel="R squared of ridge", title="every representation")
    return left
