"""Signal where it was planted, never where words, length or nothing is all there is, and no decision without evidence."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from diagnosis.planted import a_model, decided
from scipy.stats import t as student

from lib.diagnosis import decisions, gains, lexical, measurement, scores
from lib.diagnosis.decisions import EQUIVALENT, SIGNAL, UNDECIDED
from lib.diagnosis.kinds import Kind

MARGINS = {"categorical": 0.02}
READING = {
    "kind": "categorical", "pooling": "last", "layer": 3.0, "words": 0.8, "careful": 0.85, "gain": 0.05, "ci_low": 0.03,
    "ci_high": 0.07, "p": 0.01, "equivalence_high": 0.065, "control": "words_only", "control_gain": 0.05, "control_low": 0.02,
    "n": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, SIGNAL),
        ({"p": 0.06}, UNDECIDED),
        ({"control_low": -0.001}, UNDECIDED),
        ({"gain": 0.001, "p": 0.5, "control_low": -0.01, "equivalence_high": 0.019}, EQUIVALENT),
        ({"gain": 0.001, "p": 0.5, "control_low": -0.01, "equivalence_high": 0.021}, UNDECIDED),
        ({"gain": 0.01, "equivalence_high": 0.019}, SIGNAL),
    ],
)
def test_every_condition_counts(changed, expected):
    (decision,) = decisions.decide(pd.DataFrame([READING | changed]), MARGINS)["decision"]
    assert decision == expected


def test_one_layer_that_could_exceed_the_margin_is_no_equivalence_and_the_best_layer_is_reported():
    nothing = READING | {"gain": 0.0, "p": 0.9, "control_low": -0.01, "equivalence_high": 0.01}
    wide = nothing | {"gain": -0.01, "equivalence_high": 0.03, "layer": 4.0}
    table = decisions.decide(pd.DataFrame([nothing, wide]), MARGINS)
    assert table["decision"].item() == UNDECIDED
    assert table["layer"].item() == 3.0
    assert decisions.decide(pd.DataFrame([nothing, nothing]), MARGINS)["decision"].item() == EQUIVALENT
    assert decisions.decide(pd.DataFrame(columns=measurement.COLUMNS), MARGINS)["decision"].item() == UNDECIDED


UNREADABLE = READING | dict.fromkeys(("careful", "gain", "ci_low", "ci_high", "p", "control_low"), np.nan)
UNREADABLE |= {"layer": 4.0, "equivalence_high": np.inf, "control": ""}


def test_a_layer_that_could_not_be_read_is_no_evidence_of_equivalence():
    nothing = READING | {"gain": 0.0, "p": 0.9, "control_low": -0.01, "equivalence_high": 0.01}
    found = decisions.decide(pd.DataFrame([nothing, UNREADABLE]), MARGINS)
    assert (found["decision"].item(), found["layer"].item()) == (UNDECIDED, 3.0)
    assert decisions.decide(pd.DataFrame([READING, UNREADABLE]), MARGINS)["decision"].item() == SIGNAL
    assert decisions.decide(pd.DataFrame([UNREADABLE]), MARGINS)["decision"].item() == UNDECIDED


def test_a_reading_with_a_value_that_is_not_finite_keeps_its_row():
    gained = measurement.Gained(0.8, 0.01, np.full(12, 0.01), np.array([[0.01, 0.0]]), np.full((1, 12), 0.01))
    sources = [measurement.Reading(0, "last"), measurement.Reading(1, "last"), "length_only"]
    kind = SimpleNamespace(name="categorical", problems=[SimpleNamespace(rows=np.arange(9))])
    table = measurement._frame(kind, 0.79, [gained, None, gained], sources=sources, seed=0).set_index("layer")
    assert table.loc[1.0, "equivalence_high"] == np.inf
    assert table.loc[1.0, ["gain", "ci_low", "p"]].isna().all()
    assert np.isfinite(table.loc[0.0, "equivalence_high"])


def test_where_no_problem_could_be_posed_every_kind_is_undecided_and_said_to_be():
    columns = ["layer", "arm", "metric", "foundation", "category", "target", "value"]
    tables = {measure.kind: pd.DataFrame(columns=columns) for measure in decisions.MEASURES}
    ceiling = pd.DataFrame(columns=["dimension", "metric", "value"])
    margins = {measure.kind: 0.02 for measure in decisions.MEASURES}
    table = decisions.decisions(pd.DataFrame(columns=measurement.COLUMNS), tables, ceiling=ceiling, margins_=margins)
    assert (table["decision"] == UNDECIDED).all()
    assert decisions.sentence(table.iloc[0]).startswith("categorical: undecided, because")


def test_a_planted_signal_that_words_do_not_hold_is_found_and_said():
    measured, table = decided(a_model(2.0, layers_=1, per_cell=25), control_layers=1, draws=24)
    assert (table.loc[["categorical", "dimensional"], "decision"] == SIGNAL).all()
    controls = measured[measured["layer"].isna() & measured["kind"].isin(["categorical", "dimensional"])]
    assert set(controls["pooling"]) == set(measurement.WORDLIKE)
    assert (controls["gain"].abs() < 0.05).all(), "words in another form add nothing to words"
    assert set(table.index) == {measure.kind for measure in decisions.MEASURES}
    row = table.reset_index().assign(careful_measure="x").iloc[0]
    assert f"{row['gain']:+.3f}" in decisions.sentence(row)


@pytest.mark.parametrize("first_token", [0.0, 300.0])
def test_nothing_is_found_in_nothing(first_token):
    """Also where a large first token encodes the length."""
    _, table = decided(a_model(0.0, first_token, per_cell=25), control_layers=1, draws=24)
    assert SIGNAL not in set(table["decision"])


def test_text_features_alone_are_never_a_signal():
    """Labels follow words; the representation is the words' own features, in few dimensions."""
    store, annotations, subset = a_model(0.0, per_cell=25)
    generator = np.random.default_rng(0)
    words = {pole: [f"{pole}{index}" for index in range(8)] for pole in ("virtue", "vice", "neutral")}
    text = [
        f"{generator.choice(words[pole])} {action}"
        for pole, action in zip(subset["polarity"], store.actions, strict=True)
    ]
    annotations["action"] = store.index["action"] = text
    x = measurement._compressed(lexical.tfidf(text), 24, 1)
    store.pooled = {"last": np.stack([x, x])}
    store.poolings = ["last"]
    measured, table = decided((store, annotations, subset), pooling="last", control_layers=1, draws=24)
    assert measured.loc[measured["kind"] == "categorical", "words"].min() > 0.9, "words do hold the labels"
    assert SIGNAL not in set(table["decision"])


def test_intervals_hold_for_all_readings_at_once():
    generator = np.random.default_rng(0)
    independent = generator.normal(size=(24, 12))
    error, factor = measurement.simultaneous(independent, 0)
    np.testing.assert_allclose(error, np.sqrt(3) * independent.std(axis=1))
    single = student.ppf(0.975, measurement.DEGREES)
    assert measurement.simultaneous(independent[:1], 0)[1] == pytest.approx(single, rel=0.03)
    assert measurement.simultaneous(np.tile(independent[:1], (24, 1)), 0)[1] == pytest.approx(single, rel=0.03)
    assert factor > 1.3 * single


def test_few_rows_are_no_evidence_of_equivalence():
    """A penalty that shrinks everything away leaves no spread; the others show what the rows can tell."""
    nothing = np.zeros(12)
    noisy = np.random.default_rng(0).normal(size=(2, 12)) * 0.03
    gained = measurement.Gained(0.8, 0.0, nothing, np.array([[-0.01, 0.0], [0.0, 0.0]]), noisy)
    assert measurement.upper(gained) > 0.02
    sure = measurement.Gained(0.8, 0.0, nothing, np.array([[-0.01, 0.0], [0.0, 0.0]]), noisy / 100)
    assert measurement.upper(sure) < 0.005


def measured_beside(beside):
    """One kind, one problem; the second of two readings holds what words do not."""
    generator = np.random.default_rng(0)
    text = [f"w{a} w{b}" for a, b in generator.integers(0, 30, (120, 2))]
    noise, signal = generator.normal(size=(2, 120, 8)).astype(np.float32)
    targets = np.where(signal[:, 0] + 0.5 * generator.normal(size=120) > 0, 1.0, -1.0)[:, None]
    problems = gains.problems([(np.arange(120), targets)], np.arange(120).astype(str), draws=9, seed=0)
    kind = Kind("categorical", problems, np.zeros((120, 0), np.float32), scores.area)
    return measurement.measure(
        {"categorical": kind}, actions=text, tokens=np.full(120, 5), width=8, beside={"embedding": signal} if beside else {},
        readings=[measurement.Reading(layer, "last") for layer in (0, 1)], read=lambda reading: (noise, signal)[reading.layer],
    )  # fmt: skip


def test_what_stands_beside_the_decision_has_a_paired_contrast_and_no_part_in_it():
    alone, both = measured_beside(False), measured_beside(True)
    rule = [column for column in measurement.COLUMNS if not column.startswith("over_embedding")]
    pd.testing.assert_frame_equal(both[both["pooling"] != "embedding"][rule].reset_index(drop=True), alone[rule])
    assert alone["over_embedding"].isna().all()
    noise, signal = (row for _, row in both[both["layer"].notna()].iterrows())
    assert signal["gain"] > 0.2
    assert list(signal[["over_embedding", "over_embedding_low", "over_embedding_high"]]) == [0, 0, 0], (
        "the same reading"
    )
    assert noise["over_embedding"] == pytest.approx(noise["gain"] - signal["gain"])
    length = both[both["pooling"] == "length_only"].iloc[0]
    assert signal["over_length_only"] == pytest.approx(signal["gain"] - length["gain"])
    without = (signal[measurement.WITHOUT] - length[measurement.WITHOUT]).to_numpy(float)
    single = student.ppf(0.975, measurement.DEGREES) * 3**0.5 * without.std()
    for half in (
        signal["over_length_only_high"] - signal["over_length_only"],
        signal["over_length_only"] - signal["over_length_only_low"],
    ):
        assert 0.95 * single <= half < 1.5 * single, "holds for both readings at once"


def test_p_is_of_the_highest_gain_of_all_readings_under_shared_permutations():
    """0.05 is above every draw at its own reading and below some of the other one: a maximum of many is no signal."""
    nothing, errors = np.zeros(12), np.random.default_rng(0).normal(size=(1, 12)) * 0.001
    own, other = np.linspace(-0.04, 0.04, 19), np.linspace(-0.1, 0.1, 19)
    parts = [
        measurement.Gained(0.8, gain, errors[0], np.array([[gain, *null]]), errors)
        for gain, null in ((0.05, own), (0.0, other))
    ]
    wordlike = {name: measurement.Gained(0.75, 0.0, nothing, np.zeros((1, 1)), errors) for name in measurement.WORDLIKE}
    readings = [measurement.Reading(layer, "last") for layer in (0, 1)]
    kind = SimpleNamespace(name="categorical", problems=[SimpleNamespace(rows=np.arange(9))])
    how = {"sources": [*readings, *wordlike], "seed": 0}
    table = measurement._frame(kind, 0.75, [*parts, *wordlike.values()], **how)
    expected = (1 + (np.maximum(own, other) >= 0.05).sum()) / 20
    assert expected > decisions.LEVEL
    assert table.loc[0, "p"] == pytest.approx(expected)
    assert decisions.decide(table, MARGINS)["decision"].item() == UNDECIDED
    alone = measurement._frame(kind, 0.75, [parts[0], *wordlike.values()], sources=[readings[0], *wordlike], seed=0)
    assert alone.loc[0, "p"] == pytest.approx(1 / 20)
    assert decisions.decide(alone, MARGINS)["decision"].item() == SIGNAL
