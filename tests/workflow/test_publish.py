"""What is published is loaded by the library it is for, and means there what it means here."""

import json
import shutil

import datasets
import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.models import hf_steered
from rocrate.rocrate import ROCrate
from safetensors import safe_open

from lib.activations.models import open_model
from lib.alignment.arms import FOLDERS
from lib.paper import CATEGORIES
from lib.run.files import files_below, sha256_of_file
from lib.run.provenance import MismatchError
from lib.run.stage import MissingStageError
from lib.sae import files
from lib.sae.model import SparseAutoencoder
from lib.steering import generation
from lib.steering.answers import read_answers
from lib.steering.interventions import Arm, Edit, Intervention
from workflow import publish

MODEL = "moral-small"
DECODING = generation.Decoding(max_new_tokens=1, temperature=0.0, top_p=1.0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def published(demo_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "publish"
    publish.publish(demo_run, folder)
    return folder


@pytest.fixture(scope="module")
def model():
    return open_model("data/demo/models/moral-small")


def test_datasets_loads_the_moral_vectors_with_their_splits(demo_run, published, tmp_path):
    loaded = datasets.load_dataset(str(published / "moral-vectors"), "annotations", cache_dir=str(tmp_path))
    parts = {split: part.to_pandas() for split, part in loaded.items()}
    together = pd.concat(parts.values()).sort_values("id", ignore_index=True)
    source = pd.read_parquet(demo_run / "vectors" / "annotations.parquet").sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(together[list(CATEGORIES)], source[list(CATEGORIES)])
    actions = [set(part["action"]) for part in parts.values()]
    assert list(parts) == ["train", "validation", "test"]
    assert sum(map(len, actions)) == len(set.union(*actions)), "an action is on one side only"
    exploded = datasets.load_dataset(str(published / "moral-vectors"), "exploded", cache_dir=str(tmp_path))
    assert sum(exploded.num_rows.values()) == len(pd.read_parquet(demo_run / "vectors" / "exploded.parquet"))


def test_texts_of_others_are_not_shipped_and_can_be_found_again(demo_run, tmp_path):
    publish.moral_vectors(publish.Run(demo_run, own=False, notices=[]), tmp_path)
    source = pd.read_parquet(demo_run / "vectors" / "annotations.parquet").set_index("id")["action"]
    shipped = b"".join((tmp_path / name).read_bytes() for name in files_below(tmp_path))
    for name in files_below(tmp_path):
        if name.endswith(".parquet"):
            text = pd.read_parquet(tmp_path / name).to_csv()
            assert not any(action in text for action in source.head(200))
    row = pd.read_parquet(tmp_path / "annotations" / "test.parquet").iloc[0]
    assert publish.hashlib.sha256(source[row["id"]].encode()).hexdigest() == row["action_sha256"]
    assert b"cc-by-sa-4.0" in shipped
    assert b"This folder holds no texts" in shipped


def test_every_arm_is_published_whole_and_unchanged(demo_run, published):
    for arm in publish.PUBLISHED_ARMS:
        source = demo_run / ("sae" if arm == "untuned" else "alignment") / MODEL / "layer_02" / FOLDERS[arm]
        target = published / "autoencoders" / MODEL / "layer_02" / arm
        theirs, ours = files.load(source).state_dict(), files.load(target).state_dict()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs), arm
        assert (target / "sae_weights.safetensors").exists()


def test_sae_lens_loads_a_published_arm(published):
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    folder = published / "autoencoders" / MODEL / "layer_02" / "aligned"
    theirs, ours = sae_lens.SAE.load_from_disk(folder, device="cpu"), files.load(folder)
    x = torch.randn(5, ours.d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(x), ours(x)[0], atol=1e-5, rtol=1e-5)


def formats(published, arm):
    """Hookpoint or layer and the vector that is added, by every format of a direction."""
    path = published / "directions" / MODEL / f"layer_02.{arm}"
    with safe_open(f"{path}.safetensors", "pt") as stored:
        about = stored.metadata()
        plain = float(about["coefficient"]) * stored.get_tensor("direction")
    ((hook, how),) = torch.load(f"{path}.pt", weights_only=True).items()
    (tensor,) = gguf.GGUFReader(f"{path}.gguf").tensors
    return {
        f"layers.{about['layer']}": plain,
        hook: how["steering_coefficient"] * how["steering_vector"],
        tensor.name.replace("direction.", "layers."): torch.from_numpy(np.array(tensor.data)),
    }, [plain, how["steering_coefficient"] * how["steering_vector"], torch.from_numpy(np.array(tensor.data))]


@pytest.mark.parametrize("arm", publish.STEERED)
def test_all_formats_of_a_direction_say_the_same(published, arm):
    places, vectors = formats(published, arm)
    assert list(places) == ["layers.2"]
    for vector in vectors[1:]:
        torch.testing.assert_close(vector, vectors[0])
    about = json.loads((published / "directions" / MODEL / f"layer_02.{arm}.json").read_text())
    assert about["receipt"]["answers"] > 0
    assert vectors[0].norm() == pytest.approx(about["coefficient"], rel=1e-5)
    assert about["receipt"]["relative_norm"] > 0


def raw(model, prompt, hook, change):
    """First-token log-probabilities of a bare forward pass, a module's output changed at every position."""
    module, inputs = model._module, generation.encode_prompts(model, [prompt], 1).inputs
    place = module.base_model.get_submodule(hook)
    handle = place.register_forward_hook(lambda block, given, output: change(output))
    try:
        with torch.no_grad():
            return module(**inputs).logits[0, -1].log_softmax(-1)
    finally:
        handle.remove()


def test_a_direction_from_any_file_gives_the_distribution_of_our_own_steering(published, model):
    prompt = "我该怎么办？"
    places, (vector, *_) = formats(published, "mean-difference")
    (hook,) = places
    # x = relu(x) - relu(-x): an autoencoder that gives back the stream and a constant beside it.
    constant, eye = SparseAutoencoder(len(vector), 2 * len(vector)), torch.eye(len(vector))
    with torch.no_grad():
        constant.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        constant.W_dec.copy_(torch.cat([eye, -eye]))
        constant.b_dec.copy_(vector)
    arm = Arm(Intervention("aligned", (2,)), {2: Edit(constant.requires_grad_(False))})
    _, logits = generation.answer_batch(model, arm, [prompt], decoding=DECODING, seed=0)
    ours, theirs = logits[0].log_softmax(-1), raw(model, prompt, hook, lambda stream: stream + vector)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert (theirs - raw(model, prompt, hook, lambda stream: stream)).abs().max() > 0.1, "it changes something"


def test_a_published_autoencoder_gives_the_divergence_of_the_receipts(demo_run, published, model):
    sae = files.load(published / "autoencoders" / MODEL / "layer_02" / "aligned")
    for answer in read_answers(demo_run / "steering" / MODEL, ["aligned"]).head(3).itertuples():
        p = raw(model, answer.prompt, "layers.2", lambda x, s=answer.strength: x + s * (sae(x)[0] - x))
        q = raw(model, answer.prompt, "layers.2", lambda x: x)
        assert float((p.exp() * (p - q)).sum()) == pytest.approx(answer.receipt["kl_first_step"], abs=2e-3)


def test_lm_evaluation_harness_loads_a_direction(published):
    path = published / "directions" / MODEL / "layer_02.mean-difference.pt"
    loaded = hf_steered.SteeredModel("data/demo/models/moral-small", str(path), device="cpu", dtype="float32")
    x = torch.zeros(1, 1, len(formats(published, "mean-difference")[1][0]))
    torch.testing.assert_close(loaded.hook_to_steer["layers.2"](x)[0, 0], formats(published, "mean-difference")[1][0])


def test_the_crate_lists_every_file_with_its_hash(published):
    graph = json.loads((published / "ro-crate-metadata.json").read_text())["@graph"]
    by_id = {entity["@id"]: entity for entity in graph}
    assert len(by_id) == len(graph)
    assert by_id["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    root = by_id["./"]
    assert {"name", "description", "datePublished", "license", "hasPart"} <= root.keys()
    listed = {part["@id"] for part in root["hasPart"]}
    assert listed == set(files_below(published)) - {"ro-crate-metadata.json"}
    assert all(by_id[name]["sha256"] == sha256_of_file(published / name) for name in listed)
    assert {entity["@id"] for key in ("license", "citation", "isBasedOn") for entity in [root[key]]} <= by_id.keys()
    assert len(list(ROCrate(str(published)).get_entities())) >= len(listed)


def test_what_is_not_finished_is_left_out_and_what_was_changed_is_refused(demo_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(demo_run / "vectors", run / "vectors")
    (run / "alignment" / MODEL).mkdir(parents=True)
    publish.publish(run, run / "publish")
    said = capsys.readouterr().out
    assert f"left out: autoencoders/{MODEL}" in said
    assert "left out: ledger" in said
    assert {name.split("/")[0] for name in files_below(run / "publish")} == {"moral-vectors", "ro-crate-metadata.json"}
    (run / "vectors" / "exploded.parquet").write_bytes(b"")
    with pytest.raises(MismatchError, match="not what its stage wrote"):
        publish.publish(run, run / "publish")
    assert (run / "publish" / "moral-vectors" / "README.md").exists(), "what was there stays"
    with pytest.raises(MissingStageError, match="vectors is not finished"):
        publish.publish(tmp_path / "nothing", tmp_path / "out")


def run_where(demo_run, run, answered):
    """The demo run with the answers of these arms alone, beside results that were superseded and cannot be read."""
    (run / ".superseded" / "claims").mkdir(parents=True)
    (run / ".superseded" / "claims" / "manifest.json").write_text("{}")
    for stage in {path.name for path in demo_run.glob("[!.]*")} - {"steering", "publish"}:
        (run / stage).symlink_to(demo_run / stage)
    steering = run / "steering" / MODEL
    shutil.copytree(demo_run / "steering" / MODEL, steering)
    manifest = json.loads((steering / "manifest.json").read_text())
    for path in steering.glob("*.jsonl"):
        if path.stem not in answered:
            path.unlink()
            del manifest["outputs"][path.name]
    (steering / "manifest.json").write_text(json.dumps(manifest))
    return run


@pytest.mark.parametrize("arms", [["baseline", "random-sae"], ["baseline", "aligned", "mean-difference"]])
def test_arms_that_answered_nothing_are_left_out_and_all_else_is_published(demo_run, tmp_path, capsys, arms):
    run = run_where(demo_run, tmp_path / "run", arms)
    publish.publish(run, tmp_path / "out")
    written = set(files_below(tmp_path / "out"))
    directions = {name for name in written if name.endswith(".safetensors") and name.startswith("directions")}
    steered = set(arms) & set(publish.STEERED)
    assert directions == {f"directions/{MODEL}/layer_02.{arm}.safetensors" for arm in steered}
    assert ("left out: directions/moral-small: neither mean-difference" in capsys.readouterr().out) == (not steered)
    assert f"autoencoders/{MODEL}/README.md" in written
    assert any(name.startswith("ledger/") for name in written)


def test_the_card_says_of_either_kind_what_it_is_used_on(demo_run, published, tmp_path, monkeypatch):
    pooled, metadata, read = published / "autoencoders" / MODEL, files.metadata, pd.read_parquet
    monkeypatch.setattr(files, "metadata", lambda folder: metadata(folder) | {"kind": "tokens"})
    monkeypatch.setattr(pd, "read_parquet", lambda path: read(path).assign(unit="token"))
    publish.autoencoders(publish.open_run(demo_run), tmp_path, MODEL)
    texts = [" ".join((folder / "README.md").read_text().split()) for folder in (pooled, tmp_path)]
    for text, unit, trained_on in zip(texts, ("row", "token"), ("pooled vectors of", "single tokens"), strict=True):
        assert f"the latents active per {unit}, both" in text
        assert f"They were trained on {trained_on}" in text
    assert ["beyond what they were trained on" in text for text in texts] == [True, False]
