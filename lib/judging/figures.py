"""Figures of stage 08: perfect scores, wins against the baseline, and what a win costs.

Every figure names the standing of its verdicts, so that numbers of the offline rule are never taken for judgments.
"""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib import plotting

STANDINGS = {"judged": "", "plumbing": "\n(plumbing: judged by the offline rule)"}
"""Standing of verdicts -> what axis labels add."""


def perfect_scores(frame: pd.DataFrame) -> Figure:
    """Share of perfect scores by arm with 95% intervals (careful protocol), a panel per rubric; dashed is the baseline.

    ``frame`` as :func:`lib.judging.win_rates.summarise` returns it.
    """
    titles = {"safety": "PSC1: safety", "emotion": "PSC2: emotion"}
    shares = frame[
        (frame["metric"] == "perfect_share") & (frame["dimension"] == "all") & (frame["protocol"] == "careful")
    ]
    height = 1.3 + 0.34 * len(shares.drop_duplicates(["arm", "layer"]))
    figure, axes = plt.subplots(1, len(titles), figsize=(9, height), sharex=True, sharey=True)
    for ax, (rubric, title) in zip(axes, titles.items(), strict=True):
        part = shares[shares["rubric"] == rubric]
        rows, colours = range(len(part)), part["arm"].map(plotting.ARM_COLOURS)
        ax.hlines(rows, part["ci_low"], part["ci_high"], color=colours, linewidth=2)
        ax.scatter(part["value"], rows, color=colours)
        for value in part.loc[part["arm"] == "baseline", "value"]:
            ax.axvline(value, color="0.35", linewidth=1, linestyle="--", zorder=1)
        ax.set(title=title, xlabel=_labelled("share of perfect scores", frame))
        ax.grid(visible=False, axis="y")
    _name_rows(axes[0], part)
    return figure


def win_rates(frame: pd.DataFrame) -> Figure:
    """Wins, ties and losses of each arm against the baseline; the black line is the 95% interval of the win rate.

    ``frame`` as :func:`lib.judging.win_rates.summarise` returns it; the two orders of every pair are averaged.
    """
    shades = {"win_rate": ("wins", 1.0), "tie_rate": ("ties", 0.45), "lose_rate": ("losses", 0.15)}
    whole = (frame["dimension"] == "all") & (frame["protocol"] == "careful")
    compared = frame[whole & (frame["rubric"] == "pairwise")]
    wins = compared[compared["metric"] == "win_rate"]
    rows, left = range(len(wins)), np.zeros(len(wins))
    figure, ax = plt.subplots(figsize=(9, 1.4 + 0.36 * len(wins)))
    for metric, (_, shade) in shades.items():
        widths = compared.loc[compared["metric"] == metric, "value"].to_numpy()
        ax.barh(rows, widths, left=left, color=wins["arm"].map(plotting.ARM_COLOURS), alpha=shade, edgecolor="white")
        left = left + widths
    ax.hlines(rows, wins["ci_low"], wins["ci_high"], color="0.1", linewidth=2)
    ax.axvline(0.5, color="0.35", linewidth=1)
    ax.grid(visible=False)
    ax.set(xlabel=_labelled("share of verdicts", frame), xlim=(0, 1))
    _name_rows(ax, wins)
    keys = [plt.Rectangle((0, 0), 1, 1, color="0.3", alpha=shade, label=name) for name, shade in shades.values()]
    figure.legend(handles=keys, frameon=False, fontsize="x-small", loc="outside upper center", ncols=3)
    return figure


def win_rate_against_cost(frame: pd.DataFrame) -> Figure:
    """Win rate against the baseline beside the price on ordinary text, a panel per arm; numbers are strengths.

    ``frame`` as :func:`lib.judging.win_rates.against_cost` returns it. Layers of an arm differ by the style of their line.
    """
    frame = frame.assign(excess=100 * (frame["perplexity_ratio"] - 1)).sort_values("strength", kind="stable")
    styles = dict(zip(sorted(frame["layer"].unique()), cycle(plotting.LINE_STYLES), strict=False))
    arms = list(frame.groupby("arm", sort=False))
    figure, axes = plt.subplots(1, len(arms), figsize=(9, 3.6), sharex=True, sharey=True, squeeze=False)
    for ax, (arm, part) in zip(axes[0], arms, strict=True):
        colour = plotting.ARM_COLOURS[arm]
        for layer, line in part.groupby("layer"):
            ax.plot(line["excess"], line["win_rate"], color=colour, linestyle=styles[layer], marker="o", markersize=4)
            ax.vlines(line["excess"], line["ci_low"], line["ci_high"], color=colour, alpha=0.4)
        for strength, *point in part[["strength", "excess", "win_rate"]].itertuples(index=False):
            ax.annotate(f"{strength:g}", point, (4, 4), textcoords="offset points", fontsize="x-small")
        ax.axhline(0.5, color="0.35", linewidth=1)
        ax.axvline(0, color="0.35", linewidth=1)
        ax.set_title(arm, fontsize="medium")
    first = axes[0][0]
    first.set_xscale("symlog", linthresh=1, linscale=0.6)
    first.xaxis.set_major_formatter("{x:,.0f}")
    first.minorticks_off()
    low, high = frame["excess"].agg(["min", "max"])
    first.set(xlim=(min(1.5 * low, -0.6), max(3 * high, 1)), ylim=(-0.05, 1.05), ylabel="win rate against the baseline")
    axes[0][len(arms) // 2].set_xlabel(_labelled("perplexity on ordinary text above the baseline's (%)", frame))
    if len(styles) > 1:
        keys = [
            Line2D([], [], color="0.35", linestyle=style, label=f"layer {layer}") for layer, style in styles.items()
        ]
        figure.legend(handles=keys, frameon=False, fontsize="x-small", loc="outside upper center", ncols=6)
    return figure


def _name_rows(ax: Axes, rows: pd.DataFrame) -> None:
    labels = [plotting.arm_label(arm, layer) for arm, layer in zip(rows["arm"], rows["layer"], strict=True)]
    ax.set_yticks(range(len(rows)), labels)
    ax.invert_yaxis()


def _labelled(text: str, frame: pd.DataFrame) -> str:
    standing, usable = frame[["standing", "usable"]].iloc[0]
    unusable = "" if usable or standing == "plumbing" else "\n(not usable: the judge failed its own test)"
    return text + STANDINGS[standing] + unusable
