"""RO-Crate 1.1 metadata of a published folder: what it is, from which code and paper, under which licence, file by file."""

import json
from importlib.metadata import version
from pathlib import Path

from lib.run.files import files_below, sha256_of_file

NAME = "ro-crate-metadata.json"
PAPER = "https://arxiv.org/abs/2603.15615"
TITLE = "Mechanistic Origin of Moral Indifference in Language Models"
LICENCES = {"mit": "https://spdx.org/licenses/MIT", "cc-by-sa-4.0": "https://spdx.org/licenses/CC-BY-SA-4.0"}
FORMATS = {".parquet": "application/vnd.apache.parquet", ".json": "application/json", ".md": "text/markdown"}
SHA256 = "https://w3id.org/ro/terms/workflow-run#sha256"


def write_crate(folder: Path, *, name: str, description: str, licence: str, finished: str) -> None:
    """Write the metadata of everything in ``folder``: of the run ``name``, whose last stage was ``finished`` at that time."""
    names = files_below(folder)
    root = {"@id": "./", "@type": "Dataset", "name": f"Results of the run {name}", "description": description}
    root |= {"datePublished": finished, "license": {"@id": LICENCES[licence]}, "citation": {"@id": PAPER}}
    root |= {"isBasedOn": {"@id": "#companion"}, "hasPart": [{"@id": file} for file in names]}
    companion = {"@id": "#companion", "@type": "SoftwareSourceCode", "name": f"A companion to '{TITLE}'"}
    about = {"@id": NAME, "@type": "CreativeWork", "about": {"@id": "./"}}
    graph = [
        about | {"conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}},
        root,
        companion | {"version": version("moral-indifference-companion")},
        {"@id": PAPER, "@type": "ScholarlyArticle", "name": TITLE, "author": "Li, Teng and Wang"},
        {"@id": LICENCES[licence], "@type": "CreativeWork", "name": licence},
        *(_described(folder, file) for file in names),
    ]
    content = {"@context": ["https://w3id.org/ro/crate/1.1/context", {"sha256": SHA256}], "@graph": graph}
    (folder / NAME).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _described(folder: Path, file: str) -> dict[str, str]:
    path = folder / file
    kind = FORMATS.get(path.suffix, "application/octet-stream")
    about = {"@id": file, "@type": "File", "name": path.name, "encodingFormat": kind}
    return about | {"contentSize": str(path.stat().st_size), "sha256": sha256_of_file(path)}
