"""What of a run others can load: folders ready for a hub, written on this machine; nothing is uploaded.

    python -m workflow.publish runs/demo

``<run>/publish`` then holds moral vectors for ``datasets``, autoencoders for sae-lens, steering directions for safetensors,
lm-evaluation-harness and llama.cpp, the ledger as parquet, a card for each, and ``ro-crate-metadata.json``, which says what all
of it is, where it comes from and which sha256 each file has. Texts of annotations are shipped only if this project wrote them.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import gguf
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from lib.activations.store import open_store
from lib.alignment.arms import DIRECTIONS, FOLDERS
from lib.run.files import PROJECT, errors_said, replacing, resolve, sha256_of_file, short, write_parquet
from lib.run.provenance import MismatchError
from lib.run.stage import DEMO_ANNOTATIONS, MissingStageError, read_manifest
from lib.sae import files
from lib.sae.rows import folder_of
from lib.steering.answers import CONDITION, read_answers
from lib.steering.interventions import Intervention, contrasts
from lib.steering.loading import ArmLoader
from lib.steering.receipts import lay_out, summary
from lib.vectors.moral_vectors import SPLITS
from workflow.crate import write_crate

USED_ON = {
    files.POOLED: "They were trained on pooled vectors of whole prompts: on single tokens they are used beyond what they were "
    "trained on.",
    files.TOKENS: "They were trained on single tokens, which is what they are used on.",
}
"""Kind of an autoencoder -> what its card says of steering with it."""

PUBLISHED_ARMS = [arm for arm in FOLDERS if arm not in (*DIRECTIONS, "random-untuned")]
"""Arms that are autoencoders of their own."""

STEERED = ("mean-difference", "random-direction")
"""Arms that a constant vector can stand for."""

OURS = "written and made by this project, MIT."
DERIVED = (
    "derived from Social-Chemistry-101 (Forbes et al., EMNLP 2020), CC BY-SA 4.0; shared under the same licence, changed as "
    "said above."
)
REBUILD = (
    "This folder holds no texts. Ids number the rows that are left after cleaning, in the order of the source file, whose "
    "sha256 is `{sha256}` (`data/cards/social-chemistry-101.md` of the companion says where to get it). Put its path into a "
    "profile as `annotations:` and run notebook 01: `vectors/annotations.parquet` has the same ids with their texts, and "
    "`action_sha256` here is the sha256 of each text in UTF-8."
)


class Run(NamedTuple):
    """A finished run: its directory, whether its annotations are this project's own, and what every reader must know of it."""

    directory: Path
    own: bool
    notices: list[str]

    @property
    def words(self) -> dict[str, str]:
        """What every card says alike."""
        licence, origin = ("mit", OURS) if self.own else ("cc-by-sa-4.0", DERIVED)
        return {"licence": licence, "origin": origin, "notices": " ".join(f"**{notice}**" for notice in self.notices)}

    def vectors(self, name: str) -> pd.DataFrame:
        """Return a table of stage 01."""
        return pd.read_parquet(self.directory / "vectors" / f"{name}.parquet")

    def parameters(self, stage: str) -> dict[str, Any]:
        """Return the parameters of a finished stage, named by its directory."""
        return read_manifest(self.directory / stage)["identity"]["parameters"]


def open_run(directory: Path) -> Run:
    """Open a run whose moral vectors are there.

    Raises:
        MissingStageError: the moral vectors are not there.
    """
    require(directory, "vectors")
    manifest = read_manifest(directory / "vectors")
    own = manifest["identity"]["inputs"].get("annotations") == sha256_of_file(PROJECT / DEMO_ANNOTATIONS)
    return Run(directory, own, manifest["notices"])


def require(run: Path, *stages: str) -> None:
    """Raise ``MissingStageError`` unless these stages of a run are finished, and ``MismatchError`` if a table was changed."""
    for stage in stages:
        if not (run / stage / "manifest.json").exists():
            raise MissingStageError(f"{short(run / stage)} is not finished, so nothing of it can be published")
        for name, sha256 in read_manifest(run / stage)["outputs"].items():
            if not stage.startswith("activations") and sha256_of_file(run / stage / name) != sha256:
                raise MismatchError(f"{short(run / stage / name)} is not what its stage wrote; `make verify` mends it")


def card(name: str, folder: Path, **words: Any) -> None:
    """Write a folder's README from ``data/cards/publish``."""
    template = (PROJECT / "data" / "cards" / "publish" / f"{name}.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(Template(template).substitute(words), encoding="utf-8")


# --------------------------------------------------------------------------------------- the parts


def moral_vectors(run: Run, folder: Path) -> None:
    """Write a data set of annotations and exploded rows, a parquet file per grouped split, without texts that are not ours."""
    annotations, exploded = run.vectors("annotations"), run.vectors("exploded")
    splits = exploded.drop_duplicates("id")[["id", "split_published", "split_grouped"]]
    annotations = annotations.merge(splits, on="id", validate="one_to_one")
    text = {"action": annotations["action"]} if run.own else {}
    hashes = [hashlib.sha256(action.encode()).hexdigest() for action in annotations["action"]]
    annotations = annotations.drop(columns="action").assign(action_sha256=hashes, **text)
    for name, table in (("annotations", annotations), ("exploded", exploded)):
        for split in SPLITS:
            rows = table[table["split_grouped"] == split].drop(columns="split_grouped")
            write_parquet(folder / name / f"{split}.parquet", rows.reset_index(drop=True))
    sha256 = read_manifest(run.directory / "vectors")["identity"]["inputs"]["annotations"]
    words = run.words | {"source": "the companion's demo" if run.own else "Social-Chemistry-101"}
    words |= {"text": "`action`" if run.own else "`action_sha256`"}
    words |= {"rebuild": "`action` holds them." if run.own else REBUILD.format(sha256=sha256)}
    words["origin"] = words["origin"][0].upper() + words["origin"][1:]
    card("vectors", folder, **words)


def autoencoders(run: Run, folder: Path, model: str) -> None:
    """Write every arm of every layer as a whole autoencoder in SAELens layout, with its features and the receipts."""
    stages = [f"{stage}/{model}" for stage in ("sae", "alignment", "steering")]
    require(run.directory, *stages)
    sae, alignment = (run.directory / stage for stage in stages[:2])
    parameters, quality = run.parameters(stages[1]), pd.read_parquet(sae / "quality.parquet").query("split == 'test'")
    rows = []
    for layer in parameters["layers"]:
        for arm in PUBLISHED_ARMS:
            source = (sae if arm == "untuned" else alignment) / folder_of(layer) / FOLDERS[arm]
            target, about = folder / folder_of(layer) / arm, files.metadata(source)
            target.mkdir(parents=True)
            files.save(target, files.load(source), about)
            features = source.parent / "features.parquet" if arm == "untuned" else source / "features.parquet"
            shutil.copy(features, target / "features.parquet")
            measured = quality[quality["layer"] == layer].iloc[0]
            known = (measured["fvu"], measured["l0"]) if arm == "untuned" else (None, None)
            rows.append((layer, arm, int(measured["d_sae"]), len(about.get("tuned_latents", [])), *known))
    table = pd.DataFrame(rows, columns=["layer", "arm", "d_sae", "tuned", "fvu", "l0"])
    theirs = run.parameters(stages[0])["sae_source"]
    words = run.words | {"model": model, "pooling": parameters["pooling"]}
    if theirs != "train":
        words |= {"licence": "other", "origin": f"made from the autoencoders of {theirs}, whose licence applies."}
    card(
        "autoencoders", folder, **words,
        example=f"{folder_of(parameters['layers'][0])}/aligned",
        table=table.to_markdown(index=False, floatfmt=".4g", missingval=""),
        used_on=USED_ON[about["kind"]],
        unit=measured["unit"],
        receipts=seen(run, model, table["arm"].unique().tolist()).to_markdown(index=False, floatfmt=".4g"),
        answered=f"{run.parameters(stages[2])['protocol']} protocol",
    )  # fmt: skip


def seen(run: Run, model: str, arms: list[str]) -> pd.DataFrame:
    """Return what the receipts say, on average, of those ``arms`` that answered prompts: a row per condition, or none."""
    directory = run.directory / "steering" / model
    columns = [*CONDITION, "answers", "positions_touched", "relative_norm", "active_latents", "kl_first_step"]
    written = {path.stem for path in directory.glob("*.jsonl") if path.stat().st_size}
    if not (answered := [arm for arm in arms if arm in written]):
        return pd.DataFrame(columns=columns)
    return summary(lay_out(read_answers(directory, answered)))[columns]


def directions(run: Run, folder: Path, model: str) -> None:
    """Write the constant directions of every layer for safetensors, lm-evaluation-harness and llama.cpp, with their receipts.

    The ``coefficient`` is as long, beside the mean stream of last tokens in notebook 02, as the arm's change was beside the
    stream in the answers of notebook 07. An arm that answered nothing has none and is left out.

    Raises:
        MissingStageError: none of the arms answered, or one of the stages is not finished.
    """
    stages = [f"{stage}/{model}" for stage in ("activations", "sae", "alignment", "steering")]
    require(run.directory, *stages)
    activations, sae, alignment, steering = (run.directory / stage for stage in stages)
    parameters, store = run.parameters(stages[-1]), open_store(activations)
    layers = {"layers": parameters["layers"], "pooling": parameters["pooling"]}
    loader = ArmLoader(
        sae=sae,
        alignment=alignment,
        d_in=store.width,
        contrasts=contrasts(store, run.vectors("annotations"), exploded=run.vectors("exploded"), **layers),
        seed=parameters["seed"],
        model=model,
    )
    norms = pd.read_parquet(activations / "norms.parquet").query("position == 'last'").set_index("layer")["norm"]
    how = {name: parameters[name] for name in ("strength", "mode", "features", "positions")}
    receipts = seen(run, model, [arm for arm in STEERED if arm in parameters["arms"]])
    if receipts.empty:
        raise MissingStageError(f"neither {' nor '.join(STEERED)} answered a prompt, so no direction has a coefficient")
    written = []
    for receipt in json.loads(receipts.dropna(subset="layer").to_json(orient="records")):
        arm, layer = receipt["arm"], receipt["layer"]
        direction = loader(Intervention(arm, (layer,), **how)).edits[layer].direction
        coefficient = float(receipt["relative_norm"] * norms[layer] * np.sign(how["strength"]))
        about = {"model": model, "layer": layer, "arm": arm, **how, "coefficient": coefficient, "receipt": receipt}
        about |= {"model_files": read_manifest(steering)["identity"]["facts"]}
        save_direction(folder / f"{folder_of(layer)}.{arm}", direction, about)
        written.append((layer, arm, how["strength"], coefficient))
    table = pd.DataFrame(written, columns=["layer", "arm", "strength", "coefficient"])
    words = run.words | {"model": model, "pooling": parameters["pooling"]}
    card("directions", folder, table=table.to_markdown(index=False, floatfmt=".4g"), **words)


def save_direction(path: Path, direction: torch.Tensor, about: dict[str, Any]) -> None:
    """Write one direction [d_in] of length 1 in four formats at ``path`` with a suffix; ``about`` names layer and coefficient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layer, coefficient = about["layer"], about["coefficient"]
    Path(f"{path}.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    strings = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    save_file({"direction": direction.contiguous()}, f"{path}.safetensors", metadata=strings)
    how = {"action": "add", "steering_coefficient": coefficient, "steering_vector": direction.clone(), "bias": None}
    torch.save({f"layers.{layer}": how}, f"{path}.pt")
    if layer > 0:
        writer = gguf.GGUFWriter(f"{path}.gguf", "controlvector")
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_description(json.dumps(strings))
        writer.add_tensor(f"direction.{layer}", (coefficient * direction).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def ledger(run: Run, folder: Path) -> None:
    """Copy the ledger of claims with its settings and controls."""
    require(run.directory, "claims")
    folder.mkdir(parents=True)
    for path in (run.directory / "claims").glob("*.parquet"):
        shutil.copy(path, folder)


# --------------------------------------------------------------------------------------- the whole


def publish(directory: Path, target: Path) -> None:
    """Write everything that is finished of a run to ``target``, in place of what was there; say what is left out.

    Raises:
        MissingStageError: not even the moral vectors are there, so there is nothing to publish.
        MismatchError: a table is not what its stage wrote.
    """
    run = open_run(directory)
    parts: dict[str, Callable[[Path], None]] = {"moral-vectors": partial(moral_vectors, run)}
    for model in sorted(path.name for path in (directory / "alignment").glob("[!.]*") if path.is_dir()):
        parts[f"autoencoders/{model}"] = partial(autoencoders, run, model=model)
        parts[f"directions/{model}"] = partial(directions, run, model=model)
    parts["ledger"] = partial(ledger, run)
    with replacing(target) as temporary:
        for name, write in parts.items():
            try:
                write(temporary / name)
                print(f"{short(target / name)}")
            except MissingStageError as error:
                print(f"left out: {name}: {error}")
        # What was superseded lies in a hidden folder.
        finished = [read_manifest(path.parent)["finished"] for path in directory.glob("[!.]*/**/manifest.json")]
        what = " ".join(["Moral vectors, autoencoders, steering directions and claims.", *run.notices])
        write_crate(
            temporary, name=directory.name, description=what, licence=run.words["licence"], finished=max(finished)
        )
        shutil.rmtree(target, ignore_errors=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write what of a finished run others can load; nothing is uploaded.")
    parser.add_argument("run", help="directory of the run, such as runs/demo")
    directory = resolve(parser.parse_args().run)
    publish(directory, directory / "publish")


if __name__ == "__main__":
    with errors_said():
        main()
