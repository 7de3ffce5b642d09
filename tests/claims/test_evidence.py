"""From a run's tables to evidence: what is measured, what is not, and why."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import adjusted_rand_score
from statsmodels.stats.proportion import confint_proportions_2indep

from lib.claims import evidence, facts, ledger, rows
from lib.paper import FOUNDATIONS, TEMPLATE
from lib.run.stage import read_manifest
from lib.vectors.social_chemistry import TSV_SHA256

TRUST = "doing something that causes other people to lose trust in you"
ANNOTATIONS = pd.DataFrame(
    {"id": ["a", "b", "c"], "action": ["x", "x", TRUST], "betrayal": [0, 0, 0.375], "harm": [0, 0, 0.0]}
)
EXPLODED = pd.DataFrame(
    {
        "id": ["a", "b", "c", "c"],
        "foundation": ["care-harm", "care-harm", "loyalty-betrayal", "care-harm"],
        "polarity": ["vice", "virtue", "vice", "vice"],
        "typicality": [1.0, 1.0, 0.375, 0.375],
        "split_published": ["train", "test", "validation", "validation"],
        "split_grouped": ["train", "train", "test", "test"],
    }
)
PUBLISHED = ledger.read_claims("data/published_claims.csv")
THE_PAPER = {"data": facts.OFFICIAL, "models": "23", "model": "Qwen/Qwen3-8B"}


def decided(found, **gates):
    """The ledger of rows of evidence, as if on the paper's own data and models."""
    return ledger.ledger(PUBLISHED, evidence.frame(list(found)), facts=THE_PAPER | gates).set_index("id")


def test_other_annotations_are_not_comparable_with_the_counts_of_the_official_file():
    table = decided(evidence.of_vectors(ANNOTATIONS, EXPLODED, n_subset=4), data="another file")
    counted = table[(table["data"] != "") & (table["stage"] == "vectors") & table["ours"].notna()]
    assert len(counted) >= 28
    assert (counted["decision"] == ledger.NOT_COMPARABLE).all()
    assert (counted["reason"] == "data: another file instead of Social-Chemistry-101").all()
    assert table.loc["typicality-levels", "decision"] == ledger.DIFFERS, "the range of values is the schema's"


def test_counts_of_a_small_known_table():
    found = {row["id"]: row for row in evidence.of_vectors(ANNOTATIONS, EXPLODED, n_subset=4)}
    assert found["annotations"]["ours"] == 3
    assert found["exploded-validation"]["ours"] == 2
    assert found["annotations-validation"]["ours"] == 1, "two rows of one annotation"
    assert found["exploded-train-care-harm-vice"]["ours"] == 1
    assert found["exploded-train-care-harm-virtue"]["ours"] == 0, "the only one is in the test split"
    assert found["example-trust"]["ours"] == 0.375
    assert "names harm" in found["example-partner-harm"]["reason"]
    assert found["shared-actions"]["ours"] == pytest.approx(1 / 3), "one of three held-out rows repeats an action"
    assert found["shared-actions"]["control_value"] == 0


# ---------------------------------------------------------------------------------------- the diagnosis


def table(label, records):
    frame = pd.DataFrame(records, columns=["layer", label, "arm", "metric", "value", "ci_low", "ci_high", "n"])
    return frame.assign(model="m")


def cosines(ours, length, layers=3):
    records = []
    for layer in range(layers):
        for arm, value in (("published", ours), ("length_only", length), ("words_only", 0.0)):
            for foundation in ("care-harm", "authority-subversion"):
                records.append((layer, foundation, arm, "opposing_cosine", value, value - 0.05, value + 0.05, 99))
        records.append((layer, "all", "cross_foundation", "opposing_cosine", 0.1, 0.0, 0.2, 99))
    return table("foundation", records)


@pytest.mark.parametrize(
    ("ours", "length", "expected"),
    [
        (0.7, 0.1, ledger.REPRODUCED),
        (0.7, 0.68, ledger.EXPLAINED),
        (0.7, 0.52, ledger.REPRODUCED),
        (0.52, 0.1, ledger.INCONCLUSIVE),
        (-0.98, -0.98, ledger.DIFFERS),
    ],
)
def test_near_neighbours_that_length_alone_makes_are_explained_by_it(ours, length, expected):
    found = decided(evidence._of_cosines(cosines(ours, length))).loc["categorical-middle"]
    assert found["decision"] == expected
    assert expected != ledger.EXPLAINED or found["against"] == "length alone"


def test_near_numbers_are_read_with_intervals_of_90():
    found = decided(evidence._of_cosines(cosines(0.65, 0.1))).loc["categorical-authority"]
    half = 0.05 * norm.ppf(0.95) / norm.ppf(0.975)
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(0.65 - half), pytest.approx(0.65 + half))
    assert found["decision"] == ledger.REPRODUCED
    assert decided(evidence._of_cosines(cosines(0.65, 0.66))).loc["categorical-authority", "against"] == "length alone"


def test_the_highest_of_many_pays_for_the_choice():
    """Rows of pure noise: the interval of the highest true value, 0, must hold it as often as it says."""
    generator, held = np.random.default_rng(0), []
    for _ in range(400):
        value = generator.normal(size=30)
        found = rows.highest(pd.DataFrame({"value": value, "ci_low": value - 1.96, "ci_high": value + 1.96, "n": 9}))
        held.append(found["low"] <= 0 <= found["high"])
    assert np.mean(held) >= 0.94
    one = rows.highest(pd.DataFrame({"value": [0.5], "ci_low": [0.4], "ci_high": [0.7], "n": [9]}), level=0.95)
    assert (one["low"], one["high"]) == (pytest.approx(0.4), pytest.approx(0.7))


def test_a_difference_of_two_measurements_is_newcombes():
    """For two shares, MOVER with Wilson's intervals is Newcombe's interval, which statsmodels has."""
    shares = []
    for count, n in ((30, 50), (12, 40)):
        low, high = evidence.proportion_confint(count, n, method="wilson")
        shares.append({"value": count / n, "low": low, "high": high, "n": n})
    found = rows.difference(*shares)
    oracle = confint_proportions_2indep(30, 50, 12, 40, method="newcomb", compare="diff")
    assert (found["low"], found["high"]) == pytest.approx(oracle)


def gradients(peak, arms=("published",)):
    return table(
        "category",
        [
            (layer, category, arm, "spearman", value, value - 0.02, value + 0.02, 99)
            for arm in arms
            for layer, value in enumerate((0.1, peak))
            for category in ("harm", "care")
        ],
    )


CEILING = pd.DataFrame(
    [("mean", "spearman", 0.7, 0.65, 0.75, 50), ("mean", "r2", 0.5, 0.4, 0.6, 50), ("care", "r2", 0.1, 0.0, 0.2, 50)],
    columns=["dimension", "metric", "value", "ci_low", "ci_high", "n"],
)
INDEX = table(
    "target",
    [
        (layer, target, arm, "adjusted_rand", value, value - 0.01, value + 0.01, 1000)
        for layer, shift in ((0, 0.0), (1, 0.05))
        for target, arm, value in (("foundation", "published", 0.02 + shift), ("polarity", "published", 0.1 + shift))
    ]
    + [(0, "all", "published", "coverage", 0.9, 0.9, 0.9, 1000), (1, "all", "published", "coverage", 0.2, 0.2, 0.2, 1000)],
)  # fmt: skip
PROBES = table(
    "target",
    [
        (layer, "all", arm, metric, value, value - 0.01, value + 0.01, 99)
        for arm, metric in (("published", "adjusted_r2"), ("published", "r2"), ("ridge", "r2"))
        for layer, value in enumerate((0.1, 0.2, 0.25, 0.05))
    ],
)
# Most actions have one label, one in ten has two of either kind.
SUBSET = pd.DataFrame(
    [
        (f"action {number}", foundation, polarity)
        for number in range(100)
        for foundation, polarity in [
            (FOUNDATIONS[number % 5], ("virtue", "vice")[number % 2]),
            *([(FOUNDATIONS[(number + 1) % 5], "neutral")] if number % 10 == 0 else []),
        ]
    ],
    columns=["action", "foundation", "polarity"],
)


def diagnosed(ceiling=CEILING, subset=SUBSET, **changes):
    tables = {"categorical": cosines(0.7, 0.1), "gradient": gradients(0.4), "structural": INDEX, "dimensional": PROBES}
    return decided(evidence.of_diagnosis(tables | changes, ceiling, subset=subset))


def test_a_weak_gradient_counts_only_where_annotators_could_exceed_the_bound():
    assert diagnosed().loc["gradient-peak", "decision"] == ledger.REPRODUCED
    assert diagnosed(gradient=gradients(0.7)).loc["gradient-peak", "decision"] == ledger.DIFFERS
    low = CEILING.assign(value=0.4, ci_low=0.3, ci_high=0.5)
    assert diagnosed(low).loc["gradient-peak", "decision"] == ledger.EXPLAINED
    assert diagnosed(CEILING.head(0)).loc["gradient-peak", "decision"] == ledger.INCONCLUSIVE


def test_weak_clusters_count_only_where_a_clustering_of_actions_could_exceed_the_bound():
    found = diagnosed()
    assert found.loc["structural-foundations", "decision"] == ledger.REPRODUCED
    assert found.loc["structural-polarity", "decision"] == ledger.REPRODUCED
    # Every action under all foundations, so that none of its labels says where it should lie.
    mixed = pd.concat([SUBSET.assign(foundation=name) for name in FOUNDATIONS], ignore_index=True)
    assert diagnosed(subset=mixed).loc["structural-foundations", "decision"] == ledger.EXPLAINED
    strong = INDEX.assign(value=INDEX["value"] + 0.3, ci_low=INDEX["ci_low"] + 0.3, ci_high=INDEX["ci_high"] + 0.3)
    assert diagnosed(structural=strong).loc["structural-foundations", "decision"] == ledger.DIFFERS


def test_noise_is_that_of_the_layer_where_polarity_is_followed_best():
    found = diagnosed().loc["structural-noise"]
    assert found["ours"] == pytest.approx(0.8)
    assert found["decision"] == ledger.REPRODUCED
    turned = INDEX.assign(value=INDEX["value"].where(INDEX["metric"] != "coverage", 1 - INDEX["value"]))
    assert diagnosed(structural=turned).loc["structural-noise", "decision"] == ledger.DIFFERS


def test_a_collapse_is_measured_from_the_middle_and_can_be_refuted():
    assert diagnosed().loc["dimensional-collapse", "ours"] == pytest.approx(0.05 - 0.225)
    assert diagnosed().loc["dimensional-collapse", "decision"] == ledger.REPRODUCED
    rising = PROBES.assign(value=[0.1, 0.2, 0.25, 0.5] * 3)
    rising = rising.assign(ci_low=rising["value"] - 0.01, ci_high=rising["value"] + 0.01)
    assert diagnosed(dimensional=rising).loc["dimensional-collapse", "decision"] == ledger.DIFFERS


def test_a_collapse_of_the_published_probe_alone_says_something_of_the_probe():
    flat = PROBES.assign(value=PROBES["value"].where(PROBES["arm"] == "published", 0.2))
    flat = flat.assign(ci_low=flat["value"] - 0.01, ci_high=flat["value"] + 0.01)
    found = diagnosed(dimensional=flat).loc["dimensional-collapse"]
    assert (found["decision"], found["against"]) == (ledger.INCONCLUSIVE, "closed-form ridge")
    rising = flat.assign(value=flat["value"].mask((flat["arm"] == "ridge") & (flat["layer"] == 3), 0.3))
    rising = rising.assign(ci_low=rising["value"] - 0.01, ci_high=rising["value"] + 0.01)
    assert diagnosed(dimensional=rising).loc["dimensional-collapse", "decision"] == ledger.EXPLAINED
    alone = PROBES[PROBES["arm"] == "published"]
    assert diagnosed(dimensional=alone).loc["dimensional-collapse", "decision"] == ledger.INCONCLUSIVE


def test_every_action_at_one_point_reaches_what_the_index_of_its_most_frequent_label_is():
    found = evidence.at_one_point(SUBSET, "polarity")
    most = SUBSET.groupby("action")["polarity"].transform(lambda own: sorted(own, key=list(own).count)[-1])
    assert found["value"] == pytest.approx(adjusted_rand_score(SUBSET["polarity"], most), abs=0.05)
    assert evidence.at_one_point(SUBSET.drop_duplicates("action"), "polarity")["value"] == 1


def test_claims_over_models_read_all_of_them():
    two = [pd.concat([frame, other.assign(model="other")]) for frame, other in [(gradients(0.4), gradients(0.7))]]
    assert diagnosed(gradient=two[0]).loc["gradient-peak", "ours"] == pytest.approx(0.7)


def test_vices_against_virtues_reads_each_category_where_it_is_best():
    columns = ["layer", "arm", "category", "value", "ci_low", "ci_high", "n"]
    records = [
        (0, "published", "harm", 0.2, 0.19, 0.21, 10),
        (1, "published", "harm", 0.5, 0.4, 0.6, 10),
        (1, "published", "cheating", float("nan"), float("nan"), float("nan"), 0),
        (1, "published", "care", 0.1, 0.0, 0.2, 10),
    ]
    found = evidence.steeper_vices(pd.DataFrame(records, columns=columns))
    assert found["value"] == pytest.approx(0.4)
    assert found["low"] < 0.4 - np.hypot(0.1, 0.1) < 0.4 + np.hypot(0.1, 0.1) < found["high"], "the best of two layers"
    assert evidence.steeper_vices(pd.DataFrame(records[:2], columns=columns)) is None


# -------------------------------------------------------------------------------------- the comparison


def fits(estimates, half, *, question="scale", measure="published", reason=""):
    frame = pd.DataFrame({"kind": ["categorical", "gradient"], "estimate": estimates, "reason": reason})
    frame = frame.assign(measure=measure, question=question, margin=[0.1, 0.02], n=23, degrees=np.inf)
    frame["standard_error"] = half / norm.ppf(0.95)
    return frame.assign(ci_low=frame["estimate"] - half, ci_high=frame["estimate"] + half)


@pytest.mark.parametrize(
    ("estimates", "half", "expected", "ours"),
    [
        ([0.01, 0.001], 0.01, ledger.REPRODUCED, 0.05),
        ([0.01, 0.03], 0.005, ledger.DIFFERS, 1.5),
        ([0.3, 0.0], 0.01, ledger.DIFFERS, 3.0),
        ([0.0, 0.01], 0.05, ledger.INCONCLUSIVE, 0.5),
    ],
)
def test_no_difference_holds_of_every_kind_in_its_own_margin(estimates, half, expected, ours):
    found = decided(evidence.of_comparison(fits(estimates, half), fits([0, 0], 0).head(0))).loc["comparison-scale"]
    assert (found["decision"], found["ours"]) == (expected, pytest.approx(ours))


def test_a_kind_that_was_not_fitted_leaves_no_difference_open():
    part = fits([0.01, np.nan], 0.01, reason=["", "not fitted, because"])
    found = decided(evidence.of_comparison(part, part.head(0)))
    assert found.loc["comparison-scale", "decision"] == ledger.INCONCLUSIVE
    assert found.loc["comparison-scale", "reason"] == "not fitted, because"
    assert found.loc["comparison-variant", "decision"] == ledger.NOT_RUN


def test_tuning_changes_something_only_if_a_kind_still_says_so_among_several():
    def rewired(estimate, half):
        pairs = fits([estimate, 0.0], half, question="tuning", measure="careful")
        return decided(evidence.of_comparison(fits([0, 0], 0.01), pairs), model="any").loc["R3-tuning", "decision"]

    assert rewired(0.3, 0.05) == ledger.REPRODUCED
    assert rewired(0.01, 0.01) == ledger.DIFFERS
    assert rewired(0.2, 0.095) == ledger.INCONCLUSIVE, "beyond the margin alone, but not among two kinds"


def headline(model, gain, decision, low=0.05, control=0.1):
    row = {"model": model, "gain": gain, "ci_low": gain - 0.02, "ci_high": gain + 0.02, "decision": decision}
    row |= {"control": "TF-IDF as vectors", "control_gain": control, "control_low": low, "ceiling": 0.5, "margin": 0.02}
    return [row | {"kind": kind} for kind in ("categorical", "dimensional")]


def less_twin(difference, half=0.02, twin="untrained"):
    row = {"model": "m", "twin": twin, "difference": difference, "n": 100}
    row |= {"ci_low": difference - half, "ci_high": difference + half}
    return pd.DataFrame([row | {"kind": kind} for kind in ("categorical", "dimensional")])


def rivals(ours, beside_twin, twin="untrained", variant="base"):
    of_twin = 0.12 - beside_twin["difference"].iloc[0]
    frame = pd.DataFrame([*ours, *headline("untrained", of_twin, "undecided")])
    return decided(evidence.of_decisions(frame, beside_twin, model="m", twin=twin, variant=variant))


def test_signal_beyond_words_is_reproduced_only_above_words_and_the_untrained_twin():
    strong, far, near = headline("m", 0.12, "signal beyond words"), less_twin(0.12), less_twin(0.01)
    assert rivals(strong, far).loc["R1-distinguish", "decision"] == ledger.REPRODUCED
    assert rivals(strong, near).loc["R1-distinguish", "decision"] == ledger.EXPLAINED
    assert rivals(strong, near).loc["R1-distinguish", "against"] == "untrained twin"
    assert rivals(strong, far, twin=None).loc["R1-human", "decision"] == ledger.INCONCLUSIVE, "no twin was run"
    words = rivals(headline("m", 0.12, "signal beyond words", low=-0.01, control=0.01), far).loc["R1-human"]
    assert (words["decision"], words["against"]) == (ledger.INCONCLUSIVE, "TF-IDF as vectors")
    weak = rivals(headline("m", 0.0, "equivalent to words"), far).loc["R1-human", "decision"]
    assert weak == ledger.DIFFERS


def test_the_contrast_to_the_twin_is_the_paired_one():
    """The intervals of both gains overlap; paired, replicate by replicate, the model is clearly above its twin."""
    strong = headline("m", 0.12, "signal beyond words")
    found = rivals(strong, less_twin(0.03, half=0.01)).loc["R1-distinguish"]
    assert found["decision"] == ledger.REPRODUCED
    assert rivals(strong, less_twin(0.03, half=0.04)).loc["R1-distinguish", "decision"] != ledger.REPRODUCED


def test_pretraining_needs_a_base_model_and_its_twin():
    strong = headline("m", 0.12, "signal beyond words")
    found = rivals(strong, less_twin(0.12)).loc["R2-pretraining"]
    assert (found["decision"], found["ours"]) == (ledger.REPRODUCED, pytest.approx(6))
    assert rivals(strong, less_twin(0.12), variant="instruct").loc["R2-pretraining", "decision"] == ledger.NOT_RUN
    assert rivals(strong, less_twin(0.12), twin=None).loc["R2-pretraining", "decision"] == ledger.NOT_RUN


# ------------------------------------------------------------------------- autoencoders and alignment


def latents(careful, others):
    """Counts (replicated, all) of careful latents and of the other living ones."""
    flags = [(True, k < careful[0]) for k in range(careful[1])] + [(False, k < others[0]) for k in range(others[1])]
    return pd.DataFrame(flags, columns=["careful", "replicated"]).assign(alive=True)


TUNED = pd.DataFrame({"frozen_share": [0.995, 0.98]})


def test_latents_have_to_come_back_on_other_rows_more_often_than_the_others():
    found = {
        name: decided(evidence.of_features(latents(*counts), TUNED)).loc["R4-latents", "decision"]
        for name, counts in {
            "most": ((45, 50), (50, 500)), "as often": ((10, 100), (50, 500)), "few": ((1, 1), (100, 500)),
            "none": ((0, 0), (9, 99)),
        }.items()
    }  # fmt: skip
    assert found == {
        "most": ledger.REPRODUCED, "as often": ledger.INCONCLUSIVE, "few": ledger.INCONCLUSIVE, "none": ledger.NOT_RUN,
    }  # fmt: skip


def test_the_frozen_share_is_that_of_the_layer_with_the_smallest():
    found = decided(evidence.of_features(latents((1, 2), (1, 2)), TUNED)).loc["alignment-frozen"]
    assert (found["ours"], found["decision"]) == (0.98, ledger.DIFFERS)


def aligned(gains, other="spearman"):
    """Differences of the aligned arm to others, arm -> (value, low, high), for the metric ``gradient`` at two layers."""
    records = [
        ("aligned", f"gradient minus {arm}", "all", *values, 9, layer)
        for arm, values in gains.items()
        for layer in (0, 1)
    ]
    records += [("aligned", f"{other} minus untuned", "all", 9.0, 8.0, 10.0, 9, 0)]
    records += [(arm, "gradient", "all", 0.1, 0.0, 0.2, 9, 0) for arm in gains]
    columns = ["arm", "metric", "category", "value", "ci_low", "ci_high", "n", "layer"]
    return decided(evidence.of_alignment(pd.DataFrame(records, columns=columns)))


def test_alignment_is_read_on_rows_that_name_the_category_and_against_every_other_arm():
    beaten = {"untuned": (0.3, 0.2, 0.4), "shuffled": (0.25, 0.2, 0.3), "ridge": (0.1, 0.05, 0.15)}
    found = aligned(beaten).loc["alignment-gradient"]
    assert (found["decision"], found["ours"]) == (ledger.REPRODUCED, pytest.approx(0.3))
    level = aligned(beaten | {"probe": (0.0, -0.05, 0.05)}).loc["alignment-gradient"]
    assert (level["decision"], level["against"]) == (ledger.EXPLAINED, "probe")
    assert aligned({"untuned": (0.3, 0.2, 0.4)}).loc["alignment-gradient", "decision"] == ledger.INCONCLUSIVE
    assert aligned(beaten).loc["alignment-opposites", "decision"] == ledger.NOT_RUN


# --------------------------------------------------------------------------------------------- the run

VECTORS = {"inputs": {"annotations": TSV_SHA256}, "parameters": {"keep": "m", "agreement": "action-agree"}}
STEERING = {
    "facts": {"hub": "Qwen/Qwen3-8B"},
    "inputs": {"prompts": facts.FLAMES_SHA256},
    "parameters": {"model": "q", "protocol": "careful"},
}
VERDICTS = pd.DataFrame(
    {"id": ["1", "2"] * 37, "arm": "aligned", "layer": [*range(36), 0, 1] + [0] * 36, "protocol": "careful"}
)
SUMMARY = pd.DataFrame({"judge": ["google/Gemini-2.5-Flash"], "standing": ["judged"], "usable": [True]})


def run_facts(
    vectors=VECTORS,
    steering=STEERING,
    verdicts=VERDICTS,
    summary=SUMMARY,
    models=("qwen3-8b", "own"),
    diagnosed=(),
    demo=False,
):
    identities = {"vectors": vectors, "steering": steering}
    about = {"models": models, "diagnosed": diagnosed, "demo": demo}
    return facts.facts_of(identities, verdicts=verdicts, summary=summary, **about)


def test_facts_of_a_run_like_the_papers():
    assert run_facts() == {
        "data": "Social-Chemistry-101", "model": "Qwen/Qwen3-8B", "models": "1", "layers": "0-35", "prompts": "Flames 2",
        "judge": "gemini-2.5-flash", "protocol": "careful",
    }  # fmt: skip
    assert set(run_facts()) == set(ledger.GATES)


def test_facts_of_runs_that_differ():
    assert run_facts(demo=True)["model"] == "", "a model of this project is none that a claim could be about"
    assert run_facts(steering=STEERING | {"facts": {"config.json": "ab"}})["model"] == "q (local)"
    assert run_facts(steering=STEERING | {"inputs": {"prompts": "x"}})["prompts"] == "others, 2"
    reworded = VECTORS | {"parameters": VECTORS["parameters"] | {"template": "{action}"}}
    assert run_facts(vectors=reworded)["model"] == "Qwen/Qwen3-8B, another template"
    stand_in = VECTORS | {"parameters": {"keep": "m", "agreement": "rot-agree"}}
    assert run_facts(vectors=stand_in)["data"] == "Social-Chemistry-101, other rows"
    assert run_facts(vectors=VECTORS | {"inputs": {"annotations": "x"}})["data"] == "another file"
    judged = VERDICTS.assign(protocol="published")
    decoded = STEERING | {"parameters": STEERING["parameters"] | {"protocol": "published"}}
    assert run_facts(verdicts=judged, steering=decoded)["protocol"] == "published"
    assert run_facts(verdicts=judged)["protocol"] == "careful", "judged as published, decoded otherwise"
    assert run_facts(steering=decoded)["protocol"] == "careful"
    as_published = {"template": TEMPLATE, "pooling": "mean"}
    assert run_facts(diagnosed=[as_published, as_published])["models"] == "1"
    for other in ({"template": "{action}"}, {"pooling": "last"}):
        assert run_facts(diagnosed=[as_published, as_published | other])["models"] == "1, read in another way"
    assert facts.ranges([7, 0, 1, 2, 5]) == "0-2, 5, 7"


@pytest.mark.parametrize("summary", [SUMMARY.assign(standing="plumbing"), SUMMARY.assign(usable=False)])
def test_the_offline_rule_and_an_unusable_judge_are_no_judges(summary):
    assert facts.judge_of(summary) == ""
    assert facts.judge_of(SUMMARY) == "gemini-2.5-flash"


def test_prompts_are_counted():
    answers = pd.DataFrame({"id": ["1", "1", "2"], "dimension": ["Safety", "Safety", "Legality"]})
    counted = {row["id"]: row["ours"] for row in evidence.of_prompts(answers)}
    assert (counted["flames-prompts"], counted["flames-safety"], counted["flames-morality"]) == (2, 1, 0)


@pytest.mark.pipeline
def test_every_claim_of_the_demo_has_a_decision_and_no_finding(demo_run):
    found = pd.read_csv(demo_run / "claims" / "claims.csv")
    assert found["id"].tolist() == PUBLISHED["id"].tolist()
    assert set(found["decision"]) <= set(ledger.OUTCOMES)
    scientific = found[found["group"] == ledger.SCIENTIFIC]
    assert set(scientific["decision"]) <= {ledger.NOT_COMPARABLE, ledger.NOT_RUN}
    assert scientific["reason"].notna().all()
    assert set(found["standing"]) == {ledger.DEMO_STANDING, "nothing measured"}
    notices = read_manifest(demo_run / "claims")["notices"]
    assert "Demo data: a check of the instrument, not a finding." in notices
