"""Settings of the book. ``make book`` stages the sources (``docs/build.py``) and calls Sphinx on them.

Nothing is executed and nothing is fetched: notebooks are shown as committed, and scripts, styles and fonts come from the
installed theme, so the book opens from disk and without network.
"""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

project = "Moral indifference, reproduced and questioned"
author = "The authors of the moral indifference companion"
copyright = "2026, the authors of the companion; MIT licence"
version = release = importlib.metadata.version("moral-indifference-companion")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_templates", "generated", "cards", "examples", "findings/page.md"]
templates_path = ["_templates"]

nb_execution_mode = "off"
nb_merge_streams = True
# Widgets need a kernel, and their scripts would come from a content delivery network.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_render_markdown_format = "myst"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes as a list of fields: as objects of their own, those of a NamedTuple would be described twice.
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],
    "use_download_button": True,
    "show_navbar_depth": 1,
    "collapse_navbar": True,
    "extra_footer": json.loads((Path(__file__).parent / "provenance.json").read_text(encoding="utf-8"))["html"],
}


def keep_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let ``|r|`` in a docstring mean an absolute value and not a substitution of reStructuredText."""
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda bar: bar[1] or r"\|", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_bars, priority=900)
