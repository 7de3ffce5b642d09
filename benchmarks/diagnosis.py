"""Clustering against the hdbscan package and the ridge path against refitting, at the paper's number of rows, in one run.

    python benchmarks/diagnosis.py

Clustering: 16,135 rows of 200 components in loose clusters; the peer is hdbscan with its default algorithm, the spanning
tree set to exact; labels must be identical. Ridge: nested folds and the whole path; the peer refits scikit-learn's Ridge
for every penalty and fold.
"""

import time
from collections.abc import Callable

import hdbscan
import numpy as np
from cells import record
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score

from lib.diagnosis import linear, structural
from lib.diagnosis.kernels import PENALTIES
from lib.diagnosis.sampling import FOLDS, grouped_folds

ROWS, COMPONENTS = 16_135, 200
RIDGE_ROWS, WIDTH, TARGETS = 4_000, 512, 10


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the wall time of one call and what it returned."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def clustering() -> None:
    """Compare labels and times of the two implementations."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(12, COMPONENTS)) * 1.2
    x = centres[generator.integers(0, 12, ROWS)] + generator.normal(size=(ROWS, COMPONENTS))
    x[: ROWS // 3] = generator.normal(size=(ROWS // 3, COMPONENTS)) * 1.8
    size, samples = structural.MIN_CLUSTER_SIZE, structural.MIN_SAMPLES
    peer = hdbscan.HDBSCAN(min_cluster_size=size, min_samples=samples, approx_min_span_tree=False)
    ours, found = timed(lambda: structural.hdbscan_labels(x))
    theirs, expected = timed(lambda: peer.fit_predict(x))
    clusters = len(np.unique(found[found >= 0]))
    same = adjusted_rand_score(expected, found)
    print(
        f"{clusters} clusters, {np.mean(found >= 0):.0%} not noise, adjusted Rand index of the two labelings {same:.6f}"
    )
    record("HDBSCAN, 16,135 x 200", "hdbscan, default algorithm, exact spanning tree", [ours], [theirs])


def ridge() -> None:
    """Compare nested cross-validation from one inverse per penalty with refitting every penalty in every fold."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(RIDGE_ROWS, WIDTH))
    y = x[:, :TARGETS] + generator.normal(size=(RIDGE_ROWS, TARGETS)) * 3
    fold = grouped_folds(np.arange(RIDGE_ROWS), 0)

    standard = (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(WIDTH)

    def refit() -> np.ndarray:
        predicted = np.empty_like(y)
        for outer in range(FOLDS):
            train, errors = fold != outer, np.zeros(len(PENALTIES))
            for inner in set(range(FOLDS)) - {outer}:
                fit, check = train & (fold != inner), fold == inner
                for k, penalty in enumerate(PENALTIES):
                    model = Ridge(alpha=penalty).fit(standard[fit], y[fit])
                    errors[k] += ((model.predict(standard[check]) - y[check]) ** 2).sum()
            model = Ridge(alpha=PENALTIES[errors.argmin()]).fit(standard[train], y[train])
            predicted[fold == outer] = model.predict(standard[fold == outer])
        return predicted

    ours, found = timed(lambda: linear.ridge_held_out(x, y, fold=fold))
    theirs, expected = timed(refit)
    print(f"largest difference of a prediction {np.abs(found - expected).max():.1e}")
    record("nested ridge path, 4,000 x 512", "scikit-learn's Ridge refitted for every penalty", [ours], [theirs])


if __name__ == "__main__":
    clustering()
    ridge()
