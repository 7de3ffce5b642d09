"""The figures to explore show the values of the findings' tables, one choice at a time."""

import pytest

from docs import findings, interactive
from lib.paper import FOUNDATIONS


@pytest.fixture(scope="module")
def found():
    return findings.committed()


def shown(figure, choice):
    (button,) = [each for each in figure.layout.updatemenus[0].buttons if each.label == choice]
    visible = button.args[0]["visible"]
    lines = {named(line): line for line, seen in zip(figure.data, visible, strict=True) if seen}
    return lines, button.args[1]


def named(line):
    return f"{line.legendgroup}, {line.name}"


def test_gains_are_those_of_the_table(found):
    tables = {model: found.table("diagnosis", "gains", model) for model in found.models}
    figure = interactive.gains(tables)
    model = found.models[0]
    lines, labels = shown(figure, "dimensional")
    assert labels == {"yaxis.title.text": "gain, R squared"}
    assert len(lines) == 2 * len(found.models), "two poolings of every model"
    own = tables[model].query("kind == 'dimensional' and pooling == 'last'").dropna(subset="layer")
    line = lines[f"{model}, last"]
    assert list(line.y) == own["gain"].tolist()
    assert list(line.y + line.error_y.array) == pytest.approx(own["ci_high"].tolist())
    assert list(line.y - line.error_y.arrayminus) == pytest.approx(own["ci_low"].tolist())
    first = [named(line) for line in figure.data if line.visible]
    assert first == list(shown(figure, "categorical")[0]), "the figure opens with its first choice"


def test_cosines_are_those_of_the_table(found):
    tables = {model: found.table("diagnosis", "cosine", model) for model in found.models}
    figure = interactive.opposing_cosines(tables)
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == ["all", *FOUNDATIONS]
    lines, _ = shown(figure, "care-harm")
    model = found.models[-1]
    own = tables[model].query("metric == 'opposing_cosine' and foundation == 'care-harm' and arm == 'length_removed'")
    assert list(lines[f"{model}, length regressed out"].y) == own["value"].tolist()
    opened = {line.legendgroup for line in figure.data if line.visible is True}
    assert opened == {found.models[0]}, "the others wait in the legend: all at once hide each other"
    assert len({line.line.color for line in lines.values()}) == 3, "pairs across foundations belong to all of them"


def test_the_script_is_not_fetched(found):
    text = interactive.page(found)
    assert text.count("<script src=") == 1
    assert '<script src="_static/plotly.min.js">' in text
    assert interactive.SCRIPT.exists()
