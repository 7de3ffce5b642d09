"""The terms of the objectives of alignment.

The project page names three losses; the released code adds reconstruction, sparsity and a penalty on strict latents that
fire for another category.

``sigmoid(a)`` with activations a >= 0 is at least .5, so the published alignment loss cannot reach targets below .5. The
objectives that end in ``-without-floor`` use ``2 sigmoid(a) - 1``, which can.
"""

import numpy as np
import torch
from torch import Tensor

from lib.alignment.selection import TunedLatents

WEIGHTS = {"reconstruction": 1.0, "sparsity": 1e-4, "align": 0.5, "polarity": 0.3, "prototype": 0.2, "mono": 0.1}
"""Weights of the six terms, released recipe."""

RECONSTRUCTION = {"reconstruction": 1.0}
"""What continued training without any label minimises."""

NAMED_ON_THE_PAGE = ("align", "polarity", "prototype")
FLOOR = 0.5
"""What a sigmoid of an activation, which is never negative, cannot go below."""

MARGIN = 0.5
STRONG = 0.3
ROWS_OF_A_POLE = 4
"""Fewer strongly virtuous or strongly vicious rows in a batch, and the polarity term is 0."""

PAIRS = 100
PAIR_MARGIN = 0.1
ROWS_OF_A_DIMENSION = 16
"""Fewer rows of a dimension in a batch, and the prototype term leaves it out."""


def term_weights(objective: str) -> dict[str, float]:
    """Return the weight of every term of an objective (the parameter ``alignment_objective``)."""
    return {name: WEIGHTS[name] for name in NAMED_ON_THE_PAGE} if objective.startswith("three-term") else WEIGHTS


def of_directions(objective: str) -> dict[str, float]:
    """Return the weights of the terms that apply to directions, which reconstruct nothing and have no sparsity."""
    weights = term_weights(objective)
    return {name: weight for name, weight in weights.items() if name not in ("reconstruction", "sparsity")}


def share_below_floor(vectors: np.ndarray) -> float:
    """Return the share of the targets of vectors [rows, 10] that the published alignment loss cannot reach."""
    targets = vectors[vectors > 0]
    return float((targets < FLOOR).mean()) if len(targets) else 0.0


def losses(
    latents: TunedLatents, data: dict[str, Tensor], *, objective: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return all six terms on a batch: centred rows ``x``, moral vectors ``m`` [rows, 10], and :class:`TunedLatents`'s."""
    z, mass, rest = latents(data)
    selection, a, m = latents.selection, z @ latents.readout, data["m"]
    reach = 2 * torch.sigmoid(a) - 1 if objective.endswith("-without-floor") else torch.sigmoid(a)
    elsewhere = torch.from_numpy(selection.strict_dimension).to(m.device)[None, :] != m.argmax(dim=1)[:, None]
    return {
        "reconstruction": ((data["x"] - rest - z @ latents.decoder) ** 2).mean(),
        "sparsity": (z.abs().sum() + mass.sum()) / (len(z) * latents.d_sae),
        "align": _mean((reach - m)[m > 0] ** 2),
        "polarity": _polarity_term(z @ latents.contrast, m, pairs=(latents.contrast > 0).any(dim=0)[0::2]),
        "prototype": _prototype_term(a, m, generator),
        "mono": _mean((z[:, torch.from_numpy(selection.strict)] ** 2)[elsewhere]),
    }


def row_weights(vectors: np.ndarray) -> Tensor:
    """Return weights [rows] of drawing a row: 2 above .5, 1.5 in (.25, .5], .3 if neutral; the rarer pole up to x 3.

    The poles are rows whose larger side is virtue or vice; where neither is 1.5 times as frequent, neither is favoured.
    """
    typicality = vectors.max(axis=1)
    weights = np.select([typicality > 0.5, typicality > 0.25, typicality == 0], [2.0, 1.5, 0.3], 1.0)
    virtue, vice = vectors[:, 0::2].max(axis=1), vectors[:, 1::2].max(axis=1)
    virtuous, vicious = virtue > vice, vice > virtue
    if virtuous.any() and vicious.any():
        ratio = virtuous.sum() / vicious.sum()
        if ratio > 1.5:
            weights[vicious] *= min(ratio, 3)
        elif ratio < 0.67:
            weights[virtuous] *= min(1 / ratio, 3)
    return torch.from_numpy(weights)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()


def _polarity_term(contrast: Tensor, m: Tensor, *, pairs: Tensor) -> Tensor:
    """Hinge: on virtuous rows a pair's virtue must lead its vice by the margin, on vicious rows the other way round.

    ``contrast`` [rows, 10] are mean activations, ``pairs`` [5] says which pairs have latents on both sides. The sum over
    these pairs and both kinds of rows is divided by twice their number.
    """
    virtuous, vicious = ((m[:, pole::2] > STRONG).any(dim=1) for pole in (0, 1))
    if min(virtuous.sum(), vicious.sum()) < ROWS_OF_A_POLE:
        return contrast.sum() * 0
    lead = (contrast[:, 0::2] - contrast[:, 1::2])[:, pairs]
    return (_mean(torch.relu(MARGIN - lead)[virtuous]) + _mean(torch.relu(MARGIN + lead)[vicious])) / 2


def _prototype_term(a: Tensor, m: Tensor, generator: torch.Generator) -> Tensor:
    """Hinge over random pairs of rows within a dimension: the mean over a dimension's pairs, then over dimensions."""
    terms = []
    for dimension in range(m.shape[1]):
        rows = torch.nonzero(m[:, dimension] > 0).flatten()
        if len(rows) < ROWS_OF_A_DIMENSION:
            continue
        drawn = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        first = drawn[:PAIRS]
        second = drawn[PAIRS : 2 * PAIRS] if len(drawn) >= 2 * PAIRS else drawn.roll(1)[: len(first)]
        order = (m[first, dimension] - m[second, dimension]) * (a[first, dimension] - a[second, dimension])
        terms.append(torch.relu(PAIR_MARGIN - order).mean())
    return torch.stack(terms).mean() if terms else a.sum() * 0
