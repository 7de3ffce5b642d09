"""Autoencoders: training, moral latents, selective alignment, files, each against another way of knowing."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.foundations import CATEGORIES
from lib.sae import align, evaluate, export, features, train
from lib.sae.model import SparseAutoencoder, fraction_of_variance_unexplained


def planted(rows=600, width=32, seed=0, noise=0.05):
    """Rows that are sparse sums of ten category directions and ten others, in proportion to their moral vector."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(width, width)))[0][:20]
    vectors = np.zeros((rows, len(CATEGORIES)))
    chosen = generator.integers(0, len(CATEGORIES), rows)
    vectors[np.arange(rows), chosen] = generator.choice([0.25, 0.5, 1.0], rows)
    other = (generator.random((rows, 10)) < 0.3) * generator.random((rows, 10))
    x = np.hstack([3 * vectors, other]) @ directions + noise * generator.normal(size=(rows, width)) + 5.0
    return x.astype(np.float32), vectors


@pytest.fixture(scope="module")
def trained():
    x, vectors = planted()
    sae, history = train.train(x[:400], x[400:500], train.Recipe(4, 15.0, 150, 3e-3, 64), "test")
    return sae, history, x, vectors


# ------------------------------------------------------------------------------------------ training


def test_unexplained_variance_is_0_for_the_identity_and_1_for_the_mean():
    x = torch.randn(50, 8)
    assert fraction_of_variance_unexplained(x, x) == 0
    assert fraction_of_variance_unexplained(x, x.mean(dim=0).expand_as(x)) == pytest.approx(1)


def test_training_explains_most_of_the_variance_and_moves_toward_the_target(trained):
    sae, history, _, _ = trained
    assert history["fvu"].iloc[-1] < 0.2
    assert abs(history["l0"].iloc[-1] - 15) < abs(history["l0"].iloc[0] - 15)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(sae.latents), atol=1e-5)


def test_the_same_seed_gives_the_same_bytes():
    x, _ = planted(200)
    runs = [train.train(x, x, train.Recipe(2, 10.0, 3, 1e-3, 64), "twice")[0] for _ in range(2)]
    for name, value in runs[0].state_dict().items():
        assert torch.equal(value, runs[1].state_dict()[name])


def test_folding_the_centre_changes_nothing_but_the_input():
    torch.manual_seed(0)
    sae = SparseAutoencoder(8, 32)
    x, centre = torch.randn(20, 8), torch.randn(8)
    folded = sae.fold_centre(centre)
    torch.testing.assert_close(folded(x)[0], sae(x - centre)[0] + centre, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(folded(x)[1], sae(x - centre)[1], atol=1e-6, rtol=1e-5)


@given(st.floats(1e-6, 100), st.floats(0.01, 10))
def test_the_penalty_moves_the_right_way_and_stays_in_bounds(weight, ratio):
    changed = train.adapted(weight, ratio)
    assert 1e-6 <= changed <= 100
    if ratio > 1.1:
        assert changed >= weight
    if ratio < 0.9:
        assert changed <= weight


def test_a_loss_that_is_not_finite_stops_the_training():
    x, _ = planted(64)
    with pytest.raises(train.TrainingError, match="not finite"):
        train.train(np.where(x > x.max() - 1e-6, np.nan, x), x, train.Recipe(2, 5.0, 2), "bad")
    with pytest.raises(train.TrainingError, match="loss is not finite in epoch 0; lower learning_rate"):
        train.train(x * 1e25, x, train.Recipe(2, 5.0, 2), "huge")


# ------------------------------------------------------------------------------------------ features


def test_correlations_in_chunks_equal_numpy(trained):
    sae, _, x, vectors = trained
    found = features.correlations(sae, x, vectors, chunk=77)
    z = sae.encode(torch.from_numpy(x)).detach().double().numpy()
    for latent in range(0, sae.latents, 7):
        for dimension in range(10):
            if z[:, latent].std() > 1e-6:
                expected = np.corrcoef(z[:, latent], vectors[:, dimension])[0, 1]
                assert found[latent, dimension] == pytest.approx(expected, abs=1e-4)


def test_planted_latents_are_found_and_shuffled_labels_give_almost_nothing(trained):
    sae, _, x, vectors = trained
    table = features.identify(sae, x[400:], vectors[400:], 20, 0)
    assert table.loc[table["careful"], "category"].nunique() == len(CATEGORIES)
    shuffled = np.random.default_rng(1).permutation(vectors[400:])
    assert features.identify(sae, x[400:], shuffled, 20, 0)["careful"].mean() < 0.1
    assert table["careful"].mean() > 0.3


def test_the_report_criterion_by_hand():
    above = np.zeros((4, 10), dtype=bool)
    above[1, 3] = True
    above[2, [0, 1]] = True  # care and harm oppose each other
    above[3, [1, 2]] = True  # harm and fairness do not
    assert features._report(above).tolist() == [False, True, True, False]


def test_an_autoencoder_without_moral_latents_says_so_and_alignment_copes():
    sae = SparseAutoencoder(8, 16)
    with torch.no_grad():
        sae.b_enc -= 1e6  # nothing ever fires
    x, vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32), np.zeros((60, 10))
    table = features.identify(sae, x, vectors, 5, 0)
    assert not table["tuned"].any()
    selection = align.select(table)
    aligned, history = align.align(sae, selection, (x, vectors), (x, vectors), align.Recipe(epochs=2), "nothing")
    assert history.empty
    assert align.frozen_hash(aligned, selection.tuned) == align.frozen_hash(sae, selection.tuned)


# ----------------------------------------------------------------------------------------- alignment


@pytest.fixture(scope="module")
def aligned(trained):
    sae, _, x, vectors = trained
    selection = align.select(features.identify(sae, x[400:500], vectors[400:500], 20, 0))
    recipe = align.Recipe(epochs=15, learning_rate=1e-3, batch_size=128)
    before = copy.deepcopy(sae.state_dict())
    parts = ((x[:400], vectors[:400]), (x[400:500], vectors[400:500]))
    tuned, history = align.align(sae, selection, *parts, recipe, "test")
    generator = np.random.default_rng(0)
    wrong = tuple((rows, generator.permutation(labels)) for rows, labels in parts)
    shuffled, _ = align.align(sae, selection, *wrong, recipe, "shuffled")
    return sae, before, selection, tuned, shuffled, history


def test_only_the_tuned_rows_change(aligned):
    sae, before, selection, tuned, _, _ = aligned
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), "the pretrained autoencoder is not touched"
    assert align.frozen_hash(tuned, selection.tuned) == align.frozen_hash(sae, selection.tuned)
    assert not torch.equal(tuned.W_enc[:, selection.tuned], sae.W_enc[:, selection.tuned])
    other = copy.deepcopy(tuned)
    kept = np.setdiff1d(np.arange(sae.latents), selection.tuned)
    with torch.no_grad():
        other.b_enc[kept[0]] += 1e-6
    assert align.frozen_hash(other, selection.tuned) != align.frozen_hash(sae, selection.tuned)


def test_alignment_beats_shuffled_labels_on_rows_it_never_saw(aligned, trained):
    sae, _, selection, tuned, shuffled, _ = aligned
    x, vectors = trained[2][500:], trained[3][500:]
    arms = {"aligned": (tuned, selection), "untuned": (sae, selection), "shuffled": (shuffled, selection)}
    actions = np.array([f"a{i}" for i in range(len(x))])
    table = evaluate.evaluate(arms, x, vectors, actions, 100, 0)
    whole = table[table["category"] == "all"].set_index(["arm", "metric"])
    assert whole.loc[("aligned", "opposing_similarity minus shuffled"), "ci_high"] < -0.02
    assert whole.loc[("aligned", "opposing_similarity minus untuned"), "ci_high"] < -0.02
    assert whole.loc[("aligned", "spearman"), "ci_low"] > 0.3


def test_the_losses_fall(aligned):
    history = aligned[5]
    total = history[history["split"] == "train"].pivot(index="epoch", columns="term", values="value")
    assert (total.iloc[-1] < total.iloc[0])[["align", "polarity", "prototype"]].all()


def test_the_published_alignment_loss_cannot_go_below_one_half():
    sae = SparseAutoencoder(4, 20)
    selection = align.Selection(
        np.arange(20), [np.array([2 * d, 2 * d + 1]) for d in range(10)], [np.array([2 * d]) for d in range(10)],
        np.array([0]), np.array([0]),
    )  # fmt: skip
    rows = align.TunedRows(sae, selection.tuned)
    with torch.no_grad():
        rows.bias -= 1e6
    data = {"x": torch.randn(6, 4), "rest": torch.zeros(6, 4), "m": torch.full((6, 10), 0.125)}
    generator = torch.Generator().manual_seed(0)
    published = align.losses(rows, selection, data, "six-term", generator)["align"]
    variant = align.losses(rows, selection, data, "six-term-without-floor", generator)["align"]
    assert published.item() == pytest.approx((0.5 - 0.125) ** 2)
    assert variant.item() == pytest.approx(0.125**2)


def test_the_page_names_three_terms_and_the_code_has_six():
    assert set(align.term_weights("three-term")) == {"align", "polarity", "prototype"}
    assert len(align.term_weights("six-term")) == 6
    with pytest.raises(train.TrainingError, match="known: six-term"):
        align.term_weights("two-term")


def test_rows_are_weighted_as_published():
    vectors = np.zeros((5, 10))
    vectors[:4, 0] = [1.0, 0.5, 0.25, 0.125]
    assert align.row_weights(vectors).tolist() == [2.0, 1.5, 1.0, 1.0, 0.3]


# --------------------------------------------------------------------------------------------- files


def test_a_saved_autoencoder_comes_back_the_same(tmp_path):
    torch.manual_seed(0)
    sae = SparseAutoencoder(8, 32)
    export.save(tmp_path, sae, {"model_name": "m", "hook_name": "model.layers.2"})
    loaded = export.load(tmp_path, width=8)
    for name, value in sae.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert export.metadata(tmp_path)["hook_name"] == "model.layers.2"
    assert {path.name for path in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_an_autoencoder_of_another_model_is_refused(tmp_path):
    export.save(tmp_path, SparseAutoencoder(8, 32), {})
    with pytest.raises(export.FormatError, match="width 8, but the model's is 64: it belongs to another model"):
        export.load(tmp_path, width=64)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(export.FormatError, match="run notebook 05"):
        export.load(tmp_path)


@pytest.mark.pipeline
def test_the_demo_alignment_separates_opposites_beyond_shuffled_labels(demo_run):
    table = pd.read_parquet(demo_run / "alignment" / "moral-small" / "alignment.parquet")
    whole = table[table["category"] == "all"].set_index(["arm", "metric"])
    assert whole.loc[("aligned", "opposing_similarity minus shuffled"), "ci_high"] < -0.3
