"""The interactive page in JupyterLab: type an action and look inside a model (:mod:`lib.explorer`).

Plain HTML and SVG instead of drawn figures, so that an answer comes within a second. Texts of annotated actions stay
hidden unless the reader ticks the box.
"""

import html
import time
from typing import Any

import ipywidgets as widgets
import numpy as np

from lib.explorer import Explorer, ExplorerError, View, open_explorer
from lib.foundations import CATEGORIES, COLOURS
from lib.parameters import Pooling
from lib.profiles import load_profile


def page(profile: str, show_content: bool = False) -> widgets.Widget:
    """Return the page for a finished run.

    Args:
        profile: path of the run's profile.
        show_content: whether texts of annotated actions are shown from the start.
    """
    return _Page(profile, show_content).widget


class _Page:
    def __init__(self, profile: str, show_content: bool) -> None:
        self.profile = load_profile(profile)
        self.explorers: dict[str, Explorer] = {}
        wide = widgets.Layout(width="95%", max_width="46em")
        self.action = widgets.Text(placeholder="returning a lost purse", description="action", layout=wide)
        self.model = widgets.Dropdown(
            options=list(self.profile.sources), value=self.profile.sae_model, description="model"
        )
        self.layer = widgets.Dropdown(options=self._explorer().layers, description="layer")
        self.layer.value = self.profile.layers[0]
        self.pooling = widgets.Dropdown(options=Pooling.__args__, value=self.profile.pooling, description="pooling")
        self.texts = widgets.Checkbox(
            value=show_content, description="show the texts of annotated actions", indent=False
        )
        self.steered = widgets.Checkbox(value=False, description="answer, with and without steering", indent=False)
        self.button = widgets.Button(description="Look", button_style="primary")
        self.result = widgets.HTML()
        self.model.observe(self._new_model, "value")
        self.button.on_click(self._look)
        self.action.continuous_update = False
        for control in (self.action, self.layer, self.pooling, self.texts, self.steered):
            control.observe(self._look, "value")
        choices = widgets.HBox([self.model, self.layer, self.pooling], layout=widgets.Layout(flex_flow="row wrap"))
        switches = widgets.HBox([self.texts, self.steered, self.button], layout=widgets.Layout(flex_flow="row wrap"))
        self.widget = widgets.VBox([self.action, choices, switches, self.result])

    def _explorer(self) -> Explorer:
        name = self.model.value
        if name not in self.explorers:
            self.explorers[name] = open_explorer(self.profile, name)
        return self.explorers[name]

    def _new_model(self, change: dict[str, Any]) -> None:
        try:
            layers = self._explorer().layers
        except ExplorerError as error:
            self.result.value = _message(str(error))
            return
        wanted = self.layer.value
        self.layer.options = layers
        self.layer.value = wanted if wanted in layers else layers[-1]
        self._look(None)

    def _look(self, _: Any) -> None:
        if not self.action.value.strip():
            return
        started = time.perf_counter()
        try:
            explorer = self._explorer()
            view = explorer.look(self.action.value, self.layer.value, self.pooling.value)
            shown = render(view, self.layer.value, self.texts.value)
            if self.steered.value:
                shown += self._answers(explorer)
        except ExplorerError as error:
            self.result.value = _message(str(error))
            return
        self.result.value = f"{shown}<p><small>{time.perf_counter() - started:.2f} s</small></p>"

    def _answers(self, explorer: Explorer) -> str:
        try:
            return render_answers(explorer.answers(self.action.value, self.layer.value, steered=True))
        except ExplorerError as error:
            return _message(str(error))


def render(view: View, layer: int, show_content: bool) -> str:
    """Write what a model holds of one action as HTML: bars, path, neighbours and latents."""
    rows = "".join(
        f"<tr><th>{name}</th><td>{_bar(model, COLOURS[name])}</td><td>{_bar(human, COLOURS[name])}</td></tr>"
        for name, model, human in zip(CATEGORIES, view.similarities, view.human, strict=True)
    )
    near = "".join(
        f"<tr><td>{row.id}</td><td>{row.cosine:.2f}</td>"
        f"<td>{html.escape(row.action) if show_content else 'hidden'}</td></tr>"
        for row in view.nearest.itertuples()
    )
    latents = "".join(
        f"<tr><td>{row.latent}</td><td>{row.activation:.2f}</td><td>{row.category} ({row.correlation:+.2f})</td></tr>"
        for row in view.latents.itertuples()
    )
    return (
        '<table class="similarities"><tr><th></th><th>model: cosine to the prototype</th>'
        f"<th>people: nearest annotated actions</th></tr>{rows}</table>"
        f"<h4>Path through the layers</h4>{_path(view.path, layer)}"
        f'<h4>Nearest annotated actions</h4><table class="nearest"><tr><th>id</th><th>cosine</th><th>text</th></tr>{near}</table>'
        "<h4>Latents it activates</h4>"
        + (
            f'<table class="latents"><tr><th>latent</th><th>activation</th><th>largest correlation</th></tr>{latents}</table>'
            if latents
            else "<p>This layer and pooling have no autoencoder in this run.</p>"
        )
    )


def render_answers(answers: dict[str, str]) -> str:
    """Write the answers of the model, as it is and steered, as HTML."""
    rows = "".join(
        f"<tr><th>{name}</th><td>{html.escape(text) or '(empty)'}</td></tr>" for name, text in answers.items()
    )
    return f'<h4>Answer</h4><table class="answers">{rows}</table>'


def _bar(value: float, colour: str) -> str:
    if np.isnan(value):
        return "no prototype"
    left, width = 50 + min(value, 0) * 50, abs(value) * 50
    return (
        f'<svg width="120" height="12" role="img" aria-label="{value:.2f}"><rect x="{left * 1.2:.1f}" y="1" '
        f'width="{width * 1.2:.1f}" height="10" fill="{colour}"/><path d="M60 0V12" stroke="currentColor"/></svg> {value:.2f}'
    )


def _path(path: np.ndarray, chosen: int) -> str:
    """Draw the ten similarities over layers: one line a category; the dashed line is the chosen layer."""
    step = 320 / max(len(path) - 1, 1)
    lines = []
    for index, name in enumerate(CATEGORIES):
        points = " ".join(
            f"{20 + layer * step:.1f},{70 - 60 * value:.1f}"
            for layer, value in enumerate(path[:, index])
            if not np.isnan(value)
        )
        dash = ' stroke-dasharray="5 3"' if index % 2 else ""
        lines.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"{dash}/>')
    end = path[-1]
    said = ", ".join(f"{name} {value:.2f}" for name, value in zip(CATEGORIES, end, strict=True))
    place = 20 + chosen * step
    return (
        f'<svg class="path" width="360" height="140" role="img" aria-label="Similarities in the last layer: {said}">'
        '<path d="M20 70H340" stroke="currentColor" stroke-opacity=".4"/>'
        f'<path d="M{place:.1f} 5V135" stroke="currentColor" stroke-dasharray="2 3"/>{"".join(lines)}</svg>'
        "<p><small>Layers 0 to the last from left to right, cosine from -1 to 1; whole lines virtues, broken lines vices, in "
        "the colours above.</small></p>"
    )


def _message(text: str) -> str:
    return f'<p class="message">{html.escape(text)}</p>'
