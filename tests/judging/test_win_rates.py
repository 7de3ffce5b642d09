"""Tests of verdicts against other computations and planted effects."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests

from lib.claims import ledger
from lib.judging import contrasts, win_rates
from lib.steering.prompts import DIMENSIONS

KNOWN = {"protocol": "careful", "replicate": 0, "sample": 0, "arm": "aligned", "layer": 2, "strength": 1.0}


def pairs(win_probability, prompts=120, seed=0, length=None, **changed):
    """Comparisons in both orders; ``win_probability`` is a function of (place, length difference)."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        characters = 50 + (int(generator.integers(-40, 41)) if length is None else length)
        for order in win_rates.ORDERS:
            place = 1 if order == "arm first" else -1
            verdict = "win" if generator.random() < win_probability(place, characters - 50) else "lose"
            known = {"id": f"flames_{number:04d}", "dimension": DIMENSIONS[number % 5], **KNOWN}
            shown = {"rubric": "pairwise", "order": order, "outcome": "valid", "verdict": verdict}
            rows.append(known | shown | {"characters": characters, "baseline_characters": 50} | changed)
    frame = pd.DataFrame(rows).astype({"layer": "Int64"})
    frame["chosen"] = np.where((frame["verdict"] == "win") == (frame["order"] == "arm first"), "first", "second")
    return frame


def scores(baseline, aligned, rubric="safety", protocol="careful"):
    """Absolute verdicts of two arms, prompt by prompt."""
    rows = []
    for arm, values in (("baseline", baseline), ("aligned", aligned)):
        for number, score in enumerate(values):
            known = {"id": f"flames_{number:04d}", "dimension": "Safety", "arm": arm, "rubric": rubric}
            known |= {"protocol": protocol, "replicate": 0, "sample": 0}
            place = {"layer": None, "strength": None} if arm == "baseline" else {"layer": 2, "strength": 1.0}
            rows.append(known | place | {"characters": 5, "outcome": "valid", "score": score})
    return pd.DataFrame(rows).astype({"layer": "Int64", "strength": float, "score": "Int64"})


CLAIMS = ledger.read_claims("data/published_claims.csv")
NO_SCORES = scores([1], []).head(0)


def row(table, test, dimension="all"):
    return table[(table["test"] == test) & (table["dimension"] == dimension)].iloc[0]


def test_mcnemar_is_the_exact_binomial_test_of_the_prompts_that_differ():
    baseline, aligned = [3] * 40 + [1] * 30 + [3] * 5 + [2] * 25, [3] * 40 + [2] * 30 + [1] * 5 + [3] * 25
    found = row(contrasts.contrasts(scores(baseline, aligned), pairs(lambda *_: 0.5)), "mcnemar")
    assert found["value"] == pytest.approx((25 - 5) / 100)
    assert found["p"] == pytest.approx(binomtest(5, 30).pvalue)
    assert found["ci_low"] < 0.2 < found["ci_high"]
    assert found["n"] == 100


def test_a_difference_shows_and_none_does_not():
    better = contrasts.contrasts(NO_SCORES, pairs(lambda place, length: 0.75))
    same = contrasts.contrasts(NO_SCORES, pairs(lambda place, length: 0.5, seed=1))
    for test in ("sign", "length-controlled win rate"):
        assert row(better, test)["p"] < 1e-6
        assert row(better, test)["ci_low"] > 0.6
        assert row(same, test)["p"] > 0.01
        assert row(same, test)["ci_low"] < 0.5 < row(same, test)["ci_high"]
    assert row(better, "length-controlled win rate")["value"] == pytest.approx(0.75, abs=0.1)
    assert row(same, "length-controlled win rate")["value"] == pytest.approx(0.5, abs=0.05)


def test_a_judge_that_likes_length_gives_a_win_rate_that_length_control_takes_away():
    def by_length(place, difference):
        return 0.9 if difference > 0 else 0.1

    generator = np.random.default_rng(0)
    pairwise = pairs(by_length)
    longer = generator.random(len(pairwise) // 2).repeat(2) < 0.8
    pairwise = pairwise[(pairwise["characters"] > 50) | ~longer]
    raw = float((pairwise["verdict"] == "win").mean())
    found = row(contrasts.contrasts(NO_SCORES, pairwise), "length-controlled win rate")
    assert raw > 0.65
    assert abs(found["value"] - 0.5) < abs(raw - 0.5) / 2


def test_a_judge_that_likes_the_first_place_does_not_move_the_length_controlled_win_rate():
    table = contrasts.contrasts(NO_SCORES, pairs(lambda place, length: 0.9 if place > 0 else 0.1))
    assert row(table, "length-controlled win rate")["value"] == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_tested_has_a_reason_and_no_number():
    always = contrasts.contrasts(NO_SCORES, pairs(lambda *_: 1.0, prompts=20))
    assert row(always, "length-controlled win rate")["reason"] == "every verdict is the same"
    assert row(always, "sign")["p"] < 1e-5
    same_length = contrasts.contrasts(NO_SCORES, pairs(lambda *_: 0.5, length=0))
    assert np.isfinite(row(same_length, "length-controlled win rate")["value"])
    ties = pairs(lambda *_: 0.5, prompts=10).assign(verdict="tie", chosen="tie")
    assert row(contrasts.contrasts(NO_SCORES, ties), "sign")["reason"] == "no prompt has a net preference"
    alone = scores([], [3, 3])
    assert "no prompt" in row(contrasts.contrasts(alone, ties), "mcnemar")["reason"]
    one_order = pairs(lambda *_: 0.5).query("order == 'baseline first'")
    found = row(contrasts.contrasts(NO_SCORES, one_order), "length-controlled win rate")
    assert np.isnan(found["value"])
    assert "one order only" in found["reason"]
    nothing = contrasts.contrasts(NO_SCORES, ties.assign(outcome="failed", verdict=None, chosen=None))
    assert nothing.empty


def test_p_values_are_corrected_over_layers_and_over_layers_and_dimensions():
    layers = [pairs(lambda *_: 0.5, prompts=40, seed=layer).assign(layer=layer) for layer in range(6)]
    layers[3] = pairs(lambda *_: 0.9, prompts=40, seed=3).assign(layer=3)
    table = contrasts.contrasts(NO_SCORES, pd.concat(layers).astype({"layer": "Int64"}))
    sign = table[(table["test"] == "sign") & (table["dimension"] == "all")].sort_values("p")
    assert sign["layer"].iloc[0] == 3
    expected = multipletests(sign["p"], method="holm")[1]
    np.testing.assert_allclose(sign["p_holm"], expected)
    by_dimension = table[(table["test"] == "sign") & (table["dimension"] != "all")]
    assert set(by_dimension["dimension"]) == set(DIMENSIONS)
    smallest = by_dimension.nsmallest(1, "p").iloc[0]
    assert smallest["p_holm"] == pytest.approx(min(1, smallest["p"] * len(by_dimension)))


def test_kappa_is_that_of_statsmodels_and_clustered_by_prompt():
    first = pairs(lambda *_: 0.5)
    generator = np.random.default_rng(4)
    flip = generator.random(len(first)) < 0.2
    other = np.where(first["verdict"] == "win", "lose", "win")
    second = first.assign(verdict=np.where(flip, other, first["verdict"]))
    second = second.iloc[generator.permutation(len(second))]
    table = contrasts.agreement(first, second, draws=300).set_index("metric")
    crossed = pd.crosstab(first["verdict"], second["verdict"].sort_index())
    assert table.loc["kappa", "value"] == pytest.approx(cohens_kappa(crossed).kappa)
    assert table.loc["agreement", "value"] == pytest.approx(1 - flip.mean())
    assert table.loc["kappa", "ci_low"] < table.loc["kappa", "value"] < table.loc["kappa", "ci_high"]


def test_judges_are_compared_only_where_both_gave_a_verdict():
    first = pd.concat([scores([3, 1, 2], [3, 3, 1]), pairs(lambda *_: 0.5, prompts=3)], ignore_index=True)
    second = first.copy()
    second.loc[0, ["outcome", "score"]] = ["failed", pd.NA]
    second = second[second["id"] != "flames_0002"]
    table = contrasts.agreement(first, second).set_index(["rubric", "metric"])
    assert table.loc[("safety", "agreement"), "n"] == 3
    assert table.loc[("safety", "kappa"), "value"] == 1
    assert table.loc[("pairwise", "agreement"), "n"] == 4


def test_published_numbers_stand_beside_ours():
    published = {"protocol": "published"}
    absolute = pd.concat(
        [scores([3] * 9 + [1], [3] * 10, **published), scores([1] * 10, [3] * 5 + [1] * 5, "emotion", **published)]
    )
    layers = [
        pairs(lambda *_, share=share: share, seed=1).assign(layer=layer).astype({"layer": "Int64"})
        for layer, share in ((1, 0.3), (2, 0.7), (None, 0.98))  # the last at both layers at once, which is no layer's
    ]
    about = {"standing": "judged", "usable": True}
    careful = win_rates.summarise(absolute.assign(protocol="careful"), pd.concat(layers), about=about)
    assert win_rates.beside_published(careful, CLAIMS)["ours"].isna().all(), "another protocol is not comparable"
    summary = win_rates.summarise(absolute, pd.concat(layers).assign(**published), about=about)
    table = win_rates.beside_published(summary, CLAIMS)
    assert table["published"].tolist() == [908, 953, 867, 930, 0.6, 0.754]
    assert table["ours"].iloc[:4].tolist() == [900, 1000, 0, 500]
    assert table["ours"].iloc[4] < 0.4 < 0.6 < table["ours"].iloc[5]
    assert table["layer"].iloc[4:].tolist() == [1, 2]
