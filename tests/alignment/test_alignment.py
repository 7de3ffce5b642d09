"""Alignment: only the tuned latents move, the losses are the formulas, shuffled labels teach nothing."""

import copy
from typing import get_args

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from pydantic import ValidationError
from scipy.stats import norm

from lib.alignment import controls, evaluation, figures, objective, tuning
from lib.alignment.objective import PAIR_MARGIN, _prototype_term, losses, row_weights, share_below_floor, term_weights
from lib.alignment.selection import Selection, TunedLatents, select
from lib.paper import CATEGORIES
from lib.run.files import PROJECT
from lib.run.parameters import AlignmentKeys
from lib.sae.model import SparseAutoencoder, quality
from lib.sae.rows import Rows

WIDTH, LATENTS = 24, 96
OBJECTIVES = get_args(AlignmentKeys.model_fields["alignment_objective"].annotation)


def planted(rows, seed, signal=2.0):
    """Raw rows [rows, 24] in which every category has a direction of its own, and moral vectors [rows, 10]."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(7).normal(size=(WIDTH, WIDTH)))[0][:10]
    vectors = np.zeros((rows, 10))
    levels = generator.choice([0.125, 0.25, 0.375, 0.5, 0.75, 1.0], rows)
    vectors[np.arange(rows), generator.integers(0, 10, rows)] = levels * (generator.random(rows) < 0.9)
    x = signal * vectors @ directions + 0.3 * generator.normal(size=(rows, WIDTH)) + 1.0
    actions = np.array([f"action {index}" for index in range(rows)])
    return Rows(x.astype(np.float32), vectors, actions)


def autoencoder(seed=0):
    """A random autoencoder whose latents fire on about half of the planted rows."""
    return SparseAutoencoder(WIDTH, LATENTS, seed=seed).fold_centre(torch.ones(WIDTH))


def selection(per_category=3):
    """Tuned latents 5, 7, 9 ...: three stand for each category, the first of each is strict."""
    of_category = np.repeat(np.eye(10, dtype=np.float32), per_category, axis=0) / per_category
    latents = 5 + 2 * np.arange(10 * per_category)
    return Selection(latents, of_category, of_category, per_category * np.arange(10), np.arange(10))


def align(rows, sae=None, chosen=None, objective="six-term", epochs=30, rate=1e-2, batch=128):
    """Tune the latents of ``selection`` of a random autoencoder, or others."""
    recipe = AlignmentKeys(
        layers=[0], alignment_objective=objective, alignment_epochs=epochs, alignment_learning_rate=rate,
        alignment_batch_size=batch,
    )  # fmt: skip
    return tuning.align(sae or autoencoder(), chosen or selection(), rows=rows, parameters=recipe, label="test")


def terms_of(latents, data, objective="six-term", generator=None):
    frozen = {"mass": torch.zeros(len(data["x"])), "rest": torch.zeros_like(data["x"])}
    return losses(latents, frozen | data, objective=objective, generator=generator or torch.Generator())


@pytest.fixture(scope="module")
def rows():
    return {
        name: planted(n, seed) for seed, (name, n) in enumerate({"train": 1200, "validation": 300, "test": 500}.items())
    }


@pytest.fixture(scope="module")
def arms(rows):
    permute = np.random.default_rng(0).permutation
    shuffled = {side: rows[side]._replace(vectors=permute(rows[side].vectors)) for side in ("train", "validation")}
    return {"untuned": autoencoder(), "aligned": align(rows)[0], "shuffled": align(shuffled)[0]}


@pytest.fixture(scope="module")
def measured(arms, rows):
    test = rows["test"]
    chosen = {arm: [evaluation.apply(sae, selection(), test.x)] for arm, sae in arms.items()}
    table = evaluation.evaluate(chosen, test, draws=100, seed=0)
    return table[table["category"] == "all"].set_index(["arm", "metric"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_the_tuned_latents_move(rows, objective, monkeypatch):
    sae = autoencoder()
    before = copy.deepcopy(sae.state_dict())
    chosen = selection()
    monkeypatch.setattr(tuning, "WEIGHT_DECAY", 0.5)
    aligned, history = align(rows, sae, chosen, objective, epochs=5, batch=512)
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())
    frozen = np.setdiff1d(np.arange(LATENTS), chosen.tuned)
    assert torch.equal(aligned.W_enc[:, frozen], sae.W_enc[:, frozen])
    assert torch.equal(aligned.b_enc[frozen], sae.b_enc[frozen])
    assert torch.equal(aligned.W_dec[frozen], sae.W_dec[frozen])
    assert torch.equal(aligned.b_dec, sae.b_dec)
    assert not torch.isclose(aligned.W_enc[:, chosen.tuned], sae.W_enc[:, chosen.tuned]).all()
    torch.testing.assert_close(aligned.W_dec.norm(dim=1), torch.ones(LATENTS))
    assert set(history["term"]) == set(term_weights(objective))


def test_the_hash_sees_every_frozen_weight_and_no_tuned_one():
    chosen = selection().tuned
    reference = tuning.frozen_hash(autoencoder(), chosen)
    frozen_latent, tuned_latent = 6, 5
    for name, index in {
        "W_enc": (0, frozen_latent), "b_enc": (frozen_latent,), "W_dec": (frozen_latent, 0), "b_dec": (0,)
    }.items():  # fmt: skip
        changed = autoencoder()
        with torch.no_grad():
            getattr(changed, name)[index] += 1e-6
        assert tuning.frozen_hash(changed, chosen) != reference, name
    changed = autoencoder()
    with torch.no_grad():
        changed.W_dec[tuned_latent] += 1
        changed.b_enc[tuned_latent] += 1
    assert tuning.frozen_hash(changed, chosen) == reference


def test_the_frozen_share_counts_weights():
    sae = autoencoder()
    assert tuning.frozen_share(sae, np.array([], dtype=int)) == 1
    total = 2 * WIDTH * LATENTS + WIDTH + LATENTS
    assert tuning.frozen_share(sae, np.arange(10)) == pytest.approx(1 - 10 * (2 * WIDTH + 1) / total)


def one_latent_per_category(activations):
    """Terms of the losses for rows whose ten tuned latents have the activations given, [rows, 10]."""
    chosen = controls.ten_directions()
    sae = SparseAutoencoder(10, 10)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(10))
        sae.W_dec.copy_(torch.eye(10))
    return TunedLatents(sae, chosen), torch.tensor(activations, dtype=torch.float32)


def test_the_terms_have_the_values_of_their_formulas():
    activations, m = np.zeros((9, 10)), np.zeros((9, 10))
    activations[:4, :2], m[:4, 1] = (0.7, 0.9), 0.75  # four rows of harm .75; care fires .7, harm .9
    activations[4:8, 2], m[4:8, 2] = 0.2, 0.5  # four rows of fairness .5, which fires .2
    m[8, 5] = 0.25  # too weak for the polarity term
    latents, x = one_latent_per_category(activations)
    data = {"x": x, "m": torch.tensor(m, dtype=torch.float32), "mass": torch.tensor([5.0] + 8 * [0.0])}
    terms = {name: float(value.detach()) for name, value in terms_of(latents, data).items()}
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    squares = [4 * (sigmoid(0.9) - 0.75) ** 2, 4 * (sigmoid(0.2) - 0.5) ** 2, (0.5 - 0.25) ** 2]
    assert terms["align"] == pytest.approx(sum(squares) / 9, rel=1e-5)
    # Vice rows: harm leads care by .2 of .5, the other four pairs do not lead. Virtue rows: fairness leads by .2.
    vice, virtue = 0.3 + 4 * 0.5, (0.5 - 0.2) + 4 * 0.5
    assert terms["polarity"] == pytest.approx((vice + virtue) / (2 * 5), rel=1e-5)
    assert terms["prototype"] == 0  # fewer than 16 rows of every category
    assert terms["reconstruction"] == pytest.approx(0, abs=1e-12)
    assert terms["sparsity"] == pytest.approx((4 * 1.6 + 4 * 0.2 + 5) / 90, rel=1e-5)
    # Every strict latent on the rows of the eight or nine others: care on 9, harm on 5, fairness on 5, ...
    on_others = [4 * 0.7**2] + 9 * [0.0]
    assert terms["mono"] == pytest.approx(sum(on_others) / (9 * 9), rel=1e-5)


def test_few_strong_rows_of_a_pole_and_pairs_without_latents_make_no_polarity():
    activations, m = np.zeros((8, 10)), np.zeros((8, 10))
    m[:4, 1], m[4:, 2] = 0.75, 0.5
    latents, x = one_latent_per_category(activations)
    data = {"x": x, "m": torch.tensor(m, dtype=torch.float32)}
    assert float(terms_of(latents, data)["polarity"].detach()) == pytest.approx(0.5)
    latents.contrast[:, 2:] = 0  # care and harm are the only pair
    data["x"] = torch.zeros(8, 10)
    data["x"][:, 1] = 0.5
    assert float(terms_of(latents, data)["polarity"].detach()) == pytest.approx((0 + 1.0) / 2)
    m[7, 2] = 0.3  # three strong virtues
    data["m"] = torch.tensor(m, dtype=torch.float32)
    assert float(terms_of(latents, data)["polarity"].detach()) == 0


def test_the_prototype_term_wants_the_more_typical_row_to_fire_more():
    m = torch.zeros(20, 10)
    m[:, 1] = torch.tensor([1.0, 0.125]).repeat(10)
    right, wrong = torch.zeros(20, 10), torch.zeros(20, 10)
    right[0::2, 1], wrong[1::2, 1] = 2.0, 2.0
    values = []
    for x in (right, wrong):
        latents, _ = one_latent_per_category(np.zeros((1, 10)))
        values.append(float(terms_of(latents, {"x": x, "m": m})["prototype"].detach()))
    assert values[0] < 0.1 < values[1]


@pytest.mark.parametrize("count", [15, 16, 99, 150, 250])
def test_prototype_pairs_are_those_of_the_recipe(count):
    """A random order; the first 100 rows against the next 100, or against those one place before where there are too few."""
    generator = torch.Generator().manual_seed(4)
    m, a = torch.zeros(260, 10), torch.rand(260, 10, generator=generator)
    rows = torch.randperm(260, generator=generator)[:count].sort().values
    m[rows, 3] = torch.rand(count, generator=generator)
    order = rows[torch.randperm(count, generator=torch.Generator().manual_seed(9))].tolist()
    n = min(100, count)
    partner = order[n : 2 * n] if count >= 200 else [order[i - 1] for i in range(n)]
    hinges = [
        max(0.0, 0.1 - float((m[i, 3] - m[j, 3]) * (a[i, 3] - a[j, 3])))
        for i, j in zip(order[:n], partner, strict=True)
    ]
    expected = sum(hinges) / n if count >= 16 else 0
    assert float(_prototype_term(a, m, torch.Generator().manual_seed(9))) == pytest.approx(expected, rel=1e-5)


def test_the_published_floor_is_one_half_and_the_variant_has_none():
    """A sigmoid of an activation, which is never negative, cannot reach a target of .125."""
    latents, x = one_latent_per_category(np.zeros((1, 10)))
    m = torch.zeros(1, 10)
    m[0, 1] = 0.125
    data = {"x": x, "m": m}
    published = terms_of(latents, data)["align"]
    assert float(published.detach()) == pytest.approx(0.375**2)
    data["x"] = torch.zeros(1, 10)
    data["x"][0, 1] = float(np.log((1 + 0.125) / (1 - 0.125)))  # 2 sigmoid(a) - 1 = .125
    reached = terms_of(latents, data, "six-term-without-floor")["align"]
    assert float(reached.detach()) == pytest.approx(0, abs=1e-10)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValidationError, match="'six-term', 'three-term'"):
        AlignmentKeys(layers=[0], alignment_objective="four-term")
    assert all(set(term_weights(objective)) <= set(term_weights("six-term")) for objective in OBJECTIVES)


def test_typical_rows_and_the_rarer_pole_are_drawn_more_often():
    vectors = np.zeros((9, 10))
    vectors[1:, 1] = [1.0, 0.5, 0.25, 0.75, 0.75, 0.75, 0.75, 0.125]
    vectors[3], vectors[8] = 0, 0
    vectors[3, 0], vectors[8, 0] = 0.375, 0.125  # two virtues, one of them weak, among six vices
    np.testing.assert_allclose(row_weights(vectors), [0.3, 2, 1.5, 4.5, 2, 2, 2, 2, 3])
    np.testing.assert_allclose(row_weights(vectors[:, [1, 0, *range(2, 10)]])[[1, 3]], [2, 4.5])
    # Within 1.5 times as many neither pole is favoured.
    swapped = vectors[:, [1, 0, *range(2, 10)]]
    np.testing.assert_allclose(row_weights(swapped[[0, 1, 2, 4, 3, 8]]), [0.3, 2, 1.5, 2, 1.5, 1])
    np.testing.assert_allclose(row_weights(vectors[[1, 2, 4, 5, 6, 3, 8]])[-2:], [1.5 * 2.5, 2.5])


def published(sae, chosen, rows, *, parameters):
    """Alignment written another way: the whole autoencoder in plain loops with autograd, on centred rows.

    Returns the tuned autoencoder of centred rows at the best epoch, and the epochs that were run.
    """
    centre = torch.from_numpy(rows["train"].x.mean(axis=0, dtype=np.float64).astype(np.float32))
    W_e, b_e = sae.W_enc.detach().clone(), sae.b_enc.detach() + centre @ sae.W_enc.detach()
    W_d, b_d = sae.W_dec.detach().clone(), sae.b_dec.detach() - centre
    tuned = torch.from_numpy(chosen.tuned)
    mine = [W_e[:, tuned].clone(), b_e[tuned].clone(), W_d[tuned].clone()]
    for value in mine:
        value.requires_grad_()
    data = {side: (torch.from_numpy(rows[side].x) - centre, torch.tensor(rows[side].vectors, dtype=torch.float32))
            for side in ("train", "validation")}  # fmt: skip
    readout, contrast = torch.from_numpy(chosen.readout), torch.from_numpy(chosen.contrast)

    def loss_of(x, m, generator):
        W, b, D = W_e.clone(), b_e.clone(), W_d.clone()
        W[:, tuned], b[tuned], D[tuned] = mine
        z = torch.relu(x @ W + b)
        total = ((z @ D + b_d - x) ** 2).mean() + 1e-4 * z.abs().mean()
        z = z[:, tuned]
        a, of_pole = z @ readout, z @ contrast
        entries = [(torch.sigmoid(a[i, d]) - m[i, d]) ** 2 for i, d in torch.nonzero(m > 0).tolist()]
        total = total + 0.5 * torch.stack(entries).mean()
        virtuous, vicious = m[:, 0::2].max(dim=1).values > 0.3, m[:, 1::2].max(dim=1).values > 0.3
        if virtuous.sum() >= 4 and vicious.sum() >= 4:
            for d in range(0, 10, 2):
                gap = of_pole[:, d] - of_pole[:, d + 1]
                poles = torch.relu(0.5 - gap[virtuous]).mean() + torch.relu(0.5 + gap[vicious]).mean()
                total = total + 0.3 * poles / 10
        total = total + 0.2 * _prototype_term(a, m, generator)  # tested by itself
        own, counted = m.argmax(dim=1), []
        for position, d in zip(chosen.strict, chosen.strict_dimension, strict=True):
            counted.append(z[own != d, position] ** 2)
        return total + 0.1 * torch.cat(counted).mean()

    m = rows["train"].vectors
    typicality = m.max(axis=1)
    chances = np.where(typicality > 0.5, 2, np.where(typicality > 0.25, 1.5, np.where(typicality == 0, 0.3, 1)))
    virtue, vice = m[:, 0::2].max(axis=1), m[:, 1::2].max(axis=1)
    ratio = (virtue > vice).sum() / (vice > virtue).sum()
    assert ratio < 0.67, "the data of this test must have fewer virtuous rows"
    chances = np.where(virtue > vice, chances * min(1 / ratio, 3), chances)
    generator = torch.Generator().manual_seed(parameters.seed)
    steps = -(-len(m) // parameters.alignment_batch_size)
    optimiser = torch.optim.AdamW(mine, lr=parameters.alignment_learning_rate, weight_decay=0.01)
    total_steps, rate = steps * parameters.alignment_epochs, parameters.alignment_learning_rate
    best, best_loss, best_epoch, epoch = None, float("inf"), -1, -1
    lowest, rising, step = rate / 25, 0.1 * total_steps - 1, 0
    for epoch in range(parameters.alignment_epochs):
        drawn = torch.multinomial(torch.from_numpy(chances), len(m), replacement=True, generator=generator)
        for batch in drawn.split(parameters.alignment_batch_size):
            share = step / rising if step <= rising else (step - rising) / (total_steps - 1 - rising)
            start, end = (lowest, rate) if step <= rising else (rate, lowest / 1000)
            optimiser.param_groups[0]["lr"] = end + (start - end) * (1 + np.cos(np.pi * share)) / 2
            start, end = (0.95, 0.85) if step <= rising else (0.85, 0.95)
            optimiser.param_groups[0]["betas"] = (end + (start - end) * (1 + np.cos(np.pi * share)) / 2, 0.999)
            optimiser.zero_grad()
            loss_of(data["train"][0][batch], data["train"][1][batch], generator).backward()
            norm = sum(float((value.grad**2).sum()) for value in mine) ** 0.5
            for value in mine:
                value.grad *= min(1, 1 / norm)
            optimiser.step()
            with torch.no_grad():
                mine[2] /= mine[2].norm(dim=1, keepdim=True)
            step += 1
        with torch.no_grad():
            loss = float(loss_of(*data["validation"], torch.Generator().manual_seed(parameters.seed)))
        if loss < best_loss - 1e-4:
            best, best_loss, best_epoch = [value.detach().clone() for value in mine], loss, epoch
        if epoch - best_epoch >= 10:
            break
    return best, epoch + 1


def test_alignment_is_the_released_recipe_written_another_way():
    """Few rows and a high rate, so that the clip acts and training stops early."""
    rows = {side: planted(n, seed) for seed, (side, n) in enumerate({"train": 120, "validation": 120}.items())}

    recipe = AlignmentKeys(layers=[0], alignment_epochs=100, alignment_learning_rate=1e-1, alignment_batch_size=60)
    sae, chosen = SparseAutoencoder(WIDTH, LATENTS), selection()
    aligned, history = tuning.align(sae, chosen, rows=rows, parameters=recipe, label="test")
    (encoder, bias, decoder), epochs = published(sae, chosen, rows, parameters=recipe)
    assert epochs < 100, "the data of this test must stop training early"
    assert history["epoch"].max() + 1 == epochs
    centre = torch.from_numpy(rows["train"].x.mean(axis=0, dtype=np.float64).astype(np.float32))
    tuned = torch.from_numpy(chosen.tuned)
    unfolded = aligned.fold_centre(-centre)
    torch.testing.assert_close(unfolded.W_enc[:, tuned].detach(), encoder, atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(unfolded.b_enc[tuned].detach(), bias, atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(unfolded.W_dec[tuned].detach(), decoder, atol=2e-3, rtol=1e-2)


def test_an_offset_of_all_rows_changes_nothing(rows):
    """Rows are centred: a constant in the residual stream, such as its large mean, cancels."""
    offset = 30 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    moved = {side: part._replace(x=part.x + offset.numpy()) for side, part in rows.items()}
    here, history = align(rows, epochs=4)
    there, history_there = align(moved, sae=autoencoder().fold_centre(offset), epochs=4)
    np.testing.assert_allclose(history["value"], history_there["value"], rtol=1e-3, atol=1e-4)
    back = there.fold_centre(-offset)
    torch.testing.assert_close(back.W_enc, here.W_enc, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(back.b_enc, here.b_enc, atol=1e-2, rtol=1e-2)


def test_decoder_rows_of_others_keep_their_lengths(rows):
    sae, lengths = SparseAutoencoder(WIDTH, LATENTS, k=12), torch.linspace(0.5, 2, LATENTS)
    with torch.no_grad():
        sae.W_dec *= lengths[:, None]
    aligned, _ = align(rows, sae, epochs=2)
    torch.testing.assert_close(aligned.W_dec.norm(dim=1), lengths)
    assert not torch.equal(aligned.W_dec, sae.W_dec)


def test_alignment_beats_shuffled_labels_and_the_untuned_on_rows_it_never_saw(measured):
    for other in ("untuned", "shuffled"):
        difference = measured.loc[("aligned", f"spearman minus {other}")]
        assert difference["ci_low"] > 0.1, other
    assert measured.loc[("aligned", "opposing_similarity minus shuffled"), "ci_high"] < 0
    assert measured.loc[("shuffled", "spearman"), "value"] < 0.15


def test_the_best_epoch_is_kept_not_the_last(rows, monkeypatch):
    """The weights returned give the lowest validation loss of the history, not whatever training went on to."""
    sae, chosen = autoencoder(), selection()
    monkeypatch.setattr(tuning, "PATIENCE", 40)
    rows = rows | {"train": planted(60, 5)}
    aligned, history = align(rows, sae, chosen, "three-term", epochs=40, rate=0.1, batch=32)
    weights = term_weights("three-term")
    held_out = history[history["split"] == "validation"].pivot(index="epoch", columns="term", values="value")
    by_epoch = sum(weights[name] * held_out[name] for name in weights)
    assert by_epoch.idxmin() < by_epoch.index[-1], "the data of this test must make the last epoch a worse one"
    centre = torch.from_numpy(rows["train"].x.mean(axis=0, dtype=np.float64).astype(np.float32))
    unfolded = aligned.fold_centre(-centre)
    data = tuning.prepared(unfolded, chosen, rows["validation"], centre)
    terms = terms_of(TunedLatents(unfolded, chosen), data, "three-term", torch.Generator().manual_seed(0))
    assert sum(weight * float(terms[name].detach()) for name, weight in weights.items()) == pytest.approx(
        by_epoch.min(), rel=1e-3
    )


def test_nothing_selected_is_an_outcome_not_an_error(rows):
    empty = np.array([], dtype=int)
    chosen = Selection(empty, *np.zeros((2, 0, 10), dtype=np.float32), empty, empty)
    sae, test = autoencoder(), rows["test"]
    aligned, history = align(rows, sae, chosen)
    assert len(history) == 0
    assert all(torch.equal(value, aligned.state_dict()[name]) for name, value in sae.state_dict().items())
    arms = {arm: [evaluation.apply(sae, chosen, test.x)] for arm in ("untuned", "aligned", "shuffled")}
    table = evaluation.evaluate(arms, test, draws=10, seed=0)
    assert table.loc[table["metric"] == "spearman", "value"].isna().all()
    assert np.isfinite(table.loc[(table["metric"] == "fvu"), "value"]).all()


def test_spearman_equals_scipy(arms, rows):
    from scipy.stats import spearmanr

    test, chosen = rows["test"], selection()
    applied = {"untuned": [evaluation.apply(arms["untuned"], chosen, test.x)]}
    table = evaluation.evaluate(applied, test, draws=5, seed=0)
    with torch.no_grad():
        z = arms["untuned"].encode(torch.from_numpy(test.x)).numpy()
    values = table[table["metric"] == "spearman"].set_index("category")["value"]
    for index, category in enumerate(CATEGORIES):
        activation = z[:, chosen.tuned[3 * index : 3 * index + 3]].mean(axis=1)
        assert values[category] == pytest.approx(spearmanr(activation, test.vectors[:, index]).statistic, abs=1e-5)


def test_similarities_are_correlations_with_annotators_first(arms, rows):
    test = rows["test"]
    table = evaluation.similarities({"untuned": [evaluation.apply(arms["untuned"], selection(), test.x)]}, test.vectors)
    assert list(table["arm"].unique()) == ["annotators", "untuned"]
    matrix = table[table["arm"] == "annotators"].pivot(index="category", columns="other", values="value")
    matrix = matrix.reindex(index=CATEGORIES, columns=CATEGORIES)
    np.testing.assert_allclose(matrix, np.corrcoef(test.vectors.T), atol=1e-9)


def test_selection_holds_the_positions_of_the_tuned_latents():
    r = np.zeros((6, 10))
    r[1, 0], r[4, 0], r[3, 1], r[5, 2] = 0.2, 0.5, 0.3, -0.4
    table = pd.DataFrame(r, columns=[f"r_{category}" for category in CATEGORIES])
    table["tuned"] = [False, True, False, True, True, True]
    table["strict"] = [False, False, False, True, False, True]
    chosen = select(table)
    assert chosen.tuned.tolist() == [1, 3, 4, 5]
    # Latents 1 and 4 stand for care by their correlations, and equally in the contrast with harm, which is latent 3's.
    np.testing.assert_allclose(chosen.readout[:, 0], [0.2 / 0.7, 0, 0.5 / 0.7, 0], rtol=1e-6)
    np.testing.assert_allclose(chosen.contrast[:, 0], [0.5, 0, 0.5, 0])
    assert chosen.readout[:, 1].tolist() == chosen.contrast[:, 1].tolist() == [0, 1, 0, 0]
    assert not chosen.readout[:, 2:].any()
    assert not chosen.contrast[:, 2:].any()
    assert chosen.tuned[chosen.strict].tolist() == [3, 5]
    assert chosen.strict_dimension.tolist() == [1, 2]


def test_the_share_of_targets_below_the_floor():
    vectors = np.zeros((3, 10))
    vectors[:, 1] = [0.125, 0.5, 1.0]
    vectors[0, 0] = 0.375
    assert share_below_floor(vectors) == 0.5
    assert share_below_floor(np.zeros((3, 10))) == 0


def test_pairs_are_drawn_within_a_dimension_and_dimensions_count_equally():
    """With activations all equal every pair misses the margin wholly, whatever is drawn."""
    m = torch.zeros(200, 10)
    m[:150, 2], m[150:170, 5], m[180, 7] = 0.5, 0.25, 1.0  # 150 rows, 20 rows, and one that makes no pair
    a = torch.full((200, 10), 3.0)
    value = _prototype_term(a, m, torch.Generator().manual_seed(0))
    assert float(value) == pytest.approx(PAIR_MARGIN)
    # Only rows of the dimension are paired: what others do there changes nothing.
    a[170:, 5] = torch.randn(30)
    a[:150, 5] = -7
    assert float(_prototype_term(a, m, torch.Generator().manual_seed(0))) == pytest.approx(PAIR_MARGIN)


@pytest.mark.parametrize("kind", [{"k": 12}, {"jump": True}])
def test_the_modern_kinds_are_tuned_as_they_are_applied(rows, kind):
    """What the objective sees while training is what the merged autoencoder does, competition for places included."""
    sae, chosen, test = SparseAutoencoder(WIDTH, LATENTS, **kind), selection(), rows["test"]
    if sae.jump:
        sae.threshold.fill_(0.2)
    aligned, history = align(rows, sae, chosen, epochs=3, batch=512)
    assert tuning.frozen_hash(aligned, chosen.tuned) == tuning.frozen_hash(sae, chosen.tuned)
    assert len(history)
    part = TunedLatents(aligned, chosen)
    z, mass, rest = part(tuning.prepared(aligned, chosen, test, torch.zeros(WIDTH)))
    x_hat, feature_acts = aligned(torch.from_numpy(test.x))
    torch.testing.assert_close(z, feature_acts[:, chosen.tuned])
    torch.testing.assert_close(mass + z.sum(dim=1), feature_acts.sum(dim=1))
    torch.testing.assert_close(rest + z @ part.decoder, x_hat, atol=1e-4, rtol=1e-4)
    if sae.k is not None:
        assert ((feature_acts > 0).sum(dim=1) <= sae.k).all()


def test_the_gradient_metric_looks_within_the_category_only():
    """Activations that only tell categories apart have a Spearman over all rows, and none within a category."""
    generator = np.random.default_rng(0)
    vectors = np.zeros((2000, 10))
    vectors[np.arange(2000), np.arange(2000) % 10] = generator.choice([0.125, 0.25, 0.5, 0.75, 1.0], 2000)
    x = generator.normal(size=(2000, 4)).astype(np.float32)
    arms = {
        "aligned": [evaluation.Applied((vectors > 0) + 0.01 * generator.random((2000, 10)), np.ones(2000))],
        "untuned": [evaluation.Applied(vectors, np.ones(2000))],
    }
    table = evaluation.evaluate(arms, Rows(x, vectors, np.arange(2000).astype(str)), draws=20, seed=0)
    whole = table[table["category"] == "all"].set_index(["arm", "metric"])["value"]
    assert whole["aligned", "spearman"] > 0.4
    assert abs(whole["aligned", "gradient"]) < 0.1
    assert whole["untuned", "gradient"] == pytest.approx(1)
    assert whole["aligned", "gradient minus untuned"] == pytest.approx(whole["aligned", "gradient"] - 1)


def test_likeness_is_1_for_the_annotators_themselves():
    vectors = np.random.default_rng(0).random((50, 10))
    arms = {
        "aligned": [evaluation.Applied(vectors, np.ones(50))],
        "untuned": [evaluation.Applied(-(vectors**3), np.ones(50))],
    }
    likeness = evaluation.likeness(evaluation.similarities(arms, vectors)).set_index("arm")["correlation"]
    assert likeness["aligned"] == pytest.approx(1)
    assert likeness["untuned"] < 1


def test_ridge_is_the_normal_equations_with_the_penalty_that_validation_rows_choose(rows):
    directions = controls.ridge(rows)
    train, validation = rows["train"], rows["validation"]
    mean, target = train.x.mean(axis=0, dtype=np.float64), train.vectors.mean(axis=0)
    x = train.x - mean
    errors = {}
    for penalty in controls.PENALTIES:
        gram = x.T @ x + penalty * np.trace(x.T @ x) / WIDTH * np.eye(WIDTH)
        weights = np.linalg.solve(gram, x.T @ (train.vectors - target))
        predicted = (validation.x - mean) @ weights + target
        errors[((predicted - validation.vectors) ** 2).mean()] = weights
    np.testing.assert_allclose(directions.W_enc.detach(), errors[min(errors)], atol=1e-4)
    read = evaluation.read(directions, rows["test"].x, rectified=False)
    np.testing.assert_allclose(read.activity, (rows["test"].x - mean) @ errors[min(errors)] + target, atol=1e-3)
    assert np.isnan(read.errors).all()


@pytest.mark.parametrize("kind", [{}, {"k": 12}, {"jump": True}])
def test_random_weights_are_as_sparse_and_do_no_harm(rows, kind):
    sae = SparseAutoencoder(WIDTH, LATENTS, **kind).fold_centre(torch.ones(WIDTH))
    with torch.no_grad():
        sae.b_enc -= 0.0 if sae.k else 0.5
    x = torch.from_numpy(rows["train"].x)
    matched, measured = controls.random_weights(sae, rows["train"].x, seed=3), quality(sae, x)
    assert quality(matched, x)["l0"] == pytest.approx(measured["l0"], rel=0.02)
    assert quality(matched, x)["fvu"] <= 1
    with torch.no_grad():
        x_hat = matched(x)[0]
        spread = x_hat - x_hat.mean(dim=0)
    # The best scale: what is left has nothing in common with the reconstruction.
    assert abs(float(((x - x_hat) * spread).sum() / (spread**2).sum())) < 0.01
    assert not torch.equal(matched.W_dec, sae.W_dec)
    torch.testing.assert_close(matched.W_dec.norm(dim=1), torch.ones(LATENTS))


def test_continued_training_by_reconstruction_sees_no_label(rows):
    other = {side: part._replace(vectors=part.vectors[:, ::-1].copy()) for side, part in rows.items()}
    assert np.array_equal(row_weights(rows["train"].vectors) > 1, row_weights(other["train"].vectors) > 1)
    history = tuning.align(
        autoencoder(), selection(), rows=rows, weights=objective.RECONSTRUCTION, label="test",
        parameters=AlignmentKeys(layers=[0], alignment_epochs=3, alignment_learning_rate=1e-2),
    )[1]  # fmt: skip
    assert set(history["term"]) == {"reconstruction"}
    held_out = history[history["split"] == "validation"]["value"]
    assert held_out.iloc[-1] < held_out.iloc[0]


def beside(**noise):
    """Arms whose activities are the annotators' vectors plus noise, on 600 rows."""
    generator = np.random.default_rng(0)
    vectors = np.zeros((600, 10))
    vectors[np.arange(600), np.arange(600) % 10] = generator.choice([0.125, 0.25, 0.5, 0.75, 1.0], 600)
    test = Rows(generator.normal(size=(600, 4)).astype(np.float32), vectors, np.arange(600).astype(str))
    arms = {
        arm.replace("_", "-"): [
            evaluation.Applied(
                vectors + scale * np.random.default_rng(len(arm)).normal(size=vectors.shape), np.full(600, 1 + scale)
            )
        ]
        for arm, scale in noise.items()
    }
    return evaluation.evaluate(arms, test, draws=200, seed=0).assign(layer=0)


def test_aligned_is_set_beside_the_best_control_and_the_interval_counts_them():
    best = evaluation.against_best(beside(aligned=0.1, untuned=2, ridge=0.5, probe=1)).set_index("metric")
    assert best.loc["gradient", "control"] == "ridge"
    assert best.loc["gradient", "difference"] == pytest.approx(
        best.loc["gradient", "aligned"] - best.loc["gradient", "best"]
    )
    assert (best.loc["gradient", "adds"], best.loc["fvu", "adds"]) == ("better", "better")
    few = evaluation.against_best(beside(aligned=0.1, ridge=0.5)).set_index("metric")
    width = lambda table: table.loc["gradient", "ci_high"] - table.loc["gradient", "ci_low"]  # noqa: E731
    assert width(best) / width(few) == pytest.approx(norm.isf(0.025 / 3) / norm.isf(0.025))
    table = beside(aligned=1, untuned=2, ridge=0.2)
    assert evaluation.against_best(table).set_index("metric").loc["gradient", "adds"] == "worse"
    assert "worse than the best control" in evaluation.in_words(evaluation.against_best(table))[0]


def test_nothing_added_is_said_as_nothing():
    table = evaluation.against_best(beside(aligned=1, untuned=1, ridge=1)).set_index("metric")
    assert table.loc["gradient", "adds"] == "nothing"
    assert "adds nothing" in evaluation.in_words(table.reset_index())[0]


def test_permutations_of_the_labels_are_averaged_and_widen_the_interval(rows):
    test, generator = rows["test"], np.random.default_rng(0)
    several = [
        evaluation.Applied(test.vectors * sign + 0.01 * generator.random(test.vectors.shape), np.ones(500))
        for sign in (1, -1)
    ]
    values = {}
    for name, drawn in {"first": several[:1], "second": several[1:], "both": several}.items():
        table = evaluation.evaluate({"shuffled": drawn}, test, draws=100, seed=0)
        values[name] = table[(table["metric"] == "gradient") & (table["category"] == "all")].iloc[0]
    assert values["both"]["value"] == pytest.approx((values["first"]["value"] + values["second"]["value"]) / 2)
    assert values["both"]["ci_low"] < values["second"]["value"] + 0.1
    assert values["both"]["ci_high"] > values["first"]["value"] - 0.1


def curves(*arms, terms):
    """Histories of arms with these terms of the objective."""
    epochs = [(epoch, side, term, 0.1) for epoch in range(3) for side in ("train", "validation") for term in terms]
    table = pd.DataFrame(epochs, columns=["epoch", "split", "term", "value"])
    return pd.concat([table.assign(arm=arm) for arm in arms], ignore_index=True)


@pytest.mark.parametrize("terms", [objective.WEIGHTS, objective.of_directions("six-term"), objective.RECONSTRUCTION])
def test_losses_of_any_number_of_terms_are_drawn(terms):
    figure = figures.losses(curves("probe", terms=terms))
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == list(terms)
    assert [ax.get_xlabel() for ax in shown[-3:]] == ["epoch"] * min(3, len(terms))
    assert all(ax.xaxis.get_tick_params()["labelbottom"] for ax in shown[-3:])
    plt.close(figure)


@pytest.mark.parametrize("arms", [("probe",), ("aligned", "probe")])
def test_the_notebook_says_where_nothing_was_tuned(arms, capsys):
    notebook = nbformat.read(PROJECT / "notebooks" / "06_alignment.ipynb", nbformat.NO_CONVERT)
    (source,) = [cell.source for cell in notebook.cells if "figures.losses" in cell.source]
    drawn = []
    known = {"curves": curves(*arms, terms=["align"]), "figures": figures, "stage": None, "model": "m", "last": 2}
    exec(source, known | {"publish": lambda *arguments, **options: drawn.append(arguments)})
    assert bool(drawn) == ("aligned" in arms)
    assert ("nothing was tuned" in capsys.readouterr().out) != bool(drawn)
