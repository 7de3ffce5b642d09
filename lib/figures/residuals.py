"""Figures of stage 2: what the residual streams look like before any analysis."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from lib.figures import style


def residual_norms(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Norm of the residual stream by layer, one line a token position.

    ``frame`` has columns ``layer``, ``position`` (first, second, ..., last), ``norm``, ``ci_low``, ``ci_high``.
    """
    ax = style.axes(ax, figsize=(7, 4))
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
    # Plain numbers; those between powers of ten only where there are less than two of these.
    for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(title="token position", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax
