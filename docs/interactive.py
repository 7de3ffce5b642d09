"""The two main figures of the findings for a reader's own hands: choose a kind, a foundation or a model, point at a value.

Plotly draws them in the reader's browser. Its script lies in the book, so they work from disk and without network.
"""

from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

import pandas as pd
import plotly
import plotly.graph_objects as go

from lib.diagnosis.decisions import GAIN_UNITS
from lib.diagnosis.figures import COLOURS_OF_LINES, NOT_OPPOSED, REPRESENTATIONS
from lib.paper import FOUNDATIONS
from workflow.headline import Found

SCRIPT = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
"""What draws, for the book's ``_static``."""

CONFIG = {"displaylogo": False, "responsive": True}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

ARMS = {"published": REPRESENTATIONS["published"]} | NOT_OPPOSED | {"length_removed": REPRESENTATIONS["length_removed"]}


def page(found: Found) -> str:
    """Return both figures as Markdown with raw HTML, each below its title and a sentence."""
    gained = {model: found.table("diagnosis", "gains", model) for model in found.models}
    cosines = {model: found.table("diagnosis", "cosine", model) for model in found.models}
    parts = (
        ("What a model adds to words", "gains", gains(gained)),
        ("What the published cosine measures", "cosines", opposing_cosines(cosines)),
    )
    options = {"full_html": False, "include_plotlyjs": False, "config": CONFIG}
    figures = (
        f"## {title}\n\n```{{raw}} html\n{figure.to_html(div_id=name, **options)}\n```" for title, name, figure in parts
    )
    return "\n\n".join(['```{raw} html\n<script src="_static/plotly.min.js"></script>\n```', *figures])


def gains(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Gain of words + model over words alone by layer, one line per model and pooling; the kind is chosen.

    Args:
        tables: model -> the gains of stage 03.
    """
    frame = pd.concat(tables, names=["model"]).reset_index("model").dropna(subset="layer")
    frame = frame.assign(pooling=frame["pooling"].str.replace("_", " "))
    chosen = {
        kind: list(_lines(part, value="gain", colour="model", dash="pooling"))
        for kind, part in frame.groupby("kind", sort=False)
    }
    units = {kind: f"gain, {GAIN_UNITS[str(kind)]}" for kind in chosen}
    # Here a click is for one line; else it is for all lines of a model.
    return _with_menu(chosen, units, opens_with=list(tables)).update_layout(legend_groupclick="toggleitem")


def opposing_cosines(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Cosine of opposing prototypes by layer, one line per model and reading; the foundation is chosen.

    Args:
        tables: model -> the cosines of stage 03; the figure opens with the first.
    """
    frame = pd.concat([table.assign(model=model) for model, table in tables.items()])
    frame = frame[(frame["metric"] == "opposing_cosine") & frame["arm"].isin(ARMS)].dropna(subset="layer")
    frame = frame.assign(reading=frame["arm"].map(ARMS))
    chosen = {
        name: list(_lines(frame[frame["foundation"] == name], value="value", colour="reading", dash="model"))
        for name in ("all", *FOUNDATIONS)
    }
    return _with_menu(chosen, dict.fromkeys(chosen, "cosine of opposing prototypes"), opens_with=list(tables)[:1])


def _lines(frame: pd.DataFrame, *, value: str, colour: str, dash: str) -> Iterator[go.Scatter]:
    """Draw a line per pair of names in the columns ``colour`` and ``dash``, of which one is the model; bars are 95% intervals."""
    colours = dict(zip(frame[colour].unique(), cycle(COLOURS_OF_LINES.as_hex()), strict=False))
    dashes = dict(zip(frame[dash].unique(), cycle(DASHES), strict=False))
    other = dash if colour == "model" else colour
    for (model, name), line in frame.groupby(["model", other], sort=False):
        ends = {"array": line["ci_high"] - line[value], "arrayminus": line[value] - line["ci_low"]}
        style = {"color": colours[line[colour].iloc[0]], "dash": dashes[line[dash].iloc[0]]}
        yield go.Scatter(
            x=line["layer"], y=line[value], name=name, mode="lines+markers", line=style, error_y=ends | {"thickness": 1},
            legendgroup=model, legendgrouptitle_text=model, customdata=line[["ci_low", "ci_high"]],
            hovertemplate=f"{model}, {name}<br>layer %{{x}}: %{{y:.3f}} "
            "(%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
        )  # fmt: skip


def _with_menu(
    chosen: Mapping[str, list[go.Scatter]], labels: Mapping[str, str], *, opens_with: list[str]
) -> go.Figure:
    """Put the lines of every choice into one figure, of which a menu shows one; other models wait in the legend."""
    first, buttons = next(iter(chosen)), []

    def visible(choice: str) -> list[bool | str]:
        of_choice = [(name == choice, line.legendgroup) for name, lines in chosen.items() for line in lines]
        return [seen and (model in opens_with or "legendonly") for seen, model in of_choice]

    for choice in chosen:
        seen = [{"visible": visible(choice)}, {"yaxis.title.text": labels[choice]}]
        buttons.append({"label": choice, "method": "update", "args": seen})
    lines = [line for part in chosen.values() for line in part]
    figure = go.Figure([line.update(visible=seen) for line, seen in zip(lines, visible(first), strict=True)])
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return figure.update_layout(
        updatemenus=[menu], height=700, template="plotly_white", margin={"l": 60, "r": 20, "t": 60, "b": 40},
        xaxis_title="layer", yaxis_title=labels[first], legend={"orientation": "h", "y": -0.15}, hovermode="closest",
    )  # fmt: skip
