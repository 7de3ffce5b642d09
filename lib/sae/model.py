"""The sparse autoencoder of the paper and its modern arms: z = f(W_e x + b_e), x_hat = W_d z + b_d, unit-norm decoder.

f is a ReLU (published), a TopK (Gao et al. 2024: the k largest of every row) or a JumpReLU (Rajamanoharan et al. 2024: what
exceeds a threshold), which is also what a BatchTopK (Bussmann et al. 2024) is once it is trained.

It is trained on vectors centred by the training mean. On disk and everywhere outside training the centre is folded into
the biases, so ``x`` is the raw residual stream.
"""

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 4096


class SparseAutoencoder(nn.Module):
    """Autoencoder with ``latents`` latents over a residual stream of ``width``.

    ``W_enc`` [width, latents], ``b_enc`` [latents], ``W_dec`` [latents, width] with rows of unit norm, ``b_dec`` [width].
    With ``k`` only the k largest latents of a row are kept; with ``jump`` those above ``threshold`` [latents].
    """

    threshold: Tensor

    def __init__(self, width: int, latents: int, seed: int = 0, k: int | None = None, jump: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        encoder = torch.empty(latents, width)
        nn.init.kaiming_uniform_(encoder, a=5**0.5, generator=generator)
        self.W_enc = nn.Parameter(encoder.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(encoder / encoder.norm(dim=1, keepdim=True))
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.k = k
        self.jump = jump
        if jump:
            self.register_buffer("threshold", torch.zeros(latents))

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
        before = x @ self.W_enc + self.b_enc
        if self.k is not None:
            return top_k(before, self.k)
        if self.jump:
            return torch.relu(before) * (before > self.threshold)
        return torch.relu(before)

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
        folded = SparseAutoencoder(self.width, self.latents, k=self.k, jump=self.jump)
        folded.load_state_dict(self.state_dict())
        folded.b_enc -= centre @ folded.W_enc
        folded.b_dec += centre
        return folded


def top_k(before: Tensor, k: int) -> Tensor:
    """Keep the k largest of every row, where positive: [..., latents] -> [..., latents]."""
    values, places = before.topk(k, dim=-1)
    return torch.zeros_like(before).scatter(-1, places, torch.relu(values))


def batch_top_k(before: Tensor, k: int) -> Tensor:
    """Keep the k x rows largest of all rows together, where positive: [rows, latents] -> [rows, latents]."""
    values, places = before.flatten().topk(k * len(before))
    return torch.zeros_like(before).flatten().scatter(0, places, torch.relu(values)).view_as(before)


@torch.no_grad()
def fraction_of_variance_unexplained(x: Tensor, missed: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the share of the variance of x that a reconstruction misses: 0 for the identity, 1 for the mean.

    Args:
        x: [rows, width]; it is centred first, because the mean of a residual stream can be thousands of times its spread.
        missed: squared length of every row's error, [rows].
        weights: how often a row counts, [draws, rows]; without them every row counts once.

    Returns:
        [draws], or [1] without weights; NaN where x does not vary.
    """
    weights = torch.ones(1, len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    centre = x.mean(dim=0, dtype=torch.float64).to(x.dtype)
    squares = torch.zeros(len(weights), dtype=torch.float64, device=x.device)
    sums = torch.zeros(len(weights), x.shape[1], dtype=torch.float64, device=x.device)
    for rows, part in zip(torch.arange(len(x)).split(ROWS_AT_ONCE), x.split(ROWS_AT_ONCE), strict=True):
        centred = (part - centre).double()
        here = weights[:, rows[0] : rows[-1] + 1]
        squares += here @ (centred**2).sum(dim=1)
        sums += here @ centred
    spread = squares - (sums**2).sum(dim=1) / weights.sum(dim=1)
    return torch.where(spread > 0, weights @ missed.double() / spread, torch.nan)


@torch.no_grad()
def quality(sae: SparseAutoencoder, x: Tensor) -> dict[str, float]:
    """Return ``mse``, ``l0`` (active latents a row), ``fvu`` and ``dead`` (share of latents that no row of x activates).

    ``x`` [rows, width] lies where the autoencoder's weights do.
    """
    missed, active = [], 0.0
    alive = torch.zeros(sae.latents, dtype=torch.bool, device=x.device)
    for part in x.split(ROWS_AT_ONCE):
        x_hat, z = sae(part)
        fires = z > 0
        missed.append(((part - x_hat) ** 2).sum(dim=1))
        active += float(fires.sum())
        alive |= fires.any(dim=0)
    errors = torch.cat(missed)
    return {
        "mse": float(errors.double().sum()) / x.numel(),
        "l0": active / len(x),
        "fvu": float(fraction_of_variance_unexplained(x, errors)),
        "dead": 1 - float(alive.float().mean()),
    }
