"""The ledger's rules, one by one."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import claims, runs

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
