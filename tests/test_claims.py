"""The ledger's rules, one by one."""

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import claims, runs
from lib.profiles import Profile

NAN = float("nan")


def one(relation, value, tolerance, ours, ci=(NAN, NAN), control=(NAN, NAN, NAN), margin=NAN):
    published = pd.DataFrame(
        [("claim", "s", "text", relation, value, tolerance, "m", "w")], columns=list(claims.COLUMNS)
    )
    evidence = pd.DataFrame(
        [("claim", ours, *ci, 10, "shuffled", *control, NAN, margin, None)], columns=list(claims.EVIDENCE)
    )
    return claims.ledger(published, evidence)["verdict"].item()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("above", 0.5, 0, 0.7, (0.6, 0.8)), claims.REPRODUCED),
        (("above", 0.5, 0, 0.7, (0.4, 0.8)), claims.DIFFERS),
        (("above", 0.5, 0, 0.7, (0.6, 0.8), (0.7, 0.6, 0.8)), claims.EXPLAINED),
        (("above", 0.5, 0, 0.7, (0.6, 0.8), (0.1, 0.0, 0.2)), claims.REPRODUCED),
        (("below", 0.5, 0, 0.3, (0.2, 0.4)), claims.REPRODUCED),
        (("below", 0.5, 0, 0.3, (0.2, 0.6)), claims.DIFFERS),
        (("above", 0.0, 0, 0.7, (0.6, 0.8), (0.2, 0.1, 0.3)), claims.REPRODUCED),
        (("below", 0.0, 0, -0.7, (-0.8, -0.6), (-0.2, -0.3, -0.1)), claims.REPRODUCED),
        (("below", 0.55, 0, 0.4, (0.3, 0.5), (0.0, -0.1, 0.1)), claims.EXPLAINED),
        (("near", 0.26, 0.05, 0.20, (0.15, 0.22)), claims.REPRODUCED),
        (("near", 0.26, 0.05, 0.10, (0.05, 0.15)), claims.DIFFERS),
        (("equals", 10, 0, 10), claims.REPRODUCED),
        (("equals", 10, 0, 11), claims.DIFFERS),
        (("equivalent", 0, NAN, 0.02, (-0.05, 0.08), (NAN, NAN, NAN), 0.1), claims.REPRODUCED),
        (("equivalent", 0, NAN, 0.02, (-0.2, 0.3), (NAN, NAN, NAN), 0.1), claims.DIFFERS),
        (("above", 0.5, 0, NAN), claims.NOT_RUN),
    ],
)
def test_each_rule_by_a_known_case(arguments, expected):
    assert one(*arguments) == expected


@given(st.sampled_from(["above", "below", "near"]), st.floats(-1, 1), st.floats(0, 0.5), st.floats(-1, 1))
def test_a_control_that_equals_our_measurement_never_leaves_it_unexplained(relation, value, tolerance, ours):
    found = one(relation, value, tolerance, ours, (ours - 0.1, ours + 0.1), (ours, ours - 0.1, ours + 0.1))
    assert found in (claims.EXPLAINED, claims.DIFFERS)


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.001, 0.5))
def test_nothing_is_both_above_and_below(value, ours, half):
    measured = (ours, ours - half, ours + half)
    assert not (claims.holds("above", value, 0, measured) and claims.holds("below", value, 0, measured))


def test_a_claim_without_evidence_is_not_run_and_says_why():
    published = claims.read_claims("data/published_claims.csv")
    table = claims.ledger(published, pd.DataFrame(columns=list(claims.EVIDENCE)))
    assert (table["verdict"] == claims.NOT_RUN).all()
    assert table["reason"].notna().all()
    assert claims.summary(table) == (
        f"0 reproduced · 0 reproduced but explained by a control · 0 differs · {len(published)} not run"
    )


def test_evidence_for_an_unknown_claim_is_an_error():
    published = claims.read_claims("data/published_claims.csv")
    stray = pd.DataFrame([{"id": "no-such-claim", "ours": 1.0}])
    with pytest.raises(claims.ClaimError, match="no-such-claim"):
        claims.ledger(published, stray)


def test_a_table_without_a_column_is_refused(tmp_path):
    path = tmp_path / "claims.csv"
    pd.read_csv(runs.resolve("data/published_claims.csv")).drop(columns="tolerance").to_csv(path, index=False)
    with pytest.raises(claims.ClaimError, match="lacks the column 'tolerance'"):
        claims.read_claims(path)


def test_every_published_number_is_finite():
    published = claims.read_claims("data/published_claims.csv")
    assert np.isfinite(published["value"]).all()
    assert published.loc[published["relation"] != "equivalent", "tolerance"].notna().all()


def test_every_number_of_the_published_record_has_its_claim():
    published = claims.read_claims("data/published_claims.csv").set_index("id")["value"]
    cells = published[published.index.str.startswith("exploded-train-")]
    assert cells.sum() == published["exploded-train"], (
        "fifteen cells of foundation and polarity make up the training rows"
    )
    parts = ("train", "validation", "test")
    assert published[[f"annotations-{part}" for part in parts]].sum() == published["annotations"]
    assert published[[f"exploded-{part}" for part in parts]].sum() == published["exploded"]
    dimensions = ("safety", "fairness", "morality", "data-protection", "legality")
    assert published[[f"flames-{name}" for name in dimensions]].sum() == published["flames-prompts"]


def test_no_verdict_of_the_demo_is_a_finding():
    published = claims.read_claims("data/published_claims.csv")
    measured = pd.DataFrame([{"id": "subset", "ours": 16135.0}])
    for demo, standing in ((True, claims.DEMO_STANDING), (False, claims.FINDING)):
        table = claims.ledger(published, measured, demo=demo).set_index("id")
        assert table.loc["subset", "standing"] == standing
        assert table.loc["annotations", "standing"] == "nothing measured"
    assert "not a finding" in claims.DEMO_STANDING


def test_settings_say_what_was_followed():
    published = pd.read_csv(runs.resolve("data/published_settings.csv"))
    table = claims.settings(published, {"expansion": 16, "learning_rate": 0.001, "mode": "add"}).set_index("setting")
    assert table.loc["latents per width of the stream", "followed"] == "as published"
    assert table.loc["mode", "followed"] == "as published"
    assert (table.loc["learning rate", "followed"] == "changed").any()
    assert table.loc["tokens at most", "followed"] == "fixed in lib/residuals.py"


def test_every_setting_names_a_parameter_or_a_module_that_exists():
    published = pd.read_csv(runs.resolve("data/published_settings.csv"))
    keys = {field.name for field in fields(Profile)}
    for row in published.itertuples():
        assert row.parameter in keys if isinstance(row.parameter, str) else runs.resolve(row.code).is_file(), (
            row.setting
        )


def test_the_rules_are_written_where_a_reader_looks():
    page = runs.resolve("docs/ledger.md").read_text(encoding="utf-8")
    for word in (claims.REPRODUCED, claims.EXPLAINED, claims.DIFFERS, claims.NOT_RUN, *claims.RELATIONS):
        assert f"*{word}*" in page or f"`{word}`" in page
