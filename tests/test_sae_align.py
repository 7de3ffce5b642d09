"""Alignment: only the tuned latents move, the losses are the formulas, shuffled labels teach nothing."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from lib.foundations import CATEGORIES
from lib.sae import align, evaluate, layers, losses, train, tuned
from lib.sae.model import SparseAutoencoder

WIDTH, LATENTS = 24, 96


def planted(rows, seed, signal=2.0):
    """Raw rows [rows, 24] in which every category has a direction of its own, and moral vectors [rows, 10]."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(7).normal(size=(WIDTH, WIDTH)))[0][:10]
    vectors = np.zeros((rows, 10))
    levels = generator.choice([0.125, 0.25, 0.375, 0.5, 0.75, 1.0], rows)
    vectors[np.arange(rows), generator.integers(0, 10, rows)] = levels * (generator.random(rows) < 0.9)
    x = signal * vectors @ directions + 0.3 * generator.normal(size=(rows, WIDTH)) + 1.0
    actions = np.array([f"action {index}" for index in range(rows)])
    return layers.Rows(x.astype(np.float32), vectors, actions)


def autoencoder(seed=0):
    """A random autoencoder whose latents fire on about half of the planted rows."""
    return SparseAutoencoder(WIDTH, LATENTS, seed).fold_centre(torch.ones(WIDTH))


def selection(per_category=3):
    """Tuned latents 5, 7, 9 ...: three stand for each category, the first of each is strict."""
    latents = 5 + 2 * np.arange(10 * per_category)
    sets = [np.arange(d * per_category, (d + 1) * per_category) for d in range(10)]
    return tuned.Selection(latents, sets, sets, np.array([s[0] for s in sets]), np.arange(10))


RECIPE = align.Recipe("six-term", epochs=30, learning_rate=1e-2, batch_size=128, seed=0)


@pytest.fixture(scope="module")
def rows():
    return {
        name: planted(n, seed) for seed, (name, n) in enumerate({"train": 1200, "validation": 300, "test": 500}.items())
    }


@pytest.fixture(scope="module")
def arms(rows):
    sae = autoencoder()
    parts = [(part.x, part.vectors) for part in (rows["train"], rows["validation"])]
    permute = np.random.default_rng(0).permutation
    shuffled = [(x, permute(vectors)) for x, vectors in parts]
    return {
        "untuned": sae,
        "aligned": align.align(sae, selection(), *parts, RECIPE, "aligned")[0],
        "shuffled": align.align(sae, selection(), *shuffled, RECIPE, "shuffled")[0],
    }


@pytest.fixture(scope="module")
def measured(arms, rows):
    test = rows["test"]
    chosen = {arm: evaluate.apply(sae, selection(), test.x) for arm, sae in arms.items()}
    table = evaluate.evaluate(chosen, test.x, test.vectors, test.actions, 100, 0)
    return table[table["category"] == "all"].set_index(["arm", "metric"])


@pytest.mark.parametrize("objective", losses.OBJECTIVES)
def test_only_the_tuned_latents_move(rows, objective):
    sae = autoencoder()
    before = copy.deepcopy(sae.state_dict())
    chosen = selection()
    parts = [(part.x, part.vectors) for part in (rows["train"], rows["validation"])]
    recipe = align.Recipe(objective, epochs=5, learning_rate=1e-2, weight_decay=0.5)
    aligned, history = align.align(sae, chosen, *parts, recipe, "test")
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())
    frozen = np.setdiff1d(np.arange(LATENTS), chosen.tuned)
    assert torch.equal(aligned.W_enc[:, frozen], sae.W_enc[:, frozen])
    assert torch.equal(aligned.b_enc[frozen], sae.b_enc[frozen])
    assert torch.equal(aligned.W_dec[frozen], sae.W_dec[frozen])
    assert torch.equal(aligned.b_dec, sae.b_dec)
    assert not torch.isclose(aligned.W_enc[:, chosen.tuned], sae.W_enc[:, chosen.tuned]).all()
    torch.testing.assert_close(aligned.W_dec.norm(dim=1), torch.ones(LATENTS))
    assert set(history["term"]) == set(losses.term_weights(objective))


def test_the_hash_sees_every_frozen_weight_and_no_tuned_one():
    chosen = selection().tuned
    reference = align.frozen_hash(autoencoder(), chosen)
    frozen_latent, tuned_latent = 6, 5
    for name, index in {
        "W_enc": (0, frozen_latent), "b_enc": (frozen_latent,), "W_dec": (frozen_latent, 0), "b_dec": (0,)
    }.items():  # fmt: skip
        changed = autoencoder()
        with torch.no_grad():
            getattr(changed, name)[index] += 1e-6
        assert align.frozen_hash(changed, chosen) != reference, name
    changed = autoencoder()
    with torch.no_grad():
        changed.W_dec[tuned_latent] += 1
        changed.b_enc[tuned_latent] += 1
    assert align.frozen_hash(changed, chosen) == reference


def test_the_frozen_share_counts_weights():
    sae = autoencoder()
    assert align.frozen_share(sae, np.array([], dtype=int)) == 1
    total = 2 * WIDTH * LATENTS + WIDTH + LATENTS
    assert align.frozen_share(sae, np.arange(10)) == pytest.approx(1 - 10 * (2 * WIDTH + 1) / total)


def one_latent_a_category(activations):
    """Terms of the losses for rows whose ten tuned latents have the activations given, [rows, 10]."""
    chosen = tuned.Selection(np.arange(10), [np.array([d]) for d in range(10)], [np.array([d]) for d in range(10)],
                             np.arange(10), np.arange(10))  # fmt: skip
    sae = SparseAutoencoder(10, 10)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(10))
        sae.W_dec.copy_(torch.eye(10))
    return tuned.TunedRows(sae, chosen), chosen, torch.tensor(activations, dtype=torch.float32)


def test_the_terms_have_the_values_of_their_formulas():
    activations, m = np.zeros((2, 10)), np.zeros((2, 10))
    activations[0, :2], m[0, 1] = (0.7, 0.9), 0.75  # harm .75; care fires .7, harm .9
    rows, chosen, x = one_latent_a_category(activations)
    data = {"x": x, "rest": torch.zeros_like(x), "m": torch.tensor(m, dtype=torch.float32)}
    terms = {k: float(v.detach()) for k, v in losses.losses(rows, chosen, data, "six-term", torch.Generator()).items()}
    assert terms["align"] == pytest.approx((1 / (1 + np.exp(-0.9)) - 0.75) ** 2, rel=1e-5)
    # Vice row: harm leads care by .2 of .5; the other four pairs do not lead at all.
    assert terms["polarity"] == pytest.approx((0.3 + 4 * 0.5) / 5, rel=1e-5)
    assert terms["prototype"] == 0  # a single row of harm makes no pair
    assert terms["reconstruction"] == pytest.approx(0, abs=1e-12)
    assert terms["sparsity"] == pytest.approx(1.6 / 20, rel=1e-5)
    page = losses.losses(rows, chosen, data, "three-term", torch.Generator())
    assert set(page) == {"align", "polarity", "prototype"}


def test_the_prototype_term_wants_the_more_typical_row_to_fire_more():
    m = torch.zeros(2, 10)
    m[:, 1] = torch.tensor([1.0, 0.125])
    right, wrong = torch.zeros(2, 10), torch.zeros(2, 10)
    right[0, 1], wrong[1, 1] = 2.0, 2.0
    values = []
    for x in (right, wrong):
        rows, chosen, _ = one_latent_a_category(np.zeros((1, 10)))
        data = {"x": x, "rest": torch.zeros_like(x), "m": m}
        draws = [losses.losses(rows, chosen, data, "six-term", torch.Generator().manual_seed(s)) for s in range(30)]
        values.append(np.mean([float(terms["prototype"].detach()) for terms in draws]))
    assert values[0] < 0.1 < values[1]


def test_the_published_floor_is_one_half_and_the_variant_has_none():
    """A sigmoid of an activation, which is never negative, cannot reach a target of .125."""
    rows, chosen, x = one_latent_a_category(np.zeros((1, 10)))
    m = torch.zeros(1, 10)
    m[0, 1] = 0.125
    data = {"x": x, "rest": torch.zeros_like(x), "m": m}
    published = losses.losses(rows, chosen, data, "six-term", torch.Generator())["align"]
    assert float(published.detach()) == pytest.approx(0.375**2)
    data["x"] = torch.zeros(1, 10)
    data["x"][0, 1] = float(np.log((1 + 0.125) / (1 - 0.125)))  # 2 sigmoid(a) - 1 = .125
    reached = losses.losses(rows, chosen, data, "six-term-without-floor", torch.Generator())["align"]
    assert float(reached.detach()) == pytest.approx(0, abs=1e-10)


def test_an_unknown_objective_is_refused():
    with pytest.raises(train.TrainingError, match="unknown objective 'four-term'"):
        losses.term_weights("four-term")


def test_typical_rows_and_the_rarer_pole_are_drawn_more_often():
    vectors = np.zeros((7, 10))
    vectors[1:, 1] = [1.0, 0.5, 0.25, 0.75, 0.75, 0.75]
    vectors[3] = 0
    vectors[3, 0] = 0.375  # the one strong virtue among five strong vices
    np.testing.assert_allclose(losses.row_weights(vectors), [0.3, 2, 1.5, 4.5, 2, 2, 2])


def test_alignment_beats_shuffled_labels_and_the_untuned_on_rows_it_never_saw(measured):
    for other in ("untuned", "shuffled"):
        difference = measured.loc[("aligned", f"spearman minus {other}")]
        assert difference["ci_low"] > 0.1, other
    assert measured.loc[("aligned", "opposing_similarity minus shuffled"), "ci_high"] < 0
    assert measured.loc[("shuffled", "spearman"), "value"] < 0.15


def test_the_best_epoch_is_kept_not_the_last(rows, monkeypatch):
    """The weights returned give the lowest validation loss of the history, not whatever training went on to."""
    sae, chosen = autoencoder(), selection()
    parts = [(part.x, part.vectors) for part in (rows["train"], rows["validation"])]
    recipe = align.Recipe("three-term", epochs=12, learning_rate=0.5, patience=12)
    aligned, history = align.align(sae, chosen, *parts, recipe, "test")
    weights = losses.term_weights("three-term")
    held_out = history[history["split"] == "validation"].pivot(index="epoch", columns="term", values="value")
    by_epoch = sum(weights[name] * held_out[name] for name in weights)
    assert by_epoch.idxmin() < by_epoch.index[-1], "the data of this test must make the last epoch a worse one"
    data = align._prepare(aligned, chosen, *parts[1])
    fixed = torch.Generator().manual_seed(recipe.seed)
    terms = losses.losses(tuned.TunedRows(aligned, chosen), chosen, data, "three-term", fixed)
    assert sum(weights[k] * float(v.detach()) for k, v in terms.items()) == pytest.approx(by_epoch.min(), rel=1e-4)


def test_nothing_selected_is_an_outcome_not_an_error(rows):
    empty = np.array([], dtype=int)
    chosen = tuned.Selection(empty, [empty] * 10, [empty] * 10, empty, empty)
    sae, test = autoencoder(), rows["test"]
    parts = [(part.x, part.vectors) for part in (rows["train"], rows["validation"])]
    aligned, history = align.align(sae, chosen, *parts, RECIPE, "test")
    assert len(history) == 0
    assert all(torch.equal(value, aligned.state_dict()[name]) for name, value in sae.state_dict().items())
    arms = {arm: evaluate.apply(sae, chosen, test.x) for arm in ("untuned", "aligned", "shuffled")}
    table = evaluate.evaluate(arms, test.x, test.vectors, test.actions, 10, 0)
    assert table.loc[table["metric"] == "spearman", "value"].isna().all()
    assert np.isfinite(table.loc[(table["metric"] == "fvu"), "value"]).all()


def test_spearman_equals_scipy(arms, rows):
    from scipy.stats import spearmanr

    test, chosen = rows["test"], selection()
    applied = {"untuned": evaluate.apply(arms["untuned"], chosen, test.x)}
    table = evaluate.evaluate(applied, test.x, test.vectors, test.actions, 5, 0)
    with torch.no_grad():
        z = arms["untuned"].encode(torch.from_numpy(test.x)).numpy()
    found = table[table["metric"] == "spearman"].set_index("category")["value"]
    for index, category in enumerate(CATEGORIES):
        activation = z[:, chosen.tuned[chosen.top[index]]].mean(axis=1)
        assert found[category] == pytest.approx(spearmanr(activation, test.vectors[:, index]).statistic, abs=1e-5)


def test_similarities_are_correlations_with_people_first(arms, rows):
    test = rows["test"]
    table = evaluate.similarities({"untuned": evaluate.apply(arms["untuned"], selection(), test.x)}, test.vectors)
    assert list(table["arm"].unique()) == ["people", "untuned"]
    people = table[table["arm"] == "people"].pivot(index="category", columns="other", values="value")
    people = people.reindex(index=CATEGORIES, columns=CATEGORIES)
    np.testing.assert_allclose(people, np.corrcoef(test.vectors.T), atol=1e-9)


def test_selection_holds_the_positions_of_the_tuned_latents():
    r = np.zeros((6, 10))
    r[1, 0], r[4, 0], r[3, 1], r[5, 2] = 0.2, 0.5, 0.3, -0.4
    table = pd.DataFrame(r, columns=[f"r_{category}" for category in CATEGORIES])
    table["tuned"] = [False, True, False, True, True, True]
    table["strict"] = [False, False, False, True, False, True]
    chosen = tuned.select(table)
    assert chosen.tuned.tolist() == [1, 3, 4, 5]
    assert chosen.tuned[chosen.top[0]].tolist() == [4, 1]
    assert chosen.tuned[chosen.top[1]].tolist() == [3]
    assert len(chosen.top[2]) == 0
    assert chosen.tuned[chosen.strict].tolist() == [3, 5]
    assert chosen.strict_dimension.tolist() == [1, 2]


def test_the_share_of_targets_below_the_floor():
    vectors = np.zeros((3, 10))
    vectors[:, 1] = [0.125, 0.5, 1.0]
    vectors[0, 0] = 0.375
    assert losses.share_below_floor(vectors) == 0.5
    assert losses.share_below_floor(np.zeros((3, 10))) == 0


def test_pairs_are_drawn_within_a_dimension_and_dimensions_count_equally():
    """With activations all equal every pair misses the margin wholly, whatever is drawn."""
    m = torch.zeros(200, 10)
    m[:150, 2], m[150:152, 5], m[160, 7] = 0.5, 0.25, 1.0  # 150 rows, 2 rows, and one that makes no pair
    a = torch.full((200, 10), 3.0)
    value = losses._prototype_term(a, m, torch.Generator().manual_seed(0))
    assert float(value) == pytest.approx(losses.PAIR_MARGIN)
    # Only rows of the dimension are paired: what others do there changes nothing.
    a[152:, 5] = torch.randn(48)
    a[:150, 5] = -7
    assert float(losses._prototype_term(a, m, torch.Generator().manual_seed(0))) == pytest.approx(losses.PAIR_MARGIN)


@pytest.mark.parametrize("kind", [{"k": 12}, {"jump": True}])
def test_the_modern_kinds_are_tuned_as_they_are_applied(rows, kind):
    """What the objective sees while training is what the merged autoencoder does, competition for places included."""
    sae, chosen, test = SparseAutoencoder(WIDTH, LATENTS, 0, **kind), selection(), rows["test"]
    if sae.jump:
        sae.threshold.fill_(0.2)
    parts = [(part.x, part.vectors) for part in (rows["train"], rows["validation"])]
    aligned, history = align.align(sae, chosen, *parts, align.Recipe(epochs=3, learning_rate=1e-2), "test")
    assert align.frozen_hash(aligned, chosen.tuned) == align.frozen_hash(sae, chosen.tuned)
    assert len(history)
    part = tuned.TunedRows(aligned, chosen)
    z, rest = part(align._prepare(aligned, chosen, test.x, test.vectors))
    x_hat, latents = aligned(torch.from_numpy(test.x))
    torch.testing.assert_close(z, latents[:, chosen.tuned])
    torch.testing.assert_close(rest + z @ part.decoder, x_hat, atol=1e-4, rtol=1e-4)
    if sae.k is not None:
        assert ((latents > 0).sum(dim=1) <= sae.k).all()


def test_the_gradient_metric_looks_within_the_category_only():
    """Activations that only tell categories apart have a Spearman over all rows, and none within a category."""
    generator = np.random.default_rng(0)
    vectors = np.zeros((2000, 10))
    vectors[np.arange(2000), np.arange(2000) % 10] = generator.choice([0.125, 0.25, 0.5, 0.75, 1.0], 2000)
    x = generator.normal(size=(2000, 4)).astype(np.float32)
    arms = {
        "aligned": evaluate.Applied((vectors > 0) + 0.01 * generator.random((2000, 10)), np.ones(2000)),
        "untuned": evaluate.Applied(vectors, np.ones(2000)),
    }
    table = evaluate.evaluate(arms, x, vectors, np.arange(2000).astype(str), 20, 0)
    whole = table[table["category"] == "all"].set_index(["arm", "metric"])["value"]
    assert whole["aligned", "spearman"] > 0.4
    assert abs(whole["aligned", "gradient"]) < 0.1
    assert whole["untuned", "gradient"] == pytest.approx(1)
    assert whole["aligned", "gradient minus untuned"] == pytest.approx(whole["aligned", "gradient"] - 1)


def test_likeness_is_1_for_people_themselves():
    vectors = np.random.default_rng(0).random((50, 10))
    arms = {"aligned": evaluate.Applied(vectors, np.ones(50)), "untuned": evaluate.Applied(-(vectors**3), np.ones(50))}
    found = evaluate.likeness(evaluate.similarities(arms, vectors)).set_index("arm")["correlation"]
    assert found["aligned"] == pytest.approx(1)
    assert found["untuned"] < 1
