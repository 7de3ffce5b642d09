"""Measure everything in ``benchmarks/`` on this machine and render one table.

    python benchmarks/run.py            # the CPU's cells
    python benchmarks/run.py --gpu      # cells that need a GPU; modules see COMPANION_DEVICE=gpu
    python benchmarks/run.py --table    # render what is stored

``cells.csv`` lists the cells that should be there; one without a measurement says so. The table lands in
``results.csv`` and ``results.md``.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
NOT_MEASURED = "not measured"


def modules() -> list[Path]:
    """Every module that measures something."""
    return sorted(path for path in HERE.glob("*.py") if path.stem not in ("cells", "run", "calibrate"))


def measured() -> pd.DataFrame:
    """All stored cells, with the device that did the work."""
    frames = []
    for path in sorted((HERE / "results").glob("*.csv")):
        frames.append(pd.read_csv(path).assign(device="gpu" if path.stem.endswith("-gpu") else "cpu"))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["cell", "peer", "device"])


def table(found: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Join expected and stored cells; ``result`` is text: the median with minimum and maximum, or ``not measured``."""
    joined = expected.drop(columns="module").merge(found, on=["cell", "peer", "device"], how="outer", sort=False)
    columns = (
        "times_faster",
        "exponent",
        "ours_seconds",
        "peer_seconds",
        "tokens_per_second",
        "machine",
        "torch",
        "load",
    )
    for name in [f"{column}_{key}" for column in columns[:4] for key in ("min", "median", "max")] + list(columns[4:]):
        joined[name] = joined.get(name)
    joined["result"] = [
        _result(row) for row in joined[[f"{c}_{k}" for c in columns[:2] for k in ("min", "median", "max")]].to_numpy()
    ]
    speeds = joined["tokens_per_second"].notna()
    joined.loc[speeds, "result"] += "; " + joined.loc[speeds, "tokens_per_second"] + " tokens/s"
    return joined.sort_values(["device", "cell", "peer"], ignore_index=True)


def _result(numbers: list[float]) -> str:
    ratio, exponent = numbers[:3], numbers[3:]
    if pd.notna(ratio[1]):
        return f"{ratio[1]:.2f} times as fast ({ratio[0]:.2f} to {ratio[2]:.2f})"
    if pd.notna(exponent[1]):
        return f"cost grows with exponent {exponent[1]:.2f} ({exponent[0]:.2f} to {exponent[2]:.2f})"
    return NOT_MEASURED


def markdown(rows: pd.DataFrame) -> str:
    """The table as the README shows it, and in a sentence what has not been measured."""
    lines = ["| what | against | result: median (min to max) | seconds, ours | machine |", "|---|---|---|---|---|"]
    for row in rows[rows["result"] != NOT_MEASURED].itertuples():
        seconds = "" if pd.isna(row.ours_seconds_median) else f"{row.ours_seconds_median:.2f}"
        where = f"{row.machine}; torch {row.torch}" + ("" if pd.isna(row.load) else f"; load {row.load}")
        lines.append(f"| {row.cell} | {row.peer} | {row.result} | {seconds} | {where} |")
    waiting = [f"{row.cell} ({row.device})" for row in rows[rows["result"] == NOT_MEASURED].itertuples()]
    said = [f"\n{NOT_MEASURED.capitalize()} yet: {'; '.join(waiting)}."] if waiting else []
    return "\n".join(lines + said) + "\n"


def at_paper_size(path: Path) -> str:
    """What ``paper_size.py`` found, in a sentence under the table."""
    if not path.exists():
        return f"\nA diagnosis at the paper's size: {NOT_MEASURED}.\n"
    found = pd.read_csv(path).iloc[0]
    return (
        f"\nA diagnosis at the paper's size ({found['layers']} layers, {found['rows']:,} x {found['width']:,}, "
        f"{found['components']:,} components, controls clustered at {found['control_layers']} layers) took "
        f"{found['wall_minutes']:.0f} minutes, {found['cpu_minutes']:.0f} of CPU time of which {found['gains_cpu_minutes']:.0f} "
        f"for the gains over words, and {found['peak_gigabytes']:.1f} GB ({found['machine']}).\n"
    )


def main() -> int:
    """Run the modules one after the other, and render; a module that fails is named and the rest go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    expected = pd.read_csv(HERE / "cells.csv")
    failed = []
    chosen = [] if asked.table else modules()
    if asked.gpu:
        wanted = set(expected.loc[expected["device"] == "gpu", "module"])
        chosen = [path for path in chosen if path.stem in wanted]
        if not _has_card():
            print("no GPU here: the cells of a GPU stay as they are")
            chosen = []
    environment = os.environ | {"COMPANION_DEVICE": "gpu" if asked.gpu else "cpu", "PYTHONPATH": str(HERE.parent)}
    for path in chosen:
        print(f"--- {path.name}", flush=True)
        if subprocess.run([sys.executable, str(path)], env=environment).returncode:
            failed.append(path.name)
    rows = table(measured(), expected)
    rows.to_csv(HERE / "results.csv", index=False)
    rendered = markdown(rows) + at_paper_size(HERE / "paper_size.csv")
    (HERE / "results.md").write_text(rendered, encoding="utf-8")
    print(rendered)
    print(f"{(rows['result'] != NOT_MEASURED).sum()} of {len(rows)} cells measured; benchmarks/results.md")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
