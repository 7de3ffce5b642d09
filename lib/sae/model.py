"""The sparse autoencoder of the paper: z = relu(W_e x + b_e), x_hat = W_d z + b_d, decoder columns of unit norm.

It is trained on vectors centred by the training mean. On disk and everywhere outside training the centre is folded into
the biases, so ``x`` is the raw residual stream.
"""

import torch
from torch import Tensor, nn


class SparseAutoencoder(nn.Module):
    """ReLU autoencoder with ``latents`` latents over a residual stream of ``width``.

    ``W_enc`` [width, latents], ``b_enc`` [latents], ``W_dec`` [latents, width] with rows of unit norm, ``b_dec`` [width].
    """

    def __init__(self, width: int, latents: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        encoder = torch.empty(latents, width)
        nn.init.kaiming_uniform_(encoder, a=5**0.5, generator=generator)
        self.W_enc = nn.Parameter(encoder.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(encoder / encoder.norm(dim=1, keepdim=True))
        self.b_dec = nn.Parameter(torch.zeros(width))

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.W_dec.shape[1]

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of x: [..., width] -> [..., latents]."""
        return torch.relu(x @ self.W_enc + self.b_enc)

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction of latents: [..., latents] -> [..., width]."""
        return z @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstruction and latents of x [..., width]."""
        z = self.encode(x)
        return self.decode(z), z

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)

    @torch.no_grad()
    def fold_centre(self, centre: Tensor) -> "SparseAutoencoder":
        """Return an autoencoder of raw vectors that does to x what this one does to x - centre, and adds it back."""
        folded = SparseAutoencoder(self.width, self.latents)
        folded.load_state_dict(self.state_dict())
        folded.b_enc -= centre @ folded.W_enc
        folded.b_dec += centre
        return folded


def fraction_of_variance_unexplained(x: Tensor, x_hat: Tensor) -> float:
    """Return the share of the variance of x [rows, width] that x_hat misses: 0 for the identity, 1 for the mean."""
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(dim=0)) ** 2).sum())
