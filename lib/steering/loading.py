"""What interventions need, read from the directories of notebooks 05 and 06 or drawn at random."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.alignment.arms import FOLDERS
from lib.run.files import short
from lib.sae import files
from lib.sae.model import SparseAutoencoder
from lib.sae.rows import folder_of
from lib.steering.interventions import Arm, Edit, Intervention, SteeringError


def order(intervention: Intervention) -> tuple[int, tuple[int, ...], str]:
    """Sort by this to open one group of layers at a time and every autoencoder of it once; single layers come first."""
    return len(intervention.layers), intervention.layers, _source(intervention.arm)


def _source(arm: str) -> str:
    """Name the arm of stage 06 whose autoencoder an arm uses: its own, or the aligned one's length."""
    return arm if arm in FOLDERS else "aligned"


def seed_of(seed: int, layer: int, replicate: int) -> int:
    """Return the seed of what is drawn for one layer and replicate, so that no two share one."""
    return int(np.random.SeedSequence([seed, layer, replicate]).generate_state(1)[0])


def random_direction(d_in: int, seed: int) -> Tensor:
    """Return a direction drawn uniformly, float32 [d_in] of length 1."""
    drawn = torch.randn(d_in, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


@dataclass(kw_only=True)
class ArmLoader:
    """Reads or draws what interventions need, one after the other, and holds what the last one needed.

    Arms, replicates, strengths and features that share an autoencoder share its load if they come one after the other, as
    :func:`order` sorts them. Whatever the next intervention does not need is let go before it reads anything. So one
    autoencoder per layer steered at once is in memory, and for ``random-sae`` one more.

    Attributes:
        sae: directory of notebook 05, ``sae/<model>``.
        alignment: directory of notebook 06, ``alignment/<model>``.
        d_in: width of the model's residual stream.
        devices: layer -> where its output lies, see :func:`lib.steering.generation.layer_devices`; by default the CPU.
        contrasts: layer -> direction of the arm ``mean-difference``, see :func:`lib.steering.interventions.contrasts`.
        seed: of the random directions and of the untrained autoencoders.
        model: short name of the model, to be compared with the one that the autoencoder was made for.
    """

    sae: Path
    alignment: Path
    d_in: int
    devices: Mapping[int, torch.device] = field(default_factory=dict)
    contrasts: Mapping[int, Tensor] = field(default_factory=dict)
    seed: int = 0
    model: str | None = None
    _autoencoders: dict[tuple[int, str | int], SparseAutoencoder] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, intervention: Intervention) -> Arm:
        """Return the arm of an intervention; the baseline needs nothing.

        Raises:
            lib.sae.files.FormatError: the autoencoder is not there, cannot be read or is of another width.
            SteeringError: the autoencoder is of another model or layer; the arm ``mean-difference`` has no direction.
        """
        keys: set[str | int] = {_source(intervention.arm)}
        if intervention.arm == "random-sae":
            keys.add(intervention.replicate)
        needed = {(layer, key) for layer in intervention.layers for key in keys}
        if self._autoencoders.keys() - needed:
            self._autoencoders = {key: value for key, value in self._autoencoders.items() if key in needed}
            # nnsight's traces leave cycles that hold what they used.
            gc.collect()
        return Arm(intervention, {layer: self._edit(intervention, layer) for layer in intervention.layers})

    def _edit(self, intervention: Intervention, layer: int) -> Edit:
        name, source = intervention.arm, _source(intervention.arm)
        folder = self._folder(source, layer)
        if (layer, source) not in self._autoencoders:
            self._autoencoders[layer, source] = self._placed(self._read(folder, layer), layer)
        # The untuned arm has no tuned latents of its own: its counterpart of the selection is the aligned arm's.
        chosen = files.metadata(self._folder("aligned", layer) if name == "untuned" else folder)["tuned_latents"]
        autoencoder, direction = self._autoencoders[layer, source], None
        device = autoencoder.W_enc.device
        if name == "random-sae":
            direction = self._drawn(autoencoder, layer, intervention.replicate)
        elif name == "random-direction":
            direction = random_direction(self.d_in, seed_of(self.seed, layer, intervention.replicate)).to(device)
        elif name == "mean-difference" and layer in self.contrasts:
            direction = self.contrasts[layer].to(device)
        return Edit(autoencoder, torch.tensor(chosen, dtype=torch.long, device=device), direction)

    def _drawn(self, like: SparseAutoencoder, layer: int, replicate: int) -> SparseAutoencoder:
        if (layer, replicate) not in self._autoencoders:
            seed = seed_of(self.seed, layer, replicate)
            self._autoencoders[layer, replicate] = self._placed(
                SparseAutoencoder(like.d_in, like.d_sae, seed=seed, k=like.k), layer
            )
        return self._autoencoders[layer, replicate]

    def _placed(self, autoencoder: SparseAutoencoder, layer: int) -> SparseAutoencoder:
        return autoencoder.to(self.devices.get(layer, torch.device("cpu"))).requires_grad_(False)

    def _folder(self, source: str, layer: int) -> Path:
        return (self.sae if source == "untuned" else self.alignment) / folder_of(layer) / FOLDERS[source]

    def _read(self, folder: Path, layer: int) -> SparseAutoencoder:
        autoencoder, about = files.load(folder, self.d_in), files.metadata(folder)
        made_for, hook = about.get("model_name", self.model), about.get("hook_name", f".{layer}")
        if self.model is not None and made_for != self.model:
            raise SteeringError(
                f"{short(folder)} belongs to another model: it was made for {made_for!r}, and {self.model!r} is to be steered"
            )
        if not hook.endswith(f".{layer}"):
            raise SteeringError(f"{short(folder)} was made for {hook}, not for layer {layer}")
        return autoencoder
