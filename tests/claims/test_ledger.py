"""The ledger's rules, one by one."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.claims import ledger
from lib.run.files import resolve
from lib.run.profile import Profile
from lib.run.table import STAGES

NAN = float("nan")


def claim(relation, value=0.0, tolerance=0.0, control="", **gates):
    row = dict.fromkeys(ledger.COLUMNS, "") | {"id": "claim", "relation": relation, "value": value, "control": control}
    return pd.DataFrame([row | {"tolerance": tolerance, "group": ledger.SCIENTIFIC} | gates])


def measured(ours, low=NAN, high=NAN, controls=(), **more):
    """Evidence: controls are (value, low, high) and the contrast (value, low, high), if any."""
    row = {"id": "claim", "ours": ours, "ci_low": low, "ci_high": high, "n": 10} | more
    names = ("control_value", "control_low", "control_high", "contrast", "contrast_low", "contrast_high")
    rows = [
        row | dict(zip(names, control, strict=False)) | {"control_name": f"c{i}"} for i, control in enumerate(controls)
    ]
    return pd.DataFrame(rows or [row]).reindex(columns=list(ledger.EVIDENCE))


def one(published, evidence, **facts):
    return ledger.ledger(published, evidence, facts=facts).iloc[0]


@pytest.mark.parametrize(
    ("relation", "value", "tolerance", "measurement", "expected"),
    [
        ("above", 0.5, 0, (0.7, 0.6, 0.8), ledger.REPRODUCED),
        ("above", 0.5, 0, (0.7, 0.4, 0.8), ledger.INCONCLUSIVE),
        ("above", 0.5, 0, (0.3, 0.2, 0.4), ledger.DIFFERS),
        ("below", 0.5, 0, (0.3, 0.2, 0.4), ledger.REPRODUCED),
        ("below", 0.5, 0, (0.3, 0.2, 0.6), ledger.INCONCLUSIVE),
        ("below", 0.5, 0, (0.7, 0.6, 0.8), ledger.DIFFERS),
        ("near", 0.26, 0.05, (0.25, 0.22, 0.28), ledger.REPRODUCED),
        ("near", 0.26, 0.05, (0.25, 0.15, 0.35), ledger.INCONCLUSIVE),
        ("near", 0.26, 0.05, (0.10, 0.05, 0.15), ledger.DIFFERS),
        ("equals", 10, 0, (10,), ledger.REPRODUCED),
        ("equals", 10, 0, (11,), ledger.DIFFERS),
        ("above", 0.5, 0, (NAN,), ledger.NOT_RUN),
        ("above", 0.5, 0, (0.7,), ledger.INCONCLUSIVE),
        ("near", 0.26, 0.05, (0.26,), ledger.INCONCLUSIVE),
    ],
)
def test_each_relation_by_a_known_case(relation, value, tolerance, measurement, expected):
    assert one(claim(relation, value, tolerance), measured(*measurement))["decision"] == expected


@pytest.mark.parametrize(
    ("relation", "ends", "expected"),
    [
        ("equivalent", (-0.05, 0.08), ledger.REPRODUCED),
        ("equivalent", (-0.2, 0.3), ledger.INCONCLUSIVE),
        ("equivalent", (0.2, 0.3), ledger.DIFFERS),
        ("different", (-0.05, 0.08), ledger.DIFFERS),
        ("different", (0.05, 0.3), ledger.INCONCLUSIVE),
        ("different", (-0.3, -0.2), ledger.REPRODUCED),
    ],
)
def test_a_difference_is_compared_with_its_margin(relation, ends, expected):
    assert one(claim(relation), measured(np.mean(ends), *ends, margin=0.1))["decision"] == expected


@pytest.mark.parametrize(
    ("need", "controls", "expected"),
    [
        ("", (), ledger.REPRODUCED),
        ("beaten", (), ledger.INCONCLUSIVE),
        ("beaten", [(0.1, 0.0, 0.2, 0.5, 0.4, 0.6)], ledger.REPRODUCED),
        ("beaten", [(0.7, 0.6, 0.8, 0.0, -0.1, 0.1)], ledger.EXPLAINED),
        ("beaten", [(0.6, 0.55, 0.65, 0.1, 0.05, 0.15)], ledger.REPRODUCED),
        ("beaten", [(0.45, 0.3, 0.6, 0.25, -0.1, 0.6)], ledger.INCONCLUSIVE),
        ("beaten", [(0.1, 0.0, 0.2, 0.5, 0.4, 0.6), (0.7, 0.6, 0.8, 0.0, -0.1, 0.1)], ledger.EXPLAINED),
        ("beaten", [(0.1, 0.0, 0.2)], ledger.INCONCLUSIVE),
        ("", [(0.1, 0.0, 0.2)], ledger.REPRODUCED),
        ("", [(0.7, 0.6, 0.8)], ledger.EXPLAINED),
    ],
)
def test_every_control_has_to_be_beaten(need, controls, expected):
    assert one(claim("above", 0.5, control=need), measured(0.7, 0.6, 0.8, controls))["decision"] == expected


def test_the_control_that_decides_is_shown():
    controls = [(0.1, 0.0, 0.2, 0.5, 0.4, 0.6), (0.7, 0.6, 0.8, 0.02, -0.1, 0.1), (0.3, 0.2, 0.4, 0.01, 0.005, 0.1)]
    found = one(claim("above", 0.5, control="beaten"), measured(0.7, 0.6, 0.8, controls))
    assert (found["against"], found["control_name"], found["control_value"]) == ("c1", "c1", 0.7)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [((0.8, 0.7, 0.9), ledger.REPRODUCED), ((0.3, 0.2, 0.4), ledger.EXPLAINED), ((0.5, 0.4, 0.6), ledger.INCONCLUSIVE)],
)
def test_a_weakness_counts_only_where_the_bound_could_be_exceeded(bound, expected):
    published, ours = claim("below", 0.55, control="bound"), (0.3, 0.2, 0.4)
    assert one(published, measured(*ours, controls=[bound]))["decision"] == expected
    assert one(published, measured(*ours))["decision"] == ledger.INCONCLUSIVE, "nothing says that it could"
    assert one(published, measured(0.7, 0.6, 0.8, controls=[bound]))["decision"] == ledger.DIFFERS


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((-0.3, -0.4, -0.2), ledger.REPRODUCED),
        ((0.3, 0.2, 0.4), ledger.EXPLAINED),
        ((0.0, -0.1, 0.1), ledger.INCONCLUSIVE),
    ],
)
def test_what_one_reader_finds_another_has_to_find_too(other, expected):
    published, ours = claim("below", 0.0, control="shared"), (-5.0, -6.0, -4.0)
    assert one(published, measured(*ours, controls=[other]))["decision"] == expected
    assert one(published, measured(*ours))["decision"] == ledger.INCONCLUSIVE, "no other reader"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("signal beyond words", ledger.REPRODUCED),
        ("equivalent to words", ledger.DIFFERS),
        ("undecided", ledger.INCONCLUSIVE),
        (None, ledger.INCONCLUSIVE),
    ],
)
def test_a_claim_of_signal_is_what_stage_03_decided(found, expected):
    beaten = [(NAN, NAN, NAN, 0.1, 0.05, 0.15)]
    evidence = measured(0.1, 0.05, 0.15, beaten, found=found)
    assert one(claim("signal", control="beaten"), evidence)["decision"] == expected


@given(
    st.sampled_from(["above", "below", "near", "equivalent"]), st.floats(-1, 1), st.floats(0, 0.5), st.floats(-1, 1),
    st.floats(0.001, 0.3),
)  # fmt: skip
def test_a_control_that_equals_our_measurement_never_leaves_it_unexplained(relation, value, tolerance, ours, half):
    same = (ours, ours - half, ours + half)
    evidence = measured(*same, controls=[(*same, 0.0, -half, half)], margin=tolerance)
    for need in ("", "beaten"):
        assert one(claim(relation, value, tolerance, control=need), evidence)["decision"] != ledger.REPRODUCED


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.001, 0.5), st.floats(0.01, 0.5))
def test_opposite_claims_never_both_hold_and_refute_each_other(value, ours, half, tolerance):
    interval, limit = (ours, ours - half, ours + half), {"value": value, "tolerance": tolerance}
    for one_way, other in (("above", "below"), ("equivalent", "different")):
        found = {ledger.met(one_way, interval, **limit), ledger.met(other, interval, **limit)}
        assert found in ({ledger.HELD, ledger.REFUTED}, {ledger.OPEN})


@given(st.sampled_from(ledger.RELATIONS), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_no_interval_is_never_a_reproduction_of_anything_but_a_count(relation, value, ours, tolerance):
    found = one(claim(relation, value, tolerance), measured(ours, margin=tolerance))["decision"]
    assert relation == "equals" or found == ledger.INCONCLUSIVE


# --------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize("gate", ledger.GATES)
def test_a_claim_about_something_else_is_not_comparable_and_says_what_differs(gate):
    published, evidence = claim("above", 0.5, **{gate: "this"}), measured(0.7, 0.6, 0.8)
    assert one(published, evidence, **{gate: "this"})["decision"] == ledger.REPRODUCED
    other = one(published, evidence, **{gate: "that"})
    assert (other["decision"], other["here"]) == (ledger.NOT_COMPARABLE, ledger.REPRODUCED)
    assert other["reason"] == f"{gate}: that instead of this"
    assert other["ours"] == 0.7, "our measured value is still shown"
    assert one(published, evidence)["reason"] == f"{gate}: none instead of this"


def test_any_judge_will_do_but_none_will_not():
    published, evidence = claim("above", 0.5, judge="any"), measured(0.7, 0.6, 0.8)
    assert one(published, evidence, judge="claude")["decision"] == ledger.REPRODUCED
    without = one(published, evidence, judge="")
    assert (without["decision"], without["here"]) == (ledger.NOT_COMPARABLE, ledger.NOT_COMPARABLE)


def test_what_was_not_measured_is_not_run_whatever_the_gates():
    found = one(claim("above", 0.5, model="this"), measured(NAN, reason="no judge"), model="that")
    assert (found["decision"], found["reason"]) == (ledger.NOT_RUN, "no judge")


# --------------------------------------------------------------------------------- the table of claims


@pytest.fixture(scope="module")
def published():
    return ledger.read_claims("data/published_claims.csv")


def test_a_claim_without_evidence_is_not_run_and_says_why(published):
    table = ledger.ledger(published, pd.DataFrame(columns=list(ledger.EVIDENCE)))
    assert list(table["id"]) == list(published["id"])
    assert (table["decision"] == ledger.NOT_RUN).all()
    assert (table["reason"] != "").all()


def test_counts_of_files_are_in_no_summary_of_claims(published):
    counts = published.loc[published["group"] == ledger.FILE]
    evidence = pd.DataFrame({"id": counts["id"], "ours": counts["value"]})
    table = ledger.ledger(published, evidence, facts={"data": "Social-Chemistry-101", "prompts": "Flames 1000"})
    scientific = len(published) - len(counts)
    assert ledger.summary(table) == (
        "0 reproduced · 0 explained by a control · 0 differs · 0 inconclusive · 0 not comparable · "
        f"{scientific} not run"
    )
    assert ledger.summary(table, ledger.FILE).startswith(f"{(counts['relation'] == 'equals').sum()} reproduced")


def test_evidence_for_an_unknown_claim_is_an_error(published):
    with pytest.raises(ledger.ClaimError, match="no-such-claim"):
        ledger.ledger(published, pd.DataFrame([{"id": "no-such-claim", "ours": 1.0}]))


@pytest.mark.parametrize(("column", "value"), [("relation", "about"), ("group", "other"), ("control", "weak")])
def test_an_unknown_word_in_the_table_is_refused(tmp_path, column, value):
    path = tmp_path / "claims.csv"
    frame = pd.read_csv(resolve("data/published_claims.csv"))
    frame.assign(**{column: value}).to_csv(path, index=False)
    with pytest.raises(ledger.ClaimError, match=f"unknown {column} '{value}'"):
        ledger.read_claims(path)
    frame.drop(columns=column).to_csv(path, index=False)
    with pytest.raises(ledger.ClaimError, match=f"lacks the column '{column}'"):
        ledger.read_claims(path)


def test_every_published_number_is_finite(published):
    assert np.isfinite(published["value"]).all()
    assert published.loc[~published["relation"].isin(ledger.OF_MARGIN), "tolerance"].notna().all()


def test_every_claim_of_a_judge_asks_for_one_and_published_numbers_for_the_published_protocol(published):
    judged = published[published["stage"] == "judging"]
    assert (judged["judge"] != "").all()
    numbers = judged[judged["relation"] == "near"]
    assert len(numbers) == 5
    assert (numbers["protocol"] == "published").all()
    assert (numbers["model"] == "Qwen/Qwen3-8B").all()
    assert (numbers["prompts"] == "Flames 1000").all()


def test_every_scientific_claim_says_what_it_is_about(published):
    scientific = published[published["group"] == ledger.SCIENTIFIC]
    assert set(scientific["paper"]) == {"2603.15615", "2601.05437", "2603.23659"}
    of_the_paper = scientific[scientific["paper"] == "2603.15615"]
    assert ((of_the_paper["model"] == "Qwen/Qwen3-8B") ^ (of_the_paper["models"] == "23")).all()


def test_every_number_of_the_published_record_has_its_claim(published):
    values = published.set_index("id")["value"]
    cells = values[values.index.str.startswith("exploded-train-")]
    assert cells.sum() == values["exploded-train"], "fifteen cells of foundation and polarity make up the training rows"
    parts = ("train", "validation", "test")
    assert values[[f"annotations-{part}" for part in parts]].sum() == values["annotations"]
    assert values[[f"exploded-{part}" for part in parts]].sum() == values["exploded"]
    dimensions = ("safety", "fairness", "morality", "data-protection", "legality")
    assert values[[f"flames-{name}" for name in dimensions]].sum() == values["flames-prompts"]


def test_no_decision_of_the_demo_is_a_finding(published):
    evidence = pd.DataFrame([{"id": "subset", "ours": 16135.0}])
    for demo, standing in ((True, ledger.DEMO_STANDING), (False, ledger.FINDING)):
        table = ledger.ledger(published, evidence, demo=demo).set_index("id")
        assert table.loc["subset", "standing"] == standing
        assert table.loc["annotations", "standing"] == "nothing measured"
    assert "not a finding" in ledger.DEMO_STANDING


def test_settings_say_what_was_followed():
    published = pd.read_csv(resolve("data/published_settings.csv"))
    table = ledger.settings(published, {"expansion": 16, "learning_rate": 0.001, "mode": "add"}).set_index("setting")
    assert table.loc["latents per dimension of the residual stream (d_sae / d_in)", "followed"] == "as published"
    assert table.loc["mode", "followed"] == "as published"
    assert (table.loc["learning rate", "followed"] == "changed").any()
    assert table.loc["at most this many tokens", "followed"] == "fixed in lib/paper.py"


def test_every_setting_names_a_parameter_or_a_module_that_exists():
    published = pd.read_csv(resolve("data/published_settings.csv"))
    for row in published.itertuples():
        named = isinstance(row.parameter, str)
        assert named or isinstance(row.code, str), row.setting
        assert not named or row.parameter in Profile.model_fields, row.setting
        assert pd.isna(row.code) or resolve(row.code).is_file(), row.setting
        assert row.stage in STAGES, row.setting


def test_the_rules_are_written_where_a_reader_looks():
    page = resolve("docs/ledger.md").read_text(encoding="utf-8")
    for word in (*ledger.OUTCOMES, *ledger.RELATIONS, *ledger.GATES):
        assert f"*{word}*" in page or f"`{word}`" in page, word
