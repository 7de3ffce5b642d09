"""The chapter *Both sides*: what the paper and the papers that disagree with it say, question by question, under one rule.

The words of a question are here; what became of each claim is read from two ledgers, the finding's and the demo's.
"""

from typing import NamedTuple

import pandas as pd

from docs.ledger import control, ours
from docs.markdown import markdown_table
from lib.claims.ledger import NOT_RUN


class Question(NamedTuple):
    """Something on which the papers differ: the claims on both sides, and what could decide between them."""

    title: str
    claims: tuple[str, ...]
    text: str


QUESTIONS = (
    Question(
        "Do models tell good from bad?",
        ("categorical-middle", "categorical-authority", "categorical-care", "R1-distinguish"),
        "Both may be right, for they measure different things. The paper takes the cosine of two centroids: high where the "
        "texts of both poles share anything, their length or their first token included. The other side asks whether the poles "
        "can be told apart. So the first needs beside it the centroids of categories that do not oppose each other, and of "
        "length alone; the second needs a classifier that reads only the words, and an untrained twin.",
    ),
    Question(
        "Do they place actions on the moral dimensions?",
        ("gradient-peak", "gradient-vices", "dimensional-best", "dimensional-collapse", "R1-human"),
        "A weak correlation shows indifference only if a better one could be reached: one annotator judged most actions, and "
        "that noise bounds everybody. A strong one shows morality only if the words alone do not reach it. The ceiling answers "
        "the first, the gain over words the second.",
    ),
    Question(
        "Is there a moral structure without labels?",
        ("structural-foundations", "structural-polarity", "structural-noise", "P1-subspaces"),
        "Clusters that do not follow morality may follow something larger, and an index near zero is also what a method gives "
        "that calls most points noise. So the labels themselves are classified, as the most that clusters could follow.",
    ),
    Question(
        "Do size, architecture and tuning matter?",
        (
            "comparison-scale",
            "comparison-architecture",
            "comparison-variant",
            "comparison-congruent",
            "R2-pretraining",
            "R3-tuning",
        ),
        "*No difference* is a claim of equivalence and needs a margin; a difference that was not found is none. The other side "
        "says that pre-training makes what post-training then changes: a base model against its untrained twin decides the "
        "first, base against instruct on the same actions the second.",
    ),
    Question(
        "Do single latents carry single categories?",
        ("alignment-frozen", "alignment-gradient", "alignment-opposites", "R4-latents"),
        "The paper tunes latents until they do; the other side finds them untuned. Tuning can make any latents fit any labels, "
        "so tuned latents stand beside ones tuned toward shuffled labels, beside random ones, and beside a probe with the same "
        "losses and no autoencoder.",
    ),
    Question(
        "Does steering with them change what a model says?",
        (
            "flames-psc1-baseline",
            "flames-psc1-aligned",
            "flames-psc1-gain",
            "flames-psc2-baseline",
            "flames-psc2-aligned",
            "flames-psc2-gain",
            "flames-win-rate",
            "flames-peak",
            "flames-peak-layer",
            "R5-dense",
            "R5-sparse",
        ),
        "Here the sides agree that it does. What neither shows is that morality does it: any push of the same size changes "
        "answers, and judges prefer some changes for their length. Random directions of the same norm, a judge that was judged "
        "first, and both orders of every pair are the controls.",
    ),
    Question(
        "Is it the wording of the prompt?",
        ("P2-templates",),
        "Everything here is read behind one sentence, by default *(action) is morally*. The keys `template` of a profile and of "
        "a model read others, or none; the conclusions should not depend on it.",
    ),
)


def both_sides(finding: pd.DataFrame, demo: pd.DataFrame) -> str:
    """Return the chapter's generated part as Markdown: each question with its claims and what two ledgers decided.

    Args:
        finding: ledger of the run on a real model, with the columns of ``lib.claims.ledger``.
        demo: ledger of the demo.
    """
    of_demo = demo.set_index("id")
    parts = []
    for question in QUESTIONS:
        claims = finding.set_index("id").loc[list(question.claims)]
        rows = [
            (row.paper, row.statement, _decision(row), _measured(row), _decision(of_demo.loc[row.Index]))
            for row in claims.itertuples()
        ]
        header = ("arXiv", "claim", "on a real model", "measured (interval), and its control", "on the demo")
        parts.append(f"## {question.title}\n\n{question.text}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def _decision(row: "pd.Series[float]") -> str:
    """Write what was decided on the run's own terms, or why nothing was."""
    if row.decision == NOT_RUN:
        return f"*not run*: {row.reason}"
    return f"*{row.here}*"


def _measured(row: "pd.Series[float]") -> str:
    return "; ".join(filter(None, (ours(row), control(row))))
