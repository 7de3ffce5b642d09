"""What the paper fixes: the five moral foundations, their ten categories, the prompt, the poolings, the 23 models.

Every vector, table and figure uses this order and these colours, so they are stated once.
"""

import pandas as pd

from lib.run.files import PROJECT

FOUNDATIONS = (
    "care-harm",
    "fairness-cheating",
    "loyalty-betrayal",
    "authority-subversion",
    "sanctity-degradation",
)
"""Names as Social-Chemistry-101 writes them: virtue, hyphen, vice."""

OPPOSITES = dict(name.split("-") for name in FOUNDATIONS)
"""Virtue -> the vice that opposes it."""

VICES = tuple(OPPOSITES.values())

CATEGORIES = tuple(category for pair in OPPOSITES.items() for category in pair)
"""The ten dimensions of a moral vector, in the paper's order: care, harm, fairness, cheating, ..."""

# Tol's bright hues, one a foundation; the virtue takes the full hue and the vice a darker one,
# so a pair stays together and its poles differ in lightness for readers who cannot tell hues apart.
COLOURS = {
    "care": "#EE6677",
    "harm": "#8C2F3A",
    "fairness": "#4477AA",
    "cheating": "#1F3A5A",
    "loyalty": "#CCBB44",
    "betrayal": "#7A6E1B",
    "authority": "#AA3377",
    "subversion": "#5E1A41",
    "sanctity": "#228833",
    "degradation": "#10491A",
}
"""Category -> fixed colour."""

FOUNDATION_COLOURS = {name: COLOURS[name.split("-")[0]] for name in FOUNDATIONS}


def category_of(foundation: str, polarity: str) -> str:
    """Name the category that a foundation's pole is: ``("care-harm", "vice") -> "harm"``."""
    virtue, vice = foundation.split("-")
    return {"virtue": virtue, "vice": vice}[polarity]


TEMPLATE = "{action} is morally"
"""The published prompt."""

MAX_TOKENS = 128
"""The published truncation."""

POOLINGS = ("mean", "mean_without_first", "action", "last")
"""Mean over all tokens (published), without the first one, over the action's tokens only, the last token alone. Of a prompt of
one token, the mean without the first is that token."""


def models() -> pd.DataFrame:
    """Return the 23 models of the paper, one per row (``data/models.csv``)."""
    return pd.read_csv(PROJECT / "data" / "models.csv")
