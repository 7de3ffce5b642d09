"""The README's generated parts: the finding, the table of claims, the calibration and the table of benchmarks.

``python -m docs.readme`` (``make readme``) writes them between their markers, and the page of the findings; ``--check`` fails
when they are stale. The finding follows from ``findings/tables``, the claims are those of the committed figures
(``figures/claims.csv``), the calibration is ``benchmarks/calibration.csv``, the benchmarks are those that
``benchmarks/run.py`` rendered in ``benchmarks/results.md``.
"""

import argparse
import difflib
import re
import sys

import pandas as pd

from benchmarks import calibrate
from docs import findings, ledger
from lib.claims.ledger import NOT_RUN, SCIENTIFIC
from lib.run.files import PROJECT, CompanionError, errors_said, write_text_atomically

README = PROJECT / "README.md"


class ReadmeError(CompanionError):
    """The README lacks a marker."""


def generated() -> dict[str, str]:
    """Return the generated parts by marker."""
    return {
        "finding": findings.front_page(),
        "claims": claims_part(pd.read_csv(PROJECT / "figures" / "claims.csv")),
        "calibration": calibrate.page(),
        "benchmarks": (PROJECT / "benchmarks" / "results.md").read_text(encoding="utf-8").strip(),
    }


def claims_part(table: pd.DataFrame) -> str:
    """Return the summary of a ledger and the measured scientific claims as Markdown."""
    not_run = (table["group"] == SCIENTIFIC) & (table["decision"] == NOT_RUN)
    return (
        f"{ledger.headline(table)}\n\n{ledger.claims_part(table)}\n\n"
        f"Another {not_run.sum()} claims are not run, each with its reason in the ledger; counts of files stand apart, in "
        "notebook 09. Differences between models are in margins; the demo's variants are its *moral* and *indifferent* models, "
        "which should differ."
    )


def filled(text: str, parts: dict[str, str]) -> str:
    """Return ``text`` with each part between its markers ``<!-- name -->`` and ``<!-- end name -->``.

    Raises:
        ReadmeError: a marker is missing.
    """
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ReadmeError(f"the README has no markers <!-- {name} --> and <!-- end {name} -->")
        text = pattern.sub(lambda markers, part=part: f"{markers[1]}\n{part}\n\n{markers[2]}", text)
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
        findings.write()
        write_text_atomically(README, new)
    return 0


if __name__ == "__main__":
    with errors_said():
        sys.exit(main())
