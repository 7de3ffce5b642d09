"""Other words around an action are another reading of the model; the first block's input is kept as a control."""

import numpy as np
import pytest
import torch
from activations.families import FAMILIES, hooked_streams, random_model

from lib.activations import extraction, sources
from lib.comparison.twins import twin_of
from lib.run.files import PROJECT
from lib.run.profile import load_profile
from lib.run.validation import ParameterError

ACTIONS = ["lying to a friend", "helping", "keeping a promise that nobody else remembers"]
TEMPLATES = ["{action}", "Is it moral to {action}?", "Ethik: {action} ist", "{action} is morally"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_pooled_streams_of_a_template_equal_raw_hooks_on_its_text(template):
    model = random_model("Qwen3")
    prompts = extraction.tokenize(model.tokenizer, ACTIONS, template=template)
    pooled = extraction.pooled_residuals(model, prompts, rows=range(len(ACTIONS))).cpu().numpy()
    before, after = template.split("{action}")
    for row, action in enumerate(prompts.actions):
        ids = model.tokenizer(before + action + after)["input_ids"]  # a token per byte
        streams = hooked_streams(model._module, ids)
        of_action = streams[:, len(before) : len(before) + len(action)]
        expected = [streams.mean(1), streams[:, 1:].mean(1), of_action.mean(1), streams[:, -1]]
        np.testing.assert_allclose(pooled[:, :, row], expected, atol=1e-5)


def test_a_prompt_of_one_token_is_that_token_in_every_pooling_and_has_no_leading_one():
    model = random_model("Qwen3")
    prompts = extraction.tokenize(model.tokenizer, ["a", "b"], template="{action}")
    pooled = extraction.pooled_residuals(model, prompts, rows=range(2)).cpu().numpy()
    for row, ids in enumerate(prompts.tokens):
        streams = hooked_streams(model._module, ids)
        np.testing.assert_allclose(pooled[:, :, row], [streams[:, 0]] * 4, atol=1e-6)
    profile = extraction.norm_profile(model, prompts, rows=range(2))
    assert set(profile["position"]) == {"last"}
    assert (profile["n"] == 2).all()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_token_that_begins_with_the_space_before_the_action_belongs_to_it(template):
    tokenizer = sources.tokenizer(str(PROJECT / "data/demo/models/moral-small"))
    prompts = extraction.tokenize(tokenizer, ACTIONS, template=template)
    for action, ids, inside in zip(prompts.actions, prompts.tokens, prompts.in_action, strict=True):
        assert tokenizer.decode(ids[inside]).strip() == action


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_what_the_first_block_reads_over_the_actions_tokens(name):
    model, read = random_model(name), []
    block = model._module.get_submodule(FAMILIES[name].blocks)[0]
    prompts = extraction.tokenize(model.tokenizer, ACTIONS, template="Is it moral to {action}?")
    wanted = [ACTIONS[0], ACTIONS[2]]
    found = extraction.embeddings(model, prompts, actions=wanted, token_budget=80).set_index("action")
    assert sorted(found.index) == sorted(wanted)

    def keep(module, args, kwargs):
        read.append((args[0] if args else kwargs["hidden_states"])[0].detach())

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    for action in wanted:
        model._module(torch.tensor([model.tokenizer(f"Is it moral to {action}?")["input_ids"]]), use_cache=False)
        expected = read.pop()[15 : 15 + len(action)].mean(0)
        np.testing.assert_allclose(found.loc[action].to_numpy(np.float32), expected.numpy(), atol=1e-6)
    handle.remove()


def test_a_template_makes_one_more_reading_of_a_model_and_its_twin_has_the_same(tmp_path):
    demo = (PROJECT / "profiles/demo.yaml").read_text(encoding="utf-8")
    more = [
        "  - {name: asked, path: data/demo/models/moral-small, template: 'Is it moral to {action}?'}",
        "  - {name: asked-untrained, like: asked}",
        "  - {name: bare-untrained, like: asked, template: '{action}'}",
        "sae_model: moral-small",
    ]
    file = tmp_path / "profile.yaml"
    file.write_text(demo.replace("sae_model: moral-small", "\n".join(more)), encoding="utf-8")
    profile = load_profile(file)
    of = {name: profile.stage_parameters("activations", name) for name in profile.sources}
    assert {name: of[name]["template"] for name in ("moral-small", "asked", "asked-untrained", "bare-untrained")} == {
        "moral-small": "{action} is morally",
        "asked": "Is it moral to {action}?",
        "asked-untrained": "Is it moral to {action}?",
        "bare-untrained": "{action}",
    }
    twins = {"asked-untrained": "asked", "bare-untrained": "asked", "untrained-small": "moral-small"}
    assert profile.twins == profile.stage_parameters("comparison")["twins"] == twins
    assert twin_of("moral-small", profile.stage_parameters("claims")["twins"]) == "untrained-small"
    asked = profile.model_copy(update={"sae_model": "asked", "untrained_twin": None})
    assert twin_of("asked", asked.stage_parameters("claims")["twins"]) == "bare-untrained"
    assert of["asked"]["model_source"] == of["moral-small"]["model_source"] == of["bare-untrained"]["model_source"]


@pytest.mark.parametrize("template", ["is it moral?", "{action} or {action}", "{text}", "{action!r}", "{action"])
def test_a_template_without_one_place_for_the_action_is_refused(template, tmp_path):
    demo = (PROJECT / "profiles/demo.yaml").read_text(encoding="utf-8")
    entry = "path: data/demo/models/moral-small"
    file = tmp_path / "profile.yaml"
    file.write_text(demo.replace(entry, f"{entry}, template: {template!r}"), encoding="utf-8")
    with pytest.raises(ParameterError, match=r"line 7: models.0.template: should hold \{action\} once"):
        load_profile(file)
