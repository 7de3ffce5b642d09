"""Every committed figure is what its table and the code that draws it say: drawn again, it is the same picture."""

import importlib
import inspect
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lib import plotting
from lib.run.files import PROJECT

FOLDER = PROJECT / "figures"
TABLES = sorted(FOLDER.glob("*.csv"))
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


def content(path):
    """An SVG as what it draws: tags and texts in order, and all coordinates; identifiers are left out."""
    words, numbers = [], []
    for element in ElementTree.parse(path).iter():
        words.append(element.tag)
        for name, value in sorted(element.attrib.items()):
            if name in ("d", "x", "y", "width", "height", "transform", "points", "viewBox"):
                words.append(NUMBER.sub("#", value))
                numbers += map(float, NUMBER.findall(value))
            elif name == "style":
                words.append(re.sub(r"url\(#\w+\)", "", value))
    # matplotlib writes texts as outlines and repeats them in comments.
    words += re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))
    return words, np.array(numbers)


def same(first, second):
    (words, numbers), (other_words, other_numbers) = content(first), content(second)
    # A twentieth of a point, as tables hold nine digits.
    return words == other_words and np.allclose(numbers, other_numbers, rtol=0, atol=0.05)


def drawn_again(table, folder):
    figure = plotting.redraw(table)
    path = folder / table.with_suffix(".svg").name
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def test_there_are_figures():
    assert len(TABLES) >= 15


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_figure_comes_with_everything(table):
    for suffix in (".svg", ".png", ".json"):
        assert table.with_suffix(suffix).exists(), f"{table.stem}{suffix}; `make notebooks` writes it"
    notes = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(notes["alt"]) >= 20
    assert len(notes["caption"]) >= 20
    assert notes["notices"], "the committed figures are the demo's, and say so"


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_figure_is_what_its_table_and_its_code_draw(table, tmp_path):
    assert same(drawn_again(table, tmp_path), table.with_suffix(".svg")), f"{table.stem}: run `make notebooks`"


@pytest.mark.parametrize("table", TABLES[:1], ids=lambda path: path.stem)
def test_another_number_is_another_figure(table, tmp_path):
    shutil.copy(table.with_suffix(".json"), tmp_path)
    frame = pd.read_csv(table)
    column = frame.select_dtypes("float").columns[-1]
    frame[column] *= 0.9
    changed = tmp_path / table.name
    frame.to_csv(changed, index=False)
    assert not same(drawn_again(changed, tmp_path), table.with_suffix(".svg"))


def drawing_functions():
    for path in sorted((PROJECT / "lib").glob("*/figures.py")):
        module = importlib.import_module(f"lib.{path.parent.name}.figures")
        public = inspect.getmembers(module, inspect.isfunction)
        yield from (item for name, item in public if item.__module__ == module.__name__ and not name.startswith("_"))


def test_a_caption_leaves_out_what_is_said_of_the_argument():
    def drawing(frame):
        """Number of claims by stage, stacked; ``frame`` is the ledger."""

    assert plotting.caption_of(drawing) == "Number of claims by stage, stacked."


@pytest.mark.parametrize("draw", drawing_functions(), ids=lambda draw: f"{draw.__module__}.{draw.__name__}")
def test_a_drawing_function_takes_one_frame_and_returns_a_figure(draw):
    assert len(inspect.signature(draw).parameters) == 1
    assert inspect.signature(draw).return_annotation is Figure
    assert 20 <= len(plotting.caption_of(draw)) <= 200
    assert "``" not in plotting.caption_of(draw)


def test_every_drawing_function_is_published_by_a_notebook():
    drawn = {json.loads(path.read_text(encoding="utf-8"))["draw"] for path in FOLDER.glob("*.json")}
    assert drawn == {f"{draw.__module__}.{draw.__name__}" for draw in drawing_functions()}
