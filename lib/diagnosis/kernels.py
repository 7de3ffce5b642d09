"""Ridge regression by kernels: every held-out prediction, of folds, of folds within folds, of subsets, from one inverse.

With a kernel K [rows, rows] and a penalty, let A be the inverse of K + penalty. Ridge fitted without the rows S predicts
them by -A[S, S]^-1 A[S, T] y[T], where T are the others: the formula behind leave-one-out residuals (for instance Hastie,
Tibshirani and Friedman, 2009, section 7.10), for a block of rows. The width of a representation does not enter, so all
features are read, however many; and further targets, such as permuted ones, cost a product of matrices.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import spotri

PENALTIES = np.logspace(-1, 2, 4)
"""Ridge penalties on a kernel whose diagonal has mean 1. Wherever one is chosen, infinity may be among the choices."""


def linear(x: np.ndarray) -> np.ndarray:
    """Return the kernel of standardised features x [rows, width], with mean diagonal 1, [rows, rows] in float32.

    A feature that does not vary drops out. No label enters, so held-out rows may help to standardise.
    """
    centred = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    deviation = centred.std(axis=0, dtype=np.float64)
    varies = deviation > 1e-6 * np.maximum(np.abs(x).max(axis=0), 1e-30)
    standard = (centred[:, varies] / deviation[varies] / np.sqrt(max(varies.sum(), 1))).astype(np.float32)
    return standard @ standard.T


def inverse(kernel: np.ndarray, penalty: float) -> np.ndarray:
    """Return the inverse of kernel + penalty, [rows, rows] in float32."""
    shifted = kernel.astype(np.float32, order="F", copy=True)
    shifted.flat[:: len(shifted) + 1] += np.float32(penalty)
    factor, _ = cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
    lower, _ = spotri(factor, lower=True, overwrite_c=True)
    lower = np.tril(lower)
    return lower + np.tril(lower, -1).T


def left_out(inverse_: np.ndarray, targets: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Predict the rows ``out`` by ridge fitted without them, [rows out, targets].

    Args:
        inverse_: of the kernel of all rows and the penalty, as :func:`inverse` returns it.
        targets: [rows, targets]; those of the rows ``out`` are not read.
        out: indices of the rows to leave out.
    """
    known = targets.astype(np.float32, copy=True)
    known[out] = 0
    strips = inverse_[out]
    factor = cho_factor(strips[:, out], lower=True, overwrite_a=True, check_finite=False)
    return -cho_solve(factor, strips @ known, overwrite_b=True, check_finite=False)
