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


def typicality_counts(frame: pd.DataFrame) -> sns.FacetGrid:
    """Rows by foundation, polarity and typicality: ``frame`` has ``foundation, polarity, typicality, rows``."""
    grid = sns.catplot(
        frame, x="typicality", y="rows", hue="polarity", col="foundation", kind="bar", height=2.8, aspect=0.75,
        palette=POLARITY_COLOURS, order=sorted(frame["typicality"].unique()),
    )  # fmt: skip
    grid.set_titles("{col_name}").set_axis_labels("typicality (0 to 1)", "exploded rows")
    grid.tick_params(axis="x", rotation=60)
    return grid


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
