"""Judges judged: does a judge find the better of two answers, wherever it stands, and say the same again?

Every judge is asked about pairs of which the better answer is known (``data/judge_gold.jsonl``, written by this project), in both
orders and once more. One that stays below the stated bounds is *not usable*: its numbers are shown and decide nothing.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from lib.judging.judges import describe
from lib.judging.sessions import Session, read_verdicts
from lib.judging.win_rates import Row, biases
from lib.run.parameters import JudgingKeys
from lib.stats import cluster_weights, interval


def judge_judges(planned: Mapping[str, Session], parameters: JudgingKeys) -> pd.DataFrame:
    """Judge all judges of a run, see :func:`judged`; ``role`` says which is the first."""
    tables = []
    for role, session in planned.items():
        gold, again = (read_verdicts(session, series=series) for series in ("gold", "gold again"))
        about = {"role": role} | describe(session.judge)
        tables.append(judged(gold, again, about=about, parameters=parameters))
    return pd.concat(tables, ignore_index=True)


def judged(gold: pd.DataFrame, again: pd.DataFrame, *, about: dict[str, str], parameters: JudgingKeys) -> pd.DataFrame:
    """Judge a judge by its verdicts on pairs with a known better answer.

    Args:
        gold: verdicts of :func:`lib.judging.questions.gold_questions` in both orders; the arm is the better answer.
        again: verdicts on the same pairs in the first order, asked once more.
        about: columns that say which judge it is.
        parameters: what it must reach to be usable, and draws and seed of the bootstrap over pairs.

    Returns:
        One row per metric: ``about``, ``metric, value, ci_low, ci_high, n, bound, within`` and ``usable``, whether all metrics
        with a bound are within. ``gold_agreement``: share of all questions in which the judge prefers the better answer; no
        verdict is no agreement. ``position_bias``: the first place minus the second, of decided verdicts, so of mirrored
        pairs: 1 always takes the first. ``retest_agreement``: share of pairs on which it says the same twice, with
        Wilson's interval; those of the others are the bootstrap's. ``verdicts``: share of questions with a verdict.
        ``length_bias``: as in :func:`lib.judging.win_rates.summarise`. The last two have no bound.
    """
    rows = list(_measured(gold, again, parameters.bootstrap_draws, parameters.seed))
    limits = {
        "gold_agreement": (parameters.min_gold_agreement, 1),
        "retest_agreement": (parameters.min_retest_agreement, 1),
        "position_bias": (parameters.max_position_bias, -1),
    }
    for row in rows:
        bound, sign = limits.get(row["metric"], (np.nan, 0))
        row["bound"] = bound
        # A metric that could not be measured is not within its bound.
        row["within"] = pd.NA if sign == 0 else bool(sign * (abs(row["value"]) - bound) >= 0)
    usable = all(row["within"] for row in rows if row["within"] is not pd.NA)
    frame = pd.DataFrame(rows).assign(**about, usable=usable).astype({"within": "boolean"})
    return frame[[*about, "metric", "value", "ci_low", "ci_high", "n", "bound", "within", "usable"]]


def _measured(gold: pd.DataFrame, again: pd.DataFrame, draws: int, seed: int) -> Iterator[Row]:
    weights = cluster_weights(gold["id"].to_numpy(), draws, seed)
    right = (gold["verdict"] == "win").to_numpy(dtype=float)
    shares = {"gold_agreement": right, "verdicts": (gold["outcome"] == "valid").to_numpy(dtype=float)}
    values = {name: weights @ share / weights.sum(axis=1) for name, share in shares.items()} | biases(gold, weights)
    for metric, value in values.items():
        low, high = interval(value[1:])
        yield {"metric": metric, "value": value[0], "ci_low": low, "ci_high": high, "n": len(gold)}
    both = again.merge(gold, on=["id", "order"], suffixes=("_again", ""))
    both = both[(both["outcome"] == "valid") | (both["outcome_again"] == "valid")]
    same, n = int((both["chosen"] == both["chosen_again"]).sum()), len(both)
    low, high = proportion_confint(same, n, method="wilson") if n else (np.nan, np.nan)
    value = same / n if n else np.nan
    yield {"metric": "retest_agreement", "value": value, "ci_low": low, "ci_high": high, "n": n}
