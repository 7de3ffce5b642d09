"""Dictionaries of tokens: every token is encoded and then pooled, as raw hooks and a loop say; and no other model's."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from activations.families import hooked_streams
from scipy.sparse import csr_array

from lib.activations import extraction, models, sources
from lib.paper import POOLINGS, TEMPLATE
from lib.run.files import CompanionError
from lib.run.parameters import SAEKeys, SAEParameters
from lib.run.stage import Stage
from lib.run.table import STAGES
from lib.sae import features, files, layers, tokens
from lib.sae.model import SparseAutoencoder, quality
from lib.sae.rows import Rows, joined

ACTIONS = [
    "lying to a friend",
    "helping",
    "a",
    "keeping a promise that nobody else remembers",
    "not caring",
    "stealing",
]
LAYER, WIDTH, LATENTS = 1, 32, 96


@pytest.fixture(scope="module")
def model(tiny_model):
    return models.open_model(str(tiny_model), device="cpu")


def dictionary(seed=0):
    """A TopK whose latents differ from token to token."""
    sae = SparseAutoencoder(WIDTH, LATENTS, seed=seed, k=7)
    with torch.no_grad():
        sae.W_enc *= 30
        sae.b_enc += torch.linspace(-0.1, 0.1, LATENTS)
    return sae


def by_hooks(model, action):
    """Residual stream of one unpadded prompt after the layer, [token, width]."""
    ids = extraction.tokenize(model.tokenizer, [action]).tokens[0]
    return torch.from_numpy(hooked_streams(model._module, ids)[LAYER])


def counted(pooling, action, stream):
    """The tokens of a byte tokenizer that count in a pooling."""
    places = {"mean": slice(None), "mean_without_first": slice(1, None), "last": slice(-1, None)}
    return stream[places.get(pooling, slice(len(action.encode())))]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_latents_are_those_of_every_token_by_raw_hooks(model, pooling, monkeypatch):
    monkeypatch.setattr(tokens, "ACTIVATIONS_AT_ONCE", 11 * LATENTS)  # a prompt is cut in the middle
    sae = dictionary()
    about = {"sae": sae, "layer": LAYER, "pooling": pooling}
    latents, measured = tokens.pooled_latents(model, ACTIONS, **about)
    read = [counted(pooling, action, by_hooks(model, action)) for action in ACTIONS]
    with torch.no_grad():
        expected = torch.stack([sae.encode(stream).mean(dim=0) for stream in read])
        of_the_mean = torch.stack([sae.encode(stream.mean(dim=0)) for stream in read])
    np.testing.assert_allclose(latents.toarray(), expected, atol=1e-4, rtol=1e-4)
    assert measured == pytest.approx(quality(sae, torch.cat(read)), rel=1e-4)
    if pooling != "last":  # whose vector is a token
        assert (expected - of_the_mean).abs().max() > 0.1


def test_tokens_are_those_of_the_template_that_the_store_was_read_under(model):
    about = {"sae": dictionary(), "layer": LAYER, "pooling": "last"}
    read = [extraction.tokenize(model.tokenizer, [a], template="Is it fine: {action}").tokens[0] for a in ACTIONS]
    last = torch.stack([torch.from_numpy(hooked_streams(model._module, ids)[LAYER])[-1] for ids in read])
    with torch.no_grad():
        expected = dictionary().encode(last)
    latents, _ = tokens.pooled_latents(model, ACTIONS, template="Is it fine: {action}", **about)
    np.testing.assert_allclose(latents.toarray(), expected, atol=1e-4, rtol=1e-4)
    assert np.abs(tokens.pooled_latents(model, ACTIONS, **about)[0].toarray() - expected.numpy()).max() > 0.1


def store_of(directory, tiny_model):
    """What stage 02 says of the model that it opened."""
    directory.mkdir()
    identity = {"facts": sources.fingerprint(str(tiny_model)), "parameters": {"template": TEMPLATE}}
    (directory / "manifest.json").write_text(json.dumps({"identity": identity}))
    return directory


def asked(tmp_path, source, **changes):
    given = {
        "run_dir": "runs/test", "model": "m", "layers": [LAYER], "model_source": str(source), "device": "cpu",
        "sae_kind": "tokens", "sae_source": str(tmp_path / "others"), "permutations": 5, "show_content": False,
    }  # fmt: skip
    return SAEParameters(**given | changes)


def reader(layer):
    """Actions that recur within a split, out of order; the vectors of the store are not what is read."""
    sides = {"train": [5, 0, 3, 0, 2], "validation": [4, 1, 3, 4, 0, 2, 1], "test": [1, 5, 1]}
    labels = np.random.default_rng(0).choice([0, 0.5, 1], (7, 10))
    return {
        side: Rows(np.full((len(index), WIDTH), np.nan, np.float32), labels[: len(index)], np.array(ACTIONS)[index])
        for side, index in sides.items()
    }


def stage_with(tmp_path, tiny_model):
    source = tmp_path / "others" / f"layer_{LAYER:02d}"
    source.mkdir(parents=True)
    files.save(source, dictionary(), {"model_name": "theirs"})
    directory, store = tmp_path / "run" / "sae", store_of(tmp_path / "store", tiny_model)
    directory.mkdir(parents=True)
    parameters = asked(tmp_path, tiny_model)
    inputs = {"activations": store}
    return Stage(STAGES["sae"], directory.parent, directory, inputs, {}, complete=False, parameters=parameters)


def test_a_dictionary_of_tokens_goes_through_the_whole_stage(tmp_path, tiny_model, model):
    stage = stage_with(tmp_path, tiny_model)
    folders, tables = layers.learn_layers(stage, reader, parameters=stage.parameters)
    assert files.metadata(folders[LAYER])["kind"] == "tokens"
    rows = layers.rows_or_latents(stage, reader, parameters=stage.parameters)
    latents = {action: dictionary().encode(by_hooks(model, action)).mean(dim=0).detach() for action in ACTIONS}
    for part in rows(LAYER).values():
        expected = torch.stack([latents[action] for action in part.actions])
        np.testing.assert_allclose(part.x.toarray(), expected, atol=1e-4, rtol=1e-4)
    table, validation = tables[LAYER], rows(LAYER)["validation"]
    varies = np.ptp(validation.x.toarray(), axis=0) > 0
    r = np.corrcoef(validation.x.toarray().T[varies], validation.vectors.T)[: varies.sum(), varies.sum() :]
    np.testing.assert_allclose(table.filter(regex="^r_")[varies], r, atol=1e-5)
    measured = joined(stage, "pretrained/quality.parquet", [LAYER]).set_index("split")
    read = torch.cat([by_hooks(model, action) for action in np.unique(reader(LAYER)["test"].actions)])
    assert measured.loc["test", ["mse", "l0", "fvu", "dead"]].to_dict() == pytest.approx(
        quality(dictionary(), read), rel=1e-4
    )
    assert measured.loc["test", "unit"] == "token"
    assert (measured["epochs"] == 0).all()
    assert measured["target_l0"].isna().all()
    history = files.histories(folders, "layer")
    assert history["fvu"].tolist() == [measured.loc["validation", "fvu"]]
    shown = features.most_activating(dictionary(), validation, table=table.assign(tuned=True), count=2)
    assert shown["action"].isin(ACTIONS).all()


def test_pooled_vectors_are_read_as_they_are(tmp_path, tiny_model):
    stage = stage_with(tmp_path, tiny_model)
    assert layers.rows_or_latents(stage, reader, parameters=asked(tmp_path, tiny_model, sae_kind="pooled")) is reader


def test_another_model_than_the_stores_is_refused(tmp_path, tiny_model):
    stage = stage_with(tmp_path, tiny_model)
    (stage.inputs["activations"] / "manifest.json").write_text(json.dumps({"identity": {"facts": {"hub": "another"}}}))
    with pytest.raises(files.FormatError, match="is not the model whose activations are in the store"):
        layers.learn_layers(stage, reader, parameters=stage.parameters)


def test_a_dictionary_of_tokens_that_is_to_be_trained_is_refused():
    with pytest.raises(CompanionError, match="sae_kind: tokens is for autoencoders by others"):
        SAEKeys(layers=[0], sae_kind="tokens")


def test_sparse_rows_are_taken_as_they_are():
    sae, dense = dictionary(), np.random.default_rng(0).random((9, LATENTS)).astype(np.float32)
    labels = np.random.default_rng(1).random((9, 10))
    given, activity = features.correlations(sae, csr_array(dense), labels)
    expected = pd.DataFrame(np.hstack([dense, labels])).corr().to_numpy()[:LATENTS, LATENTS:]
    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert (activity == 1).all()
