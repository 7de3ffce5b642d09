"""Look inside a model at one action: its ten similarities, its neighbours among people's judgments, its path, its latents.

The logic of the interactive page; :mod:`lib.explorer_page` shows it with widgets. Everything is read from a finished run,
so the page shows what the stages measured and computes only what the typed action needs.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import interventions, models, residuals, runs, steering
from lib.decoding import Decoding
from lib.foundations import CATEGORIES, category_of
from lib.profiles import Profile
from lib.sae import export
from lib.store import ActivationStore, open_store

DECODING = Decoding(max_new_tokens=16, temperature=0.0, top_p=1.0, repetition_penalty=1.1)
"""Short and greedy: the same question has the same answer."""

UNREAD = -1
"""No layer has been read yet."""


class ExplorerError(ValueError):
    """The page was asked for something that this run does not have."""


@dataclass(frozen=True)
class View:
    """What a model holds of one action.

    Attributes:
        similarities: cosine of the centred action to the ten prototypes, [10]; nan where a category has no prototype.
        human: mean moral vector of the nearest annotated actions, [10], 0 to 1.
        nearest: those actions: ``id``, ``action``, ``cosine``.
        path: the ten similarities at every layer, [layer, 10].
        latents: the most active latents: ``latent, activation, category`` (of its largest correlation), ``correlation``.
    """

    similarities: np.ndarray
    human: np.ndarray
    nearest: pd.DataFrame
    path: np.ndarray
    latents: pd.DataFrame


@dataclass
class Layer:
    """The annotated actions of one layer and pooling: their mean, and prototypes [10, width] of centred typical rows."""

    centre: np.ndarray
    prototypes: np.ndarray


@dataclass
class Explorer:
    """One model of a run, open for questions. Make one with :func:`open_explorer`."""

    model: models.TransformersModel
    store: ActivationStore
    annotations: pd.DataFrame
    subset: pd.DataFrame
    autoencoders: Path
    alignment: Path
    about: dict[tuple[int, str], Layer] = field(default_factory=dict)
    rows: tuple[int, str, np.ndarray] = (UNREAD, "", np.empty(0))

    @property
    def layers(self) -> list[int]:
        """The decoder blocks, counted from 0."""
        return list(range(self.store.layers))

    @property
    def steerable(self) -> list[int]:
        """The layers that have an aligned autoencoder."""
        found = self.alignment.glob("layer_*/aligned/cfg.json")
        return sorted(int(path.parts[-3].removeprefix("layer_")) for path in found)

    def look(self, action: str, layer: int, pooling: str, neighbours: int = 5) -> View:
        """Read an action and compare it with people's judgments.

        Args:
            action: any text; it is read inside the published prompt.
            layer: decoder block.
            pooling: one of the store's.
            neighbours: how many annotated actions make up ``human``.

        Raises:
            ExplorerError: no text, or a layer or pooling that the run does not have.
        """
        if not action.strip():
            raise ExplorerError("type an action first, such as: returning a lost purse")
        if layer not in self.layers or pooling not in self.store.poolings:
            raise ExplorerError(f"this run has layers {self.layers} and poolings {', '.join(self.store.poolings)}")
        prompts = residuals.tokenize(self.model.tokenizer, [action.strip()])
        pooled = residuals.pooled_residuals(self.model, prompts, range(1)).float().cpu().numpy()
        stream = pooled[residuals.POOLINGS.index(pooling), :, 0]
        path = np.stack([similarities(stream[i], self._layer(i, pooling)) for i in self.layers])
        nearest = self._nearest(stream[layer], layer, pooling, neighbours)
        human = nearest[list(CATEGORIES)].mean().to_numpy()
        nearest = nearest[["id", "action", "cosine"]].reset_index(drop=True)
        return View(path[layer], human, nearest, path, self._latents(stream[layer], layer, pooling))

    def answers(self, text: str, layer: int, steered: bool, seed: int = 0) -> dict[str, str]:
        """Let the model answer a text as it is and, if asked, with its aligned autoencoder put back behind ``layer``.

        Raises:
            ExplorerError: steering is asked for at a layer without an aligned autoencoder.
        """
        arms = {"as it is": interventions.BASELINE}
        if steered:
            if layer not in self.steerable:
                there = f"layers {self.steerable}" if self.steerable else "none of this model's layers"
                raise ExplorerError(f"layer {layer} has no aligned autoencoder; steering is possible at {there}")
            width = models.width(self.model)
            what = interventions.Intervention("aligned", layer)
            arms["steered"] = interventions.load_arm(what, self.autoencoders, self.alignment, width)
        return {
            name: steering.answer(self.model, arm, [text], DECODING, seed)[0]["response"] for name, arm in arms.items()
        }

    def _layer(self, layer: int, pooling: str) -> Layer:
        if (layer, pooling) not in self.about:
            x = self.store.read(layer, pooling)[self.store.rows_of(self.subset["action"])]
            centre = x.mean(axis=0)
            self.about[layer, pooling] = Layer(centre, prototypes(x - centre, self.subset))
        return self.about[layer, pooling]

    def _nearest(self, stream: np.ndarray, layer: int, pooling: str, count: int) -> pd.DataFrame:
        if self.rows[:2] != (layer, pooling):
            x = self.store.read(layer, pooling)[self.store.rows_of(self.annotations["action"])]
            centred = x - self._layer(layer, pooling).centre
            self.rows = (layer, pooling, _unit(centred))
        cosine = self.rows[2] @ _unit(stream - self._layer(layer, pooling).centre)
        return self.annotations.assign(cosine=cosine).nlargest(count, "cosine")

    @torch.no_grad()
    def _latents(self, stream: np.ndarray, layer: int, pooling: str, count: int = 8) -> pd.DataFrame:
        folder = self.autoencoders / f"layer_{layer:02d}"
        empty = pd.DataFrame(columns=["latent", "activation", "category", "correlation"])
        if not (folder / "pretrained").exists() or export.metadata(folder / "pretrained").get("pooling") != pooling:
            return empty
        latents = export.load(folder / "pretrained").encode(torch.from_numpy(stream)).numpy()
        order = np.argsort(-latents)[:count]
        table = pd.read_parquet(folder / "features.parquet").set_index("latent").loc[order[latents[order] > 0]]
        correlations = table[[f"r_{name}" for name in CATEGORIES]].to_numpy()
        largest = np.abs(correlations).argmax(axis=1)
        return pd.DataFrame(
            {
                "latent": table.index,
                "activation": latents[table.index],
                "category": [CATEGORIES[i] for i in largest],
                "correlation": correlations[np.arange(len(table)), largest],
            }
        )


def open_explorer(profile: Profile, model: str) -> Explorer:
    """Open a model of a finished run.

    Raises:
        ExplorerError: the profile has no such model, or the run has not read it; says what to run.
    """
    if model not in profile.sources:
        raise ExplorerError(f"the profile has no model {model!r}; it has {', '.join(profile.sources)}")
    run = runs.resolve(f"runs/{profile.run}")
    if not (run / "activations" / model / "manifest.json").exists():
        raise ExplorerError(f"run {profile.run!r} has not read {model!r} yet; `make reproduce` with its profile does")
    source = profile.sources[model]
    annotations = pd.read_parquet(run / "vectors" / "annotations.parquet")
    subset = pd.read_parquet(run / "vectors" / "subset.parquet").merge(annotations[["id", "action"]], on="id")
    # People's judgments of one action are averaged: a neighbour counts once.
    people = annotations.groupby("action", sort=False).agg({"id": "first"} | dict.fromkeys(CATEGORIES, "mean"))
    return Explorer(
        models.load(source.source, profile.dtype, revision=source.revision),
        open_store(run / "activations" / model),
        people.reset_index(),
        subset,
        run / "sae" / model,
        run / "alignment" / model,
    )


def prototypes(centred: np.ndarray, subset: pd.DataFrame) -> np.ndarray:
    """Return the mean centred representation of each category's typical rows, [10, width]; nan where it has none."""
    typical = subset["is_prototype"].to_numpy()
    names = np.array(
        [
            category_of(row.foundation, row.polarity) if row.polarity != "neutral" else ""
            for row in subset[["foundation", "polarity"]].itertuples()
        ]
    )
    found = np.full((len(CATEGORIES), centred.shape[1]), np.nan, dtype=np.float32)
    for index, name in enumerate(CATEGORIES):
        chosen = typical & (names == name)
        if chosen.any():
            found[index] = centred[chosen].mean(axis=0)
    return found


def similarities(stream: np.ndarray, layer: Layer) -> np.ndarray:
    """Return the cosines of one representation [width] to the ten prototypes, [10]."""
    return _unit(layer.prototypes) @ _unit(stream - layer.centre)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
