"""Figures of stages 7 and 8: the answers of every arm and the verdicts of the judges."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lib.figures import style


def steering_receipts(frame: pd.DataFrame) -> Axes:
    """What each arm did, one point an answer: relative norm of the change, and KL from steered to unsteered model.

    ``frame`` as ``receipts.lay_out`` returns it; the line is the median over answers.
    """
    panels = {
        "relative_norm": "relative norm |x' - x| / |x|",
        "kl_first_step": "KL of the first token (nats)",
    }
    steered = frame[frame["arm"] != "baseline"]
    groups = list(steered.groupby(["arm", "layer"], sort=False))
    _, axes = plt.subplots(1, len(panels), figsize=(10, 3.8))
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        for place, ((arm, _), part) in enumerate(groups):
            spread = place + np.linspace(-0.25, 0.25, len(part))
            ax.plot(spread, part[column], ".", color=style.ARM_COLOURS[arm], alpha=0.6)
            ax.hlines(part[column].median(), place - 0.35, place + 0.35, color="0.2")
        ax.set(ylabel=label, xticks=range(len(groups)), xticklabels=[style.arm_label(*key) for key, _ in groups])
        ax.tick_params(axis="x", labelsize="x-small")
        ax.set_ylim(bottom=0)
    return axes[0]


def steering_costs(frame: pd.DataFrame) -> Axes:
    """What each arm costs by strength: perplexity on ordinary text relative to the baseline, and length of answers.

    ``frame`` holds rows of ``costs.perplexity`` and ``costs.answer_lengths``; bands are 95% intervals. Layers of an arm
    share its colour and differ by the style of the line.
    """
    panels = {"perplexity_ratio": "perplexity on ordinary text / baseline's", "answer_tokens": "tokens per answer"}
    _, axes = plt.subplots(1, len(panels), figsize=(10.5, 3.8))
    for ax, (metric, label) in zip(axes, panels.items(), strict=True):
        part = frame[(frame["metric"] == metric) & frame["language"].isin(["all", "answers"])]
        for (arm, layer), line in part[part["arm"] != "baseline"].groupby(["arm", "layer"], sort=False):
            layers = sorted(part["layer"].dropna().unique())
            shown = {"color": style.ARM_COLOURS[arm], "linestyle": style.LINES[layers.index(layer) % len(style.LINES)]}
            line = line.sort_values("strength")
            ax.plot(line["strength"], line["value"], marker="o", markersize=4, label=f"{arm}, layer {layer}", **shown)
            ax.fill_between(line["strength"], line["ci_low"], line["ci_high"], color=shown["color"], alpha=0.12)
        for value in part.loc[part["arm"] == "baseline", "value"]:
            ax.axhline(value, color="0.4", linewidth=0.8)
        ax.set(xlabel="strength s", ylabel=label)
    axes[0].set_yscale("log")
    style.legend(axes[-1], "line: baseline")
    return axes[0]


def win_rate_against_cost(frame: pd.DataFrame) -> Axes:
    """Win rate against the baseline beside the price on ordinary text, a panel an arm, larger points for larger strengths.

    ``frame``: ``arm, layer, strength, win_rate, ci_low, ci_high, perplexity_ratio, standing``. Layers of an arm differ by
    the style of their line.
    """
    layers = sorted(frame["layer"].dropna().unique())
    sizes = {strength: 16 + 34 * rank for rank, strength in enumerate(sorted(frame["strength"].unique()))}
    arms = list(frame.groupby("arm", sort=False))
    figure, grid = plt.subplots(
        1, len(arms), figsize=(2.7 * len(arms) + 1.6, 3.8), sharex=True, sharey=True, squeeze=False
    )
    places = grid[0]
    for ax, (arm, part) in zip(places, arms, strict=True):
        colour = style.ARM_COLOURS[arm]
        for layer, line in part.groupby("layer"):
            line = line.sort_values("strength")
            excess = 100 * (line["perplexity_ratio"] - 1)
            drawn = style.LINES[layers.index(layer) % len(style.LINES)]
            ax.plot(excess, line["win_rate"], color=colour, linestyle=drawn, linewidth=0.9)
            ax.vlines(excess, line["ci_low"], line["ci_high"], color=colour, alpha=0.35)
            ax.scatter(
                excess, line["win_rate"], s=line["strength"].map(sizes), color=colour, edgecolor="white", zorder=3
            )
        ax.axhline(0.5, color="0.4", linewidth=0.8)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set_title(arm)
    places[0].set_xscale("symlog", linthresh=1, linscale=0.6)
    places[0].set_ylim(-0.05, 1.05)
    places[0].set_ylabel(f"win rate against the baseline ({frame['standing'].iloc[0]})")
    ends = 100 * (frame["perplexity_ratio"].agg(["min", "max"]) - 1)
    ticks = [
        tick
        for tick in (-10, -1, 0, 1, 10, 100, 1_000, 10_000)
        if 2 * ends["min"] <= tick <= 2 * ends["max"] or not tick
    ]
    places[0].set_xlim(min(1.5 * ends["min"], -0.6), max(2 * ends["max"], 1))
    places[0].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    places[0].minorticks_off()
    places[len(places) // 2].set_xlabel("perplexity on ordinary text above the untouched model's (%)", fontsize="small")
    handles = [
        Line2D([], [], color="0.4", linestyle="", marker="o", markersize=size**0.5, label=f"strength {strength:g}")
        for strength, size in sizes.items()
    ]
    handles += [
        Line2D([], [], color="0.4", linestyle=style.LINES[number % len(style.LINES)], label=f"layer {layer}")
        for number, layer in enumerate(layers)
    ]
    figure.legend(handles=handles, frameon=False, fontsize="x-small", loc="outside right upper")
    return places[0]


def perfect_scores(frame: pd.DataFrame) -> Axes:
    """Share of perfect scores by arm with 95% intervals, one panel a rubric.

    ``frame`` as ``verdicts.summarise`` writes it. The title carries the standing, so that plumbing is called plumbing.
    """
    chosen = frame[(frame["metric"] == "perfect_share") & (frame["dimension"] == "all")]
    titles = {"safety": "PSC1, safety", "emotion": "PSC2, emotion"}
    _, axes = plt.subplots(1, len(titles), figsize=(10, 3.8), sharey=True)
    for ax, (rubric, title) in zip(axes, titles.items(), strict=True):
        part = chosen[chosen["rubric"] == rubric]
        for place, (_, row) in enumerate(part.iterrows()):
            ax.plot([place, place], [row["ci_low"], row["ci_high"]], color=style.ARM_COLOURS[row["arm"]], linewidth=2)
            ax.plot(place, row["value"], "o", color=style.ARM_COLOURS[row["arm"]])
        labels = [style.arm_label(row["arm"], row["layer"]) for _, row in part.iterrows()]
        ax.set(title=f"{title} ({frame['standing'].iloc[0]})", ylim=(-0.02, 1.02))
        ax.set(ylabel="share of perfect scores", xticks=range(len(labels)), xticklabels=labels)
        ax.tick_params(axis="x", labelsize="x-small")
    return axes[0]


def win_rates(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Wins, ties and losses of each arm against the baseline, with the 95% interval of the win rate.

    ``frame`` as ``verdicts.summarise`` writes it; the two orders of every pair are averaged.
    """
    ax = style.axes(ax, figsize=(8, 4.4))
    chosen = frame[(frame["rubric"] == "pairwise") & (frame["dimension"] == "all")]
    shades = {"win_rate": "wins", "tie_rate": "ties", "lose_rate": "losses"}
    groups = list(chosen.groupby(["arm", "layer"], sort=False))
    for place, ((arm, _), part) in enumerate(groups):
        left = 0.0
        values = part.set_index("metric")
        for (metric, _), shade in zip(shades.items(), (1.0, 0.45, 0.15), strict=True):
            width = values.loc[metric, "value"]
            ax.barh(place, width, left=left, color=style.ARM_COLOURS[arm], alpha=shade, edgecolor="white")
            left += width
        ax.plot(values.loc["win_rate", ["ci_low", "ci_high"]], [place, place], color="0.1", linewidth=2)
    for shade, name in zip((1.0, 0.45, 0.15), shades.values(), strict=True):
        ax.barh(0, 0, color="0.3", alpha=shade, label=name)
    ax.axvline(0.5, color="0.4", linewidth=0.8)
    ax.set(xlabel=f"share of verdicts ({frame['standing'].iloc[0]}); line: 95% interval of the win rate", xlim=(0, 1))
    names = [style.arm_label(*key).replace("-\n", "-") for key, _ in groups]
    ax.set(yticks=range(len(groups)), yticklabels=names)
    ax.invert_yaxis()
    style.legend(ax)
    return ax


def verdict_counts(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Number of claims by stage and verdict, stacked; ``frame`` is the ledger."""
    ax = style.axes(ax, figsize=(8, 3.6))
    colours = {
        "reproduced": "#228833",
        "reproduced but explained by a control": "#CCBB44",
        "differs": "#AA3377",
        "not run": "#BBBBBB",
    }
    counts = frame.groupby(["stage", "verdict"], sort=False).size().unstack(fill_value=0)
    counts.reindex(columns=list(colours), fill_value=0).plot.barh(stacked=True, color=colours, ax=ax, width=0.7)
    ax.set(xlabel="number of claims", ylabel="")
    ax.invert_yaxis()
    style.legend(ax, "verdict")
    return ax
