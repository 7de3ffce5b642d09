"""Regressions over models against known slopes, and what cannot be fitted against the reason given for it."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from lib.comparison import regressions
from lib.paper import models as paper_models
from lib.run.parameters import ComparisonParameters

PARAMETERS = ComparisonParameters(run_dir="runs/none", models=["any"])
PAIRS = ["qwen3-8b", "qwen3-8b-base", "llama-3.1-8b", "llama-3.1-8b-instruct"]


def models(names=None):
    return regressions.facts(list(paper_models()["name"]) if names is None else names)


def decisions(facts, careful, **columns):
    """What notebook 03 decided on every model, of one kind; columns that play no part are left out."""
    frame = {
        "model": facts["name"],
        "kind": "gradient",
        "ours": careful,
        "careful": careful,
        "gain": 0.1,
        "equivalence_high": 0.1,
    }
    return pd.DataFrame(frame | {"ci_low": 0.09, "ci_high": 0.11, "margin": 0.02, "ceiling": np.nan} | columns)


def fitted(facts, careful, **columns):
    measures = regressions.comparable(decisions(facts, careful, **columns), facts, parameters=PARAMETERS)
    return regressions.regressions(measures[measures["measure"] == "careful"])


def noise(facts, scale, seed=0):
    return np.random.default_rng(seed).normal(size=len(facts)) * scale


def test_a_planted_slope_is_a_change_over_the_observed_sizes_and_is_different():
    facts = models()
    sizes = np.log10(facts["parameters_billions"])
    found = fitted(facts, 0.3 * (sizes - sizes.min()) / np.ptp(sizes) + noise(facts, 0.002)).set_index("question")
    assert found.loc["scale", "estimate"] == pytest.approx(0.3, abs=0.01)
    assert found.loc["scale", "term"] == "235 against 0.6 billion parameters"
    assert found.loc["scale", "decision"] == regressions.DIFFERENT
    assert found.loc["architecture", "decision"] == regressions.EQUIVALENT


def test_no_difference_is_equivalent_only_where_the_data_say_so():
    facts = models()
    quiet, loud = (fitted(facts, noise(facts, scale)) for scale in (0.0005, 0.5))
    assert (quiet["decision"] == regressions.EQUIVALENT).all()
    assert (loud["decision"] == regressions.UNDECIDED).all(), "not significant is not equivalent"
    assert (loud["p"] > 0.05).all()


def test_what_is_decided_does_not_depend_on_the_unit_that_a_margin_is_given_in():
    """A measure with a ceiling is read as a share of it, and the margin is that share."""
    facts, values = models(), noise(models(), 0.01) + 0.3
    shares, own = fitted(facts, values, ceiling=0.5), fitted(facts, values, margin=0.05)
    assert (shares["margin"] == 0.1).all()
    assert (shares["unit"] == regressions.OF_CEILING).all()
    assert shares["estimate"].to_numpy() == pytest.approx(2 * own["estimate"].to_numpy())
    assert list(shares["decision"]) == list(own["decision"])


def test_a_small_measure_that_grows_fivefold_is_not_equivalent():
    """R squared from .05 to .25 was within .1 a decade; against a ceiling of .5 it is most of what can be reached."""
    facts = models()
    sizes = np.log10(facts["parameters_billions"])
    values = 0.05 + 0.2 * (sizes - sizes.min()) / np.ptp(sizes) + noise(facts, 0.001)
    found = fitted(facts, values, ceiling=0.5).set_index("question")
    assert found.loc["scale", "decision"] == regressions.DIFFERENT


def test_every_kind_of_measure_has_a_margin_of_its_own():
    facts = models(["qwen3-8b"])
    rows = [decisions(facts, 0.3, kind="categorical"), decisions(facts, 0.3, kind="structural")]
    rows += [decisions(facts, 0.3, kind="dimensional", ceiling=0.6, margin=0.01)]
    found = regressions.comparable(pd.concat(rows), facts, parameters=PARAMETERS).set_index(["measure", "kind"])
    assert found.loc["published"].margin.to_dict() == {"categorical": 0.1, "structural": 0.05, "dimensional": 0.1}
    assert found.loc["careful"].margin.to_dict() == {"categorical": 0.02, "structural": 0.02, "dimensional": 0.1}
    assert found.loc[("careful", "dimensional"), "value"] == pytest.approx(0.5)


def test_estimates_equal_statsmodels_with_its_own_design():
    facts, values = models(), noise(models(), 1, seed=1)
    sizes = np.log10(facts["parameters_billions"])
    dummies = pd.get_dummies(facts[["architecture", "variant"]], drop_first=True).astype(float)
    design = sm.add_constant(pd.concat([(sizes - sizes.min()) / np.ptp(sizes), dummies], axis=1))
    assert list(fitted(facts, values)["estimate"]) == pytest.approx(list(sm.OLS(values, design).fit().params[1:]))


@given(st.permutations(range(23)))
def test_the_order_of_models_changes_nothing(order):
    facts, values = models(), noise(models(), 0.02)
    moved = facts.iloc[order].reset_index(drop=True)
    pd.testing.assert_frame_equal(fitted(facts, values), fitted(moved, values[order]))


@pytest.mark.parametrize(
    ("names", "question", "reason"),
    [
        (["qwen3-8b", "qwen3-8b-base", "llama-3.1-8b"], "architecture", "the same architecture"),
        (["qwen3-8b"], "scale", "the same parameters billions"),
        (["qwen3-8b", "qwen3-4b-base", "gpt-oss-20b"], "scale", "3 models are too few for 3 coefficients"),
        (["qwen3-8b", "qwen3-4b", "llama-3.1-8b-instruct", "llama-3.1-8b"], "scale", "2 families are too few"),
        (["unheard-of"], "variant", "no model has a value"),
    ],
)
def test_what_cannot_be_fitted_says_why(names, question, reason):
    facts = models(names)
    row = fitted(facts, np.arange(len(facts), dtype=float)).set_index("question").loc[question]
    assert reason in row["reason"]
    assert row["reason"].startswith("not fitted, because")
    assert np.isnan(row["estimate"])
    assert row["decision"] == regressions.UNDECIDED


def test_a_level_with_one_model_is_refused_by_name():
    """Its leverage is 1: its residual is 0 whatever it measured, and a standard error of it is rounding noise."""
    names = ["qwen3-0.6b", "qwen3-4b", "qwen3-14b", "llama-3.1-8b", "llama-4-scout", "gpt-oss-20b", "gpt-oss-120b"]
    facts = models([*names, "llama-guard-3-8b"])
    found = fitted(facts, noise(facts, 0.1)).set_index("term")
    assert found.loc["guard against base", "reason"].endswith("rests on one model alone, llama-guard-3-8b")
    assert np.isnan(found.loc["guard against base", "ci_low"])
    assert np.isfinite(found.loc["instruct against base", "ci_low"])


def test_a_level_in_one_family_is_refused_by_name():
    guards = ["qwen3guard-gen-0.6b", "qwen3guard-gen-4b"]
    facts = models([*PAIRS, "qwen3-4b", "llama-4-scout", "llama-4-scout-instruct", "gpt-oss-20b", *guards])
    found = fitted(facts, noise(facts, 0.1)).set_index("term")
    assert found.loc["guard against base", "reason"].endswith("rests on the family Qwen3 alone")


def test_a_term_that_others_determine_is_left_out():
    facts = models(["qwen3-8b", "qwen3-4b", "qwen3-0.6b", "gpt-oss-20b", "gpt-oss-120b", "llama-3.1-8b-instruct"])
    facts["variant"] = facts["architecture"]
    assert "not separable" in fitted(facts, noise(facts, 1)).set_index("question").loc["variant", "reason"]


def test_a_guard_belongs_to_the_family_that_it_was_made_from():
    families = models().set_index("name")["family"]
    assert families["qwen3guard-gen-8b"] == families["qwen3-8b"]
    assert families["llama-guard-3-8b"] == families["llama-3.1-8b"]
    assert families["gpt-oss-safeguard-20b"] == families["gpt-oss-20b"]
    assert families["llama-4-scout"] != families["llama-3.1-8b"], "two pretrainings"


def paired(facts, careful, **columns):
    measures = regressions.comparable(decisions(facts, careful, **columns), facts, parameters=PARAMETERS)
    return regressions.pairs(measures[measures["measure"] == "careful"]).set_index("question")


def test_instruct_is_compared_with_the_base_of_its_own_family_and_size():
    facts = models([*PAIRS, "qwen3-4b", "llama-4-scout", "qwen3guard-gen-8b"])
    found = paired(facts, [0.7, 0.5, 0.6, 0.65, 0.1, 0.2, 0.3])
    one = found.loc["pair"].set_index("term")["estimate"]
    assert one.to_dict() == pytest.approx(
        {"llama-3.1-8b-instruct against llama-3.1-8b": 0.05, "qwen3-8b against qwen3-8b-base": 0.2}
    )
    half = 0.01 / regressions.Z95
    assert found.loc["tuning", "estimate"] == pytest.approx(0.125)
    assert found.loc["tuning", "standard_error"] == pytest.approx(half * 2**0.5 / 2**0.5), (
        "of two pairs of two errors each"
    )


def test_pairs_of_three_families_have_errors_by_family():
    facts = models([*PAIRS, "llama-4-scout", "llama-4-scout-instruct"])
    found = paired(facts, [0.7, 0.5, 0.5, 0.7, 0.5, 0.9]).loc["tuning"]
    oracle = np.std([0.2, 0.2, 0.4], ddof=1) / 3**0.5
    assert (found["estimate"], found["degrees"]) == (pytest.approx(0.8 / 3), pytest.approx(2))
    assert found["standard_error"] == pytest.approx(oracle)


def test_a_noisy_pair_is_undecided():
    facts = models(PAIRS[:2])
    assert paired(facts, [0.5, 0.5], ci_low=0.0, ci_high=0.2).loc["pair", "decision"] == regressions.UNDECIDED
    assert paired(facts, [0.5, 0.5], ci_low=0.099, ci_high=0.101).loc["pair", "decision"] == regressions.EQUIVALENT


def test_models_whose_representations_a_penalty_left_out_are_no_more_certain_than_stage_03_was():
    """Gain and interval are exactly 0 then; only the bound of *equivalent to words* says how little is known."""
    facts, exact = models(PAIRS[:2]), {"gain": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    assert paired(facts, [0.5, 0.5], **exact, equivalence_high=0.03).loc["pair", "decision"] == regressions.UNDECIDED
    assert paired(facts, [0.5, 0.5], **exact, equivalence_high=0.001).loc["pair", "decision"] == regressions.EQUIVALENT


def test_headlines_keep_every_column_and_put_the_model_first():
    table = decisions(models(["qwen3-8b"]), 0.3).drop(columns="model")
    found = regressions.headlines({"a": table, "b": table})
    assert list(found["model"]) == ["a", "b"]
    assert list(found) == ["model", *table]


def test_depth_runs_from_first_to_last_block():
    tables = {name: pd.DataFrame({"model": name, "layer": range(n)}) for name, n in (("a", 5), ("b", 1))}
    depth = regressions.by_depth(tables.values())
    assert depth.loc[depth["model"] == "a", "depth"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert depth.loc[depth["model"] == "b", "depth"].tolist() == [0]
