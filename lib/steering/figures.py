"""Figures of stage 07: how far every arm moves the stream, and what that costs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from lib import plotting


def steering_receipts(frame: pd.DataFrame) -> Figure:
    """How far every arm moves the stream, and how much that changes the first token: a point per answer, a line at the median.

    ``frame`` as :func:`lib.steering.receipts.lay_out` returns it.
    """
    panels = {
        "relative_norm": "change of the stream, |x' - x| / |x|",
        "kl_first_step": "divergence of the first token,\nsteered from unsteered (nats)",
    }
    groups = list(frame[frame["arm"] != "baseline"].groupby(["arm", "layer"], sort=False, dropna=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 1.2 + 0.36 * len(groups)), sharey=True)
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        for row, ((arm, _), part) in enumerate(groups):
            spread = row + np.linspace(-0.3, 0.3, len(part))
            ax.plot(part[column], spread, ".", color=plotting.ARM_COLOURS[arm], alpha=0.5, markeredgewidth=0)
            ax.vlines(part[column].median(), row - 0.38, row + 0.38, color="0.15", zorder=3)
        ax.set(xlabel=label)
        ax.set_xlim(left=0)
        ax.grid(visible=False, axis="y")
    axes[0].set(yticks=range(len(groups)), yticklabels=[plotting.arm_label(*key) for key, _ in groups])
    axes[0].invert_yaxis()
    return figure


def steering_costs(frame: pd.DataFrame) -> Figure:
    """What each arm costs by strength: perplexity on ordinary text relative to the baseline, and tokens per answer.

    ``frame`` holds rows of :func:`lib.steering.costs.perplexity` and :func:`lib.steering.costs.answer_lengths`. Bars are
    95% intervals; arms stand beside each other at every strength. Layers of an arm differ by the style of their line; no
    layer means several at once.
    """
    panels = {"perplexity_ratio": "perplexity / the baseline's", "answer_tokens": "tokens per answer"}
    frame = frame[frame["metric"].isin(panels) & frame["language"].isin(["all", "answers"])]
    steered = frame[frame["arm"] != "baseline"]
    steered = steered.assign(where=steered["layer"].astype("string").radd("layer ").fillna("several layers"))
    arms, layers = steered["arm"].unique().tolist(), steered.sort_values("layer")["where"].unique().tolist()
    styles = {layer: plotting.LINE_STYLES[number % len(plotting.LINE_STYLES)] for number, layer in enumerate(layers)}
    shifts = dict(zip(arms, 2 ** np.linspace(-0.25, 0.25, len(arms)), strict=True))
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 4))
    for ax, (metric, label) in zip(axes, panels.items(), strict=True):
        part = steered[steered["metric"] == metric]
        for (arm, layer), line in part.groupby(["arm", "where"], sort=False):
            line = line.sort_values("strength")
            errors = [line["value"] - line["ci_low"], line["ci_high"] - line["value"]]
            ax.errorbar(
                line["strength"] * shifts[arm], line["value"], errors, color=plotting.ARM_COLOURS[arm],
                linestyle=styles[layer], linewidth=1.2, elinewidth=1, marker="o", markersize=4,
            )  # fmt: skip
        for value in frame.loc[(frame["arm"] == "baseline") & (frame["metric"] == metric), "value"]:
            ax.axhline(value, color="0.35", linewidth=1, zorder=1)
        strengths = sorted(part["strength"].unique())
        ax.set_xscale("log", base=2)
        ax.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(visible=False, axis="x")
        ax.set(xlabel="strength s", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    handles = [Line2D([], [], color=plotting.ARM_COLOURS[arm], marker="o", markersize=4, label=arm) for arm in arms]
    handles.append(Line2D([], [], color="0.35", linewidth=1, label="baseline"))
    if len(layers) > 1:
        handles += [Line2D([], [], color="0.35", linestyle=styles[layer], label=layer) for layer in layers]
    figure.legend(handles=handles, frameon=False, fontsize="x-small", loc="outside upper center", ncols=5)
    return figure
