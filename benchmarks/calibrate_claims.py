"""How often is a claim decided wrongly? Evidence whose truth is known, through the code of stage 09.

    python benchmarks/calibrate_claims.py                      # a part of make calibrate: an hour; goes on where it stopped
    python benchmarks/calibrate_claims.py --runs 20 --processes 2

Three modules of worlds say what is drawn: verdicts on answers (:mod:`benchmarks.judged_worlds`), latents on held-out rows
(:mod:`benchmarks.aligned_worlds`) and measures of models (:mod:`benchmarks.compared_worlds`). Each draw becomes evidence and the
ledger's outcome on the run's own terms. The rates are written to ``benchmarks/calibration_claims.csv``, world by world, and drawn
beside it; those of other code are made again.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from benchmarks import aligned_worlds, claim_rates, compared_worlds, judged_worlds, rates
from benchmarks.claim_rates import PUBLISHED, WHERE, summary
from lib.claims.ledger import REPRODUCED
from lib.diagnosis.figures import COLOURS_OF_LINES
from lib.run.files import replacing, short
from lib.run.provenance import code_hash, sha256_of_json

HERE = Path(__file__).parent
RESULT = HERE / "calibration_claims.csv"
MODULES = (judged_worlds, aligned_worlds, compared_worlds)
FOUND = 0.8
"""Share of runs in which a true claim should come out as reproduced."""

ALT = (
    "Share of simulated runs in which each claim comes out as reproduced, one panel per amount of data, highest over worlds: "
    "where it is untrue or a control explains it, beside a dotted line at 5%, and where it is true."
)


def identity() -> str:
    """Return what decides the rates beside the seeds, as a hash: the worlds, how they are counted, and the code of the claims."""
    sources = [Path(module.__file__).read_text(encoding="utf-8") for module in (claim_rates, *MODULES)]
    return sha256_of_json([code_hash(source) for source in sources])[:16]


def sentences(table: pd.DataFrame) -> str:
    """Say what the rates are; intervals are exact binomial ones of 95%."""
    false, true = table[~table["holds"]], table[table["holds"]]
    worst = false.loc[false[REPRODUCED].idxmax()]
    best = true.loc[true.groupby("claim")[REPRODUCED].idxmax()].sort_values(REPRODUCED, ascending=False)
    seldom = best[best[REPRODUCED] < FOUND]
    power = f"Where it is true, {len(best) - len(seldom)} of {len(best)} claims are *reproduced* in {FOUND:.0%} of runs or more"
    if len(seldom):
        power += " in the world and at the size that suit them best; less often even there: "
        power += ", ".join(f"{row.claim} {getattr(row, REPRODUCED):.0%}" for row in seldom.itertuples())
    largest = true[true["size"] == true.groupby("claim")["size"].transform("last")]
    if len(out := largest[largest[REPRODUCED] < 1 - FOUND]):
        power += f". Hardly ever, although true and at the largest size, {_listed(out)}"
    known = table.dropna(subset="coverage")
    covered = known["coverage"] @ known["runs"] / known["runs"].sum()
    return (
        "A claim that is untrue, or that a control explains, came out as *reproduced* in "
        f"{rates.said(worst[REPRODUCED], worst['runs'])} of {worst['runs']} runs at most ({worst['claim']}, world "
        f"*{worst['world']}*, {worst['size']}), and in {false[REPRODUCED].mean():.1%} on average. {power}. "
        f"Intervals, of 90% for equivalence and else of 95%, held the truth in {covered:.1%} of runs; those of several layers "
        "hold for all at once."
    )


def _listed(rows: pd.DataFrame) -> str:
    return ", ".join(f"{row.claim} (*{row.world}*, {getattr(row, REPRODUCED):.0%})" for row in rows.itertuples())


def page() -> str:
    """Return what README and book say: the figure, what was found, and whether this code found it."""
    table = pd.read_csv(RESULT)
    usual = compared_worlds.WORLDS[1]
    return (
        f"![{ALT}](benchmarks/{RESULT.with_suffix('.svg').name})\n\n{sentences(table)}\n\n"
        f"{table['claim'].nunique()} claims in {table['world'].nunique()} worlds ([the table](benchmarks/{RESULT.name})). In "
        f"*{usual.name}* families differ by {usual.family:g} of a margin (standard deviation) and models by {usual.own:g}."
        f"{rates.age(table['code'], identity())}"
    )


def figure(table: pd.DataFrame) -> Figure:
    """How often each claim is reproduced where it should not be, and where it should be, by the amount of data."""
    sizes = list(dict.fromkeys(table["size"]))
    counts = [table.loc[table["size"] == size, "claim"].nunique() for size in sizes]
    drawn, axes = plt.subplots(
        len(sizes), 1, figsize=(7.5, 0.28 * sum(counts) + 3), sharex=True, layout="constrained", height_ratios=counts,
        squeeze=False,
    )  # fmt: skip
    for ax, size in zip(axes[:, 0], sizes, strict=True):
        part = table[table["size"] == size]
        claims = [claim for claim in PUBLISHED["id"] if claim in set(part["claim"])][::-1]
        for holds, marker, up, name in (
            (False, "x", -0.15, "untrue, or explained by a control"),
            (True, "o", 0.15, "true"),
        ):
            shown = part[part["holds"] == holds].groupby("claim").agg({REPRODUCED: "max", "runs": "min"})
            ax.errorbar(
                shown[REPRODUCED], [claims.index(claim) + up for claim in shown.index],
                xerr=rates.bars(shown[REPRODUCED], shown["runs"]), fmt=marker, markersize=4, linewidth=1,
                color=COLOURS_OF_LINES[int(holds)], label=name,
            )  # fmt: skip
        ax.axvline(0.05, linestyle=":", color="0.5")
        ax.set_title(size, fontsize="medium", loc="left")
        ax.set_yticks(range(len(claims)), claims)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.6, len(claims) - 0.4))
    axes[-1, 0].set_xlabel("share of runs that reproduce the claim, highest over worlds")
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return drawn


def kept(path: Path, code: str, runs: int) -> pd.DataFrame:
    """Return the rates in ``path`` that ``code`` made from at least so many runs."""
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*WHERE, "runs", "code"])
    return table[(table["code"] == code) & (table["runs"] >= runs)]


def main() -> int:
    """Run every world at every size, then write the rates and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of every world at every size")
    parser.add_argument("--processes", type=int, default=-1, help="runs side by side; all cores unless given")
    asked = parser.parse_args()
    code = identity()
    table = kept(RESULT, code, asked.runs)
    done = set(zip(table["size"], table["world"], strict=True))
    worlds = [(module, world, size) for module in MODULES for size in module.SIZES for world in module.WORLDS]
    todo = [(module, world, size) for module, world, size in worlds if (str(size), world.name) not in done]
    bar = tqdm(desc="claims", unit="run", total=len(todo) * asked.runs)
    for module, world, size in todo:
        with parallel_config("loky", n_jobs=asked.processes, inner_max_num_threads=1):
            jobs = Parallel(return_as="generator")(delayed(module.run)(world, size, seed) for seed in range(asked.runs))
            runs = []
            for run in jobs:
                runs.append(run)
                bar.update()
        made = summary(pd.concat(runs)).assign(code=code)
        table = pd.concat([table, made], ignore_index=True).astype({"holds": bool})  # of an empty one it is an object
        with replacing(RESULT) as temporary:
            table.to_csv(temporary, index=False, float_format="%.4g")
    bar.close()
    figure(table).savefig(RESULT.with_suffix(".svg"), metadata={"Date": None})
    print(f"{short(RESULT)}: {table['runs'].sum():,} decisions\n{sentences(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
