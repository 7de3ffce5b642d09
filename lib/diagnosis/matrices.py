"""The two products of matrices that take most of a wide model's diagnosis, on a GPU where there is one.

NumPy and SciPy take them on the CPU, PyTorch on a GPU, with the same result but for rounding.
"""

import numpy as np
import torch
from scipy.linalg import eigh


def gpu() -> torch.device | None:
    """Return the GPU to compute on, None where there is none."""
    return torch.device("cuda") if torch.cuda.is_available() else None


def centred(x: np.ndarray) -> np.ndarray:
    """Return rows about their mean, in float32, [rows, width]; the mean is subtracted in float64."""
    return np.subtract(x, x.mean(axis=0, dtype=np.float64), out=np.empty(x.shape, dtype=np.float32))


def covariance(x: np.ndarray, device: torch.device | None = None) -> np.ndarray:
    """Return the covariance of rows [rows, width] in float32, [width, width].

    Rows are centred in float64 before that, because a covariance loses the digits that a large mean takes.
    """
    rows = centred(x)
    if device is None:
        return rows.T @ rows / np.float32(len(rows))
    on_device = torch.from_numpy(rows).to(device)
    return (on_device.T @ on_device / len(rows)).cpu().numpy()


def eigenvectors(symmetric: np.ndarray, device: torch.device | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues [width], ascending, and eigenvectors, the columns of [width, width]."""
    if device is None:
        # Divide and conquer; the default driver takes longer when a large part of the vectors is wanted.
        return eigh(symmetric, driver="evd", check_finite=False)
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric).to(device))
    return values.cpu().numpy(), vectors.cpu().numpy()
