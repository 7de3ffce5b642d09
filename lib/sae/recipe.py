"""What a training is told: the published sizes, and what they come to where the rows are fewer or the stream narrower.

A dictionary that is too large for its rows memorises them: it reconstructs the rows of its training much better than others.
The published one has three rows per latent; ``auto`` gives each ten. One that is too large for its time is hardly trained: the
rate rises over five epochs, so ``auto`` makes no dictionary for which the time is not enough for ten. The other sizes keep the
published proportions, so at the paper's size they are the published values: active latents, steps per epoch, and the learning
rate, which is the one that Gao et al. (2024) give for 65,536 latents.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

from lib.run.parameters import SAEKeys

PUBLISHED_WIDTH, PUBLISHED_LATENTS = 4096, 65_536
EXPANSION, TARGET_L0, EPOCHS, BATCH, RATE = 16, 100, 200, 4096, 1e-4
"""The released recipe's, for Qwen3-8B."""

ROWS_PER_LATENT = 10
LEAST_EPOCHS = 10
"""Twice the warm-up (:mod:`lib.sae.training`): the rate must reach its value and fall again."""

LEAST_STEPS, STEPS = 40, 5000
"""Per epoch, and of the whole training, that the batch should leave; the published run has 49 and 9,800."""

LEAST_BATCH = 64
OPERATIONS_PER_WEIGHT = 10
"""Of the encoder, for every row of an epoch: five matrix products, two forwards and three backwards."""

OPERATIONS_PER_SECOND = 4e10
"""What two CPU cores do in matrix products; it turns the budget's minutes into epochs, the same on every machine."""

Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Recipe:
    """A training with every size decided: ``d_sae`` latents over a stream of ``d_in``, ``target_l0`` active per row."""

    activation: str
    d_in: int
    d_sae: int
    target_l0: float
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int

    @property
    def k(self) -> int:
        """How many latents per row TopK keeps, and BatchTopK on average."""
        return max(1, round(self.target_l0))


def recipe_of(parameters: SAEKeys, *, rows: int, d_in: int) -> Recipe:
    """Decide every size that ``parameters`` leave at ``auto``, for ``rows`` training rows of width ``d_in``.

    Latents: one for ten rows, from 1 to 16 times the width, and no more than ``sae_minutes`` on two CPU cores train for ten
    epochs, unless the epochs are given. Active latents: 100 by the root of the width. Epochs: what ``sae_minutes`` allow, at
    most 200. Batch: the power of two that leaves 40 steps per epoch and 5,000 in all, from 64 to 4,096; it costs no
    operations. Learning rate: by the root of the latents (Gao et al. 2024).
    """
    # How many epochs of a dictionary no wider than the stream the minutes allow.
    affordable = 60 * parameters.sae_minutes * OPERATIONS_PER_SECOND / (OPERATIONS_PER_WEIGHT * d_in**2 * max(1, rows))
    in_time = affordable / LEAST_EPOCHS if parameters.sae_epochs == "auto" else EXPANSION
    expansion = given(parameters.expansion, max(1, int(min(EXPANSION, in_time, rows / (ROWS_PER_LATENT * d_in)))))
    d_sae = expansion * d_in
    epochs = given(parameters.sae_epochs, max(1, min(EPOCHS, int(affordable / expansion))))
    most = min(rows // LEAST_STEPS, rows * epochs // STEPS)
    batch = min(BATCH, max(LEAST_BATCH, 2 ** max(0, most.bit_length() - 1)))
    return Recipe(
        activation=parameters.sae_activation,
        d_in=d_in,
        d_sae=d_sae,
        target_l0=given(parameters.target_l0, float(round(TARGET_L0 * sqrt(d_in / PUBLISHED_WIDTH)))),
        epochs=epochs,
        batch_size=min(given(parameters.batch_size, batch), max(1, rows)),
        learning_rate=given(parameters.learning_rate, RATE * sqrt(PUBLISHED_LATENTS / d_sae)),
        seed=parameters.seed,
    )


def given(value: Value | str, otherwise: Value) -> Value:
    """Return a parameter's value, or ``otherwise`` where it is ``auto``."""
    return otherwise if isinstance(value, str) else value
