"""Correlations of latents with the ten dimensions, and the two published criteria."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.foundations import CATEGORIES
from lib.sae import features
from lib.sae.model import SparseAutoencoder


def sample(rows=200, width=8, latents=32, seed=0):
    generator = np.random.default_rng(seed)
    sae = SparseAutoencoder(width, latents, seed)
    x = generator.normal(size=(rows, width)).astype(np.float32)
    return sae, x, generator.random((rows, 10))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(20, 200), chunk=st.integers(1, 250), seed=st.integers(0, 100))
def test_correlations_equal_numpy_for_any_chunk(rows, chunk, seed):
    sae, x, vectors = sample(rows, seed=seed)
    with torch.no_grad():
        z = sae.encode(torch.from_numpy(x)).numpy().astype(np.float64)
    varies = z.std(axis=0) > 1e-3
    found = features.correlations(sae, x, vectors, chunk)
    expected = np.corrcoef(z[:, varies].T, vectors.T)[: varies.sum(), varies.sum() :]
    np.testing.assert_allclose(found[varies], expected, atol=1e-5)


def test_what_does_not_vary_correlates_with_nothing():
    sae, x, vectors = sample()
    with torch.no_grad():
        sae.b_enc[3] = -1e6
    vectors[:, 4] = 0.5
    found = features.correlations(sae, x, vectors)
    assert (found[3] == 0).all()
    assert (found[:, 4] == 0).all()
    assert np.isfinite(found).all()


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
    assert features.top_latents(r, 2, 50).tolist() == [4, 0, 2]
    assert features.top_latents(r, 2, 2).tolist() == [4, 0]
    assert features.top_latents(r, 3, 50).tolist() == []


def test_the_summary_counts_every_category_and_criterion():
    table = pd.DataFrame({"category": ["care", "care", "harm"], "strict": [True, True, False]})
    for name in ("report", "careful", "tuned"):
        table[name] = [False, False, True]
    counts = features.summary(table).set_index(["category", "criterion"])["latents"]
    assert len(counts) == 4 * len(CATEGORIES)
    assert counts["care", "strict"] == 2
    assert counts["harm", "tuned"] == 1
    assert counts["degradation", "strict"] == 0
