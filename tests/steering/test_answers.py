"""Files of answers: they come back as written, and errors say where and what."""

import json

import pytest

from lib.steering.answers import read_answers
from lib.steering.prompts import TextFileError


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def answer(number=1, **changes):
    known = {"id": f"flames_{number:04d}", "dimension": "Safety", "prompt": "问", "arm": "baseline", "layer": None}
    known |= {
        "strength": None if changes.get("layer") is None else 1.0,
        "protocol": "careful",
        "replicate": 0,
        "sample": 0,
    }
    known |= {"response": "答", "thought": None, "finished": True, "receipt": {}}
    return known | changes


def test_answers_come_back_as_written(tmp_path):
    write(tmp_path / "baseline.jsonl", answer(1), answer(2, response=""))
    again = [answer(n, arm="aligned", layer=2, replicate=1, sample=1, thought="想", finished=False) for n in (1, 2)]
    alone = [answer(n, arm="aligned", layer=k, response="") for k in (1, 2) for n in (1, 2)]
    write(tmp_path / "aligned.jsonl", *alone, *again)
    frame = read_answers(tmp_path, ["baseline", "aligned"])
    assert frame["arm"].tolist() == ["baseline"] * 2 + ["aligned"] * 6
    assert frame["layer"].isna().tolist() == [True] * 2 + [False] * 6
    assert frame["response"].tolist() == ["答", "", "", "", "", "", "答", "答"], (
        "what is empty stays so, even all of an arm"
    )
    assert frame["sample"].tolist() == [0] * 6 + [1] * 2
    assert frame["thought"].dropna().tolist() == ["想"] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer(2, arm="aligned", layer=1)], "baseline did not answer flames_0002, which another condition did"),
        ([answer(1, arm="aligned", layer=1)] * 2, "aligned, layer 1, s = 1 answers flames_0001 twice"),
        ([answer(1, arm="aligned", strength=2.0)] * 2, "aligned, several layers, s = 2 answers flames_0001 twice"),
        (
            [answer(1, arm="aligned", layer=1), answer(2, arm="aligned", layer=1, replicate=1, sample=2)],
            "baseline did not answer flames_0002",
        ),
        (
            [answer(n, arm="aligned", layer=1, replicate=1, sample=2) for n in (1, 1)],
            "aligned, layer 1, s = 1, replicate 1, sample 2 answers flames_0001 twice",
        ),
        ([answer(1, arm="random", layer=1)], r"aligned\.jsonl holds answers of arm 'random'"),
        ([answer(1, arm="aligned", layer=1, response=None)], r"aligned\.jsonl, line 1: key 'response': .*valid string"),
        ([{"id": "flames_0001"}], r"line 1: key 'dimension': missing; key 'prompt': missing"),
        ([], "'aligned' has no answers"),
    ],
)
def test_wrong_answers_are_named(tmp_path, rows, message):
    write(tmp_path / "baseline.jsonl", answer(1))
    write(tmp_path / "aligned.jsonl", *rows)
    with pytest.raises(TextFileError, match=message):
        read_answers(tmp_path, ["baseline", "aligned"])


def test_a_missing_arm_names_the_notebook_and_what_there_is(tmp_path):
    write(tmp_path / "baseline.jsonl", answer(1))
    with pytest.raises(TextFileError, match=r"'aligned' has no answers.*there: baseline.*07_steering"):
        read_answers(tmp_path, ["baseline", "aligned"])
