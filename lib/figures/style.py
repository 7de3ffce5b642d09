"""The one look of all figures, their shared parts, and :func:`publish`, which keeps a picture with its table."""

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


def axes(ax: Axes | None, **size: Any) -> Axes:
    """Return the axes given, or new ones of a size."""
    return ax if ax is not None else plt.subplots(**size)[1]


def lines(
    ax: Axes, frame: pd.DataFrame, group: str, colours: Mapping[str, str], x: str = "layer", **style: Any
) -> None:
    """Draw one line with its interval (columns value, ci_low, ci_high) a group."""
    for name, part in frame.groupby(group, sort=False):
        part = part.sort_values(x)
        ax.plot(part[x], part["value"], color=colours[name], label=name, marker="o", markersize=4, **style)
        ax.fill_between(part[x], part["ci_low"], part["ci_high"], color=colours[name], alpha=0.15, linewidth=0)


def band(ax: Axes, frame: pd.DataFrame, label: str) -> None:
    """Draw the null as a grey band: the widest interval at every layer."""
    widest = frame.groupby("layer").agg({"ci_low": "min", "ci_high": "max"})
    if len(widest):
        ax.fill_between(
            widest.index, widest["ci_low"], widest["ci_high"], color="0.5", alpha=0.25, linewidth=0, label=label
        )


def layer_axis(ax: Axes) -> None:
    """Label the horizontal axis as whole layers, and above as relative depth, which compares between models."""
    last = max(ax.dataLim.x1, 1)
    ax.set_xlabel("layer (index of the decoder block)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    depth = ax.secondary_xaxis("top", functions=(lambda layer: layer / last, lambda depth: depth * last))
    depth.set_xlabel("relative depth", fontsize="x-small")
    depth.tick_params(labelsize="x-small")


def ceiling(ax: Axes, frame: pd.DataFrame, metric: str) -> None:
    """Draw the human ceiling, where it is known, as a dashed line with its interval.

    Args:
        ax: whose vertical axis is in units of ``metric``.
        frame: as notebook 01 writes it to ``vectors/ceiling.parquet``.
        metric: ``spearman`` or ``r2``; the mean over the ten dimensions is drawn.
    """
    people = frame[(frame["dimension"] == "mean") & (frame["metric"] == metric)].dropna(subset="value")
    for _, row in people.iterrows():
        ax.axhline(row["value"], color="black", linestyle="--", linewidth=1.2, label="one annotator for another")
        ax.axhspan(row["ci_low"], row["ci_high"], color="black", alpha=0.06, linewidth=0)


def nulls(ax: Axes, frame: pd.DataFrame, arms: Mapping[str, str]) -> None:
    """Draw nulls that read no model as grey lines with their intervals: arm -> label."""
    for (arm, label), dashes in zip(arms.items(), ("--", ":"), strict=False):
        part = frame[frame["arm"] == arm].sort_values("layer")
        ax.plot(part["layer"], part["value"], color="0.35", linestyle=dashes, label=label)
        ax.fill_between(part["layer"], part["ci_low"], part["ci_high"], color="0.35", alpha=0.12, linewidth=0)


def legend(ax: Axes, title: str | None = None) -> None:
    """Put the legend outside, at the right, where it hides no data."""
    ax.legend(title=title, frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))


def by_model(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw one line with its interval a model, on relative depth."""
    names = list(frame["model"].unique())
    # More models than ten distinct colours would look alike, so a cycle of line styles tells them apart.
    colours = dict(zip(names, sns.color_palette("colorblind", 10) * (len(names) // 10 + 1), strict=False))
    for index, name in enumerate(names):
        part = frame[frame["model"] == name]
        lines(ax, part, "model", colours, x="depth", linestyle=("-", "--", ":")[index // 10 % 3])
    ax.set(xlabel="relative depth (0 first block, 1 last)")
    legend(ax, "model")


ARM_COLOURS = {
    "baseline": "#BBBBBB",
    "untuned": "#66CCEE",
    "aligned": "#4477AA",
    "shuffled": "#EE6677",
    "random": "#CCBB44",
    "people": "#222222",
}


def arm_label(arm: str, layer: Any) -> str:
    """Name an arm and, where it has one, its layer."""
    return arm if pd.isna(layer) else f"{arm}\nlayer {layer}"
