"""Linear models scored on held-out actions: ridge with its penalty chosen within folds, and a shrunk discriminant.

Ridge reads every feature, however many: :mod:`lib.diagnosis.kernels`. The discriminant reads the leading components.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.extmath import randomized_svd

from lib.diagnosis import kernels, matrices
from lib.diagnosis.kernels import PENALTIES
from lib.diagnosis.tidy import unusable

SHRINKAGE = 0.1
"""Weight of the identity in the discriminant's covariance of standardised features."""

COMPONENTS = 512
"""The discriminant reads wider representations through this many principal components; see :func:`features`."""


@dataclass(frozen=True)
class Features:
    """What a linear model reads: values [rows, width], and whether it brings every column to standard deviation 1."""

    values: np.ndarray
    standardise: bool = True

    def __getitem__(self, rows: np.ndarray | slice) -> "Features":
        """Return some of the rows."""
        return Features(self.values[rows], self.standardise)


def features(x: np.ndarray | Features, *others: np.ndarray, covariance: np.ndarray | None = None) -> Features:
    """Return x [rows, width] itself, or, if it is wider than ``COMPONENTS``, its leading principal components.

    Components of the standardised features, without labels, each with its own variance: a factorisation of 4,096 features in
    every fold would take minutes per layer. The components come from a randomised decomposition (Halko, Martinsson and
    Tropp, 2011) of the correlations, where a pass costs a quarter of one over the rows and counts for two.

    Args:
        x: the rows whose components are taken.
        others: further rows, [rows, width]; their values on the same components follow those of x.
        covariance: of x, as :func:`matrices.covariance`, for callers that have it already.
    """
    if isinstance(x, Features):
        return x
    if x.shape[1] <= COMPONENTS or unusable(x):
        return Features(np.concatenate([x, *others]) if others else x)
    matrix = matrices.covariance(x) if covariance is None else covariance
    variance = matrix.diagonal()
    scale = np.sqrt(np.where(variance > 0, variance, 1))
    _, _, basis = randomized_svd(matrix / np.outer(scale, scale), COMPONENTS, n_iter=2, random_state=0)
    basis, mean = (basis / scale).T.astype(x.dtype), x.mean(axis=0)
    return Features(np.concatenate([(rows - mean) @ basis for rows in (x, *others)]), standardise=False)


def ridge_held_out(x: np.ndarray, y: np.ndarray, *, fold: np.ndarray, blocks: np.ndarray | None = None) -> np.ndarray:
    """Predict every row from the folds that it is not in, by ridge on all standardised features, [rows, targets].

    The penalty of each fold is chosen by cross-validation over the remaining folds, so no row has a part in choosing or
    fitting what predicts it.

    Args:
        x: [rows, width].
        y: [rows, targets].
        fold: fold of every row, [rows]; from :func:`lib.diagnosis.sampling.grouped_folds`.
        blocks: integers from 0, [targets]; targets of a block share a penalty. By default all do.
    """
    blocks = np.zeros(y.shape[1], dtype=int) if blocks is None else blocks
    kernel, names = kernels.linear(x) + 1, np.unique(fold)
    predicted = np.empty((len(PENALTIES), *y.shape), dtype=np.float32)
    errors = np.zeros((len(PENALTIES), len(names), y.shape[1]))
    for index, penalty in enumerate(PENALTIES):
        inverse = kernels.inverse(kernel, penalty)
        for first, name in enumerate(names):
            own = np.flatnonzero(fold == name)
            predicted[index, own] = kernels.left_out(inverse, y, own)
            for second in range(first):
                out = np.flatnonzero((fold == name) | (fold == names[second]))
                squared = (y[out] - kernels.left_out(inverse, y, out)) ** 2
                errors[index, first] += squared[fold[out] != name].sum(axis=0)
                errors[index, second] += squared[fold[out] == name].sum(axis=0)
    of_blocks = np.stack([errors[:, :, blocks == block].sum(axis=2) for block in range(blocks.max() + 1)], axis=2)
    best = of_blocks.argmin(axis=0)[:, blocks]
    places = np.searchsorted(names, fold)
    return np.take_along_axis(predicted, best[places][None], axis=0)[0].astype(np.float64)


def discriminant_held_out(x: np.ndarray | Features, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Predict the label of every row, [rows], from the folds that it is not in, by a shrunk linear discriminant.

    Args:
        x: [rows, width].
        labels: integers from 0, [rows]; at least two distinct ones outside every fold.
        fold: fold of every row, [rows].
    """
    read = features(x)
    scaler = StandardScaler(with_std=read.standardise)
    model = make_pipeline(scaler, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE))
    return cross_val_predict(model, read.values.astype(np.float64), labels, cv=PredefinedSplit(fold))
