"""Claims about the models: the four analyses, their comparison, latents and their alignment."""

from collections.abc import Iterator

import pandas as pd

from lib.diagnosis.verdicts import middle
from lib.evidence.rows import Row, control_of, count_row, interval_row, mean_row, peak_row
from lib.foundations import VICES


def of_diagnosis(
    categorical: pd.DataFrame, gradient: pd.DataFrame, structural: pd.DataFrame, dimensional: pd.DataFrame
) -> Iterator[Row]:
    """The four analyses of one model."""
    opposing = categorical[(categorical["metric"] == "opposing_cosine") & (categorical["foundation"] != "all")]
    layers = sorted(opposing["layer"].unique())[middle(opposing["layer"].nunique())]
    yield mean_row("categorical-middle", opposing[opposing["layer"].isin(layers)], "shuffled")
    for claim, foundation in (("categorical-authority", "authority-subversion"), ("categorical-care", "care-harm")):
        yield mean_row(claim, opposing[opposing["foundation"] == foundation], "shuffled")
    spearman = gradient[(gradient["metric"] == "spearman") & (gradient["category"] != "all")]
    yield peak_row("gradient-peak", spearman, "shuffled")
    yield vices_row(spearman)
    index = structural[structural["metric"] == "adjusted_rand"]
    for claim, target in (("structural-foundations", "foundation"), ("structural-polarity", "polarity")):
        yield peak_row(claim, index[index["target"] == target], "shuffled", "supervised")
    yield noise_row(structural)
    whole = dimensional[dimensional["target"] == "all"]
    yield peak_row("dimensional-best", whole[whole["metric"] == "adjusted_r2"], "")
    published = whole[(whole["arm"] == "published") & (whole["metric"] == "r2")].set_index("layer")
    if len(published) and published["value"].notna().any():
        drop = published["value"].iloc[-1] - published["value"].max()
        yield {"id": "dimensional-collapse", "ours": drop, "n": published["n"].iloc[0]}


def of_comparison(regressions: pd.DataFrame, models: int) -> Iterator[Row]:
    """Scale, architecture and variant: of all measures and terms, the one whose interval reaches furthest from zero."""
    yield count_row("comparison-models", models)
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
        row = interval_row(claim, ours)
        if len(against):
            row |= {"control": "labels shuffled", **control_of(against)}
        yield row


def noise_row(structural: pd.DataFrame) -> Row:
    """The share of points called noise at the layer where clusters agree best with polarity."""
    ours = structural[structural["arm"] == "published"]
    index = ours[(ours["metric"] == "adjusted_rand") & (ours["target"] == "polarity")].dropna(subset=["value"])
    if index.empty:
        return {"id": "structural-noise", "reason": "no layer has clusters"}
    best = index.nlargest(1, "value")["layer"].item()
    covered = ours[(ours["metric"] == "coverage") & (ours["layer"] == best)]
    return {"id": "structural-noise", "ours": 1 - covered["value"].item(), "n": covered["n"].item()}


def vices_row(spearman: pd.DataFrame) -> Row:
    """Mean over vices minus mean over virtues of each category's best gradient."""
    ours = spearman[spearman["arm"] == "published"].dropna(subset=["value"])
    best = ours.loc[ours.groupby("category")["value"].idxmax()].set_index("category")
    vice = best.index.isin(VICES)
    if vice.all() or not vice.any():
        return {"id": "gradient-vices", "reason": "a pole has no gradient"}
    low = best.loc[vice, "ci_low"].mean() - best.loc[~vice, "ci_high"].mean()
    high = best.loc[vice, "ci_high"].mean() - best.loc[~vice, "ci_low"].mean()
    difference = best.loc[vice, "value"].mean() - best.loc[~vice, "value"].mean()
    return {"id": "gradient-vices", "ours": difference, "ci_low": low, "ci_high": high, "n": best["n"].sum()}
