"""Claims about Flames: its prompts, and what a judge says of the answers."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lib.evidence.rows import Row, best_row, control_of, count_row, interval_row

CLAIMS_OF_THE_PROMPTS = {
    "flames-prompts": None, "flames-safety": "Safety", "flames-fairness": "Fairness", "flames-morality": "Morality",
    "flames-data-protection": "Data protection", "flames-legality": "Legality",
}  # fmt: skip
FLAMES_SHA256 = "f53400dcbb8795fb262993bda0615afdc77de1c4685e7c94d2df2a3cd47613fa"
"""Of ``Flames_1k_Chinese.jsonl`` as its authors publish it."""

CLAIMS_OF_A_JUDGE = (
    "flames-psc1-baseline", "flames-psc1-aligned", "flames-psc2-baseline", "flames-psc2-aligned", "flames-win-rate",
    "flames-peak", "flames-peak-layer", "flames-psc1-gain", "flames-psc2-gain",
)  # fmt: skip
PER_THOUSAND = ("ours", "ci_low", "ci_high", "control_value", "control_low", "control_high")


def of_prompts(responses: pd.DataFrame, official: bool) -> Iterator[Row]:
    """How many prompts of each dimension were put to the model; ``official`` says that they are all of Flames'."""
    questions = responses.drop_duplicates("id")["dimension"]
    for claim, dimension in CLAIMS_OF_THE_PROMPTS.items():
        if official:
            yield count_row(claim, len(questions) if dimension is None else int((questions == dimension).sum()))
        else:
            yield {"id": claim, "reason": "the prompts are not Flames' 1,000 public ones, or not all of them"}


def of_judging(summary: pd.DataFrame, offline: bool) -> Iterator[Row]:
    """Flames: perfect scores per 1,000 valid answers and win rates; the control is the untuned autoencoder."""
    if offline:
        for claim in CLAIMS_OF_A_JUDGE:
            yield {"id": claim, "reason": "the offline judge is plumbing; name a real judge in the profile"}
        return
    whole = summary[summary["dimension"] == "all"]
    for psc, rubric in (("psc1", "safety"), ("psc2", "emotion")):
        scores = whole[(whole["rubric"] == rubric) & (whole["metric"] == "perfect_share")]
        for arm in ("baseline", "aligned"):
            row = best_row(f"flames-{psc}-{arm}", scores[scores["arm"] == arm], scores[scores["arm"] == "untuned"])
            yield {key: value * 1000 if key in PER_THOUSAND else value for key, value in row.items()}
        yield gain_row(f"flames-{psc}-gain", scores)
    wins = whole[(whole["rubric"] == "pairwise") & (whole["metric"] == "win_rate")]
    aligned, untuned = wins[wins["arm"] == "aligned"], wins[wins["arm"] == "untuned"]
    if len(aligned):
        lowest = aligned.nsmallest(1, "value")
        yield interval_row("flames-win-rate", lowest) | (
            {"control": "untuned", **control_of(untuned)} if len(untuned) else {}
        )
        yield best_row("flames-peak", aligned, untuned)
        if aligned["layer"].nunique() > 1:
            yield {"id": "flames-peak-layer", "ours": aligned.nlargest(1, "value")["layer"].item(), "n": len(aligned)}
        else:
            yield {"id": "flames-peak-layer", "reason": "one layer was steered, so none is the best"}


def gain_row(claim: str, scores: pd.DataFrame) -> Row:
    """Aligned minus baseline per 1,000 at the best layer, with the interval of a difference of two proportions."""
    arms = [
        scores[scores["arm"] == arm].dropna(subset=["value"]).nlargest(1, "value") for arm in ("aligned", "baseline")
    ]
    if any(arm.empty for arm in arms):
        return {"id": claim, "reason": "no valid verdict of both arms"}
    (aligned, low, high), (baseline, base_low, base_high) = (
        arm[["value", "ci_low", "ci_high"]].iloc[0].astype(float) for arm in arms
    )
    # Newcombe's interval, from the Wilson intervals of the two shares.
    down = np.hypot(aligned - low, base_high - baseline)
    up = np.hypot(high - aligned, baseline - base_low)
    difference = aligned - baseline
    return {
        "id": claim, "ours": 1000 * difference, "ci_low": 1000 * (difference - down),
        "ci_high": 1000 * (difference + up), "n": int(arms[0]["n"].iloc[0]),
    }  # fmt: skip
