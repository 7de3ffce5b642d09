"""Is a difference between arms more than noise, place or length? Tests and models of verdicts, with statsmodels.

Verdicts in, one tidy table out; :mod:`lib.verdicts` says what they add up to.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.sparse import csr_matrix
from scipy.special import expit
from scipy.stats import norm
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import binom_test, proportion_confint
from statsmodels.tools.sm_exceptions import PerfectSeparationError, PerfectSeparationWarning

from lib.flames import CONDITION
from lib.statistics import clustered_bootstrap
from lib.verdicts import ORDERS, PERFECT

Row = dict[str, Any]
Z = 1.959963984540054
SEPARATED = 12.0
"""A coefficient beyond this many log-odds means that the data leave it unbounded."""


def contrasts(absolute: pd.DataFrame, pairwise: pd.DataFrame) -> pd.DataFrame:
    """Test every arm against the baseline.

    Args:
        absolute: verdicts of the absolute rubrics, as :func:`lib.judging.absolute_table` returns them.
        pairwise: verdicts of the comparison, as :func:`lib.judging.read_verdicts` returns them.

    Returns:
        One row a test: ``rubric, arm, layer, strength, dimension, test, value, ci_low, ci_high, p, p_holm, n, reason``.
        ``p_holm`` is corrected (Holm) over the layers, strengths and, where the row is of one dimension, dimensions of
        one rubric, arm and test. The tests are

        * ``mcnemar``: value is the arm's share of perfect scores minus the baseline's on the prompts that have both;
          exact p of McNemar's test on the prompts in which only one of them is perfect.
        * ``sign``: value is the share of prompts, among those with a net preference over both orders, that prefer the
          arm; exact p against one half. A prompt is one observation, however often it was judged.
        * ``length-controlled win rate``: what the win rate would be if both answers were equally long and places
          balanced: a logit of winning on place and on tanh of the standardised difference in characters; ties are half
          a win; intervals clustered by prompt (after Dubois et al., 2024).
        * ``mixed logit win rate``, ``... place``, ``... length``: decided verdicts with a random intercept a prompt,
          fitted by variational Bayes with normal priors of width 2 on the coefficients; the first as a probability at
          equal lengths and balanced places, the other two as coefficients in log-odds; p is that of the normal
          approximation.

    The last two are fitted over all dimensions together. A test that cannot be made has a ``reason``.
    """
    rows = [*_mcnemar_rows(absolute), *_sign_rows(pairwise), *_model_rows(pairwise)]
    columns = ["rubric", *CONDITION, "dimension", "test", "value", "ci_low", "ci_high", "p", "n", "reason"]
    frame = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "strength": float, "p": float})
    frame.insert(columns.index("p") + 1, "p_holm", _holm(frame))
    return frame.fillna({"reason": ""})


def agreement(first: pd.DataFrame, second: pd.DataFrame, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Compare two judges on the questions to which both gave a verdict.

    Args:
        first: verdicts of one judge, absolute and pairwise one under the other.
        second: verdicts of the other on some or all of the same questions.
        draws: resamples of prompts for the intervals.
        seed: of the bootstrap.

    Returns:
        One row a rubric and metric: ``rubric, metric, value, ci_low, ci_high, n`` (questions). Metrics:
        ``agreement`` (share of equal verdicts) and ``kappa`` (Cohen's; 0 is agreement by chance; missing where both
        judges gave one and the same verdict throughout). Intervals resample prompts.
    """
    keys = ["rubric", "id", *CONDITION, "order"]
    pair = [_verdicts(frame).dropna(subset=["given"])[[*keys, "given"]] for frame in (first, second)]
    both = pair[0].merge(pair[1], on=keys, suffixes=("", "_second"))
    rows: list[Row] = []
    for rubric, part in both.groupby("rubric", sort=False):
        levels = sorted(set(part["given"]) | set(part["given_second"]))
        one, other = (np.array([part[name] == level for level in levels]) for name in ("given", "given_second"))

        def agreed(w: np.ndarray, one: np.ndarray = one, other: np.ndarray = other) -> np.ndarray:
            return w @ (one & other).any(axis=0) / w.sum(axis=1)

        def kappa(w: np.ndarray, one: np.ndarray = one, other: np.ndarray = other) -> np.ndarray:
            total = w.sum(axis=1)
            chance = ((w @ one.T) * (w @ other.T)).sum(axis=1) / total**2
            return (agreed(w, one, other) - chance) / (1 - chance)

        for metric, statistic in {"agreement": agreed, "kappa": kappa}.items():
            with np.errstate(invalid="ignore", divide="ignore"):
                value, low, high = clustered_bootstrap(statistic, part["id"].to_numpy(), draws, seed)
            found = {"value": value, "ci_low": low, "ci_high": high, "n": len(part)}
            rows.append({"rubric": rubric, "metric": metric, **found})
    return pd.DataFrame(rows, columns=["rubric", "metric", "value", "ci_low", "ci_high", "n"])


def _verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Put both kinds of verdicts into one column ``given`` of text; absolute ones have no order."""
    given = frame["verdict"].astype(object) if "verdict" in frame else pd.Series(None, index=frame.index, dtype=object)
    if "score" in frame:
        given = given.where(given.notna(), frame["score"].astype("string").astype(object))
    order = frame["order"].fillna("") if "order" in frame else ""
    # Missing layers and strengths would not be equal to each other in a merge of floats with nullable integers.
    places = {name: frame[name].astype(float).fillna(-1.0) for name in ("layer", "strength")}
    return frame.assign(given=given, order=order, **places)


# ----------------------------------------------------------------------------------------- single tests


def _mcnemar_rows(absolute: pd.DataFrame) -> Iterator[Row]:
    valid = absolute[absolute["outcome"] == "valid"]
    valid = valid.assign(perfect=(valid["score"] == PERFECT).astype(bool))
    for rubric, part in valid.groupby("rubric", sort=False):
        baseline = part[part["arm"] == "baseline"].set_index("id")["perfect"].rename("baseline")
        for group, own in _by_dimension(part[part["arm"] != "baseline"]):
            known = {"rubric": rubric, **group, "test": "mcnemar"}
            both = own.set_index("id").join(baseline, how="inner")
            if both.empty:
                yield known | {"n": 0, "reason": "no prompt has a verdict on both the arm and the baseline"}
                continue
            won = both["perfect"].to_numpy(bool)
            had = both["baseline"].to_numpy(bool)
            table = [
                [int((won & had).sum()), int((won & ~had).sum())],
                [int((~won & had).sum()), int((~won & ~had).sum())],
            ]
            difference = won.astype(float) - had
            half = Z * difference.std(ddof=1) / np.sqrt(len(both)) if len(both) > 1 else np.nan
            mean = difference.mean()
            interval = {"value": mean, "ci_low": mean - half, "ci_high": mean + half}
            yield known | interval | {"p": float(mcnemar(table, exact=True).pvalue), "n": len(both)}


def _sign_rows(pairwise: pd.DataFrame) -> Iterator[Row]:
    valid = pairwise[pairwise["outcome"] == "valid"]
    valid = valid.assign(net=valid["verdict"].map({"win": 1, "tie": 0, "lose": -1}).astype(float))
    for group, part in _by_dimension(valid):
        known = {"rubric": "pairwise", **group, "test": "sign"}
        net = part.groupby("id")["net"].sum()
        wins, n = int((net > 0).sum()), int((net != 0).sum())
        if n == 0:
            yield known | {"n": 0, "reason": "no prompt has a net preference"}
            continue
        low, high = proportion_confint(wins, n, method="wilson")
        yield known | {"value": wins / n, "ci_low": low, "ci_high": high, "p": float(binom_test(wins, n, 0.5)), "n": n}


def _model_rows(pairwise: pd.DataFrame) -> Iterator[Row]:
    valid = pairwise[pairwise["outcome"] == "valid"]
    for group, part in valid.groupby(CONDITION, sort=False, dropna=False):
        known = {"rubric": "pairwise", **dict(zip(CONDITION, group, strict=True)), "dimension": "all"}
        yield known | {"test": "length-controlled win rate", "n": len(part)} | length_controlled(part)
        decided = part[part["verdict"] != "tie"]
        for name, found in mixed_logit(decided).items():
            yield known | {"test": f"mixed logit {name}", "n": len(decided)} | found


def length_controlled(part: pd.DataFrame) -> Row:
    """Return the win rate of one condition at equal lengths and balanced places; see :func:`contrasts`."""
    won = part["verdict"].map({"win": 1.0, "tie": 0.5, "lose": 0.0}).to_numpy()
    if len(np.unique(won)) < 2:
        return {"value": float(won[0]) if len(won) else np.nan, "reason": "every verdict is the same"}
    design = np.column_stack([np.ones(len(part)), _place(part), np.tanh(_length(part))])
    varies = [0] + [column for column in (1, 2) if np.ptp(design[:, column]) > 0]
    groups = pd.factorize(part["id"])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        try:
            fit = sm.GLM(won, design[:, varies], family=sm.families.Binomial()).fit(
                cov_type="cluster", cov_kwds={"groups": groups}
            )
        except (PerfectSeparationError, np.linalg.LinAlgError) as error:
            return {"reason": f"the logit has no solution: {error}"}
    if np.abs(fit.params).max() > SEPARATED:
        return {"reason": "length or place alone separates wins from losses"}
    low, high = expit(fit.params[0] + np.array([-Z, Z]) * fit.bse[0])
    return {
        "value": float(expit(fit.params[0])),
        "ci_low": float(low),
        "ci_high": float(high),
        "p": float(fit.pvalues[0]),
    }


def mixed_logit(decided: pd.DataFrame) -> dict[str, Row]:
    """Fit decided verdicts of one condition with a random intercept a prompt; see :func:`contrasts`."""
    names = ("win rate", "place", "length")
    won = (decided["verdict"] == "win").to_numpy(dtype=float)
    if decided["id"].nunique() < 2 or len(np.unique(won)) < 2:
        return {name: {"reason": "every verdict is the same"} for name in names}
    columns = {"win rate": np.ones(len(decided)), "place": _place(decided), "length": _length(decided)}
    design = {name: values for name, values in columns.items() if name == "win rate" or np.ptp(values) > 0}
    codes, prompts = pd.factorize(decided["id"])
    of_prompt = csr_matrix((np.ones(len(codes)), (np.arange(len(codes)), codes)))
    fixed = np.column_stack(list(design.values()))
    model = BinomialBayesMixedGLM(won, fixed, of_prompt, np.zeros(len(prompts), dtype=int))
    with warnings.catch_warnings():
        # The optimiser tries steps that overflow and takes them back.
        warnings.simplefilter("ignore", RuntimeWarning)
        start = np.zeros(fixed.shape[1] + 1 + len(prompts))
        fit = model.fit_vb(mean=start, sd=np.full(len(start), 0.5))
    found: dict[str, Row] = {name: {"reason": "it does not vary"} for name in names if name not in design}
    for place, name in enumerate(design):
        mean, deviation = float(fit.fe_mean[place]), float(fit.fe_sd[place])
        ends = mean - Z * deviation, mean, mean + Z * deviation
        low, value, high = expit(ends) if name == "win rate" else ends
        p = 2 * float(norm.sf(abs(mean) / deviation))
        found[name] = {"value": float(value), "ci_low": float(low), "ci_high": float(high), "p": p}
    return {name: found[name] for name in names}


def _place(part: pd.DataFrame) -> np.ndarray:
    return np.where(part["order"] == ORDERS[1], 0.5, -0.5)


def _length(part: pd.DataFrame) -> np.ndarray:
    difference = (part["characters"] - part["baseline_characters"]).to_numpy(dtype=float)
    deviation = difference.std()
    return difference / deviation if deviation > 0 else difference


def _by_dimension(frame: pd.DataFrame) -> Iterator[tuple[Row, pd.DataFrame]]:
    split = pd.concat([frame.assign(dimension="all"), frame], ignore_index=True)
    keys = [*CONDITION, "dimension"]
    for group, part in split.groupby(keys, sort=False, dropna=False):
        yield dict(zip(keys, group, strict=True)), part


def _holm(frame: pd.DataFrame) -> pd.Series:
    corrected = pd.Series(np.nan, index=frame.index)
    family = ["rubric", "arm", "test", frame["dimension"].eq("all").rename("all")]
    for _, part in frame.dropna(subset=["p"]).groupby(family, sort=False):
        order = part["p"].sort_values()
        stepped = np.maximum.accumulate(order.to_numpy() * np.arange(len(order), 0, -1))
        corrected[order.index] = np.minimum(stepped, 1)
    return corrected
