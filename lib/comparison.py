"""Do scale, architecture or alignment matter? The four measures over models, regressions and equivalence tests.

The paper claims that nothing changes the picture. A slope that is not significant does not show that; a two one-sided
test against a stated margin can.
"""

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

from lib import runs
from lib.models import registry

TERMS = {
    "scale": "np.log10(parameters_billions)",
    "architecture": "C(architecture)",
    "variant": "C(variant)",
}
"""What is asked of the models -> the term of the regression."""

MEASURES = {"published": "ours", "careful": "careful"}


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
        Columns ``model, kind, measure`` (``published`` or ``careful``), ``value, ci_low, ci_high, null, null_high,
        verdict``; the null belongs to the careful measure.
    """
    parts = []
    for model, table in verdicts.items():
        careful = table[["kind", "careful", "ci_low", "ci_high", "null", "null_high", "verdict"]]
        parts.append(careful.rename(columns={"careful": "value"}).assign(model=model, measure="careful"))
        published = table[["kind", "ours"]].rename(columns={"ours": "value"})
        parts.append(published.assign(model=model, measure="published"))
    columns = ["model", "kind", "measure", "value", "ci_low", "ci_high", "null", "null_high", "verdict"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


def regressions(table: pd.DataFrame, models: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Regress every measure on size, architecture and variant, and test equivalence to zero.

    Args:
        table: as :func:`headlines` returns it.
        models: as :func:`facts` returns it.
        margin: differences smaller than this count as none, in units of the measure.

    Returns:
        Columns ``kind, measure, question, term, estimate, ci_low, ci_high`` (90%, the interval that two one-sided tests
        at 5% compare with the margin), ``p`` (of no difference), ``margin, equivalent, n, reason``. Standard errors are
        HC3. A term that cannot be fitted has a ``reason`` and no numbers.
    """
    joined = table.merge(models, left_on="model", right_on="name", how="left")
    records = []
    for (kind, measure), part in joined.groupby(["kind", "measure"], sort=False):
        data = part.dropna(subset=["value", "parameters_billions", "architecture", "variant"])
        usable = {question: _cannot(question, data) for question in TERMS}
        fitted = [TERMS[question] for question, reason in usable.items() if not reason]
        needed = 1 + sum(
            data[question].nunique() - 1 if question != "scale" else 1 for question, r in usable.items() if not r
        )
        if fitted and len(data) <= needed:
            few = f"not fitted, because {len(data)} models are too few for {needed} coefficients"
            usable, fitted = {question: reason or few for question, reason in usable.items()}, []
        for question, reason in usable.items():
            if reason:
                records.append((kind, measure, question, "", *[np.nan] * 4, margin, False, len(data), reason))
        if fitted:
            records += _fit(kind, measure, data, fitted, margin)
    columns = [
        "kind",
        "measure",
        "question",
        "term",
        "estimate",
        "ci_low",
        "ci_high",
        "p",
        "margin",
        "equivalent",
        "n",
        "reason",
    ]
    return pd.DataFrame(records, columns=columns)


def _cannot(question: str, data: pd.DataFrame) -> str:
    column = "parameters_billions" if question == "scale" else question
    if len(data) == 0:
        return "not fitted, because no model has a value and known size, architecture and variant"
    if data[column].nunique() < 2:
        return f"not fitted, because all models have the same {column.replace('_', ' ')} ({data[column].iloc[0]})"
    return ""


def _fit(kind: str, measure: str, data: pd.DataFrame, terms: list[str], margin: float) -> list[tuple]:
    result = smf.ols(f"value ~ {' + '.join(terms)}", data).fit(cov_type="HC3", use_t=True)
    bounds = result.conf_int(alpha=0.1)
    records = []
    for term in result.params.index.drop("Intercept"):
        question = next(name for name, text in TERMS.items() if term.startswith(text))
        low, high = bounds.loc[term]
        inside = bool(low > -margin and high < margin)
        records.append(
            (
                kind,
                measure,
                question,
                term,
                result.params[term],
                low,
                high,
                result.pvalues[term],
                margin,
                inside,
                len(data),
                "",
            )
        )
    return records


def by_depth(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return opposing cosines of all models on relative depth (0 first block, 1 last), columns of the tables and ``depth``."""
    whole = pd.concat(tables.values(), ignore_index=True)
    last = whole.groupby("model")["layer"].transform("max")
    return whole.assign(depth=whole["layer"] / last.clip(lower=1))
