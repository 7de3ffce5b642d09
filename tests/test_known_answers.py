"""What the demo must show, because its models were made so: known answers, with a margin."""

from functools import cache

import pandas as pd
import pytest

from lib.activations.store import open_store
from lib.alignment import arms, controls, evaluation, tuning
from lib.run.profile import load_profile
from lib.run.table import STAGES
from lib.run.validation import build
from lib.sae import features, training
from lib.sae.rows import reader

pytestmark = pytest.mark.pipeline

SEEDS = (0, 1, 2)


@cache
def outcome(demo_run, model, seed):
    """Features of one demo model's autoencoder, and the table of its arms on test rows, at the demo's settings."""
    annotations = pd.read_parquet(demo_run / "vectors" / "annotations.parquet")
    exploded = pd.read_parquet(demo_run / "vectors" / "exploded.parquet")
    profile = load_profile("profiles/demo.yaml")
    of_sae, of_alignment = (
        build(STAGES[name].parameters, profile.stage_parameters(name) | {"seed": seed}, "demo")
        for name in ("sae", "alignment")
    )
    store = open_store(demo_run / "activations" / model)
    rows = reader(store, annotations=annotations, exploded=exploded, parameters=of_sae)(of_sae.layers[0])
    sae, _ = training.train(rows["train"].x, rows["validation"].x, parameters=of_sae, label=model)
    table = features.identify(sae, rows, permutations=of_sae.permutations, seed=seed)
    test, chosen = rows["test"], arms.selection_of("untuned", table, seed=seed)
    applied = {
        "untuned": [evaluation.apply(sae, chosen, test.x)],
        "ridge": [evaluation.read(controls.ridge(rows), test.x, rectified=False)],
    }
    for arm, labelled in {"aligned": rows, "shuffled": controls.shuffled_labels(rows, seed=seed)}.items():
        tuned, _ = tuning.align(sae, chosen, rows=labelled, parameters=of_alignment, label=arm)
        applied[arm] = [evaluation.apply(tuned, chosen, test.x)]
    measured = evaluation.evaluate(applied, test, draws=200, seed=seed)
    whole = measured[(measured["category"] == "all") & (measured["arm"] == "aligned")].set_index("metric")
    return table, whole


def test_only_the_moral_model_has_latents_beyond_chance(demo_run):
    moral, _ = outcome(demo_run, "moral-small", 0)
    untrained, _ = outcome(demo_run, "untrained-small", 0)
    assert moral["careful"].sum() > 20
    assert moral.loc[moral["careful"], "replicated"].mean() > 0.4  # by chance 1/20
    assert untrained["careful"].sum() < 10


@pytest.mark.parametrize("seed", SEEDS)
def test_alignment_of_the_moral_model_beats_shuffled_labels_on_rows_it_never_saw(demo_run, seed):
    _, measured = outcome(demo_run, "moral-small", seed)
    assert measured.loc["spearman minus shuffled", "ci_low"] > 0
    assert measured.loc["opposing_similarity minus shuffled", "ci_high"] < 0
    assert measured.loc["gradient minus untuned", "value"] > 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_alignment_of_the_untrained_model_does_not(demo_run, seed):
    _, measured = outcome(demo_run, "untrained-small", seed)
    assert measured.loc["spearman minus shuffled", "ci_low"] < 0
    assert measured.loc["gradient minus untuned", "value"] < 0.05


def test_over_seeds_the_margin_between_the_two_models_is_wide(demo_run):
    means = {
        model: sum(outcome(demo_run, model, seed)[1].loc["gradient minus untuned", "value"] for seed in SEEDS)
        / len(SEEDS)
        for model in ("moral-small", "untrained-small")
    }
    assert means["moral-small"] > 0.12
    assert means["untrained-small"] < 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_even_where_alignment_works_it_is_not_told_from_its_best_control(demo_run, seed):
    """Aligned beats shuffled labels, and yet ridge on the stream does about as well: the controls say different things."""
    _, measured = outcome(demo_run, "moral-small", seed)
    assert measured.loc["gradient minus best control", "ci_low"] < 0
