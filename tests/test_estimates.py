"""What a run will take, against counts made by hand, the real parameters of tiny models, and faked machines."""

import numpy as np
import pytest
import torch
import transformers
from test_residuals import COMMON, FAMILIES

from lib import estimates, jobs, registry, workload
from lib.profiles import load_profile

GB = 1e9
LENGTHS = np.full(1000, 10)
EIGHT_BILLION = estimates.Size(8e9, 8e9, 36, 4096)
ROOMY = estimates.Machine(memory=1e12, cards=(), disk=1e13, flops_per_second=1e12)


def eight_billion(**changes):
    return estimates.estimate(EIGHT_BILLION, LENGTHS, **({"token_budget": 4096, "dtype": "bfloat16"} | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_a_configuration_are_those_of_the_model(family):
    config_name, model_name, special = FAMILIES[family]
    config = getattr(transformers, config_name)(**(COMMON | special))
    raw = getattr(transformers, model_name)(config)
    size = estimates.size_from_config(config)
    assert size.parameters == sum(parameter.numel() for parameter in raw.parameters())
    assert (size.layers, size.width) == (3, 32)
    experts = sum(p.numel() for name, p in raw.named_parameters() if ".experts." in name)
    share = special.get("num_experts_per_tok", 1) / special.get("num_experts", special.get("num_local_experts", 1))
    assert size.active == pytest.approx(size.parameters - experts * (1 - share))
    assert (experts > 0) == ("num_experts_per_tok" in special)


def test_a_configuration_of_a_large_model_is_counted_without_allocating_it():
    config = transformers.Qwen3Config(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    )  # fmt: skip
    size = estimates.size_from_config(config)
    assert size.parameters == pytest.approx(8.19e9, rel=0.001)
    row = registry.registry().set_index("name").loc["qwen3-8b"]
    assert registry.size_from_registry(row).parameters == pytest.approx(size.parameters, rel=0.01)


def test_an_estimate_made_by_hand():
    needed = eight_billion()
    assert needed.tokens == 10_000
    assert needed.flops == 2 * 8e9 * 10_000
    assert needed.weights == 16e9
    assert needed.disk == 4 * 36 * 1000 * 4096 * 4
    assert eight_billion(store_dtype="bfloat16").disk == needed.disk / 2
    assert eight_billion(device="8bit").weights < needed.weights
    assert needed.seconds(ROOMY) == pytest.approx(2 * 8e9 * 10_000 / 0.5e12)


def test_the_estimate_of_a_stage_agrees_with_the_plan_of_the_run():
    profile = load_profile("profiles/paper.yaml")
    job = jobs.job(profile, "02_residual_streams", "qwen3-235b-a22b")
    row = registry.registry().set_index("name").loc["qwen3-235b-a22b"]
    size = registry.size_from_registry(row)
    assert tuple(size) == tuple(workload.size(profile.sources["qwen3-235b-a22b"]))
    lengths = np.full(workload.work(profile).actions, int(workload.work(profile).tokens_per_action))
    needed = estimates.estimate(size, lengths, profile.token_budget, profile.dtype)
    assert needed.tokens == job.tokens
    assert needed.flops == job.flops
    assert needed.disk == job.disk_bytes


def test_a_run_that_fits_goes_on():
    estimates.require_fit(eight_billion(), ROOMY)
    estimates.require_fit(eight_billion(), ROOMY._replace(cards=(80 * GB,), memory=8 * GB))


def test_too_little_memory_says_what_would_fit():
    with pytest.raises(estimates.DoesNotFit) as caught:
        estimates.require_fit(eight_billion(), ROOMY._replace(memory=12 * GB))
    message = str(caught.value)
    assert "12.00 GB are of memory free here" in message
    assert "weights 16.00 GB" in message
    for setting in ("first_layers: ", "device: auto on cards with", "device: remote"):
        assert setting in message
    layers = int(message.split("first_layers: ")[1].split()[0])
    fewer = estimates.estimate(EIGHT_BILLION.first(layers), LENGTHS, 4096, "bfloat16")
    estimates.require_fit(fewer, ROOMY._replace(memory=12 * GB))


def test_too_small_a_card_says_how_many_are_needed_and_what_quantising_gives():
    with pytest.raises(estimates.DoesNotFit) as caught:
        estimates.require_fit(eight_billion(), ROOMY._replace(cards=(14 * GB,)))
    message = str(caught.value)
    assert "14.00 GB are free on 1 card(s)" in message
    assert "device: auto on 2 cards like this one" in message
    assert "device: 8bit (8.80 GB of weights, on a card)" in message
    estimates.require_fit(eight_billion(), ROOMY._replace(cards=(14 * GB,) * 2))
    estimates.require_fit(eight_billion(device="8bit"), ROOMY._replace(cards=(14 * GB,)))
    with pytest.raises(estimates.DoesNotFit, match="free on the card"):
        estimates.require_fit(eight_billion(device="cuda"), ROOMY._replace(cards=(14 * GB,) * 2))


def test_a_remote_model_needs_no_memory_here():
    estimates.require_fit(eight_billion(device="remote"), ROOMY._replace(memory=4 * GB))


def test_too_little_disk_says_what_would_fit():
    small = ROOMY._replace(disk=1 * GB)
    with pytest.raises(estimates.DoesNotFit) as caught:
        estimates.require_fit(eight_billion(), small)
    message = str(caught.value)
    assert "the store needs 2.36 GB and 1.00 GB of disk are free" in message
    assert "store_dtype: bfloat16 (1.18 GB)" in message
    assert "first_layers: 15 (of 36)" in message
    estimates.require_fit(estimates.estimate(EIGHT_BILLION.first(15), LENGTHS, 4096, "bfloat16"), small)
    estimates.require_fit(eight_billion(), small, object_store=True)


def test_the_report_names_every_quantity():
    table = estimates.report(eight_billion(), ROOMY)
    assert table.loc["prompts, tokens", "needed"] == "1,000, 10,000"
    assert table.loc["weights, 2 bytes a parameter", "needed"] == "16.00 GB"
    assert table.loc["store, float32", "needed"] == "2.36 GB"
    assert table.loc["time, without loading", "needed"] == "5.3 minutes"


def test_this_machine_counts_what_an_interrupted_run_has_written(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (7 + card, 100))
    monkeypatch.setattr(estimates, "matrix_rate", lambda device, dtype: 1.0)
    (tmp_path / "written").write_bytes(b"12345")
    found = estimates.this_machine(tmp_path)
    assert (found.cards, found.disk) == ((7, 8), 1005)
    assert estimates.this_machine(tmp_path / "not" / "yet", device="cpu").cards == ()
    assert found.memory > 0


def test_the_rate_of_a_matrix_product_is_measured():
    assert estimates.matrix_rate("cpu", "float32", side=64) > 0
