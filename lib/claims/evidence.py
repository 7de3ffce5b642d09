"""What a run measured for each claim: tables of the stages in, rows of evidence out, one per claim and control.

Each function ``of_...`` reads the tables of one stage and yields rows with some of the columns of
:data:`lib.claims.ledger.EVIDENCE`. Of a claim that a stage cannot speak to there is no row, or one with a ``reason``.
"""

import itertools
from collections.abc import Hashable, Iterator, Mapping

import numpy as np
import pandas as pd
from scipy.stats import t
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from lib.claims.ledger import EVIDENCE
from lib.claims.rows import Measured, Row, beside, difference, exact, highest, mean, measured, silent
from lib.diagnosis.decisions import middle
from lib.diagnosis.measurement import BESIDE, WORDLIKE
from lib.diagnosis.structural import adjusted_rand, labelings
from lib.paper import FOUNDATIONS, VICES
from lib.run.table import KINDS
from lib.steering.prompts import DIMENSIONS
from lib.vectors.moral_vectors import SPLITS

EXAMPLES = {
    "example-trust": ("doing something that causes other people to lose trust in you", "betrayal"),
    "example-partner-harm": ("cheating on your significant other", "harm"),
    "example-partner-betrayal": ("cheating on your significant other", "betrayal"),
}
"""Claim -> the action and the category that the project page shows."""

WITHOUT_A_MODEL = {
    "length_only": "length alone",
    "words_only": "words without a model",
    "shuffled": "labels shuffled",
    "cross_foundation": "poles of other foundations",
}
"""Arm of the diagnosis -> the control that it is."""

TWIN = "untrained twin"


def frame(rows: list[Row]) -> pd.DataFrame:
    """Return rows of evidence as a frame with all columns."""
    return pd.DataFrame(rows).reindex(columns=list(EVIDENCE))


def of_vectors(annotations: pd.DataFrame, exploded: pd.DataFrame, *, n_subset: int) -> Iterator[Row]:
    """Counts of stage 01, examples, and how many held-out rows share their action with a training row."""
    yield exact("typicality-levels", exploded["typicality"].nunique(), len(exploded))
    checked = "the file's checksum stands for it; stage 1 keeps cleaned rows only"
    yield from silent(("file-rows", "file-columns"), checked)
    counts = {"annotations": len(annotations), "exploded": len(exploded)}
    for split in SPLITS:
        of_split = exploded[exploded["split_published"] == split]
        counts |= {f"annotations-{split}": of_split["id"].nunique(), f"exploded-{split}": len(of_split)}
    cells = exploded[exploded["split_published"] == "train"].value_counts(["foundation", "polarity"])
    for cell in itertools.product(FOUNDATIONS, ("virtue", "vice", "neutral")):
        counts[f"exploded-train-{'-'.join(cell)}"] = int(cells.get(cell, 0))
    counts |= dict.fromkeys(("subset", "subset-page", "subset-expected"), n_subset)
    yield from (exact(claim, count, count) for claim, count in counts.items())
    for claim, (action, category) in EXAMPLES.items():
        values = annotations.loc[annotations["action"] == action, category]
        # One action may have several annotations; the page shows one of them.
        if (values > 0).any():
            yield exact(claim, values.max(), len(values))
        else:
            yield from silent([claim], f"no annotation of this action names {category}")
    rows = exploded.merge(annotations[["id", "action"]], on="id")
    published, grouped = (
        rows.loc[rows[split] != "train", "action"].isin(rows.loc[rows[split] == "train", "action"]).mean()
        for split in ("split_published", "split_grouped")
    )
    control = {"control_name": "split grouped by action", "control_value": grouped}
    yield exact("shared-actions", published, len(rows), **control)


def of_diagnosis(tables: Mapping[str, pd.DataFrame], ceiling: pd.DataFrame, *, subset: pd.DataFrame) -> Iterator[Row]:
    """The published measures of the four analyses, over all models of the run.

    Args:
        tables: a frame for each of :data:`lib.run.table.KINDS`, the models one below the other.
        ceiling: how well annotators predict one another, as notebook 01 writes it.
        subset: rows of the diagnosis, columns ``action, foundation, polarity``.
    """
    categorical, gradient, structural, dimensional = (tables[kind] for kind in KINDS)
    limits = ceiling[ceiling["dimension"] == "mean"].set_index("metric", drop=False)
    yield from _of_cosines(categorical[categorical["metric"] == "opposing_cosine"])
    spearman = gradient[(gradient["metric"] == "spearman") & (gradient["category"] != "all")]
    peak = highest(spearman[spearman["arm"] == "published"])
    bound = mean(limits.loc[limits["metric"] == "spearman"])
    yield from beside(measured("gradient-peak", peak), {"an oracle that knows the mean opinion": bound})
    vices = {arm: steeper_vices(spearman[spearman["arm"] == arm]) for arm in ("published", *WITHOUT_A_MODEL)}
    ours = measured("gradient-vices", vices.pop("published"), reason="a pole has no gradient")
    yield from beside(ours, {WITHOUT_A_MODEL[arm]: value for arm, value in vices.items()})
    index = structural[structural["metric"] == "adjusted_rand"]
    for claim, target in (("structural-foundations", "foundation"), ("structural-polarity", "polarity")):
        best = highest(index[(index["target"] == target) & (index["arm"] == "published")])
        yield from beside(measured(claim, best), {"every action at one point": at_one_point(subset, target)})
    yield measured("structural-noise", noise(structural), reason="no layer has clusters")
    published = dimensional[(dimensional["target"] == "all") & (dimensional["arm"] == "published")]
    best = highest(published[published["metric"] == "adjusted_r2"], level=0.90)
    reach = limits.loc[limits["metric"] == "r2", "value"].mean()
    yield measured("dimensional-best", best, ceiling=reach)
    closed = dimensional[(dimensional["target"] == "all") & (dimensional["arm"] == "ridge")]
    of_probe, of_ridge = (collapse(rows[rows["metric"] == "r2"]) for rows in (published, closed))
    yield from beside(measured("dimensional-collapse", of_probe), {"closed-form ridge": of_ridge} if of_ridge else {})


def at_one_point(subset: pd.DataFrame, target: str) -> Measured:
    """Return the adjusted Rand index of the labels with the most frequent label of each row's action.

    A clustering of representations cannot tell rows of one action apart, so this bounds what any can reach, but for ties.
    """
    labels = labelings(subset)[target]
    of_action = pd.Series(labels).groupby(subset["action"].to_numpy()).transform(lambda own: own.mode()[0])
    value = adjusted_rand(labels, of_action.to_numpy())
    return {"value": value, "low": value, "high": value, "n": float(len(labels))}


def _of_cosines(opposing: pd.DataFrame) -> Iterator[Row]:
    """Cosines of opposing prototypes beside what has no model, no labels or no opposition in it."""
    one = {"categorical-authority": "authority-subversion", "categorical-care": "care-harm"}
    # A pair of other foundations belongs to none; its rows are of all.
    own = {claim: opposing["foundation"].isin([name, "all"]) for claim, name in one.items()}
    central = opposing.groupby("model")["layer"].transform(_in_the_middle)
    for claim, chosen, level in [("categorical-middle", central, 0.95), *((claim, own[claim], 0.90) for claim in one)]:
        part = opposing[chosen & ((opposing["foundation"] != "all") | (opposing["arm"] == "cross_foundation"))]
        ours = mean(part[part["arm"] == "published"], level=level)
        controls = {name: mean(part[part["arm"] == arm], level=level) for arm, name in WITHOUT_A_MODEL.items()}
        contrasts = {name: difference(ours, control) for name, control in controls.items() if ours and control}
        yield from beside(measured(claim, ours), controls, contrasts)


def _in_the_middle(layers: pd.Series) -> pd.Series:
    """Say of every row whether its layer is in the middle third of the model's, at least one."""
    known = np.sort(layers.unique())
    return layers.isin(known[middle(len(known))])


def steeper_vices(spearman: pd.DataFrame) -> Measured | None:
    """Return the mean over vices minus the mean over virtues of each category's best gradient; None if a pole has none."""
    by_category = spearman.groupby("category", sort=False)
    best = {category: found for category, rows in by_category if (found := highest(rows)) is not None}
    poles = ([found for name, found in best.items() if (name in VICES) == vice] for vice in (True, False))
    vices, virtues = (pd.DataFrame(pole) for pole in poles)
    return None if vices.empty or virtues.empty else difference(dict(vices.mean()), dict(virtues.mean()))


def noise(structural: pd.DataFrame) -> Measured | None:
    """Return the share of points called noise at the layer where clusters agree best with polarity, mean over models."""
    ours = structural[structural["arm"] == "published"]
    index = ours[(ours["metric"] == "adjusted_rand") & (ours["target"] == "polarity")].dropna(subset=["value"])
    best = index.loc[index.groupby("model")["value"].idxmax(), ["model", "layer"]]
    covered = ours[ours["metric"] == "coverage"].merge(best, on=["model", "layer"])
    value, n = 1 - covered["value"], covered["n"]
    low, high = proportion_confint(value * n, n, method="wilson")
    return mean(covered.assign(value=value, ci_low=low, ci_high=high))


def collapse(r2: pd.DataFrame) -> Measured | None:
    """Return R squared of the last layer minus the mean over the middle layers, mean over models."""
    parts = []
    for _, rows in r2.groupby("model"):
        last, central = mean(rows[rows["layer"] == rows["layer"].max()]), mean(rows[_in_the_middle(rows["layer"])])
        parts += [difference(last, central)] if last and central else []
    return dict(pd.DataFrame(parts).mean()) if parts else None


def of_comparison(regressions: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[Row]:
    """Scale, architecture and variant by the published measures, and instruct against base by the careful ones, in margins."""
    published = regressions[regressions["measure"] == "published"]
    parts = {
        question: published[published["question"] == question] for question in ("scale", "architecture", "variant")
    }
    parts["congruent"] = parts["variant"][parts["variant"]["kind"] == "categorical"]
    for question, part in parts.items():
        yield _furthest(f"comparison-{question}", part)
    careful = pairs[(pairs["measure"] == "careful") & (pairs["question"] == "tuning")]
    # One of several kinds is enough, so all intervals hold at once.
    half = t.ppf(1 - 0.05 / max(1, len(careful)), careful["degrees"]) * careful["standard_error"]
    estimate = careful["estimate"]
    yield _furthest("R3-tuning", careful.assign(ci_low=estimate - half, ci_high=estimate + half))


def of_templates(contrasts: pd.DataFrame) -> Iterator[Row]:
    """A model under other words around the action, less the same model under the first, in margins, where they differ most.

    Args:
        contrasts: as :func:`lib.comparison.templates.contrasts` returns them; their intervals hold for all places at once.
    """
    if contrasts.empty:
        yield from silent(["P2-templates"], "it takes a model that was read under several templates")
    else:
        yield _furthest("P2-templates", contrasts.assign(estimate=contrasts["difference"], reason=""))


def _furthest(claim: str, part: pd.DataFrame) -> Row:
    """Return the difference that lies furthest beyond its margin, or reaches furthest; without an interval if one is missing."""
    fitted = part.dropna(subset=["estimate", "ci_low"])
    if fitted.empty:
        return {"id": claim, "reason": next(iter(part["reason"]), "") or "no two models could be compared"}
    scaled = fitted[["estimate", "ci_low", "ci_high"]].div(fitted["margin"], axis=0)
    chosen, beyond = furthest(scaled)
    values = scaled.loc[chosen]
    row = {"id": claim, "ours": values["estimate"], "n": fitted.loc[chosen, "n"], "margin": 1.0}
    if len(fitted) < len(part) and not beyond:
        return row | {"reason": part.loc[~part.index.isin(fitted.index), "reason"].iloc[0]}
    return row | {"ci_low": values["ci_low"], "ci_high": values["ci_high"]}


def furthest(intervals: pd.DataFrame) -> tuple[Hashable, bool]:
    """Return the row of the interval that lies furthest beyond the margin, or else reaches furthest, and whether it lies beyond.

    ``intervals`` have the columns ``ci_low`` and ``ci_high``, in margins.
    """
    nearer = np.maximum(intervals["ci_low"], -intervals["ci_high"])
    if nearer.max() > 1:
        return nearer.idxmax(), True
    return intervals[["ci_low", "ci_high"]].abs().max(axis=1).idxmax(), False


def of_decisions(
    headlines: pd.DataFrame, beside_twin: pd.DataFrame, *, model: str, twin: str | None, variant: str
) -> Iterator[Row]:
    """What a model adds to words, beside its strongest control that reads words and beside its untrained twin.

    Args:
        headlines: the decisions of stage 03 on all models, as notebook 04 brings them together.
        beside_twin: models less their untrained twins, paired, as :func:`lib.comparison.twins.contrasts` returns them.
        model: the one that the ledger reads.
        twin: the same model untrained; None if the run has none, and then no claim that needs it is decided.
        variant: base, instruct, ... of the model, by the registry.
    """
    decided = {name: rows.set_index("kind") for name, rows in headlines.groupby("model")}
    paired = beside_twin[(beside_twin["model"] == model) & (beside_twin["twin"] == twin)].set_index("kind")
    unknown = dict.fromkeys(("value", "low", "high"), np.nan)
    for claim, kind in (("R1-distinguish", "categorical"), ("R1-human", "dimensional")):
        ours = decided[model].loc[kind]
        row = measured(claim, _gain(ours), ceiling=ours["ceiling"]) | {"found": ours["decision"]}
        over, low = ours["control_gain"], ours["control_low"]
        control = (WORDLIKE | BESIDE).get(ours["control"], str(ours["control"]))
        contrasts = {control: {"value": over, "low": low, "high": 2 * over - low}, TWIN: unknown}
        controls = {control: unknown | {"value": ours["gain"] - over}, TWIN: unknown}
        if kind in paired.index:
            controls[TWIN] = _gain(decided[twin].loc[kind])
            contrasts[TWIN] = _less_twin(paired.loc[kind])
        yield from beside(row, controls, contrasts)
    if variant == "base" and "categorical" in paired.index:
        gained, margin = _less_twin(paired.loc["categorical"]), decided[model].loc["categorical", "margin"]
        in_margins = {name: value / margin for name, value in gained.items()}
        yield measured("R2-pretraining", in_margins | {"n": paired.loc["categorical", "n"]})
    else:
        yield from silent(["R2-pretraining"], "it takes a base model and its untrained twin")


def _less_twin(contrast: pd.Series) -> Measured:
    return {"value": contrast["difference"], "low": contrast["ci_low"], "high": contrast["ci_high"]}


def _gain(decision: pd.Series) -> Measured:
    return {"value": decision["gain"], "low": decision["ci_low"], "high": decision["ci_high"], "n": np.nan}


def of_features(features: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[Row]:
    """Latents of stage 05, chosen on the validation rows and followed to the training rows; frozen weights of stage 06."""
    alive = features[features["alive"]]
    careful, others = (alive.loc[alive["careful"] == chosen, "replicated"] for chosen in (True, False))
    if len(careful) and len(others):
        counts = (careful.sum(), len(careful), others.sum(), len(others))
        low, high = confint_proportions_2indep(*counts, method="agresti-caffo", compare="diff")
        value = careful.mean() - others.mean()
        yield measured("R4-latents", {"value": value, "low": low, "high": high, "n": float(len(careful))})
    else:
        yield from silent(["R4-latents"], "it takes living latents on both sides of the permutation null")
    yield exact("alignment-frozen", tuned["frozen_share"].min(), len(tuned))


def of_alignment(alignment: pd.DataFrame) -> Iterator[Row]:
    """Stage 06 on held-out rows: aligned minus untuned, beside every other arm; differences are paired, means over layers."""
    whole = alignment[alignment["category"] == "all"]
    controls = [arm for arm in whole["arm"].unique() if arm not in ("aligned", "untuned")]
    for claim, metric in (("alignment-gradient", "gradient"), ("alignment-opposites", "opposing_similarity")):
        of_aligned = whole[whole["arm"] == "aligned"].set_index("metric", drop=False)
        minus = {
            arm: mean(of_aligned[of_aligned["metric"] == f"{metric} minus {arm}"]) for arm in ("untuned", *controls)
        }
        ours, contrasts = minus["untuned"], {arm: minus[arm] for arm in controls if minus[arm]}
        # What a control gained over the untuned one is what aligned gained less what aligned has before it.
        gained = {arm: difference(ours, contrast) for arm, contrast in contrasts.items() if ours}
        yield from beside(measured(claim, ours, reason="no latent was tuned"), gained, contrasts)


def of_prompts(answers: pd.DataFrame) -> Iterator[Row]:
    """How many prompts of each dimension were put to the model."""
    dimensions = answers.drop_duplicates("id")["dimension"]
    counts = {"flames-prompts": len(dimensions)}
    counts |= {f"flames-{name.lower().replace(' ', '-')}": int((dimensions == name).sum()) for name in DIMENSIONS}
    return (exact(claim, count, count) for claim, count in counts.items())


def unmeasured() -> Iterator[Row]:
    """Claims that no stage measures, with the reason."""
    return silent(["P1-subspaces"], "no stage trains a probe on one ethical framework and reads another")
