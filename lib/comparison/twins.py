"""A model beside its untrained twin: what it adds to words, less what the same configuration adds with random weights.

Stage 03 poses the same problems to every model of a run: the same rows, folds and replicates of the jackknife. So the gains of a
model and of its twin are paired, replicate by replicate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lib.diagnosis.measurement import WITHOUT, within

CONTRAST = [
    "kind", "model", "twin", "pooling", "layer", "gain", "twin_pooling", "twin_layer", "twin_gain", "difference", "ci_low",
    "ci_high", "n",
]  # fmt: skip


def contrasts(gains: Mapping[str, pd.DataFrame], *, twins: Mapping[str, str], seed: int) -> pd.DataFrame:
    """Compare the reading of a model's highest gain with every reading of its twin, and report the least certain contrast.

    A model that holds no more than random weights do, at whatever layer of the twin, has no difference from it.

    Args:
        gains: model -> what stage 03 measured, as :func:`lib.diagnosis.measurement.measure` returns it.
        twins: untrained twin -> the model that it is of; pairs of which one was not diagnosed are left out.
        seed: of the simultaneous intervals.

    Returns:
        Columns ``CONTRAST``, a row per kind and twin: ``difference`` of the two gains, in units of the kind's score, with a 95%
        interval that holds for all pairs of readings at once.
    """
    rows: list[dict[str, Any]] = []
    for twin, model in twins.items():
        if twin in gains and model in gains:
            ours, others = (table.dropna(subset=["layer", "gain"]) for table in (gains[model], gains[twin]))
            for kind, own in ours.groupby("kind", sort=False):
                of_twin = others[others["kind"] == kind]
                if len(of_twin):
                    rows.append({"kind": kind, "model": model, "twin": twin} | _least_certain(own, of_twin, seed))
    return pd.DataFrame(rows, columns=CONTRAST)


def twin_of(model: str, twins: Mapping[str, str]) -> str | None:
    """Return the untrained twin of a model, of several the one that was named last; None if it has none."""
    return next((twin for twin, of in reversed(twins.items()) if of == model), None)


def _least_certain(own: pd.DataFrame, of_twin: pd.DataFrame, seed: int) -> dict[str, Any]:
    differences = np.subtract.outer(own["gain"].to_numpy(), of_twin["gain"].to_numpy())
    without = own[WITHOUT].to_numpy()[:, None] - of_twin[WITHOUT].to_numpy()[None]
    pairs = within(differences.ravel(), without.reshape(-1, len(WITHOUT)), seed)
    best = int(own["gain"].to_numpy().argmax())
    value, low, high = (end.reshape(differences.shape)[best] for end in pairs)
    place = int(low.argmin())
    ours, twin = own.iloc[best], of_twin.iloc[place]
    return {
        **ours[["pooling", "layer", "gain", "n"]],
        **twin[["pooling", "layer", "gain"]].add_prefix("twin_"),
        "difference": value[place],
        "ci_low": low[place],
        "ci_high": high[place],
    }
