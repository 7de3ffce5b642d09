"""Figures of stage 1: the moral vectors of the annotations."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lib.figures import style
from lib.foundations import FOUNDATION_COLOURS


def typicality_counts(frame: pd.DataFrame) -> Axes:
    """Rows by foundation, polarity and typicality: ``frame`` has ``foundation, polarity, typicality, rows``."""
    _, axes = plt.subplots(1, len(FOUNDATION_COLOURS), figsize=(11, 3.2), sharey=True)
    levels = sorted(frame["typicality"].unique())
    for ax, foundation in zip(axes, FOUNDATION_COLOURS, strict=True):
        part = frame[frame["foundation"] == foundation]
        sns.barplot(
            part, x="typicality", y="rows", hue="polarity", hue_order=list(style.POLARITY_COLOURS),
            palette=style.POLARITY_COLOURS, order=levels, ax=ax, legend=ax is axes[-1],
        )  # fmt: skip
        ax.set(title=foundation, xlabel="typicality (0 to 1)", ylabel="exploded rows")
        ax.tick_params(axis="x", rotation=60)
    style.legend(axes[-1], "polarity")
    return axes[0]
