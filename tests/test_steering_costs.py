"""What steering costs: perplexities against plain cross-entropy, and errors of the file of ordinary text."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_steering import LAYER, TinyAutoencoder, arm_of, model  # noqa: F401

from lib import costs
from lib.interventions import BASELINE

TEXTS = pd.DataFrame(
    {"sentence": [1, 2, 3], "language": ["en", "zh", "en"], "text": ["The bus is late.", "图书馆开门了。", "Tea"]}
)


def loss_of_oracle(raw, ids, arm):
    """Summed negative log-likelihood of one sentence, alone and with a raw hook."""
    hooks = []
    if arm is not BASELINE:
        autoencoder, s = TinyAutoencoder(), arm.intervention.strength

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
    losses = costs.text_losses(model, [arm.intervention], lambda what: arm, TEXTS, batch_size=2)
    for (_, row), text in zip(losses.iterrows(), TEXTS["text"], strict=True):
        ids = model.tokenizer(text)["input_ids"]
        assert row["tokens"] == len(ids) - 1
        assert row["loss"] == pytest.approx(loss_of_oracle(model._module, ids, arm), rel=1e-4)
    assert (losses["relative_norm"] > 0).all() == (arm is not BASELINE)


def test_strength_zero_costs_nothing_and_perplexity_is_that_of_all_tokens(model):  # noqa: F811
    arms = {arm.intervention: arm for arm in (BASELINE, arm_of(strength=0.0), arm_of())}
    losses = costs.text_losses(model, arms, arms.__getitem__, TEXTS)
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
            "truncated": [False, True, False, False],
        }
    )
    table = costs.answer_lengths(receipts, draws=20).set_index(["arm", "metric"])["value"]
    assert table["baseline", "answer_tokens"] == 15
    assert table["baseline", "truncated_share"] == 0.5
    assert table["aligned", "answer_tokens"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file not found"),
        ("", "no sentences"),
        ("A sentence.\n", "line 1: not JSON"),
        (json.dumps({"text": "x"}), "line 1: expected an object with the keys language and text"),
        (json.dumps({"language": "fr", "text": "x"}), "line 1: language should be one of zh, en"),
        (json.dumps({"language": "en", "text": " "}), "line 1: .*not be empty"),
    ],
)
def test_a_wrong_file_of_ordinary_text_is_named(tmp_path, content, message):
    path = tmp_path / "text.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(costs.TextError, match=message):
        costs.read_ordinary_text(path)


def test_the_projects_ordinary_text_is_in_both_languages():
    assert set(costs.read_ordinary_text("data/ordinary_text.jsonl")["language"]) == {"zh", "en"}
    assert len(costs.read_ordinary_text("data/demo/ordinary_text.jsonl")) == 40
