"""What the page shows of one action, as HTML: tables, and bars and paths in SVG, each with a text of its own."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lib.paper import CATEGORIES, COLOURS


class View(NamedTuple):
    """What a model holds of one action.

    Attributes:
        similarities: cosine of the centred action to the ten prototypes, [10]; nan where a category has no prototype.
        words: the same of the words without a model: each a fixed random vector, averaged.
        human: mean moral vector of the nearest annotated actions, [10], 0 to 1.
        nearest: those actions: ``id``, ``action``, ``cosine``.
        path: the ten similarities at every layer, [layer, 10].
        latents: the most active latents: ``latent, activation, category`` (of its largest correlation), ``correlation``.
    """

    similarities: np.ndarray
    words: np.ndarray
    human: np.ndarray
    nearest: pd.DataFrame
    path: np.ndarray
    latents: pd.DataFrame


def render(view: View, *, layer: int, show_content: bool, twin: np.ndarray | None = None) -> str:
    """Write what a model holds of one action as HTML: bars, path (with ``layer`` marked), neighbours and latents.

    ``twin`` holds the similarities of the model's untrained twin, [10], if the run has one.
    """
    columns = {
        "model: cosine to the prototype": view.similarities,
        "its untrained twin": twin,
        "words alone": view.words,
        "annotators: nearest annotated actions": view.human,
    }
    bars = {"": CATEGORIES} | {
        name: map(_bar, values, COLOURS.values()) for name, values in columns.items() if values is not None
    }
    near = view.nearest.rename(columns={"action": "text"})[["id", "cosine", "text"]]
    largest = view.latents["category"] + view.latents["correlation"].map(" ({:+.2f})".format)
    latents = view.latents[["latent", "activation"]].assign(**{"largest correlation": largest})
    none = "<p>This layer and pooling have no autoencoder in this run.</p>"
    sections = {
        "Path through the layers": _path(view.path, layer),
        "Nearest annotated actions": _table("nearest", near if show_content else near.assign(text="hidden")),
        "Latents it activates": _table("latents", latents) if len(latents) else none,
    }
    shown = "".join(f"<h4>{title}</h4>{section}" for title, section in sections.items())
    return _table("similarities", pd.DataFrame(bars), escape=False) + shown


def render_answers(answers: dict[str, str]) -> str:
    """Write answers by condition as HTML."""
    said = pd.Series(answers).replace("", "(empty)")
    return "<h4>Answer</h4>" + _table("answers", said.reset_index(), header=False)


def _table(name: str, frame: pd.DataFrame, **options: Any) -> str:
    with pd.option_context("display.max_colwidth", None):
        return frame.to_html(
            classes=name, index=False, border=0, justify="center", float_format="{:.2f}".format, **options
        )


def _bar(value: float, colour: str) -> str:
    if np.isnan(value):
        return "no prototype"
    left, width = 60 + min(value, 0) * 60, abs(value) * 60
    return (
        f'<svg width="120" height="12" role="img" aria-label="{value:.2f}"><rect x="{left:.1f}" y="1" '
        f'width="{width:.1f}" height="10" fill="{colour}"/><path d="M60 0V12" stroke="currentColor"/></svg> {value:.2f}'
    )


def _path(path: np.ndarray, chosen: int) -> str:
    """Draw the ten similarities over layers, one line per category; the dashed line is the chosen layer."""
    step, lines = 320 / max(len(path) - 1, 1), ""
    for index, name in enumerate(CATEGORIES):
        heights = ((layer, value) for layer, value in enumerate(path[:, index]) if not np.isnan(value))
        points = " ".join(f"{20 + layer * step:.1f},{70 - 60 * value:.1f}" for layer, value in heights)
        dash = ' stroke-dasharray="5 3"' if index % 2 else ""
        lines += f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"{dash}/>'
    in_words = ", ".join(f"{name} {value:.2f}" for name, value in zip(CATEGORIES, path[-1], strict=True))
    return (
        f'<svg class="path" width="360" height="140" role="img" aria-label="Similarities in the last layer: {in_words}">'
        '<path d="M20 70H340" stroke="currentColor" stroke-opacity=".4"/>'
        f'<path d="M{20 + chosen * step:.1f} 5V135" stroke="currentColor" stroke-dasharray="2 3"/>{lines}</svg>'
        "<p><small>Layers 0 to the last from left to right, cosine from -1 to 1; whole lines virtues, broken lines vices, in "
        "the colours above.</small></p>"
    )
