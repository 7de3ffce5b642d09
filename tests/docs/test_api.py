"""The examples of the API page run as they stand there, and give what the page says."""

import ast
import re

import numpy as np
import pytest

from lib.diagnosis.tidy import MINIMUM_ROWS
from lib.paper import CATEGORIES, POOLINGS
from lib.run.files import PROJECT

EXAMPLES = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)


def test_an_example_is_five_statements_beside_its_imports():
    assert len(EXAMPLES) == 5
    for example in EXAMPLES:
        statements = [node for node in ast.parse(example).body if not isinstance(node, ast.ImportFrom)]
        assert len(statements) <= 5, example


@pytest.fixture(scope="module")
def names():
    shared = {}
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"docs/api.md, example {number + 1}", "exec"), shared)
    return shared


def test_the_examples_run_in_their_order(names):
    annotations, streams, prompts = names["annotations"], names["streams"], names["prompts"]
    row = annotations[annotations["harm"] > 0].iloc[0]
    assert row["harm"] == max(0, -row["judgment"] / 2) * row["agreement"] / 4
    assert streams.shape == (len(POOLINGS), 3, annotations["action"].nunique(), 64)
    assert set(prompts.actions) == set(annotations["action"])
    found = names["found"]
    assert {"shuffled", "cross_foundation", "random_pair", "split_half"} < set(found["arm"])
    assert (found["n"] >= MINIMUM_ROWS).all()
    tuned = names["chosen"].tuned
    moved = (names["aligned"].W_enc != names["sae"].W_enc).any(dim=0).numpy()
    assert len(tuned) > 0
    assert set(np.flatnonzero(moved)) == set(tuned), "the tuned latents and no others"
    assert names["rows"]["train"].vectors.shape[1] == len(CATEGORIES)
    receipt = names["replies"][0]["receipt"]
    assert receipt["layers"] == [2]
    assert receipt["relative_norm"] > 0
