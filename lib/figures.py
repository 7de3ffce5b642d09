"""Every figure of the companion: one function each, a tidy frame in and Axes out.

One theme and one colour a category (``lib.foundations.COLOURS``) hold everywhere, so a reader learns the legend once.
:func:`publish` keeps the picture and the table it was drawn from together.
"""

import base64
import html
import io
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


def _axes(ax: Axes | None, **size: Any) -> Axes:
    return ax if ax is not None else plt.subplots(**size)[1]


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
