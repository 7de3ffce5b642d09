"""Bringing one's own: the examples are short, valid and, with a model, annotations, prompts and judge of one's own, run."""

import pandas as pd
import pytest
import yaml
from engine import EXAMPLES, start, tiny, undisturbed

from lib.run.files import PROJECT, resolve
from lib.run.profile import load_profile
from lib.steering.prompts import read_prompts


def test_there_is_an_example_of_everything():
    assert [path.stem for path in EXAMPLES] == ["annotations", "judge", "model", "prompts"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_valid_and_marks_what_to_change(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 20
    assert "<-" in text.split("\n", 2)[2], "below the schema's line and the sentence that says what the mark means"
    profile = load_profile(path)
    assert profile.run.startswith("my-")
    assert resolve(profile.annotations).exists()
    assert len(read_prompts(profile.prompts, profile.prompt_limit)) > 0


@pytest.mark.pipeline
def test_a_run_of_ones_own():
    """What the examples say to change, changed: all four at once, through all nine stages."""
    run = undisturbed(tiny())
    ledger = pd.read_csv(run / "claims" / "claims.csv")
    assert (ledger.set_index("id").loc["subset", "decision"]) == "not comparable"
    assert "finding about this run's models and data" in set(ledger["standing"]), "not the demo's annotations"
    judges = pd.read_parquet(run / "judging" / "mine" / "judges.parquet").query("metric == 'verdicts'")
    assert dict(zip(judges["judge"], judges["value"], strict=True)) == {"offline/rule": 1, "mockllm/model": 0}


@pytest.mark.pipeline
def test_another_model_is_refused_where_it_cannot_be_read(tmp_path):
    content = yaml.safe_load((PROJECT / "profiles" / "examples" / "model.yaml").read_text(encoding="utf-8"))
    content |= {"sae_model": "other"}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = start(path, "-n")
    assert result.returncode == 1
    assert "not among the models mine" in result.stderr
