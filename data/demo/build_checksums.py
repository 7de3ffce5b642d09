"""Write checksums.json, the SHA-256 of every demo asset, so that a test notices when builders and assets part ways.

python data/demo/build_checksums.py
"""

import hashlib
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("annotations.tsv", "answers.toml", "prompts.jsonl", "scenes.toml")


def checksums() -> dict[str, str]:
    """SHA-256 of each asset, by its path relative to this directory, in path order."""
    files = [HERE / name for name in SOURCES] + [path for path in (HERE / "models").rglob("*") if path.is_file()]
    named = {path.relative_to(HERE).as_posix(): path for path in files}
    return {name: hashlib.sha256(named[name].read_bytes()).hexdigest() for name in sorted(named)}


def main() -> None:
    """Write checksums.json beside this script."""
    (HERE / "checksums.json").write_text(json.dumps(checksums(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
