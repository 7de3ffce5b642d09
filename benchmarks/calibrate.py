"""How often is the decision on indifference wrong? Worlds whose truth is known, through the code of stage 03.

    python benchmarks/calibrate.py                        # make calibrate: goes on where it stopped
    python benchmarks/calibrate.py --runs 20 --minutes 30 --processes 2

What each run of a world (:mod:`benchmarks.worlds`) decided is added to ``benchmarks/calibration_runs.csv``, which is kept
with the code: a calibration takes hours, and the next sitting, or another machine, goes on with it. Runs of other code are
made again. Rates over all of them are written to ``benchmarks/calibration.csv`` and drawn beside it.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from matplotlib.figure import Figure
from scipy.stats import norm
from tqdm.auto import tqdm

from benchmarks import calibrate_claims, rates
from benchmarks.worlds import MARGINS, World, run
from lib.diagnosis.decisions import EQUIVALENT, MEASURES, SIGNAL, UNDECIDED
from lib.diagnosis.figures import COLOURS_OF_LINES
from lib.diagnosis.gains import REPLICATES
from lib.run.files import replacing, short
from lib.run.provenance import code_hash, sha256_of_json

HERE = Path(__file__).parent
RUNS = HERE / "calibration_runs.csv"
RESULT = HERE / "calibration.csv"
COLUMNS = [
    "decision", "world", "effect", "rows", "width", "runs", "rate_signal", "rate_equivalent", "rate_undecided", "coverage",
]  # fmt: skip
KEYS = [*World._fields, "seed"]
"""Columns that say which run a row is of."""

WORLDS = [
    *(World("effect", effect, rows, 64, 2) for rows in (1_000, 3_000) for effect in (0.0, 0.05, 0.15, 0.4)),
    *(World(confound, 0.0, 1_000, 64, 2) for confound in ("words", "length", "topic")),
    *(World("effect", effect, 1_000, width, 2) for width in (512, 2_048) for effect in (0.0, 0.15)),
    *(World("effect", effect, 1_000, 64, layers) for layers in (6, 36) for effect in (0.0, 0.15)),
    *(World("effect", effect, 16_000, 64, 2) for effect in (0.0, 0.15)),
]

LONG = 4
"""A world that takes a minute a run gets one run where the others get this many."""

ALT = "Share of simulated runs decided as signal, by the true effect, one panel per kind of indifference; 5% is dotted."

MODERATE = 0.15
"""Share of the label's variance that no word tells, and that a useful decision finds."""


def identity() -> str:
    """Return what decides a run beside its world and seed, as a hash: the worlds, the code of the diagnosis, the margins."""
    worlds = (HERE / "worlds.py").read_text(encoding="utf-8")
    return sha256_of_json({"code": code_hash(worlds), "margins": MARGINS})[:16]


def kept(path: Path, code: str) -> pd.DataFrame:
    """Return the runs in ``path`` that were made by ``code``, a row per world, seed, kind and layer."""
    runs = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*KEYS, "code"])
    return runs[runs["code"] == code]


def missing(runs: pd.DataFrame, seeds: int) -> list[tuple[World, int]]:
    """Return the worlds and seeds that ``runs`` lack, seed by seed; a world that takes long at every ``LONG``-th seed."""
    done = {(World(*values), seed) for *values, seed in runs[KEYS].itertuples(index=False)}
    asked = [(world, seed) for seed in range(seeds) for world in WORLDS if not takes_long(world) or seed % LONG == 0]
    return [one for one in asked if one not in done]


def takes_long(world: World) -> bool:
    """Whether a run of the world takes a minute or more, by its rows and layers."""
    return world.rows >= 3_000 or world.layers >= 12


def made(todo: list[tuple[World, int]], *, processes: int, minutes: float) -> Iterator[pd.DataFrame]:
    """Yield the runs of ``todo`` as they end, each in one thread of ``processes``; none is begun after ``minutes``."""
    deadline = time.monotonic() + 60 * minutes
    os.environ["TQDM_DISABLE"] = "1"  # of the processes that start now; this one has read it already

    def begun() -> Iterator[tuple[World, int]]:
        for world, seed in todo:
            if time.monotonic() > deadline:
                return
            yield delayed(run)(world, seed)

    with parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
        parallel = Parallel(return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1)
        yield from tqdm(parallel(begun()), desc="calibration", unit="run", total=len(todo))


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return rates over the runs of each world and kind, columns ``COLUMNS``.

    ``coverage`` is the share of runs in which the intervals of all layers hold the mean gain over all runs of the world, to
    within a hundredth of the margin: where the penalty leaves the representation out, gain and interval are exactly 0. A gain
    is a part of that mean, and so nearer to it than to the truth; what lies between them is drawn out by as much.
    """
    rows = []
    for (kind, *world), part in runs.groupby(["kind", *World._fields]):
        decided = part.drop_duplicates("seed")["decision"]
        away = part["gain"] - part.groupby("layer")["gain"].transform("mean")
        if len(decided) > 1:
            away *= np.sqrt(len(decided) / (len(decided) - 1))
        held = away.abs() <= (part["ci_high"] - part["ci_low"]) / 2 + MARGINS[kind] / 100
        shares = [(decided == decision).mean() for decision in (SIGNAL, EQUIVALENT, UNDECIDED)]
        name = world[0] if world[-1] == 2 else f"{world[0]}, {world[-1]} layers"
        rows.append((kind, name, *world[1:4], len(decided), *shares, held.groupby(part["seed"]).all().mean()))
    return pd.DataFrame(rows, columns=COLUMNS)


def sentences(runs: pd.DataFrame) -> str:
    """Say what the calibration found, from its runs; intervals are exact binomial ones of 95%.

    Worlds of the same size share the random numbers of a seed, and so do the kinds of a run. What is independent, and counted, is
    a draw: a seed at a number of rows and a width.
    """
    table = summary(runs)
    null = (
        runs[runs["effect"] == 0].drop_duplicates(["kind", *KEYS]).assign(false=lambda part: part["decision"] == SIGNAL)
    )
    draws = null.groupby(["seed", "rows", "width"])["false"].any()
    moderate = table[(table["effect"] == MODERATE) & (table["world"] == "effect")]
    moderate = moderate[moderate["width"] == moderate["width"].min()]
    power = "; ".join(
        f"with {rows:,} rows in "
        + ", ".join(f"{row.decision} {rates.said(row.rate_signal, row.runs)}" for row in part.itertuples())
        + f" of {part['runs'].max()} runs"
        for rows, part in moderate.groupby("rows")
    )
    return (
        f"Without effect, confounded worlds among them, {null['false'].sum()} of {len(null):,} decisions were *signal*; one at "
        f"least was in {rates.said(draws.mean(), len(draws))} of {len(draws)} independent draws. "
        f"An effect of {MODERATE:g} of the label's variance was found {power}. "
        "Intervals of 95% hold the gains of all layers at once; they did in "
        f"{_covered(table[table['effect'] > 0])} of decisions where there is an effect, and in "
        f"{_covered(table[table['effect'] == 0])} where there is none and most penalties leave the representation out. "
        f"{_wide(runs)}"
    )


def _covered(table: pd.DataFrame) -> str:
    return f"{table['coverage'] @ table['runs'] / table['runs'].sum():.1%}"


def _wide(runs: pd.DataFrame) -> str:
    """Say how wide intervals are, beside those of 95% from the spread of the gain over a world's runs: the median over worlds."""
    worlds = runs.assign(half=(runs["ci_high"] - runs["ci_low"]) / 2).groupby(["kind", "layer", *World._fields])
    spread = worlds["gain"].std()
    varies = spread > spread.index.get_level_values("kind").map(MARGINS) / 100
    if not varies.any():
        return ""
    wider = (worlds["half"].mean() / (norm.ppf(0.975) * spread))[varies].median()
    return (
        f"They are {wider:.1f} times as wide as one interval from the true spread would be, because they hold for all layers and "
        f"know the spread from {REPLICATES} refits alone. Some of what is *undecided* is so for this reason."
    )


def page() -> str:
    """Return what README and book say of the calibration: the figure, what was found, and from how many runs."""
    table, runs = pd.read_csv(RESULT), pd.read_csv(RUNS)
    return (
        f"![{ALT}](benchmarks/calibration.svg)\n\n{sentences(runs)}\n\n"
        f"{len(runs.drop_duplicates(KEYS)):,} runs of {len(table) // len(MEASURES)} simulated worlds "
        f"([the table](benchmarks/calibration.csv)); `make calibrate` adds more.{rates.age(runs['code'], identity())}\n\n"
        f"{calibrate_claims.page()}"
    )


def figure(table: pd.DataFrame) -> Figure:
    """How often each decision says signal, by the true effect; 5% is dotted, and every world without effect should lie below."""
    drawn, axes = plt.subplots(1, len(MEASURES), figsize=(9, 3.2), sharey=True, layout="constrained")
    for ax, measure_ in zip(axes, MEASURES, strict=True):
        part = table[table["decision"] == measure_.kind]
        lines = part[part["world"] == "effect"].groupby(["rows", "width"])
        for index, ((rows, width), line) in enumerate(lines):
            where = line["effect"] + 0.006 * index  # side by side, so that intervals do not hide each other
            ax.errorbar(
                where, line["rate_signal"], yerr=rates.bars(line["rate_signal"], line["runs"]),
                marker="o", markersize=4, linewidth=1, color=COLOURS_OF_LINES[index], label=f"{rows:,} rows, width {width}",
            )  # fmt: skip
        other = part[(part["world"] != "effect") & (part["effect"] == 0)]
        ax.errorbar(
            -0.01 * (1 + other.reset_index().index), other["rate_signal"],
            yerr=rates.bars(other["rate_signal"], other["runs"]), fmt="x", color="0.3", linewidth=1,
            label="confounded, or more layers",
        )  # fmt: skip
        ax.axhline(0.05, linestyle=":", color="0.5")
        ax.set(title=measure_.kind, xlabel="share of the label's variance\nthat no word tells", ylim=(-0.03, 1.03))
    axes[0].set_ylabel("share of runs decided as signal")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return drawn


def main() -> int:
    """Run the worlds in turn until each has its runs or the time is over, then write the rates and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="of every world")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--processes", type=int, default=-1, help="runs side by side; all cores unless given")
    asked = parser.parse_args()
    code = identity()
    runs = kept(RUNS, code)
    for one in made(missing(runs, asked.runs), processes=asked.processes, minutes=asked.minutes):
        runs = pd.concat([runs, one.assign(code=code)], ignore_index=True)
        runs = runs.sort_values(["seed", *World._fields, "kind", "layer"], ignore_index=True)
        with replacing(RUNS) as temporary:
            runs.to_csv(temporary, index=False, float_format="%.5g")
    left = len(missing(runs, asked.runs))
    if runs.empty:
        print(f"No run made, {left} to go.")
        return 0
    table = summary(runs)
    table.to_csv(RESULT, index=False, float_format="%.3f")
    figure(table).savefig(RESULT.with_suffix(".svg"), metadata={"Date": None})
    whole = len(runs.drop_duplicates(KEYS))
    print(f"{whole} runs made, {left} of {asked.runs} a world to go: {short(RUNS)}, {short(RESULT)}")
    print(sentences(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
