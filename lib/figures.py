"""Every figure of the companion: one function each, a tidy frame in and Axes out.

One theme and one colour a category (``lib.foundations.COLOURS``) hold everywhere, so a reader learns the legend once.
:func:`publish` keeps the picture and the table it was drawn from together.
"""

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import runs
from lib.foundations import COLOURS, FOUNDATION_COLOURS


def theme() -> None:
    """Set the one look of all figures."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    plt.rcParams |= {
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "moral-indifference-companion",
    }


def publish(figure: Figure, stage: runs.Stage, name: str, frame: pd.DataFrame, alt: str) -> None:
    """Show a figure with its alternative text and keep it, as SVG and PNG, beside the table it was drawn from.

    What every reader must know of the run (demo data, a substitute for a column) stands below the picture.
    Files go to ``<run>/figures/<name>.{svg,png,csv}``, outside the stage's directory: drawing is not a result.
    """
    folder = stage.run_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    if notices := stage.notices():
        figure.supxlabel(" ".join(notices), fontsize="x-small", color="0.35", x=0.01, ha="left")
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    runs.write_text_atomically(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g"))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    plt.close(figure)
    encoded = base64.b64encode(picture.getvalue()).decode()
    display(HTML(f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(alt)}">'))  # type: ignore[no-untyped-call]


POLARITY_COLOURS = {"virtue": "#4477AA", "vice": "#EE6677", "neutral": "#BBBBBB"}


def _axes(ax: Axes | None, **size: Any) -> Axes:
    return ax if ax is not None else plt.subplots(**size)[1]


# ---------------------------------------------------------------------------------- stage 1, moral vectors


def typicality_counts(frame: pd.DataFrame) -> Axes:
    """Rows by foundation, polarity and typicality: ``frame`` has ``foundation, polarity, typicality, rows``."""
    _, axes = plt.subplots(1, len(FOUNDATION_COLOURS), figsize=(11, 3.2), sharey=True)
    levels = sorted(frame["typicality"].unique())
    for ax, foundation in zip(axes, FOUNDATION_COLOURS, strict=True):
        part = frame[frame["foundation"] == foundation]
        sns.barplot(
            part, x="typicality", y="rows", hue="polarity", hue_order=list(POLARITY_COLOURS),
            palette=POLARITY_COLOURS, order=levels, ax=ax, legend=ax is axes[-1],
        )  # fmt: skip
        ax.set(title=foundation, xlabel="typicality (0 to 1)", ylabel="exploded rows")
        ax.tick_params(axis="x", rotation=60)
    _legend(axes[-1], "polarity")
    return axes[0]


# ------------------------------------------------------------------------------- stage 2, residual streams


def residual_norms(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Norm of the residual stream by layer, one line a token position.

    ``frame`` has columns ``layer``, ``position`` (first, second, ..., last), ``norm``, ``ci_low``, ``ci_high``.
    """
    ax = _axes(ax, figsize=(7, 4))
    palette = dict(
        zip(frame["position"].unique(), sns.color_palette("viridis", frame["position"].nunique()), strict=True)
    )
    for position, part in frame.groupby("position", sort=False):
        ax.plot(part["layer"], part["norm"], marker="o", color=palette[position], label=position)
        ax.fill_between(part["layer"], part["ci_low"], part["ci_high"], color=palette[position], alpha=0.2, linewidth=0)
    ax.set(
        xlabel="layer (index of the decoder block)",
        ylabel="norm of the residual stream (model units)",
        yscale="log",
    )
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(title="token position", frameon=False)
    return ax


# ------------------------------------------------------------------------------------- stage 3, diagnosis


def _lines(
    ax: Axes, frame: pd.DataFrame, group: str, colours: Mapping[str, str], x: str = "layer", **style: Any
) -> None:
    for name, part in frame.groupby(group, sort=False):
        part = part.sort_values(x)
        ax.plot(part[x], part["value"], color=colours[name], label=name, marker="o", markersize=4, **style)
        ax.fill_between(part[x], part["ci_low"], part["ci_high"], color=colours[name], alpha=0.15, linewidth=0)


def _band(ax: Axes, frame: pd.DataFrame, label: str) -> None:
    """The null as a grey band: the widest interval at every layer."""
    band = frame.groupby("layer").agg({"ci_low": "min", "ci_high": "max"})
    if len(band):
        ax.fill_between(band.index, band["ci_low"], band["ci_high"], color="0.5", alpha=0.25, linewidth=0, label=label)


def _layer_axis(ax: Axes) -> None:
    ax.set_xlabel("layer (index of the decoder block)")
    ax.xaxis.get_major_locator().set_params(integer=True)


def _legend(ax: Axes, title: str | None = None) -> None:
    ax.legend(title=title, frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))


def opposing_cosines(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Cosine of opposing prototypes by layer; ``frame`` as ``diagnosis.categorical`` writes it, all layers."""
    ax = _axes(ax, figsize=(8, 4))
    chosen = frame[frame["metric"] == "opposing_cosine"]
    _lines(ax, chosen[chosen["arm"] == "published"], "foundation", FOUNDATION_COLOURS)
    _band(ax, chosen[chosen["arm"] == "shuffled"], "labels shuffled (95%)")
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set(ylabel="cosine of opposing prototypes", ylim=(-1.05, 1.05))
    _layer_axis(ax)
    _legend(ax)
    return ax


def separability(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Area under the curve of virtue against vice by layer, mean over foundations, one line an arm."""
    ax = _axes(ax, figsize=(8, 4))
    chosen = frame[frame["metric"] == "auc"]
    means = chosen.groupby(["arm", "layer"], sort=False)[["value", "ci_low", "ci_high"]].mean().reset_index()
    palette = dict(zip(means["arm"].unique(), sns.color_palette("colorblind", means["arm"].nunique()), strict=True))
    _lines(ax, means, "arm", palette)
    ax.axhline(0.5, color="0.4", linewidth=0.8, linestyle=":", label="chance")
    ax.set(ylabel="area under the curve, virtue against vice")
    _layer_axis(ax)
    _legend(ax, "representation")
    return ax


def gradients(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Spearman correlation of typicality and nearness by layer, one line a category; dashed without prototypes."""
    ax = _axes(ax, figsize=(8, 4.5))
    chosen = frame[frame["metric"] == "spearman"]
    _lines(ax, chosen[chosen["arm"] == "published"], "category", COLOURS)
    without = chosen[chosen["arm"] == "without_prototypes"].groupby("layer")["value"].mean()
    ax.plot(without.index, without, color="black", linestyle="--", label="mean, without prototypes")
    _band(ax, chosen[chosen["arm"] == "shuffled"], "typicality shuffled (95%)")
    ax.axhline(0.55, color="0.4", linewidth=0.8, linestyle=":", label="published bound of every peak")
    ax.set(ylabel="Spearman correlation with typicality")
    _layer_axis(ax)
    _legend(ax)
    return ax


def clusters(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Adjusted Rand index by layer: colour is the labeling, line style the arm."""
    ax = _axes(ax, figsize=(8, 4))
    chosen = frame[frame["metric"] == "adjusted_rand"]
    palette = dict(zip(chosen["target"].unique(), sns.color_palette("colorblind", 3), strict=False))
    styles = {"published": "-", "all_points": "--", "supervised": ":"}
    for arm, style in styles.items():
        part = chosen[chosen["arm"] == arm]
        named = part.assign(label=part["target"] + ", " + arm.replace("_", " "))
        colours = {label: palette[label.split(",")[0]] for label in named["label"].unique()}
        _lines(ax, named, "label", colours, linestyle=style)
    _band(ax, chosen[chosen["arm"] == "shuffled"], "labels shuffled (95%)")
    ax.set(ylabel="adjusted Rand index")
    _layer_axis(ax)
    _legend(ax)
    return ax


def probes(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """R squared of linear probes by layer, mean over the ten dimensions, one line an arm."""
    ax = _axes(ax, figsize=(8, 4))
    chosen = frame[(frame["target"] == "all") & (frame["metric"] == "r2")]
    palette = dict(zip(chosen["arm"].unique(), sns.color_palette("colorblind", chosen["arm"].nunique()), strict=True))
    _lines(ax, chosen, "arm", palette)
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set(ylabel="R squared on held-out rows")
    _layer_axis(ax)
    _legend(ax, "probe")
    return ax


# ------------------------------------------------------------------------------ stage 4, models compared


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
    ax = _axes(ax, figsize=(7, 0.45 * len(matrix) + 1.8))
    sns.heatmap(matrix, vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".2f", ax=ax, cbar_kws={"label": "cosine"})
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=30)
    return ax


def depth_profiles(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Opposing cosine, mean over foundations, on relative depth, one line a model; ``frame`` has ``depth``."""
    ax = _axes(ax, figsize=(8, 4))
    chosen = frame[(frame["metric"] == "opposing_cosine") & (frame["arm"] == "published")]
    means = chosen.groupby(["model", "depth"], sort=False)[["value", "ci_low", "ci_high"]].mean().reset_index()
    palette = dict(zip(means["model"].unique(), sns.color_palette("colorblind", means["model"].nunique()), strict=True))
    _lines(ax, means, "model", palette, x="depth")
    ax.set(xlabel="relative depth (0 first block, 1 last)", ylabel="cosine of opposing prototypes", ylim=(-1.05, 1.05))
    _legend(ax, "model")
    return ax


# --------------------------------------------------------------- stages 5 and 6, sparse autoencoders

ARM_COLOURS = {
    "baseline": "#BBBBBB",
    "untuned": "#66CCEE",
    "aligned": "#4477AA",
    "shuffled": "#EE6677",
    "random": "#CCBB44",
    "people": "#222222",
}


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
    ax = _axes(ax, figsize=(8, 4))
    totals = frame.groupby(["category", "criterion"], sort=False)["latents"].sum().reset_index()
    sns.barplot(totals, x="category", y="latents", hue="criterion", palette="colorblind", ax=ax)
    ax.set(xlabel="", ylabel="number of latents")
    ax.tick_params(axis="x", rotation=40)
    _legend(ax, "criterion")
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
                ax.plot([place, place], [row["ci_low"], row["ci_high"]], color=ARM_COLOURS[row["arm"]], linewidth=2)
                ax.plot(place, row["value"], "o", color=ARM_COLOURS[row["arm"]])
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


# ---------------------------------------------------------------------- stages 7 and 8, steering and judging


def _arm_label(arm: str, layer: Any) -> str:
    return arm if pd.isna(layer) else f"{arm}\nlayer {layer}"


def steering_receipts(frame: pd.DataFrame) -> Axes:
    """What each arm did, one point an answer: relative norm of the change, and KL from steered to unsteered model.

    ``frame`` as ``steering.receipts`` writes it; the line is the median over answers.
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
            ax.plot(spread, part[column], ".", color=ARM_COLOURS[arm], alpha=0.6)
            ax.hlines(part[column].median(), place - 0.35, place + 0.35, color="0.2")
        ax.set(ylabel=label, xticks=range(len(groups)), xticklabels=[_arm_label(*key) for key, _ in groups])
        ax.set_ylim(bottom=0)
    return axes[0]


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
            ax.plot([place, place], [row["ci_low"], row["ci_high"]], color=ARM_COLOURS[row["arm"]], linewidth=2)
            ax.plot(place, row["value"], "o", color=ARM_COLOURS[row["arm"]])
        labels = [_arm_label(row["arm"], row["layer"]) for _, row in part.iterrows()]
        ax.set(title=f"{title} ({frame['standing'].iloc[0]})", ylim=(-0.02, 1.02))
        ax.set(ylabel="share of perfect scores", xticks=range(len(labels)), xticklabels=labels)
    return axes[0]


def win_rates(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Wins, ties and losses of each arm against the baseline, with the 95% interval of the win rate.

    ``frame`` as ``verdicts.summarise`` writes it; the two orders of every pair are averaged.
    """
    ax = _axes(ax, figsize=(8, 3.8))
    chosen = frame[(frame["rubric"] == "pairwise") & (frame["dimension"] == "all")]
    shades = {"win_rate": "wins", "tie_rate": "ties", "lose_rate": "losses"}
    groups = list(chosen.groupby(["arm", "layer"], sort=False))
    for place, ((arm, _), part) in enumerate(groups):
        left = 0.0
        values = part.set_index("metric")
        for (metric, _), shade in zip(shades.items(), (1.0, 0.45, 0.15), strict=True):
            width = values.loc[metric, "value"]
            ax.barh(place, width, left=left, color=ARM_COLOURS[arm], alpha=shade, edgecolor="white")
            left += width
        ax.plot(values.loc["win_rate", ["ci_low", "ci_high"]], [place, place], color="0.1", linewidth=2)
    for shade, name in zip((1.0, 0.45, 0.15), shades.values(), strict=True):
        ax.barh(0, 0, color="0.3", alpha=shade, label=name)
    ax.axvline(0.5, color="0.4", linewidth=0.8)
    ax.set(xlabel=f"share of verdicts ({frame['standing'].iloc[0]}); line: 95% interval of the win rate", xlim=(0, 1))
    ax.set(yticks=range(len(groups)), yticklabels=[_arm_label(*key) for key, _ in groups])
    ax.invert_yaxis()
    _legend(ax)
    return ax


# ------------------------------------------------------------------------------------------ stage 9, claims


def verdict_counts(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Number of claims by stage and verdict, stacked; ``frame`` is the ledger."""
    ax = _axes(ax, figsize=(8, 3.6))
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
    _legend(ax, "verdict")
    return ax
