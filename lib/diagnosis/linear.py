"""Linear models in closed form, for every fold and every penalty from sums that are taken once.

The sums over rows that least squares needs (x'x, x'y, ...) add up, so those of any union of folds are a difference away
from the total: rows are read once, whatever the number of folds within folds. One eigendecomposition of a union's x'x
then serves all penalties.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve, eigh
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from lib.diagnosis import matrices
from lib.diagnosis.tidy import unusable

PENALTIES = np.logspace(-5, 2, 8)
"""Ridge penalties on standardised features, one a decade, for every row that is fitted."""

SHRINKAGE = 0.1
"""Weight of the identity in the discriminant's covariance of standardised features."""

FOLDS = 5

COMPONENTS = 512
"""Wider representations are read through this many principal components; see :func:`features`."""


@dataclass(frozen=True)
class Moments:
    """Sums over rows of x [rows, width] and y [rows, targets]; they add and subtract."""

    n: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(*(a - b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple:
        return self.n, self.x, self.y, self.xx, self.xy, self.yy


def moments(x: np.ndarray, y: np.ndarray) -> Moments:
    """Return the sums over the rows of x [rows, width] and y [rows, targets], in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return Moments(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y, (y**2).sum(axis=0))


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

    Components of the standardised features, without labels, each with its own variance: ridge shrinks the small ones most
    anyway, and a factorisation of 4,096 features in every fold would take minutes a layer. The components come from a
    randomised decomposition (Halko, Martinsson and Tropp, 2011) of the correlations, where a pass costs a quarter of one
    over the rows and counts for two. Who needs them several times keeps what is returned.

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


def grouped_folds(groups: np.ndarray, seed: int, folds: int = FOLDS) -> np.ndarray:
    """Return the fold of every row, [rows]; rows of one group share it."""
    codes, distinct = pd.factorize(groups)
    order = np.random.default_rng(seed).permutation(len(distinct))
    return (order % folds)[codes]


def ridge_path(
    sums: Moments, penalties: np.ndarray = PENALTIES, standardise: bool = True, dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Fit ridge for every penalty, from one eigendecomposition.

    Args:
        sums: of the rows to fit.
        penalties: [k], or one for each target, [k, targets]; each multiplied by the number of rows.
        standardise: whether features are brought to standard deviation 1 over the rows to fit.
        dtype: of the eigendecomposition and the coefficients.

    Returns:
        Coefficients [k, width, targets] and intercepts [k, targets], both for x as it is given, not standardised. A
        feature that does not vary has coefficient 0.
    """
    mean, target_mean = sums.x / sums.n, sums.y / sums.n
    covariance = sums.xx / sums.n - np.outer(mean, mean)
    scale = _scale(covariance, sums, standardise)
    values, basis = eigh((covariance / np.outer(scale, scale)).astype(dtype), driver="evd", check_finite=False)
    projected = basis.T @ ((sums.xy / sums.n - np.outer(mean, target_mean)) / scale[:, None]).astype(dtype)
    shrunk = projected / (np.maximum(values, 0)[:, None] + penalties.reshape(len(penalties), 1, -1))
    coefficients = (basis / scale[:, None]).astype(dtype) @ shrunk.astype(dtype)
    return coefficients, target_mean - mean @ coefficients


def squared_errors(sums: Moments, coefficients: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """Return summed squared errors [k, targets] of the fits of :func:`ridge_path` on other rows, from their sums alone."""
    linear = (sums.xy * coefficients).sum(axis=1)
    quadratic = (coefficients * (sums.xx.astype(coefficients.dtype) @ coefficients)).sum(axis=1)
    offset = intercepts * (sums.n * intercepts - 2 * sums.y + 2 * sums.x @ coefficients)
    return sums.yy - 2 * linear + quadratic + offset


# One thread: matrices this small gain nothing from more, and NumPy's and SciPy's threads get in each other's way.
@threadpool_limits.wrap(limits=1)
def ridge_held_out(
    x: np.ndarray | Features, y: np.ndarray, fold: np.ndarray, blocks: np.ndarray | None = None
) -> np.ndarray:
    """Predict every row from the folds that it is not in, [rows, targets].

    The penalty of each fold is chosen by cross-validation over the remaining folds, so no row has a part in choosing or
    fitting what predicts it.

    Args:
        x: [rows, width].
        y: [rows, targets].
        fold: fold of every row, [rows]; from :func:`grouped_folds`.
        blocks: [targets]; targets of a block share a penalty. By default all do.
    """
    blocks = np.zeros(y.shape[1], dtype=int) if blocks is None else blocks
    read = features(x)
    x, standardise = read.values, read.standardise
    shift, names, parts, total = _by_fold(x, y, fold)
    errors = np.zeros((len(parts), len(PENALTIES), y.shape[1]))
    for first in range(len(parts)):
        for second in range(first):
            # To choose a penalty float32 is enough, and takes half the time.
            fitted = ridge_path(total - parts[first] - parts[second], standardise=standardise, dtype=np.float32)
            errors[first] += squared_errors(parts[second], *fitted)
            errors[second] += squared_errors(parts[first], *fitted)
    predicted = np.empty(y.shape)
    for name, part, error in zip(names, parts, errors, strict=True):
        best = [error[:, blocks == block].sum(axis=1).argmin() for block in blocks]
        coefficients, intercepts = ridge_path(total - part, PENALTIES[None, best], standardise)
        predicted[fold == name] = (x[fold == name] - shift).astype(np.float64) @ coefficients[0] + intercepts[0]
    return predicted


def discriminant_held_out(x: np.ndarray | Features, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Predict the label of every row from the folds that it is not in, by a shrunk linear discriminant.

    Args:
        x: [rows, width].
        labels: integers from 0, [rows].
        fold: fold of every row, [rows].

    Returns:
        Labels, [rows].
    """
    read = features(x)
    x, standardise = read.values, read.standardise
    shift, names, parts, total = _by_fold(x, np.eye(labels.max() + 1)[labels], fold)
    predicted = np.empty(len(x), dtype=int)
    for name, part in zip(names, parts, strict=True):
        sums = total - part
        with np.errstate(divide="ignore", invalid="ignore"):
            means = sums.xy / sums.y
            prior = np.log(sums.y / sums.n)
        means = np.where(sums.y > 0.5, means, 0.0)
        within = sums.xx / sums.n - (means * (sums.y / sums.n)) @ means.T
        scale = _scale(within, sums, standardise)
        correlation = within / np.outer(scale, scale)
        shrunk = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(len(scale))
        directions = cho_solve(cho_factor(shrunk), means / scale[:, None]) / scale[:, None]
        offsets = np.where(sums.y > 0.5, prior - (means * directions).sum(axis=0) / 2, -np.inf)
        predicted[fold == name] = ((x[fold == name] - shift) @ directions + offsets).argmax(axis=1)
    return predicted


def _by_fold(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Moments], Moments]:
    # A constant shift changes no prediction; without it the sums would lose digits where means are large.
    shift = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    names = np.unique(fold)
    parts = [moments(x[fold == name] - shift, y[fold == name]) for name in names]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return shift, names, parts, total


def _scale(covariance: np.ndarray, sums: Moments, standardise: bool) -> np.ndarray:
    """Standard deviations, or ones, [width]; infinite where a feature does not vary, so that it drops out."""
    variance = covariance.diagonal()
    varies = variance > 1e-10 * np.maximum(sums.xx.diagonal() / sums.n, 1e-30)
    return np.where(varies, np.sqrt(np.maximum(variance, 0)) if standardise else 1.0, np.inf)
