"""The one look of all figures, their shared parts, and :func:`publish`, which keeps a picture with its table.

A drawing function takes one tidy frame and returns a figure; each stage has its own in ``figures.py``. So a figure can be
drawn again from the table that lies beside it, and a test does so.
"""

import html
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.core.pylabtools import print_figure
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.run.files import write_text_atomically
from lib.run.stage import Stage

Draw = Callable[[pd.DataFrame], Figure]

ARM_COLOURS = {
    "baseline": "#BBBBBB",
    "untuned": "#66CCEE",
    "aligned": "#4477AA",
    "reconstruction": "#999933",
    "shuffled": "#EE6677",
    "random": "#CCBB44",
    "random-untuned": "#DDCC77",
    "random-weights": "#AA3377",
    "ridge": "#117733",
    "probe": "#44AA99",
    "random-sae": "#332288",
    "random-direction": "#228833",
    "mean-difference": "#EE9955",
    "annotators": "#222222",
}
"""Arm of alignment or steering -> its fixed colour."""

LINE_STYLES = ("-", "--", ":", "-.")
"""For the layers of one arm, or for more models than there are distinct colours."""


def _drawn(draw: Draw, frame: pd.DataFrame, notices: list[str]) -> Figure:
    """Draw with the one look of all figures."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    plt.rcParams |= {
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "moral-indifference-companion",
    }
    figure = draw(frame)
    if notices:
        figure.supxlabel(" ".join(notices), fontsize="x-small", color="0.35", x=0.01, ha="left")
    return figure


def publish(stage: Stage, name: str, draw: Draw, frame: pd.DataFrame, alt: str) -> None:
    """Draw a figure, show it with caption and alternative text, and keep it beside the table it was drawn from.

    The caption is the first sentence of ``draw``'s docstring. What every reader must know of the run (demo data, a
    substitute for a column) stands below the picture.

    Files go to ``<run>/figures/<name>.{svg,png,csv,json}``, outside the stage's directory: drawing is not a result. The
    JSON holds caption, ``alt`` (what a reader who does not see the picture should know), the drawing function and the types
    of the table's columns, which is all that :func:`redraw` needs.
    """
    figure = keep(stage.run_dir / "figures", name, draw, frame, stage=stage.name, notices=stage.notices(), alt=alt)
    encoded = print_figure(figure, base64=True, bbox_inches=None, dpi=100)
    plt.close(figure)
    image = f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(alt)}">'
    caption = f"<figcaption>{html.escape(' '.join([caption_of(draw), *stage.notices()]))}</figcaption>"
    display(HTML(f"<figure>{image}{caption}</figure>"))  # type: ignore[no-untyped-call]


def keep(
    folder: Path, name: str, draw: Draw, frame: pd.DataFrame, *, stage: str, notices: list[str], alt: str
) -> Figure:
    """Draw a figure and keep it in ``folder`` as :func:`publish` does, for a reader of ``stage``; return it, still open."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = {
        "caption": caption_of(draw),
        "alt": alt,
        "draw": f"{draw.__module__}.{draw.__name__}",
        "notices": notices,
        "stage": stage,
        "dtypes": {str(column): str(dtype) for column, dtype in frame.dtypes.items()},
    }
    figure = _drawn(draw, frame, notices)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    # Nine digits, so that a figure drawn again from its table is the same figure.
    write_text_atomically(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.9g"))
    write_text_atomically(folder / f"{name}.json", json.dumps(notes, indent=1, ensure_ascii=False) + "\n")
    return figure


def redraw(table: Path) -> Figure:
    """Draw a published figure again from its table (``<name>.csv``) and the notes beside it (``<name>.json``)."""
    notes = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    frame = pd.read_csv(table, keep_default_na=False, na_values=[""]).astype(notes["dtypes"])
    return _drawn(pkgutil.resolve_name(notes["draw"]), frame, notes["notices"])


def caption_of(draw: Draw) -> str:
    """Return the first sentence of a drawing function's docstring, without what it says about its argument."""
    first = inspect.cleandoc(draw.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    without_argument = re.sub(r"[;,.:]?\s*``\w+`` (is|as|has|holds)\b.*$", "", first)
    return without_argument.replace("``", "").rstrip(".") + "."


def folded(frame: pd.DataFrame, summary: str) -> HTML:
    """Return a table that stays closed behind a line of text until the reader opens it; all cells are escaped."""
    body = frame.to_html(index=False, escape=True, border=0)
    return HTML(f"<details><summary>{html.escape(summary)}</summary>{body}</details>")  # type: ignore[no-untyped-call]


# ------------------------------------------------------------------------------- parts of several figures


def lines(
    ax: Axes, frame: pd.DataFrame, group: str, colours: Mapping[str, Any], x: str = "layer", **style: Any
) -> None:
    """Draw one line with its interval (columns ``value, ci_low, ci_high``) per group."""
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
    last = max([1, *(max(line.get_xdata()) for line in ax.lines if len(line.get_xdata()))])
    ax.set_xlabel("after layer (index of the decoder block)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    depth = ax.secondary_xaxis("top", functions=(lambda layer: layer / last, lambda depth: depth * last))
    depth.set_xlabel("relative depth", fontsize="x-small")
    depth.tick_params(labelsize="x-small")


def legend(ax: Axes, title: str | None = None) -> None:
    """Put the legend outside, at the right, where it hides no data."""
    ax.legend(title=title, frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))


def arm_label(arm: str, layer: Any) -> str:
    """Name an arm of steering and its layer; a steered arm without one has several at once."""
    where = "several layers" if pd.isna(layer) else f"layer {layer}"
    return arm if arm == "baseline" else f"{arm}, {where}"
