"""The findings in the repository say what their own tables say, hold no texts, and were made by committed code."""

import json

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from pandas.testing import assert_frame_equal
from test_figures import same

from docs import findings as pages
from lib.plotting import redraw
from lib.run.files import PROJECT, sha256_of_file
from lib.run.profile import load_profile
from lib.run.stage import DEMO_ANNOTATIONS
from workflow import findings, headline

PROFILE = load_profile("findings/profile.yaml")
TABLES = sorted((headline.FOLDER / "tables").rglob("*.parquet"))
RECORDED = json.loads((headline.FOLDER / "manifest.json").read_text(encoding="utf-8"))


def found():
    return headline.Found(PROFILE, headline.FOLDER / "tables")


def test_the_headline_follows_from_the_tables():
    kept = pd.read_csv(headline.FOLDER / "headline.csv", keep_default_na=False, na_values=[""])
    again = headline.headline(found())
    numbers = ["value", "ci_low", "ci_high"]
    assert_frame_equal(kept[numbers], again[numbers].astype(float), rtol=1e-5)
    words = again.columns.difference(numbers)
    assert kept[words].fillna("").astype(str).equals(again[words].fillna("").astype(str))


def test_the_page_follows_from_the_tables():
    assert (headline.FOLDER / "README.md").read_text(encoding="utf-8") == pages.page(found())


def test_another_number_in_a_table_is_another_headline(monkeypatch):
    before = headline.headline(found())
    read = headline.Found.table

    def changed(self, stage, name, model=None):
        table = read(self, stage, name, model)
        return table.assign(gain=table["gain"] + 0.01) if name == "decisions" else table

    monkeypatch.setattr(headline.Found, "table", changed)
    assert not headline.headline(found()).equals(before)


def test_the_headline_figure_follows_from_its_table(tmp_path):
    figure = redraw(headline.FOLDER / "figures" / "headline.csv")
    figure.savefig(tmp_path / "headline.svg", metadata={"Date": None})
    plt.close(figure)
    assert same(headline.FOLDER / "figures" / "headline.svg", tmp_path / "headline.svg")


def test_the_run_was_made_by_committed_code():
    assert RECORDED["clean"] is True
    assert len(RECORDED["commit"]) == 40
    assert {"vectors", "comparison", "claims"} < set(RECORDED["stages"])
    for model in PROFILE.sources:
        assert f"diagnosis/{model}" in RECORDED["stages"]


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.relative_to(headline.FOLDER / "tables").as_posix())
def test_a_table_is_the_one_that_the_run_wrote_and_holds_no_text(table):
    stage = table.parent.relative_to(headline.FOLDER / "tables").as_posix()
    if stage != ".":
        assert RECORDED["stages"][stage]["outputs"][table.name] == sha256_of_file(table)
    frame = pd.read_parquet(table)
    assert not {"action", "text", "prompt", "answer", "reply"} & set(frame.columns)


def test_no_notebook_shows_content():
    notebooks = sorted((headline.FOLDER / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == len(PROFILE.sources) + 4
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        assert "show_content = True" not in text.split("Parameters", 1)[-1][:2000]
        assert str(PROJECT) not in text
        assert "/tmp/" not in text


def test_a_run_that_is_not_finished_is_not_collected(tmp_path):
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        f"run: never-made\nannotations: {DEMO_ANNOTATIONS}\nmodels:\n"
        "  - {name: untrained-small, path: data/demo/models/untrained-small}\nsae_model: untrained-small\nlayers: [1]\n"
        "prompts: data/demo/prompts.jsonl\n",
        encoding="utf-8",
    )
    with pytest.raises(findings.FindingsError, match="never-made is not finished: vectors"):
        findings.collect(str(profile))


def test_results_that_this_code_would_not_make_are_not_collected(monkeypatch):
    monkeypatch.setattr(findings, "missing", lambda profile: [])
    monkeypatch.setattr(findings, "stale", lambda profile: [("sae", "a-model", "made with code = 'old'")])
    with pytest.raises(findings.FindingsError, match="not what this code makes: sae of a-model was made with code"):
        findings.collect("findings/profile.yaml")


def test_a_model_that_was_read_twice_is_no_larger_one():
    first, *_ = PROFILE.models
    again = first.model_copy(update={"name": "asked", "template": "Is it right to {action}?"})
    asked = PROFILE.model_copy(update={"models": [*PROFILE.models, again]})
    assert headline.Found(asked, headline.FOLDER).trained == found().trained


def test_a_larger_model_is_paired_with_the_smaller_one_replicate_by_replicate(monkeypatch):
    """A model beside a copy of itself has no difference; with .1 added to every gain it has .1 more, or less the other way."""
    gains = {model: found().table("diagnosis", "gains", "smollm2-135m") for model in ("small", "large")}
    columns = [column for column in gains["large"] if column == "gain" or column.startswith("without_")]

    class TwoModels(headline.Found):
        trained = ("small", "large")

        def table(self, stage, name, model=None):
            return gains[model]

    def grown():
        rows = headline._of_size(TwoModels(PROFILE, headline.FOLDER))
        return pd.DataFrame(list(rows), columns=headline.HEADLINE)

    same = grown()
    assert set(same["answer"]) == {"no difference to tell"}
    assert list(same["model"].unique()) == ["large"]
    gains["large"] = gains["large"].assign(**{column: gains["large"][column] + 0.1 for column in columns})
    more = grown()
    assert set(more["answer"]) == {"more than small"}
    assert more["value"].to_numpy() == pytest.approx(same["value"].to_numpy() + 0.1)
    gains["small"], gains["large"] = gains["large"], gains["small"]
    less = grown()
    assert set(less["answer"]) == {"less than small"}
    assert less["value"].to_numpy() == pytest.approx(-more["value"].to_numpy())
    assert (less["ci_low"] <= less["value"]).all()
    assert (less["value"] <= less["ci_high"]).all()


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.015, 0.015, "not by more than the margin"),
        (0.001, 0.019, "not by more than the margin"),
        (0.021, 0.05, "it does"),
        (-0.05, -0.021, "it does"),
        (0.019, 0.05, "undecided"),
        (-0.03, 0.01, "undecided"),
    ],
)
def test_a_reading_under_another_template_is_said_to_differ_where_it_surely_does(low, high, answer, monkeypatch):
    """The margin is .02; at a second place both readings are the same."""
    columns = ["kind", "model", "reading", "pooling", "layer", "gain", "reading_gain", "margin", "difference", "ci_low"]
    place = ("categorical", "small", "bare", "last")
    value = (low + high) / 2
    table = pd.DataFrame(
        [(*place, 0, 0.1, 0.1, 0.02, 0.0, 0.0, 0.0), (*place, 1, 0.1, 0.1 + value, 0.02, value, low, high)],
        columns=[*columns, "ci_high"],
    )
    monkeypatch.setattr(headline.Found, "table", lambda self, stage, name, model=None: table)
    (row,) = headline._of_templates(found())
    said = dict(zip(headline.HEADLINE, row, strict=True))
    assert said["answer"] == answer
    assert said["model"] == "bare"
    assert (said["value"], said["ci_low"], said["ci_high"]) == (value, low, high), "not the place where nothing differs"
    assert "after layer 1" in said["beside"]


def test_the_front_names_every_kind_of_every_model_once():
    answers = pd.Series({"categorical": "more", "gradient": "none to tell", "structural": "more"})
    assert pages._by_answer(answers) == "*more* in categorical, structural; *none to tell* in gradient"
    assert pages._by_answer(answers[["categorical", "structural"]]) == "*more* in all 2"


@pytest.mark.parametrize(
    ("stem", "stage", "kept"),
    [
        ("gains_smollm2-135m", "diagnosis", True),
        ("gains_smollm2-135m-untrained", "diagnosis", True),
        (f"alignment_{PROFILE.sae_model}", "alignment", True),
        ("alignment_smollm2-135m", "alignment", False),
        ("gains_another-model", "diagnosis", False),
        ("depth_profiles", "comparison", True),
    ],
)
def test_figures_that_an_earlier_profile_left_are_not_collected(stem, stage, kept, tmp_path):
    (tmp_path / f"{stem}.json").write_text(json.dumps({"stage": stage}), encoding="utf-8")
    assert findings._of_this_run(PROFILE, tmp_path / f"{stem}.svg") is kept
