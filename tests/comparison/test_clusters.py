"""Errors by cluster against formulas written the long way, statsmodels and a simulation of no effect."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from lib.comparison.clusters import fit

SIZES = (2, 3, 4, 6)


def world(seed=0, sizes=SIZES):
    generator = np.random.default_rng(seed)
    clusters = np.repeat([f"family {number}" for number in range(len(sizes))], sizes)
    x = np.column_stack([np.ones(len(clusters)), generator.normal(size=(len(clusters), 2))])
    return x, generator.normal(size=len(clusters)), clusters


def the_long_way(x, y, clusters, term):
    """CR2 of Bell and McCaffrey with Satterthwaite's degrees of freedom, matrix by matrix as in Pustejovsky and Tipton."""
    n, inverse = len(x), np.linalg.inv(x.T @ x)
    hat = x @ inverse @ x.T
    residuals, contrast = (np.eye(n) - hat) @ y, np.eye(x.shape[1])[term]
    variance, columns = 0.0, []
    for name in np.unique(clusters):
        own = clusters == name
        adjust = np.linalg.inv(np.real(sqrtm(np.eye(own.sum()) - hat[np.ix_(own, own)])))
        score = x[own].T @ adjust @ residuals[own]
        variance += contrast @ inverse @ np.outer(score, score) @ inverse @ contrast
        columns.append((np.eye(n) - hat)[:, own] @ adjust @ x[own] @ inverse @ contrast)
    eigenvalues = np.linalg.eigvalsh(np.array(columns) @ np.array(columns).T)
    return np.sqrt(variance), eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def test_errors_and_degrees_of_freedom_equal_the_formulas_written_the_long_way():
    x, y, clusters = world()
    for term, found in enumerate(fit(x, y, clusters)):
        error, degrees = the_long_way(x, y, clusters, term)
        assert found.estimate == pytest.approx(sm.OLS(y, x).fit().params[term])
        assert found.standard_error == pytest.approx(error)
        assert found.degrees == pytest.approx(degrees)


def test_clusters_of_one_give_statsmodels_hc2():
    x, y, _ = world()
    oracle = sm.OLS(y, x).fit(cov_type="HC2").bse
    found = fit(x, y, np.arange(len(y)).astype(str))
    assert [coefficient.standard_error for coefficient in found] == pytest.approx(list(oracle))


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_without_an_effect_at_most_one_in_twenty_is_significant(count):
    """Members of a family are alike, and what is asked differs between families: the hardest case."""
    generator, sizes = np.random.default_rng(count), np.arange(2, 2 + count)
    clusters = np.repeat(np.arange(count), sizes)
    x = np.column_stack([np.ones(len(clusters)), clusters / count])
    p, usual = [], []
    for _ in range(600):
        y = generator.normal(size=count)[clusters] + generator.normal(size=len(clusters))
        p.append(fit(x, y, clusters.astype(str))[1].p())
        usual.append(sm.OLS(y, x).fit(cov_type="cluster", cov_kwds={"groups": clusters}).pvalues[1])
    assert np.mean(np.array(p) < 0.05) < 0.075, "three standard errors of 600 draws above 5%"
    assert np.mean(np.array(usual) < 0.05) > 0.1, "the usual sandwich is not good enough here"


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_what_one_cluster_alone_shows_has_no_error(rows):
    x, y, clusters = world()
    x[:, 2] = 0
    x[rows, 2] = 1
    found = fit(x, y, clusters)
    assert found[2].alone == "family 0"
    assert np.isnan(found[2].standard_error)
    assert np.isnan(found[2].degrees)
    assert found[1].alone is None
    assert found[1].standard_error > 0


@given(st.permutations(range(sum(SIZES))))
def test_the_order_of_rows_changes_nothing(order):
    x, y, clusters = world()
    order = np.array(order)
    for one, other in zip(fit(x, y, clusters), fit(x[order], y[order], clusters[order]), strict=True):
        assert one[:3] == pytest.approx(other[:3])
