"""Do scale, architecture or tuning matter? The measures of all models, regressions, pairs and equivalence tests.

The paper claims that nothing changes the picture. A slope that is not significant does not show that; two one-sided tests
against a stated margin can. What neither shows is *undecided*, however small the estimate.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from lib.comparison.clusters import MINIMUM_CLUSTERS, Coefficient, fit
from lib.diagnosis.measurement import DEGREES
from lib.paper import models as paper_models
from lib.run.files import PROJECT
from lib.run.parameters import ComparisonParameters
from lib.stats import equivalence

COLUMN = {"scale": "parameters_billions", "architecture": "architecture", "variant": "variant"}
"""What is asked of the models -> the column that says it."""

UNTRAINED = "untrained"
"""Variant of models with random weights: they are controls, and what they are like says nothing of what training does."""

READ_AGAIN = "read again"
"""Variant of a model's further readings under other templates: it is one model, and counts once."""

EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"
OWN_UNIT, OF_CEILING = "the measure's own", "share of the ceiling"
Z95 = float(norm.ppf(0.975))
RESULT = [
    "kind", "measure", "unit", "question", "term", "estimate", "standard_error", "degrees", "ci_low", "ci_high", "p",
    "p_equivalence", "margin", "decision", "n", "families", "reason",
]  # fmt: skip
NUMBERS = ("estimate", "standard_error", "degrees", "ci_low", "ci_high", "p", "p_equivalence")


def facts(
    names: Sequence[str], twins: Mapping[str, str] | None = None, readings: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return ``name, family, parameters_billions, architecture, variant`` of the models of a run.

    They come from the registry and from the demo's own table; a model that is in neither has missing values. A family is
    what shares pretraining: a guard belongs to the family of the model that it was made from. Of ``twins`` (untrained twin ->
    the model that it is of) the variant is ``untrained``, of ``readings`` (another reading -> the first one) ``read again``.
    """
    known = pd.concat([paper_models(), pd.read_csv(PROJECT / "data" / "demo" / "models.csv")])
    columns = ["name", "family", *COLUMN.values()]
    table = pd.DataFrame({"name": list(names)}).merge(known[columns], on="name", how="left")
    variant = table["variant"].mask(table["name"].isin(readings or {}), READ_AGAIN)
    return table.assign(variant=variant.mask(table["name"].isin(twins or {}), UNTRAINED))


def counted(models: pd.DataFrame) -> pd.Series:
    """Say of every row of a table with a ``variant`` whether it is of a model that claims are about: trained, and once."""
    return ~models["variant"].isin([UNTRAINED, READ_AGAIN])


def headlines(decisions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Bring the decisions on all models, as notebook 03 writes them, into one frame, with ``model`` first."""
    return pd.concat(decisions, names=["model"]).reset_index("model").reset_index(drop=True)


def comparable(table: pd.DataFrame, models: pd.DataFrame, *, parameters: ComparisonParameters) -> pd.DataFrame:
    """Bring the measures of all models into units in which a margin means something, with what the models are.

    A measure that annotators bound is a share of their ceiling, with the margin ``equivalence_share``. Others keep their unit:
    the published cosine and Rand index with a margin each, the careful ones with the margin of their decision in stage 03.

    Returns:
        One row per model, kind and measure (``published``; ``careful``, the score of representation and words): ``model, kind,
        measure, unit, value, standard_error, margin`` and the columns of :func:`facts`. The standard error is that of the gain
        over words, the only part of the careful score that depends on the model, and no less than the bound of stage 03, which
        stays wide where a penalty left the representation out and the gain is exactly 0; the published measure has none.
    """
    own = {"categorical": parameters.equivalence_cosine, "structural": parameters.equivalence_rand}
    ceiling, spread = table["ceiling"].astype(float), (table["ci_high"] - table["ci_low"]) / (2 * Z95)
    spread = np.fmax(spread, (table["equivalence_high"] - table["gain"]) / t.ppf(0.95, DEGREES))
    no_cosine = ceiling.where(~table["kind"].isin(own))
    measures = {
        "published": (table["ours"], np.nan, no_cosine, table["kind"].map(own).fillna(parameters.equivalence_share)),
        "careful": (table["careful"], spread, ceiling, table["margin"]),
    }
    parts = []
    for measure, (value, error, limit, margin) in measures.items():
        bounded = limit > 0
        unit = limit.where(bounded, 1.0)
        part = table[["model", "kind"]].assign(measure=measure, unit=np.where(bounded, OF_CEILING, OWN_UNIT))
        part = part.assign(value=value / unit, standard_error=error / unit)
        parts.append(part.assign(margin=margin.astype(float).mask(bounded, parameters.equivalence_share)))
    joined = pd.concat(parts).merge(models, left_on="model", right_on="name", how="left").drop(columns="name")
    return joined.sort_values(["kind", "measure", "model"], ignore_index=True)


def regressions(measures: pd.DataFrame) -> pd.DataFrame:
    """Regress every measure of the trained models on size, architecture and variant, with errors by family, and test
    equivalence to zero.

    Args:
        measures: as :func:`comparable` returns it.

    Returns:
        Columns ``RESULT``. The slope of size is the change over the whole observed range of sizes (logarithmic); the others
        are differences between two levels. ``ci_low`` and ``ci_high`` are the ends of the 90% interval, which two one-sided
        tests at 5% compare with the margin: inside it is *equivalent*, wholly beyond it *different*, else *undecided*. A term
        that these models cannot tell has a ``reason`` that names what is missing, and no numbers.
    """
    rows: list[dict[str, Any]] = []
    for (kind, measure), part in measures[counted(measures)].groupby(["kind", "measure"], sort=False):
        data = part.dropna(subset=["value", "family", *COLUMN.values()]).sort_values("model")
        about = {"kind": kind, "measure": measure, "unit": part["unit"].iloc[0], "margin": part["margin"].iloc[0]}
        about |= {"n": len(data), "families": data["family"].nunique()}
        rows += [about | row for row in _regression(data, about["margin"])]
    return pd.DataFrame(rows).reindex(columns=RESULT)


class Term(NamedTuple):
    """One column of the design: which question it answers, its name, and its value for every model [rows]."""

    question: str
    name: str
    values: np.ndarray


def terms_of(data: pd.DataFrame) -> list[Term]:
    """Return size from 0 (the smallest) to 1 (the largest), and a column per level of architecture and variant but the first."""
    if data.empty:
        return []
    sizes = np.log10(data["parameters_billions"].to_numpy(float))
    smallest, largest = (f"{10**size:.3g}" for size in (sizes.min(), sizes.max()))
    scaled = (sizes - sizes.min()) / (np.ptp(sizes) or 1)
    terms = [Term("scale", f"{largest} against {smallest} billion parameters", scaled)]
    for question in ("architecture", "variant"):
        first, *others = sorted(data[question].unique())
        terms += [Term(question, f"{level} against {first}", (data[question] == level) * 1.0) for level in others]
    return terms


def _regression(data: pd.DataFrame, margin: float) -> list[dict[str, Any]]:
    kept: list[Term] = []
    rows, design = [], np.ones((len(data), 1))
    terms = terms_of(data)
    for question in COLUMN:
        own = [term for term in terms if term.question == question and np.ptp(term.values) > 0]
        wider = np.column_stack([design, *(term.values for term in own)])
        if not own:
            same = f"all models have the same {COLUMN[question].replace('_', ' ')}"
            rows.append(_unfitted(question, "", same if len(data) else "no model has a value and known facts"))
        elif np.linalg.matrix_rank(wider) < wider.shape[1]:
            rows.append(_unfitted(question, "", f"{question} is not separable from the terms before it"))
        else:
            kept, design = kept + own, wider
    if reason := _too_few(data, design.shape[1]):
        return rows + [_unfitted(term.question, term.name, reason) for term in kept]
    found = fit(design, data["value"].to_numpy(float), data["family"].to_numpy(str))[1:]
    return rows + [_tested(term, coefficient, data, margin) for term, coefficient in zip(kept, found, strict=True)]


def _too_few(data: pd.DataFrame, coefficients: int) -> str:
    families = data["family"].nunique()
    if len(data) <= coefficients:
        return f"{len(data)} models are too few for {coefficients} coefficients"
    few = f"{families} families are too few for errors by family, which need {MINIMUM_CLUSTERS}"
    return few if families < MINIMUM_CLUSTERS else ""


def _tested(term: Term, found: Coefficient, data: pd.DataFrame, margin: float) -> dict[str, Any]:
    if found.alone is None:
        return {"question": term.question, "term": term.name} | tested(found, margin)
    level = term.name.split(" against ")[0]
    models = data.loc[data[COLUMN[term.question]].astype(str) == level, "model"]
    who = f"one model alone, {models.iloc[0]}" if len(models) == 1 else f"the family {found.alone} alone"
    return _unfitted(term.question, term.name, f"{term.name} rests on {who}")


def tested(found: Coefficient, margin: float) -> dict[str, Any]:
    """Return the numbers of a coefficient and the decision of two one-sided tests against the margin."""
    low, high, p_equivalence = equivalence(found.estimate, found.standard_error, margin, found.degrees)
    inside, beyond = -margin < low and high < margin, low > margin or high < -margin
    decision = EQUIVALENT if inside else DIFFERENT if beyond else UNDECIDED
    numbers = (*found[:3], low, high, found.p(), p_equivalence)
    return dict(zip(NUMBERS, numbers, strict=True)) | {"decision": decision, "reason": ""}


def _unfitted(question: str, term: str, reason: str) -> dict[str, Any]:
    about = {"question": question, "term": term, "decision": UNDECIDED}
    return about | dict.fromkeys(NUMBERS, np.nan) | {"reason": f"not fitted, because {reason}"}


def pairs(measures: pd.DataFrame) -> pd.DataFrame:
    """Compare every instruct model with the base model that it was tuned from: one family, size and architecture.

    Stage 03 keeps no scores of single actions, so pairs are of models, not of actions: the interval of one pair adds the errors
    of its two scores as if they were independent, which is too wide where both read the same rows.

    Args:
        measures: as :func:`comparable` returns it.

    Returns:
        Columns ``RESULT``, instruct minus base: question ``pair`` for every pair; ``tuning`` for their mean, with errors by
        family, or, of fewer families than that takes, with the pairs' own errors: then it is about these pairs alone.
    """
    keys = ["kind", "measure", "unit", "margin", "family", "parameters_billions", "architecture"]
    base, tuned = (measures[measures["variant"] == variant] for variant in ("base", "instruct"))
    both = base.merge(tuned, on=keys, suffixes=("_base", "")).dropna(subset=["value", "value_base"])
    rows: list[dict[str, Any]] = []
    for (kind, measure, unit, margin), part in both.groupby(keys[:4], sort=False):
        differences = (part["value"] - part["value_base"]).to_numpy(float)
        errors = np.hypot(part["standard_error"], part["standard_error_base"]).to_numpy(float)
        about = {"kind": kind, "measure": measure, "unit": unit, "margin": margin}
        names = part["model"] + " against " + part["model_base"]
        for name, difference, error in zip(names, differences, errors, strict=True):
            found = tested(Coefficient(difference, error, np.inf), margin)
            rows.append(about | {"question": "pair", "term": name, "n": 1, "families": 1} | found)
        families = part["family"].nunique()
        mean = Coefficient(float(differences.mean()), float(np.linalg.norm(errors) / len(part)), np.inf)
        if families >= MINIMUM_CLUSTERS:
            mean = fit(np.ones((len(part), 1)), differences, part["family"].to_numpy(str))[0]
        about |= {"question": "tuning", "term": "instruct against base", "n": len(part), "families": families}
        rows.append(about | tested(mean, margin))
    return pd.DataFrame(rows).reindex(columns=RESULT)


def by_depth(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join a table of all models and add ``depth``: 0 at the first block, 1 at the last."""
    whole = pd.concat(tables, ignore_index=True)
    last = whole.groupby("model")["layer"].transform("max")
    return whole.assign(depth=whole["layer"] / last.clip(lower=1))
