"""Which latents are tuned, and the part of an autoencoder that tuning moves.

The tuned rows are parameters of their own, because masking gradients freezes nothing under weight decay or whole-matrix
normalisation.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.sae.features import CONTRAST, TOP, top_latents
from lib.sae.model import SparseAutoencoder


@dataclass(frozen=True)
class Selection:
    """Which latents are tuned, and what each stands for, as positions within ``tuned``."""

    tuned: np.ndarray
    top: list[np.ndarray]
    contrast: list[np.ndarray]
    strict: np.ndarray
    strict_dimension: np.ndarray


def select(features: pd.DataFrame) -> Selection:
    """Turn the table of ``lib.sae.features.identify`` into the sets that the losses need."""
    r = features[[column for column in features if column.startswith("r_")]].to_numpy()
    tuned = np.flatnonzero(features["tuned"])
    place = {latent: index for index, latent in enumerate(tuned)}
    tops = [np.array([place[i] for i in top_latents(r, d, TOP)], dtype=int) for d in range(r.shape[1])]
    contrasts = [np.array([place[i] for i in top_latents(r, d, CONTRAST)], dtype=int) for d in range(r.shape[1])]
    strict = np.flatnonzero(features["strict"])
    return Selection(
        tuned, tops, contrasts, np.array([place[i] for i in strict], dtype=int), np.abs(r[strict]).argmax(axis=1)
    )


def randomly(selection: Selection, activity: np.ndarray, seed: int) -> Selection:
    """Return as many other latents that fire about as often, drawn at random, with the same roles.

    It is the control for the choice of features. Among latents of similar ``activity`` [latents], untuned ones are
    taken first; where the tuned set is so large that they run out, tuned ones fill the places, in other roles.
    """
    generator = np.random.default_rng(seed)
    free = np.ones(len(activity), dtype=bool)
    is_tuned = np.isin(np.arange(len(activity)), selection.tuned)
    chosen = np.empty(len(selection.tuned), dtype=int)
    noise = generator.random(len(activity)) * 1e-6
    for place in generator.permutation(len(chosen)):
        distance = np.abs(activity - activity[selection.tuned[place]]) + noise + 2.0 * is_tuned
        chosen[place] = np.argmin(np.where(free, distance, np.inf))
        free[chosen[place]] = False
    return Selection(chosen, selection.top, selection.contrast, selection.strict, selection.strict_dimension)


class TunedRows(nn.Module):
    """The trainable part of an autoencoder beside the frozen rest."""

    threshold: Tensor

    def __init__(self, sae: SparseAutoencoder, selection: Selection) -> None:
        super().__init__()
        index = torch.from_numpy(selection.tuned).to(sae.W_enc.device)
        self.encoder = nn.Parameter(sae.W_enc.detach()[:, index].clone())
        self.bias = nn.Parameter(sae.b_enc.detach()[index].clone())
        self.decoder = nn.Parameter(sae.W_dec.detach()[index].clone())
        self.register_buffer("threshold", sae.threshold[index].clone() if sae.jump else torch.zeros_like(self.bias))
        # No buffers: what is constant is not part of the state that is kept at the best epoch.
        self.frozen = (sae.W_dec.detach(), sae.b_dec.detach())
        self.top, self.contrast = (
            averaging(sets, len(index)).to(index.device) for sets in (selection.top, selection.contrast)
        )

    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return activations of the tuned latents [rows, tuned] and what the frozen ones reconstruct [rows, width].

        The latter is ``rest``, computed once. Where every row keeps k latents, the tuned ones compete with ``rivals``
        [rows, k], the activations of the k largest frozen ones at ``places``, and either side's losers are silent.
        """
        z = torch.relu(data["x"] @ self.encoder + self.bias)
        if "rivals" not in data:
            return z * (z > self.threshold), data["rest"]
        rivals, (decoder, bias) = data["rivals"], self.frozen
        least = torch.cat([z, rivals], dim=1).detach().topk(rivals.shape[1], dim=1).values[:, -1:]
        others = torch.zeros(len(z), len(decoder), device=z.device).scatter(
            1, data["places"], rivals * (rivals >= least)
        )
        return z * (z >= least), others @ decoder + bias

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every tuned decoder row unit norm."""
        self.decoder /= self.decoder.norm(dim=1, keepdim=True).clamp_min(1e-8)


def averaging(sets: list[np.ndarray], latents: int) -> Tensor:
    """Return the matrix [latents, sets] that turns activations into the mean of every set; 0 for an empty set."""
    matrix = torch.zeros(latents, len(sets))
    for place, members in enumerate(sets):
        matrix[members, place] = 1 / max(1, len(members))
    return matrix
