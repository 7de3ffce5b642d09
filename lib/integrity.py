"""Are the results still what was written? Every finished stage is compared with the hashes in its manifest.

    python -m lib.integrity profiles/demo.yaml

A stage with a damaged or missing file loses its manifest, so the next run computes it again, and with it what was made
from it. Reading everything takes as long as the disk needs, so a run does not do it by itself.
"""

import json
import sys
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from lib import runs
from lib.profiles import load_profile


def check(run: Path) -> pd.DataFrame:
    """Compare the files of every finished stage of a run with their recorded sha256.

    Returns:
        Columns ``stage`` (directory below the run), ``file``, ``state`` (``damaged`` or ``missing``); no rows if all
        is well. A manifest that cannot be read is damaged itself.
    """
    rows = []
    manifests = sorted(path for path in run.rglob("manifest.json") if "/." not in f"/{path.relative_to(run)}")
    for manifest in tqdm(manifests, desc="stages", unit="stage"):
        stage = manifest.parent.relative_to(run).as_posix()
        try:
            recorded = runs.read_manifest(manifest.parent)["outputs"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError):
            rows.append((stage, "manifest.json", "damaged"))
            continue
        for name, sha256 in recorded.items():
            file = manifest.parent / name
            if not file.exists():
                rows.append((stage, name, "missing"))
            elif runs.sha256_of_file(file) != sha256:
                rows.append((stage, name, "damaged"))
    return pd.DataFrame(rows, columns=["stage", "file", "state"])


def main() -> int:
    """Check a profile's run, take the manifest from every stage that is not whole, and say so."""
    run = runs.resolve(f"runs/{load_profile(sys.argv[1]).run}")
    found = check(run)
    for stage, files in found.groupby("stage"):
        (run / stage / "manifest.json").unlink()
        for file in files.itertuples():
            print(f"{runs.short(run / stage / file.file)}: {file.state}")
        print(f"{runs.short(run / stage)} will be computed again")
    if found.empty:
        print(f"{runs.short(run)}: every result is as it was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
