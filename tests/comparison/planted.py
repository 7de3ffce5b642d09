"""What stage 03 measures, made up so that the answer is known, and regressions in which some models must not count."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lib.comparison import regressions
from lib.diagnosis.measurement import WITHOUT
from lib.run.parameters import ComparisonParameters


def gains(
    of_place: Mapping[tuple[str, int], float], *, seed: int = 0, own: int = 0, noise: float = 0.002
) -> pd.DataFrame:
    """Gains by (kind, layer), and a wordlike control; the replicates of a seed vary alike, and a little on their ``own``."""
    shared = np.random.default_rng(seed).normal(size=len(WITHOUT)) * 0.05
    rows = []
    for (kind, layer), gain in of_place.items():
        alone = np.random.default_rng([seed, own, layer, abs(int(gain * 1000))]).normal(size=len(WITHOUT)) * noise
        rows.append({"kind": kind, "pooling": "last", "layer": float(layer), "gain": gain, "n": 100})
        rows[-1] |= dict(zip(WITHOUT, gain + shared + alone, strict=True))
    control = {"kind": "categorical", "pooling": "length_only", "layer": np.nan, "gain": 0.9, "n": 100}
    return pd.DataFrame([*rows, control | dict.fromkeys(WITHOUT, 0.9)])


def regressed(facts: pd.DataFrame, last: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Regress a measure that is far off in the last models, with them and without them."""
    values = np.random.default_rng(0).normal(size=len(facts)) * 0.01
    values[-last:] = 100.0
    decided = pd.DataFrame({"model": facts["name"], "kind": "gradient", "ours": values, "careful": values, "gain": 0.1})
    decided = decided.assign(ci_low=0.09, ci_high=0.11, equivalence_high=0.1, margin=0.02, ceiling=np.nan)
    parameters = ComparisonParameters(run_dir="runs/none", models=list(facts["name"]))
    found, without = (
        regressions.regressions(regressions.comparable(table, facts, parameters=parameters))
        for table in (decided, decided[:-last])
    )
    return found, without
