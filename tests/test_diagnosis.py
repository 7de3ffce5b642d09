"""Planted geometry is recovered, nothing is found in nothing, and each analysis agrees with another way of computing it."""

import hdbscan
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score, r2_score, roc_auc_score

from lib.diagnosis import categorical, controls, dimensional, gradient, structural, verdicts
from lib.foundations import CATEGORIES, FOUNDATIONS, category_of

DRAWS, PERMUTATIONS = 50, 40


def planted(strength, seed=0, per_cell=30, width=24, opposite=-1.0, first_token=0.0):
    """Rows with a known geometry: a direction a foundation, virtue at +typicality, vice at opposite * typicality.

    ``first_token`` adds one large direction in proportion to one over the length, as mean pooling over a first-token
    outlier does.
    """
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(width, width)))[0][: len(FOUNDATIONS)]
    outlier = generator.normal(size=width)
    records, rows = [], []
    for f, foundation in enumerate(FOUNDATIONS):
        for polarity, sign in (("virtue", 1.0), ("vice", opposite), ("neutral", 0.0)):
            for typicality in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0) if polarity != "neutral" else (0.0,):
                for _ in range(per_cell):
                    length = int(generator.integers(5, 30))
                    row = strength * sign * typicality * directions[f] + generator.normal(size=width) * 0.3
                    rows.append(row + first_token / length * outlier)
                    category = "" if polarity == "neutral" else category_of(foundation, polarity)
                    action = f"action {len(records)}"
                    records.append((action, foundation, polarity, typicality, category, typicality == 1.0, length))
    columns = ["action", "foundation", "polarity", "typicality", "category", "is_prototype", "length"]
    return np.array(rows), pd.DataFrame(records, columns=columns)


def value(table, **chosen):
    for column, wanted in chosen.items():
        table = table[table[column] == wanted]
    return table["value"].mean()


# --------------------------------------------------------------------------------------- categorical


def test_opposites_that_point_apart_are_found_apart():
    x, subset = planted(3.0)
    table = categorical.categorical(x, subset, DRAWS, PERMUTATIONS, 0)
    own = table[(table["arm"] == "published") & (table["metric"] == "opposing_cosine")]
    assert (own["ci_high"] < -0.8).all()
    assert abs(value(table, arm="shuffled")) < 0.4
    assert value(table, arm="split_half") > 0.9


def test_near_neighbours_are_found_near_and_still_separable():
    x, subset = planted(3.0, opposite=0.3)
    table = categorical.categorical(x, subset, DRAWS, PERMUTATIONS, 0)
    assert value(table, arm="published", metric="opposing_cosine") > 0.5
    assert categorical.separability(x, subset, DRAWS, 0)["value"].min() > 0.75


def test_cosines_equal_the_formula():
    x, subset = planted(1.0)
    table = categorical.categorical(x, subset, 2, 2, 0)
    centred = x - x.mean(axis=0)
    for foundation in FOUNDATIONS:
        a, b = (centred[(subset["category"] == c) & subset["is_prototype"]].mean(axis=0) for c in foundation.split("-"))
        expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        found = value(table, arm="published", metric="opposing_cosine", foundation=foundation)
        assert found == pytest.approx(expected)


def test_a_large_first_token_gives_high_cosines_with_no_signal_at_all():
    x, subset = planted(0.0, first_token=200.0)
    short = subset["typicality"] == 1.0
    outlier = x[short & (subset["length"] < 12)].mean(axis=0)
    x[short] += outlier  # typical actions are short: every prototype shifts the same way
    subset.loc[short, "length"] = 5
    x = controls.representations({"mean": x}, subset["length"].to_numpy(), "mean")
    raw = categorical.categorical(x["published"], subset, 2, 2, 0)
    without = categorical.categorical(x["length_removed"], subset, 2, 2, 0, arm="length_removed")
    assert value(raw, arm="published", metric="opposing_cosine") > 0.9
    assert abs(value(without, metric="opposing_cosine")) < 0.5
    assert categorical.separability(x["published"], subset, 20, 0)["value"].mean() == pytest.approx(0.5, abs=0.1)


def test_area_under_the_curve_equals_scikit_learn():
    generator = np.random.default_rng(0)
    positive, scores = generator.random(80) < 0.4, np.round(generator.normal(size=80), 1)
    weights = generator.integers(0, 3, (5, 80)).astype(float)
    found = categorical.weighted_auc(positive, scores, weights)
    assert found == pytest.approx([roc_auc_score(positive, scores, sample_weight=w) for w in weights])


def test_separability_finds_nothing_in_nothing():
    x, subset = planted(0.0)
    table = categorical.separability(x, subset, DRAWS, 0)
    assert ((table["ci_low"] < 0.5) & (table["ci_high"] > 0.5)).mean() >= 0.6
    assert table["value"].mean() == pytest.approx(0.5, abs=0.06)


# ------------------------------------------------------------------------------------------ gradient


def test_a_planted_gradient_is_found_and_equals_scipy():
    x, subset = planted(3.0)
    table = gradient.gradient(x, subset, DRAWS, PERMUTATIONS, 0)
    assert (table[table["arm"] == "published"]["ci_low"] > 0.5).all()
    centred = x - x.mean(axis=0)
    member = ((subset["foundation"] == "care-harm") & subset["polarity"].isin(["vice", "neutral"])).to_numpy()
    rows, typicality = centred[member], subset.loc[member, "typicality"].to_numpy()
    prototype = rows[typicality == 1].mean(axis=0)
    nearness = rows @ prototype / np.linalg.norm(rows, axis=1) / np.linalg.norm(prototype)
    found = value(table, category="harm", arm="published", metric="spearman")
    assert found == pytest.approx(spearmanr(nearness, typicality)[0])


def test_a_prototype_that_contains_its_rows_fakes_a_gradient_and_leaving_them_out_removes_it():
    x, subset = planted(0.0, per_cell=12, width=100)
    table = gradient.gradient(x, subset, DRAWS, PERMUTATIONS, 0)
    assert 0.1 < value(table, arm="published", metric="spearman") < 0.5
    assert value(table, arm="without_prototypes") == pytest.approx(0, abs=0.08)
    assert value(table, arm="shuffled") == pytest.approx(value(table, arm="published", metric="spearman"), abs=0.1)


def test_the_peak_over_layers_is_corrected_by_choosing_the_layer_elsewhere():
    tables = []
    for layer in range(8):
        x, subset = planted(0.0, seed=layer, per_cell=10)
        tables.append(gradient.gradient(x, subset, 2, 2, 0).assign(layer=layer))
    peaks = gradient.peaks(pd.concat(tables)).groupby("arm")["value"].mean()
    assert peaks["published"] > peaks["layer_chosen_elsewhere"] + 0.03


# ---------------------------------------------------------------------------------------- structural


def blobs(seed=0, rows=200):
    generator = np.random.default_rng(seed)
    centres = np.eye(5, 8) * 15
    x = np.concatenate([centre + generator.normal(size=(rows, 8)) for centre in centres])
    foundation = np.repeat(FOUNDATIONS, rows)
    polarity = generator.choice(["virtue", "vice", "neutral"], len(x))
    subset = pd.DataFrame({"action": [f"a{i}" for i in range(len(x))], "foundation": foundation, "polarity": polarity})
    return x, subset


def test_clusters_equal_those_of_the_hdbscan_package():
    generator = np.random.default_rng(3)
    x = np.concatenate([blobs()[0], generator.uniform(-15, 15, (300, 8))])
    reduced = PCA(0.95, svd_solver="full").fit_transform(x - x.mean(axis=0))
    # Prim's algorithm gives the exact spanning tree; the package's default, Boruvka's on trees, differs in a few labels.
    oracle = hdbscan.HDBSCAN(min_cluster_size=100, min_samples=20, algorithm="prims_kdtree", approx_min_span_tree=False)
    expected = oracle.fit_predict(reduced)
    found, components = structural.cluster(x)
    assert components == reduced.shape[1]
    assert adjusted_rand_score(expected, found) == pytest.approx(1.0)
    assert ((expected < 0) == (found < 0)).all()


def test_planted_clusters_follow_foundations_and_not_polarities():
    table = structural.structural(*blobs(), DRAWS, PERMUTATIONS, 0)
    assert value(table, target="foundation", arm="published", metric="adjusted_rand") > 0.95
    assert value(table, target="polarity", arm="published", metric="adjusted_rand") == pytest.approx(0, abs=0.02)
    assert value(table, target="foundation", arm="shuffled") == pytest.approx(0, abs=0.02)


def test_mostly_noise_scores_high_over_clustered_points_and_low_over_all():
    x, subset = blobs(rows=110)
    generator = np.random.default_rng(1)
    noise = generator.uniform(-40, 40, (4000, 8))
    more = pd.DataFrame(
        {
            "action": [f"n{i}" for i in range(4000)],
            "foundation": generator.choice(FOUNDATIONS, 4000),
            "polarity": generator.choice(["virtue", "vice", "neutral"], 4000),
        }
    )
    table = structural.structural(np.concatenate([x, noise]), pd.concat([subset, more]), 5, 5, 0)
    assert value(table, target="all", metric="coverage") < 0.3
    assert value(table, target="foundation", arm="published", metric="adjusted_rand") > 0.5
    assert value(table, target="foundation", arm="all_points") < 0.1


def test_the_index_equals_scikit_learn():
    generator = np.random.default_rng(0)
    labels, found = generator.integers(0, 5, 300), generator.integers(-1, 4, 300)
    found[:100] = labels[:100]
    table = structural._contingency(labels, found, np.ones((1, 300)))
    assert structural.adjusted_rand(table)[0] == pytest.approx(adjusted_rand_score(labels, found))


def test_the_supervised_bound_reaches_what_is_there():
    x, subset = blobs(rows=60)
    table = structural.supervised(x, subset, DRAWS, 0)
    assert value(table, target="foundation") > 0.95
    assert value(table, target="polarity") == pytest.approx(0, abs=0.05)


# --------------------------------------------------------------------------------------- dimensional


def test_the_ridge_path_equals_refitting_with_scikit_learn():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 8)) * np.arange(1, 9), generator.normal(size=(60, 3))
    coefficients, mean, scale, target_mean = dimensional.ridge_path(x, y, np.array([0.1, 10.0, 1000.0]))
    for k, penalty in enumerate((0.1, 10.0, 1000.0)):
        fitted = Ridge(alpha=penalty).fit((x - mean) / scale, y)
        np.testing.assert_allclose(coefficients[k], fitted.coef_.T, atol=1e-9)
        np.testing.assert_allclose(target_mean, fitted.intercept_, atol=1e-9)


def test_r_squared_equals_scikit_learn():
    generator = np.random.default_rng(0)
    truth, predicted = generator.normal(size=(50, 3)), generator.normal(size=(50, 3))
    found = dimensional.weighted_r2(truth, predicted, np.ones((1, 50)))[0]
    np.testing.assert_allclose(found, r2_score(truth, predicted, multioutput="raw_values"))


def probe_data(noise, rows=900, width=20):
    generator = np.random.default_rng(0)
    vectors = np.zeros((rows, len(CATEGORIES)))
    vectors[np.arange(rows), generator.integers(0, len(CATEGORIES), rows)] = generator.choice([0.25, 0.5, 1.0], rows)
    x = vectors @ generator.normal(size=(len(CATEGORIES), width)) + noise * generator.normal(size=(rows, width))
    topics = pd.Series(vectors.argmax(axis=1) // 2).astype(str).to_numpy()
    return x, vectors, np.array([f"a{i}" for i in range(rows)]), topics


def test_a_linear_code_is_read_and_shuffled_labels_are_not():
    table = dimensional.dimensional(*probe_data(0.2), DRAWS, 0)
    assert value(table, target="all", arm="ridge") > 0.8
    assert value(table, target="all", arm="published", metric="r2") > 0.5
    assert value(table, target="all", arm="shuffled") < 0.01
    assert 0.05 < value(table, target="all", arm="shuffled_within_foundations") < 0.6, "topic alone explains a part"


def test_rows_of_one_action_never_help_each_other():
    x, vectors, actions, topics = probe_data(50.0, rows=200)
    twice = tuple(np.concatenate([part, part]) for part in (x, vectors, actions, topics))
    table = dimensional.dimensional(*twice, DRAWS, 0)
    assert value(table, target="all", arm="ridge") < 0.05


# ------------------------------------------------------------------------------- degenerate and verdicts


@pytest.mark.parametrize("damage", ["no prototypes", "no variance", "not finite"])
def test_degenerate_input_is_reported_and_never_a_zero(damage):
    x, subset = planted(1.0, per_cell=8)
    if damage == "no prototypes":
        subset.loc[subset["category"] == "harm", "is_prototype"] = False
        subset = subset[~((subset["category"] == "harm") & (subset["typicality"] == 1.0))]
        x = x[subset.index]
    if damage == "no variance":
        x = np.ones_like(x)
    if damage == "not finite":
        x[3, 3] = np.nan
    found = gradient.gradient(x, subset, 3, 3, 0)
    bad = found[found["category"] == "harm"]
    assert bad["value"].isna().all()
    assert bad["reason"].str.startswith("not computed, because").all()
    if damage != "not finite":
        cosines = categorical.categorical(x, subset, 3, 3, 0)
        care = cosines[(cosines["foundation"] == "care-harm") & (cosines["arm"] == "published")]
        assert care["value"].isna().all()
        assert care["reason"].str.startswith("not computed").all()
    if damage != "no prototypes":
        assert structural.structural(x, subset, 3, 3, 0)["reason"].str.startswith("not computed").all()
        vectors = np.zeros((len(x), 10))
        actions = subset["action"].to_numpy()
        assert (
            dimensional.dimensional(x, vectors, actions, actions, 3, 0)["reason"].str.startswith("not computed").all()
        )


def test_equally_typical_rows_have_no_gradient():
    x, subset = planted(1.0, per_cell=8)
    only = (subset["typicality"] == 1.0).to_numpy()
    found = gradient.gradient(x[only], subset[only], 3, 3, 0)
    assert found["value"].isna().all()
    assert found["reason"].str.contains("equally typical").all()


def test_every_arm_of_the_tables_has_a_reason_to_be_there():
    assert set(controls.ARMS) >= {"published", "shuffled", "without_prototypes", "all_points", "ridge", "supervised"}
    assert all(reason.endswith((".", "?")) for reason in controls.ARMS.values())


@pytest.mark.pipeline
def test_the_demo_models_come_out_right(demo_run):
    """The known answer: only the models trained on the labels are told from their nulls, by a wide margin."""
    tables = {path.parent.name: pd.read_parquet(path) for path in demo_run.glob("diagnosis/*/verdicts.parquet")}
    assert len(tables) == 6
    by_kind = {name: table.set_index("kind") for name, table in tables.items()}
    for size in ("small", "large"):
        moral = by_kind[f"moral-{size}"]
        for kind in ("categorical", "gradient", "dimensional"):
            assert moral.loc[kind, "verdict"] == verdicts.NOT_INDIFFERENT
            for other in ("indifferent", "untrained"):
                naive = by_kind[f"{other}-{size}"]
                assert naive.loc[kind, "verdict"] == verdicts.INDIFFERENT, f"{other}-{size}, {kind}"
                assert moral.loc[kind, "ci_low"] > naive.loc[kind, "ci_high"], f"{other}-{size}, {kind}"
