"""Every figure of the companion: one function each, a tidy frame in and Axes out; one module a stage.

One theme and one colour a category (``lib.foundations.COLOURS``) hold everywhere, so a reader learns the legend once.
:func:`publish` keeps the picture and the table it was drawn from together.
"""

from lib.figures import style
from lib.figures.comparison import careful_profiles, cosine_heatmap, depth_profiles, models_by_kind
from lib.figures.diagnosis import clusters, gradients, opposing_cosines, probes, separability
from lib.figures.residuals import residual_norms
from lib.figures.responses import (
    perfect_scores,
    steering_costs,
    steering_receipts,
    verdict_counts,
    win_rate_against_cost,
    win_rates,
)
from lib.figures.sae import alignment_arms, category_similarity, losses, moral_latents, training
from lib.figures.style import publish, theme
from lib.figures.vectors import foundation_overlap, judgment_against_agreement, length_by_typicality, typicality_counts

__all__ = [
    "alignment_arms",
    "careful_profiles",
    "category_similarity",
    "clusters",
    "cosine_heatmap",
    "depth_profiles",
    "foundation_overlap",
    "gradients",
    "judgment_against_agreement",
    "length_by_typicality",
    "losses",
    "models_by_kind",
    "moral_latents",
    "opposing_cosines",
    "perfect_scores",
    "probes",
    "publish",
    "residual_norms",
    "separability",
    "steering_costs",
    "steering_receipts",
    "theme",
    "training",
    "typicality_counts",
    "verdict_counts",
    "win_rate_against_cost",
    "win_rates",
]

DRAWINGS = {name: style.recorded(globals()[name]) for name in __all__ if name not in ("publish", "theme")}
"""Every drawing function by name, each leaving a note in its figure of what drew it."""

globals().update(DRAWINGS)
