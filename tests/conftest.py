"""Shared fixtures: tiny random models, the demo run, and the real data beside the checkout where there is some."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lib.run.files import PROJECT, resolve

torch.set_num_threads(1)
# A loaded machine is no failure.
settings.register_profile("companion", deadline=None)
settings.load_profile("companion")

REAL_DATA = PROJECT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes minutes first, so that processes that share the tests end together."""
    items.sort(key=lambda item: "pipeline" not in item.keywords)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real Social-Chemistry rows, Flames prompts and a small trained model; not part of the project."""
    if not REAL_DATA.exists():
        pytest.skip("no real data beside the checkout (../shared/data)")
    return REAL_DATA


@pytest.fixture(scope="session")
def demo_run() -> Path:
    """The finished demo run, which `make test` computes first."""
    directory = resolve("runs/demo")
    if not (directory / "claims" / "manifest.json").exists():
        pytest.skip("no finished demo run; `make reproduce` computes it")
    return directory


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: any text, no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random Qwen3 of 3 layers, width 32, and a byte tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory
