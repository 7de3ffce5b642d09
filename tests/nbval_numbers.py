"""nbval for notebooks whose numbers move a little with the machine: numbers within a tolerance, everything else exactly.

    python -m pytest -p tests.nbval_numbers notebooks --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg

Progress bars, which are no result, and the plain twin of what is also there as HTML or Markdown are left out.
"""

import re

import numpy as np
from nbval.plugin import IPyNbCell

from workflow.execution import is_progress

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?:e[-+]?\d+)?")
RELATIVE, ABSOLUTE = 0.02, 0.002


class Text(str):
    """Text of an output. It equals another whose numbers are near and whose words are the same."""

    __hash__ = None

    def __eq__(self, other):
        numbers, others = ([float(number) for number in NUMBER.findall(text)] for text in (self, other))
        same_words = NUMBER.sub("#", self) == NUMBER.sub("#", other)
        return same_words and np.allclose(numbers, others, rtol=RELATIVE, atol=ABSOLUTE)

    def __ne__(self, other):
        return not self == other


def results(outputs):
    """What of a cell's outputs is compared."""
    kept = [output.copy() for output in outputs if not is_progress(output)]
    for output in kept:
        if {"text/html", "text/markdown"} & output.get("data", {}).keys():
            output["data"] = {kind: text for kind, text in output["data"].items() if kind != "text/plain"}
    return kept


compare, sanitize = IPyNbCell.compare_outputs, IPyNbCell.sanitize
IPyNbCell.compare_outputs = lambda self, test, ref: compare(self, results(test), results(ref))
IPyNbCell.sanitize = lambda self, text: Text(sanitize(self, text)) if isinstance(text, str) else text
