"""Parts of a stage: several jobs that share the work of one notebook, and the notebook itself as the join.

A part is the notebook, cut behind the cell that does the work, with its share of the rows or arms; for autoencoders it
is a share of the layers (:mod:`lib.sae.jobs`). What a part makes lies where the whole notebook looks for it. The whole
notebook then finds everything there and goes on from it. So joining computes nothing twice, can be repeated, and
whatever a part failed to make is made then.
"""

from pathlib import Path

import nbformat

from lib.parameters import STAGES
from lib.profiles import Profile

WORK = {"02_residual_streams": "residuals.extract(", "07_steering": "steering.answer_all("}
"""Notebook -> the call whose work is shared by parts of it."""

LAYERED = ("05_sparse_autoencoders", "06_feature_alignment")
"""Notebooks whose parts are layers."""


def count(profile: Profile, notebook: str) -> int:
    """Return into how many parts a stage is split: ``parts`` of the profile, one an arm at most; or one a layer."""
    if profile.parts == 1 or notebook not in (*WORK, *LAYERED):
        return 1
    if notebook in LAYERED:
        return len(profile.layers)
    return min(profile.parts, len(profile.arms)) if notebook == "07_steering" else profile.parts


def split(profile: Profile) -> list[str]:
    """Return the notebooks that are split under ``profile``."""
    return [notebook for notebook in STAGES if count(profile, notebook) > 1]


def marker(profile: Profile, notebook: str, part: str, model: str = "{model}") -> str:
    """Return the file that says a part is done; it lies with the stage's results, but is none of them."""
    directory = STAGES[notebook].directory.format(model=model)
    return f"runs/{profile.run}/{directory}/.parts/{part}-of-{count(profile, notebook)}"


def markers(profile: Profile, notebook: str, model: str | None) -> list[str]:
    """Return the markers of all parts of a job; none for a stage that is not split."""
    if notebook not in split(profile):
        return []
    numbers = range(1, count(profile, notebook) + 1)
    return [marker(profile, notebook, str(number), model or profile.sae_model) for number in numbers]


def cut(notebook: Path, target: Path) -> None:
    """Write ``notebook`` to ``target`` without the cells behind the last one that does its work.

    Raises:
        ValueError: no cell does it.
    """
    content = nbformat.read(notebook, as_version=4)
    call = WORK[notebook.stem]
    found = [n for n, cell in enumerate(content.cells) if cell.cell_type == "code" and call in cell.source]
    if not found:
        raise ValueError(f"{notebook.name} has no cell that calls {call}...), so it cannot be run in parts")
    content.cells = content.cells[: found[-1] + 1]
    nbformat.write(content, target)
