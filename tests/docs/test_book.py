"""The book as a reader opens it: from disk and from a server, without network, on a phone, in the dark, by keyboard."""

import functools
import http.server
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import browser
import nbformat
import pandas as pd
import pytest

from docs import build
from lib.claims import ledger
from lib.run.files import PROJECT, resolve
from lib.run.profile import Profile

pytestmark = pytest.mark.pipeline

CHAPTERS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The book of the committed notebooks; building it fails on any warning."""
    output = tmp_path_factory.mktemp("book")
    return build.build(PROJECT / "notebooks", PROJECT / "figures", output).parent


@pytest.fixture(scope="module")
def pages(site):
    return [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as page:
        yield page


class Links(HTMLParser):
    """What a page refers to (tag, address) and the anchors in it that can be referred to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src"):
                self.links.append((tag, value))
            elif name == "id":
                self.anchors.add(value)


def test_there_is_a_chapter_per_notebook_and_a_page_per_module(pages, site):
    for path in CHAPTERS:
        assert site / "chapters" / f"{path.stem}.html" in pages
    for folder in ("lib", "workflow"):
        for path in (PROJECT / folder).rglob("*.py"):
            name = ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
            assert site / "api" / f"{name}.html" in pages


def test_the_findings_notebooks_are_told_apart(site):
    """Those of one stage have one title; the list names the model."""
    text = (site / "findings" / "notebooks.html").read_text(encoding="utf-8")
    for path in (PROJECT / "findings" / "notebooks").glob("03_diagnosis.*.ipynb"):
        name = path.stem.removeprefix("03_diagnosis.")
        assert f'href="notebooks/{path.stem}.html">03 diagnosis of {name}</a>' in text
    assert (site / "index.html").read_text(encoding="utf-8").count("03 · Is this model morally indifferent") == 1


def test_a_page_of_the_reference_says_what_functions_take(site):
    text = (site / "api" / "lib.diagnosis.gradient.html").read_text(encoding="utf-8")
    assert 'id="lib.diagnosis.gradient.gradient"' in text
    assert "Parameters" in text


def test_the_reference_of_keys_holds_every_key_with_its_readers(site):
    text = (site / "keys.html").read_text(encoding="utf-8")
    for key in Profile.model_fields:
        assert f'<span class="pre">{key}</span></code></p></td>' in text, key
    assert "whole number above 0" in text
    assert text.count('href="chapters/03_diagnosis.html"') > 3


def test_every_internal_link_and_figure_resolves(pages):
    links = {path: Links(path) for path in pages}
    broken = []
    for path, of_page in links.items():
        for _, address in of_page.links:
            if address.startswith(("http:", "https:", "data:", "mailto:", "javascript:")):
                continue
            target, anchor = urldefrag(unquote(address))
            file = (path.parent / target.split("?")[0]).resolve() if target else path
            known = links[file].anchors if file in links else {""}
            if not file.exists() or (anchor and file in links and anchor not in known):
                broken.append((path.name, address))
    assert not broken


def test_nothing_but_links_leaves_the_book(pages):
    outside = [
        (path.name, tag, address)
        for path in pages
        for tag, address in Links(path).links
        if tag != "a" and address.startswith(("http:", "https:", "//"))
    ]
    assert not outside


def test_every_page_ends_with_what_made_it(pages):
    for path in pages:
        if path.name not in ("genindex.html", "py-modindex.html", "search.html"):
            text = path.read_text(encoding="utf-8")
            footer = text[text.index('class="provenance"') :]
            for word in ("versions: companion", "sha256", "seeds:", "machine:", "wall time:", "make book"):
                assert word in footer, path.name


def test_pages_load_from_disk_without_errors_or_network_and_fit_a_phone(pages, chromium):
    chromium.size(390, 844)
    for path in pages:
        chromium.errors.clear()
        chromium.requests.clear()
        chromium.open(path.as_uri())
        assert not chromium.errors, path.name
        assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == [], path.name
        missing = (
            "[...document.images].filter(i => i.complete && !i.naturalWidth && i.loading != 'lazy').map(i => i.src)"
        )
        assert chromium.run(missing) == [], path.name
        assert chromium.run("document.documentElement.scrollWidth") <= 390, f"{path.name} scrolls sideways"


def test_the_same_from_a_web_server(site, chromium):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        for name in ("index", "chapters/03_diagnosis", "figures", "api/lib.claims.ledger"):
            chromium.errors.clear()
            chromium.requests.clear()
            chromium.open(f"{root}/{name}.html")
            assert not [error for error in chromium.errors if "favicon" not in error], name
            assert all(url.startswith((root, "data:")) for url in chromium.requests), name
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_searching_works_from_disk(site, chromium):
    chromium.open((site / "search.html").as_uri() + "?q=prototype")
    chromium.until("document.querySelectorAll('#search-results li a').length > 2", "the search found nothing")


def test_a_figure_to_explore_is_drawn_and_its_menu_changes_it(site, chromium):
    chromium.size(1280, 900)
    chromium.open((site / "interactive.html").as_uri())
    label = "document.querySelector('#gains .ytitle').textContent"
    assert chromium.run(label) == "gain, area under the curve"
    chromium.run(
        "Plotly.update('gains', ...document.getElementById('gains').layout.updatemenus[0].buttons[3].args).then(() => 1)"
    )
    chromium.until(f"{label} == 'gain, R squared'", "the menu changes nothing")


def test_light_and_dark(site, chromium):
    colours = {}
    for scheme in ("light", "dark"):
        chromium.scheme(scheme)
        chromium.open((site / "index.html").as_uri())
        shade = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
        colours[scheme] = [chromium.run(shade.format(name)) for name in ("backgroundColor", "color")]
    chromium.scheme("light")
    assert colours["light"][0] > 700
    assert colours["dark"][0] < 150
    assert colours["dark"][1] - colours["dark"][0] > 300, "text stands out from a dark page"
    assert colours["light"][0] - colours["light"][1] > 300, "text stands out from a light page"


def test_texts_stay_folded_until_a_reader_opens_them_by_keyboard(site, chromium):
    chromium.size(1280, 900)
    chromium.open((site / "data.html").as_uri())
    shown = "[...document.querySelectorAll('article details')].map(d => d.open)"
    closed = chromium.run(shown)
    assert len(closed) == 2
    assert not any(closed)
    visible = "document.querySelector('article details table').checkVisibility()"
    assert not chromium.run(visible)
    for _ in range(400):
        chromium.tab()
        if chromium.run("document.activeElement.matches('article summary')"):
            break
    else:
        raise AssertionError("the keyboard does not reach what is folded")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert chromium.run(outline) != "none", "the reader sees where the keyboard is"
    chromium.enter()
    assert chromium.run(shown)[0]
    assert chromium.run(visible)


def test_no_prompt_or_answer_is_shown_in_a_chapter():
    prompts = [
        line["prompt"] for line in pd.read_json(resolve("data/demo/prompts.jsonl"), lines=True).to_dict("records")
    ]
    for path in CHAPTERS:
        text = path.read_text(encoding="utf-8")
        assert not [prompt for prompt in prompts if prompt in text], path.name


def test_the_front_page_is_the_ledger(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    table = pd.read_csv(PROJECT / "figures" / "claims.csv")
    assert ledger.summary(table) in text
    assert "not a finding" in text
    assert text.count("<tr") >= len(table)


def test_a_book_needs_executed_notebooks(tmp_path):
    with pytest.raises(build.BookError, match=r"no executed notebook in .*run `make reproduce` first"):
        build.stage_sources(tmp_path, PROJECT / "figures", tmp_path / "source")


def test_facts_are_read_from_the_end_of_a_notebook(tmp_path):
    text = "| provenance | |\n|---|---|\n| stage | 01_x |\n| wall time | 2.5 s |\n"
    output = nbformat.v4.new_output("execute_result", {"text/markdown": text})
    cell = nbformat.v4.new_code_cell("stage.provenance()", outputs=[output])
    path = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert build.facts_of(path) == {"stage": "01_x", "wall time": "2.5 s"}
    assert build.facts_of(_empty(tmp_path)) == {}


def _empty(folder: Path) -> Path:
    path = folder / "empty.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), path)
    return path


def test_terms_of_the_glossary_are_in_order():
    entries = (PROJECT / "docs" / "glossary.md").read_text(encoding="utf-8").split("```{glossary}\n")[1].split("\n\n")
    terms = [entry.splitlines()[0].casefold() for entry in entries]
    assert len(terms) > 40
    assert terms == sorted(terms)
