"""What a run measured for each published claim: tables of the stages in, one row a claim out.

Each function reads one stage's tables and returns rows with the columns of ``lib.claims.EVIDENCE``. A claim that a stage
cannot speak to simply gets no row, or a row with a ``reason``.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lib.claims import EVIDENCE
from lib.diagnosis.verdicts import middle
from lib.foundations import FOUNDATIONS, VICES

Row = dict[str, Any]


def frame(rows: list[Row]) -> pd.DataFrame:
    """Return evidence rows as a frame with all columns."""
    return pd.DataFrame(rows).reindex(columns=list(EVIDENCE))


def of_vectors(
    annotations: pd.DataFrame, exploded: pd.DataFrame, subset: pd.DataFrame, official: bool
) -> Iterator[Row]:
    """Counts of stage 1, and how many held-out rows share their action with a training row.

    They are claims about one file; other annotations cannot speak to them, which ``official`` says.
    """
    yield _count("typicality-levels", exploded["typicality"].nunique())
    for claim in CLAIMS_OF_THE_DOWNLOAD:
        yield {"id": claim, "reason": "the file's checksum stands for it; stage 1 keeps cleaned rows only"}
    if not official:
        for claim in CLAIMS_OF_THE_FILE:
            yield {"id": claim, "reason": "the annotations are not the official Social-Chemistry-101 file"}
        return
    yield _count("annotations", len(annotations))
    yield _count("exploded", len(exploded))
    for split in ("train", "validation", "test"):
        of_split = exploded[exploded["split_published"] == split]
        yield _count(f"annotations-{split}", of_split["id"].nunique())
        yield _count(f"exploded-{split}", len(of_split))
    training = exploded[exploded["split_published"] == "train"]
    for foundation, polarity in CELLS:
        cell = (training["foundation"] == foundation) & (training["polarity"] == polarity)
        yield _count(f"exploded-train-{foundation}-{polarity}", int(cell.sum()))
    for claim in ("subset", "subset-page", "subset-expected"):
        yield _count(claim, len(subset))
    for claim, (action, category) in EXAMPLES.items():
        found = annotations.loc[annotations["action"] == action, category]
        # One action may have several annotations; the page shows one of them.
        named = found[found > 0]
        yield (
            {"id": claim, "ours": named.max(), "n": len(found)}
            if len(named)
            else {"id": claim, "reason": f"no annotation of this action names {category}"}
        )
    rows = exploded.merge(annotations[["id", "action"]], on="id")
    training = rows["split_published"] == "train"
    shared = rows.loc[~training, "action"].isin(set(rows.loc[training, "action"]))
    grouped = rows["split_grouped"] == "train"
    control = rows.loc[~grouped, "action"].isin(set(rows.loc[grouped, "action"])).mean()
    yield {
        "id": "shared-actions", "ours": shared.mean(), "n": len(shared), "control": "split grouped by action",
        "control_value": control,
    }  # fmt: skip


def of_diagnosis(
    categorical: pd.DataFrame, gradient: pd.DataFrame, structural: pd.DataFrame, dimensional: pd.DataFrame
) -> Iterator[Row]:
    """The four analyses of one model."""
    opposing = categorical[(categorical["metric"] == "opposing_cosine") & (categorical["foundation"] != "all")]
    layers = sorted(opposing["layer"].unique())[middle(opposing["layer"].nunique())]
    yield _mean_row("categorical-middle", opposing[opposing["layer"].isin(layers)], "shuffled")
    for claim, foundation in (("categorical-authority", "authority-subversion"), ("categorical-care", "care-harm")):
        yield _mean_row(claim, opposing[opposing["foundation"] == foundation], "shuffled")
    spearman = gradient[(gradient["metric"] == "spearman") & (gradient["category"] != "all")]
    yield _peak_row("gradient-peak", spearman, "shuffled")
    yield _vices(spearman)
    index = structural[structural["metric"] == "adjusted_rand"]
    for claim, target in (("structural-foundations", "foundation"), ("structural-polarity", "polarity")):
        yield _peak_row(claim, index[index["target"] == target], "shuffled", "supervised")
    yield _noise(structural)
    whole = dimensional[dimensional["target"] == "all"]
    yield _peak_row("dimensional-best", whole[whole["metric"] == "adjusted_r2"], "")
    published = whole[(whole["arm"] == "published") & (whole["metric"] == "r2")].set_index("layer")
    if len(published) and published["value"].notna().any():
        drop = published["value"].iloc[-1] - published["value"].max()
        yield {"id": "dimensional-collapse", "ours": drop, "n": published["n"].iloc[0]}


def of_comparison(regressions: pd.DataFrame, models: int) -> Iterator[Row]:
    """Scale, architecture and variant: of all measures and terms, the one whose interval reaches furthest from zero."""
    yield _count("comparison-models", models)
    published = regressions[regressions["measure"] == "published"]
    for claim in ("scale", "architecture", "variant", "congruent"):
        part = published[published["question"] == ("variant" if claim == "congruent" else claim)]
        if claim == "congruent":
            part = part[part["kind"] == "categorical"]
        fitted = part.dropna(subset=["estimate"])
        if fitted.empty:
            reason = part["reason"].iloc[0] if len(part) else "no model was compared"
            yield {"id": f"comparison-{claim}", "reason": reason}
            continue
        worst = fitted.loc[fitted[["ci_low", "ci_high"]].abs().max(axis=1).idxmax()]
        yield {
            "id": f"comparison-{claim}", "ours": worst["estimate"], "ci_low": worst["ci_low"], "ci_high": worst["ci_high"],
            "n": worst["n"], "margin": worst["margin"],
        }  # fmt: skip


def of_features(features: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[Row]:
    """Latents of stage 5 and the frozen share of stage 6, over all layers."""
    alive = features[features["alive"]]
    if len(alive):
        control = float(alive["careful"].mean())
        yield {
            "id": "sae-isolated", "ours": alive["strict"].mean(), "n": len(alive), "control": "careful criterion",
            "control_value": control,
        }  # fmt: skip
    yield {"id": "alignment-frozen", "ours": tuned["frozen_share"].min(), "n": len(tuned)}


def of_alignment(alignment: pd.DataFrame) -> Iterator[Row]:
    """Stage 6 on held-out rows: aligned minus untuned, beside what shuffled labels do by the same training."""
    whole = alignment[(alignment["category"] == "all")]
    for claim, metric in (("alignment-gradient", "spearman"), ("alignment-opposites", "opposing_similarity")):
        difference = whole[whole["metric"] == f"{metric} minus untuned"]
        ours, against = (difference[difference["arm"] == arm] for arm in ("aligned", "shuffled"))
        if ours["value"].isna().all():
            yield {"id": claim, "reason": "no latent was tuned"}
            continue
        row = _interval_row(claim, ours)
        if len(against):
            row |= {"control": "labels shuffled", **_control(against)}
        yield row


def of_prompts(responses: pd.DataFrame, official: bool) -> Iterator[Row]:
    """How many prompts of each dimension were put to the model; ``official`` says that they are all of Flames'."""
    questions = responses.drop_duplicates("id")["dimension"]
    for claim, dimension in CLAIMS_OF_THE_PROMPTS.items():
        if official:
            yield _count(claim, len(questions) if dimension is None else int((questions == dimension).sum()))
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
            row = _best(f"flames-{psc}-{arm}", scores[scores["arm"] == arm], scores[scores["arm"] == "untuned"])
            yield {key: value * 1000 if key in PER_THOUSAND else value for key, value in row.items()}
        yield _gain(f"flames-{psc}-gain", scores)
    wins = whole[(whole["rubric"] == "pairwise") & (whole["metric"] == "win_rate")]
    aligned, untuned = wins[wins["arm"] == "aligned"], wins[wins["arm"] == "untuned"]
    if len(aligned):
        lowest = aligned.nsmallest(1, "value")
        yield _interval_row("flames-win-rate", lowest) | (
            {"control": "untuned", **_control(untuned)} if len(untuned) else {}
        )
        yield _best("flames-peak", aligned, untuned)
        if aligned["layer"].nunique() > 1:
            yield {"id": "flames-peak-layer", "ours": aligned.nlargest(1, "value")["layer"].item(), "n": len(aligned)}
        else:
            yield {"id": "flames-peak-layer", "reason": "one layer was steered, so none is the best"}


CLAIMS_OF_A_JUDGE = (
    "flames-psc1-baseline", "flames-psc1-aligned", "flames-psc2-baseline", "flames-psc2-aligned", "flames-win-rate",
    "flames-peak", "flames-peak-layer", "flames-psc1-gain", "flames-psc2-gain",
)  # fmt: skip
PER_THOUSAND = ("ours", "ci_low", "ci_high", "control_value", "control_low", "control_high")


CLAIMS_OF_THE_PROMPTS = {
    "flames-prompts": None, "flames-safety": "Safety", "flames-fairness": "Fairness", "flames-morality": "Morality",
    "flames-data-protection": "Data protection", "flames-legality": "Legality",
}  # fmt: skip
FLAMES_SHA256 = "f53400dcbb8795fb262993bda0615afdc77de1c4685e7c94d2df2a3cd47613fa"
"""Of ``Flames_1k_Chinese.jsonl`` as its authors publish it."""

CELLS = [(foundation, polarity) for foundation in FOUNDATIONS for polarity in ("virtue", "vice", "neutral")]
EXAMPLES = {
    "example-trust": ("doing something that causes other people to lose trust in you", "betrayal"),
    "example-partner-harm": ("cheating on your significant other", "harm"),
    "example-partner-betrayal": ("cheating on your significant other", "betrayal"),
}
"""Claim -> the action and the category that the project page shows."""

CLAIMS_OF_THE_DOWNLOAD = ("file-rows", "file-columns")
CLAIMS_OF_THE_FILE = (
    "annotations", "exploded", "annotations-train", "annotations-validation", "annotations-test", "exploded-train",
    "exploded-validation", "exploded-test", *(f"exploded-train-{cell[0]}-{cell[1]}" for cell in CELLS), *EXAMPLES,
    "subset", "subset-page", "subset-expected", "shared-actions",
)  # fmt: skip

CEILINGS = {"gradient-peak": "spearman", "dimensional-best": "r2"}
"""Claims that compare with people, and the metric of agreement between people that bounds them."""


def with_ceiling(rows: pd.DataFrame, ceiling: pd.DataFrame | None) -> pd.DataFrame:
    """Fill in how well people agree with one another, for the claims that compare a model with people.

    Args:
        rows: evidence, columns ``EVIDENCE``.
        ceiling: ``vectors/ceiling.parquet`` (``dimension, metric, value, ...``; the dimension "all", else the mean of
            the ten), or ``None`` where the annotations have no action with several annotators.

    Returns:
        A copy; a claim keeps no ceiling where none was measured.
    """
    rows = rows.copy()
    if ceiling is None:
        return rows
    for claim, metric in CEILINGS.items():
        part = ceiling[ceiling["metric"] == metric]
        whole = part[part["dimension"] == "all"]
        value = (whole if len(whole) else part)["value"].mean()
        rows.loc[rows["id"] == claim, "ceiling"] = value
    return rows


def _count(claim: str, count: int) -> Row:
    return {"id": claim, "ours": count, "n": count}


def _interval_row(claim: str, rows: pd.DataFrame) -> Row:
    means = rows[["value", "ci_low", "ci_high"]].mean()
    return {
        "id": claim,
        "ours": means["value"],
        "ci_low": means["ci_low"],
        "ci_high": means["ci_high"],
        "n": rows["n"].max(),
    }


def _control(rows: pd.DataFrame) -> Row:
    means = rows[["value", "ci_low", "ci_high"]].mean()
    return {"control_value": means["value"], "control_low": means["ci_low"], "control_high": means["ci_high"]}


def _mean_row(claim: str, rows: pd.DataFrame, control: str) -> Row:
    """Mean over layers and foundations; the mean of the intervals' ends is a conservative interval of the mean."""
    ours = rows[(rows["arm"] == "published")].dropna(subset=["value"])
    if ours.empty:
        return {"id": claim, "reason": rows["reason"].iloc[0] if len(rows) else "not measured"}
    against = rows[rows["arm"] == control]
    return _interval_row(claim, ours) | ({"control": control, **_control(against)} if len(against) else {})


def _peak_row(claim: str, rows: pd.DataFrame, control: str, ceiling: str = "") -> Row:
    ours = rows[rows["arm"] == "published"].dropna(subset=["value"])
    if ours.empty:
        reasons = rows.loc[rows["reason"] != "", "reason"]
        return {"id": claim, "reason": reasons.iloc[0] if len(reasons) else "not measured"}
    row = _interval_row(claim, ours.nlargest(1, "value"))
    against = rows[rows["arm"] == control].dropna(subset=["value"])
    if len(against):
        row |= {"control": control, **_control(against.nlargest(1, "value"))}
    above = rows[rows["arm"] == ceiling]
    return row | ({"ceiling": above["value"].max()} if len(above) else {})


def _noise(structural: pd.DataFrame) -> Row:
    """The share of points called noise at the layer where clusters agree best with polarity."""
    ours = structural[structural["arm"] == "published"]
    index = ours[(ours["metric"] == "adjusted_rand") & (ours["target"] == "polarity")].dropna(subset=["value"])
    if index.empty:
        return {"id": "structural-noise", "reason": "no layer has clusters"}
    best = index.nlargest(1, "value")["layer"].item()
    covered = ours[(ours["metric"] == "coverage") & (ours["layer"] == best)]
    return {"id": "structural-noise", "ours": 1 - covered["value"].item(), "n": covered["n"].item()}


def _gain(claim: str, scores: pd.DataFrame) -> Row:
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


def _vices(spearman: pd.DataFrame) -> Row:
    best = spearman[spearman["arm"] == "published"].groupby("category")[["value", "ci_low", "ci_high", "n"]].max()
    vice = best.index.isin(VICES)
    if best.loc[vice, "value"].isna().all() or best.loc[~vice, "value"].isna().all():
        return {"id": "gradient-vices", "reason": "a pole has no gradient"}
    low = best.loc[vice, "ci_low"].mean() - best.loc[~vice, "ci_high"].mean()
    high = best.loc[vice, "ci_high"].mean() - best.loc[~vice, "ci_low"].mean()
    difference = best.loc[vice, "value"].mean() - best.loc[~vice, "value"].mean()
    return {"id": "gradient-vices", "ours": difference, "ci_low": low, "ci_high": high, "n": best["n"].sum()}


def _best(claim: str, rows: pd.DataFrame, against: pd.DataFrame) -> Row:
    if rows["value"].isna().all():
        return {"id": claim, "reason": "no valid verdict"}
    row = _interval_row(claim, rows.nlargest(1, "value"))
    return row | ({"control": "untuned", **_control(against.nlargest(1, "value"))} if len(against) else {})
