"""Which latents are tuned, and the part of an autoencoder that tuning moves.

The tuned latents have parameters of their own, because masking gradients freezes nothing under weight decay or
normalisation of whole matrices.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.sae.features import contrasts, top_latents
from lib.sae.model import SparseAutoencoder


@dataclass(frozen=True)
class Selection:
    """Which latents are tuned, and what they stand for.

    Attributes:
        tuned: indices of the latents, [tuned]; the other attributes are by position within it.
        readout: per dimension, the weights [tuned, 10] of the mean activation that stands for it: the correlations of its
            top latents, divided by their sum.
        contrast: per dimension, the weights [tuned, 10] of the plain mean that the polarity loss compares; 0 for a pair of
            which one pole has no latents.
        strict: positions of the latents that meet the strict criterion, and ``strict_dimension`` the dimension of each.
    """

    tuned: np.ndarray
    readout: np.ndarray
    contrast: np.ndarray
    strict: np.ndarray
    strict_dimension: np.ndarray


def select(features: pd.DataFrame) -> Selection:
    """Turn the table of :func:`lib.sae.features.identify` into the sets that the losses need."""
    r = features.filter(regex="^r_").to_numpy()
    tuned, strict = np.flatnonzero(features["tuned"]), np.flatnonzero(features["strict"])
    readout, contrast = np.zeros((2, len(tuned), r.shape[1]), dtype=np.float32)
    # Tuned latents are in ascending order and hold all sets, so a search gives their positions.
    for dimension, opposing in enumerate(contrasts(r)):
        top = top_latents(r, dimension)
        readout[np.searchsorted(tuned, top), dimension] = r[top, dimension] / r[top, dimension].sum()
        contrast[np.searchsorted(tuned, opposing), dimension] = 1 / max(1, len(opposing))
    return Selection(tuned, readout, contrast, np.searchsorted(tuned, strict), np.abs(r[strict]).argmax(axis=1))


def randomly(selection: Selection, activity: np.ndarray, *, seed: int) -> Selection:
    """Return as many latents that fire about as often, drawn at random, in the same roles but none in its own.

    It is the control for the choice of features. Of latents with similar ``activity`` [d_sae], at least two, untuned ones are
    taken first. Where the tuned set is so large that they run out, tuned ones follow, in other roles: the difference to the
    control is then what the roles are worth, no longer what the choice of latents is.
    """
    generator, own = np.random.default_rng(seed), selection.tuned
    chosen, penalty = own.copy(), 1e-6 * generator.random(len(activity))
    penalty[own] += 2
    order = generator.permutation(len(own))
    for position in order:
        distance = np.abs(activity - activity[own[position]]) + penalty
        distance[own[position]] = np.inf
        chosen[position] = np.argmin(distance)
        if np.isinf(distance).all():
            # Only itself is left: the first role takes it, and this one what the first had.
            chosen[position], chosen[order[0]] = chosen[order[0]], own[position]
        penalty[chosen[position]] = np.inf
    return replace(selection, tuned=chosen)


class TunedLatents(nn.Module):
    """The trainable part of an autoencoder beside the frozen rest."""

    def __init__(self, sae: SparseAutoencoder, selection: Selection) -> None:
        super().__init__()
        self.selection, self.d_sae = selection, sae.d_sae
        index = torch.from_numpy(selection.tuned).to(sae.W_enc.device)
        self.encoder = nn.Parameter(sae.W_enc.detach()[:, index].clone())
        self.bias = nn.Parameter(sae.b_enc.detach()[index].clone())
        self.decoder = nn.Parameter(sae.W_dec.detach()[index].clone())
        self.register_buffer("threshold", sae.threshold[index].clone() if sae.jump else torch.zeros_like(self.bias))
        # No buffers: what is constant is not part of the state that is kept at the best epoch.
        self.frozen = (sae.W_dec.detach(), sae.b_dec.detach())
        self.lengths = self.decoder.detach().norm(dim=1, keepdim=True)
        self.readout, self.contrast = (
            torch.from_numpy(part).to(index.device) for part in (selection.readout, selection.contrast)
        )

    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return activations of the tuned latents, and what the frozen ones add up to and reconstruct.

        The latter, ``mass`` [rows] and ``rest`` [rows, d_in], are computed once. In a TopK the tuned latents compete with
        ``rivals`` [rows, k], the activations of the k largest frozen ones, whose indices are ``leaders``; of both, only the k
        largest fire.

        Returns:
            Activations [rows, tuned], sums of the frozen activations [rows], reconstructions by the frozen [rows, d_in].
        """
        z = torch.relu(data["x"] @ self.encoder + self.bias)
        if "rivals" not in data:
            return z * (z > self.threshold), data["mass"], data["rest"]
        rivals, (decoder, bias) = data["rivals"], self.frozen
        least = torch.cat([z, rivals], dim=1).detach().topk(rivals.shape[1], dim=1).values[:, -1:]
        firing = rivals * (rivals >= least)
        # A sum over the k leaders of a row, without the dense activations of all latents.
        rest = nn.functional.embedding_bag(data["leaders"], decoder, per_sample_weights=firing, mode="sum")
        return z * (z >= least), firing.sum(dim=1), rest + bias

    @torch.no_grad()
    def keep_lengths(self) -> None:
        """Give every decoder row the length it began with: 1, but for autoencoders by others that rank by another one."""
        self.decoder.copy_(nn.functional.normalize(self.decoder, dim=1, eps=1e-8) * self.lengths)
