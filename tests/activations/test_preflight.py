"""What a run will take, against counts made by hand, the real parameters of tiny models, and faked machines."""

import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from activations.families import COMMON, FAMILIES, configuration, random_module
from conftest import byte_tokenizer

from lib.activations import preflight
from lib.activations.sizes import EXPERTS, EXPERTS_PER_TOKEN, active_parameters
from lib.run.files import PROJECT
from lib.run.parameters import ActivationsKeys
from lib.run.profile import ModelSource, load_profile
from lib.run.resources import Reading, ResourceError, Size, registered_size, rows_per_chunk
from workflow import estimates, workload

GB = 1e9
EIGHT_BILLION = Size(8e9, 8e9, 36, 4096)
ROOMY = preflight.Machine(memory=1e12, gpus=(), disk=1e13, flops_per_second=1e12)


def eight_billion(size=EIGHT_BILLION, **changes):
    """What a thousand prompts of ten tokens each take."""
    return Reading(size, rows=1000, tokens=10_000, keys=ActivationsKeys(**{"dtype": "bfloat16"} | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_a_configuration_are_those_of_the_model(family):
    special, raw = FAMILIES[family].special, random_module(FAMILIES[family])
    size = preflight.size_from_config(configuration(FAMILIES[family]))
    assert size.parameters == sum(parameter.numel() for parameter in raw.parameters())
    assert (size.layers, size.width) == (3, 32)
    experts = sum(p.numel() for name, p in raw.named_parameters() if ".experts." in name)
    share = special.get("num_experts_per_tok", 1) / special.get("num_experts", special.get("num_local_experts", 1))
    assert size.active == pytest.approx(size.parameters - experts * (1 - share))
    assert (experts > 0) == ("num_experts_per_tok" in special)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_reads_a_local_models_size_from_its_files(family, tmp_path):
    random_module(FAMILIES[family]).save_pretrained(tmp_path)
    on_disk = workload.size(ModelSource(name="local", path=str(tmp_path)))
    assert on_disk == pytest.approx(preflight.size_from_config(configuration(FAMILIES[family])))


def test_a_local_model_whose_configuration_names_no_blocks_is_of_unknown_size(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 32}', encoding="utf-8")
    assert workload.size(ModelSource(name="local", path=str(tmp_path))) is None


@pytest.mark.parametrize("key", EXPERTS)
def test_of_the_experts_those_that_a_token_is_sent_to_are_active(key):
    counts = {"layers.0.experts.3.up": 800, "blk.0.ffn_up_exps.weight": 80, "layers.0.shared_experts.up": 8, "head": 1}
    assert active_parameters(counts, {key: 8, EXPERTS_PER_TOKEN: 2}) == 200 + 20 + 8 + 1
    assert active_parameters(counts, {}) == 889


def test_a_configuration_of_a_large_model_is_counted_without_allocating_it():
    config = transformers.Qwen3Config(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    )  # fmt: skip
    size = preflight.size_from_config(config)
    assert size.parameters == pytest.approx(8.19e9, rel=0.001)
    assert registered_size("Qwen/Qwen3-8B").parameters == pytest.approx(size.parameters, rel=0.01)


def test_an_estimate_made_by_hand():
    needed = eight_billion()
    assert needed.flops == 2 * 8e9 * 10_000
    assert needed.weight_bytes == 16e9
    assert needed.store_bytes == 4 * 36 * 1000 * 4096 * 2
    assert needed.chunk_bytes == 2 * 4 * 36 * 512 * 4096 * 2
    # 4,096 tokens are 410 prompts; of a block 16 widths of two bytes per token, and the stream once more in float32. What
    # is pooled is there layer by layer and then together.
    assert needed.batch_bytes == 4096 * 4096 * (16 * 2 + 4) + 2 * 4 * 36 * 410 * 4096 * 4
    assert eight_billion(store_dtype="float32").store_bytes == needed.store_bytes * 2
    assert eight_billion(device="8bit").weight_bytes == 8e9 * 1.1
    assert preflight.report(needed, ROOMY).loc["time, without loading", "needed"] == (
        f"{2 * 8e9 * 10_000 / 0.9e12 / 60:.1f} minutes"
    )


def test_a_chunk_holds_a_full_batch_and_no_more_than_a_billion_bytes():
    assert rows_per_chunk(eight_billion()) == 512
    small = Size(0.6e9, 0.6e9, 28, 1024)
    wide_open = eight_billion(small, token_budget=16_384)
    assert wide_open.rows_per_batch == rows_per_chunk(wide_open) == 1639
    assert rows_per_chunk(eight_billion(token_budget=65_536)) == int(1e9 / (4 * 36 * 4096 * 2))
    assert rows_per_chunk(eight_billion(Size(1e12, 1e12, 10_000, 100_000))) == 1
    # So a batch is no larger than its chunk, and the largest models fit where they do.
    assert eight_billion(token_budget=65_536).batch_bytes < 6 * GB
    preflight.require_fit(eight_billion(token_budget=65_536), ROOMY._replace(gpus=(24 * GB,)))


PEAK = """
import sys, threading
import psutil, torch
from lib.activations import extraction, models, sources, store
from lib.run.parameters import ActivationsKeys
from lib.run.resources import Reading, rows_per_chunk
torch.set_num_threads(1)
from pathlib import Path
import pandas as pd
model = models.open_model(sys.argv[1])
prompts = extraction.tokenize(model.tokenizer, [f"keeping promise number {i:04d} to a friend" for i in range(512)])
size = sources.size(sys.argv[1])
reading = Reading(size, 512, int(prompts.lengths.sum()), ActivationsKeys(token_budget=16384))
index = pd.DataFrame({"action": prompts.actions, "tokens": prompts.lengths})
layout = {"layers": size.layers, "width": size.width, "poolings": extraction.POOLINGS, "dtype": "bfloat16"}
kept = store.create_store(Path(sys.argv[2]), index, rows_per_chunk=rows_per_chunk(reading), **layout)
extraction.pooled_residuals(model, prompts, rows=range(1))
process, ended, peak = psutil.Process(), threading.Event(), [0]
before = process.memory_info().rss
def watch():
    while not ended.wait(0.005):
        peak[0] = max(peak[0], process.memory_info().rss)
watching = threading.Thread(target=watch)
watching.start()
extraction.extract(model, prompts, store=kept, token_budget=16384)
ended.set()
watching.join()
print((reading.batch_bytes + reading.chunk_bytes) / (peak[0] - before))
"""


def test_working_memory_is_what_an_extraction_takes(tmp_path):
    config = transformers.Qwen3Config(
        **(COMMON | {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64, "num_attention_heads": 8})
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")

    def measured(folder):
        command = [sys.executable, "-c", PEAK, str(tmp_path / "model"), str(tmp_path / folder)]
        return float(subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout)

    # How much lies in memory at once also depends on what else the machine does. Two within the bounds settle the median.
    shares = [measured("first"), measured("second")]
    if not all(1 / 1.3 < share < 1.3 for share in shares):
        shares.append(measured("third"))
    assert 1 / 1.3 < statistics.median(shares) < 1.3, shares


def test_experts_are_not_quantised():
    mixture = Size(30e9, 3e9, 48, 2048)
    assert eight_billion(mixture, device="4bit").weight_bytes == 60e9
    assert eight_billion(mixture).flops == 2 * 3e9 * 10_000
    with pytest.raises(ResourceError) as caught:
        preflight.require_fit(eight_billion(mixture), ROOMY._replace(memory=40 * GB))
    assert "8bit" not in str(caught.value)


def test_the_estimate_of_a_stage_agrees_with_the_plan_of_the_run():
    profile = load_profile("profiles/paper.yaml")
    job = estimates.job(profile, "activations", "qwen3-235b-a22b")
    size = registered_size("Qwen/Qwen3-235B-A22B")
    assert size == pytest.approx((235.1e9, 22e9, 94, 4096))
    assert size == workload.size(profile.sources["qwen3-235b-a22b"])
    amount = workload.work(profile)
    rows = amount.diagnosed(profile.probe_rows)
    needed = Reading(size, rows, rows * amount.tokens_per_action, profile)
    assert needed.tokens == job.tokens
    assert needed.flops == job.flops
    assert needed.store_bytes * workload.ASSUMED.compressed_share == job.disk_bytes


def test_the_estimate_needs_no_torch():
    """The plan makes the same estimate for 23 models in seconds."""
    code = "import sys, lib.run.resources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_a_run_that_fits_goes_on():
    preflight.require_fit(eight_billion(), ROOMY)
    preflight.require_fit(eight_billion(), ROOMY._replace(gpus=(80 * GB,), memory=8 * GB))


def test_too_little_memory_says_what_would_fit():
    with pytest.raises(ResourceError) as caught:
        preflight.require_fit(eight_billion(), ROOMY._replace(memory=12 * GB))
    message = str(caught.value)
    assert "12.00 GB are free in memory here" in message
    assert "weights 16.00 GB" in message
    for setting in ("first_layers: ", "device: auto on GPUs with", "device: remote"):
        assert setting in message
    layers = int(message.split("first_layers: ")[1].split()[0])
    preflight.require_fit(eight_billion(EIGHT_BILLION.first(layers)), ROOMY._replace(memory=12 * GB))


def test_too_small_a_gpu_says_how_many_are_needed_and_what_quantising_gives():
    with pytest.raises(ResourceError) as caught:
        preflight.require_fit(eight_billion(), ROOMY._replace(gpus=(14 * GB,)))
    message = str(caught.value)
    assert "14.00 GB are free on 1 GPU(s)" in message
    assert "device: auto on 2 GPUs like this one" in message
    assert "device: 8bit (8.80 GB of weights)" in message
    assert "token_budget" not in message
    preflight.require_fit(eight_billion(), ROOMY._replace(gpus=(14 * GB,) * 2))
    preflight.require_fit(eight_billion(device="8bit"), ROOMY._replace(gpus=(14 * GB,)))
    with pytest.raises(ResourceError, match="free on the GPU"):
        preflight.require_fit(eight_billion(device="cuda"), ROOMY._replace(gpus=(14 * GB,) * 2))


def test_a_remote_model_needs_no_memory_here():
    preflight.require_fit(eight_billion(device="remote"), ROOMY._replace(memory=4 * GB))


def test_too_little_disk_says_what_would_fit():
    small = ROOMY._replace(disk=1 * GB)
    with pytest.raises(ResourceError) as caught:
        preflight.require_fit(eight_billion(), small)
    message = str(caught.value)
    assert "the store needs 1.18 GB and 1.00 GB of disk are free" in message
    assert "store_dtype" not in message
    assert "first_layers: 30 (of 36)" in message
    preflight.require_fit(eight_billion(EIGHT_BILLION.first(30)), small)
    preflight.require_fit(eight_billion(), small, object_store=True)
    with pytest.raises(ResourceError, match=r"2\.36 GB .* store_dtype: bfloat16 \(1\.18 GB\)"):
        preflight.require_fit(eight_billion(store_dtype="float32"), small)


ADVICE = {
    "token_budget": (eight_billion(token_budget=16_384), 18.5),
    "dtype": (eight_billion(dtype="float32"), 24),
    "first_layers": (eight_billion(), 9),
}


@pytest.mark.parametrize("key", ADVICE)
def test_every_setting_that_is_advised_would_do(key):
    """What the message names is tried: each setting in it, by itself, makes the run fit."""
    needed, free = ADVICE[key]
    machine = ROOMY._replace(memory=free * GB)
    with pytest.raises(ResourceError) as caught:
        preflight.require_fit(needed, machine)
    settings = str(caught.value).partition("Any of these would do: ")[2].split("; ")
    named = {name: value.split(" ")[0] for name, _, value in (each.partition(": ") for each in settings)}
    assert key in named
    for name, value in named.items():
        if name == "first_layers":
            preflight.require_fit(replace(needed, size=needed.size.first(int(value))), machine)
        elif name in ("token_budget", "dtype"):
            changed = {name: int(value) if name == "token_budget" else value}
            preflight.require_fit(replace(needed, keys=needed.keys.model_copy(update=changed)), machine)


def test_the_report_names_every_quantity():
    table = preflight.report(eight_billion(), ROOMY)
    assert table.loc["prompts, tokens", "needed"] == "1,000, 10,000"
    assert table.loc["weights, 2 bytes per parameter", "needed"] == "16.00 GB"
    assert table.loc["store, bfloat16", "needed"] == "1.18 GB"
    assert table.loc["time, without loading", "needed"] == "3.0 minutes"


def test_this_machine_counts_what_an_interrupted_run_has_written(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (7 + gpu, 100))
    monkeypatch.setattr(preflight, "matrix_rate", lambda device, dtype: 1.0)
    (tmp_path / "written").write_bytes(b"12345")
    machine = preflight.this_machine(tmp_path)
    assert (machine.gpus, machine.disk) == ((7, 8), 1005)
    assert preflight.this_machine(tmp_path / "not" / "yet", device="cpu").gpus == ()
    assert machine.memory > 0


def test_the_rate_is_of_a_product_of_random_numbers(monkeypatch):
    drawn, real = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **options: drawn.append(real(*size, **options)) or drawn[-1])
    assert preflight.matrix_rate("cpu", "float32") > 0
    (matrices,) = drawn
    assert matrices.std() == pytest.approx(1, rel=0.01)
