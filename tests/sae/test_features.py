"""Correlations of latents with the ten dimensions, and the two published criteria."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.paper import CATEGORIES
from lib.sae import features
from lib.sae.model import SparseAutoencoder
from lib.sae.rows import Rows


def sample(rows=200, width=8, latents=32, seed=0):
    generator = np.random.default_rng(seed)
    sae = SparseAutoencoder(width, latents, seed=seed)
    x = generator.normal(size=(rows, width)).astype(np.float32)
    return sae, x, generator.random((rows, 10))


def sides(validation, train=None):
    """Rows by split, of actions that occur once, from (x, vectors); the same rows on both without ``train``."""
    both = {"validation": validation, "train": train or validation}
    return {side: Rows(x, vectors, np.arange(len(x)).astype(str)) for side, (x, vectors) in both.items()}


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(20, 200), chunk=st.integers(1, 250), seed=st.integers(0, 100))
def test_correlations_equal_numpy_for_any_chunk(rows, chunk, seed):
    sae, x, vectors = sample(rows, seed=seed)
    with torch.no_grad():
        z = sae.encode(torch.from_numpy(x)).numpy().astype(np.float64)
    varies = z.std(axis=0) > 1e-3
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(features, "ACTIVATIONS_AT_ONCE", chunk * sae.d_sae)
        r, activity = features.correlations(sae, x, vectors)
    np.testing.assert_allclose(activity, (z > 0).mean(axis=0))
    expected = np.corrcoef(z[:, varies].T, vectors.T)[: varies.sum(), varies.sum() :]
    np.testing.assert_allclose(r[varies], expected, atol=1e-5)


def test_what_does_not_vary_correlates_with_nothing():
    sae, x, vectors = sample()
    with torch.no_grad():
        sae.b_enc[3] = -1e6
    vectors[:, 4] = 0.5
    r, _ = features.correlations(sae, x, vectors)
    assert (r[3] == 0).all()
    assert (r[:, 4] == 0).all()
    assert np.isfinite(r).all()


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([], False),
        ([3], True),
        ([0, 1], True),  # care and harm, an opposing pair
        ([1, 2], False),  # harm and fairness are neighbours, not a pair
        ([0, 1, 2], False),
    ],
)
def test_the_report_takes_one_dimension_or_an_opposing_pair(above, expected):
    mask = np.zeros((1, 10), dtype=bool)
    mask[0, above] = True
    assert features._report(mask).tolist() == [expected]


def test_top_latents_are_the_most_positive_above_the_threshold():
    r = np.zeros((5, 10))
    r[:, 2] = [0.3, -0.9, 0.11, 0.1, 0.5]
    assert features.top_latents(r, 2).tolist() == [4, 0, 2]
    assert features.top_latents(r, 2, count=2).tolist() == [4, 0]
    assert features.top_latents(r, 3).tolist() == []


def test_a_contrast_takes_the_positive_latents_of_both_poles_or_of_neither():
    """Also weak ones, below the threshold of the others; nothing of a pair of which one pole has none."""
    r = np.zeros((30, 10))
    r[:25, 0], r[7, 1], r[3, 2] = np.linspace(0.01, 0.09, 25), 0.05, 0.9
    chosen = features.contrasts(r)
    assert chosen[0].tolist() == list(range(24, 4, -1))  # the 20 largest
    assert chosen[1].tolist() == [7]
    assert chosen[2].tolist() == chosen[3].tolist() == []  # cheating has none


def test_the_summary_counts_every_category_and_criterion():
    table = pd.DataFrame({"category": ["care", "care", "harm"], "strict": [True, True, False]})
    for name in ("report", "careful", "tuned"):
        table[name] = [False, False, True]
    counts = features.summary(table).set_index(["category", "criterion"])["latents"]
    assert len(counts) == 4 * len(CATEGORIES)
    assert counts["care", "strict"] == 2
    assert counts["harm", "tuned"] == 1
    assert counts["degradation", "strict"] == 0


def test_one_pass_over_the_rows_in_bounded_memory(monkeypatch):
    """Encoded at once: a fixed number of activations, whatever the rows and the latents; every row of a split once."""
    sae, x, vectors = sample(rows=1000, latents=256)
    monkeypatch.setattr(features, "ACTIVATIONS_AT_ONCE", 2**14)
    seen, original = [], sae.encode

    def encode(part):
        seen.append(part.clone())
        return original(part)

    monkeypatch.setattr(sae, "encode", encode)
    features.identify(sae, sides((x, vectors), (x + 1, vectors)), permutations=20, seed=0)
    assert max(len(part) for part in seen) * sae.d_sae <= 2**14
    np.testing.assert_array_equal(torch.cat(seen).numpy(), np.concatenate([x, x + 1]))


def reported(r_elsewhere, replicated, careful):
    table = pd.DataFrame(np.zeros((3, 10)), columns=[f"r_{category}" for category in CATEGORIES])
    table["r_care"] = [0.4, -0.3, 0.2]
    return table.assign(
        largest=[0.4, 0.3, 0.2],
        strict=True,
        report=False,
        careful=careful,
        elsewhere=r_elsewhere,
        replicated=replicated,
    )


def test_what_is_chosen_on_one_split_is_reported_on_another():
    table = features.replication(reported([0.2, -0.1, -0.3], [True, True, False], [True, True, False]))
    careful = table.set_index("criterion").loc["careful"]
    assert (careful["chosen_on"], careful["reported_on"]) == ("validation", "train")
    assert careful["latents"] == 2
    assert careful["r_chosen"] == pytest.approx(0.35)
    assert careful["r_reported"] == pytest.approx(0.15)  # -.1 counts positive for a latent chosen for -.3
    assert careful["replicated"] == 1
    nothing = table.set_index("criterion").loc["report"]
    assert nothing["latents"] == 0
    assert np.isnan(nothing["r_reported"])


def test_a_planted_latent_replicates_and_noise_does_so_by_chance():
    sae, x, _ = sample(rows=2000, width=16, latents=600)
    generator = np.random.default_rng(1)
    vectors = generator.random((2000, 10))
    with torch.no_grad():
        vectors[:, 3] += sae.encode(torch.from_numpy(x))[:, 0].numpy() * 2
    halves = (x[:1000], vectors[:1000]), (x[1000:], vectors[1000:])
    table = features.identify(sae, sides(*halves), permutations=0, seed=0)
    assert table.loc[0, "replicated"]
    assert table.loc[0, "elsewhere"] > 0.5
    noise = [(part, generator.random((1000, 10))) for part, _ in halves]
    noise = features.identify(sae, sides(*noise), permutations=0, seed=0)
    assert noise["replicated"].mean() < 0.12


def test_most_activating_actions_are_distinct_and_in_order():
    sae, x, vectors = sample(rows=60)
    actions = np.array([f"action {index // 2}" for index in range(60)])
    x[1::2] = x[::2]
    rows = Rows(x, vectors, actions)
    table = features.identify(sae, {"validation": rows, "train": rows}, permutations=0, seed=0)
    shown = features.most_activating(sae, rows, table=table, count=3)
    assert len(shown)
    for _, part in shown.groupby("category"):
        assert part["action"].is_unique
        assert part["activation"].is_monotonic_decreasing
        with torch.no_grad():
            z = sae.encode(torch.from_numpy(x))[:, part["latent"].iloc[0]].numpy()
        assert part["activation"].iloc[0] == pytest.approx(z.max())


def test_nothing_tuned_has_no_most_activating_actions():
    sae, x, vectors = sample(rows=60)
    rows = sides((x, vectors))
    table = features.identify(sae, rows, permutations=0, seed=0).assign(tuned=False)
    assert features.most_activating(sae, rows["train"], table=table, count=3).empty
