"""The calibration's worlds, in small: what is planted is found, what is not is not, and the rates are counted right."""

import pandas as pd
import pytest

from benchmarks.calibrate import COLUMNS, World, draw, run, summary
from lib.diagnosis.decisions import EQUIVALENT, SIGNAL, UNDECIDED


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
