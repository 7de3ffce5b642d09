"""How many parameters of a mixture of experts read one token. Light: nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of a configuration, of which each family of mixtures has one."""

EXPERTS_PER_TOKEN = "num_experts_per_tok"


def active_parameters(counts: Mapping[str, int], config: Mapping[str, Any]) -> float:
    """Count the parameters that read one token: of the tensors of experts the share that a token is sent to.

    ``counts`` are the parameters of every tensor by its name, in transformers or in GGUF; of the model's ``config`` only
    ``EXPERTS`` and ``EXPERTS_PER_TOKEN`` count.
    """
    experts = next((config[key] for key in EXPERTS if config.get(key)), 1)
    share = (config.get(EXPERTS_PER_TOKEN) or 1) / experts
    return sum(count * (share if ".experts." in name or "_exps." in name else 1) for name, count in counts.items())
