"""What steering costs: perplexities against plain cross-entropy, and errors of the file of ordinary text."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from lib.steering import costs
from lib.steering.interventions import BASELINE
from lib.steering.prompts import TextFileError
from tests.steering.test_generation import LAYER, TinyAutoencoder, arm_of, model  # noqa: F401

TEXTS = pd.DataFrame(
    {"sentence": [1, 2, 3], "language": ["en", "zh", "en"], "text": ["The bus is late.", "图书馆开门了。", "Tea"]}
)


def loss_of_oracle(raw, ids, arm):
    """Summed negative log-likelihood of one sentence, alone and with a raw hook."""
    hooks = []
    if arm is not BASELINE:
        autoencoder, s = arm.edits[LAYER].autoencoder, arm.intervention.strength

        def hook(_module, _inputs, x):
            return x + s * (autoencoder.decode(autoencoder.encode(x)) - x)

        hooks.append(raw.model.layers[LAYER].register_forward_hook(hook))
    try:
        logits = raw(torch.tensor([ids])).logits[0, :-1]
    finally:
        [handle.remove() for handle in hooks]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


@pytest.mark.parametrize("arm", [BASELINE, arm_of(), arm_of(strength=0.4)], ids=["baseline", "s=1", "s=.4"])
def test_losses_equal_cross_entropy_of_each_sentence_alone(model, arm):  # noqa: F811
    losses = costs.text_losses(model, [arm.intervention], load_arm=lambda intervention: arm, texts=TEXTS, batch_size=2)
    for (_, row), text in zip(losses.iterrows(), TEXTS["text"], strict=True):
        ids = model.tokenizer(text)["input_ids"]
        assert row["tokens"] == len(ids) - 1
        assert row["loss"] == pytest.approx(loss_of_oracle(model._module, ids, arm), rel=1e-4)
    assert (losses["relative_norm"] > 0).all() == (arm is not BASELINE)


def test_strength_zero_costs_nothing_and_perplexity_is_that_of_all_tokens(model):  # noqa: F811
    arms = {arm.intervention: arm for arm in (BASELINE, arm_of(strength=0.0), arm_of())}
    losses = costs.text_losses(model, arms, load_arm=arms.__getitem__, texts=TEXTS)
    table = costs.perplexity(losses, draws=20)
    keyed = table.set_index(["arm", "strength", "language", "metric"])["value"]
    assert keyed["aligned", 0.0, "all", "perplexity_ratio"] == pytest.approx(1, abs=1e-5)
    plain = losses[losses["arm"] == "baseline"]
    expected = np.exp(plain["loss"].sum() / plain["tokens"].sum())
    of_baseline = table[(table["arm"] == "baseline") & (table["metric"] == "perplexity")].set_index("language")["value"]
    assert of_baseline["all"] == pytest.approx(expected)
    assert set(of_baseline.index) == {"all", "en", "zh"}
    ratio = keyed["aligned", 1.0, "all", "perplexity"] / of_baseline["all"]
    assert keyed["aligned", 1.0, "all", "perplexity_ratio"] == pytest.approx(ratio)
    inside = (table["ci_low"] <= table["value"] + 1e-9) & (table["value"] <= table["ci_high"] + 1e-9)
    assert inside[table["n"] == 3].all()


def test_lengths_are_means_over_answers():
    receipts = pd.DataFrame(
        {
            "id": ["a", "b"] * 2,
            "arm": ["baseline"] * 2 + ["aligned"] * 2,
            "layer": pd.array([None, None, 2, 2], dtype="Int64"),
            "strength": [np.nan, np.nan, 1.0, 1.0],
            "features": "all",
            "tokens_generated": [10, 20, 3, 5],
            "finished": [True, False, True, True],
            "empty": [False, False, True, True],
            "thought_unfinished": [False, True, False, False],
        }
    )
    table = costs.answer_lengths(receipts, draws=20).set_index(["arm", "metric"])["value"]
    assert table["baseline", "answer_tokens"] == 15
    assert table["baseline", "unfinished_share"] == table["baseline", "thought_unfinished_share"] == 0.5
    assert table["aligned", "answer_tokens"] == 4
    assert table["aligned", "empty_share"] == 1


def test_replicates_of_a_condition_are_taken_together_and_a_sentence_counts_once():
    losses = pd.DataFrame({"arm": ["baseline"] * 2 + ["random-direction"] * 4, "layer": [None] * 2 + [1] * 4})
    losses = losses.assign(strength=[None] * 2 + [1.0] * 4, features=["none"] * 2 + ["all"] * 4, language="en")
    losses = losses.assign(replicate=[0, 0, 0, 0, 1, 1], sentence=[1, 2] * 3, tokens=10, relative_norm=0.1)
    table = costs.perplexity(losses.assign(loss=[10.0, 20, 20, 30, 30, 40]), draws=20)
    row = table[(table["arm"] == "random-direction") & (table["metric"] == "perplexity_ratio")].iloc[0]
    assert row["value"] == pytest.approx(np.exp((10 + 10 + 20 + 20) / 40))
    assert row["n"] == 2
    # Every sentence is read worse by 1.5 nats per token in the mean, so the interval has no width.
    assert row["ci_low"] == pytest.approx(row["ci_high"]) == pytest.approx(row["value"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file not found"),
        ("", "holds no lines"),
        ("A sentence.\n", "line 1: Invalid JSON"),
        (json.dumps({"text": "x"}), "line 1: key 'language': missing"),
        (json.dumps(["x"]), "line 1: Input should be an object .the keys are language, text"),
        (json.dumps({"language": "en", "text": "x", "more": 1}), "line 1: key 'more': unknown"),
        (json.dumps({"language": "fr", "text": "x"}), "line 1: key 'language': .*'zh' or 'en'"),
        (json.dumps({"language": "en", "text": " "}), "line 1: key 'text': empty"),
    ],
)
def test_a_wrong_file_of_ordinary_text_is_named(tmp_path, content, message):
    path = tmp_path / "text.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(TextFileError, match=message):
        costs.read_ordinary_text(path)


def test_the_projects_ordinary_text_is_in_both_languages():
    assert set(costs.read_ordinary_text("data/ordinary_text.jsonl")["language"]) == {"zh", "en"}
    assert len(costs.read_ordinary_text("data/demo/ordinary_text.jsonl")) == 40
