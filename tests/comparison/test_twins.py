"""A model less its untrained twin: paired, replicate by replicate, against the twin's reading that leaves least."""

import numpy as np
import pandas as pd
import pytest
from comparison import planted
from scipy.stats import t as student

from lib.comparison import regressions
from lib.comparison.twins import CONTRAST, contrasts
from lib.diagnosis.measurement import DEGREES, WITHOUT
from lib.paper import models as paper_models

TWINS = {"untrained": "model"}


def gains(*readings, kind="categorical", seed=0):
    """Gains of one kind, as (layer, gain)."""
    return planted.gains({(kind, layer): gain for layer, gain in readings}, seed=seed)


def test_the_interval_is_that_of_paired_replicates():
    ours, twin = gains((3, 0.1)), gains((3, 0.02))
    (row,) = contrasts({"model": ours, "untrained": twin}, twins=TWINS, seed=0).to_dict("records")
    assert list(row) == CONTRAST
    without = (ours[WITHOUT].iloc[0] - twin[WITHOUT].iloc[0]).to_numpy(float)
    half = student.ppf(0.975, DEGREES) * 3**0.5 * without.std()
    assert row["difference"] == pytest.approx(0.08)
    assert (row["ci_high"] - row["ci_low"]) / 2 == pytest.approx(half, rel=0.04)
    assert row["ci_low"] > 0, "what both share is no noise of the difference"
    apart = gains((3, 0.02), seed=1)
    assert contrasts({"model": ours, "untrained": apart}, twins=TWINS, seed=0)["ci_low"].item() < 0


def test_a_twin_that_holds_as_much_at_another_layer_leaves_nothing():
    found = contrasts(
        {"model": gains((0, 0.02), (5, 0.1)), "untrained": gains((0, 0.1), (5, 0.0))}, twins=TWINS, seed=0
    )
    row = found.iloc[0]
    assert (row["layer"], row["twin_layer"], row["gain"], row["twin_gain"]) == (5, 0, 0.1, 0.1)
    assert row["difference"] == pytest.approx(0)
    assert row["ci_low"] < 0 < row["ci_high"]


def test_a_layer_that_could_not_be_read_has_no_part_in_a_contrast():
    unreadable = gains((4, 0.5)).assign(gain=np.nan, **dict.fromkeys(WITHOUT, np.nan))
    ours = pd.concat([gains((3, 0.1)), unreadable], ignore_index=True)
    found = contrasts({"model": ours, "untrained": gains((3, 0.02))}, twins=TWINS, seed=0)
    pd.testing.assert_frame_equal(
        found, contrasts({"model": gains((3, 0.1)), "untrained": gains((3, 0.02))}, twins=TWINS, seed=0)
    )


def test_every_kind_has_a_row_and_a_twin_that_was_not_diagnosed_has_none():
    both = pd.concat([gains((1, 0.1)), gains((1, 0.05), kind="gradient")])
    tables = {"model": both, "untrained": both}
    assert list(contrasts(tables, twins=TWINS, seed=0)["kind"]) == ["categorical", "gradient"]
    assert list(contrasts({"model": both}, twins=TWINS, seed=0)) == CONTRAST
    assert contrasts({"model": both}, twins=TWINS, seed=0).empty


def test_untrained_models_change_no_regression():
    names = list(paper_models()["name"])
    twins = {"qwen3-8b-untrained": "qwen3-8b", "untrained-small": "qwen3-8b"}
    facts = regressions.facts([*names, *twins], twins)
    assert (facts.set_index("name").loc[list(twins), "variant"] == regressions.UNTRAINED).all()
    assert (facts["variant"] == regressions.UNTRAINED).sum() == 2
    # The demo's own untrained models have a family and a size, so nothing but the variant keeps them out.
    found, without = planted.regressed(facts, 2)
    pd.testing.assert_frame_equal(found, without)
    assert found["n"].max() == len(names)
