"""What the demo must show, because its models were made so: known answers, with a margin."""

import pandas as pd
import pytest

from lib import store
from lib.sae import layers, train

pytestmark = pytest.mark.pipeline


def careful_latents(demo_run, model):
    """Latents that pass the careful criterion in an autoencoder of one demo model, at the demo's settings."""
    annotations = pd.read_parquet(demo_run / "vectors" / "annotations.parquet")
    exploded = pd.read_parquet(demo_run / "vectors" / "exploded.parquet")
    activations = store.open_store(demo_run / "activations" / model)
    rows = layers.split_rows(activations, annotations, exploded, 2, "mean", "grouped")
    recipe = train.Recipe(16, 200.0, 60, 1e-3, 256)
    sae, _ = train.train(rows["train"].x, rows["validation"].x, recipe, model)
    return int(layers.identify(sae, rows["validation"], 200, 0)["careful"].sum())


def test_only_the_moral_model_has_latents_beyond_chance(demo_run):
    assert careful_latents(demo_run, "moral-small") > 100
    assert careful_latents(demo_run, "untrained-small") < 10
