"""The controls, listed in one place: what each leaves out or replaces, and why it could explain a result.

A control is an arm of an analysis: the same function on another input or with other labels. Here are the inputs.
"""

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer

PUBLISHED = "published"

REPRESENTATIONS = {
    PUBLISHED: "The paper's recipe: mean over all tokens, centred over the subset.",
    "mean": "Mean over all tokens, where another pooling takes the published one's place.",
    "mean_without_first": "The first token carries a very large activation; leaving it out shows what it adds.",
    "action": "Only the action's tokens: the template says the same of every row.",
    "last": "The last token alone: what the model holds when it is about to complete the judgment.",
    "length_removed": "A mean over a large first token encodes one over the length; here that is regressed out.",
    "length_only": "Number of tokens and its inverse as the whole representation: what length alone would show.",
    "words_only": "Each word a fixed random vector, averaged: what the words allow without any model of the world.",
}
"""Arms that change the input of an analysis -> the reason."""

LABELS = {
    "shuffled": "Labels permuted, whole actions at a time: what the procedure reports when there is nothing to find.",
    "shuffled_all_points": "The same over all points, noise as a cluster of its own.",
    "shuffled_without_prototypes": "The same with prototype rows left out: their own nearness gives a null above zero.",
    "shuffled_within_foundations": "Labels permuted among rows of the same foundations: what topic alone explains.",
    "cross_foundation": "Virtue of one foundation against vice of another: how near any two categories are.",
    "random_pair": "Two random halves of a foundation's prototype rows: how near poles without meaning would be.",
    "split_half": "Two halves of one category's prototype rows: how reliable a prototype is.",
    "without_prototypes": "Prototype rows left out of their own gradient: a row is always near a mean that contains it.",
    "held_out": "Prototype from other actions, layer chosen on other actions: pays for the maximum over layers.",
    "all_points": "Adjusted Rand index over all points, noise as a cluster of its own: coverage counts.",
    "stability": "Clusters of four fifths of the actions, in the same components, against those of all: are they found again?",
    "across_actions": "Without pairs of one action: its rows lie at one point, whatever foundations they name.",
    "discriminant": "Labels of held-out actions by a shrunk linear discriminant: what a linear reading finds, no ceiling.",
    "ridge": "Closed-form ridge on standardised features, penalty chosen within folds grouped by action.",
    "auc": "Cross-validated area under the curve of virtue against vice, grouped by action: are they separable?",
}
"""Arms that change labels, rows or the procedure -> the reason."""

ARMS = REPRESENTATIONS | LABELS
"""Every arm -> the reason it is there. An arm of the tables may join two, such as ``auc, last``."""

SAME_IN_EVERY_LAYER = {"length_only": "length alone", "words_only": "words without a model"}
"""Arms that do not read the model, so one computation serves all layers -> how figures and decisions call them."""


def arms_table() -> pd.DataFrame:
    """Return the controls with their reasons, columns ``arm`` and ``reason``."""
    return pd.DataFrame(list(ARMS.items()), columns=["arm", "reason"])


def named(procedure: str, arm: str) -> str:
    """Name a procedure on a representation: ``auc`` on the published one, ``auc, last`` on another."""
    return procedure if arm == PUBLISHED else f"{procedure}, {arm}"


def length_features(lengths: np.ndarray) -> np.ndarray:
    """Return [rows, 2]: number of tokens and its inverse, standardised."""
    features = np.column_stack([lengths, 1 / lengths]).astype(float)
    deviation = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def without_length(representation: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return residuals of a linear regression of every dimension on length and its inverse, [rows, width]."""
    design = np.column_stack([np.ones(len(lengths)), length_features(lengths)])
    coefficients = np.linalg.lstsq(design, representation, rcond=None)[0]
    residuals = representation - design @ coefficients
    # What is left of a dimension that does not vary, or is length alone, is rounding: nothing, not a signal.
    rounding = residuals.std(axis=0) <= 1e-6 * np.abs(representation).max(axis=0)
    return np.where(rounding, 0, residuals).astype(representation.dtype)


def words_only(actions: list[str], width: int, seed: int) -> np.ndarray:
    """Return the mean over an action's words of one random vector a word, [actions, width]; zeros without words."""
    counts = CountVectorizer(token_pattern=r"\w+").fit_transform(actions)
    vectors = np.random.default_rng(seed).standard_normal((counts.shape[1], width), dtype=np.float32)
    return (counts.astype(np.float32) @ vectors) / np.maximum(counts.sum(axis=1).A1, 1).astype(np.float32)[:, None]


def arms_of(poolings: list[str], published: str) -> list[str]:
    """Name the representations to analyse, the published one first and those of one pooling one after the other."""
    others = [name for name in poolings if name != published]
    return [PUBLISHED, "length_removed", *others, *SAME_IN_EVERY_LAYER]


def pooling_of(arm: str, published: str) -> str:
    """Return the pooling that a representation is made of, ``none`` if it does not read the model."""
    if arm in SAME_IN_EVERY_LAYER:
        return "none"
    return published if arm in (PUBLISHED, "length_removed") else arm
