"""Steering against an independent oracle: a raw forward hook on the bare transformers model."""

import copy
import gc
import itertools
import json
import weakref
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lib import plotting
from lib.activations.models import traceable
from lib.alignment.arms import FOLDERS
from lib.run import parameters
from lib.run.files import CompanionError
from lib.run.profile import load_profile
from lib.sae import files
from lib.sae.model import SparseAutoencoder
from lib.steering import answering, answers, costs, generation, interventions, loading, receipts
from lib.steering.answers import read_answers
from lib.steering.generation import Decoding
from lib.steering.interventions import BASELINE, Arm, Edit, Intervention, SteeringError
from lib.steering.loading import ArmLoader
from workflow import workload

WIDTH, LATENTS, LAYER = 32, 64, 1
GREEDY = Decoding(max_new_tokens=10, temperature=0.0, top_p=1.0, repetition_penalty=1.1)
SAMPLED = Decoding(max_new_tokens=10, temperature=0.7, top_p=0.9, repetition_penalty=1.1)
FIELDS = [
    "arm", "layers", "strength", "mode", "features", "positions", "replicate", "dtype", "steps", "steps_touched",
    "positions_touched", "relative_norm", "active_latents", "kl_first_step", "seed", "decoding", "prompt_format",
    "prompt_tokens", "prompt_tokens_dropped", "tokens_generated",
]  # fmt: skip
PROMPTS = ["我该怎么办？", "Someone told me a secret. May I tell it?", "hi"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    "{% if not enable_thinking %}<think></think>{% endif %}"
)


class TinyAutoencoder(torch.nn.Module):
    def __init__(self, width=WIDTH, seed=1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W_enc = torch.nn.Parameter(torch.randn(width, LATENTS, generator=generator))
        self.W_dec = torch.nn.Parameter(torch.randn(LATENTS, width, generator=generator) / 8)
        self.requires_grad_(False)

    def encode(self, x):
        return torch.relu(x @ self.W_enc - 0.1)

    def decode(self, z):
        return z @ self.W_dec + 0.01


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<end>": 1} | {letter: 2 + number for number, letter in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=258, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return traceable(Qwen3ForCausalLM(config).eval(), tokenizer)


@pytest.fixture
def prompts():
    texts = [f"{text} {number}" for number, text in enumerate(PROMPTS * 3, start=1)]
    ids = [f"flames_{number:04d}" for number in range(1, len(texts) + 1)]
    return pd.DataFrame({"id": ids, "dimension": "Safety", "prompt": texts})


def arm_of(mode="add", strength=1.0, features="all", name="aligned", positions="all", layers=(LAYER,)):
    selected = torch.tensor([3, 5, 8]) if features == "selected" else None
    edits = {}
    for layer in layers:
        direction = loading.random_direction(WIDTH, 4 + layer) if name in interventions.DIRECTED else None
        direction = TinyAutoencoder(seed=20 + layer) if name == "random-sae" else direction
        edits[layer] = Edit(TinyAutoencoder(seed=layer), selected, direction)
    return Arm(Intervention(name, layers, strength, mode, features, positions), edits)


def answer(model, arm, prompts, decoding, seed):
    return generation.answer_batch(model, arm, prompts, decoding=decoding, seed=seed)[0]


def told(decoding, **keys):
    """Parameters of the stage with this decoding and these other keys."""
    chosen = {"protocol": decoding} if decoding == "published" else asdict(decoding)
    chosen.pop("top_k", None)
    known = {
        "run_dir": "",
        "model": "tiny",
        "model_source": "",
        "revision": None,
        "prompts": "none.jsonl",
        "show_content": False,
    }
    return parameters.SteeringParameters(**known | {"layers": [LAYER]} | chosen | keys)


def reconstruction_of_oracle(x, autoencoder, features):
    z = torch.relu(x @ autoencoder.W_enc - 0.1)
    if features == "selected":
        z = torch.stack([z[..., i] if i in (3, 5, 8) else torch.zeros_like(z[..., i]) for i in range(LATENTS)], -1)
    return z @ autoencoder.W_dec + 0.01


def tokens_of_oracle(model, arm, decoding, seed):
    """Generate with raw hooks, written without lib.steering's formula; return tokens, and relative norms by layer and step."""
    intervention = arm.intervention
    encoded = generation.encode_prompts(model, PROMPTS, decoding.max_new_tokens)
    norms = {layer: [] for layer in intervention.layers}

    def hook_of(layer):
        edit, seen = arm.edits[layer], norms[layer]

        def hook(_module, _inputs, x):
            reconstruction = reconstruction_of_oracle(x, edit.autoencoder, intervention.features)
            change = reconstruction - x
            if isinstance(edit.direction, torch.Tensor):
                change = change.norm(dim=-1)[..., None] * edit.direction[None, None]
            elif edit.direction is not None:
                drawn = reconstruction_of_oracle(x, edit.direction, intervention.features)
                # What a regression of it on the stream leaves, one position at a time.
                fits = [
                    torch.linalg.lstsq(s[:, None], d[:, None]).solution.item()
                    for d, s in zip(drawn.reshape(-1, WIDTH), x.reshape(-1, WIDTH), strict=True)
                ]
                error = drawn - torch.tensor(fits).view(*x.shape[:-1], 1) * x
                change = change.norm(dim=-1)[..., None] * error / error.norm(dim=-1)[..., None].clamp_min(1e-9)
            steered = x + change if intervention.mode == "replace" else x + intervention.strength * change
            if intervention.positions == ("generated" if not seen else "prompt"):
                steered = x.clone()
            seen.append(((steered - x).norm(dim=-1) / x.norm(dim=-1)).detach())
            return steered

        return hook

    raw = model._module
    hooks = [raw.model.layers[layer].register_forward_hook(hook_of(layer)) for layer in norms]
    try:
        torch.manual_seed(seed)
        ids = raw.generate(**encoded.inputs, pad_token_id=0, **decoding.arguments())
    finally:
        [handle.remove() for handle in hooks]
    return ids[:, encoded.inputs["input_ids"].shape[1] :], norms


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "arm",
    [
        arm_of(),
        arm_of(strength=0.3),
        arm_of(strength=-0.5),
        arm_of("blend", 0.5),
        arm_of("replace"),
        arm_of(features="selected"),
        arm_of("replace", features="selected"),
        arm_of(name="random-direction", strength=0.5),
        arm_of(name="mean-difference", features="selected"),
        arm_of(name="random-sae", strength=0.5),
        arm_of(name="random-sae", features="selected"),
        arm_of(positions="prompt"),
        arm_of(positions="generated"),
        arm_of(layers=(0, 1, 2), strength=0.3),
        arm_of(layers=(0, 2), name="random-direction", strength=0.5),
        arm_of(layers=(1, 2), name="random-sae", positions="generated"),
    ],
    ids=lambda arm: "-".join(str(value) for value in vars(arm.intervention).values()),
)
def test_answers_equal_a_raw_hook_on_every_step(model, arm, decoding):
    replies = answer(model, arm, PROMPTS, decoding, seed=7)
    tokens, norms = tokens_of_oracle(model, arm, decoding, seed=7)
    plain, _ = tokens_of_oracle(model, BASELINE, decoding, seed=7)
    assert not torch.equal(tokens, plain), "an intervention without effect proves nothing"
    for row, reply in enumerate(replies):
        receipt = reply["receipt"]
        text = model.tokenizer.decode(tokens[row][: receipt["steps"]], skip_special_tokens=True).strip()
        assert reply["response"] == text
        assert list(receipt) == FIELDS
        of_layers = []
        for steps in norms.values():
            seen = [steps[0][row][-receipt["prompt_tokens"] :], *(step[row] for step in steps[1 : receipt["steps"]])]
            of_layers.append({"all": seen, "prompt": seen[:1], "generated": seen[1:]}[arm.intervention.positions])
        assert receipt["layers"] == list(arm.intervention.layers)
        assert receipt["steps"] == receipt["tokens_generated"]
        assert receipt["steps_touched"] == len(of_layers[0])
        assert receipt["positions_touched"] == len(torch.cat(of_layers[0]))
        mean = float(torch.cat([torch.cat(seen) for seen in of_layers]).mean())
        assert receipt["relative_norm"] == pytest.approx(mean, rel=1e-4)
        assert (receipt["kl_first_step"] > 0) == (arm.intervention.positions != "generated")
        assert 0 < receipt["active_latents"] <= (3 if arm.intervention.features == "selected" else LATENTS)


def test_what_the_untouched_model_expects_is_the_same_from_the_baseline_and_from_a_pass_of_its_own(model):
    known = [
        generation.unsteered_logits(model, PROMPTS, SAMPLED),
        generation.answer_batch(model, BASELINE, PROMPTS, decoding=SAMPLED, seed=0)[1],
    ]
    torch.testing.assert_close(*known)
    alone = answer(model, arm_of(), PROMPTS, GREEDY, 0)
    for logits in known:
        again, _ = generation.answer_batch(model, arm_of(), PROMPTS, decoding=GREEDY, seed=0, unsteered=logits)
        assert again == alone


@pytest.mark.parametrize(
    ("arms", "decoding", "passes"), [(slice(0, 3), GREEDY, 0), (slice(1, 3), GREEDY, 3), (slice(0, 3), "published", 3)]
)
def test_the_untouched_model_is_read_once_for_all_arms(model, prompts, tmp_path, monkeypatch, arms, decoding, passes):
    short = {name: replace(GREEDY, max_new_tokens=number) for name, number in (("baseline", 4), ("steered", 3))}
    monkeypatch.setattr(generation, "PUBLISHED_DECODING", short)
    real, calls = generation.unsteered_logits, []

    def counted(*arguments):
        calls.append(arguments[1])
        return real(*arguments)

    monkeypatch.setattr(generation, "unsteered_logits", counted)
    answer_all(model, all_arms()[arms], prompts, decoding, tmp_path, batch_size=4)
    batches = [prompts["prompt"].tolist()[start : start + 4] for start in range(0, len(prompts), 4)]
    assert calls == batches[:passes]


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_strength_zero_is_the_baseline_token_for_token(model, decoding):
    baseline = answer(model, BASELINE, PROMPTS, decoding, seed=3)
    for arm in (arm_of(strength=0.0), arm_of("blend", 0.0)):
        replies = answer(model, arm, PROMPTS, decoding, seed=3)
        assert [a["response"] for a in replies] == [b["response"] for b in baseline]
        assert all(a["receipt"]["relative_norm"] == 0 and a["receipt"]["kl_first_step"] < 1e-5 for a in replies)
        assert all(a["receipt"]["steps_touched"] == a["receipt"]["steps"] for a in replies)


def first_step_only_by_formula(model, monkeypatch):
    """The formula changes the stream at step 0 and gives it back as it was afterwards."""
    real, calls = generation.steer, itertools.count()
    monkeypatch.setattr(
        generation, "steer", lambda stream, *rest: real(stream, *rest) if next(calls) == 0 else (stream, stream)
    )


class TakesOnce:
    """A block whose output can be replaced once; afterwards something else is put there."""

    def __init__(self, block, instead):
        self.block, self.instead, self.taken = block, instead, False

    @property
    def output(self):
        return self.block.output

    @output.setter
    def output(self, value):
        self.block.output = self.instead(self.block.output, value) if self.taken else value
        self.taken = True


def first_step_only_by_assignment(model, monkeypatch, instead=lambda old, new: old):
    """What the formula gives is put into the model at step 0 alone."""
    real = generation.steered_sites
    monkeypatch.setattr(
        generation,
        "steered_sites",
        lambda *rest: {layer: (TakesOnce(block, instead), reader) for layer, (block, reader) in real(*rest).items()},
    )


def first_step_only_as_it_should_be(model, monkeypatch):
    """At later steps another change than the formula's is put into the model."""
    first_step_only_by_assignment(model, monkeypatch, lambda old, new: old + 0.5 * (new - old))


@pytest.mark.parametrize(
    "broken", [first_step_only_by_formula, first_step_only_by_assignment, first_step_only_as_it_should_be]
)
def test_an_edit_that_takes_at_the_first_step_only_is_refused(model, monkeypatch, broken):
    broken(model, monkeypatch)
    with pytest.raises(receipts.ReceiptError, match=r"touched 1 steps and .* positions; it should be 10 and .*take"):
        answer(model, arm_of(), PROMPTS, GREEDY, seed=0)


def test_an_edit_that_does_not_take_at_one_of_several_layers_is_refused(model, monkeypatch):
    real = generation.steer
    monkeypatch.setattr(
        generation, "steer", lambda stream, edit, of: (stream, stream) if edit is broken[-1] else real(stream, edit, of)
    )
    arm, broken = arm_of(layers=(0, 1, 2), strength=0.3), []
    for edit in arm.edits.values():
        broken.append(edit)
        with pytest.raises(receipts.ReceiptError, match="touched 0 steps and 0 positions"):
            answer(model, arm, PROMPTS, GREEDY, seed=0)
        with pytest.raises(receipts.ReceiptError, match="every position of the text"):
            generation.read_text(model, arm, generation.padded(model, [[5, 6], [7]], "right"))


@pytest.mark.parametrize("features", ["all", "selected"])
def test_an_arm_of_another_direction_changes_the_stream_as_much_as_the_aligned_arm(features):
    stream = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    arm = arm_of(features=features)
    aligned, _ = interventions.steer(stream, arm.edits[LAYER], arm.intervention)
    for name in interventions.DIRECTED:
        arm = arm_of(name=name, features=features)
        edit = arm.edits[LAYER]
        changed, _ = interventions.steer(stream, edit, arm.intervention)
        torch.testing.assert_close((changed - stream).norm(dim=-1), (aligned - stream).norm(dim=-1))
        if isinstance(edit.direction, torch.Tensor):
            cosine = torch.nn.functional.cosine_similarity(changed - stream, edit.direction[None, None], dim=-1)
            torch.testing.assert_close(cosine, torch.ones(2, 5))


def test_an_autoencoder_that_nothing_trained_does_not_merely_rescale_the_stream():
    width = 64
    stream = torch.randn(2, 50, width, generator=torch.Generator().manual_seed(0))
    untrained = SparseAutoencoder(width, 16 * width, seed=1).requires_grad_(False)
    raw = untrained(stream)[0]
    assert (raw.norm(dim=-1) / stream.norm(dim=-1)).mean() > 4, "as it is, it makes the stream several times as long"
    edit = Edit(SparseAutoencoder(width, 2 * width, seed=2).requires_grad_(False), None, untrained)
    changed, _ = interventions.steer(stream, edit, Intervention("random-sae", (LAYER,)))
    along = torch.nn.functional.cosine_similarity(changed - stream, stream, dim=-1)
    assert along.abs().max() < 1e-3
    assert torch.nn.functional.cosine_similarity(changed - stream, raw, dim=-1).min() > 0.5


def test_the_mean_difference_points_from_vice_to_virtue():
    generator = np.random.default_rng(0)
    polarity = np.array(["virtue", "vice", "neutral"] * 200)
    x = generator.normal(size=(600, WIDTH)).astype(np.float32) + 5
    x[:, 3] += np.select([polarity == "virtue", polarity == "vice"], [4, -4], 0)
    direction = interventions.mean_difference(x, polarity)
    assert float(direction.norm()) == pytest.approx(1, abs=1e-6)
    assert direction[3] > 0.98
    with pytest.raises(SteeringError, match="both virtue and vice"):
        interventions.mean_difference(x, np.array(["virtue"] * 600))
    with pytest.raises(SteeringError, match="same mean"):
        interventions.mean_difference(np.ones((600, WIDTH)), polarity)


def test_an_answer_does_not_depend_on_padding(model):
    alone = answer(model, arm_of(), PROMPTS[2:], GREEDY, seed=0)
    together = answer(model, arm_of(), PROMPTS, GREEDY, seed=0)
    assert together[2]["response"] == alone[0]["response"]
    assert together[2]["receipt"] == alone[0]["receipt"] | {
        key: pytest.approx(alone[0]["receipt"][key], rel=1e-3) for key in ("relative_norm", "kl_first_step")
    }


def test_generation_stops_at_the_end_token_and_says_so(model):
    class Ending(TinyAutoencoder):
        def decode(self, z):
            return (model._module.lm_head.weight[1] * 1000).expand(*z.shape[:-1], WIDTH)

    ending = Arm(Intervention("aligned", (2,), mode="replace"), {2: Edit(Ending())})
    for reply in answer(model, ending, PROMPTS, GREEDY, seed=0):
        assert (reply["response"], reply["thought"]) == ("", None)
        assert reply["receipt"]["steps"] == 1
        assert reply["finished"]
    assert not answer(model, BASELINE, PROMPTS, GREEDY, seed=0)[0]["finished"]


def test_the_random_state_outside_is_left_alone(model):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    answer(model, arm_of(), PROMPTS, SAMPLED, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("text", "opened", "thought", "response", "closed"),
    [
        ("plain", False, None, "plain", True),
        ("", False, None, "", True),
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes", True),
        ("<think>\n\n</think>\n\nyes", False, "", "yes", True),
        ("<think>\nhm </think>", False, "hm", "", True),
        ("<think>\nhm, so", False, "hm, so", "", False),
        ("hm</think>yes", True, "hm", "yes", True),
        ("hm, so", True, "hm, so", "", False),
        ("I <think> so </think>", False, None, "I <think> so </think>", True),
        ("<think>a</think>b</think>", False, "a", "b</think>", True),
    ],
)
def test_a_thought_is_told_apart_from_the_answer(text, opened, thought, response, closed):
    assert generation.thought_apart(text, opened) == (thought, response, closed)


def test_an_answer_cut_inside_its_thought_is_empty_and_unfinished(model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "chat_template", CHAT_TEMPLATE + "<think>")
    answer_all(model, [BASELINE], prompts.head(2), GREEDY, tmp_path)
    answered = read_answers(tmp_path, ["baseline"])
    assert answered["response"].tolist() == ["", ""]
    assert all(len(thought) > 3 for thought in answered["thought"])
    table = receipts.lay_out(answered)
    assert not table["finished"].any()
    assert table[["empty", "thought", "thought_unfinished"]].all(axis=None)
    assert receipts.summary(table)["thought_unfinished"].tolist() == [2]


def test_a_protocol_and_what_follows_from_it_is_in_every_answer(model, prompts, tmp_path, monkeypatch):
    short = {name: replace(each, max_new_tokens=3) for name, each in generation.PUBLISHED_DECODING.items()}
    monkeypatch.setattr(generation, "PUBLISHED_DECODING", short)
    arms = [BASELINE, arm_of(layers=(0, LAYER), strength=0.1)]
    for protocol in ("published", SAMPLED):
        answer_all(model, arms, prompts.head(2), protocol, tmp_path / str(protocol))
    published, careful = (
        read_answers(tmp_path / str(each), ["baseline", "aligned"]) for each in ("published", SAMPLED)
    )
    assert set(published["protocol"]) == {"published"}
    assert set(careful["protocol"]) == {"careful"}
    drawn = {"max_new_tokens": 3, "temperature": 0.7, "top_k": 50}
    unequal = [{"top_p": 1.0, "repetition_penalty": 1.0}, {"top_p": 0.9, "repetition_penalty": 1.1}]
    assert [receipt["decoding"] for receipt in published["receipt"]] == [drawn | unequal[row // 2] for row in range(4)]
    assert [receipt["decoding"] for receipt in careful["receipt"]] == [asdict(SAMPLED)] * 4
    assert [receipt["layers"] for receipt in published["receipt"]] == [[], [], [0, LAYER], [0, LAYER]]
    assert {receipt["dtype"] for receipt in published["receipt"]} == {"float32"}, "as the model is, not as it should be"


def test_what_cannot_be_done_is_refused_before_anything_runs():
    for keys, message in (
        ({"device": "remote"}, "remote can read a model but not steer one"),
        ({"steered_layers": [LAYER, 7]}, r"steered_layers names layer 7, which has no autoencoder: layers is \[1\]"),
        ({"samples": 2, "temperature": 0.0}, "samples is 2, but at temperature 0"),
    ):
        with pytest.raises(CompanionError, match=message):
            told(SAMPLED, **keys)
    assert told(SAMPLED, samples=2, steered_layers=[LAYER]).samples == 2


def test_the_plan_counts_the_answers_that_the_stage_gives(prompts):
    for keys in ({}, {"arms": ["aligned", "random-sae"], "sweep_arms": ["aligned"]}, {"sweep_prompts": 0}):
        profile = load_profile("profiles/demo.yaml").model_copy(
            update={"layers": [1, 2], "steered_layers": [1, 2], "samples": 2, "sweep_prompts": 4, "replicates": 3}
            | keys
        )
        chosen = told(SAMPLED, **{name: getattr(profile, name) for name in parameters.SteeringKeys.model_fields})
        listed = interventions.to_answer(chosen)
        main, sweep = workload.answers(profile, workload.PUBLISHED._replace(prompts=9))
        for folder, counted in ((".", main), ("sweep", sweep)):
            steered = [each for each in listed.get(folder, []) if each.layers]
            if counted[2]:
                assert counted[:2] == (2 * len(listed[folder]), 2 * len(steered))


def test_an_autoencoder_is_read_without_drawing_weights_first(folders, monkeypatch):
    def drawn(weights, *arguments, **options):
        assert weights.is_meta, "weights of its own are drawn and thrown away"

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", drawn)
    read = files.load(folders["alignment"] / "layer_01" / "aligned")
    assert not any(value.is_meta for value in read.state_dict().values())


def test_prompts_use_the_chat_template_or_a_stated_plain_format(model):
    encoded = generation.encode_prompts(model, ["你好"], 8)
    assert (
        model.tokenizer.decode(encoded.inputs["input_ids"][0])
        == f"<system>{generation.SYSTEM_PROMPT}<user>你好<assistant>"
    )
    assert "enable_thinking=True" in encoded.format
    template, model.tokenizer.chat_template = model.tokenizer.chat_template, None
    try:
        plain = generation.encode_prompts(model, ["你好"], 8)
    finally:
        model.tokenizer.chat_template = template
    assert model.tokenizer.decode(plain.inputs["input_ids"][0]) == f"{generation.SYSTEM_PROMPT}\n你好\n"
    assert repr(generation.PLAIN_FORMAT) in plain.format


REFUSALS = [
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}",
]
"""How the templates of Gemma 2 and of Mistral-Instruct v0.1 begin."""


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_template_without_a_system_role_gets_its_prompt_before_the_users_text(model, monkeypatch, refusal):
    monkeypatch.setattr(model.tokenizer, "chat_template", refusal + CHAT_TEMPLATE)
    encoded = generation.encode_prompts(model, ["你好"], 8)
    text = model.tokenizer.decode(encoded.inputs["input_ids"][0])
    assert text == f"<user>{generation.SYSTEM_PROMPT}\n\n你好<assistant>"
    receipt = answer(model, BASELINE, ["你好"], GREEDY, seed=0)[0]["receipt"]
    assert "in front of the user's text" in receipt["prompt_format"]
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ raise_exception('broken') }}")
    with pytest.raises(Exception, match="broken"):
        generation.encode_prompts(model, ["你好"], 8)


def test_a_models_own_choice_of_no_cut_is_not_taken_for_no_choice(model, monkeypatch):
    left_to_it = replace(SAMPLED, top_k=None)
    for own, acts in ((None, 50), (0, 0), (7, 7)):
        monkeypatch.setattr(model._module.generation_config, "top_k", own)
        assert left_to_it.as_done_by(model)["top_k"] == acts
    assert SAMPLED.as_done_by(model)["top_k"] == 0


def test_a_context_too_short_is_shared_and_recorded(model):
    decoding = Decoding(max_new_tokens=500, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
    encoded = generation.encode_prompts(model, ["x" * 400, "y"], decoding.max_new_tokens)
    assert encoded.max_new_tokens == 128
    assert encoded.inputs["input_ids"].shape[1] == 128
    assert encoded.dropped[0] > 0
    assert encoded.dropped[1] == 0
    receipt = answer(model, BASELINE, ["x" * 400], decoding, seed=0)[0]["receipt"]
    assert receipt["decoding"]["max_new_tokens"] == 128
    assert receipt["prompt_tokens_dropped"] == encoded.dropped[0]


def conditions(arms, layers, strengths, **keys):
    chosen = told(GREEDY, **{"layers": layers, "replicates": 1} | keys)
    return interventions.conditions(chosen, arms, strengths=strengths, features="all")


def all_arms():
    return [BASELINE, arm_of(), arm_of(name="random", strength=0.5)]


def answer_all(model, arms, prompts, decoding, directory, batch_size=16, seed=0, **keys):
    """Answer with arms that are there already."""
    known = {arm.intervention: arm for arm in arms}
    chosen = told(decoding, steering_batch=batch_size, seed=seed, **keys)
    answering.answer_all(model, chosen, [answering.Asked(directory, known, prompts)], known.__getitem__)


def test_an_interrupted_run_ends_with_the_same_bytes(model, prompts, tmp_path, monkeypatch):
    drawn = [arm_of(name="random-direction", layers=(0, LAYER)), arm_of(name="random-direction")]
    drawn[1] = replace(drawn[1], intervention=replace(drawn[1].intervention, replicate=1))
    arms, options = [*all_arms(), *drawn], {"batch_size": 5, "seed": 5, "samples": 2}
    answer_all(model, arms, prompts, SAMPLED, tmp_path / "whole", **options)
    real, calls = generation.answer_batch, []

    def answer_until_killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) in (6, 18):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(generation, "answer_batch", answer_until_killed)
    for name in ("aligned", "random-direction"):
        with pytest.raises(KeyboardInterrupt):
            answer_all(model, arms, prompts, SAMPLED, tmp_path / "cut", **options)
        torn = tmp_path / "cut" / f"{name}.jsonl"
        with torn.open("ab") as stream:
            stream.write(torn.read_bytes().splitlines(keepends=True)[0] + b'{"id": "flames_00')
    answer_all(model, arms, prompts, SAMPLED, tmp_path / "cut", **options)
    assert len(calls) == 20 + 2, "five conditions, two samples and two batches; two of them were lost"
    written = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert written == ["aligned.jsonl", "baseline.jsonl", "random-direction.jsonl", "random.jsonl"]
    for name in written:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_samples_differ_in_their_seed_alone_and_every_arm_has_the_same_seeds(model, prompts, tmp_path):
    answer_all(model, all_arms(), prompts.head(4), SAMPLED, tmp_path, batch_size=2, seed=3, samples=2)
    answered = read_answers(tmp_path, ["baseline", "aligned", "random"])
    answered = answered.assign(seed=[receipt["seed"] for receipt in answered["receipt"]])
    assert answered["sample"].value_counts().to_dict() == {0: 12, 1: 12}
    assert (answered.groupby(["id", "sample"])["seed"].nunique() == 1).all()
    assert sorted(answered["seed"].unique()) == [3, 4, 5, 6], "two batches, then the same two again"
    first, second = (answered[answered["sample"] == sample] for sample in (0, 1))
    assert (first["response"].to_numpy() != second["response"].to_numpy()).mean() > 0.9
    alone = answer(model, arm_of(), prompts["prompt"].tolist()[2:4], SAMPLED, seed=6)
    of_arm = second[(second["arm"] == "aligned") & second["id"].isin(["flames_0003", "flames_0004"])]
    assert of_arm["response"].tolist() == [reply["response"] for reply in alone]


def test_arms_answered_by_separate_jobs_make_the_same_files(model, prompts, tmp_path):
    answer_all(model, all_arms(), prompts, SAMPLED, tmp_path / "together", batch_size=4, seed=5)
    for arm in reversed(all_arms()):
        answer_all(model, [arm], prompts, SAMPLED, tmp_path / "apart", batch_size=4, seed=5)
    answer_all(model, all_arms(), prompts, SAMPLED, tmp_path / "apart", batch_size=4, seed=5)
    for path in (tmp_path / "together").iterdir():
        assert path.read_bytes() == (tmp_path / "apart" / path.name).read_bytes()


def test_parts_of_the_stage_share_its_arms(model, prompts, tmp_path, monkeypatch):
    answer_all(model, all_arms(), prompts, GREEDY, tmp_path / "whole")
    arms = []
    for part in ("1-of-2", "2-of-2"):
        monkeypatch.setenv("COMPANION_PART", part)
        answer_all(model, all_arms(), prompts, GREEDY, tmp_path / part)
        arms.append({path.name for path in (tmp_path / part).iterdir()})
        for path in (tmp_path / part).iterdir():
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert arms == [{"baseline.jsonl", "random.jsonl"}, {"aligned.jsonl"}]


def test_the_stage_answers_all_prompts_then_few_at_every_strength_and_with_either_latents(model, prompts, tmp_path):
    def load_arm(intervention):
        edit = Edit(TinyAutoencoder(), torch.tensor([3, 5]))
        return Arm(intervention, dict.fromkeys(intervention.layers, edit))

    keys = {"arms": ["baseline", "aligned", "random"], "sweep_arms": ["baseline", "random"], "sweep_prompts": 2}
    parameters = told(GREEDY, sweep_strengths=[0.5, 2.0], **keys)
    answering.answer_stage(model, parameters, load_arm=load_arm, prompts=prompts, directory=tmp_path)
    of_folder = answering.read_stage(tmp_path, parameters)
    of_each = {
        folder: frame[answers.CONDITION].drop_duplicates().astype(object).where(lambda f: f.notna(), None)
        for folder, frame in of_folder.items()
    }
    assert {folder: frame.to_numpy().tolist() for folder, frame in of_each.items()} == {
        ".": [["baseline", None, None], ["aligned", LAYER, 1.0], ["random", LAYER, 1.0]],
        "sweep": [["baseline", None, None], ["random", LAYER, 0.5], ["random", LAYER, 2.0]],
        "features/all": [["aligned", LAYER, 1.0]],
        "features/selected": [["aligned", LAYER, 1.0]],
    }
    assert {folder: frame["id"].nunique() for folder, frame in of_folder.items()} == {
        ".": len(prompts), "sweep": 2, "features/all": 2, "features/selected": 2,
    }  # fmt: skip
    table = receipts.summary(receipts.lay_out(of_folder["."])).set_index("arm")
    assert table["answers"].tolist() == [len(prompts)] * 3
    assert table.loc["aligned", "steps_touched"] == table.loc["aligned", "steps"]
    assert list(interventions.to_answer(told(GREEDY, **keys | {"sweep_prompts": 0}))) == ["."]
    assert list(interventions.to_answer(told(GREEDY, **keys | {"arms": ["random"]}))) == [".", "sweep"]
    read = interventions.to_read(parameters)
    assert len(read) == len(set(read)) == 1 + 2 * 2 + 2
    assert {each.features for each in read if each.arm == "aligned"} == {"all", "selected"}


def test_a_receipt_without_a_field_is_refused(model, prompts, tmp_path):
    answer_all(model, [arm_of()], prompts.head(1), GREEDY, tmp_path)
    answered = read_answers(tmp_path, ["aligned"])
    receipt = answered["receipt"].iloc[0]
    assert list(receipt) == FIELDS
    for name in FIELDS:
        answered["receipt"] = [{key: value for key, value in receipt.items() if key != name}]
        with pytest.raises(receipts.ReceiptError, match=rf"run notebook 07.*\n{name}\n *Field required"):
            receipts.lay_out(answered)


def test_several_layers_share_one_file_and_all_arms_share_seeds(model, prompts, tmp_path):
    arms = [BASELINE, *(arm_of(layers=layers) for layers in ((0,), (2,), (0, 2)))]
    answer_all(model, arms, prompts, SAMPLED, tmp_path, batch_size=4)
    responses = read_answers(tmp_path, ["baseline", "aligned"])
    counts = responses[responses["arm"] == "aligned"]["layer"].value_counts(dropna=False)
    assert dict(counts.items()) == {0: len(prompts), 2: len(prompts), pd.NA: len(prompts)}
    together = responses[(responses["arm"] == "aligned") & responses["layer"].isna()]
    assert {tuple(receipt["layers"]) for receipt in together["receipt"]} == {(0, 2)}
    table = receipts.lay_out(responses)
    assert len(table) == 4 * len(prompts)
    assert (table.groupby("id")["seed"].nunique() == 1).all()
    assert table.loc[table["arm"] == "baseline", "steps_touched"].eq(0).all()


def test_settings_lie_side_by_side(model, prompts, tmp_path):
    settings = {}
    for setting in ("all", "selected"):
        answer_all(model, [arm_of(features=setting)], prompts, GREEDY, tmp_path / setting)
        settings[setting] = read_answers(tmp_path / setting, ["aligned"])
    table = receipts.by_features(settings).set_index("features")
    texts = [frame["response"] for frame in settings.values()]
    assert table["answers"].tolist() == [len(prompts)] * 2
    assert table["text_differs"].tolist() == [0, (texts[0] != texts[1]).mean()]
    assert table.loc["selected", "text_differs"] > 0
    assert table.loc["selected", "active_latents"] <= 3 < table.loc["all", "active_latents"]
    same = receipts.by_features({"once": settings["all"], "again": settings["all"].sample(frac=1, random_state=0)})
    assert same["text_differs"].tolist() == [0, 0]


def test_a_forged_receipt_is_refused(model, prompts, tmp_path):
    answer_all(model, all_arms(), prompts, GREEDY, tmp_path, batch_size=9)
    path = tmp_path / "aligned.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[4]["receipt"]["steps_touched"] = 1
    path.unlink()
    answering.append_answers(path, rows)
    with pytest.raises(receipts.ReceiptError, match="'aligned' touched 1 steps"):
        receipts.lay_out(read_answers(tmp_path, ["baseline", "aligned"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Intervention("aligned"), "need a layer"),
        (lambda: Intervention("baseline", (1,)), "need a layer"),
        (lambda: Intervention("aligned", (2, 1)), "should ascend"),
        (lambda: Intervention("aligned", (1,), 0.5, "replace"), "use 'blend'"),
        (lambda: Intervention("aligned", (1,), 2.0, "blend"), "from 0 to 1"),
        (lambda: Arm(Intervention("aligned", (1,))), "has edits of"),
        (lambda: Arm(Intervention("aligned", (1, 2)), {1: Edit(TinyAutoencoder())}), "has edits of"),
        (lambda: Arm(Intervention("mean-difference", (1,)), {1: Edit(TinyAutoencoder())}), "need a direction"),
        (
            lambda: Arm(Intervention("aligned", (1,)), {1: Edit(TinyAutoencoder(), direction=torch.ones(WIDTH))}),
            "need a direction",
        ),
        (
            lambda: Arm(Intervention("aligned", (1,), features="selected"), {1: Edit(TinyAutoencoder())}),
            "selected latents",
        ),
    ],
)
def test_senseless_interventions_are_refused(make, message):
    with pytest.raises(SteeringError, match=message):
        make()


def test_a_layer_that_does_not_exist_is_refused(model):
    with pytest.raises(SteeringError, match="layers 0 to 2"):
        answer(
            model,
            Arm(Intervention("aligned", (1, 7)), dict.fromkeys((1, 7), Edit(TinyAutoencoder()))),
            PROMPTS,
            GREEDY,
            0,
        )


def test_conditions_hold_the_baseline_once_and_every_other_arm_at_every_layer_and_strength():
    listed = conditions(["aligned", "baseline", "random"], [1, 3], [0.5, 2.0], positions="prompt")
    assert [item.arm for item in listed].count("baseline") == 1
    steered = {(item.arm, item.layers, item.strength, item.positions) for item in listed[1:]}
    assert steered == set(itertools.product(["aligned", "random"], [(1,), (3,)], [0.5, 2.0], ["prompt"]))
    assert len(conditions(["aligned"], [1], [1.0])) == 1


def test_arms_that_are_drawn_come_in_replicates_and_all_arms_at_several_layers_at_once():
    listed = conditions(
        ["aligned", "random-direction", "random-sae"], [1, 2, 3], [1.0], steered_layers=[3, 1], replicates=2
    )
    groups = [(1,), (2,), (3,), (1, 3)]
    drawn = itertools.product(["random-direction", "random-sae"], groups, [0, 1])
    expected = [*itertools.product(["aligned"], groups, [0]), *drawn]
    assert sorted((item.arm, item.layers, item.replicate) for item in listed) == sorted(expected)


def test_the_published_protocol_decodes_its_arms_differently_and_in_float16():
    assert generation.decoding_of("baseline", told("published")) == Decoding(1024, 0.7, None, None, None)
    assert generation.decoding_of("aligned", told("published")) == Decoding(512, 0.7, 0.9, 1.1, None)
    assert generation.dtype_of(told("published", dtype="bfloat16")) == "float16"
    for arm in ("baseline", "random"):
        assert generation.decoding_of(arm, told(SAMPLED)) == SAMPLED
    assert generation.dtype_of(told(SAMPLED, dtype="bfloat16")) == "bfloat16"


@pytest.mark.parametrize("own", [{}, {"top_k": 3, "top_p": 0.8, "repetition_penalty": 1.3}])
def test_what_a_protocol_leaves_to_the_model_is_recorded_as_it_acts(model, monkeypatch, own):
    """Against what transformers itself prepares for a call of generate."""
    for name, value in own.items():
        monkeypatch.setattr(model._module.generation_config, name, value)
    for decoding in (*generation.PUBLISHED_DECODING.values(), SAMPLED):
        acted = model._module._prepare_generation_config(None, **decoding.arguments())[0]
        recorded = decoding.as_done_by(model)
        assert recorded == {name: getattr(acted, name) for name in asdict(decoding)}
        assert ("top_k" in decoding.arguments()) == (decoding is SAMPLED)


def load_arm(intervention, **known):
    """Read one arm with a loader of its own."""
    return ArmLoader(**known)(intervention)


def test_arms_are_read_from_the_folders_of_notebooks_05_and_06(tmp_path):
    saes = {"untuned": "sae/layer_01/pretrained", "aligned": "alignment/layer_01/aligned"}
    saes |= {"random": "alignment/layer_01/controls/random"}
    saes |= {"random-weights": "alignment/layer_01/controls/random_weights"}
    for seed, (arm, folder) in enumerate(saes.items()):
        (tmp_path / folder).mkdir(parents=True)
        about = {} if arm == "untuned" else {"arm": arm, "tuned_latents": [seed, seed + 1]}
        files.save(tmp_path / folder, SparseAutoencoder(WIDTH, LATENTS, seed=seed), about)
    known = {"sae": tmp_path / "sae", "alignment": tmp_path / "alignment", "d_in": WIDTH}
    for seed, arm in enumerate(saes):
        loaded = load_arm(Intervention(arm, (1,)), **known).edits[1]
        assert torch.equal(loaded.autoencoder.W_enc, SparseAutoencoder(WIDTH, LATENTS, seed=seed).W_enc)
        assert loaded.selected.tolist() == ([1, 2] if arm == "untuned" else [seed, seed + 1])
    assert load_arm(Intervention("baseline"), **known) == BASELINE
    aligned = SparseAutoencoder(WIDTH, LATENTS, seed=1).W_enc
    for arm in ("random-sae", "random-direction", "mean-difference"):
        contrast = loading.random_direction(WIDTH, 3)
        loaded = load_arm(Intervention(arm, (1,)), **known, contrasts={1: contrast}).edits[1]
        assert torch.equal(loaded.autoencoder.W_enc, aligned), "the aligned autoencoder says how long the change is"
        assert loaded.selected.tolist() == [1, 2]
    assert loaded.direction is contrast
    with pytest.raises(SteeringError, match="need a direction"):
        load_arm(Intervention("mean-difference", (1,)), **known)
    with pytest.raises(files.FormatError, match="another model"):
        load_arm(Intervention("aligned", (1,)), **known | {"d_in": WIDTH + 1})
    with pytest.raises(files.FormatError, match=r"shuffled has no cfg\.json"):
        load_arm(Intervention("shuffled", (1,)), **known)


def test_what_is_drawn_differs_by_seed_layer_and_replicate_and_by_nothing_else(folders):
    def drawn(arm, seed, layer, replicate, layers=None):
        intervention = Intervention(arm, layers or (layer,), replicate=replicate)
        direction = load_arm(intervention, **folders, seed=seed).edits[layer].direction
        return direction if isinstance(direction, torch.Tensor) else direction.W_enc.detach()

    for arm in parameters.DRAWN_ARMS:
        each = [drawn(arm, *of) for of in itertools.product((0, 1), (0, 1), (0, 1, 2))]
        for one, other in itertools.combinations(each, 2):
            assert not torch.allclose(one, other)
        assert torch.equal(drawn(arm, 0, 1, 2), each[5])
        assert torch.equal(drawn(arm, 0, 1, 2, layers=(0, 1)), each[5])


def test_what_an_edit_needs_lies_where_its_block_is(model, folders):
    # No second device is at hand: one that holds no numbers stands for it.
    blocks = model._module.model.layers
    there = {layer: block.to("meta" if layer == 1 else "cpu") for layer, block in enumerate(copy.deepcopy(blocks))}
    envoys = [SimpleNamespace(_module=block) for block in there.values()]
    envoys[2]._module._hf_hook = SimpleNamespace(execution_device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation.models, "decoder_layers", lambda model: envoys)
        devices = generation.layer_devices(model)
    assert {layer: str(device) for layer, device in devices.items()} == {0: "cpu", 1: "meta", 2: "meta"}
    contrasts = {layer: loading.random_direction(WIDTH, layer) for layer in (0, 1)}
    for arm in (*interventions.DIRECTED, "untuned"):
        edits = load_arm(Intervention(arm, (0, 1)), **folders, devices=devices, contrasts=contrasts).edits
        for layer, edit in edits.items():
            tensors = [edit.autoencoder.W_enc, edit.autoencoder.b_dec, edit.selected]
            if edit.direction is not None:
                tensors.append(edit.direction if isinstance(edit.direction, torch.Tensor) else edit.direction.W_dec)
            assert {tensor.device for tensor in tensors} == {devices[layer]}


def test_every_arm_that_a_profile_may_name_is_known_and_has_a_colour():
    known = set(get_args(parameters.ArmName))
    assert known - {"baseline", *interventions.DIRECTED} <= set(FOLDERS)
    assert {"baseline", *interventions.DIRECTED} <= known
    assert known <= plotting.ARM_COLOURS.keys()


@pytest.fixture
def folders(tmp_path):
    """Autoencoders of two layers, as notebooks 05 and 06 leave them."""
    for layer, (arm, name) in itertools.product((0, 1), FOLDERS.items()):
        folder = tmp_path / ("sae" if arm == "untuned" else "alignment") / f"layer_{layer:02d}" / name
        folder.mkdir(parents=True)
        autoencoder = SparseAutoencoder(WIDTH, LATENTS, seed=layer)
        # A centre, as trained ones have: without one, latents that do not fire leave a stream of zeros.
        autoencoder.b_dec.data += 0.1 * loading.random_direction(WIDTH, layer)
        files.save(folder, autoencoder, {"tuned_latents": [1, 2]})
    return {"sae": tmp_path / "sae", "alignment": tmp_path / "alignment", "d_in": WIDTH}


@pytest.fixture
def watched(monkeypatch):
    """Notes which autoencoders are read from files, and the most that are in memory at a time."""
    seen = SimpleNamespace(alive=weakref.WeakSet(), most=0, read=[])
    real = SparseAutoencoder.__init__

    def made(self, *arguments, **options):
        real(self, *arguments, **options)
        seen.alive.add(self)
        seen.most = max(seen.most, len(seen.alive))

    load = files.load

    def noted(folder, *arguments):
        seen.read.append(
            (folder.name, folder.parent.name if "layer" in folder.parent.name else folder.parent.parent.name)
        )
        return load(folder, *arguments)

    monkeypatch.setattr(SparseAutoencoder, "__init__", made)
    monkeypatch.setattr(files, "load", noted)
    return seen


def test_arms_that_share_an_autoencoder_share_its_load_and_few_are_in_memory(
    model, prompts, folders, watched, tmp_path
):
    arms = ["baseline", "random-sae", "untuned", "aligned", "random-direction"]
    keys = {"arms": arms, "sweep_arms": arms[1:], "sweep_prompts": 2, "sweep_strengths": [0.5], "steering_batch": 2}
    chosen = told(replace(GREEDY, max_new_tokens=2), **keys, layers=[1, 0], steered_layers=[0, 1], replicates=1)
    options = {"load_arm": ArmLoader(**folders), "prompts": prompts.head(4), "directory": tmp_path}
    once = [("aligned", "layer_00"), ("aligned", "layer_01"), ("pretrained", "layer_00"), ("pretrained", "layer_01")]
    for _ in range(2):
        answering.answer_stage(model, chosen, **options)
        assert sorted(watched.read) == sorted(once * 2), (
            "alone and at once: nothing else, and nothing when all is answered"
        )
    assert watched.most == 4, "at two layers at once an aligned and an untrained autoencoder each"
    watched.read.clear()
    text = pd.DataFrame({"sentence": [1], "language": "en", "text": ["Tea."]})
    asked = interventions.to_read(chosen)
    losses = costs.text_losses(model, asked, load_arm=ArmLoader(**folders), texts=text)
    assert sorted(watched.read) == sorted(once * 2)
    read = losses[["arm", "strength", "features", "replicate"]][1:].to_records(index=False).tolist()
    assert read == [(one.arm, one.strength, one.features, one.replicate) for one in asked[1:]], "in the order asked for"


def test_one_layer_at_a_time_holds_one_autoencoder_and_one_that_nothing_trained(
    model, prompts, folders, watched, tmp_path
):
    arms = ["untuned", "aligned", "random-direction", "shuffled"]
    for names, most in ((arms, 1), ([*arms, "random-sae"], 2)):
        watched.most = 0
        listed = conditions(names, [0, 1], [0.5, 1.0], replicates=2)
        asked = [answering.Asked(tmp_path / str(most), listed, prompts.head(1))]
        answering.answer_all(model, told(replace(GREEDY, max_new_tokens=2)), asked, ArmLoader(**folders))
        gc.collect()
        assert watched.most == most


def test_a_loader_gives_what_reading_each_alone_gives(folders):
    options = {"contrasts": {1: loading.random_direction(WIDTH, 5)}, "seed": 3}
    loader = ArmLoader(**folders, **options)
    arms = ["baseline", "aligned", "untuned", *interventions.DIRECTED]
    for intervention in conditions(arms, [1], [0.5, 1.0], replicates=2):
        arm, alone = loader(intervention), load_arm(intervention, **folders, **options)
        assert arm.intervention == intervention
        for layer, edit in arm.edits.items():
            other = alone.edits[layer]
            assert torch.equal(edit.autoencoder.W_enc, other.autoencoder.W_enc)
            assert torch.equal(edit.selected, other.selected)
            if isinstance(edit.direction, torch.Tensor):
                assert torch.equal(edit.direction, other.direction)
            elif edit.direction is not None:
                assert torch.equal(edit.direction.W_enc, other.direction.W_enc)


def test_an_autoencoder_says_which_model_and_layer_it_is_for(tmp_path):
    folder = tmp_path / "alignment" / "layer_01" / "aligned"
    folder.mkdir(parents=True)
    about = {"model_name": "theirs", "hook_name": "model.layers.1", "tuned_latents": [1]}
    files.save(folder, SparseAutoencoder(WIDTH, LATENTS), about)
    known = {"sae": tmp_path / "sae", "alignment": tmp_path / "alignment", "d_in": WIDTH}
    assert load_arm(Intervention("aligned", (1,)), **known, model="theirs").edits[1].selected.tolist() == [1]
    with pytest.raises(
        SteeringError, match="belongs to another model: it was made for 'theirs', and 'ours' is to be steered"
    ):
        load_arm(Intervention("aligned", (1,)), **known, model="ours")
    folder.parent.rename(tmp_path / "alignment" / "layer_02")
    with pytest.raises(SteeringError, match="not for layer 2"):
        load_arm(Intervention("aligned", (2,)), **known)


def test_an_untrained_autoencoder_that_reads_nothing_still_points_somewhere():
    stream = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    silent = SparseAutoencoder(WIDTH, LATENTS, seed=1).requires_grad_(False)
    silent.b_enc -= 1e6
    edit = Edit(SparseAutoencoder(WIDTH, LATENTS, seed=2).requires_grad_(False), None, silent)
    changed, _ = interventions.steer(stream, edit, Intervention("random-sae", (LAYER,)))
    assert (changed - stream).norm(dim=-1).min() > 0
