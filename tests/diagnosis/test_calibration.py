"""The calibration's worlds, in small: what is planted is found, what is not is not, and the rates are counted right."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import calibrate
from benchmarks.calibrate import COLUMNS, KEYS, RESULT, RUNS, WORLDS, kept, missing, sentences, summary
from benchmarks.worlds import PROBED, World, draw, run
from lib.diagnosis.decisions import EQUIVALENT, MEASURES, SIGNAL, UNDECIDED


def decisions(world, seed=0):
    decided = run(world, seed, permutations=39)
    assert not decided.duplicated(["kind", "layer"]).any()
    return decided.drop_duplicates("kind").set_index("kind")["decision"]


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


def test_dimensions_read_as_many_annotations_as_stage_03_at_most():
    drawn = draw(World("effect", 0.15, PROBED + 500, 4, 1), 0)
    assert len(drawn.probed.vectors) == len(drawn.probed.topics) == PROBED
    rows = PROBED + 500 + PROBED
    assert len(drawn.actions) == len(drawn.tokens) == len(drawn.streams[0]) == rows
    np.testing.assert_array_equal(drawn.actions[PROBED + 500 :], drawn.actions[:PROBED])


@pytest.mark.parametrize(("minutes", "begun"), [(1.0, [0, 1, 2]), (-1.0, [])])
def test_runs_are_made_on_all_cores_unless_told_otherwise_and_none_after_the_time(monkeypatch, minutes, begun):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(calibrate, "run", lambda world, seed: pd.DataFrame({"seed": [seed]}))
    todo = [(WORLDS[0], seed) for seed in range(3)]
    found = [one["seed"].item() for one in calibrate.made(todo, processes=-1, minutes=minutes)]
    assert sorted(found) == begun


WORLD = {"name": "effect", "effect": 0.0, "rows": 9, "width": 4, "layers": 2, "kind": "gradient", "p": 0.5}


def test_rates_and_coverage_are_counted():
    """A run counts once, and as covered only if the intervals of all its layers hold their layer's mean."""
    run_ = pd.DataFrame([WORLD] * 4).assign(
        decision=[SIGNAL, UNDECIDED, EQUIVALENT, EQUIVALENT], seed=range(4), gain=[0.0, 0.1, 0.2, 0.1]
    )
    half = {0: [0.2, 0.05, 0.2, 0.05], 1: [0.2, 0.05, 0.05, 0.05]}
    runs = pd.concat(
        run_.assign(layer=layer, ci_low=run_["gain"] - half[layer], ci_high=run_["gain"] + half[layer])
        for layer in half
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


def test_coverage_does_not_gain_from_a_mean_of_few_runs():
    """The mean of three runs is nearer to each than the truth is; intervals of the true spread hold as often as they say."""
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        gain = generator.normal(size=3)
        runs = pd.DataFrame([WORLD] * 3).assign(decision=UNDECIDED, seed=range(3), layer=0, gain=gain)
        shares.append(summary(runs.assign(ci_low=gain - 1.96, ci_high=gain + 1.96))["coverage"].item())
    assert np.mean(shares) == pytest.approx(0.95, abs=0.02)


def test_an_interval_that_is_exactly_nothing_holds_what_counts_as_nothing():
    """Where the penalty leaves the representation out, gain and interval are 0, and another run moves the mean a little."""
    runs = pd.DataFrame([WORLD | {"kind": "dimensional"}] * 3).assign(
        decision=EQUIVALENT, seed=range(3), layer=0, gain=[0.0, 0.0, -0.0002], ci_low=[0, 0, -0.001], ci_high=0.0
    )
    assert summary(runs)["coverage"].item() == 1
    few = runs.assign(gain=[0.0, 0.0, -0.03], ci_low=[0, 0, -0.031], ci_high=[0, 0, -0.029])
    assert summary(few)["coverage"].item() == 0, "beyond a hundredth of the margin"


def decided(world, seed, code="now"):
    rows = [{"kind": measure.kind, "decision": UNDECIDED} for measure in MEASURES]
    return pd.DataFrame(rows).assign(**world._asdict(), seed=seed, layer=0, code=code)


def test_a_calibration_goes_on_with_the_runs_that_are_kept_and_makes_those_of_other_code_again(tmp_path):
    path = tmp_path / "runs.csv"
    assert len(missing(kept(path, "now"), 1)) == len(WORLDS)
    pd.concat([decided(WORLDS[0], 0), decided(WORLDS[1], 0, code="before")]).to_csv(path, index=False)
    todo = missing(kept(path, "now"), 2)
    assert (WORLDS[0], 0) not in todo
    assert (WORLDS[1], 0) in todo
    assert (WORLDS[0], 1) in todo
    long = next(world for world in WORLDS if calibrate.takes_long(world))
    assert [seed for world, seed in missing(kept(path, "now"), 9) if world == long] == [0, 4, 8]


def test_the_sentences_follow_from_the_runs():
    """Two worlds of one draw and four kinds of a run are one observation; only worlds of other sizes and seeds are more."""
    null = [World("effect", 0.0, 1_000, 64, 2), World("length", 0.0, 1_000, 64, 2), World("effect", 0.0, 1_000, 512, 2)]
    strong = World("effect", 0.15, 3_000, 64, 2)
    runs = pd.concat([decided(world, seed) for world in (*null, strong) for seed in range(10)], ignore_index=True)
    runs = runs.assign(gain=0.0, ci_low=-0.1, ci_high=0.1, p=0.5)
    runs.loc[(runs["name"] == "length") & (runs["seed"] == 3), "decision"] = SIGNAL
    runs.loc[(runs["effect"] > 0) & (runs["kind"] == "gradient") & (runs["seed"] < 8), "decision"] = SIGNAL
    said = sentences(runs)
    assert "4 of 120 decisions were *signal*; one at least was in 5.0% (0.1% to 24.9%) of 20 independent draws" in said
    assert "found with 3,000 rows in" in said
    assert "gradient 80.0% (44.4% to 97.5%)" in said  # binomial test's exact interval of 8 in 10
    assert "they did in 100.0% of decisions where there is an effect" in said


def test_widths_are_told_in_intervals_from_the_true_spread():
    generator = np.random.default_rng(0)
    worlds = (WORLDS[0], WORLDS[2])
    runs = pd.concat([decided(world, seed) for world in worlds for seed in range(400)], ignore_index=True)
    gain = generator.normal(0.1, 0.02, len(runs))
    runs = runs.assign(gain=gain, ci_low=gain - 2 * 1.96 * 0.02, ci_high=gain + 2 * 1.96 * 0.02)
    assert "They are 2.0 times as wide as" in sentences(runs)


def test_the_committed_rates_are_those_of_the_committed_runs():
    runs = pd.read_csv(RUNS)
    assert runs["code"].nunique() == 1
    assert not runs.duplicated([*KEYS, "kind", "layer"]).any()
    pd.testing.assert_frame_equal(summary(runs), pd.read_csv(RESULT), atol=5.1e-4)
