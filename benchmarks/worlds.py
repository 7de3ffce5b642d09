"""Worlds whose truth is known, and what the code of stage 03 decides on one of them.

A world is a set of actions made of words, labels, and a model's representation. In every world words tell part of the label.
In a world with an *effect* the representation also holds a part of the label that no word tells; in a *confounded* one it
holds words, length or topic as strongly as it can, and nothing else of the label.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.diagnosis.decisions import decide, margins
from lib.diagnosis.dimensional import Probed
from lib.diagnosis.kinds import kinds_of
from lib.diagnosis.measurement import Reading, measure
from lib.paper import CATEGORIES, FOUNDATIONS
from lib.run.parameters import DiagnosisKeys

PERMUTATIONS = 60
"""Fewer than a run's default: a p of .05 needs 19, and a calibration repeats everything many times."""

WORDS_SHARE = 0.25
"""Of the label's variance that words tell, in every world."""

MARGINS = margins(DiagnosisKeys())

PROBED = DiagnosisKeys().probe_rows
"""Rows that the decision on dimensions reads, at most; the others read all."""

TYPICALITIES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)


class World(NamedTuple):
    """A world: what the representation holds beside noise, and how much of the label's variance no word tells."""

    name: str
    effect: float
    rows: int
    width: int
    layers: int


class Drawn(NamedTuple):
    """A world once drawn: the diagnosis subset, annotations, actions, tokens, and the representations of every layer."""

    subset: pd.DataFrame
    probed: Probed
    actions: np.ndarray
    tokens: np.ndarray
    streams: list[np.ndarray]


def draw(world: World, seed: int) -> Drawn:
    """Draw a world: labels from words, from what no word tells and from an annotator's noise; streams from what they hold."""
    generator = np.random.default_rng([seed, world.rows, world.width])
    n = world.rows
    # One action in eight comes twice, as annotations of one action do.
    action = np.where(generator.random(n) < 0.125, generator.integers(0, n, n), np.arange(n))
    told, untold = generator.standard_normal((2, n))[:, action]
    topic = generator.integers(0, len(FOUNDATIONS), n)[action]
    length = generator.integers(4, 16, n)[action]
    lean = 0.5 * np.where(topic % 2, 1, -1) * (world.name == "topic") + 0.08 * (length - 9.5) * (world.name == "length")
    spread = np.sqrt(max(0.0, 1 - WORDS_SHARE - world.effect))
    label = np.sqrt(WORDS_SHARE) * told + np.sqrt(world.effect) * untold + lean + spread * generator.standard_normal(n)
    texts = _texts(told, topic, length, np.random.default_rng(seed))
    texts = np.array([texts[index] for index in action], dtype=object)
    held = _held(world, texts, untold=untold, topic=topic, length=length, generator=generator)
    return Drawn(*_labelled(label, topic, texts), _twice(texts), _twice(length), [_twice(x) for x in held])


def _twice(of_rows: np.ndarray) -> np.ndarray:
    """Return what the rows of the subset have, then the same of the annotations behind the dimensions."""
    return np.concatenate([of_rows, of_rows[:PROBED]])


def _texts(told: np.ndarray, topic: np.ndarray, length: np.ndarray, generator: np.random.Generator) -> list[str]:
    """Write an action: words of its topic, words that lean as what they tell, and filler, as many as its length."""
    texts = []
    for index, (value, about, count) in enumerate(zip(told, topic, length, strict=True)):
        good = generator.binomial(3, 1 / (1 + np.exp(-1.5 * value)))
        words = [f"good{generator.integers(8)}" for _ in range(good)] + [
            f"bad{generator.integers(8)}" for _ in range(3 - good)
        ]
        words += [f"topic{about}x{generator.integers(10)}"]
        words += [f"filler{generator.integers(200)}" for _ in range(max(0, count - len(words) - 1))]
        texts.append(" ".join([*words, f"n{index}"]))
    return texts


def _held(
    world: World,
    texts: np.ndarray,
    *,
    untold: np.ndarray,
    topic: np.ndarray,
    length: np.ndarray,
    generator: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Yield what each layer holds, [rows, width]: words as an average of vectors, length, topic, the effect, and noise."""
    names = sorted({word for text in texts for word in text.split()[:-1]})
    vectors = dict(zip(names, generator.standard_normal((len(names), world.width)), strict=True))
    words = np.array([np.mean([vectors[word] for word in text.split()[:-1]], axis=0) for text in texts])
    directions = generator.standard_normal((3, world.width)) / np.sqrt(world.width)
    topics = generator.standard_normal((len(FOUNDATIONS), world.width))[topic]
    strong = {name: 3.0 if world.name == name else 1.0 for name in ("words", "length", "topic")}
    for _ in range(world.layers):
        x = strong["words"] * words + strong["topic"] * topics / np.sqrt(world.width)
        x = x + strong["length"] * np.outer(10 / length, directions[0])
        # A layer holds the untold part with noise of its own, so that no layer tells it all.
        shown = untold + 0.5 * generator.standard_normal(len(untold))
        x = x + (world.effect > 0) * 3 * np.outer(shown, directions[1])
        yield (x + 0.3 * generator.standard_normal(x.shape)).astype(np.float32)


def _labelled(label: np.ndarray, topic: np.ndarray, texts: np.ndarray) -> tuple[pd.DataFrame, Probed]:
    """Cut the label into a virtue's or a vice's typicality, or none, and write the moral vectors."""
    size = np.abs(label)
    level = np.digitize(size, np.quantile(size, [0.2, 0.4, 0.55, 0.7, 0.85, 0.95]))
    typicality = np.array([0.0, *TYPICALITIES])[level]
    polarity = np.where(level == 0, "neutral", np.where(label > 0, "virtue", "vice"))
    foundation = np.array(FOUNDATIONS)[topic]
    subset = pd.DataFrame({"foundation": foundation, "polarity": polarity, "typicality": typicality})
    columns = {name: index for index, name in enumerate(CATEGORIES)}
    vectors = np.zeros((len(label), len(CATEGORIES)))
    for row, (name, pole, value) in enumerate(zip(foundation, polarity, typicality, strict=True)):
        if pole != "neutral":
            vectors[row, columns[name.split("-")[int(pole == "vice")]]] = value
    return subset, Probed(vectors[:PROBED], texts[:PROBED], foundation[:PROBED])


def run(world: World, seed: int, *, permutations: int = PERMUTATIONS) -> pd.DataFrame:
    """Decide on one drawn world: a row per kind and layer with ``decision, p``, which are the kind's, and
    ``layer, gain, ci_low, ci_high``, and which world it is."""
    drawn = draw(world, seed)
    measured = measure(
        kinds_of(drawn.subset, drawn.probed, actions=drawn.actions, permutations=permutations, seed=seed),
        actions=drawn.actions,
        tokens=drawn.tokens,
        readings=[Reading(layer, "last") for layer in range(world.layers)],
        read=lambda reading: drawn.streams[reading.layer],
        width=world.width,
        seed=seed,
    )
    by_layer = measured.dropna(subset="layer")[["kind", "layer", "gain", "ci_low", "ci_high"]]
    decided = decide(measured, MARGINS).set_index("kind")[["decision", "p"]]
    return by_layer.join(decided, on="kind").assign(**world._asdict(), seed=seed)
