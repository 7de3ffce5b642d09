"""Do scale, architecture or alignment matter? The four measures over models, regressions and equivalence tests.

The paper claims that nothing changes the picture. A slope that is not significant does not show that; a two one-sided
test against a stated margin can.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy import stats

from lib import runs
from lib.diagnosis.controls import named
from lib.diagnosis.verdicts import CAREFUL_POOLING, MEASURES
from lib.registry import registry
from lib.statistics import equivalence

TERMS = {
    "scale": "np.log10(parameters_billions)",
    "architecture": "C(architecture)",
    "variant": "C(variant)",
}
"""What is asked of the models -> the term of the regression."""

COLUMN = {"scale": "parameters_billions", "architecture": "architecture", "variant": "variant"}
HC3, MIXED = "least squares, HC3", "mixed, family random"
MINIMUM_FAMILIES = 4
"""With fewer families than this their variance cannot be estimated."""

RESULT = [
    "kind", "measure", "method", "question", "term", "estimate", "ci_low", "ci_high", "p", "p_equivalence", "margin",
    "equivalent", "n", "reason",
]  # fmt: skip


def facts(names: list[str]) -> pd.DataFrame:
    """Return ``name, family, parameters_billions, architecture, variant`` of the models of a run.

    They come from the registry and from the demo's own table; a model that is in neither has missing values.
    """
    known = pd.concat([registry(), pd.read_csv(runs.PROJECT / "data" / "demo" / "models.csv")])
    columns = ["name", "family", "parameters_billions", "architecture", "variant"]
    return pd.DataFrame({"name": names}).merge(known[columns], on="name", how="left")


def headlines(verdicts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Bring the verdicts of all models into one tidy frame.

    Args:
        verdicts: model -> the table that notebook 03 writes.

    Returns:
        Columns ``model, kind, measure`` (``published`` or ``careful``), ``value, ci_low, ci_high, null_measure, null,
        null_high, verdict``; the null belongs to the careful measure.
    """
    parts = []
    for model, table in verdicts.items():
        own = ["kind", "careful", "ci_low", "ci_high", "null_measure", "null", "null_high", "verdict"]
        parts.append(table[own].rename(columns={"careful": "value"}).assign(model=model, measure="careful"))
        published = table[["kind", "ours"]].rename(columns={"ours": "value"})
        parts.append(published.assign(model=model, measure="published"))
    columns = ["model", "kind", "measure", "value", "ci_low", "ci_high", "null_measure", "null", "null_high", "verdict"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


def regressions(table: pd.DataFrame, models: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Regress every measure on size, architecture and variant, and test equivalence to zero.

    Args:
        table: as :func:`headlines` returns it.
        models: as :func:`facts` returns it.
        margin: differences smaller than this count as none, in units of the measure.

    Returns:
        Columns ``RESULT``; ``ci_low`` and ``ci_high`` are the ends of the 90% interval, which two one-sided tests at 5%
        compare with the margin; ``p`` is of no difference, ``p_equivalence`` of a difference beyond the margin. Method
        ``least squares, HC3`` treats models as independent; ``mixed, family random`` gives every family its own level. A
        term that cannot be fitted has a ``reason`` and no numbers.
    """
    joined = table.merge(models, left_on="model", right_on="name", how="left")
    records: list[tuple] = []
    for key, part in joined.groupby(["kind", "measure"], sort=False):
        data = part.dropna(subset=["value", *COLUMN.values()])
        reasons = unfit(data)
        terms = [TERMS[question] for question, reason in reasons.items() if not reason]
        for question, reason in reasons.items():
            if reason:
                records.append((*key, HC3, question, *_none(margin, len(data), reason)))
        if terms:
            records += _least_squares(key, data, terms, margin)
            records += _mixed(key, data, terms, margin)
    return pd.DataFrame(records, columns=RESULT)


def unfit(data: pd.DataFrame) -> dict[str, str]:
    """Say for every question why its term cannot be fitted on these models; empty if it can.

    Terms enter in the order of ``TERMS``; one that the earlier ones already determine is left out.
    """
    reasons: dict[str, str] = {}
    design, rank = np.ones((len(data), 1)), 1
    for question, column in COLUMN.items():
        if len(data) == 0:
            reasons[question] = "not fitted, because no model has a value and known size, architecture and variant"
            continue
        if data[column].nunique() < 2:
            reasons[question] = f"not fitted, because all models have the same {column.replace('_', ' ')}"
            continue
        own = np.log10(data[[column]]) if question == "scale" else pd.get_dummies(data[column], drop_first=True)
        wider = np.hstack([design, own.to_numpy(float)])
        if np.linalg.matrix_rank(wider) < wider.shape[1]:
            reasons[question] = f"not fitted, because {column} is not separable from the terms before it"
            continue
        reasons[question], design, rank = "", wider, wider.shape[1]
    if rank > 1 and len(data) <= rank + 1:
        few = f"not fitted, because {len(data)} models are too few for {rank} coefficients"
        reasons = {question: reason or few for question, reason in reasons.items()}
    return reasons


def by_depth(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Join a table of all models and add ``depth``: 0 at the first block, 1 at the last."""
    whole = pd.concat(tables.values(), ignore_index=True)
    last = whole.groupby("model")["layer"].transform("max")
    return whole.assign(depth=whole["layer"] / last.clip(lower=1))


def careful_profiles(folders: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """Read the careful measure of every kind and what words allow without a model, by layer and model.

    Args:
        folders: model -> the directory that notebook 03 writes.

    Returns:
        Kind -> columns of its table and ``depth``.
    """
    profiles = {}
    for measure in MEASURES:
        tables = {model: pd.read_parquet(folder / f"{measure.kind}.parquet") for model, folder in folders.items()}
        whole = by_depth(tables)
        column, label = measure.label
        arms = [named(measure.careful, CAREFUL_POOLING), named(measure.careful, "words_only")]
        rows = (whole["metric"] == measure.metric) & (whole[column] == label) & whole["arm"].isin(arms)
        profiles[measure.kind] = whole[rows].drop(columns=column)
    return profiles


def _least_squares(key: tuple[str, str], data: pd.DataFrame, terms: list[str], margin: float) -> list[tuple]:
    result = smf.ols(f"value ~ {' + '.join(terms)}", data).fit(cov_type="HC3", use_t=True)
    return [
        _tested(key, HC3, term, result.params[term], result.bse[term], result.df_resid, margin, len(data))
        for term in result.params.index.drop("Intercept")
    ]


def _mixed(key: tuple[str, str], data: pd.DataFrame, terms: list[str], margin: float) -> list[tuple]:
    families = data["family"].nunique()
    reason = f"not fitted, because {families} families are too few for a random level"
    if families >= MINIMUM_FAMILIES:
        with warnings.catch_warnings():
            # A family variance of zero is at the edge of what is allowed: statsmodels warns, the estimate stands, and
            # searches that follow its derivative can fail there.
            warnings.simplefilter("ignore")
            result = smf.mixedlm(f"value ~ {' + '.join(terms)}", data, groups="family").fit(method="powell")
        names = result.fe_params.index.drop("Intercept")
        degrees = len(data) - families - len(names)
        if result.converged and np.isfinite(result.bse_fe[names]).all() and degrees > 0:
            return [
                _tested(key, MIXED, term, result.fe_params[term], result.bse_fe[term], degrees, margin, len(data))
                for term in names
            ]
        reason = f"not fitted, because {len(data)} models in {families} families do not determine it"
    return [(*key, MIXED, _question(term), *_none(margin, len(data), reason)) for term in terms]


def _tested(
    key: tuple[str, str], method: str, term: str, estimate: float, error: float, degrees: float, margin: float, n: int
) -> tuple:
    low, high, p_equivalence = equivalence(estimate, error, margin, degrees)
    p = 2 * stats.t.sf(abs(estimate) / error, degrees)
    inside = p_equivalence < 0.05
    return (*key, method, _question(term), term, estimate, low, high, p, p_equivalence, margin, inside, n, "")


def _none(margin: float, n: int, reason: str) -> tuple:
    return ("", *[np.nan] * 5, margin, False, n, reason)


def _question(term: str) -> str:
    return next(question for question, text in TERMS.items() if term.startswith(text))
