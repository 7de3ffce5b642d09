"""Figures of stage 02: what the residual streams look like before any analysis."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lib import plotting


def residual_norms(frame: pd.DataFrame) -> Figure:
    """Norm of the residual stream after every layer, by position of the token in the prompt (mean and 95% interval).

    ``frame`` has columns ``model`` (one), ``layer``, ``position`` (first, second, ..., last), ``norm``, ``ci_low``,
    ``ci_high``.
    """
    figure, ax = plt.subplots(figsize=(7.5, 4))
    positions = frame["position"].unique()
    colours = dict(zip(positions, sns.color_palette("viridis", len(positions)), strict=True))
    plotting.lines(ax, frame.rename(columns={"norm": "value"}), "position", colours)
    ax.set(title=frame["model"].iloc[0], ylabel="norm (model units)", yscale="log")
    # Powers of ten alone are too few labels where the norms span less than two of them.
    narrow = frame["norm"].max() < 100 * frame["norm"].min()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6) if narrow else (1,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    plotting.layer_axis(ax)
    plotting.legend(ax, "token position")
    return figure
