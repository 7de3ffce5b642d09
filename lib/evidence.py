"""What a run measured for each published claim: tables of the stages in, one row a claim out.

Each function reads one stage's tables and returns rows with the columns of ``lib.claims.EVIDENCE``. A claim that a stage
cannot speak to simply gets no row, or a row with a ``reason``.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from lib.claims import EVIDENCE
from lib.diagnosis.verdicts import middle
from lib.foundations import VICES

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
    if not official:
        for claim in CLAIMS_OF_THE_FILE:
            yield {"id": claim, "reason": "the annotations are not the official Social-Chemistry-101 file"}
        return
    yield _count("annotations", len(annotations))
    yield _count("exploded", len(exploded))
    for split in ("train", "validation", "test"):
        yield _count(f"exploded-{split}", int((exploded["split_published"] == split).sum()))
    yield _count("subset", len(subset))
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
    whole = dimensional[dimensional["target"] == "all"]
    yield _peak_row("dimensional-best", whole[whole["metric"] == "adjusted_r2"], "")
    published = whole[(whole["arm"] == "published") & (whole["metric"] == "r2")].set_index("layer")
    if len(published) and published["value"].notna().any():
        drop = published["value"].iloc[-1] - published["value"].max()
        yield {"id": "dimensional-collapse", "ours": drop, "n": published["n"].iloc[0]}


def of_comparison(regressions: pd.DataFrame) -> Iterator[Row]:
    """Scale, architecture and variant: of all measures and terms, the one whose interval reaches furthest from zero."""
    for claim in ("scale", "architecture", "variant"):
        part = regressions[(regressions["question"] == claim) & (regressions["measure"] == "published")]
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
    wins = whole[(whole["rubric"] == "pairwise") & (whole["metric"] == "win_rate")]
    aligned, untuned = wins[wins["arm"] == "aligned"], wins[wins["arm"] == "untuned"]
    if len(aligned):
        lowest = aligned.nsmallest(1, "value")
        yield _interval_row("flames-win-rate", lowest) | (
            {"control": "untuned", **_control(untuned)} if len(untuned) else {}
        )
        yield _best("flames-peak", aligned, untuned)


CLAIMS_OF_A_JUDGE = (
    "flames-psc1-baseline", "flames-psc1-aligned", "flames-psc2-baseline", "flames-psc2-aligned", "flames-win-rate",
    "flames-peak",
)  # fmt: skip
PER_THOUSAND = ("ours", "ci_low", "ci_high", "control_value", "control_low", "control_high")


CLAIMS_OF_THE_FILE = (
    "annotations", "exploded", "exploded-train", "exploded-validation", "exploded-test", "subset", "shared-actions",
)  # fmt: skip


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
