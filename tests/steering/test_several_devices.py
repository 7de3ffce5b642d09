"""Steering of a model whose blocks lie on two devices, with accelerate's own hooks between them: it is that on one."""

from dataclasses import replace

import pandas as pd
import pytest
from activations.two_devices import FIRST, SECOND, Devices, open_on_two

from lib.activations import models
from lib.steering import answering, costs, generation, interventions, loading
from lib.steering.interventions import Intervention
from lib.steering.loading import ArmLoader
from tests.steering.test_generation import PROMPTS, SAMPLED, WIDTH, folders, told  # noqa: F401

TEXTS = pd.DataFrame({"sentence": [1, 2], "language": ["en", "zh"], "text": ["The bus is late.", "图书馆开门了。"]})


@pytest.fixture(scope="module")
def two(tiny_model):
    return open_on_two(str(tiny_model))


def steered(model, chosen, folders, directory):  # noqa: F811
    """Run what notebook 07 runs; return the bytes of every file of answers, and the table of losses."""
    contrasts = {layer: loading.random_direction(WIDTH, layer) for layer in (0, 1)}
    loader = ArmLoader(**folders, devices=generation.layer_devices(model), contrasts=contrasts)
    prompts = pd.DataFrame({"id": ["a", "b", "c"], "dimension": "Safety", "prompt": PROMPTS})
    answering.answer_stage(model, chosen, load_arm=loader, prompts=prompts, directory=directory)
    files = {path.name: path.read_bytes() for path in directory.glob("**/*.jsonl")}
    return files, costs.text_losses(model, interventions.to_answer(chosen)["."], load_arm=loader, texts=TEXTS)


def test_on_two_devices_answers_receipts_and_losses_are_those_of_one(tiny_model, two, folders, tmp_path):  # noqa: F811
    """Every kind of arm, at a layer of either device and of both at once, with all that it brings."""
    arms = ["baseline", "aligned", *interventions.DIRECTED]
    keys = {"layers": [0, 1], "steered_layers": [0, 1], "replicates": 1, "sweep_prompts": 0, "features": "selected"}
    chosen = told(replace(SAMPLED, max_new_tokens=3), arms=arms, **keys)
    expected, expected_losses = steered(models.open_model(str(tiny_model)), chosen, folders, tmp_path / "one")
    with Devices():
        assert list(generation.layer_devices(two).values()) == [FIRST, SECOND, SECOND]
        found, losses = steered(two, chosen, folders, tmp_path / "two")
    assert len(expected) == 5
    assert found == expected
    pd.testing.assert_frame_equal(losses, expected_losses)


def test_an_edit_that_lies_on_another_device_than_its_block_fails(two, folders):  # noqa: F811
    with Devices():
        arm = ArmLoader(**folders, devices=dict.fromkeys((0, 1), FIRST))(Intervention("aligned", (0, 1)))
    with Devices(), pytest.raises(Exception, match=f"at least two devices, {FIRST} and {SECOND}"):
        generation.answer_batch(two, arm, PROMPTS, decoding=SAMPLED, seed=0)
