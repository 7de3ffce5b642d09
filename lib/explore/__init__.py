"""Look inside a model at one action: its ten similarities, its neighbours among annotated actions, its path, its latents.

Beside the similarities stand those of the model's untrained twin and of the words alone. Everything is read from a finished run;
only what the typed action needs is computed. ``explore.page("profiles/demo.yaml")`` shows the page in a notebook: plain HTML and
SVG (:mod:`lib.explore.rendering`) instead of drawn figures, so that an answer comes within a second.
"""

import contextlib
import functools
import html
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from tqdm.notebook import tqdm

from lib.activations import extraction, models
from lib.activations.store import ActivationStore, open_store
from lib.comparison.twins import twin_of
from lib.diagnosis.categorical import prototypes
from lib.diagnosis.controls import words_only
from lib.diagnosis.layers import with_labels
from lib.explore.rendering import View, render, render_answers
from lib.paper import CATEGORIES, POOLINGS, TEMPLATE
from lib.run.files import CompanionError, resolve
from lib.run.profile import Profile, load_profile
from lib.sae import files
from lib.sae.rows import folder_of
from lib.sae.tokens import pooled_latents
from lib.steering.generation import Decoding, answer_batch, layer_devices
from lib.steering.interventions import Intervention
from lib.steering.loading import ArmLoader

Progress = Callable[[Iterable[int]], Iterator[int]]

DECODING = Decoding(max_new_tokens=16, temperature=0.0, top_p=1.0, repetition_penalty=1.1)
"""Short and greedy: the same question has the same answer."""


class ExplorerError(CompanionError):
    """The page was asked for something that this run does not have."""


class Reference(NamedTuple):
    """The diagnosis subset at one layer and pooling: its mean, and prototypes [10, width] of its centred typical rows."""

    centre: np.ndarray
    prototypes: np.ndarray


@dataclass
class Explorer:
    """One model of a run, open for questions. Make one with :func:`open_explorer`."""

    model: models.TransformersModel
    store: ActivationStore
    annotations: pd.DataFrame
    subset: pd.DataFrame
    sae: Path
    alignment: Path
    template: str = TEMPLATE
    references: dict[tuple[int, str], Reference] = field(default_factory=dict)
    directions: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    """Unit vectors of all annotated actions, [rows, width], at the layer and pooling asked for last."""

    @property
    def steerable(self) -> list[int]:
        """The layers that have an aligned autoencoder."""
        folders = self.alignment.glob("layer_*/aligned/cfg.json")
        return sorted(int(path.parts[-3].removeprefix("layer_")) for path in folders)

    def look(self, action: str, *, layer: int, pooling: str, progress: Progress = iter) -> View:
        """Read any text inside the model's prompt and compare it with what annotators said of actions near it.

        No text, or a layer or pooling that the run does not have, is an ``ExplorerError``. ``progress`` wraps the layers, whose
        prototypes are read the first time.
        """
        stream = self._read(action, layer=layer, pooling=pooling)
        layers = progress(range(self.store.layers))
        path = np.stack([similarities(stream[i], self.reference(i, pooling)) for i in layers])
        x = words_only([*self.subset["action"], action], self.store.width, seed=0)
        words = similarities(x[-1], reference_of(x[:-1], self.subset))
        nearest = self._nearest(stream[layer], layer=layer, pooling=pooling)
        human = nearest[list(CATEGORIES)].mean().to_numpy()
        latents = self._latents(action.strip(), stream[layer], layer=layer, pooling=pooling)
        return View(path[layer], words, human, nearest[["id", "action", "cosine"]], path, latents)

    def similarities(self, action: str, *, layer: int, pooling: str) -> np.ndarray:
        """Return the ten similarities of a text alone, [10], as the page shows of an untrained twin; errors as :meth:`look`."""
        return similarities(self._read(action, layer=layer, pooling=pooling)[layer], self.reference(layer, pooling))

    def _read(self, action: str, *, layer: int, pooling: str) -> np.ndarray:
        """Return what every layer holds of a text, [layer, width], if this run has the layer and the pooling."""
        if not action.strip():
            raise ExplorerError("type an action first, such as: returning a lost purse")
        layers, poolings = range(self.store.layers), self.store.poolings
        if layer not in layers or pooling not in poolings:
            raise ExplorerError(f"this run has layers 0 to {layers[-1]} and poolings {', '.join(poolings)}")
        prompts = extraction.tokenize(self.model.tokenizer, [action.strip()], template=self.template)
        pooled = extraction.pooled_residuals(self.model, prompts, rows=range(1)).cpu().numpy()
        return pooled[POOLINGS.index(pooling), :, 0]

    def answers(self, text: str, *, layer: int, steered: bool) -> dict[str, str]:
        """Answer a text, and once more steered if asked; a layer without an aligned autoencoder is an ``ExplorerError``."""
        conditions = {"as it is": Intervention("baseline")}
        if steered:
            if layer not in self.steerable:
                have = f"layers {self.steerable}" if self.steerable else "none of this model's layers"
                raise ExplorerError(f"layer {layer} has no aligned autoencoder; steering is possible at {have}")
            conditions["steered"] = Intervention("aligned", (layer,))
        folders = {"sae": self.sae, "alignment": self.alignment}
        load_arm = ArmLoader(**folders, d_in=models.width(self.model), devices=layer_devices(self.model))
        answer = functools.partial(answer_batch, self.model, prompts=[text], decoding=DECODING, seed=0)
        return {name: answer(load_arm(condition))[0][0]["response"] for name, condition in conditions.items()}

    def reference(self, layer: int, pooling: str) -> Reference:
        """Return the mean and the prototypes of the diagnosis subset; a category without typical rows has none (nan)."""
        if (layer, pooling) not in self.references:
            x = self.store.read(layer, pooling, self.store.rows_of(self.subset["action"]))
            self.references[layer, pooling] = reference_of(x, self.subset)
        return self.references[layer, pooling]

    def _nearest(self, stream: np.ndarray, *, layer: int, pooling: str) -> pd.DataFrame:
        centre = self.reference(layer, pooling).centre
        if (layer, pooling) not in self.directions:
            x = self.store.read(layer, pooling, self.store.rows_of(self.annotations["action"]))
            self.directions = {(layer, pooling): _unit(x - centre)}
        cosine = self.directions[layer, pooling] @ _unit(stream - centre)
        return self.annotations.assign(cosine=cosine).nlargest(5, "cosine").reset_index(drop=True)

    @torch.no_grad()
    def _latents(self, action: str, stream: np.ndarray, *, layer: int, pooling: str) -> pd.DataFrame:
        columns = ["latent", "activation", "category", "correlation"]
        folder = self.sae / folder_of(layer)
        about = files.metadata(folder / "pretrained") if (folder / "pretrained").exists() else {}
        if about.get("pooling") != pooling:
            return pd.DataFrame(columns=columns)
        sae = files.load(folder / "pretrained")
        if about.get("kind") == files.TOKENS:
            read = {"sae": sae, "layer": layer, "pooling": pooling, "template": self.template}
            activations = pooled_latents(self.model, [action], **read)[0].toarray()[0]
        else:
            activations = sae.encode(torch.from_numpy(stream)).numpy()
        table = pd.read_parquet(folder / "features.parquet").assign(activation=lambda t: activations[t["latent"]])
        active = table[table["activation"] > 0].nlargest(8, "activation")
        own = [row[f"r_{row['category']}"] for _, row in active.iterrows()]
        return active.assign(correlation=own)[columns].reset_index(drop=True)


def open_explorer(profile: Profile, model: str) -> Explorer:
    """Open a model of a finished run; one that the profile or the run lacks, or that is remote, is an ``ExplorerError``."""
    if model not in profile.sources:
        raise ExplorerError(f"the profile has no model {model!r}; it has {', '.join(profile.sources)}")
    run = resolve(f"runs/{profile.run}")
    if not (run / "activations" / model / "manifest.json").exists():
        raise ExplorerError(f"run {profile.run!r} has not read {model!r} yet; `make reproduce` with its profile does")
    values = profile.stage_parameters("activations", model)
    if values["device"] == "remote":
        raise ExplorerError("device is remote, but the page needs the model on this machine; give another device")
    annotations = pd.read_parquet(run / "vectors" / "annotations.parquet")
    # Several judgments of one action are averaged: a neighbour counts once.
    of_action = annotations.groupby("action", sort=False).agg({"id": "first"} | dict.fromkeys(CATEGORIES, "mean"))
    subset = with_labels(pd.read_parquet(run / "vectors" / "subset.parquet"), annotations)
    origin = {key: values[key] for key in ("device", "revision", "trust_remote_code", "untrained")}
    opened = models.open_model(values["model_source"], dtype=profile.dtype, **origin)
    store = open_store(run / "activations" / model)
    of_action = of_action[of_action.index.isin(store.index["action"])]
    folders = {"sae": run / "sae" / model, "alignment": run / "alignment" / model}
    return Explorer(opened, store, of_action.reset_index(), subset, **folders, template=values["template"])


def reference_of(x: np.ndarray, subset: pd.DataFrame) -> Reference:
    """Return the mean of representations [rows, width] of the diagnosis subset, and prototypes of its centred typical rows."""
    centre = x.mean(axis=0)
    typical = subset["is_prototype"].to_numpy(bool)
    categories = subset.loc[typical, "category"].to_numpy(object)
    return Reference(centre, prototypes(x[typical] - centre, categories, minimum=1)[0])


def similarities(stream: np.ndarray, reference: Reference) -> np.ndarray:
    """Return the cosines of one representation [width] to the ten prototypes, [10]."""
    return _unit(reference.prototypes) @ _unit(stream - reference.centre)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def page(profile: str, show_content: bool = False) -> widgets.Widget:
    """Return the page for the finished run of a profile; ``show_content`` shows texts of actions from the start."""
    loaded = load_profile(profile)
    explorer = functools.cache(functools.partial(open_explorer, loaded))
    wide = {"layout": widgets.Layout(width="95%", max_width="46em"), "continuous_update": False}
    action = widgets.Text(placeholder="returning a lost purse", description="action", **wide)
    model = widgets.Dropdown(options=list(loaded.sources), value=loaded.sae_model, description="model")
    layers = range(explorer(loaded.sae_model).store.layers)
    layer = widgets.Dropdown(options=layers, description="layer", value=loaded.layers[0])
    pooling = widgets.Dropdown(options=POOLINGS, value=loaded.pooling, description="pooling")
    texts = widgets.Checkbox(show_content, description="show the texts of annotated actions", indent=False)
    steered = widgets.Checkbox(description="answer, with and without steering", indent=False)
    button = widgets.Button(description="Look", button_style="primary")
    waiting, result = widgets.HBox(), widgets.HTML()

    def progress(layers: Iterable[int]) -> Iterator[int]:
        bar = tqdm(layers, desc="prototypes", unit="layer", display=False)
        waiting.children = [bar.container]
        yield from bar
        waiting.children = []

    def look(_: Any) -> None:
        started = time.perf_counter()
        where = {"layer": layer.value, "pooling": pooling.value}
        shown = ""
        try:
            asked = explorer(model.value)
            view = asked.look(action.value, progress=progress, **where)
            twin = twin_of(model.value, loaded.twins)
            of_twin = explorer(twin).similarities(action.value, **where) if twin else None
            shown = render(view, layer=layer.value, show_content=texts.value, twin=of_twin)
            if steered.value:
                shown += render_answers(asked.answers(action.value, layer=layer.value, steered=True))
        except CompanionError as error:
            shown += f'<p class="message">{html.escape(str(error))}</p>'
        result.value = f"{shown}<p><small>{time.perf_counter() - started:.2f} s</small></p>"

    def new_model(_: Any) -> None:
        with contextlib.suppress(CompanionError):  # looking says what is wrong
            chosen, layer.options = layer.value, range(explorer(model.value).store.layers)
            layer.value = min(chosen, layer.options[-1])
        look(None)

    model.observe(new_model, "value")
    button.on_click(look)
    for control in (action, layer, pooling, texts, steered):
        control.observe(look, "value")
    rows = ([model, layer, pooling], [texts, steered, button])
    boxes = [widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")) for row in rows]
    return widgets.VBox([action, *boxes, waiting, result])
