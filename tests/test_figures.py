"""Every committed figure is what its table and the code that draws it say: drawn again, it is the same picture."""

import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from lib import figures, runs
from lib.figures import style

FOLDER = runs.PROJECT / "figures"
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
    figure = style.redraw(table, figures.DRAWINGS)
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


def test_a_caption_leaves_out_what_is_said_of_the_argument():
    def drawing(frame):
        """Number of claims by stage, stacked; ``frame`` is the ledger."""

    assert style.caption_of(drawing) == "Number of claims by stage, stacked."
    assert all(style.caption_of(function).count("``") == 0 for function in figures.DRAWINGS.values())


def test_a_second_table_is_kept_with_the_figure():
    table = pd.DataFrame({"name": ["a", ""], "value": [1.5, None], "count": [1, 2]})
    packed = json.loads(json.dumps(style._packed(table)))
    pd.testing.assert_frame_equal(style._unpacked(packed), table.replace("", np.nan))
    assert style._unpacked(style._packed({"layer": 2})) == {"layer": 2}
