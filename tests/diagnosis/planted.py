"""Rows, stores and labels with a geometry that is known, because it was put there."""

import os
import signal

import numpy as np
import pandas as pd
from sklearn.kernel_ridge import KernelRidge

from lib.diagnosis import decisions, dimensional, kernels, layers
from lib.paper import CATEGORIES, FOUNDATIONS, category_of
from lib.run.parameters import DiagnosisParameters

DRAWS, PERMUTATIONS = 50, 40


def planted(strength, seed=0, per_cell=30, width=24, opposite=-1.0, first_token=0.0):
    """Rows with a known geometry: a direction a foundation, virtue at +typicality, vice at opposite * typicality.

    ``first_token`` adds one large direction in proportion to one over the length, as mean pooling over a first-token
    outlier does.
    """
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(width, width)))[0][: len(FOUNDATIONS)]
    outlier = generator.normal(size=width)
    records, rows = [], []
    for f, foundation in enumerate(FOUNDATIONS):
        for polarity, sign in (("virtue", 1.0), ("vice", opposite), ("neutral", 0.0)):
            for typicality in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0) if polarity != "neutral" else (0.0,):
                for _ in range(per_cell):
                    length = int(generator.integers(5, 30))
                    row = strength * sign * typicality * directions[f] + generator.normal(size=width) * 0.3
                    rows.append(row + first_token / length * outlier)
                    category = "" if polarity == "neutral" else category_of(foundation, polarity)
                    action = f"action {len(records)}"
                    records.append((action, foundation, polarity, typicality, category, typicality == 1.0, length))
    columns = ["action", "foundation", "polarity", "typicality", "category", "is_prototype", "length"]
    return np.array(rows), pd.DataFrame(records, columns=columns)


def value(table, **chosen):
    for column, wanted in chosen.items():
        table = table[table[column] == wanted]
    return table["value"].mean()


def blobs(seed=0, rows=200):
    generator = np.random.default_rng(seed)
    centres = np.eye(5, 8) * 15
    x = np.concatenate([centre + generator.normal(size=(rows, 8)) for centre in centres])
    foundation = np.repeat(FOUNDATIONS, rows)
    polarity = generator.choice(["virtue", "vice", "neutral"], len(x))
    subset = pd.DataFrame({"action": [f"a{i}" for i in range(len(x))], "foundation": foundation, "polarity": polarity})
    return x, subset


def probe_data(noise, rows=900, width=20):
    generator = np.random.default_rng(0)
    vectors = np.zeros((rows, len(CATEGORIES)))
    vectors[np.arange(rows), generator.integers(0, len(CATEGORIES), rows)] = generator.choice([0.25, 0.5, 1.0], rows)
    x = vectors @ generator.normal(size=(len(CATEGORIES), width)) + noise * generator.normal(size=(rows, width))
    topics = pd.Series(vectors.argmax(axis=1) // 2).astype(str).to_numpy()
    return x, dimensional.Probed(vectors, np.array([f"a{i}" for i in range(rows)]), topics)


class Store:
    """Pooled residual streams in memory, as ``ActivationStore`` gives them."""

    def __init__(self, pooled, index):
        self.pooled, self.index = pooled, index
        self.poolings, self.layers, self.width = list(pooled), *next(iter(pooled.values())).shape[::2]
        self.actions = index["action"].tolist()

    def rows_of(self, actions):
        return pd.Index(self.index["action"]).get_indexer(list(actions))

    def read(self, layer, pooling, rows):
        return self.pooled[pooling][layer][rows]


class DeadlyStore(Store):
    """Kills the process that reads it. It stands here because processes import this module, and not always a test."""

    def read(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


def a_model(strength, first_token=0.0, layers_=2, seed=0, per_cell=40):
    """A store, annotations and subset whose activations hold the planted geometry; the text of an action holds none."""
    rows, subset = planted(strength, per_cell=per_cell, first_token=first_token)
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(len(subset))  # in the order of the rows, their digits would tell the label
    words = generator.choice(list("abcdefgh"), len(subset))
    subset["action"] = [f"{word} {number}" for word, number in zip(words, numbers, strict=True)]
    vectors = np.zeros((len(subset), len(CATEGORIES)))
    for index, (category, typicality) in enumerate(zip(subset["category"], subset["typicality"], strict=True)):
        if category:
            vectors[index, CATEGORIES.index(category)] = typicality
    ids = [f"id{index}" for index in range(len(subset))]
    annotations = pd.DataFrame(vectors, columns=list(CATEGORIES)).assign(id=ids, action=subset["action"])
    annotations["foundations"] = [[foundation] for foundation in subset["foundation"]]
    pooled = {
        name: np.stack([rows + generator.normal(size=rows.shape) * 0.1 for _ in range(layers_)]).astype(np.float32)
        for name in ("mean", "last")
    }
    index = pd.DataFrame({"action": subset["action"], "tokens": subset["length"]})
    columns = ["id", "foundation", "polarity", "typicality", "is_prototype"]
    return Store(pooled, index), annotations, subset.assign(id=ids)[columns]


def parameters_of(*, pooling="mean", draws=40, control_layers=2):
    return DiagnosisParameters(
        run_dir="runs/none", model="planted", pooling=pooling, bootstrap_draws=draws, permutations=draws,
        control_layers=control_layers, probe_rows=1_000,
    )  # fmt: skip


def diagnosed(model, **chosen):
    """The tables of a model, given as store, annotations and subset."""
    store, annotations, subset = model
    return layers.diagnose(store, annotations, subset=subset, parameters=parameters_of(**chosen))


def decided(model, **chosen):
    """The decision on each kind, of a model given as store, annotations and subset."""
    store, annotations, subset = model
    parameters = parameters_of(**chosen)
    measured = layers.gains_over_words(store, annotations, subset=subset, parameters=parameters)
    return measured, decisions.decide(measured, decisions.margins(parameters)).set_index("kind")


def nested(kernel, y, *, fold, left, nothing):
    """Predict each fold with the penalty that is best in the others; ``left`` gives the targets by the fold left out."""
    predicted = np.empty_like(y)
    for outer in np.unique(fold):
        target, errors = left(outer), {}
        for penalty in kernels.PENALTIES:
            model = KernelRidge(alpha=penalty, kernel="precomputed")
            errors[penalty] = 0.0
            for inner in set(np.unique(fold)) - {outer}:
                fit, check = np.flatnonzero(~np.isin(fold, [outer, inner])), np.flatnonzero(fold == inner)
                missed = target[check] - model.fit(kernel[np.ix_(fit, fit)], target[fit]).predict(
                    kernel[np.ix_(check, fit)]
                )
                errors[penalty] += (missed**2).sum()
        if nothing:
            errors[None] = (target[fold != outer] ** 2).sum()
        best = min(errors, key=errors.get)
        fit, own = np.flatnonzero(fold != outer), np.flatnonzero(fold == outer)
        if best is None:
            predicted[own] = 0
            continue
        model = KernelRidge(alpha=best, kernel="precomputed").fit(kernel[np.ix_(fit, fit)], target[fit])
        predicted[own] = model.predict(kernel[np.ix_(own, fit)])
    return predicted
