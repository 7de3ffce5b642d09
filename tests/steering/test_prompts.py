"""Prompts: counts, choice, and errors that say where and what."""

import json

import pytest
from pydantic import ValidationError

from lib.steering.prompts import DIMENSIONS, TextFileError, choose, read_prompts
from tests.steering.test_generation import GREEDY, told

PUBLISHED_COUNTS = {"Safety": 429, "Fairness": 249, "Morality": 201, "Data protection": 75, "Legality": 46}
"""Prompts per dimension in Flames_1k_Chinese (paper, section on Flames)."""
GOOD = {"dimension": "Safety", "subcomponent": "Physical harm", "prompt": "我该怎么办？"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_official_file_loads_with_the_published_counts(real_data):
    prompts = read_prompts(real_data / "Flames_1k_Chinese.jsonl")
    assert len(prompts) == 1000
    assert prompts["dimension"].value_counts().to_dict() == PUBLISHED_COUNTS
    assert prompts["id"].iloc[[0, -1]].tolist() == ["flames_0001", "flames_1000"]
    assert prompts["id"].is_unique


def test_a_choice_keeps_the_shares_and_is_the_same_every_time(real_data):
    path = real_data / "Flames_1k_Chinese.jsonl"
    forty, again = read_prompts(path, 40), read_prompts(path, 40)
    assert forty.equals(again)
    counts = forty["dimension"].value_counts().to_dict()
    assert counts == {"Safety": 17, "Fairness": 10, "Morality": 8, "Data protection": 3, "Legality": 2}
    assert forty["id"].is_monotonic_increasing
    everything = read_prompts(path).set_index("id")["prompt"]
    assert (everything[forty["id"]].to_numpy() == forty["prompt"].to_numpy()).all(), "ids are places in the whole file"
    assert forty.loc[forty["dimension"] == "Safety", "subcomponent"].nunique() > 1


@pytest.mark.parametrize("limit", [1, 2, 7, 59])
def test_a_choice_has_exactly_as_many_as_asked_for(limit):
    prompts = read_prompts("data/demo/prompts.jsonl")
    assert len(choose(prompts, limit)) == limit


def test_the_demo_prompts_cover_all_dimensions():
    prompts = read_prompts("data/demo/prompts.jsonl")
    assert len(prompts) >= 60
    assert set(prompts["dimension"]) == set(DIMENSIONS)
    assert len(choose(prompts, 10_000)) == len(prompts)
    with pytest.raises(ValidationError, match="prompt_limit"):
        told(GREEDY, prompt_limit=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"dimension": "Data Protection"}, r"line 2: key 'dimension': .*'Data protection'"),
        (GOOD | {"dimension": "safty"}, r"line 2: key 'dimension': .*'Safety'"),
        (GOOD | {"dimension": None}, r"line 2: key 'dimension': "),
        (
            {"Prompt": "问", "dimension": "Safety", "subcomponent": "x"},
            r"line 2: key 'prompt': missing; key 'Prompt': unknown \(the keys are dimension",
        ),
        ({"dimension": "Safety", "subcomponent": "x"}, r"line 2: key 'prompt': missing"),
        (GOOD | {"prompt": "  "}, r"line 2: key 'prompt': empty"),
        (GOOD | {"prompt": 3}, r"line 2: key 'prompt': .*valid string"),
        (["Safety"], r"line 2: Input should be an object \(the keys are dimension, subcomponent, prompt\)"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, message):
    path = write(tmp_path / "prompts.jsonl", GOOD, row)
    with pytest.raises(TextFileError, match=r"prompts\.jsonl, " + message):
        read_prompts(path)


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(TextFileError, match="file not found"):
        read_prompts(tmp_path / "nowhere.jsonl")
    (tmp_path / "table.tsv").write_text("action\tarea\n", encoding="utf-8")
    with pytest.raises(TextFileError, match=r"table\.tsv, line 1: Invalid JSON"):
        read_prompts(tmp_path / "table.tsv")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(TextFileError, match="holds no lines"):
        read_prompts(tmp_path / "empty.jsonl")
