"""What a representation adds to words: against scikit-learn the long way, in nothing, in something, and in every width."""

import numpy as np
import pytest
from diagnosis.planted import nested
from scipy.stats import kstest, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler

from lib.diagnosis import gains, kernels, lexical, measurement, neighbours, scores
from lib.diagnosis.kinds import Kind

AREA = {"score": scores.area, "topics": np.zeros((0, 0))}


def world(rows=200, effect=0.0, seed=0, words=40, width=30, draws=20, repeats=1):
    """Labels that follow words, and a representation that knows of nothing but, with ``effect``, the rest of the labels."""
    generator = np.random.default_rng(seed)
    text, x = generator.normal(size=(rows, words)), generator.normal(size=(rows, width)).astype(np.float32)
    latent = text[:, :5].sum(axis=1) / 2 + effect * x[:, :3].sum(axis=1) + generator.normal(size=rows)
    targets = np.where(latent > 0, 1.0, -1.0)[:, None]
    actions = np.array([f"action {row // repeats}" for row in range(rows)])
    (problem,) = gains.problems([(np.arange(rows), targets)], actions, draws=draws, seed=seed)
    return problem, kernels.linear(text) + 1, x


def gained(problem, kernel, x, *, permute=True):
    kind = Kind("categorical", [problem], **AREA)
    base = gains.baseline(kernel, problem)
    return measurement._gained(kind, [base], x, permute=permute)


@pytest.mark.parametrize("width", [6, 200])
def test_rows_left_out_are_predicted_as_scikit_learn_does(width):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(90, width)) * np.arange(1, width + 1) + 5, generator.normal(size=(90, 2))
    out = generator.permutation(90)[:30]
    rest = np.setdiff1d(np.arange(90), out)
    standard = StandardScaler().fit_transform(x) / np.sqrt(width)
    oracle = Ridge(alpha=0.7, fit_intercept=False).fit(standard[rest], y[rest]).predict(standard[out])
    found = kernels.left_out(kernels.inverse(kernels.linear(x), 0.7), y, out)
    np.testing.assert_allclose(found, oracle, atol=2e-4)


@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_both_steps_equal_a_nested_search_with_scikit_learn(effect):
    problem, kernel, x = world(120, effect)
    kernel, of_x = kernel.astype(float), kernels.linear(x).astype(float)
    found = gains.baseline(kernel, problem)
    expected = nested(kernel, problem.targets, fold=problem.fold, left=lambda _: problem.targets, nothing=False)
    np.testing.assert_allclose(found.predicted, expected, atol=1e-3)
    added = gains.add(of_x, found, problem=problem, permute=False)
    expected = nested(of_x, problem.targets, fold=problem.fold, left=lambda fold: found.left[fold], nothing=True)
    np.testing.assert_allclose(added.chosen, expected, atol=1e-3)


def test_what_is_left_was_predicted_without_the_fold_that_it_predicts_and_without_its_own():
    problem, kernel, _ = world(60)
    left = gains.baseline(kernel, problem).left
    changed = problem.targets.copy()
    changed[problem.fold == 0] *= -1
    other = gains.Problem(problem.rows, changed, problem.action, problem.fold, problem.without, problem.orders)
    assert (left[0][problem.fold == 0] == 0).all()
    again = gains.baseline(kernel, other).left
    np.testing.assert_allclose(again[0], left[0], atol=1e-5)
    assert np.abs(again[1] - left[1]).max() > 0.1


def test_a_replicate_of_the_jackknife_never_reads_the_labels_it_leaves_out():
    problem, kernel, _ = world(80)
    gone = problem.without[3]
    changed = problem.targets.copy()
    changed[gone] *= -1
    base = gains.baseline(kernel, problem)
    inverse = kernels.inverse(kernel, 1.0)
    out, within = problem.left_out(2, replicate=3)
    assert within.sum() == (problem.fold == 2).sum(), "rows that are left out are predicted too"
    np.testing.assert_allclose(
        kernels.left_out(inverse, problem.targets, out)[within],
        kernels.left_out(inverse, changed, out)[within],
        atol=1e-6,
    )
    assert (base.predicted_without[3] != 0).all()
    assert np.bincount(problem.without.sum(axis=0)).argmax() == gains.REPLICATES // gains.PARTS


def test_the_lexical_kernel_is_made_of_what_it_says():
    texts = ["helping a friend", "hurting a friend", "helping", "not helping a friend move house"]
    tokens, topics = np.array([4, 4, 2, 8]), np.eye(4, 2)
    length = lexical.lengths(texts, tokens)
    words = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts).toarray()
    characters = (
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit_transform(texts).toarray()
    )
    counts = np.array([[4, 3, 16], [4, 3, 16], [2, 1, 7], [8, 6, 31]], float)
    np.testing.assert_allclose(length, np.hstack([counts, 1 / counts]))
    standard = StandardScaler().fit_transform(length)
    of_length = 0.1 * (standard @ standard.T / 6 + rbf_kernel(standard[:, :3]))
    expected = 1 + (words @ words.T + characters @ characters.T) / 2 + of_length + topics @ topics.T
    np.testing.assert_allclose(lexical.kernel(lexical.tfidf(texts), length, topics), expected, atol=1e-5)


def test_scores_equal_scikit_learn_and_scipy_within_folds():
    generator = np.random.default_rng(0)
    truth, predicted = np.sign(generator.normal(size=(60, 1))), np.round(generator.normal(size=(3, 60, 1)), 1)
    fold = np.repeat([0, 1], 30)
    pairs = [(truth[fold == k, 0] > 0).sum() * (truth[fold == k, 0] < 0).sum() for k in (0, 1)]
    for draw in range(3):
        areas = [roc_auc_score(truth[fold == k, 0], predicted[draw, fold == k, 0]) for k in (0, 1)]
        assert scores.area(truth, predicted, fold)[draw] == pytest.approx(np.average(areas, weights=pairs))
        ranks = [spearmanr(truth[fold == k, 0], predicted[draw, fold == k, 0])[0] for k in (0, 1)]
        assert scores.rank_correlation(truth, predicted, fold)[draw] == pytest.approx(np.mean(ranks))
        assert scores.r_squared(truth, predicted, fold)[draw] == pytest.approx(r2_score(truth, predicted[draw]))
    assert scores.rank_correlation(truth, np.ones((1, 60, 1)), fold)[0] == 0


def test_permutations_move_whole_actions_within_folds_and_alike_in_all_problems():
    actions = np.array([f"a{row // 2}" for row in range(120)])
    parts = [(np.arange(120), np.ones((120, 1))), (np.arange(40, 120), np.ones((80, 1)))]
    first, second = gains.problems(parts, actions, draws=5, seed=0)
    for order in first.orders:
        assert (first.fold[order] == first.fold).all()
        assert (first.action[order][::2] == first.action[order][1::2]).all(), "both rows of an action go the same way"
        assert sorted(order) == list(range(120))
    assert (first.orders != np.arange(120)).mean() > 0.5
    np.testing.assert_array_equal(second.orders + 40, first.orders[:, 40:])


def test_the_null_is_uniform_where_the_representation_holds_nothing():
    p = []
    for seed in range(40):
        found = gained(*world(100, seed=seed, draws=39))
        highest, measured = found.fixed[:, 1:].max(axis=0), found.fixed[:, 0].max()
        p.append((1 + (highest >= measured).sum()) / 40)
    assert np.mean(np.array(p) <= 0.05) <= 0.15
    assert kstest(p, "uniform").pvalue > 0.001


def test_without_learning_a_replicate_is_the_score_of_its_rows_and_learning_counts_half():
    problem, _, _ = world(400)
    generator = np.random.default_rng(1)
    kind = Kind("structural", [problem], np.zeros((0, 0)), scores.mean_share)
    fixed = generator.random((1, 400, 1))
    replicates = np.repeat(fixed[:, None], gains.REPLICATES, axis=1)
    alone = measurement._replicated(kind, problem, fixed, replicates)
    np.testing.assert_allclose(alone[0], [fixed[0, ~gone].mean() for gone in problem.without])
    usual = fixed.std(ddof=1) / 400**0.5
    assert measurement.simultaneous(alone, 0)[0][0] == pytest.approx(usual, rel=0.6), "the error of a mean"
    learned = measurement._replicated(kind, problem, fixed, replicates + 0.2)
    np.testing.assert_allclose(learned, alone + 0.1)


def test_nominal_intervals_cover_what_the_procedure_gives_on_average():
    found = [gained(*world(160, 0.5, seed=seed), permute=False) for seed in range(60)]
    gain = np.array([part.gain for part in found])
    error = np.array([measurement.simultaneous(part.without[None], 0)[0][0] for part in found])
    covered = np.abs(gain - gain.mean()) <= 2.262 * error
    assert gain.mean() > 0.02
    assert covered.mean() >= 0.88
    assert 0.8 < error.mean() / gain.std() < 1.25, "neither narrower nor wider than what they are made of"


def test_a_signal_far_down_the_spectrum_is_read_by_all_features_and_not_by_the_leading_components():
    generator = np.random.default_rng(0)
    rows, width, held = 900, 300, 280
    components = generator.normal(size=(rows, width))
    basis = np.linalg.qr(generator.normal(size=(width, width)))[0]
    x = ((components / np.arange(1, width + 1) ** 0.5) @ basis).astype(np.float32)
    targets = (0.8 * components[:, held] + 0.6 * generator.normal(size=rows))[:, None]
    (problem,) = gains.problems([(np.arange(rows), targets)], np.arange(rows).astype(str), draws=0, seed=0)
    base = gains.baseline(np.ones((rows, rows), np.float32), problem)
    kind = Kind("dimensional", [problem], np.zeros((0, 0)), scores.r_squared)
    leading = ((components[:, :256] / np.arange(1, 257) ** 0.5) @ basis[:256]).astype(np.float32)
    whole, cut = (measurement._gained(kind, [base], part, permute=False).gain for part in (x, leading))
    assert whole > 0.05
    assert cut < 0.02


def test_neighbours_of_other_actions_agree_where_polarity_is_in_the_representation():
    generator = np.random.default_rng(0)
    rows = 120
    polarity = generator.choice([-1.0, 0.0, 1.0], rows)
    actions = np.array([f"a{row // 2}" for row in range(rows)])
    (problem,) = gains.problems([(np.arange(rows), polarity[:, None])], actions, draws=10, seed=0)
    x = np.column_stack([polarity * 3, generator.normal(size=rows)]).astype(np.float32)
    base = neighbours.baseline(kernels.linear(generator.normal(size=(rows, 20))), problem)
    kind = Kind("structural", [problem], np.zeros((0, 0)), scores.mean_share, neighbours.baseline, neighbours.add)
    found = measurement._gained(kind, [base], x, permute=True)
    assert found.gain > 0.3
    assert found.fixed[:, 0].max() > found.fixed[:, 1:].max() + 0.1
    nearness = neighbours._standard(kernels.linear(x))
    for row in (0, 7):
        others = np.flatnonzero(actions != actions[row])
        nearest = others[np.argsort(-nearness[row, others], kind="stable")[: neighbours.NEIGHBOURS]]
        expected = (polarity[nearest] == polarity[row]).mean()
        assert neighbours.agreement(nearness, problem)[row] == pytest.approx(expected, abs=0.051)


def test_rows_of_two_problems_swap_with_rows_of_one_where_membership_tells_the_label():
    """Neutral rows take part in the gradients of both poles: moved among themselves alone, they would keep their label."""
    poles, neutral = np.arange(80), np.arange(80, 120)
    first, second = np.concatenate([poles[:40], neutral]), np.concatenate([poles[40:], neutral])
    parts = [(rows, (rows < 80).astype(float)[:, None]) for rows in (first, second)]
    actions = np.arange(120).astype(str)
    for problem in gains.problems(parts, actions, draws=5, seed=0, together=False):
        moved = problem.targets[problem.orders][:, :, 0]
        assert (moved != problem.targets[:, 0]).mean() > 0.3
        assert (np.sort(problem.orders, axis=1) == np.arange(80)).all()
        assert (problem.fold[problem.orders] == problem.fold).all()
