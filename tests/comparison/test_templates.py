"""A model under other words around the action: paired with its first reading, counted once, and the claim that follows."""

import pandas as pd
import pytest
from comparison.planted import gains, regressed
from scipy.stats import t as student

from lib.claims import evidence, ledger
from lib.comparison import regressions
from lib.comparison.templates import CONTRAST, contrasts
from lib.diagnosis.measurement import DEGREES, WITHOUT
from lib.paper import models as paper_models
from lib.run.profile import load_profile

READINGS = {"asked": "model"}
MARGINS = {"categorical": 0.02, "dimensional": 0.01}
CLAIM = ledger.read_claims("data/published_claims.csv").query("id == 'P2-templates'")


def compared(first, other):
    decided = pd.DataFrame({"model": "model", "kind": list(MARGINS), "margin": list(MARGINS.values())})
    return contrasts({"model": first, "asked": other}, decided, readings=READINGS, seed=0)


def outcome(table):
    return ledger.ledger(CLAIM, evidence.frame(list(evidence.of_templates(table)))).iloc[0]


def test_one_place_has_the_interval_of_paired_replicates():
    first, other = gains({("categorical", 3): 0.05}), gains({("categorical", 3): 0.09}, own=1)
    (row,) = compared(first, other).to_dict("records")
    assert list(row) == CONTRAST
    without = (other[WITHOUT].iloc[0] - first[WITHOUT].iloc[0]).to_numpy(float)
    half = student.ppf(0.975, DEGREES) * 3**0.5 * without.std()
    assert (row["gain"], row["reading_gain"], row["margin"]) == (0.05, 0.09, 0.02)
    assert row["difference"] == pytest.approx(0.04)
    assert (row["ci_high"] - row["ci_low"]) / 2 == pytest.approx(half, rel=0.04)


def test_intervals_hold_for_all_places_at_once_so_more_places_make_them_wider():
    one = {("categorical", 0): 0.05}
    many = one | {("categorical", layer): 0.05 for layer in range(1, 12)}
    alone, among = (compared(gains(places), gains(places, own=1)) for places in (one, many))
    width = [(table["ci_high"] - table["ci_low"]).iloc[0] for table in (alone, among)]
    assert width[1] > 1.2 * width[0]


def test_a_reading_like_the_first_has_no_difference_and_no_width():
    same = gains({("categorical", 3): 0.05, ("dimensional", 3): 0.02})
    table = compared(same, same)
    assert (table[["difference", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert outcome(table)["decision"] == ledger.DIFFERS


@pytest.mark.parametrize(
    ("shift", "noise", "decision"),
    [(0.05, 0.001, ledger.REPRODUCED), (0.001, 0.0005, ledger.DIFFERS), (0.02, 0.01, ledger.INCONCLUSIVE)],
)
def test_the_claim_holds_where_a_difference_is_beyond_its_margin_for_sure(shift, noise, decision):
    places = {("categorical", 0): 0.05, ("categorical", 9): 0.03, ("dimensional", 9): 0.01}
    first = gains(places, noise=noise)
    for sign in (1, -1):
        moved = gains(places | {("categorical", 9): 0.03 + sign * shift}, own=1, noise=noise)
        found = outcome(compared(first, moved))
        assert found["decision"] == decision
        if decision == ledger.REPRODUCED:
            assert found["ours"] == pytest.approx(sign * shift / MARGINS["categorical"])


def test_without_a_second_reading_the_claim_is_not_run():
    table = contrasts({"model": gains({("categorical", 3): 0.05})}, pd.DataFrame(), readings=READINGS, seed=0)
    assert list(table) == CONTRAST
    found = outcome(table)
    assert found["decision"] == ledger.NOT_RUN
    assert "read under several templates" in found["reason"]


def test_readings_of_one_model_are_one_model_of_a_regression():
    names = list(paper_models()["name"])
    readings = {
        "moral-small": "qwen3-8b"
    }  # the demo's models have a family and a size, so nothing but this keeps it out
    facts = regressions.facts([*names, *readings], readings=readings)
    assert list(facts.loc[~regressions.counted(facts), "name"]) == ["moral-small"]
    found, without = regressed(facts, 1)
    pd.testing.assert_frame_equal(found, without)


def test_a_profile_says_which_entries_are_readings_of_one_model(tmp_path):
    entries = (
        "  - {name: asked, path: data/demo/models/moral-small, template: 'Is it moral to {action}?'}\n"
        "  - {name: asked-untrained, like: asked}\nsae_model: moral-small"
    )
    demo = load_profile("profiles/demo.yaml")
    assert demo.readings == {}
    file = tmp_path / "profile.yaml"
    with open("profiles/demo.yaml", encoding="utf-8") as text:
        file.write_text(text.read().replace("sae_model: moral-small", entries), encoding="utf-8")
    profile = load_profile(file)
    assert profile.readings == {"asked": "moral-small"}
    assert profile.stage_parameters("comparison")["readings"] == profile.readings
    assert profile.stage_parameters("claims")["readings"] == profile.readings
