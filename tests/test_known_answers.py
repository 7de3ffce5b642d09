"""What the demo must show, because its models were made so: known answers, with a margin."""

from functools import cache

import pandas as pd
import pytest

from lib import profiles, runs, store
from lib.parameters import STAGES
from lib.sae import align, arms, evaluate, layers, train

pytestmark = pytest.mark.pipeline

SEEDS = (0, 1, 2)


@cache
def outcome(demo_run, model, seed):
    """Careful latents of one demo model's autoencoder, and the table of its arms on test rows, at the demo's settings."""
    annotations = pd.read_parquet(demo_run / "vectors" / "annotations.parquet")
    exploded = pd.read_parquet(demo_run / "vectors" / "exploded.parquet")
    profile = profiles.load_profile("profiles/demo.yaml")
    training, aligning = (
        runs.build(STAGES[name].parameters, profile.stage_parameters(name) | {"seed": seed}, "demo")
        for name in ("05_sparse_autoencoders", "06_feature_alignment")
    )
    activations = store.open_store(demo_run / "activations" / model)
    rows = layers.split_rows(activations, annotations, exploded, training.layers[0], training.pooling, training.split)
    sae, _ = train.train(rows["train"].x, rows["validation"].x, layers.training_recipe(training), model)
    table = layers.identify(sae, rows, training.permutations, seed)
    recipe, test = arms.alignment_recipe(aligning), rows["test"]
    chosen = arms.selection_of("untuned", table, seed)
    applied = {"untuned": evaluate.apply(sae, chosen, test.x)}
    for arm in ("aligned", "shuffled"):
        parts = [arms.labels_of(arm, rows, seed)[side][:2] for side in ("train", "validation")]
        applied[arm] = evaluate.apply(align.align(sae, chosen, *parts, recipe, arm)[0], chosen, test.x)
    measured = evaluate.evaluate(applied, test.x, test.vectors, test.actions, 200, seed)
    whole = measured[(measured["category"] == "all") & (measured["arm"] == "aligned")].set_index("metric")
    return table, whole


def test_only_the_moral_model_has_latents_beyond_chance(demo_run):
    moral, _ = outcome(demo_run, "moral-small", 0)
    untrained, _ = outcome(demo_run, "untrained-small", 0)
    assert moral["careful"].sum() > 100
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
        model: sum(outcome(demo_run, model, seed)[1].loc["spearman minus shuffled", "value"] for seed in SEEDS)
        / len(SEEDS)
        for model in ("moral-small", "untrained-small")
    }
    assert means["moral-small"] > 0.08
    assert abs(means["untrained-small"]) < 0.05
