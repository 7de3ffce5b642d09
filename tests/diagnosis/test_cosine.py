"""The corrected cosine against all halvings, known means and repeated sampling; the published one against its own analysis."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from diagnosis.planted import Store, a_model, planted

from lib.diagnosis import controls, cosine
from lib.diagnosis.categorical import categorical
from lib.diagnosis.layers import with_labels
from lib.diagnosis.sampling import Sampling
from lib.paper import CATEGORIES, FOUNDATIONS
from lib.run.parameters import DiagnosisParameters
from lib.stats import interval_around

CARE, HARM = 0, 1


def parameters(draws=60, pooling="mean"):
    return DiagnosisParameters(run_dir="runs/none", model="m", pooling=pooling, bootstrap_draws=draws, permutations=5)


def opposed(truth, *, rows, noise=1.0, width=40, seed=0, draws=1):
    """Rows of care and harm about means of length 1 with a known cosine, and what makes prototypes of them."""
    generator = np.random.default_rng(seed)
    first, second = np.linalg.qr(generator.normal(size=(width, 2)))[0].T
    means = np.stack([first, truth * first + np.sqrt(1 - truth**2) * second])
    x = np.repeat(means, rows, axis=0) + noise * generator.normal(size=(2 * rows, width))
    actions = np.array([f"a{index}" for index in range(2 * rows)])
    categories = np.repeat(np.array(CATEGORIES[:2], dtype=object), rows)
    return x, cosine.Typical.of(actions, categories, draws=draws, seed=seed)


def test_products_are_the_mean_over_all_ways_to_halve_the_actions():
    x, typical = opposed(0.3, rows=6)
    found = typical.products(x, corrected=True)[0]
    care = x[:6]
    halves = [list(half) for half in combinations(range(6), 3)]
    across = [care[half].mean(axis=0) @ np.delete(care, half, axis=0).mean(axis=0) for half in halves]
    assert found[CARE, CARE] == pytest.approx(np.mean(across))
    assert found[CARE, HARM] == pytest.approx(care.mean(axis=0) @ x[6:].mean(axis=0))
    assert np.isnan(found[2:]).all(), "other categories have no rows"


def test_rows_of_one_action_are_never_multiplied():
    """Against many random halves of whole actions; an action has rows in both poles."""
    x, _ = opposed(0.3, rows=12, noise=0.5)
    actions = np.array([f"a{index // 2}" for index in range(12)] + [f"a{index // 3}" for index in range(12)])
    categories = np.repeat(np.array(CATEGORIES[:2], dtype=object), 12)
    found = cosine.Typical.of(actions, categories, draws=1, seed=0).products(x, corrected=True)[0]
    by_hand = [x[i] @ x[12 + j] for i in range(12) for j in range(12) if actions[i] != actions[12 + j]]
    assert found[CARE, HARM] == pytest.approx(np.mean(by_hand))
    generator, sums, pairs = np.random.default_rng(1), 0.0, 0.0
    for _ in range(4000):
        first = np.isin(actions[:12], generator.permutation(np.unique(actions[:12]))[:3])
        sums += x[:12][first].sum(axis=0) @ x[:12][~first].sum(axis=0)
        pairs += first.sum() * (~first).sum()
    assert found[CARE, CARE] == pytest.approx(sums / pairs, rel=0.02)


@pytest.mark.parametrize("rows", [8, 20, 150])
@pytest.mark.parametrize("truth", [-0.6, 0.0, 0.5])
def test_noise_pulls_the_cosine_to_zero_and_the_correction_takes_it_back(rows, truth):
    noise = 0.25 * np.sqrt(rows)  # of the prototypes' squared norm, 1 is signal and 2.5 is noise
    plain, corrected = [], []
    for seed in range(150):
        x, typical = opposed(truth, rows=rows, noise=noise, seed=seed)
        plain.append(cosine.cosines(typical.products(x, corrected=False))[0, CARE, HARM])
        products = typical.products(x, corrected=True)[0]
        corrected.append([products[CARE, HARM], products[CARE, CARE], products[HARM, HARM]])
    assert np.mean(plain) == pytest.approx(truth / 3.5, abs=0.05)
    both, care, harm = np.mean(corrected, axis=0)
    assert both / np.sqrt(care * harm) == pytest.approx(truth, abs=0.12)
    assert care == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("rows", "truth"), [(15, -0.5), (60, -0.5), (60, 0.4)])
def test_the_corrected_interval_covers_the_cosine_of_the_true_means(rows, truth):
    covered, values = [], []
    for seed in range(150):
        x, typical = opposed(truth, rows=rows, noise=0.1 * np.sqrt(rows), seed=seed, draws=60)
        matrix = cosine.cosines(typical.products(x, corrected=True))[:, CARE, HARM]
        low, high = interval_around(matrix[0], matrix[1:])
        covered.append(low <= truth <= high)
        values.append(matrix[0])
    assert np.mean(values) == pytest.approx(truth, abs=0.05)
    assert 0.9 <= np.mean(covered) <= 0.995


def test_prototypes_of_noise_have_no_corrected_cosine():
    store, annotations, subset = a_model(0.0)
    found = cosine.measure(store, annotations, subset=subset, parameters=parameters())
    of_noise = found[(found["arm"] == "corrected") & (found["foundation"] != "all")]
    assert of_noise["reason"].str.contains("cannot be told from noise").mean() >= 0.8
    signal = cosine.measure(*a_model(4.0)[:2], subset=a_model(4.0)[2], parameters=parameters())
    assert signal.loc[signal["arm"] == "corrected", "value"].to_numpy() == pytest.approx(-1, abs=0.02)


def test_plain_cosines_equal_those_of_the_categorical_analysis():
    store, annotations, subset = a_model(1.0, first_token=4.0)
    found = cosine.measure(store, annotations, subset=subset, parameters=parameters())
    found = found[found["metric"] == "opposing_cosine"].set_index(["layer", "arm", "foundation"])
    rows = with_labels(subset, annotations)
    where = store.rows_of(rows["action"])
    tokens = store.index["tokens"].to_numpy()[where]
    inputs = {"published": store.read(1, "mean", where), "last": store.read(1, "last", where)}
    inputs["length_removed"] = controls.without_length(inputs["published"], tokens)
    for arm, x in inputs.items():
        expected = categorical(x, rows, sampling=Sampling(60, 5, 0), arm=arm).query("metric == 'opposing_cosine'")
        names = [arm, "cross_foundation"] if arm == "published" else [arm]
        for row in expected[expected["arm"].isin(names)].itertuples():
            here = found.loc[(1, row.arm, row.foundation)]
            columns = ["value", "ci_low", "ci_high", "n"]
            assert here[columns].to_numpy(float) == pytest.approx([getattr(row, name) for name in columns], abs=1e-4)


def test_length_alone_is_the_cosine_of_predicted_prototypes():
    store, annotations, subset = a_model(1.0, first_token=4.0)
    found = cosine.measure(store, annotations, subset=subset, parameters=parameters())
    found = found[found["metric"] == "opposing_cosine"].set_index(["layer", "arm", "foundation"])
    rows = with_labels(subset, annotations)
    x = store.read(0, "mean", store.rows_of(rows["action"])).astype(float)
    lengths = store.index["tokens"].to_numpy()[store.rows_of(rows["action"])]
    design = np.column_stack([np.ones(len(x)), lengths, 1 / lengths])
    predicted = design @ np.linalg.lstsq(design, x, rcond=None)[0] - x.mean(axis=0)
    for foundation in FOUNDATIONS:
        poles = [
            predicted[(rows["category"] == pole) & rows["is_prototype"]].mean(axis=0) for pole in foundation.split("-")
        ]
        expected = poles[0] @ poles[1] / np.linalg.norm(poles[0]) / np.linalg.norm(poles[1])
        assert found.loc[(0, "length_only", foundation), "value"] == pytest.approx(expected, abs=1e-4)


def lengthy(first_token, opposite=0.9):
    """A model whose poles have a cosine of ``opposite``, plus a first token in proportion to one over the length."""
    rows, subset = planted(1.0, per_cell=60, opposite=0.0)
    generator = np.random.default_rng(5)
    vice = (subset["polarity"] == "vice").to_numpy()
    # Virtues are short and vices long, so that length alone opposes them.
    length = np.where(vice, generator.integers(20, 30, len(rows)), generator.integers(5, 10, len(rows)))
    length = np.where(subset["polarity"] == "neutral", 12, length)
    foundation = subset["foundation"].map(FOUNDATIONS.index).to_numpy()
    directions = np.linalg.qr(generator.normal(size=(24, 24)))[0]
    rows = generator.normal(size=rows.shape) * 0.2 + directions[foundation] * subset["typicality"].to_numpy()[:, None]
    rows += 0.3 * directions[foundation + 5] * np.where(vice, -1, 1)[:, None] * subset["typicality"].to_numpy()[:, None]
    rows += first_token * (1 / length)[:, None] * directions[11]
    pooled = {name: np.stack([rows, rows]).astype(np.float32) for name in ("mean", "last")}
    ids = [f"id{index}" for index in range(len(rows))]
    store = Store(pooled, pd.DataFrame({"action": subset["action"], "tokens": length}))
    annotations = pd.DataFrame({"id": ids, "action": subset["action"]})
    return store, annotations, subset.assign(id=ids)[["id", "foundation", "polarity", "typicality", "is_prototype"]]


def test_a_cosine_that_is_length_is_called_that_and_one_that_is_not_is_not():
    for first_token, expected in ((1000.0, cosine.EXPLAINED), (0.0, cosine.NOT_EXPLAINED)):
        store, annotations, subset = lengthy(first_token)
        found = cosine.measure(store, annotations, subset=subset, parameters=parameters())
        headline = found[(found["metric"] == "explained_by_length") & found["layer"].isna()]
        assert cosine.decision(headline.iloc[0]) == expected
        assert expected in cosine.sentence(found)
        inside = found.dropna(subset=["value", "ci_low"])
        assert ((inside["ci_low"] <= inside["value"]) & (inside["value"] <= inside["ci_high"])).all()


def test_too_few_typical_rows_and_broken_layers_say_why():
    store, annotations, subset = a_model(1.0)
    few = subset.assign(is_prototype=subset["is_prototype"] & (subset["foundation"] != "care-harm"))
    found = cosine.measure(store, annotations, subset=few, parameters=parameters())
    assert found.query("foundation == 'care-harm'")["reason"].str.contains("fewer than 5").all()
    assert found.query("foundation == 'all' and arm == 'published'")["value"].notna().all()
    store.pooled["mean"][0, 3] = np.nan
    found = cosine.measure(store, annotations, subset=subset, parameters=parameters())
    assert found.loc[found["layer"] == 0, "reason"].str.contains("not finite").all()
    assert "no cosine to explain" in cosine.sentence(found[found["layer"] == 0])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.7, 1.0, cosine.EXPLAINED),
        (0.5, 1.0, cosine.IN_PART),
        (0.4, 0.6, cosine.IN_PART),
        (0.2, 0.9, cosine.UNDECIDED),
        (0.2, 0.5, cosine.UNDECIDED),
        (0.0, 0.3, cosine.NOT_EXPLAINED),
        (np.nan, np.nan, cosine.UNDECIDED),
    ],
)
def test_what_length_explains_is_said_by_the_whole_interval(low, high, expected):
    assert cosine.decision(pd.Series({"ci_low": low, "ci_high": high})) == expected
