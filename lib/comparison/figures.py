"""Figures of stage 04: the models side by side."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import plotting
from lib.run.table import KINDS

LOOKS = {
    "signal beyond words": ("#228833", "o"),
    "equivalent to words": ("#AA3377", "s"),
    "undecided": ("#999999", "D"),
}
"""Decision of stage 03 -> its colour and marker."""


def models_by_kind(frame: pd.DataFrame) -> Figure:
    """What every model adds to words, with its 95% interval: green circles signal, purple squares nothing beyond the grey
    margin, grey diamonds undecided; ``frame`` is what :func:`lib.comparison.regressions.headlines` returns.
    """
    models = list(frame["model"].unique())
    figure, axes = plt.subplots(1, len(KINDS), figsize=(9, 0.32 * len(models) + 2.1), sharey=True)
    for ax, kind in zip(axes, KINDS, strict=True):
        part = frame[frame["kind"] == kind].set_index("model").reindex(models)
        ax.axvline(0, color="0.4", linewidth=0.8)
        if part["margin"].notna().any():
            ax.axvspan(-part["margin"].max(), part["margin"].max(), color="0.5", alpha=0.2, linewidth=0)
        for place, row in enumerate(part.itertuples()):
            colour, marker = LOOKS.get(row.decision, LOOKS["undecided"])
            ax.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=2)
            ax.plot(row.gain, place, marker, color=colour, markersize=5)
        ax.set(title=kind, yticks=range(len(models)), yticklabels=models)
        measures = part["careful_measure"].dropna()
        unit = measures.iloc[0] if len(measures) else "its measure"
        ax.set_xlabel(textwrap.fill(f"gain in {unit}", 22), fontsize="small")
    axes[0].invert_yaxis()
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linewidth=2, label=decision)
        for decision, (colour, marker) in LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(LOOKS), frameon=False, fontsize="small")
    return figure


def differences(frame: pd.DataFrame) -> Figure:
    """Differences between models in units of their margin, with 90% intervals: within -1 and 1 they count as none;
    ``frame`` is what :func:`lib.comparison.regressions.regressions` returns.
    """
    fitted = frame.dropna(subset=["estimate"]).reset_index(drop=True)
    scaled = fitted[["estimate", "ci_low", "ci_high"]].div(fitted["margin"], axis=0)
    colours = {"equivalent": "#228833", "different": "#AA3377", "undecided": "#999999"}
    figure, ax = plt.subplots(figsize=(9, 0.24 * len(fitted) + 1.6))
    ax.axvspan(-1, 1, color="0.5", alpha=0.2, linewidth=0)
    for place, (row, values) in enumerate(zip(fitted.itertuples(), scaled.itertuples(), strict=True)):
        ax.plot([values.ci_low, values.ci_high], [place, place], color=colours[row.decision], linewidth=2)
        ax.plot(values.estimate, place, "o", color=colours[row.decision], markersize=4)
    ax.set_xscale("symlog", linthresh=1, linscale=1.5)
    ax.set(yticks=range(len(fitted)), yticklabels=fitted["kind"] + ", " + fitted["measure"] + ": " + fitted["term"])
    ax.tick_params(axis="y", labelsize="x-small")
    ax.set_xlabel("difference in margins (90% interval)")
    ax.invert_yaxis()
    handles = [plt.Line2D([], [], color=colour, marker="o", label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def cosine_heatmap(frame: pd.DataFrame) -> Figure:
    """Cosine of opposing prototypes, mean over layers, models by foundations; ``frame`` holds the published ones alone."""
    matrix = frame.pivot_table(index="model", columns="foundation", values="value", sort=False)
    matrix = matrix.rename(columns={"all": "mean"})
    figure, ax = plt.subplots(figsize=(9, 0.4 * len(matrix) + 1.4))
    sns.heatmap(matrix, vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".2f", ax=ax, cbar_kws={"label": "cosine"})
    ax.set(xlabel="", ylabel="")
    ax.set_xticklabels([label.get_text().replace("-", "-\n") for label in ax.get_xticklabels()], rotation=0)
    return figure


def depth_profiles(frame: pd.DataFrame) -> Figure:
    """Cosine of opposing prototypes by relative depth, mean over foundations, one line per model; ``frame`` as in the heatmap."""
    figure, ax = plt.subplots(figsize=(9, 4.2))
    _by_model(ax, frame[frame["foundation"] == "all"])
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set(ylabel="cosine of opposing prototypes", ylim=(-1.05, 1.05))
    plotting.legend(ax)
    return figure


def _by_model(ax: Axes, frame: pd.DataFrame) -> None:
    # More models than ten distinct colours would look alike, so a cycle of line styles tells them apart.
    palette = sns.color_palette("colorblind", 10)
    for index, name in enumerate(frame["model"].unique()):
        style = plotting.LINE_STYLES[index // 10 % len(plotting.LINE_STYLES)]
        part = frame[frame["model"] == name]
        plotting.lines(ax, part, "model", {name: palette[index % 10]}, x="depth", linestyle=style)
    ax.set_xlabel("relative depth (0 first block, 1 last)")
