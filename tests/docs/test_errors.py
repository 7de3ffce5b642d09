"""The page of errors names every error of the project and when it is raised."""

import re

from docs import errors
from lib.run.files import PROJECT


def test_the_page_holds_every_error_with_its_meaning():
    page = errors.errors_page()
    sources = [
        path.read_text(encoding="utf-8") for room in ("lib", "workflow") for path in (PROJECT / room).rglob("*.py")
    ]
    defined = {
        name for source in sources for name in re.findall(r"^class (\w+Error)\(\w+Error\)", source, re.MULTILINE)
    }
    parts = dict(re.findall(r"^## (\w+)\n\n(.+)", page, re.MULTILINE))
    assert len(defined) >= 18
    assert set(parts) == defined
    assert all(len(meaning) > 20 for meaning in parts.values())
    assert "A kind of `StoreError`." in parts["DamagedError"]
    assert "* `lib.vectors.social_chemistry.read`: the file is empty, not UTF-8" in page
    assert not re.search(r":\w+:`|``", page), "no markup of docstrings is left"


def test_conditions_are_read_from_a_docstring():
    doc = "Do it.\n\nRaises:\n    AError: one\n        or more.\n    lib.b.BError: two: three.\n\nSource: none."
    assert list(errors.raises(doc)) == [("AError", "one\n        or more."), ("BError", "two: three.")]
    assert errors.plain("see :func:`lib.a.b` and\n  ``c``") == "see `lib.a.b` and `c`"
