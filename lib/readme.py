"""The README's generated parts: the table of claims and the table of benchmarks.

``python -m lib.readme`` writes them between their markers; ``--check`` fails when they are stale. The claims are those of
the committed figures (``figures/verdicts.csv``), the benchmarks those rendered in ``benchmarks/results.md``.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path

import pandas as pd

from lib import files, runs
from lib.book import claims_table
from lib.claims import DEMO_STANDING, NOT_RUN, summary

README = runs.PROJECT / "README.md"


class ReadmeError(ValueError):
    """The README lacks a marker."""


def generated(root: Path = runs.PROJECT) -> dict[str, str]:
    """Return the generated parts by marker."""
    return {
        "claims": claims_part(root / "figures" / "verdicts.csv"),
        "benchmarks": benchmarks_part(root / "benchmarks" / "results.md"),
    }


def claims_part(path: Path) -> str:
    """Return the summary and the measured claims as Markdown."""
    table = pd.read_csv(path)
    demo = (
        " On the demo: a check of the instrument, not a finding." if (table["standing"] == DEMO_STANDING).any() else ""
    )
    not_run = int((table["verdict"] == NOT_RUN).sum())
    return (
        f"{summary(table)}.{demo}\n\n{claims_table(table[table['verdict'] != NOT_RUN])}\n\n"
        f"The other {not_run} claims are not run, each with its reason in the ledger."
    )


def benchmarks_part(path: Path) -> str:
    """Return the table that ``benchmarks/run.py`` rendered from the stored measurements."""
    if not path.exists():
        return "No benchmark has been measured yet; `make bench` does."
    return path.read_text(encoding="utf-8").strip()


def filled(text: str, parts: dict[str, str]) -> str:
    """Return ``text`` with each part between its markers ``<!-- name -->`` and ``<!-- end name -->``.

    Raises:
        ReadmeError: a marker is missing.
    """
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ReadmeError(f"the README has no markers <!-- {name} --> and <!-- end {name} -->")
        text = pattern.sub(lambda found, part=part: f"{found[1]}\n{part}\n\n{found[2]}", text)
    return text


def main() -> int:
    """Write the README's generated parts, or say that they are stale."""
    parser = argparse.ArgumentParser(description="Write the generated tables of the README.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a table is stale")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = filled(old, generated())
    if check and new != old:
        sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "README.md", "fresh"))
        print("README.md is stale: run `make readme`", file=sys.stderr)
        return 1
    if not check:
        files.write_text_atomically(README, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
