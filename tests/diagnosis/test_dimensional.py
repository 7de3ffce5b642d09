"""The probes read a linear code and nothing from shuffled labels."""

import numpy as np
import pytest
from diagnosis.planted import DRAWS, probe_data, value
from sklearn.metrics import r2_score

from lib.diagnosis import dimensional
from lib.diagnosis.sampling import Sampling
from lib.paper import CATEGORIES


def test_more_dimensions_than_rows_is_no_obstacle():
    x, probed = probe_data(0.1, rows=90, width=200)
    table = dimensional.ridge(x, probed, sampling=Sampling(5, 1, 0))
    assert value(table, target="all", arm="ridge") > 0.2
    probe = dimensional.published(x, probed, sampling=Sampling(5, 0, 0))
    adjusted = probe[probe["metric"] == "adjusted_r2"]
    assert adjusted["value"].isna().all()
    assert "18 test rows are too few for 200 dimensions" in adjusted["reason"].item()


def test_r_squared_equals_scikit_learn():
    generator = np.random.default_rng(0)
    truth, predicted = generator.normal(size=(50, 3)), generator.normal(size=(50, 3))
    found = dimensional.weighted_r2(truth, predicted, np.ones((1, 50)))[0]
    np.testing.assert_allclose(found, r2_score(truth, predicted, multioutput="raw_values"))


def test_a_linear_code_is_read_and_shuffled_labels_are_not():
    x, probed = probe_data(0.2)
    table = dimensional.ridge(x, probed, sampling=Sampling(DRAWS, 1, 0))
    assert value(table, target="all", arm="ridge") > 0.8
    probe = dimensional.published(x, probed, sampling=Sampling(DRAWS, 0, 0))
    r2 = value(probe, target="all", metric="r2")
    assert r2 > 0.5
    n, p = probe["n"].iloc[0], value(probe, metric="predictors")
    assert (n, p) == (180, 20)
    assert value(probe, target="all", metric="adjusted_r2") == pytest.approx(1 - (1 - r2) * (n - 1) / (n - p - 1))
    assert value(table, target="all", arm="shuffled") < 0.01
    assert 0.05 < value(table, target="all", arm="shuffled_within_foundations") < 0.6, "topic alone explains a part"


def test_rows_of_one_action_never_help_each_other():
    x, probed = probe_data(50.0, rows=200)
    parts = (x, probed.vectors, probed.actions, probed.topics)
    x, *known = (np.concatenate([part, part]) for part in parts)
    table = dimensional.ridge(x, dimensional.Probed(*known), sampling=Sampling(DRAWS, 1, 0))
    assert value(table, target="all", arm="ridge") < 0.05


def test_constant_labels_have_no_r_squared():
    x, probed = probe_data(0.2)
    probed.vectors[:, 4] = 0.0
    table = dimensional.ridge(x, probed, sampling=Sampling(3, 0, 0)).set_index("target")
    assert np.isnan(table.loc[CATEGORIES[4], "value"])
    assert table.loc[CATEGORIES[4], "reason"].startswith("not computed, because")
    assert table.loc["all", "value"] > 0.5


def test_the_nulls_move_whole_actions_in_every_draw_and_the_topic_null_keeps_the_topics():
    generator = np.random.default_rng(0)
    actions = np.repeat([f"action {index}" for index in range(120)], 2)
    topics = np.array([f"topic {index % 4}" for index in range(60)])[generator.permutation(240) % 60]
    drawn = list(dimensional.orders_within(actions, topics, Sampling(1, 30, 0)))
    assert len(drawn) == 30
    for order in drawn:
        assert sorted(order) == list(range(240))
        assert (topics[order] == topics).all()
        assert (actions[order][::2] == actions[order][1::2]).all()
        assert (actions[order] != actions).mean() > 0.8, "a draw that moves nothing is no draw of a null"
    assert len({tuple(order) for order in drawn}) == 30


def test_every_null_of_ridge_has_as_many_draws_as_asked_for():
    x, probed = probe_data(0.2, rows=200)
    table = dimensional.ridge(x, probed, sampling=Sampling(2, 19, 0)).set_index(["arm", "target"])
    assert table.loc[["shuffled", "shuffled_within_foundations"], "p"].to_numpy() == pytest.approx(1 / 20)
