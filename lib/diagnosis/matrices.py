"""The three products of matrices that take most of a wide model's diagnosis, on a card where there is one.

NumPy, SciPy and scikit-learn take them on the processor, PyTorch on a card, with the same result but for rounding.
"""

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.metrics.pairwise import euclidean_distances

BLOCK = 512
"""Rows of the distance matrix at a time. No product of a large matrix with its own transpose: OpenBLAS 0.3.31 was seen to
crash on that at 16,135 x 2,000."""


def card() -> torch.device | None:
    """Return the card to compute on, None where there is none."""
    return torch.device("cuda") if torch.cuda.is_available() else None


def centred(x: np.ndarray) -> np.ndarray:
    """Return rows about their mean, in float32, [rows, width]; the mean is taken off in float64."""
    return np.subtract(x, x.mean(axis=0, dtype=np.float64), out=np.empty(x.shape, dtype=np.float32))


def covariance(x: np.ndarray, device: torch.device | None = None) -> np.ndarray:
    """Return the covariance of rows [rows, width] in float32, [width, width].

    Rows are centred in float64 before that, because a covariance loses the digits that a large mean takes.
    """
    rows = centred(x)
    if device is None:
        return rows.T @ rows / np.float32(len(rows))
    on_card = torch.from_numpy(rows).to(device)
    return (on_card.T @ on_card / len(rows)).cpu().numpy()


def eigenvectors(symmetric: np.ndarray, device: torch.device | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues [width], ascending, and eigenvectors, the columns of [width, width]."""
    if device is None:
        # Divide and conquer; the default driver takes longer when a large part of the vectors is wanted.
        return eigh(symmetric, driver="evd", check_finite=False)
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric).to(device))
    return values.cpu().numpy(), vectors.cpu().numpy()


def distances(points: np.ndarray, device: torch.device | None = None) -> np.ndarray:
    """Return Euclidean distances between points [rows, width], each pair taken once, float32 [rows, rows]."""
    # Small differences of large numbers are taken in float64. The result is as fine as float32 points allow, and half as large.
    count, points = len(points), points.astype(np.float64)
    whole = points if device is None else torch.from_numpy(points).to(device)
    between = np.empty((count, count), dtype=np.float32)
    for start in range(0, count, BLOCK):
        block, rest = slice(start, start + BLOCK), slice(start, None)
        between[block, rest] = _between(whole[block], whole[rest])
        between[rest, block] = between[block, rest].T
    np.fill_diagonal(between, 0)
    return between


def _between(some: np.ndarray | torch.Tensor, others: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(some, torch.Tensor):
        return torch.cdist(some, others).cpu().numpy()
    return euclidean_distances(some, others)
