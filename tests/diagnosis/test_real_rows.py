"""Known answers on real annotations: vectors of the text itself, which no model made, hold nothing beyond its words."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from lib.diagnosis.decisions import EQUIVALENT, SIGNAL, UNDECIDED, decide
from lib.diagnosis.dimensional import Probed
from lib.diagnosis.kinds import kinds_of
from lib.diagnosis.layers import with_labels
from lib.diagnosis.measurement import Reading, measure
from lib.paper import FOUNDATIONS
from lib.vectors import moral_vectors, social_chemistry

ROWS = 300
"""Of each of two foundations: enough for a weak signal to be found, and few enough for seconds."""


@pytest.fixture(scope="module")
def subset(real_data):
    cleaned, _ = social_chemistry.clean(social_chemistry.read(real_data / "social-chem-101.part.csv", "rot-agree"))
    annotations = moral_vectors.vectorise(cleaned, "rot-agree")
    drawn = with_labels(moral_vectors.draw_subset(moral_vectors.explode(annotations, 0)), annotations)
    poles = drawn[(drawn["polarity"] != "neutral") & drawn["foundation"].isin(FOUNDATIONS[:2])]
    rows = poles.groupby("foundation").sample(ROWS, random_state=0).reset_index(drop=True)
    return rows.assign(action=rows["action"].map(moral_vectors.normalise))


def decision(subset, x):
    actions = subset["action"].to_numpy(object)
    probed = Probed(np.zeros((0, 10)), actions[:0], actions[:0])
    kinds = kinds_of(subset, probed, actions=actions, permutations=39, seed=0)
    measured = measure(
        {"categorical": kinds["categorical"]}, actions=list(actions), width=x.shape[1], read=lambda _: x,
        tokens=subset["action"].str.split().str.len().to_numpy() + 2, readings=[Reading(0, "last")],
    )  # fmt: skip
    return decide(measured, {"categorical": 0.02}).iloc[0]


def test_compressed_words_are_not_beyond_words_and_a_weak_label_in_them_is(subset):
    words = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit_transform(subset["action"])
    x = TruncatedSVD(64, random_state=0).fit_transform(words).astype(np.float32)
    nothing = decision(subset, x)
    assert nothing["words"] > 0.65, "real words tell virtue from vice"
    assert nothing["decision"] in (EQUIVALENT, UNDECIDED)
    assert abs(nothing["gain"]) < 0.02
    sign = subset["polarity"].map({"virtue": 1.0, "vice": -1.0}).to_numpy()
    planted = np.column_stack([x, sign + np.random.default_rng(0).normal(size=len(x))])
    assert decision(subset, planted.astype(np.float32))["decision"] == SIGNAL
