"""Least squares with errors by family: few clusters of unequal size, and what they cannot say is refused.

Models of one family share data and design, so they are not independent. The bias-reduced cluster-robust variance (CR2) of
Bell and McCaffrey (2002) with Satterthwaite's degrees of freedom, as Pustejovsky and Tipton (2018) give it for a working
model of equal, independent errors, keeps its level with few clusters, where the usual sandwich is far too small.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

MINIMUM_CLUSTERS = 3
"""With fewer clusters there is nothing to estimate their variance from."""

NEGLIGIBLE = 1e-8


class Coefficient(NamedTuple):
    """An estimate with its standard error and the degrees of freedom of its t; ``alone`` is the cluster it rests on, if one."""

    estimate: float
    standard_error: float
    degrees: float
    alone: str | None = None

    def p(self) -> float:
        """Return the two-sided p of no difference."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(2 * stats.t.sf(np.abs(np.divide(self.estimate, self.standard_error)), self.degrees))


def fit(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> list[Coefficient]:
    """Fit ``y`` [rows] on a design of full rank, ``x`` [rows, terms], with errors that are independent between clusters [rows].

    A coefficient that one cluster alone determines has no standard error, whatever rounding leaves of it: it names the cluster.
    """
    inverse = np.linalg.inv(x.T @ x)
    residual_maker = np.eye(len(x)) - x @ inverse @ x.T
    residuals, estimates = residual_maker @ y, inverse @ x.T @ y
    # What every cluster adds to the error of every coefficient, as weights on rows: [terms, rows] for each cluster.
    shares, alone = [], np.full(x.shape[1], None, dtype=object)
    for name in np.unique(clusters):
        rows = np.flatnonzero(clusters == name)
        values, vectors = np.linalg.eigh(residual_maker[np.ix_(rows, rows)])
        kept = values > NEGLIGIBLE
        reach = inverse @ x[rows].T @ vectors
        alone[np.linalg.norm(reach[:, ~kept], axis=1) > NEGLIGIBLE] = str(name)
        adjusted = reach[:, kept] / np.sqrt(values[kept]) @ vectors[:, kept].T
        shares.append(adjusted @ residual_maker[rows])
    weights = np.stack(shares)
    errors = np.linalg.norm(weights @ residuals, axis=0)
    found = []
    for term, estimate in enumerate(estimates):
        gram = weights[:, term] @ weights[:, term].T
        degrees = np.trace(gram) ** 2 / (gram**2).sum() if alone[term] is None else np.nan
        error = errors[term] if alone[term] is None else np.nan
        found.append(Coefficient(float(estimate), float(error), float(degrees), alone[term]))
    return found
