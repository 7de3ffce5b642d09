"""Regressions over models against known slopes, and what cannot be fitted against the reason given for it."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from lib import comparison
from lib.registry import registry


def models(names=None):
    known = registry()
    chosen = known if names is None else known[known["name"].isin(names)]
    return chosen[["name", "family", "parameters_billions", "architecture", "variant"]].reset_index(drop=True)


def table(facts, value):
    return pd.DataFrame({"model": facts["name"], "kind": "gradient", "measure": "careful", "value": value})


def fitted(frame, question, method=comparison.HC3):
    return frame[(frame["question"] == question) & (frame["method"] == method)].iloc[0]


def test_a_planted_slope_is_found_and_is_not_equivalent():
    facts = models()
    noise = np.random.default_rng(5).normal(size=len(facts)) * 0.02
    value = 0.3 * np.log10(facts["parameters_billions"]) + noise
    found = comparison.regressions(table(facts, value), facts, 0.1)
    for method in (comparison.HC3, comparison.MIXED):
        slope = fitted(found, "scale", method)
        assert slope["estimate"] == pytest.approx(0.3, abs=0.04)
        assert slope["p"] < 0.001
        assert not slope["equivalent"]
    assert fitted(found, "architecture")["equivalent"]


def test_no_difference_is_equivalent_only_where_the_data_say_so():
    facts = models()
    generator = np.random.default_rng(0)
    quiet = comparison.regressions(table(facts, generator.normal(size=len(facts)) * 0.02), facts, 0.1)
    loud = comparison.regressions(table(facts, generator.normal(size=len(facts)) * 2), facts, 0.1)
    assert quiet["equivalent"].all()
    assert not loud["equivalent"].any(), "not significant is not equivalent"
    assert (loud["p"] > 0.05).any()


def test_least_squares_equals_statsmodels_with_its_own_design():
    facts = models()
    value = np.random.default_rng(1).normal(size=len(facts))
    found = comparison.regressions(table(facts, value), facts, 0.1)
    dummies = pd.get_dummies(facts[["architecture", "variant"]], drop_first=True).astype(float)
    design = sm.add_constant(pd.concat([np.log10(facts["parameters_billions"]), dummies], axis=1))
    oracle = sm.OLS(value, design).fit(cov_type="HC3", use_t=True)
    slope = fitted(found, "scale")
    assert slope["estimate"] == pytest.approx(oracle.params["parameters_billions"])
    assert slope["p"] == pytest.approx(oracle.pvalues["parameters_billions"])
    low, high = oracle.conf_int(alpha=0.1).loc["parameters_billions"]
    assert (slope["ci_low"], slope["ci_high"]) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("names", "question", "reason"),
    [
        (["qwen3-8b", "qwen3-8b-base", "llama-3.1-8b"], "architecture", "the same architecture"),
        (["qwen3-8b"], "scale", "the same parameters billions"),
        (["qwen3-8b", "qwen3-4b-base", "gpt-oss-20b"], "scale", "3 models are too few for 3 coefficients"),
        (["unheard-of"], "variant", "no model has a value"),
    ],
)
def test_what_cannot_be_fitted_says_why(names, question, reason):
    facts = comparison.facts(names)
    found = comparison.regressions(table(facts, np.arange(len(facts), dtype=float)), facts, 0.1)
    row = fitted(found, question)
    assert reason in row["reason"]
    assert row["reason"].startswith("not fitted, because")
    assert np.isnan(row["estimate"])


def test_a_term_that_others_determine_is_left_out():
    facts = models(["qwen3-8b", "qwen3-4b", "qwen3-0.6b", "gpt-oss-20b", "gpt-oss-120b", "gpt-oss-safeguard-20b"])
    facts["variant"] = facts["architecture"]
    reasons = comparison.unfit(facts.assign(value=0.0))
    assert reasons["architecture"] == ""
    assert "not separable" in reasons["variant"]


def test_few_families_have_no_random_level():
    facts = models(["qwen3-8b", "qwen3-4b", "qwen3-0.6b", "qwen3-14b", "llama-3.1-8b", "llama-3.1-8b-instruct"])
    found = comparison.regressions(table(facts, np.random.default_rng(0).normal(size=len(facts))), facts, 0.1)
    mixed = found[found["method"] == comparison.MIXED]
    assert mixed["reason"].str.contains("2 families are too few").all()


def test_headlines_are_tidy():
    columns = ["kind", "ours", "careful", "ci_low", "ci_high", "null_measure", "null", "null_high", "verdict"]
    verdict = pd.DataFrame([["gradient", 0.5, 0.3, 0.2, 0.4, "shuffled", 0.0, 0.1, "x"]], columns=columns)
    found = comparison.headlines({"a": verdict, "b": verdict})
    assert list(found["model"]) == ["a", "a", "b", "b"]
    assert list(found["value"]) == [0.3, 0.5, 0.3, 0.5]


def test_depth_runs_from_first_to_last_block():
    tables = {name: pd.DataFrame({"model": name, "layer": range(n)}) for name, n in (("a", 5), ("b", 1))}
    depth = comparison.by_depth(tables)
    assert depth.loc[depth["model"] == "a", "depth"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert depth.loc[depth["model"] == "b", "depth"].tolist() == [0]
