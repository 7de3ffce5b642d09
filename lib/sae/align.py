"""Targeted alignment: tune the moral latents toward the human vectors, and leave everything else untouched.

Released recipe: encoder columns, encoder biases and decoder rows of the tuned set are trained, all else is frozen. The
tuned rows are parameters of their own here, because masking gradients freezes nothing under weight decay or
whole-matrix normalisation. The project page names three losses; the released code adds reconstruction, sparsity and a
penalty on strict latents that fire for another category.

``sigmoid(a)`` with activations a >= 0 is at least .5, so the published alignment loss cannot reach targets below .5. The
objectives that end in ``-without-floor`` use ``2 sigmoid(a) - 1``, which can.
"""

import copy
import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.sae.features import CONTRAST, TOP, top_latents
from lib.sae.model import ROWS_AT_ONCE, SparseAutoencoder
from lib.sae.train import TrainingError

WEIGHTS = {"reconstruction": 1.0, "sparsity": 1e-4, "align": 0.5, "polarity": 0.3, "prototype": 0.2, "mono": 0.1}
"""Weights of the six terms, released recipe."""

NAMED_ON_THE_PAGE = ("align", "polarity", "prototype")
OBJECTIVES = ("six-term", "three-term", "six-term-without-floor", "three-term-without-floor")
FLOOR = 0.5
"""What a sigmoid of an activation, which is never negative, cannot go below."""

MARGIN = 0.5
STRONG = 0.3
PAIRS = 100
PAIR_MARGIN = 0.1


@dataclass(frozen=True)
class Recipe:
    """Settings of one alignment; defaults are the published run's."""

    objective: str = "six-term"
    epochs: int = 50
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 512
    patience: int = 10
    seed: int = 0


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


def align(
    sae: SparseAutoencoder,
    selection: Selection,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    label: str,
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """Tune the selected latents.

    Args:
        sae: the pretrained autoencoder of raw vectors; it is not changed. Training happens where its weights lie.
        selection: the tuned set.
        train: raw pooled residual streams [rows, width] and moral vectors [rows, 10].
        validation: the same, to stop on.
        recipe: the settings.
        label: for the progress bar.

    Returns:
        The aligned autoencoder and its history: ``epoch, split, term, value``. With nothing selected, the autoencoder as
        it was and an empty history.

    Raises:
        TrainingError: the loss is not finite, or the objective is unknown.
    """
    columns = ["epoch", "split", "term", "value"]
    if len(selection.tuned) == 0:
        return copy.deepcopy(sae), pd.DataFrame(columns=columns)
    weights = term_weights(recipe.objective)
    data = {name: _prepare(sae, selection, *part) for name, part in (("train", train), ("validation", validation))}
    rows = TunedRows(sae, selection)
    optimiser = torch.optim.AdamW(
        rows.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = max(1, -(-len(train[0]) // recipe.batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=max(11, recipe.epochs * steps + 1), pct_start=0.1
    )
    importance = row_weights(train[1])
    best, best_loss, waited, history = copy.deepcopy(rows.state_dict()), float("inf"), 0, []
    bar = tqdm(range(recipe.epochs), desc=label, unit="epoch")
    for epoch in bar:
        drawn = torch.multinomial(importance, len(importance), replacement=True, generator=generator)
        sums: dict[str, float] = {}
        for batch in drawn.split(recipe.batch_size):
            terms = losses(rows, selection, _take(data["train"], batch), recipe.objective, generator)
            total = sum(weights[name] * value for name, value in terms.items())
            if not torch.isfinite(total):
                raise TrainingError(f"{label}: the loss is not finite in epoch {epoch}; lower alignment_learning_rate")
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            schedule.step()
            rows.normalise_decoder()
            sums = {name: sums.get(name, 0.0) + value.item() * len(batch) for name, value in terms.items()}
        with torch.no_grad():
            fixed = torch.Generator().manual_seed(recipe.seed)
            held_out = {
                k: float(v) for k, v in losses(rows, selection, data["validation"], recipe.objective, fixed).items()
            }
        history += [(epoch, "train", name, value / len(drawn)) for name, value in sums.items()]
        history += [(epoch, "validation", name, value) for name, value in held_out.items()]
        loss = sum(weights[name] * value for name, value in held_out.items())
        bar.set_postfix(validation=f"{loss:.4f}", best=f"{min(loss, best_loss):.4f}")
        waited += 1
        if loss < best_loss:
            best, best_loss, waited = copy.deepcopy(rows.state_dict()), loss, 0
        if waited >= recipe.patience:
            break
    rows.load_state_dict(best)
    return _merged(sae, selection.tuned, rows), pd.DataFrame(history, columns=columns)


def term_weights(objective: str) -> dict[str, float]:
    """Return the weight of every term of one of ``OBJECTIVES``."""
    if objective not in OBJECTIVES:
        raise TrainingError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
    return {name: WEIGHTS[name] for name in NAMED_ON_THE_PAGE} if objective.startswith("three-term") else WEIGHTS


def share_below_floor(vectors: np.ndarray) -> float:
    """Return the share of the targets of vectors [rows, 10] that the published alignment loss cannot reach."""
    targets = vectors[vectors > 0]
    return float((targets < FLOOR).mean()) if len(targets) else 0.0


def losses(
    rows: TunedRows, selection: Selection, data: dict[str, Tensor], objective: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the terms of an objective on a batch: ``m`` [rows, 10] and what :class:`TunedRows` takes."""
    z, rest = rows(data)
    a, m = z @ rows.top, data["m"]
    strong_virtue = (m[:, 0::2] > STRONG).any(dim=1)
    strong_vice = (m[:, 1::2] > STRONG).any(dim=1)
    contrast = z @ rows.contrast
    lead = contrast[:, 0::2] - contrast[:, 1::2]
    polarity = _mean(torch.relu(MARGIN - lead)[strong_virtue]) + _mean(torch.relu(MARGIN + lead)[strong_vice])
    reach = 2 * torch.sigmoid(a) - 1 if objective.endswith("-without-floor") else torch.sigmoid(a)
    terms = {
        "align": _mean((reach - m)[m > 0] ** 2),
        "polarity": polarity,
        "prototype": _prototype_term(a, m, generator),
    }
    if objective.startswith("three-term"):
        return terms
    own = m.argmax(dim=1)
    elsewhere = torch.from_numpy(selection.strict_dimension).to(own.device)[None, :] != own[:, None]
    strict = z[:, torch.from_numpy(selection.strict)]
    return terms | {
        "reconstruction": ((data["x"] - rest - z @ rows.decoder) ** 2).mean(),
        "sparsity": z.abs().mean(),
        "mono": _mean((strict**2)[elsewhere]),
    }


def averaging(sets: list[np.ndarray], latents: int) -> Tensor:
    """Return the matrix [latents, sets] that turns activations into the mean of every set; 0 for an empty set."""
    matrix = torch.zeros(latents, len(sets))
    for place, members in enumerate(sets):
        matrix[members, place] = 1 / max(1, len(members))
    return matrix


def row_weights(vectors: np.ndarray) -> Tensor:
    """Return how often a row is drawn: 2 above .5, 1.5 in (.25, .5], .3 neutral, the rarer strong pole up to 3 times."""
    typicality = vectors.max(axis=1)
    weights = np.select([typicality > 0.5, typicality > 0.25, typicality == 0], [2.0, 1.5, 0.3], 1.0)
    virtue, vice = vectors[:, 0::2].max(axis=1) > STRONG, vectors[:, 1::2].max(axis=1) > STRONG
    if virtue.any() and vice.any():
        ratio = vice.sum() / virtue.sum()
        rarer = virtue if ratio > 1 else vice
        weights = np.where(rarer, weights * min(3.0, max(ratio, 1 / ratio)), weights)
    return torch.from_numpy(weights)


def frozen_hash(sae: SparseAutoencoder, tuned: np.ndarray) -> str:
    """Return a sha256 of all weights outside the tuned set."""
    kept = np.setdiff1d(np.arange(sae.latents), tuned)
    parts = (sae.W_enc[:, kept], sae.b_enc[kept], sae.W_dec[kept], sae.b_dec)
    return hashlib.sha256(b"".join(part.detach().contiguous().numpy().tobytes() for part in parts)).hexdigest()


def frozen_share(sae: SparseAutoencoder, tuned: np.ndarray) -> float:
    """Return the share of weights that alignment leaves as they were."""
    total = sum(value.numel() for value in sae.parameters())
    return 1 - len(tuned) * (2 * sae.width + 1) / total


@torch.no_grad()
def _prepare(sae: SparseAutoencoder, selection: Selection, x: np.ndarray, vectors: np.ndarray) -> dict[str, Tensor]:
    """What the frozen latents contribute does not change (of a TopK: which of them lead does not); compute it once."""
    device, index = sae.W_enc.device, torch.from_numpy(selection.tuned)
    raw = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device)
    data = {"x": raw, "m": torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).to(device)}
    if sae.k is not None:
        leaders = [_frozen_before(sae, part, index).topk(sae.k, dim=1) for part in raw.split(ROWS_AT_ONCE)]
        data["rivals"] = torch.relu(torch.cat([leader.values for leader in leaders]))
        data["places"] = torch.cat([leader.indices for leader in leaders])
        return data
    rest = []
    for part in raw.split(ROWS_AT_ONCE):
        z = sae.encode(part)
        z[:, index] = 0
        rest.append(sae.decode(z))
    return data | {"rest": torch.cat(rest)}


def _frozen_before(sae: SparseAutoencoder, x: Tensor, tuned: Tensor) -> Tensor:
    before = x @ sae.W_enc + sae.b_enc
    before[:, tuned] = -torch.inf
    return before


def _take(data: dict[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
    return {name: value[batch] for name, value in data.items()}


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()


def _prototype_term(a: Tensor, m: Tensor, generator: torch.Generator) -> Tensor:
    """Hinge over random pairs of rows of a dimension: the mean of a dimension's pairs, and of dimensions."""
    dimension, row = torch.nonzero(m.T > 0, as_tuple=True)
    counts = torch.bincount(dimension, minlength=m.shape[1])
    drawn = torch.where(counts > 1, counts.clamp_max(PAIRS), 0)
    d = torch.repeat_interleave(drawn)
    if len(d) == 0:
        return a.sum() * 0
    first = torch.cumsum(counts, dim=0) - counts
    chance = torch.rand(2, len(d), generator=generator).to(a.device)
    i, j = row[first[d] + (chance * counts[d]).long()]
    order = (m[i, d] - m[j, d]) * (a[i, d] - a[j, d])
    return (torch.relu(PAIR_MARGIN - order) / drawn[d]).sum() / (drawn > 0).sum()


@torch.no_grad()
def _merged(sae: SparseAutoencoder, tuned: np.ndarray, rows: TunedRows) -> SparseAutoencoder:
    merged = copy.deepcopy(sae)
    index = torch.from_numpy(tuned)
    merged.W_enc[:, index] = rows.encoder
    merged.b_enc[index] = rows.bias
    merged.W_dec[index] = rows.decoder
    return merged
