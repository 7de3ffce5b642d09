"""Every family of the table: read through nnsight as raw hooks see it, or refused with the reason; the book lists them."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from activations.families import FAMILIES, REFUSED, hooked_streams, random_model, random_module
from activations.two_devices import FIRST, SECOND, Devices, spread
from conftest import byte_tokenizer

from lib.activations import extraction, models, sources
from lib.run.files import PROJECT

ACTIONS = ["lying to a friend", "helping", "keeping a promise that nobody else remembers", "a", "not caring at all"]


def expected_poolings(streams, action):
    of_action = streams[:, : len(action.encode())]
    return [streams.mean(1), streams[:, 1:].mean(1), of_action.mean(1), streams[:, -1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_pooled_streams_equal_raw_hooks(name):
    """Whatever side the tokenizer pads on: the companion pads by itself."""
    model, family = random_model(name), FAMILIES[name]
    models.check_residual_stream(model)
    prompts = extraction.tokenize(model.tokenizer, ACTIONS)
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        pooled = extraction.pooled_residuals(model, prompts, rows=range(len(ACTIONS))).cpu().numpy()
        assert pooled.shape == (4, 3, len(ACTIONS), 32)
        for row, (action, ids) in enumerate(zip(prompts.actions, prompts.tokens, strict=True)):
            streams = hooked_streams(model._module, ids, family.blocks)
            np.testing.assert_allclose(pooled[:, :, row], expected_poolings(streams, action), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_and_final_norm_are_where_the_table_says(name):
    raw, family = random_module(FAMILIES[name]), FAMILIES[name]
    path, blocks = models._blocks(raw)
    assert (path, blocks) == (family.blocks, raw.get_submodule(family.blocks))
    assert models._final_norm(raw) == family.norm


@pytest.mark.parametrize("name", FAMILIES)
def test_an_edit_of_a_block_reaches_the_logits_as_a_raw_hook_does(name):
    """Steering sets the output of a block: a family whose blocks return a tuple keeps the rest of it."""
    model, family = random_model(name), FAMILIES[name]
    ids = torch.tensor([[5, 6, 7, 8]], device=model._module.device)
    layer = models.decoder_layers(model)[1]
    with torch.no_grad(), model.trace({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, use_cache=False):
        layer.output = layer.output * 0.5
        edited = model.output.logits.save()

    def halve(module, inputs, output):
        return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

    block = model._module.get_submodule(family.blocks)[1]
    untouched = model._module(ids, use_cache=False).logits
    handle = block.register_forward_hook(halve)
    expected = model._module(ids, use_cache=False).logits
    handle.remove()
    torch.testing.assert_close(edited, expected, rtol=1e-5, atol=1e-6)
    assert (expected - untouched).abs().max() > 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_checked_is_refused_with_the_reason(name):
    family, reason = REFUSED[name]
    model = models.traceable(random_module(family), byte_tokenizer())
    with pytest.raises(models.ModelError, match=reason):
        models.check_residual_stream(model)


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path):
    from transformers import T5Config

    T5Config(num_layers=2, d_model=8, vocab_size=258).save_pretrained(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(models.ModelError, match=r"\(t5\) is not a decoder-only language model"):
        sources.configuration(str(tmp_path))


def test_the_book_lists_the_families_of_this_table():
    text = " ".join((PROJECT / "docs" / "own.md").read_text(encoding="utf-8").split())
    (listed,) = re.findall(r"tried with a tiny model of each of these families: (.*?)\. ", text)
    assert listed == ", ".join(sorted(FAMILIES, key=str.lower))


# The stand-in for devices does not follow heads tied to the embedding, nor the kernels of experts.
ON_TWO = [
    "GPT-J",
    "GPT-NeoX, Pythia",
    "Granite",
    "Llama 3",
    "Llama 4 (text)",
    "Mistral",
    "OLMo 2",
    "Phi",
    "Qwen2",
    "Qwen3",
]


@pytest.mark.parametrize("name", ON_TWO)
def test_on_two_devices_the_streams_are_those_of_one(name):
    """accelerate's own hooks move the stream between the devices; the last block and the norm lie on the second."""
    family = FAMILIES[name]
    one, raw = random_model(name), random_module(family)
    prompts = extraction.tokenize(one.tokenizer, ACTIONS)
    expected = extraction.pooled_residuals(one, prompts, rows=range(len(ACTIONS)))
    with torch.no_grad(), Devices():
        two = models.traceable(spread(raw, family.blocks), byte_tokenizer())
        assert models.input_device(two) == FIRST
        assert {str(weight.device) for weight in raw.parameters()} == {str(FIRST), str(SECOND)}
        models.check_residual_stream(two)
        pooled = extraction.pooled_residuals(two, prompts, rows=range(len(ACTIONS)))
        assert pooled.device == FIRST
        torch.testing.assert_close(pooled.cpu(), expected, rtol=1e-6, atol=1e-6)
        profile = extraction.norm_profile(two, prompts, rows=range(len(ACTIONS)))
    pd.testing.assert_frame_equal(profile, extraction.norm_profile(one, prompts, rows=range(len(ACTIONS))))
