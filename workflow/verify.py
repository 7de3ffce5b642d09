"""Are the results still what was written? Every finished stage is compared with the hashes in its manifest.

    python -m workflow.verify profiles/demo.yaml

A damaged file, or the folder that was made with it, is moved to the run's ``.superseded`` and its stage loses its manifest, so
the next run makes that again, of a store of activations the damaged chunks alone, and what was made from it. Reading
everything takes as long as the disk needs, so a run does not do it by itself. What cannot be read now, for want of a
connection or of rights, is an error and no damage.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from lib.activations.store import open_store
from lib.run.files import errors_said, locked, resolve, sha256_of_file, short
from lib.run.profile import load_profile
from lib.run.provenance import MismatchError
from lib.run.stage import read_manifest, set_aside

NEEDED = ("manifest.json", "store.json", "index.parquet")
"""Files without which nothing of a store of activations can be kept."""


def check(run: Path) -> pd.DataFrame:
    """Compare the files of every finished stage of a run with their recorded sha256, and its stores with their markers.

    Returns:
        Columns ``stage`` (directory below the run), ``file``, ``state`` (``damaged`` or ``missing``); no rows if all
        is well. A manifest that cannot be read is damaged itself.

    Raises:
        StoreError: a store cannot be read now.
    """
    rows = []
    manifests = sorted(path for path in run.rglob("manifest.json") if "/." not in f"/{path.relative_to(run)}")
    for manifest in tqdm(manifests, desc="stages", unit="stage"):
        stage = manifest.parent.relative_to(run).as_posix()
        try:
            recorded = read_manifest(manifest.parent)["outputs"]
        except (MismatchError, KeyError):
            rows.append((stage, "manifest.json", "damaged"))
            continue
        for name, sha256 in recorded.items():
            file = manifest.parent / name
            if not file.exists():
                rows.append((stage, name, "missing"))
            elif sha256_of_file(file) != sha256:
                rows.append((stage, name, "damaged"))
        if "store.json" in recorded and not {name for where, name, _ in rows if where == stage}.intersection(NEEDED):
            states = open_store(manifest.parent).verify().query("state != 'ok'")
            rows += [(stage, f"rows from {row.first_row}, {row.pooling}", row.state) for row in states.itertuples()]
    return pd.DataFrame(rows, columns=["stage", "file", "state"])


def take_away(run: Path, damage: pd.DataFrame) -> None:
    """Move what :func:`check` found damaged and the manifests of its stages aside, and say so."""
    for stage, files in damage.groupby("stage"):
        if set(files["file"]).intersection(NEEDED):
            with locked(run / stage):
                set_aside(run, run / stage, "that cannot be read")
            continue
        folders = read_manifest(run / stage).get("folders", [])
        # A missing file is not there to be moved, nor are the chunks of a store, which knows itself what to read again.
        for name in ("manifest.json", *{_whole(file, folders) for file in files["file"]}):
            if (path := run / stage / name).exists():
                _aside(path, run)
        for file in files.itertuples():
            print(f"{short(run / stage / file.file)}: {file.state}")
        print(f"{short(run / stage)}: the next run makes them again")


def main() -> int:
    """Check a profile's run, and take away what is damaged."""
    run = resolve(f"runs/{load_profile(sys.argv[1]).run}")
    damage = check(run)
    take_away(run, damage)
    if damage.empty:
        print(f"{short(run)}: every result is as it was written")
    return 0


def _whole(file: str, folders: list[str]) -> str:
    """Return the folder that was made in one with ``file``, without which the rest of it is of no use; else the file."""
    return next((folder for folder in folders if file.startswith(f"{folder}/")), file)


def _aside(path: Path, run: Path) -> None:
    aside = run / ".superseded" / "damaged" / path.relative_to(run)
    aside.parent.mkdir(parents=True, exist_ok=True)
    if aside.is_dir():  # damaged before
        shutil.rmtree(aside)
    path.replace(aside)


if __name__ == "__main__":
    with errors_said():
        sys.exit(main())
