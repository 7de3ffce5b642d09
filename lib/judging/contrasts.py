"""Is a difference between arms more than noise, position or length? Tests and models of verdicts, with statsmodels.

Verdicts in, one tidy table out; :mod:`lib.judging.win_rates` says what they add up to.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import binom_test, proportion_confint
from statsmodels.tools.sm_exceptions import PerfectSeparationError, PerfectSeparationWarning

from lib.judging.win_rates import CONDITION, ORDERS, PERFECT, Row, by_dimension, counted, resampled
from lib.stats import cluster_weights, interval

ENDS = 1.959963984540054 * np.array([-1, 0, 1])
"""Of a 95% interval, with its middle, in standard errors."""

SEPARATED = 12.0
"""A coefficient beyond this many log-odds means that the data leave it unbounded."""

POINTS = {"win": 1.0, "tie": 0.5, "lose": 0.0}
"""What a preference is worth where it is averaged."""


def contrasts(
    absolute: pd.DataFrame,
    pairwise: pd.DataFrame,
    *,
    about: Mapping[str, Any] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Test every arm against the baseline, and the aligned arm against every control at its layer.

    Args:
        absolute: verdicts of the absolute rubrics, as :func:`lib.judging.sessions.read_verdicts` returns them.
        pairwise: verdicts of the comparison.
        about: columns with one value, such as who judged and whether it is usable.
        draws, seed: of the bootstrap.

    Returns:
        One row per test: ``about, protocol, rubric, arm, against, layer, strength, dimension, test, value, ci_low, ci_high, p,
        p_holm, n, reason``. ``p_holm`` is corrected (Holm) over the layers, strengths and, where the row is of one dimension,
        dimensions of one protocol, rubric, arm, ``against`` and test. An empty answer counts as the loss that it is. The tests
        are

        * ``mcnemar``: value is the arm's share of perfect scores minus the baseline's on the prompts that have both;
          exact p of McNemar's test on the prompts in which only one of them is perfect. One answer per prompt only.
        * ``sign``: value is the share of prompts, among those with a net preference over all their verdicts, that prefer the
          arm; exact p against one half. A prompt is one observation, however often it was judged.
        * ``length-controlled win rate``: what the win rate would be if both answers were equally long and positions
          balanced: a logit of winning on position and on tanh of the standardised difference in characters; ties are half
          a win; intervals clustered by prompt (after Dubois et al., 2024). Over all dimensions, of what the judge said, where
          it read both orders.
        * ``paired difference``: the aligned arm minus the arm named in ``against``, on the prompts that both have, in
          the share of perfect scores or, in the comparison, in points (a win 1, a tie .5); intervals of the bootstrap of
          :func:`lib.judging.win_rates.resampled`, p of the normal approximation with its standard error. Over all dimensions.

    A test that cannot be made has a ``reason``.
    """
    scores, preferences = counted(absolute), counted(pairwise)
    scores = scores.assign(perfect=(scores["score"] == PERFECT).fillna(False).astype(float))
    rows = [*_against_baseline(scores), *_preferred(preferences)]
    points = preferences.assign(perfect=preferences["verdict"].map(POINTS).astype(float))
    for frame in (scores, points):
        for group, part in frame.groupby(["protocol", "rubric"], sort=False):
            known = dict(zip(("protocol", "rubric"), group, strict=True))
            rows += [known | row for row in _paired(part, draws, seed)]
    columns = ["protocol", "rubric", "arm", "against", "layer", "strength", "dimension", "test"]
    columns += ["value", "ci_low", "ci_high", "p", "n", "reason"]
    frame = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "strength": float, "p": float})
    frame.insert(columns.index("p") + 1, "p_holm", _holm(frame))
    frame = frame.fillna({"reason": "", "against": "baseline"})
    return frame.assign(**about or {})[[*(about or {}), *frame.columns]]


def agreement(first: pd.DataFrame, second: pd.DataFrame, *, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Compare two judges on the questions to which both gave a verdict.

    Args:
        first: verdicts of one judge, absolute and pairwise one below the other.
        second: verdicts of the other on some or all of the same questions.
        draws, seed: of the bootstrap over prompts.

    Returns:
        One row per rubric and metric: ``rubric, metric, value, ci_low, ci_high, n`` (questions). Metrics:
        ``agreement`` (share of equal verdicts) and ``kappa`` (Cohen's; 0 is agreement by chance; missing where both
        judges gave one and the same verdict throughout). Intervals resample prompts.
    """
    keys = ["protocol", "rubric", "id", *CONDITION, "replicate", "sample", "order"]
    both = _given(first, keys).merge(_given(second, keys), on=keys, suffixes=("", "_second"))
    rows = []
    for rubric, part in both.groupby("rubric", sort=False):
        levels = np.union1d(part["given"], part["given_second"])
        one, other = (part[name].to_numpy()[:, None] == levels for name in ("given", "given_second"))
        weights = cluster_weights(part["id"].to_numpy(), draws, seed)
        total = weights.sum(axis=1)
        agreed = weights @ (one & other).any(axis=1) / total
        chance = ((weights @ one) * (weights @ other)).sum(axis=1) / total**2
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = (agreed - chance) / (1 - chance)
        for metric, values in {"agreement": agreed, "kappa": kappa}.items():
            rows.append((rubric, metric, values[0], *interval(values[1:]), len(part)))
    return pd.DataFrame(rows, columns=["rubric", "metric", "value", "ci_low", "ci_high", "n"])


def _given(verdicts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the questions to which the judge gave a verdict, scores and preferences in one column of text, ``given``."""
    valid = verdicts[verdicts["outcome"] == "valid"].reindex(columns=[*keys, "verdict", "score"])
    given = valid["verdict"].astype("string").fillna(valid["score"].astype("string"))
    return valid.drop(columns=["verdict", "score"]).assign(given=given)


# ----------------------------------------------------------------------------------------- single tests


def _against_baseline(scores: pd.DataFrame) -> Iterator[Row]:
    answer = ["protocol", "rubric", "id", "sample"]
    is_baseline = scores["arm"] == "baseline"
    baseline = scores[is_baseline].set_index(answer)["perfect"].rename("baseline")
    for group, part in by_dimension(scores[~is_baseline].join(baseline, on=answer)):
        yield group | {"test": "mcnemar"} | _mcnemar(part)


def _preferred(preferences: pd.DataFrame) -> Iterator[Row]:
    for group, part in by_dimension(preferences):
        yield group | {"test": "sign"} | _sign(part)
        if group["dimension"] == "all":
            said = part[part["outcome"] == "valid"]
            yield group | {"test": "length-controlled win rate", "n": len(said)} | length_controlled(said)


def _paired(frame: pd.DataFrame, draws: int, seed: int) -> Iterator[Row]:
    """Yield the aligned arm minus every other arm of the same layer and strength, and minus the baseline."""
    baseline = frame[frame["arm"] == "baseline"]
    for (layer, strength), ours in frame[frame["arm"] == "aligned"].groupby(["layer", "strength"], dropna=False):
        here = frame[
            (frame["layer"].eq(layer) | frame["layer"].isna() & pd.isna(layer)) & frame["strength"].eq(strength)
        ]
        others = pd.concat([baseline, here[~here["arm"].isin(["aligned", "baseline"])]])
        for against, theirs in others.groupby("arm", sort=False):
            known = {"arm": "aligned", "against": against, "layer": layer, "strength": strength, "dimension": "all"}
            yield known | {"test": "paired difference"} | paired_difference(ours, theirs, draws=draws, seed=seed)


def paired_difference(ours: pd.DataFrame, theirs: pd.DataFrame, *, draws: int, seed: int) -> Row:
    """Return the difference of two means of ``perfect`` on the same prompts; see :func:`contrasts`."""
    common = np.intersect1d(ours["id"], theirs["id"])
    if len(common) < 2:
        return {"n": len(common), "reason": "fewer than two prompts have both"}
    means = []
    for part in (ours, theirs):
        part = part[part["id"].isin(common)]
        weights = resampled(part, draws, seed)  # the same prompts are drawn for both
        means.append(weights @ part["perfect"].to_numpy() / weights.sum(axis=1))
    difference = means[0] - means[1]
    low, high = interval(difference[1:])
    found = {"value": difference[0], "ci_low": low, "ci_high": high, "n": len(common)}
    error = difference[1:].std(ddof=1)
    if error == 0:
        return found | {"reason": "every prompt says the same"}
    return found | {"p": 2 * norm.sf(abs(difference[0]) / error)}


def _mcnemar(part: pd.DataFrame) -> Row:
    both = part.dropna(subset=["baseline"])
    if both.empty:
        return {"n": 0, "reason": "no prompt has a verdict on both the arm and the baseline"}
    if both["id"].duplicated().any():
        return {"n": len(both), "reason": "a prompt has several answers; see the paired difference"}
    won, had = both["perfect"].to_numpy(bool), both["baseline"].to_numpy(bool)
    # The exact test reads only the prompts in which one of them is perfect.
    p = mcnemar([[0, (won & ~had).sum()], [(had & ~won).sum(), 0]], exact=True).pvalue
    difference = won.astype(float) - had
    deviation = difference.std(ddof=1) if len(both) > 1 else np.nan
    low, value, high = difference.mean() + ENDS * deviation / np.sqrt(len(both))
    return {"value": value, "ci_low": low, "ci_high": high, "p": p, "n": len(both)}


def _sign(part: pd.DataFrame) -> Row:
    net = (part["verdict"].map(POINTS).astype(float) - 0.5).groupby(part["id"]).sum()
    wins, n = int((net > 0).sum()), int((net != 0).sum())
    if n == 0:
        return {"n": 0, "reason": "no prompt has a net preference"}
    low, high = proportion_confint(wins, n, method="wilson")
    return {"value": wins / n, "ci_low": low, "ci_high": high, "p": binom_test(wins, n, 0.5), "n": n}


def length_controlled(part: pd.DataFrame) -> Row:
    """Return the win rate of one condition at equal lengths and balanced positions; see :func:`contrasts`."""
    if part["order"].nunique() == 1:
        return {"reason": "verdicts of one order only: arm and place cannot be told apart"}
    won = part["verdict"].map(POINTS).to_numpy(dtype=float)
    if len(won) == 0:
        return {"reason": "the judge said nothing"}
    if len(np.unique(won)) < 2:
        return {"value": won[0], "reason": "every verdict is the same"}
    model = sm.GLM(won, _design(part), family=sm.families.Binomial())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        try:
            fit = model.fit(cov_type="cluster", cov_kwds={"groups": pd.factorize(part["id"])[0]})
        except (PerfectSeparationError, np.linalg.LinAlgError) as error:
            return {"reason": f"the logit has no solution: {error}"}
    if fit.params.abs().max() > SEPARATED:
        return {"reason": "length or place alone separates wins from losses"}
    low, value, high = expit(fit.params["win rate"] + ENDS * fit.bse["win rate"])
    return {"value": value, "ci_low": low, "ci_high": high, "p": fit.pvalues["win rate"]}


def _design(part: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of the logit, without those that do not vary."""
    difference = (part["characters"] - part["baseline_characters"]).to_numpy(dtype=float)
    length = np.tanh(difference / (difference.std() or 1))
    place = np.where(part["order"] == ORDERS[1], 0.5, -0.5)
    design = pd.DataFrame({"win rate": 1.0, "place": place, "length": length})
    return design.loc[:, (design.columns == "win rate") | (design.max() > design.min())]


def _holm(frame: pd.DataFrame) -> pd.Series:
    by_dimension = frame["dimension"].eq("all").rename("all")
    family = ["protocol", "rubric", "arm", frame["against"].fillna("baseline"), "test", by_dimension]
    tested = frame.dropna(subset=["p"]).groupby(family, sort=False)["p"]
    return tested.transform(_corrected)


def _corrected(p: pd.Series) -> pd.Series:
    # As statsmodels' multipletests, which collects garbage at every call: here that took most of the stage.
    ordered = p.sort_values()
    return (ordered * np.arange(len(p), 0, -1)).cummax().clip(upper=1).reindex(p.index)
