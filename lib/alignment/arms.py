"""Stage 06 layer by layer: the aligned autoencoder beside its controls, each made and measured the same way.

What alignment is worth shows only against an arm that lacks one thing of it: the labels, the choice of latents, the
training of the autoencoder, or the autoencoder itself.

* ``untuned``: the autoencoder of stage 05 as it is.
* ``aligned``: the paper's claim.
* ``reconstruction``: the same latents trained on, without labels, by the reconstruction alone.
* ``shuffled``: trained the same way on labels permuted among actions; several permutations.
* ``random``: tunes as many latents that fire as often, drawn at random, in the same roles but none in its own, on the true
  labels; and ``random-untuned``: these latents before they are tuned.
* ``random-weights``: begins from random weights that are as sparse; its features are found and tuned by the same rules.
* ``ridge``: ten directions of the stream in closed form, no dictionary at all.
* ``probe``: these ten directions, trained on by the same losses as the aligned latents.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lib.alignment import controls, evaluation, objective, selection, tuning
from lib.run.parameters import AlignmentParameters
from lib.run.stage import Stage, share
from lib.sae import features, files, training
from lib.sae.rows import Reader, Rows, folder_of

FOLDERS = {
    "untuned": "pretrained",
    "aligned": "aligned",
    "reconstruction": "controls/reconstruction",
    "shuffled": "controls/shuffled",
    "random-untuned": "pretrained",
    "random": "controls/random",
    "random-weights": "controls/random_weights",
    "ridge": "controls/ridge",
    "probe": "controls/probe",
}
"""Arm -> the folder of its autoencoder below a layer's; ``pretrained`` is stage 05's, the others are stage 06's.

Further permutations of the labels lie beside ``shuffled``, numbered from 2.
"""

DIRECTIONS = ("ridge", "probe")
"""Arms that read the stream and reconstruct nothing."""

Folders = dict[str, list[Path]]
"""Arm -> its folders: one, or one per permutation of the labels."""


def align_layers(stage: Stage, rows: Reader, *, parameters: AlignmentParameters) -> dict[int, Folders]:
    """Return the folders of every arm of every layer; in a part, of this job's layers.

    What is not there is made, and then measured, while a layer's rows are in memory, so they are read once. A layer's folder
    holds the tables of :func:`tuned_share` and :func:`measure`.

    Raises:
        files.FormatError: an autoencoder is of another width, pooling or split than the rows, or is one of tokens while the
            rows are means of tokens.
    """
    folders: dict[int, Folders] = {}
    for layer in share(parameters.layers):
        source = stage.inputs["sae"] / folder_of(layer) / FOLDERS["untuned"]
        require_same(source, parameters=parameters)
        folders[layer], about = {}, {"rows": rows, "layer": layer, "parameters": parameters}
        for arm, folder in FOLDERS.items():
            if folder == FOLDERS["untuned"]:
                folders[layer][arm] = [source]
                continue
            place, draws = f"{folder_of(layer)}/{folder}", parameters.label_shuffles if arm == "shuffled" else 1
            folders[layer][arm] = [
                stage.folder(place + (f"_{draw}" * (draw > 1)), make, source, arm=arm, draw=draw, **about)
                for draw in range(1, draws + 1)
            ]
        stage.table(f"{folder_of(layer)}/tuned.parquet", tuned_share, source, **about)
        names = [f"{folder_of(layer)}/{name}.parquet" for name in ("alignment", "similarity")]
        stage.tables(names, measure, folders[layer], **about)
    return folders


def make(
    folder: Path, source: Path, *, arm: str, rows: Reader, layer: int, parameters: AlignmentParameters, draw: int = 1
) -> None:
    """Train one arm from the autoencoder in ``source`` and fill ``folder`` with it, its features and its history.

    ``draw`` counts the permutations of the labels.
    """
    sides, about, seed = rows(layer), files.metadata(source) | {"arm": arm}, parameters.seed
    align = partial(tuning.align, parameters=parameters, label=f"layer {layer}, {arm}")
    if arm in DIRECTIONS:
        directions = controls.ridge(sides)
        if arm == "probe":
            terms = objective.of_directions(parameters.alignment_objective)
            directions, history = align(directions, controls.ten_directions(), rows=sides, weights=terms)
            history.to_parquet(folder / "history.parquet", index=False)
        files.save(folder, directions, about)
        return
    sae, table = files.load(source, sides["train"].x.shape[1]).to(training.default_device()), features_of(source)
    if arm == "random-weights":
        sae = controls.random_weights(sae, sides["train"].x, seed=seed)
        table = features.identify(sae, sides, permutations=0, seed=seed)
    chosen = selection_of(arm, table, seed=seed)
    labelled, weights = sides, None
    if arm == "shuffled":
        labelled = controls.shuffled_labels(sides, seed=[seed, draw])
    elif arm == "reconstruction":
        labelled, weights = controls.without_labels(sides), objective.RECONSTRUCTION
    aligned, history = align(sae, chosen, rows=labelled, weights=weights)
    aligned, sae = aligned.cpu(), sae.cpu()
    if tuning.frozen_hash(aligned, chosen.tuned) != tuning.frozen_hash(sae, chosen.tuned):
        raise AssertionError(f"layer {layer}, {arm}: a frozen weight has changed")
    about |= {"tuned_latents": chosen.tuned.tolist()}
    if arm == "random-weights":  # whose frozen weights are nowhere else
        files.save(folder, aligned, about)
    else:
        files.save_tuned(folder, aligned, base=source, metadata=about)
    table.to_parquet(folder / "features.parquet", index=False)
    history.to_parquet(folder / "history.parquet", index=False)


def features_of(folder: Path) -> pd.DataFrame:
    """Return the table of features that an arm in ``folder`` was tuned by; stage 05's lies beside its ``pretrained``."""
    return pd.read_parquet((folder.parent if folder.name == FOLDERS["untuned"] else folder) / "features.parquet")


def require_same(folder: Path, *, parameters: AlignmentParameters) -> None:
    """Raise ``files.FormatError`` for an autoencoder of another kind, pooling or split than the rows to tune it on."""
    about = files.metadata(folder)
    if about.get("kind") == files.TOKENS and parameters.pooling != "last":
        raise files.FormatError(
            f"the autoencoder is one of tokens, but pooling {parameters.pooling!r} gives pooled vectors to tune it on; run "
            "notebooks 05 and 06 with pooling: last, whose vectors are those of one token"
        )
    for name, asked in parameters.model_dump(include={"pooling", "split"}).items():
        if about.get(name) != asked:
            raise files.FormatError(
                f"the autoencoder was trained with {name} {about.get(name)!r}, but {asked!r} is asked for; "
                "use the same in notebooks 05 and 06"
            )


def selection_of(arm: str, table: pd.DataFrame, *, seed: int) -> selection.Selection:
    """Return the latents that an arm tunes: those of the table of features, or as many at random."""
    chosen = selection.select(table)
    at_random = arm in ("random", "random-untuned")
    return selection.randomly(chosen, table["activity"].to_numpy(), seed=seed) if at_random else chosen


def tuned_share(source: Path, *, rows: Reader, layer: int, parameters: AlignmentParameters) -> pd.DataFrame:
    """Return what is tuned: ``layer, tuned, latents, frozen_share`` (of weights), ``random_tuned``, ``targets_below_floor``.

    ``random_tuned`` counts the latents of the arm ``random`` that are tuned ones, in other roles. The last is the share of
    positive typicalities of the training rows that the published alignment loss cannot reach.
    """
    table = features_of(source)
    tuned, drawn = (selection_of(arm, table, seed=parameters.seed).tuned for arm in ("aligned", "random"))
    return pd.DataFrame(
        {
            "layer": [layer],
            "tuned": len(tuned),
            "latents": len(table),
            "frozen_share": tuning.frozen_share(files.load(source), tuned),
            "random_tuned": int(np.isin(drawn, tuned).sum()),
            "targets_below_floor": objective.share_below_floor(rows(layer)["train"].vectors),
        }
    )


def measure(folders: Folders, *, rows: Reader, layer: int, parameters: AlignmentParameters) -> dict[str, pd.DataFrame]:
    """Measure a layer's arms in ``folders`` (of :func:`align_layers`) on the test rows, and on no others.

    Returns ``alignment``, of :func:`lib.alignment.evaluation.evaluate`, and ``similarity`` of categories, both with ``layer``.
    """
    test, seed = rows(layer)["test"], parameters.seed
    applied = {arm: [apply(arm, folder, test, seed=seed) for folder in draws] for arm, draws in folders.items()}
    table = evaluation.evaluate(applied, test, draws=parameters.bootstrap_draws, seed=seed)
    similar = evaluation.similarities(applied, test.vectors)
    return {"alignment": table.assign(layer=layer), "similarity": similar.assign(layer=layer)}


def apply(arm: str, folder: Path, test: Rows, *, seed: int) -> evaluation.Applied:
    """Apply the autoencoder in ``folder``, or the directions, to the test rows."""
    sae = files.load(folder, test.x.shape[1]).to(training.default_device())
    if arm in DIRECTIONS:
        return evaluation.read(sae, test.x, rectified=arm == "probe")
    return evaluation.apply(sae, selection_of(arm, features_of(folder), seed=seed), test.x)
