"""Steering against an independent oracle: a raw forward hook on the bare transformers model."""

import itertools
import json
import weakref
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lib import costs, flames, interventions, parameters, receipts, steering
from lib import decoding as decodings
from lib.decoding import Decoding
from lib.figures import style
from lib.interventions import BASELINE, Arm, Intervention, SteeringError, load_arm
from lib.sae import export
from lib.sae.arms import FOLDERS as TUNED_FOLDERS
from lib.sae.model import SparseAutoencoder

WIDTH, LATENTS, LAYER = 32, 64, 1
GREEDY = Decoding(max_new_tokens=10, temperature=0.0, top_p=1.0, repetition_penalty=1.1)
SAMPLED = Decoding(max_new_tokens=10, temperature=0.7, top_p=0.9, repetition_penalty=1.1)
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
    return TransformersModel(Qwen3ForCausalLM(config).eval(), tokenizer=tokenizer, task="text-generation")


@pytest.fixture
def prompts():
    texts = [f"{text} {number}" for number, text in enumerate(PROMPTS * 3, start=1)]
    ids = [f"flames_{number:04d}" for number in range(1, len(texts) + 1)]
    return pd.DataFrame({"id": ids, "dimension": "Safety", "prompt": texts})


def arm_of(mode="add", strength=1.0, features="all", name="aligned", positions="all"):
    selected = torch.tensor([3, 5, 8]) if features == "selected" else None
    direction = interventions.random_direction(WIDTH, 4) if name in interventions.DIRECTIONS else None
    return Arm(Intervention(name, LAYER, strength, mode, features, positions), TinyAutoencoder(), selected, direction)


def tokens_of_oracle(model, arm, decoding, seed):
    """Generate with a raw hook, written without lib.steering's formula; return texts, and streams seen."""
    autoencoder, what = arm.autoencoder, arm.intervention
    encoded = decodings.encode_prompts(model, PROMPTS, decoding.max_new_tokens)
    norms, hooks = [], []

    def hook(_module, _inputs, x):
        z = torch.relu(x @ autoencoder.W_enc - 0.1)
        if what.features == "selected":
            z = torch.stack([z[..., i] if i in (3, 5, 8) else torch.zeros_like(z[..., i]) for i in range(LATENTS)], -1)
        reconstruction = z @ autoencoder.W_dec + 0.01
        change = reconstruction - x
        if arm.direction is not None:
            change = change.norm(dim=-1)[..., None] * arm.direction[None, None]
        steered = reconstruction if what.mode == "replace" else x + what.strength * change
        if what.positions == ("generated" if not norms else "prompt"):
            steered = x.clone()
        norms.append(((steered - x).norm(dim=-1) / x.norm(dim=-1)).detach())
        return steered

    raw = model._module
    if what.layer is not None:
        hooks.append(raw.model.layers[LAYER].register_forward_hook(hook))
    try:
        torch.manual_seed(seed)
        ids = raw.generate(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, pad_token_id=0, **decoding.arguments()
        )
    finally:
        [handle.remove() for handle in hooks]
    return ids[:, encoded.input_ids.shape[1] :], norms


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
        arm_of(positions="prompt"),
        arm_of(positions="generated"),
    ],
    ids=lambda arm: "-".join(str(value) for value in vars(arm.intervention).values()),
)
def test_answers_equal_a_raw_hook_on_every_step(model, arm, decoding):
    answers = steering.answer(model, arm, PROMPTS, decoding, seed=7)
    tokens, norms = tokens_of_oracle(model, arm, decoding, seed=7)
    plain, _ = tokens_of_oracle(model, BASELINE, decoding, seed=7)
    assert not torch.equal(tokens, plain), "an intervention without effect proves nothing"
    for row, reply in enumerate(answers):
        receipt = reply["receipt"]
        text = model.tokenizer.decode(tokens[row][: receipt["steps"]], skip_special_tokens=True).strip()
        assert reply["response"] == text
        assert set(receipt) == set(receipts.RECEIPT)
        seen = [norms[0][row][-receipt["prompt_tokens"] :], *(step[row] for step in norms[1 : receipt["steps"]])]
        seen = {"all": seen, "prompt": seen[:1], "generated": seen[1:]}[arm.intervention.positions]
        assert receipt["steps"] == receipt["tokens_generated"]
        assert receipt["steps_touched"] == len(seen)
        assert receipt["positions_touched"] == len(torch.cat(seen))
        assert receipt["relative_norm"] == pytest.approx(float(torch.cat(seen).mean()), rel=1e-4)
        assert (receipt["kl_first_step"] > 0) == (arm.intervention.positions != "generated")
        assert 0 < receipt["active_latents"] <= (3 if arm.intervention.features == "selected" else LATENTS)


def test_what_the_untouched_model_expects_is_the_same_from_the_baseline_and_from_a_pass_of_its_own(model):
    known = [
        steering.unsteered_logits(model, PROMPTS, SAMPLED),
        steering.answer_batch(model, BASELINE, PROMPTS, SAMPLED, 0).first_logits,
    ]
    torch.testing.assert_close(*known)
    alone = steering.answer(model, arm_of(), PROMPTS, GREEDY, 0)
    assert [steering.answer_batch(model, arm_of(), PROMPTS, GREEDY, 0, logits).replies for logits in known] == [
        alone
    ] * 2


@pytest.mark.parametrize(
    ("arms", "decoding", "passes"), [(slice(0, 3), GREEDY, 0), (slice(1, 3), GREEDY, 3), (slice(0, 3), "published", 3)]
)
def test_the_untouched_model_is_read_once_for_all_arms(model, prompts, tmp_path, monkeypatch, arms, decoding, passes):
    short = {name: replace(GREEDY, max_new_tokens=number) for name, number in (("baseline", 4), ("steered", 3))}
    monkeypatch.setattr(decodings, "PUBLISHED_DECODING", short)
    real, calls = steering.unsteered_logits, []

    def counted(*arguments):
        calls.append(arguments[1])
        return real(*arguments)

    monkeypatch.setattr(steering, "unsteered_logits", counted)
    answer_all(model, all_arms()[arms], prompts, decoding, tmp_path, batch_size=4)
    batches = [prompts["prompt"].tolist()[start : start + 4] for start in range(0, len(prompts), 4)]
    assert calls == batches[:passes]


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_strength_zero_is_the_baseline_token_for_token(model, decoding):
    baseline = steering.answer(model, BASELINE, PROMPTS, decoding, seed=3)
    for arm in (arm_of(strength=0.0), arm_of("blend", 0.0)):
        answers = steering.answer(model, arm, PROMPTS, decoding, seed=3)
        assert [a["response"] for a in answers] == [b["response"] for b in baseline]
        assert all(a["receipt"]["relative_norm"] == 0 and a["receipt"]["kl_first_step"] < 1e-5 for a in answers)
        assert all(a["receipt"]["steps_touched"] == a["receipt"]["steps"] for a in answers)


def test_an_edit_on_the_first_step_only_is_refused(model, monkeypatch):
    add = receipts.Trail.add

    def add_once(self, *arguments):
        if not self.step:
            add(self, *arguments)

    monkeypatch.setattr(receipts.Trail, "add", add_once)
    with pytest.raises(receipts.ReceiptError, match="steps_touched is 1 and should be"):
        steering.answer(model, arm_of(), PROMPTS, GREEDY, seed=0)


def test_a_direction_changes_the_stream_as_much_as_the_aligned_arm(model):
    stream = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    aligned, _ = interventions.steer(stream, arm_of())
    for name in interventions.DIRECTIONS:
        arm = arm_of(name=name)
        changed, _ = interventions.steer(stream, arm)
        torch.testing.assert_close((changed - stream).norm(dim=-1), (aligned - stream).norm(dim=-1))
        cosine = torch.nn.functional.cosine_similarity(changed - stream, arm.direction[None, None], dim=-1)
        torch.testing.assert_close(cosine, torch.ones(2, 5))


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
    alone = steering.answer(model, arm_of(), PROMPTS[2:], GREEDY, seed=0)
    together = steering.answer(model, arm_of(), PROMPTS, GREEDY, seed=0)
    assert together[2]["response"] == alone[0]["response"]
    assert together[2]["receipt"] == alone[0]["receipt"] | {
        key: pytest.approx(alone[0]["receipt"][key], rel=1e-3) for key in ("relative_norm", "kl_first_step")
    }


def test_generation_stops_at_the_end_token_and_says_so(model):
    class Ending(TinyAutoencoder):
        def decode(self, z):
            return (model._module.lm_head.weight[1] * 1000).expand(*z.shape[:-1], WIDTH)

    ending = Arm(Intervention("aligned", 2, mode="replace"), Ending())
    for reply in steering.answer(model, ending, PROMPTS, GREEDY, seed=0):
        assert reply["response"] == ""
        assert reply["receipt"]["steps"] == 1
        assert not reply["receipt"]["truncated"]
    assert steering.answer(model, BASELINE, PROMPTS, GREEDY, seed=0)[0]["receipt"]["truncated"]


def test_the_random_state_outside_is_left_alone(model):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    steering.answer(model, arm_of(), PROMPTS, SAMPLED, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_prompts_use_the_chat_template_or_a_stated_plain_format(model):
    encoded = decodings.encode_prompts(model, ["你好"], 8)
    assert model.tokenizer.decode(encoded.input_ids[0]) == f"<system>{decodings.SYSTEM_PROMPT}<user>你好<assistant>"
    assert "enable_thinking=True" in encoded.format
    template, model.tokenizer.chat_template = model.tokenizer.chat_template, None
    try:
        plain = decodings.encode_prompts(model, ["你好"], 8)
    finally:
        model.tokenizer.chat_template = template
    assert model.tokenizer.decode(plain.input_ids[0]) == f"{decodings.SYSTEM_PROMPT}\n你好\n"
    assert repr(decodings.PLAIN_FORMAT) in plain.format


def test_a_context_too_short_is_shared_and_recorded(model):
    decoding = Decoding(max_new_tokens=500, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
    encoded = decodings.encode_prompts(model, ["x" * 400, "y"], decoding.max_new_tokens)
    assert encoded.max_new_tokens == 128
    assert encoded.input_ids.shape[1] == 128
    assert encoded.dropped[0] > 0
    assert encoded.dropped[1] == 0
    receipt = steering.answer(model, BASELINE, ["x" * 400], decoding, seed=0)[0]["receipt"]
    assert receipt["decoding"]["max_new_tokens"] == 128
    assert receipt["prompt_tokens_dropped"] == encoded.dropped[0]


def all_arms():
    return [BASELINE, arm_of(), arm_of(name="random", strength=0.5)]


def answer_all(model, arms, *arguments, **options):
    """Answer with arms that are there already."""
    known = {arm.intervention: arm for arm in arms}
    steering.answer_all(model, known, known.__getitem__, *arguments, **options)


def test_an_interrupted_run_ends_with_the_same_bytes(model, prompts, tmp_path, monkeypatch):
    answer_all(model, all_arms(), prompts, SAMPLED, tmp_path / "whole", batch_size=4, seed=5)
    real, calls = steering.answer_batch, []

    def answer_until_killed(*arguments):
        calls.append(arguments[3])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(steering, "answer_batch", answer_until_killed)
    with pytest.raises(KeyboardInterrupt):
        answer_all(model, all_arms(), prompts, SAMPLED, tmp_path / "cut", batch_size=4, seed=5)
    torn = tmp_path / "cut" / "aligned.jsonl"
    with torn.open("ab") as stream:
        stream.write(torn.read_bytes().splitlines(keepends=True)[0] + b'{"id": "flames_00')
    answer_all(model, all_arms(), prompts, SAMPLED, tmp_path / "cut", batch_size=4, seed=5)
    assert len(calls) == 5 + 5, "nine batches in all; four were finished, one was lost"
    for name in ("baseline", "aligned", "random"):
        whole, cut = (tmp_path / run / f"{name}.jsonl" for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


def test_arms_answered_by_separate_jobs_make_the_same_files(model, prompts, tmp_path):
    answer_all(model, all_arms(), prompts, SAMPLED, tmp_path / "together", batch_size=4, seed=5)
    for arm in reversed(all_arms()):
        answer_all(model, [arm], prompts, SAMPLED, tmp_path / "apart", batch_size=4, seed=5)
    answer_all(model, all_arms(), prompts, SAMPLED, tmp_path / "apart", batch_size=4, seed=5)
    for path in (tmp_path / "together").iterdir():
        assert path.read_bytes() == (tmp_path / "apart" / path.name).read_bytes()


def test_a_receipt_without_a_field_is_refused(model):
    receipt = steering.answer(model, arm_of(), PROMPTS, GREEDY, 0)[0]["receipt"]
    for name in receipts.RECEIPT:
        with pytest.raises(receipts.ReceiptError, match=f"lacks '{name}'"):
            receipts.check_receipt({key: value for key, value in receipt.items() if key != name})


def test_several_layers_share_one_file_and_all_arms_share_seeds(model, prompts, tmp_path):
    arms = [BASELINE, *(Arm(Intervention("aligned", layer), TinyAutoencoder()) for layer in (0, 2))]
    answer_all(model, arms, prompts, SAMPLED, tmp_path, batch_size=4)
    responses = flames.read_responses(tmp_path, ["baseline", "aligned"])
    assert responses.groupby(["arm", "layer"], dropna=False).size().to_dict().keys() >= {("aligned", 0), ("aligned", 2)}
    table = receipts.lay_out(responses)
    assert len(table) == 3 * len(prompts)
    assert (table.groupby("id")["seed"].nunique() == 1).all()
    assert table.loc[table["arm"] == "baseline", "steps_touched"].eq(0).all()


def test_settings_lie_side_by_side(model, prompts, tmp_path):
    settings = {}
    for setting in ("all", "selected"):
        answer_all(model, [arm_of(features=setting)], prompts, GREEDY, tmp_path / setting)
        settings[setting] = flames.read_responses(tmp_path / setting, ["aligned"])
    table = receipts.by_setting(settings).set_index("setting")
    texts = [frame["response"] for frame in settings.values()]
    assert table["answers"].tolist() == [len(prompts)] * 2
    assert table["text_differs"].tolist() == [0, (texts[0] != texts[1]).mean()]
    assert table.loc["selected", "text_differs"] > 0
    assert table.loc["selected", "active_latents"] <= 3 < table.loc["all", "active_latents"]
    same = receipts.by_setting({"once": settings["all"], "again": settings["all"].sample(frac=1, random_state=0)})
    assert same["text_differs"].tolist() == [0, 0]


def test_a_forged_receipt_is_refused(model, prompts, tmp_path):
    answer_all(model, all_arms(), prompts, GREEDY, tmp_path, batch_size=9)
    path = tmp_path / "aligned.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[4]["receipt"]["steps_touched"] = 1
    path.unlink()
    flames.append_responses(path, rows)
    with pytest.raises(receipts.ReceiptError, match="steps_touched is 1"):
        receipts.lay_out(flames.read_responses(tmp_path, ["baseline", "aligned"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Intervention("aligned"), "need a layer"),
        (lambda: Intervention("baseline", 1), "need a layer"),
        (lambda: Intervention("aligned", 1, 0.5, "replace"), "use 'blend'"),
        (lambda: Intervention("aligned", 1, 2.0, "blend"), "from 0 to 1"),
        (lambda: Arm(Intervention("aligned", 1)), "no autoencoder"),
        (lambda: Arm(Intervention("mean-difference", 1), TinyAutoencoder()), "need a direction"),
        (lambda: Arm(Intervention("aligned", 1), TinyAutoencoder(), direction=torch.ones(WIDTH)), "need a direction"),
        (lambda: Arm(Intervention("aligned", 1, features="selected"), TinyAutoencoder()), "selected latents"),
    ],
)
def test_senseless_interventions_are_refused(make, message):
    with pytest.raises(SteeringError, match=message):
        make()


def test_an_autoencoder_of_another_model_or_layer_is_refused(model):
    with pytest.raises(SteeringError, match="belongs to another model"):
        steering.answer(model, Arm(Intervention("aligned", 1), TinyAutoencoder(width=16)), PROMPTS, GREEDY, 0)
    with pytest.raises(SteeringError, match="layers 0 to 2"):
        steering.answer(model, Arm(Intervention("aligned", 7), TinyAutoencoder()), PROMPTS, GREEDY, 0)


def test_conditions_hold_the_baseline_once_and_every_other_arm_at_every_layer_and_strength():
    found = interventions.conditions(["aligned", "baseline", "random"], [1, 3], [0.5, 2.0], mode="add", features="all")
    assert [item.arm for item in found].count("baseline") == 1
    steered = {(item.arm, item.layer, item.strength) for item in found[1:]}
    assert steered == set(itertools.product(["aligned", "random"], [1, 3], [0.5, 2.0]))
    assert len(interventions.conditions(["aligned"], [1], [1.0], positions="prompt")) == 1


def test_published_decoding_differs_between_its_arms():
    assert decodings.decoding_for("baseline", "published") == Decoding(1024, 0.7, 1.0, 1.0)
    assert decodings.decoding_for("aligned", "published") == Decoding(512, 0.7, 0.9, 1.1)
    assert decodings.decoding_for("baseline", SAMPLED) == decodings.decoding_for("random", SAMPLED) == SAMPLED


def test_arms_are_read_from_the_folders_of_notebooks_05_and_06(tmp_path):
    saes = {"untuned": "sae/layer_01/pretrained", "aligned": "alignment/layer_01/aligned"}
    saes |= {name: f"alignment/layer_01/{TUNED_FOLDERS[name]}" for name in ("random", "random-weights")}
    for seed, (arm, folder) in enumerate(saes.items()):
        (tmp_path / folder).mkdir(parents=True)
        about = {} if arm == "untuned" else {"arm": arm, "tuned_latents": [seed, seed + 1]}
        export.save(tmp_path / folder, SparseAutoencoder(WIDTH, LATENTS, seed), about)
    where = (tmp_path / "sae", tmp_path / "alignment", WIDTH)
    for seed, arm in enumerate(saes):
        loaded = load_arm(Intervention(arm, 1), *where)
        assert torch.equal(loaded.autoencoder.W_enc, SparseAutoencoder(WIDTH, LATENTS, seed).W_enc)
        assert loaded.selected.tolist() == ([1, 2] if arm == "untuned" else [seed, seed + 1])
    assert load_arm(Intervention("baseline"), *where) == BASELINE
    untrained = load_arm(Intervention("random-sae", 1), *where, seed=9)
    assert torch.equal(untrained.autoencoder.W_enc, SparseAutoencoder(WIDTH, LATENTS, 9).W_enc)
    assert untrained.selected.tolist() == [1, 2]
    drawn = [load_arm(Intervention("random-direction", 1), *where, seed=seed).direction for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    contrast = interventions.random_direction(WIDTH, 3)
    assert load_arm(Intervention("mean-difference", 1), *where, contrast={1: contrast}).direction is contrast
    with pytest.raises(SteeringError, match="need a direction"):
        load_arm(Intervention("mean-difference", 1), *where)
    with pytest.raises(export.FormatError, match="another model"):
        load_arm(Intervention("aligned", 1), *where[:2], WIDTH + 1)
    with pytest.raises(export.FormatError, match=r"shuffled has no cfg\.json"):
        load_arm(Intervention("shuffled", 1), *where)


def test_every_tuned_arm_is_read_from_where_alignment_puts_it():
    assert {arm: interventions.FOLDERS[arm] for arm in TUNED_FOLDERS} == TUNED_FOLDERS
    known = set(get_args(parameters.Arm))
    assert known == {"baseline", "random-sae", *interventions.FOLDERS, *interventions.DIRECTIONS}
    assert known <= style.ARM_COLOURS.keys()


@pytest.fixture
def folders(tmp_path):
    """Autoencoders of two layers, as notebooks 05 and 06 leave them."""
    for layer, (arm, name) in itertools.product((0, 1), interventions.FOLDERS.items()):
        folder = tmp_path / ("sae" if arm == "untuned" else "alignment") / f"layer_{layer:02d}" / name
        folder.mkdir(parents=True)
        export.save(folder, SparseAutoencoder(WIDTH, LATENTS, layer), {"tuned_latents": [1, 2]})
    return tmp_path / "sae", tmp_path / "alignment"


class Watched(interventions.Loader):
    """Counts the autoencoders that are in memory when another one is about to be asked for, and how often it is."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.alive, self.most, self.read = weakref.WeakSet(), 0, []

    def __call__(self, what):
        arm = super().__call__(what)
        if arm.autoencoder is not None and arm.autoencoder not in self.alive:
            self.alive.add(arm.autoencoder)
            self.read.append((what.arm, what.layer))
        self.most = max(self.most, len(self.alive))
        return arm


def test_one_autoencoder_is_in_memory_at_a_time(model, prompts, folders, tmp_path):
    arms = ["baseline", "aligned", "untuned", "random-sae", "random-direction"]
    wanted = interventions.conditions(arms, [0, 1], [0.5, 1.0])
    of_each = list(itertools.product(arms[1:], [0, 1]))
    load = Watched(*folders, WIDTH)
    for _ in range(2):
        steering.answer_all(model, wanted, load, prompts.head(4), GREEDY, tmp_path, batch_size=2)
        assert load.read == of_each, "strengths share an autoencoder, and what is answered needs none"
    assert load.most == 1
    load = Watched(*folders, WIDTH)
    losses = costs.text_losses(model, wanted, load, pd.DataFrame({"sentence": [1], "language": "en", "text": ["Tea."]}))
    assert (sorted(load.read), load.most) == (sorted(of_each), 1)
    told = losses[["arm", "layer", "strength"]][1:].to_records(index=False).tolist()
    assert told == [(what.arm, what.layer, what.strength) for what in wanted[1:]], "rows are in the order asked for"


def test_a_loader_gives_what_reading_each_alone_gives(folders):
    options = {"contrast": {1: interventions.random_direction(WIDTH, 5)}, "seed": 3}
    load = interventions.Loader(*folders, WIDTH, **options)
    arms = ["baseline", "aligned", "random-sae", *interventions.DIRECTIONS]
    for what in interventions.conditions(arms, [1], [0.5, 1.0]):
        arm, alone = load(what), load_arm(what, *folders, WIDTH, **options)
        assert arm.intervention == what
        for one, other in ((arm.direction, alone.direction), (arm.selected, alone.selected)):
            assert (one is None and other is None) or torch.equal(one, other)
        if what.layer is not None:
            assert torch.equal(arm.autoencoder.W_enc, alone.autoencoder.W_enc)


def test_an_autoencoder_says_which_model_and_layer_it_is_for(tmp_path):
    folder = tmp_path / "alignment" / "layer_01" / "aligned"
    folder.mkdir(parents=True)
    about = {"model_name": "theirs", "hook_name": "model.layers.1", "tuned_latents": [1]}
    export.save(folder, SparseAutoencoder(WIDTH, LATENTS), about)
    where = (tmp_path / "sae", tmp_path / "alignment", WIDTH)
    assert load_arm(Intervention("aligned", 1), *where, model="theirs").selected.tolist() == [1]
    with pytest.raises(SteeringError, match="belongs to another model: it was made for 'theirs', and 'ours'"):
        load_arm(Intervention("aligned", 1), *where, model="ours")
    folder.parent.rename(tmp_path / "alignment" / "layer_02")
    with pytest.raises(SteeringError, match="not for layer 2"):
        load_arm(Intervention("aligned", 2), *where)
