"""The terms of the alignment's objectives.

The project page names three losses; the released code adds reconstruction, sparsity and a penalty on strict latents that
fire for another category.

``sigmoid(a)`` with activations a >= 0 is at least .5, so the published alignment loss cannot reach targets below .5. The
objectives that end in ``-without-floor`` use ``2 sigmoid(a) - 1``, which can.
"""

import numpy as np
import torch
from torch import Tensor

from lib.sae.train import TrainingError
from lib.sae.tuned import Selection, TunedRows

WEIGHTS = {"reconstruction": 1.0, "sparsity": 1e-4, "align": 0.5, "polarity": 0.3, "prototype": 0.2, "mono": 0.1}
"""Weights of the six terms, released recipe."""

NAMED_ON_THE_PAGE = ("align", "polarity", "prototype")
OBJECTIVES = ("six-term", "three-term", "six-term-without-floor", "three-term-without-floor")
FLOOR = 0.5
"""What a sigmoid of an activation, which is never negative, cannot go below."""

MARGIN = 0.5
STRONG = 0.3
PAIRS = 100
PAIR_MARGIN = 0.1


def term_weights(objective: str) -> dict[str, float]:
    """Return the weight of every term of one of ``OBJECTIVES``."""
    if objective not in OBJECTIVES:
        raise TrainingError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
    return {name: WEIGHTS[name] for name in NAMED_ON_THE_PAGE} if objective.startswith("three-term") else WEIGHTS


def share_below_floor(vectors: np.ndarray) -> float:
    """Return the share of the targets of vectors [rows, 10] that the published alignment loss cannot reach."""
    targets = vectors[vectors > 0]
    return float((targets < FLOOR).mean()) if len(targets) else 0.0


def losses(
    rows: TunedRows, selection: Selection, data: dict[str, Tensor], objective: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the terms of an objective on a batch: ``m`` [rows, 10] and what :class:`TunedRows` takes."""
    z, rest = rows(data)
    a, m = z @ rows.top, data["m"]
    strong_virtue = (m[:, 0::2] > STRONG).any(dim=1)
    strong_vice = (m[:, 1::2] > STRONG).any(dim=1)
    contrast = z @ rows.contrast
    lead = contrast[:, 0::2] - contrast[:, 1::2]
    polarity = _mean(torch.relu(MARGIN - lead)[strong_virtue]) + _mean(torch.relu(MARGIN + lead)[strong_vice])
    reach = 2 * torch.sigmoid(a) - 1 if objective.endswith("-without-floor") else torch.sigmoid(a)
    terms = {
        "align": _mean((reach - m)[m > 0] ** 2),
        "polarity": polarity,
        "prototype": _prototype_term(a, m, generator),
    }
    if objective.startswith("three-term"):
        return terms
    own = m.argmax(dim=1)
    elsewhere = torch.from_numpy(selection.strict_dimension).to(own.device)[None, :] != own[:, None]
    strict = z[:, torch.from_numpy(selection.strict)]
    return terms | {
        "reconstruction": ((data["x"] - rest - z @ rows.decoder) ** 2).mean(),
        "sparsity": z.abs().mean(),
        "mono": _mean((strict**2)[elsewhere]),
    }


def row_weights(vectors: np.ndarray) -> Tensor:
    """Return how often a row is drawn: 2 above .5, 1.5 in (.25, .5], .3 neutral, the rarer strong pole up to 3 times."""
    typicality = vectors.max(axis=1)
    weights = np.select([typicality > 0.5, typicality > 0.25, typicality == 0], [2.0, 1.5, 0.3], 1.0)
    virtue, vice = vectors[:, 0::2].max(axis=1) > STRONG, vectors[:, 1::2].max(axis=1) > STRONG
    if virtue.any() and vice.any():
        ratio = vice.sum() / virtue.sum()
        rarer = virtue if ratio > 1 else vice
        weights = np.where(rarer, weights * min(3.0, max(ratio, 1 / ratio)), weights)
    return torch.from_numpy(weights)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()


def _prototype_term(a: Tensor, m: Tensor, generator: torch.Generator) -> Tensor:
    """Hinge over random pairs of rows of a dimension: the mean of a dimension's pairs, and of dimensions."""
    dimension, row = torch.nonzero(m.T > 0, as_tuple=True)
    counts = torch.bincount(dimension, minlength=m.shape[1])
    drawn = torch.where(counts > 1, counts.clamp_max(PAIRS), 0)
    d = torch.repeat_interleave(drawn)
    if len(d) == 0:
        return a.sum() * 0
    first = torch.cumsum(counts, dim=0) - counts
    chance = torch.rand(2, len(d), generator=generator).to(a.device)
    i, j = row[first[d] + (chance * counts[d]).long()]
    order = (m[i, d] - m[j, d]) * (a[i, d] - a[j, d])
    return (torch.relu(PAIR_MARGIN - order) / drawn[d]).sum() / (drawn > 0).sum()
