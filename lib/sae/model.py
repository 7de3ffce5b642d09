"""The sparse autoencoder of the paper and its modern kinds: z = f(x W_enc + b_enc), x_hat = z W_dec + b_dec, unit-norm decoder.

f is a ReLU (published), a TopK (Gao et al. 2024: the k largest of every row) or a JumpReLU (Rajamanoharan et al. 2024: what
exceeds a threshold), which is also what a BatchTopK (Bussmann et al. 2024) is once it is trained. Names are those of
SAELens: ``d_in``, ``d_sae``, ``hidden_pre`` (hidden pre-activations), ``feature_acts`` (feature activations).

Training centres the vectors by the training mean. On disk and everywhere outside training the centre is folded into the
biases, so ``x`` is the raw residual stream.
"""

import copy
import math

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 4096


class SparseAutoencoder(nn.Module):
    """Autoencoder with ``d_sae`` latents over a residual stream of width ``d_in``.

    ``W_enc`` [d_in, d_sae], ``b_enc`` [d_sae], ``W_dec`` [d_sae, d_in] with rows of unit norm, ``b_dec`` [d_in].
    With ``k`` only the k largest latents of a row are kept; with ``jump`` those above ``threshold`` [d_sae].
    It begins with biases of 0 and Kaiming's uniform weights: the encoder's for a ReLU, the decoder's for a linear map.
    """

    def __init__(self, d_in: int, d_sae: int, *, seed: int = 0, k: int | None = None, jump: bool = False) -> None:
        super().__init__()
        self.d_in, self.d_sae, self.k, self.jump = d_in, d_sae, k, jump
        generator = torch.Generator().manual_seed(seed)
        encoder, decoder = torch.empty(d_sae, d_in), torch.empty(d_in, d_sae)
        nn.init.kaiming_uniform_(encoder, nonlinearity="relu", generator=generator)
        nn.init.kaiming_uniform_(decoder, nonlinearity="linear", generator=generator)
        directions = nn.functional.normalize(decoder.T, dim=1)
        # Gao et al. begin from the decoder's directions, which leaves fewer latents dead; the released recipe draws both.
        begun = encoder.T if k is None and not jump else directions.T
        self.W_enc = nn.Parameter(begun.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(directions.contiguous())
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        if jump:
            self.register_buffer("threshold", torch.zeros(d_sae))

    def hidden_pre(self, x: Tensor) -> Tensor:
        """Return the hidden pre-activations of x: [..., d_in] -> [..., d_sae]."""
        return x @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Return the feature activations of x: [..., d_in] -> [..., d_sae]."""
        hidden_pre = self.hidden_pre(x)
        if self.k is not None:
            return top_k(hidden_pre, self.k)
        if self.jump:
            return torch.relu(hidden_pre) * (hidden_pre > self.threshold)
        return torch.relu(hidden_pre)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Return the reconstruction from feature activations: [..., d_sae] -> [..., d_in]."""
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction [..., d_in] and the feature activations [..., d_sae] of x [..., d_in]."""
        feature_acts = self.encode(x)
        return self.decode(feature_acts), feature_acts

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)

    @torch.no_grad()
    def fold_centre(self, centre: Tensor) -> "SparseAutoencoder":
        """Return an autoencoder of raw vectors that does to x what this one does to x - centre, and adds it back."""
        folded = copy.deepcopy(self)
        folded.b_enc -= centre @ folded.W_enc
        folded.b_dec += centre
        return folded


def top_k(hidden_pre: Tensor, k: int) -> Tensor:
    """Keep the k largest of every row, where positive: [..., d_sae] -> [..., d_sae]."""
    values, positions = hidden_pre.topk(k, dim=-1)
    return torch.zeros_like(hidden_pre).scatter(-1, positions, torch.relu(values))


def batch_top_k(hidden_pre: Tensor, k: int) -> Tensor:
    """Keep the k x rows largest of all rows together, where positive: [rows, d_sae] -> [rows, d_sae]."""
    values, positions = hidden_pre.flatten().topk(k * len(hidden_pre))
    return torch.zeros_like(hidden_pre).flatten().scatter(0, positions, torch.relu(values)).view_as(hidden_pre)


@torch.no_grad()
def fraction_of_variance_unexplained(x: Tensor, errors: Tensor, weights: Tensor) -> Tensor:
    """Return the share of the variance of x [rows, d_in] that a reconstruction misses: 0 for the identity, 1 for the mean.

    ``errors`` [rows] are squared lengths of every row's error, ``weights`` [draws, rows] say how often a row counts. The
    result is [draws]; NaN where x does not vary.
    """
    weights = weights.double()
    # The mean of a residual stream can be thousands of times its spread.
    centre = x.mean(dim=0, dtype=torch.float64).to(x.dtype)
    squares = torch.zeros(len(weights), dtype=torch.float64, device=x.device)
    sums = torch.zeros(len(weights), x.shape[1], dtype=torch.float64, device=x.device)
    for part, counts in zip(x.split(ROWS_AT_ONCE), weights.split(ROWS_AT_ONCE, dim=1), strict=True):
        centred = (part - centre).double()
        squares += counts @ (centred**2).sum(dim=1)
        sums += counts @ centred
    spread = squares - (sums**2).sum(dim=1) / weights.sum(dim=1)
    return torch.where(spread > 0, weights @ errors.double() / spread, torch.nan)


class Quality:
    """What an autoencoder makes of rows that come in batches, which lie where its weights do; of each only sums are kept."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae, self.rows = sae, 0
        self.fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_enc.device)
        # In float64, because the mean of a residual stream can be thousands of times its spread.
        self.sums = torch.zeros(sae.d_in, dtype=torch.float64, device=sae.W_enc.device)
        self.squares, self.errors = torch.zeros(2, dtype=torch.float64, device=sae.W_enc.device)

    @torch.no_grad()
    def add(self, x: Tensor) -> Tensor:
        """Count rows x [rows, d_in] and return their feature activations [rows, d_sae]."""
        x_hat, feature_acts = self.sae(x)
        self.rows += len(x)
        self.fired += torch.count_nonzero(feature_acts, dim=0)
        self.sums += x.sum(dim=0, dtype=torch.float64)
        self.squares += (x.double() ** 2).sum()
        self.errors += ((x - x_hat) ** 2).sum(dim=1).double().sum()
        return feature_acts

    def measures(self) -> dict[str, float]:
        """Return ``mse``, ``l0`` (active latents per row), ``fvu`` and ``dead`` (share of latents that no row activates).

        ``fvu`` is :func:`fraction_of_variance_unexplained`, every row counted once.
        """
        spread = float(self.squares - (self.sums**2).sum() / self.rows)
        return {
            "mse": float(self.errors) / (self.rows * self.sae.d_in),
            "l0": int(self.fired.sum()) / self.rows,
            "fvu": float(self.errors) / spread if spread > 1e-12 * self.squares else math.nan,
            "dead": 1 - float((self.fired > 0).float().mean()),
        }


def quality(sae: SparseAutoencoder, x: Tensor) -> dict[str, float]:
    """Return the measures of :class:`Quality` of x [rows, d_in], which lies where the autoencoder's weights do."""
    seen = Quality(sae)
    for batch in x.split(ROWS_AT_ONCE):
        seen.add(batch)
    return seen.measures()
