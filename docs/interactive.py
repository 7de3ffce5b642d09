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
    chosen = {
        kind: list(_lines(part, ["model", "pooling"], value="gain")) for kind, part in frame.groupby("kind", sort=False)
    }
    units = {kind: f"gain, {GAIN_UNITS[str(kind)]}" for kind in chosen}
    return _with_menu(chosen, units)


def opposing_cosines(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Cosine of opposing prototypes by layer, one line per model and reading; the foundation is chosen.

    Args:
        tables: model -> the cosines of stage 03.
    """
    frame = pd.concat([table.assign(model=model) for model, table in tables.items()])
    frame = frame[(frame["metric"] == "opposing_cosine") & frame["arm"].isin(ARMS)].dropna(subset="layer")
    frame = frame.assign(reading=frame["arm"].map(ARMS))
    chosen = {
        name: list(_lines(frame[frame["foundation"] == name], ["reading", "model"], value="value"))
        for name in ("all", *FOUNDATIONS)
    }
    return _with_menu(chosen, dict.fromkeys(chosen, "cosine of opposing prototypes"))


def _lines(frame: pd.DataFrame, by: list[str], *, value: str) -> Iterator[go.Scatter]:
    """Draw a line per pair of names ``by``, the first as a colour, the second as a dash; bars are 95% intervals."""
    colours = dict(zip(frame[by[0]].unique(), cycle(COLOURS_OF_LINES.as_hex()), strict=False))
    dashes = dict(zip(frame[by[1]].unique(), cycle(DASHES), strict=False))
    for (first, second), line in frame.groupby(by, sort=False):
        ends = {"array": line["ci_high"] - line[value], "arrayminus": line[value] - line["ci_low"]}
        yield go.Scatter(
            x=line["layer"], y=line[value], name=f"{first}, {second}", mode="lines+markers",
            line={"color": colours[first], "dash": dashes[second]}, error_y=ends | {"thickness": 1},
        )  # fmt: skip


def _with_menu(chosen: Mapping[str, list[go.Scatter]], labels: Mapping[str, str]) -> go.Figure:
    """Put the lines of every choice into one figure, of which a menu shows one."""
    first, buttons = next(iter(chosen)), []
    for choice in chosen:
        visible = [name == choice for name, lines in chosen.items() for _ in lines]
        seen = [{"visible": visible}, {"yaxis.title.text": labels[choice]}]
        buttons.append({"label": choice, "method": "update", "args": seen})
    figure = go.Figure([line.update(visible=name == first) for name, lines in chosen.items() for line in lines])
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.15, "yanchor": "top"}
    return figure.update_layout(
        updatemenus=[menu], height=480, template="plotly_white", margin={"l": 60, "r": 20, "t": 60, "b": 40},
        xaxis_title="layer", yaxis_title=labels[first], legend={"orientation": "h", "y": -0.2}, hovermode="closest",
    )  # fmt: skip
