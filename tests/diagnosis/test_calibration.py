"""The calibration's worlds, in small: what is planted is found, what is not is not, and the rates are counted right."""

import pandas as pd
import pytest

from benchmarks import calibrate
from benchmarks.calibrate import COLUMNS, RESULT, RUNS, kept, missing, sentences, summary
from benchmarks.worlds import WORLDS, World, draw, run
from lib.diagnosis.decisions import EQUIVALENT, MEASURES, SIGNAL, UNDECIDED


def decisions(world, seed=0):
    return run(world, seed, permutations=39).set_index("kind")["decision"]


def test_a_large_effect_is_a_signal_and_none_is_none():
    assert decisions(World("effect", 0.4, 700, 16, 1))["categorical"] == SIGNAL
    for confound in ("effect", "length"):
        assert SIGNAL not in set(decisions(World(confound, 0.0, 700, 16, 1))), confound


def test_a_world_is_drawn_again_the_same_and_words_tell_part_of_every_label():
    world = World("effect", 0.15, 500, 8, 1)
    first, again = draw(world, 3), draw(world, 3)
    pd.testing.assert_frame_equal(first.subset, again.subset)
    good = pd.Series(first.actions[: world.rows]).str.count("good")
    means = good.groupby(first.subset["polarity"]).mean()
    assert means["virtue"] > means["neutral"] > means["vice"]


def test_rates_and_coverage_are_counted():
    world = {"name": "effect", "effect": 0.0, "rows": 9, "width": 4, "layers": 2, "kind": "gradient", "p": 0.5}
    runs = pd.DataFrame([world] * 4).assign(
        decision=[SIGNAL, UNDECIDED, EQUIVALENT, EQUIVALENT],
        gain=[0.0, 0.1, 0.2, 0.1],
        ci_low=[0.11, 0.0, 0.0, 0.0],
        ci_high=[0.2, 0.2, 0.2, 0.2],
    )
    (row,) = summary(runs).to_dict("records")
    assert list(row) == COLUMNS
    rates = {name: row[name] for name in ("rate_signal", "rate_equivalent", "rate_undecided", "coverage", "runs")}
    assert rates == {
        "rate_signal": 0.25,
        "rate_equivalent": 0.5,
        "rate_undecided": 0.25,
        "coverage": pytest.approx(0.75),
        "runs": 4,
    }


def test_an_interval_that_is_exactly_nothing_holds_what_counts_as_nothing():
    """Where the penalty leaves the representation out, gain and interval are 0, and another run moves the mean a little."""
    world = {"name": "effect", "effect": 0.0, "rows": 9, "width": 4, "layers": 2, "kind": "dimensional", "p": 0.5}
    runs = pd.DataFrame([world] * 3).assign(
        decision=EQUIVALENT, gain=[0.0, 0.0, -0.0003], ci_low=[0, 0, -0.001], ci_high=0.0
    )
    assert summary(runs)["coverage"].item() == 1
    assert summary(runs.assign(gain=[0.0, 0.0, -0.03]))["coverage"].item() == 0, "beyond a hundredth of the margin"


def decided(world, seed, code="now"):
    rows = [{"kind": measure.kind, "decision": UNDECIDED} for measure in MEASURES]
    return pd.DataFrame(rows).assign(**world._asdict(), seed=seed, code=code)


def test_a_calibration_goes_on_with_the_runs_that_are_kept_and_makes_those_of_other_code_again(tmp_path):
    path = tmp_path / "runs.csv"
    assert len(missing(kept(path, "now"), 1)) == len(WORLDS)
    pd.concat([decided(WORLDS[0], 0), decided(WORLDS[1], 0, code="before")]).to_csv(path, index=False)
    todo = missing(kept(path, "now"), 2)
    assert (WORLDS[0], 0) not in todo
    assert (WORLDS[1], 0) in todo
    assert (WORLDS[0], 1) in todo
    large = next(world for world in WORLDS if world.rows >= calibrate.LARGE)
    assert [seed for world, seed in missing(kept(path, "now"), 9) if world == large] == [0, 4, 8]


def test_the_sentences_follow_from_the_table():
    rows = [("gradient", "effect", 0.0, 1_000, 64, 100, 0.02, 0.5, 0.48, 0.95),
            ("gradient", "length", 0.0, 1_000, 64, 50, 0.10, 0.4, 0.5, 0.95),
            ("gradient", "effect", 0.15, 3_000, 64, 10, 0.8, 0.0, 0.2, 0.95)]  # fmt: skip
    said = sentences(pd.DataFrame(rows, columns=COLUMNS))
    assert "4.7% (1.9% to 9.4%) of 150 decisions" in said  # binomial test's exact interval of 7 in 150
    assert "length (gradient, 1,000 rows, width 64), in 10.0%" in said
    assert "found with 3,000 rows in gradient 80.0% (44.4% to 97.5%) of 10 runs" in said
    assert "that of the first layer held in 95.0% of runs" in said


def test_worlds_of_as_many_rows_are_counted_together_and_no_world_is_called_the_worst_of_none():
    rows = [("gradient", "effect", 0.0, 1_000, 64, 100, 0.0, 0.5, 0.5, 0.95),
            ("gradient", "effect", 0.15, 3_000, 64, 30, 0.8, 0.0, 0.2, 0.95),
            ("gradient", "effect", 0.15, 3_000, 512, 10, 0.4, 0.0, 0.6, 0.95)]  # fmt: skip
    said = sentences(pd.DataFrame(rows, columns=COLUMNS))
    assert "of 100 decisions, in none of the worlds." in said
    assert "with 3,000 rows in gradient 70.0%" in said


def test_the_committed_rates_are_those_of_the_committed_runs():
    runs = pd.read_csv(RUNS)
    assert runs["code"].nunique() == 1
    assert not runs.duplicated([*World._fields, "seed", "kind"]).any()
    pd.testing.assert_frame_equal(summary(runs), pd.read_csv(RESULT), atol=5.1e-4)
