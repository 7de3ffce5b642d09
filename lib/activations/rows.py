"""Which actions a model reads: all of them, or those that the diagnosis reads (stage 03 draws them by the same function)."""

import numpy as np
import pandas as pd

from lib.run.parameters import ActivationsParameters
from lib.vectors.moral_vectors import PUBLISHED_SEED


def sample_of_actions(annotations: pd.DataFrame, *, rows: int) -> pd.DataFrame:
    """Return all annotations, or, if there are more than ``rows``, those of randomly drawn actions, ``rows`` at most.

    The draw has the published seed, so that a store holds its rows whatever the run's seed.
    """
    if len(annotations) <= rows:
        return annotations
    codes, distinct = pd.factorize(annotations["action"], sort=True)
    drawn = np.random.default_rng(PUBLISHED_SEED).permutation(len(distinct))
    kept = drawn[np.cumsum(np.bincount(codes)[drawn]) <= rows]
    return annotations[np.isin(codes, kept)]


def actions_to_read(annotations: pd.DataFrame, subset: pd.DataFrame, *, parameters: ActivationsParameters) -> list[str]:
    """Return the distinct actions that go into the store, sorted.

    Args:
        annotations: as notebook 01 writes them; ``id`` and ``action`` count.
        subset: the diagnosis subset of notebook 01, with ``id``.
        parameters: of the stage; ``store_rows`` says whether to read ``all`` actions or the ``diagnosed`` ones, which are
            those of the subset and of the annotations that the probes read.
    """
    if parameters.store_rows == "all":
        return sorted(annotations["action"].unique())
    probed = sample_of_actions(annotations, rows=parameters.probe_rows)["action"]
    diagnosed = annotations.loc[annotations["id"].isin(subset["id"]), "action"]
    return sorted(set(probed) | set(diagnosed))
