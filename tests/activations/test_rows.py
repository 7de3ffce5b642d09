"""Which actions are read: what stage 03 and the autoencoders need, and nothing more."""

import numpy as np
import pandas as pd
import pytest

from lib.activations.rows import actions_to_read, sample_of_actions
from lib.run.parameters import ActivationsParameters
from lib.run.profile import load_profile

MODEL = {"run_dir": "x", "model": "m", "model_source": "s", "revision": None}


@pytest.fixture
def annotations():
    """Three hundred annotations of about a hundred actions, some of one, some of many."""
    numbers = np.random.default_rng(0).integers(0, 120, 300)
    return pd.DataFrame({"id": [f"row{n}" for n in range(300)], "action": [f"doing {n}" for n in numbers]})


@pytest.mark.parametrize("rows", [1, 40, 150, 299, 300])
def test_the_diagnosis_finds_every_row_that_it_reads(annotations, rows):
    subset = annotations[["id"]].sample(30, random_state=1)
    parameters = ActivationsParameters(**MODEL, store_rows="diagnosed", probe_rows=rows)
    read = actions_to_read(annotations, subset, parameters=parameters)
    diagnosed = annotations[annotations["id"].isin(subset["id"])]["action"]
    probed = sample_of_actions(annotations, rows=rows)["action"]
    assert set(read) == set(diagnosed) | set(probed)
    assert read == sorted(set(read))
    assert rows >= 299 or len(read) < annotations["action"].nunique()


def test_autoencoders_find_every_action(annotations):
    read = actions_to_read(annotations, annotations[["id"]].head(1), parameters=ActivationsParameters(**MODEL))
    assert read == sorted(annotations["action"].unique())


@pytest.mark.parametrize("rows", [50, 150, 299])
def test_a_sample_holds_whole_actions_and_keeps_to_its_size(annotations, rows):
    sample = sample_of_actions(annotations, rows=rows)
    assert rows - annotations["action"].value_counts().max() < len(sample) <= rows
    left = annotations.drop(sample.index)
    assert not set(left["action"]) & set(sample["action"])
    pd.testing.assert_frame_equal(sample, sample_of_actions(annotations, rows=rows))
    assert list(sample.index) == sorted(sample.index)


def test_a_profile_reads_all_actions_for_its_autoencoders_and_the_diagnosed_ones_for_other_models():
    profile = load_profile("profiles/paper.yaml")
    rows = {model: profile.stage_parameters("activations", model)["store_rows"] for model in profile.sources}
    assert rows.pop("qwen3-8b") == "all"
    assert set(rows.values()) == {"diagnosed"}
    told = profile.model_copy(update={"store_rows": "all"})
    assert {told.stage_parameters("activations", model)["store_rows"] for model in told.sources} == {"all"}
    first, *others = told.models
    apart = told.model_copy(update={"models": [first.model_copy(update={"store_rows": "diagnosed"}), *others]})
    rows = {model: apart.stage_parameters("activations", model)["store_rows"] for model in apart.sources}
    assert {model for model, of in rows.items() if of == "diagnosed"} == {first.name}
