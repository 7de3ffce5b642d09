"""One model under other words around the action: how far what it adds to words depends on the template.

That it does is a claim of arXiv 2603.23659. Stage 03 poses the same problems to every reading of a model, so their gains are
paired as a model's and its untrained twin's are (:mod:`lib.comparison.twins`).
"""

from collections.abc import Mapping

import pandas as pd

from lib.diagnosis.measurement import WITHOUT, within

PLACE = ["kind", "pooling", "layer"]
CONTRAST = [
    "kind", "model", "reading", "pooling", "layer", "gain", "reading_gain", "margin", "difference", "ci_low", "ci_high", "n",
]  # fmt: skip


def contrasts(
    gains: Mapping[str, pd.DataFrame], headlines: pd.DataFrame, *, readings: Mapping[str, str], seed: int
) -> pd.DataFrame:
    """Compare every reading of a model with the first one of it, at the same layers and poolings.

    Args:
        gains: model -> what stage 03 measured, as :func:`lib.diagnosis.measurement.measure` returns it.
        headlines: the decisions on all models; their ``margin`` is the unit in which kinds are compared.
        readings: another reading -> the first one of the same model; pairs of which one was not diagnosed are left out.
        seed: of the simultaneous intervals.

    Returns:
        Columns ``CONTRAST``, a row per reading, kind, pooling and layer: ``difference``, the reading's gain less that of the
        first, in units of the kind's score. The 95% intervals of a reading hold for all its kinds, poolings and layers at once.
    """
    parts = [
        _paired(gains[model], gains[reading], headlines[headlines["model"] == model], seed).assign(
            model=model, reading=reading
        )
        for reading, model in readings.items()
        if model in gains and reading in gains
    ]
    return pd.concat(parts, ignore_index=True)[CONTRAST] if parts else pd.DataFrame(columns=CONTRAST)


def _paired(first: pd.DataFrame, other: pd.DataFrame, decided: pd.DataFrame, seed: int) -> pd.DataFrame:
    ours, theirs = (table.dropna(subset=["layer", "gain"]).set_index(PLACE) for table in (first, other))
    places = ours.index.intersection(theirs.index, sort=False)
    ours, theirs = ours.loc[places], theirs.loc[places]
    margin = places.get_level_values("kind").map(decided.set_index("kind")["margin"]).to_numpy(float)
    value, low, high = within(
        (theirs["gain"] - ours["gain"]).to_numpy(float) / margin,
        (theirs[WITHOUT] - ours[WITHOUT]).to_numpy(float) / margin[:, None],
        seed,
    )
    found = pd.DataFrame({"gain": ours["gain"], "reading_gain": theirs["gain"], "n": ours["n"]}, index=places)
    found = found.assign(margin=margin, difference=value * margin, ci_low=low * margin, ci_high=high * margin)
    return found.reset_index()
