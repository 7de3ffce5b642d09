"""How well predictions rank or fit labels: one value for every draw of the predictions, higher is better.

Truth is [rows, targets], predictions are [draws, rows, targets], folds [rows]. Ranks are taken within a fold: predictions of
different folds have different origins, which would push a worthless score below chance.
"""

import numpy as np
from scipy.stats import rankdata

from lib.stats import standard


def area(truth: np.ndarray, predicted: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return areas under the curve of positive against other rows, [draws]; folds count by their pairs."""
    won, pairs = np.zeros(len(predicted)), 0
    for name in np.unique(fold):
        rows = fold == name
        positive = truth[rows, 0] > 0
        count = int(positive.sum())
        ranks = rankdata(predicted[:, rows, 0], axis=1)[:, positive].sum(axis=1)
        won += ranks - count * (count + 1) / 2
        pairs += count * int((~positive).sum())
    return won / pairs if pairs else np.full(len(predicted), np.nan)


def rank_correlation(truth: np.ndarray, predicted: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return Spearman's correlations, [draws]: means over folds by their rows; a constant prediction counts 0."""
    total, count = np.zeros(len(predicted)), 0
    for name in np.unique(fold):
        rows = fold == name
        if np.ptp(truth[rows, 0]) > 0:
            total += standard(rankdata(predicted[:, rows, 0], axis=1)) @ standard(rankdata(truth[rows, 0]))
            count += int(rows.sum())
    return total / count if count else np.full(len(predicted), np.nan)


def r_squared(truth: np.ndarray, predicted: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return R squared about the mean of all rows, [draws]: the mean over targets that vary."""
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    varies = spread > 1e-9
    missed = ((predicted[:, :, varies] - truth[:, varies]) ** 2).sum(axis=1)
    return (1 - missed / spread[varies]).mean(axis=1)


def mean_share(truth: np.ndarray, predicted: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the mean of predictions that are shares of right answers themselves, [draws]."""
    return predicted[:, :, 0].mean(axis=1)
