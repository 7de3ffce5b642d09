"""The README's generated tables are fresh, and a stale one is found."""

import re
import subprocess
import sys

import pytest

from docs import readme
from lib.run.files import PROJECT


def test_the_generated_tables_are_fresh():
    command = [sys.executable, "-m", "docs.readme", "--check"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_stale_table_is_found(monkeypatch, tmp_path, capsys):
    text = readme.README.read_text(encoding="utf-8")
    stale = tmp_path / "README.md"
    stale.write_text(text.replace("<!-- claims -->", "<!-- claims -->\n\n| an old line |"), encoding="utf-8")
    monkeypatch.setattr(readme, "README", stale)
    monkeypatch.setattr(sys, "argv", ["readme", "--check"])
    assert readme.main() == 1
    assert "-| an old line |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["readme"])
    assert readme.main() == 0
    monkeypatch.setattr(sys, "argv", ["readme", "--check"])
    assert readme.main() == 0


def test_a_missing_marker_is_named():
    with pytest.raises(readme.ReadmeError, match="<!-- benchmarks -->"):
        readme.filled("nothing", {"benchmarks": "x"})


def test_every_file_that_the_readme_links_to_is_there():
    text = readme.README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", text):
        assert (PROJECT / target).exists(), target
