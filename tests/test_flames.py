"""Prompts and answers: counts, choice, and errors that say where and what."""

import json

import pytest

from lib import flames

GOOD = {"dimension": "Safety", "subcomponent": "Physical harm", "prompt": "我该怎么办？"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def response(number=1, **changes):
    known = {"id": f"flames_{number:04d}", "dimension": "Safety", "prompt": "问", "arm": "baseline", "layer": None}
    known |= {"strength": None if changes.get("layer") is None else 1.0, "response": "答", "receipt": {}}
    return known | changes


def test_the_official_file_loads_with_the_published_counts(real_data):
    prompts = flames.read_prompts(real_data / "Flames_1k_Chinese.jsonl")
    assert len(prompts) == 1000
    assert prompts["dimension"].value_counts().to_dict() == flames.PUBLISHED_COUNTS
    assert prompts["id"].iloc[[0, -1]].tolist() == ["flames_0001", "flames_1000"]
    assert prompts["id"].is_unique


def test_a_choice_keeps_the_shares_and_is_the_same_every_time(real_data):
    path = real_data / "Flames_1k_Chinese.jsonl"
    forty, again = flames.read_prompts(path, 40), flames.read_prompts(path, 40)
    assert forty.equals(again)
    counts = forty["dimension"].value_counts().to_dict()
    assert counts == {"Safety": 17, "Fairness": 10, "Morality": 8, "Data protection": 3, "Legality": 2}
    assert forty["id"].is_monotonic_increasing
    everything = flames.read_prompts(path).set_index("id")["prompt"]
    assert (everything[forty["id"]].to_numpy() == forty["prompt"].to_numpy()).all(), "ids are places in the whole file"
    assert forty.loc[forty["dimension"] == "Safety", "subcomponent"].nunique() > 1


@pytest.mark.parametrize("limit", [1, 2, 7, 59])
def test_a_choice_has_exactly_as_many_as_asked_for(limit):
    prompts = flames.read_prompts("data/demo/prompts.jsonl")
    assert len(flames.choose(prompts, limit)) == limit


def test_the_demo_prompts_cover_all_dimensions():
    prompts = flames.read_prompts("data/demo/prompts.jsonl")
    assert len(prompts) >= 60
    assert set(prompts["dimension"]) == set(flames.DIMENSIONS)
    assert len(flames.choose(prompts, 10_000)) == len(prompts)
    with pytest.raises(flames.FlamesError, match="at least 1"):
        flames.choose(prompts, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"dimension": "Data Protection"}, r"line 2: key 'dimension' .*Did you mean 'Data protection'"),
        (GOOD | {"dimension": "safty"}, r"line 2: .*Did you mean 'Safety'"),
        (GOOD | {"dimension": None}, r"line 2: key 'dimension'"),
        ({"Prompt": "问", "dimension": "Safety", "subcomponent": "x"}, r"line 2: unknown key 'Prompt'.*'prompt'"),
        ({"dimension": "Safety", "subcomponent": "x"}, r"line 2: key 'prompt' is missing"),
        (GOOD | {"prompt": "  "}, r"line 2: key 'prompt' is empty"),
        (GOOD | {"prompt": 3}, r"line 2: key 'prompt' is empty or not text"),
        (["Safety"], r"line 2: each line should be an object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, message):
    path = write(tmp_path / "prompts.jsonl", GOOD, row)
    with pytest.raises(flames.FlamesError, match=r"prompts\.jsonl, " + message):
        flames.read_prompts(path)


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(flames.FlamesError, match="file not found"):
        flames.read_prompts(tmp_path / "nowhere.jsonl")
    (tmp_path / "table.tsv").write_text("action\tarea\n", encoding="utf-8")
    with pytest.raises(flames.FlamesError, match=r"table\.tsv, line 1: not JSON"):
        flames.read_prompts(tmp_path / "table.tsv")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(flames.FlamesError, match="no prompts"):
        flames.read_prompts(tmp_path / "empty.jsonl")


def test_answers_come_back_as_written(tmp_path):
    write(tmp_path / "baseline.jsonl", response(1), response(2, response=""))
    write(tmp_path / "aligned.jsonl", *(response(n, arm="aligned", layer=k) for k in (1, 2) for n in (1, 2)))
    frame = flames.read_responses(tmp_path, ["baseline", "aligned"])
    assert frame["arm"].tolist() == ["baseline"] * 2 + ["aligned"] * 4
    assert frame["layer"].isna().tolist() == [True] * 2 + [False] * 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [response(1, arm="aligned", layer=1), response(1, arm="aligned", layer=1, strength=2.0, response="")],
            "empty",
        ),
        ([response(1, arm="aligned", layer=1, response=" ")], "every answer of arm 'aligned' at layer 1 is empty"),
        ([response(2, arm="aligned", layer=1)], "did not answer the same prompts.*flames_0001"),
        ([response(1, arm="aligned", layer=1)] * 2, "answers flames_0001 twice"),
        ([response(1, arm="random", layer=1)], r"aligned\.jsonl, line 1: key 'arm' is 'random'"),
        ([response(1, arm="aligned", layer=1, response=None)], "'response' should be text"),
        ([{"id": "flames_0001"}], "is missing"),
        ([], "no answers in it"),
    ],
)
def test_wrong_answers_are_named(tmp_path, rows, message):
    write(tmp_path / "baseline.jsonl", response(1))
    write(tmp_path / "aligned.jsonl", *rows)
    with pytest.raises(flames.FlamesError, match=message):
        flames.read_responses(tmp_path, ["baseline", "aligned"])


def test_a_missing_arm_names_the_notebook_and_what_there_is(tmp_path):
    write(tmp_path / "baseline.jsonl", response(1))
    with pytest.raises(flames.FlamesError, match=r"'aligned' has no answers.*there: baseline.*07_steering"):
        flames.read_responses(tmp_path, ["baseline", "aligned"])
