"""The gradient recovers planted typicality and finds nothing in nothing."""

import numpy as np
import pandas as pd
import pytest
from diagnosis.planted import DRAWS, PERMUTATIONS, planted, value
from scipy.stats import spearmanr

from lib.diagnosis import gradient
from lib.diagnosis.sampling import Sampling
from lib.paper import FOUNDATIONS


def test_a_planted_gradient_is_found_and_equals_scipy():
    x, subset = planted(3.0)
    table = gradient.gradient(x, subset, sampling=Sampling(DRAWS, PERMUTATIONS, 0))
    assert (table[table["arm"] == "published"]["ci_low"] > 0.5).all()
    centred = x - x.mean(axis=0)
    member = ((subset["foundation"] == "care-harm") & subset["polarity"].isin(["vice", "neutral"])).to_numpy()
    rows, typicality = centred[member], subset.loc[member, "typicality"].to_numpy()
    prototype = rows[typicality == 1].mean(axis=0)
    nearness = rows @ prototype / np.linalg.norm(rows, axis=1) / np.linalg.norm(prototype)
    found = value(table, category="harm", arm="published", metric="spearman")
    assert found == pytest.approx(spearmanr(nearness, typicality)[0])


def test_the_overall_correlation_is_over_the_rows_of_all_categories():
    x, subset = planted(2.0, per_cell=8)
    centred, near, known = x - x.mean(axis=0), [], []
    for foundation in FOUNDATIONS:
        for pole, other in (("virtue", "vice"), ("vice", "virtue")):
            member = ((subset["foundation"] == foundation) & (subset["polarity"] != other)).to_numpy()
            own = subset[member]
            prototype = centred[member][(own["polarity"] == pole) & (own["typicality"] == 1)].mean(axis=0)
            near.append(
                centred[member] @ prototype / np.linalg.norm(centred[member], axis=1) / np.linalg.norm(prototype)
            )
            known.append(own["typicality"])
    table = gradient.gradient(x, subset, sampling=Sampling(2, 0, 0))
    found = value(table, category="all", arm="published", metric="overall_spearman")
    assert found == pytest.approx(spearmanr(np.concatenate(near), np.concatenate(known))[0])
    assert abs(found - value(table, category="all", arm="published", metric="spearman")) > 0.001


def test_a_prototype_that_contains_its_rows_fakes_a_gradient_and_leaving_them_out_removes_it():
    x, subset = planted(0.0, per_cell=12, width=100)
    table = gradient.gradient(x, subset, sampling=Sampling(DRAWS, PERMUTATIONS, 0))
    assert 0.1 < value(table, arm="published", metric="spearman") < 0.5
    assert value(table, arm="without_prototypes") == pytest.approx(0, abs=0.08)
    assert value(table, arm="shuffled") == pytest.approx(value(table, arm="published", metric="spearman"), abs=0.1)


def test_the_null_has_the_same_offset_as_what_it_is_a_null_of():
    x, subset = planted(0.0, per_cell=12, width=100)
    table = gradient.gradient(x, subset, sampling=Sampling(DRAWS, PERMUTATIONS, 0))
    assert value(table, arm="shuffled", category="all") > 0.1
    assert value(table, arm="shuffled_without_prototypes", category="all") == pytest.approx(0, abs=0.05)
    null = table[table["arm"].str.startswith("shuffled")]
    assert (null["p"] < 0.05).mean() < 0.3, "nothing is found in nothing"
    found = gradient.gradient(planted(3.0)[0], planted(3.0)[1], sampling=Sampling(DRAWS, PERMUTATIONS, 0))
    assert (found.loc[found["arm"].str.startswith("shuffled"), "p"] < 0.05).all()


def test_the_peak_over_layers_pays_for_being_a_maximum():
    tables = []
    for layer in range(8):
        x, subset = planted(0.0, seed=layer, per_cell=10)
        tables.append(gradient.gradient(x, subset, sampling=Sampling(2, 2, 0)).assign(layer=layer))
    peaks = gradient.peaks(pd.concat(tables)).groupby("arm")["value"].mean()
    assert peaks["published"] > 0.2
    assert peaks["held_out"] == pytest.approx(0, abs=0.06)
    one = gradient.peaks(gradient.gradient(*planted(3.0), sampling=Sampling(2, 2, 0)).assign(layer=4))
    assert one["value"].min() > 0.5
    assert set(one["layer"]) == {4}


def test_the_mean_over_categories_has_a_joint_interval():
    x, subset = planted(1.0)
    table = gradient.gradient(x, subset, sampling=Sampling(200, 0, 0)).query(
        "arm == 'published' and metric == 'spearman'"
    )
    whole, single = table[table["category"] == "all"], table[table["category"] != "all"]
    assert whole["value"].item() == pytest.approx(single["value"].mean())
    width = (whole["ci_high"] - whole["ci_low"]).item()
    assert width < 0.6 * (single["ci_high"] - single["ci_low"]).mean()


def test_equally_typical_rows_have_no_gradient():
    x, subset = planted(1.0, per_cell=8)
    only = (subset["typicality"] == 1.0).to_numpy()
    found = gradient.gradient(x[only], subset[only], sampling=Sampling(3, 3, 0))
    assert found["value"].isna().all()
    assert found.loc[found["category"] != "all", "reason"].str.contains("equally typical").all()
