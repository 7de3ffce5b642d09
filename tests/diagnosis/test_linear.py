"""Ridge and discriminant against other ways of computing them."""

import numpy as np
from diagnosis.planted import nested
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from lib.diagnosis import linear
from lib.diagnosis.sampling import grouped_folds


def test_held_out_ridge_equals_a_nested_search_with_scikit_learn_in_every_width():
    for width in (6, 150):
        generator = np.random.default_rng(1)
        x = generator.normal(size=(120, width)).astype(np.float32) * np.arange(1, width + 1) + 100
        x[:, 3] = 5.0  # drops out
        y = generator.normal(size=(120, 2)) + x[:, :2] / np.arange(1, 3) - 100
        fold = grouped_folds(np.arange(120) // 2, 0)
        assert all(len(set(fold[2 * g : 2 * g + 2])) == 1 for g in range(60)), "a group lies in one fold"
        kernel = StandardScaler().fit_transform(x.astype(float))
        kernel = kernel @ kernel.T / (width - 1) + 1
        expected = nested(kernel, y, fold=fold, left=lambda _, y=y: y, nothing=False)
        np.testing.assert_allclose(linear.ridge_held_out(x, y, fold=fold), expected, atol=2e-3)
        apart = linear.ridge_held_out(x, y, fold=fold, blocks=np.arange(2))
        one = nested(kernel, y[:, 1:], fold=fold, left=lambda _, y=y: y[:, 1:], nothing=False)
        np.testing.assert_allclose(apart[:, 1:], one, atol=2e-3)


def test_ridge_reads_features_beyond_any_number_of_components():
    """In a spectrum that falls as 1/k, a third of the labels' variance at component 550 of 600."""
    generator = np.random.default_rng(0)
    components, scale = generator.normal(size=(1800, 600)), np.arange(1, 601) ** -0.5
    y = (0.6 * components[:, 550] + 0.8 * generator.normal(size=1800))[:, None]
    x = ((components * scale) @ np.linalg.qr(generator.normal(size=(600, 600)))[0]).astype(np.float32)
    found = linear.ridge_held_out(x, y, fold=grouped_folds(np.arange(1800), 0))
    assert 1 - ((y - found) ** 2).sum() / ((y - y.mean()) ** 2).sum() > 0.03


def test_the_discriminant_predicts_each_fold_from_the_others_and_equals_its_formula():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    x = generator.normal(size=(4, 9))[labels] * 0.8 + generator.normal(size=(400, 9))
    fold = grouped_folds(np.arange(400), 0)
    expected = np.empty(400, dtype=int)
    for name in range(5):
        train = fold != name
        scaled = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
        means = np.stack([scaled[train & (labels == c)].mean(axis=0) for c in range(4)])
        within = scaled[train] - means[labels[train]]
        covariance = within.T @ within / train.sum()
        target = np.trace(covariance) / 9 * np.eye(9)
        directions = np.linalg.solve(0.9 * covariance + 0.1 * target, means.T)
        offsets = np.log(np.bincount(labels[train]) / train.sum()) - (means.T * directions).sum(axis=0) / 2
        expected[fold == name] = (scaled[fold == name] @ directions + offsets).argmax(axis=1)
    np.testing.assert_array_equal(linear.discriminant_held_out(x, labels, fold), expected)


def test_folds_hold_equally_many_whole_groups_and_are_fewer_where_groups_are():
    groups = np.repeat([f"action {i}" for i in range(23)], 4)
    fold = grouped_folds(groups, 0)
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    assert sorted(np.bincount(fold) // 4) == [4, 4, 5, 5, 5]
    assert (grouped_folds(groups, 1) != fold).any()
    assert [len(set(grouped_folds(np.arange(rows), 0))) for rows in (0, 1, 3)] == [0, 1, 3]


def test_the_discriminant_reads_wide_rows_by_their_leading_components(monkeypatch):
    """Principal components of the standardised features, each with its own variance, and other rows on the same ones."""
    monkeypatch.setattr(linear, "COMPONENTS", 6)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    x = (generator.normal(size=(3, 40))[labels] + 0.5 * generator.normal(size=(200, 40))) * np.arange(1, 41) + 7
    standard = StandardScaler().fit_transform(x)
    expected = PCA(6, svd_solver="full").fit_transform(standard)
    found = linear.features(x, x[:5])
    assert not found.standardise
    np.testing.assert_allclose(np.abs(found.values[:200, :2]), np.abs(expected[:, :2]), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(found.values[200:], found.values[:5], atol=1e-8)
    fold = grouped_folds(np.arange(200), 0)
    assert (linear.discriminant_held_out(x, labels, fold) == labels).mean() > 0.95
