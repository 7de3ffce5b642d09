"""The controls, listed in one place: what each leaves out or replaces, and why it could explain a result.

A control is an arm of an analysis: the same function on another input. Here are the inputs.
"""

import numpy as np
import pandas as pd

PUBLISHED = "published"

ARMS = {
    PUBLISHED: "The paper's recipe: mean over all tokens, centred over the subset.",
    "mean_without_first": "The first token carries a very large activation; leaving it out shows what it adds.",
    "action": "Only the action's tokens: the template says the same of every row.",
    "last": "The last token alone: what the model holds when it is about to complete the judgment.",
    "length_removed": "A mean over a large first token encodes one over the length; here that is regressed out.",
    "length_only": "Number of tokens and its inverse as the whole representation: what length alone would show.",
    "shuffled": "Labels permuted among rows: what the procedure reports when there is nothing to find.",
    "shuffled_within_foundations": "Labels permuted among rows of the same foundations: what topic alone explains.",
    "cross_foundation": "Virtue of one foundation against vice of another: how near any two categories are.",
    "random_pair": "Two random halves of the prototypes' rows: how near categories without meaning are.",
    "split_half": "Two halves of one category's rows: how reliable a prototype is.",
    "without_prototypes": "Prototype rows left out of their own gradient: a row is always near a mean that contains it.",
    "all_points": "Adjusted Rand index over all points, noise as a cluster of its own: coverage counts.",
    "supervised": "Clusters predicted by a classifier with the labels: the most that any clustering could reach.",
    "ridge": "Closed-form ridge on standardised features, penalty chosen within folds grouped by action.",
    "auc": "Cross-validated area under the curve of virtue against vice, grouped by action: are they separable?",
}
"""Arm -> the reason it is there."""


def arms_table() -> pd.DataFrame:
    """Return the controls with their reasons, columns ``arm`` and ``reason``."""
    return pd.DataFrame(list(ARMS.items()), columns=["arm", "reason"])


def length_features(lengths: np.ndarray) -> np.ndarray:
    """Return [rows, 2]: number of tokens and its inverse, standardised."""
    features = np.column_stack([lengths, 1 / lengths]).astype(float)
    deviation = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def without_length(representation: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return residuals of a linear regression of every dimension on length and its inverse, [rows, width]."""
    design = np.column_stack([np.ones(len(lengths)), length_features(lengths)])
    coefficients = np.linalg.lstsq(design, representation, rcond=None)[0]
    return representation - design @ coefficients


def representations(poolings: dict[str, np.ndarray], lengths: np.ndarray, published: str) -> dict[str, np.ndarray]:
    """Return the representation of every arm that changes the input, [rows, width] each.

    Args:
        poolings: pooling -> [rows, width].
        lengths: tokens of every row's prompt, [rows].
        published: the pooling of the published arm; the others become controls.
    """
    arms = {PUBLISHED: poolings[published]}
    arms |= {name: values for name, values in poolings.items() if name != published}
    arms["length_removed"] = without_length(poolings[published], lengths)
    arms["length_only"] = length_features(lengths)
    return arms
