"""The paired gains of all readings of a model over words, with simultaneous intervals, the null and the wordlike controls.

The decision takes the best of several readings (pairs of a layer and a pooling), and what is said of it holds in spite of that
choice: ``p`` compares the highest gain over the penalties with the highest over readings and penalties under permutations
that all share (Westfall and Young, 1993), and intervals hold for all readings at once, by Student's t with the readings'
correlations over the jackknife's replicates.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import stats as distributions
from scipy.sparse import hstack
from sklearn.decomposition import TruncatedSVD
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from lib.diagnosis import controls, kernels, lexical
from lib.diagnosis.gains import PARTS, REPLICATES, Problem
from lib.diagnosis.kinds import Kind
from lib.stats import permutation_p

WORDLIKE = {
    "words_compressed": "words, compressed",
    "words_only": "words as random vectors",
    "length_only": "length alone",
}
"""Representations that hold words or length alone -> how figures call them. What counts as signal exceeds each of them too.

``words_compressed`` are the baseline's own features in as many dimensions as the model has, at most ``COMPRESSED``; the others
are those of :mod:`lib.diagnosis.controls`.
"""

BESIDE = {"length_only": "length alone", "embedding": "the model's embedding layer"}
"""Representations that stand beside the decision, the gain over each with its interval -> how figures call them.

The ``embedding`` is what the first block reads. It belongs to the model, so what it holds beyond words counts for the model in
the decision; the gain over it says what the blocks add.
"""

OVER = [f"over_{name}{end}" for name in BESIDE for end in ("", "_low", "_high")]
WITHOUT = [f"without_{replicate}" for replicate in range(REPLICATES)]
COLUMNS = [
    "kind", "pooling", "layer", "words", "careful", "gain", "ci_low", "ci_high", "p", "equivalence_high", "control",
    "control_gain", "control_low", "n", *OVER, *WITHOUT,
]  # fmt: skip

DEGREES = REPLICATES - REPLICATES // PARTS
"""Of freedom of Student's t for the jackknife: every division into parts costs one."""

COMPRESSED = 256
"""Dimensions of ``words_compressed`` at most."""


class Reading(NamedTuple):
    """Where a representation is read."""

    layer: int
    pooling: str


class Gained(NamedTuple):
    """Scores of one kind, one reading: words + representation, and less words.

    Attributes:
        careful: of words + representation.
        gain: less words.
        without: gain in each replicate, [replicates].
        fixed: gain for each fixed penalty, [penalties, 1 + draws]; the first is the measured one, then come those of the null.
        fixed_without: gain for each fixed penalty in each replicate, [penalties, replicates].
    """

    careful: float
    gain: float
    without: np.ndarray
    fixed: np.ndarray
    fixed_without: np.ndarray


def measure(
    kinds: Mapping[str, Kind],
    *,
    actions: Sequence[str],
    tokens: np.ndarray,
    readings: Sequence[Reading],
    read: Callable[[Reading], np.ndarray],
    width: int,
    beside: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    processes: int = 1,
) -> pd.DataFrame:
    """Measure what each reading of a model adds to words.

    Args:
        kinds: as :func:`lib.diagnosis.kinds.kinds_of` returns them.
        actions: normalised action of every row, [rows].
        tokens: number of tokens of every row, [rows].
        readings: what to read.
        read: gives the representation of all rows, [rows, width]; it runs in processes of their own.
        width: of the model, for the wordlike controls.
        beside: name in ``BESIDE`` -> a further representation of all rows, [rows, its width], without a part in ``p`` or
            ``control``.
        seed: of the wordlike controls and of the simultaneous intervals.
        processes: how many readings to measure in parallel.

    Returns:
        Columns ``COLUMNS``, a row per kind and reading, and per kind and control (``pooling`` is its name, ``layer`` is
        missing). ``words``, ``careful`` and their difference ``gain`` with its 95% interval; ``p``, the chance of a gain this
        high anywhere if the representations were those of other actions, with other words: small for whatever holds words, so
        it decides nothing without the wordlike controls; ``equivalence_high``, the highest one-sided 95% upper bound of the
        gain over the penalties, infinite for a reading with a value that is not finite, whose other numbers are missing;
        ``control``, the wordlike control over which the gain is least certain, ``control_gain`` and ``control_low``, the
        paired difference and the lower end of its 95% interval; ``over_...``, the same with both ends for each of ``BESIDE``;
        ``without_...``, the gain in each replicate of the jackknife.
    """
    features, length = lexical.tfidf(list(actions)), lexical.lengths(list(actions), tokens)
    wordlike = {
        "words_compressed": _compressed(features, width, seed),
        "words_only": controls.words_only(list(actions), width, seed),
        "length_only": controls.length_features(tokens).astype(np.float32),
    }
    posed = [(kind, problem) for kind in kinds.values() for problem in kind.problems]
    parallel = Parallel(processes, return_as="generator", max_nbytes=None)
    fits = parallel(
        delayed(_fit)(kind, [block[problem.rows] for block in features], length[problem.rows], problem)
        for kind, problem in posed
    )
    baselines: dict[str, list] = {name: [] for name in kinds}
    for (kind, _), fitted in zip(posed, tqdm(fits, desc="words", total=len(posed), unit="problem"), strict=True):
        baselines[kind.name].append(fitted)
    others = wordlike | dict(beside or {})
    sources = [*readings, *others]
    jobs = parallel(delayed(_read)(kinds, baselines, others.get(source, source), read) for source in sources)
    gained = list(tqdm(jobs, desc="words + representation", total=len(sources), unit="reading"))
    frames = [
        _frame(kind, _words(kind, baselines[name])[0], [part.get(name) for part in gained], sources=sources, seed=seed)
        for name, kind in kinds.items()
        if kind.problems
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _compressed(features: list, width: int, seed: int) -> np.ndarray:
    together = hstack(features).tocsr()
    size = min(width, COMPRESSED, min(together.shape) - 1)
    return TruncatedSVD(size, random_state=seed).fit_transform(together).astype(np.float32)


def _fit(kind: Kind, features: list, length: np.ndarray, problem: Problem) -> tuple:
    with threadpool_limits(1):
        return kind.fit(lexical.kernel(features, length, kind.topics[problem.rows]), problem)


def _words(kind: Kind, baselines: list) -> tuple[float, np.ndarray]:
    """Score the baseline, and in each replicate, [replicates]."""
    whole, without = [], []
    for problem, of in zip(kind.problems, baselines, strict=True):
        whole.append(kind.score(problem.targets, of.predicted[None], problem.fold)[0])
        without.append(_replicated(kind, problem, of.predicted[None], of.predicted_without[None])[0])
    return float(np.mean(whole)), np.mean(without, axis=0)


def _replicated(kind: Kind, problem: Problem, predicted: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Score each replicate, [draws, replicates]: the effect of the rows scored, and a part of that of the rows learned from.

    Args:
        kind: gives the score and the part.
        problem: the labels, and which rows a replicate leaves out.
        predicted: learned from all rows, [draws, rows, targets].
        without: learned from those of each replicate, [draws, replicates, rows, targets].
    """
    truth, fold = problem.targets, problem.fold
    scored = [kind.score(truth[kept], predicted[:, kept], fold[kept]) for kept in ~problem.without]
    learned = [kind.score(truth, without[:, replicate], fold) for replicate in range(REPLICATES)]
    effect = np.stack(learned, axis=1) - kind.score(truth, predicted, fold)[:, None]
    return np.stack(scored, axis=1) + kind.learned * effect


def _read(
    kinds: Mapping[str, Kind],
    baselines: Mapping[str, list],
    source: Reading | np.ndarray,
    read: Callable[[Reading], np.ndarray],
) -> dict[str, Gained]:
    permute = isinstance(source, Reading)
    with threadpool_limits(1):
        x = read(source) if isinstance(source, Reading) else source
        if not np.isfinite(x).all():
            return {}
        return {
            name: _gained(kind, baselines[name], x, permute=permute) for name, kind in kinds.items() if kind.problems
        }


def _gained(kind: Kind, baselines: list, x: np.ndarray, *, permute: bool) -> Gained:
    parts = []
    for problem, of in zip(kind.problems, baselines, strict=True):
        added = kind.add(kernels.linear(x[problem.rows]), of, problem=problem, permute=permute)
        truth, fold = problem.targets, problem.fold
        chosen = (of.predicted + added.chosen)[None]
        fixed = [kind.score(truth, of.predicted + drawn, fold) for drawn in added.fixed]
        parts.append(
            (
                kind.score(truth, chosen, fold),
                _replicated(kind, problem, chosen, (of.predicted_without + added.chosen_without)[None])[0],
                np.stack(fixed),
                _replicated(
                    kind, problem, of.predicted + added.fixed[:, 0], of.predicted_without + added.fixed_without
                ),
            )
        )
    careful, without, fixed, fixed_without = (np.mean(part, axis=0) for part in zip(*parts, strict=True))
    words, words_without = _words(kind, baselines)
    return Gained(careful[0], careful[0] - words, without - words_without, fixed - words, fixed_without - words_without)


def _frame(
    kind: Kind, words: float, gained: list[Gained | None], *, sources: Sequence[Reading | str], seed: int
) -> pd.DataFrame:
    known = [(source, part) for source, part in zip(sources, gained, strict=True) if part is not None]
    models = [(source, part) for source, part in known if isinstance(source, Reading)]
    others = [(source, part) for source, part in known if not isinstance(source, Reading)]
    n = len(np.unique(np.concatenate([problem.rows for problem in kind.problems])))
    records = []
    if models:
        gains = np.array([part.gain for _, part in models])
        without = np.array([part.without for _, part in models])
        highest = np.max([part.fixed[:, 1:].max(axis=0) for _, part in models], axis=0)
        error, factor = simultaneous(without, seed)
        over = {name: within(gains - part.gain, without - part.without, seed) for name, part in others}
        unknown = (np.full(len(gains), np.nan),) * 3
        for index, (source, part) in enumerate(models):
            strongest = min((name for name in over if name in WORDLIKE), key=lambda name: over[name][1][index])
            half = factor * error[index]
            records.append(
                (
                    kind.name, source.pooling, float(source.layer), words, part.careful, gains[index], gains[index] - half,
                    gains[index] + half, permutation_p(part.fixed[:, 0].max(), highest), upper(part), strongest,
                    over[strongest][0][index], over[strongest][1][index], n,
                    *(end[index] for name in BESIDE for end in over.get(name, unknown)), *part.without,
                )
            )  # fmt: skip
    for source, part in zip(sources, gained, strict=True):
        if part is None and isinstance(source, Reading):
            said = {"kind": kind.name, "pooling": source.pooling, "layer": float(source.layer), "words": words, "n": n}
            said |= {"equivalence_high": np.inf, "control": ""}
            records.append(tuple(said.get(column, np.nan) for column in COLUMNS))
    for name, part in others:
        half = distributions.t.ppf(0.975, DEGREES) * simultaneous(part.without[None], seed)[0][0]
        nothing = float("nan")
        records.append(
            (
                kind.name, name, nothing, words, part.careful, part.gain, part.gain - half, part.gain + half,
                nothing, upper(part), "", nothing, nothing, n, *[nothing] * len(OVER), *part.without,
            )
        )  # fmt: skip
    return pd.DataFrame(records, columns=COLUMNS)


def upper(gained: Gained) -> float:
    """Return the highest one-sided 95% upper bound of the gain over the chosen penalty and every fixed one.

    A penalty that shrinks everything away gives a gain of 0 without any spread, whatever the representation holds. The others
    show what the rows can tell at all: with few rows their bounds are wide, so few rows are no evidence of equivalence.
    """
    gains = np.append(gained.fixed[:, 0], gained.gain)
    error, _ = simultaneous(np.vstack([gained.fixed_without, gained.without]), 0)
    return float((gains + distributions.t.ppf(0.95, DEGREES) * error).max())


def within(value: np.ndarray, without: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return estimates [estimates] and the ends of their 95% intervals, which hold for all at once; as :func:`simultaneous`."""
    error, factor = simultaneous(without, seed)
    return value, value - factor * error, value + factor * error


def simultaneous(without: np.ndarray, seed: int, *, draws: int = 20_000) -> tuple[np.ndarray, float]:
    """Return jackknife standard errors and the factor by which 95% intervals hold for all estimates at once.

    Args:
        without: estimates in each replicate, [estimates, replicates].
        seed: of the draws of correlated t values.
        draws: of these.
    """
    deviation = without - without.mean(axis=1, keepdims=True)
    error = np.sqrt((PARTS - 1) * (deviation**2).mean(axis=1))
    varies = error > 0
    if not varies.any():
        return error, float(distributions.t.ppf(0.975, DEGREES))
    generator = np.random.default_rng(seed)
    direction = deviation[varies] / np.linalg.norm(deviation[varies], axis=1)[:, None]
    normal = generator.standard_normal((draws, REPLICATES)) @ direction.T
    scale = np.sqrt(generator.chisquare(DEGREES, draws) / DEGREES)
    return error, float(np.quantile(np.abs(normal).max(axis=1) / scale, 0.95))
