"""The companion as a book: executed notebooks, ledger, figures and reference as one static site.

``python -m docs.build profiles/demo.yaml`` (``make book``) stages the pages of ``docs/``, the executed notebooks and what is
generated from the run's tables into one folder and calls Sphinx there. Nothing is executed, so a book shows what was run;
nothing is fetched, so it is built and read without network.
"""

import argparse
import html
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd

from benchmarks import calibrate
from docs import findings, interactive
from docs.both_sides import both_sides
from docs.errors import errors_page
from docs.keys import keys_page
from docs.ledger import is_demo, ledger_page
from docs.markdown import markdown_table
from lib.run.files import PROJECT, CompanionError, errors_said, resolve, sha256_of_file, short, write_text_atomically
from lib.run.profile import load_profile
from lib.run.provenance import sha256_of_json
from lib.run.stage import DEMO_ANNOTATIONS
from lib.steering import prompts

PACKAGES = ("Sphinx", "myst-nb", "sphinx-book-theme", "pydata-sphinx-theme")
COPIES = {
    "CITATION.cff": "CITATION.cff",
    "data/store_protocol.md": "store_protocol.md",
    "data/cards/social-chemistry-101.md": "cards/social-chemistry-101.md",
    "data/cards/flames.md": "cards/flames.md",
    "data/demo/README.md": "cards/demo.md",
    "figures/pipeline.svg": "pipeline.svg",
    "profiles/examples": "examples",
    "findings": "findings",
    "benchmarks/calibration.svg": "benchmarks/calibration.svg",
    "benchmarks/calibration.csv": "benchmarks/calibration.csv",
    "benchmarks/calibration_claims.svg": "benchmarks/calibration_claims.svg",
    "benchmarks/calibration_claims.csv": "benchmarks/calibration_claims.csv",
}
"""What is staged beside ``docs/``: path below the project root -> path in the book."""


class BookError(CompanionError):
    """Something that the book shows is not there; the message says which command makes it."""


def build(notebooks: Path, figures: Path, output: Path) -> Path:
    """Build the book and return its front page.

    Args:
        notebooks: folder of executed notebooks.
        figures: folder of figures with their tables and notes; its ``claims.csv`` is the ledger.
        output: folder that will hold ``source`` (staged) and ``html``. Both are replaced.

    Raises:
        BookError: there is no ledger or no notebook, or Sphinx warned; warnings are errors.
    """
    source, site = output / "source", output / "html"
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    stage_sources(notebooks, figures, source)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", str(source), str(site)]
    if subprocess.run(command, cwd=PROJECT).returncode:
        raise BookError("Sphinx warned, see above; the book is not complete")
    return site / "index.html"


def stage_sources(notebooks: Path, figures: Path, source: Path) -> None:
    """Write everything that Sphinx reads into ``source``."""
    ledger, chapters = figures / "claims.csv", sorted(notebooks.glob("*.ipynb"))
    if not ledger.exists() or not chapters:
        missing = "ledger (claims.csv)" if chapters else "executed notebook"
        raise BookError(f"no {missing} in {short(figures if chapters else notebooks)}; run `make reproduce` first")
    code = [path.name for path in (PROJECT / "docs").glob("*.py") if path.name != "conf.py"]
    shutil.copytree(PROJECT / "docs", source, ignore=shutil.ignore_patterns(*code, "__pycache__"))
    for origin, target in COPIES.items():
        path = PROJECT / origin
        (source / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, source / target) if path.is_dir() else shutil.copy(path, source / target)
    (source / "chapters").mkdir()
    for path in chapters:
        shutil.copy(path, source / "chapters" / path.name)
    table, found = pd.read_csv(ledger), findings.committed()
    generated = {
        "ledger": ledger_page(table),
        "edition": edition_page(is_demo(table)),
        "finding": findings.front_page(),
        "both_sides": both_sides(found.table("claims", "claims"), table),
        "interactive": interactive.page(found),
        "calibration": calibrate.page(),
        "examples": examples_page(),
        "keys": keys_page(),
        "errors": errors_page(),
        "gpu": readme_part("gpu"),
        "slurm": readme_part("slurm"),
    }
    for name, text in generated.items():
        write(source / "generated" / f"{name}.md", text)
    write(source / "findings" / "notebooks.md", notebooks_page(source / "findings" / "notebooks"))
    shutil.copy(interactive.SCRIPT, source / "_static")
    figure_pages(figures, source)
    facts = [f for path in chapters if (f := facts_of(path))]
    write(source / "provenance.json", json.dumps({"html": provenance_footer(facts, source)}))


def write(path: Path, text: str) -> None:
    """Write a staged page, with its folder."""
    write_text_atomically(path, text.rstrip() + "\n")


def edition_page(demo: bool) -> str:
    """Say on the front page what the numbers of this edition are worth."""
    text = (
        "It was built from the **demo**: annotations, prompts and six tiny models made by this project, of which the right "
        "answer is\nknown. Its numbers check the instruments. None of them is a finding about language models or about people."
        if demo
        else "It was built from one run. Its decisions are about that run's models and data, and the chapters say which."
    )
    return f":::{{admonition}} What this edition shows\n:class: important\n{text}\n:::"


def examples_page() -> str:
    """Return some demo annotations and prompts, each kind folded until a reader opens it."""
    rows = 6
    annotations = pd.read_csv(resolve(DEMO_ANNOTATIONS), sep="\t", keep_default_na=False)
    columns = ["action", "rot-moral-foundations", "action-moral-judgment", "action-agree"]
    spread = annotations[annotations["action"] != ""].iloc[:: len(annotations) // rows][columns].head(rows)
    chosen = prompts.choose(prompts.read_prompts("data/demo/prompts.jsonl"), rows)[["dimension", "prompt"]]
    return "\n".join(
        f"<details><summary>Show {rows} {title}</summary>\n\n{markdown_table(frame, frame.to_numpy())}\n\n</details>\n"
        for title, frame in (("annotations of the demo", spread), ("prompts of the demo (Chinese)", chosen))
    )


def notebooks_page(folder: Path) -> str:
    """Return the page that lists the findings' notebooks by stage and model: their own titles are the same for every model."""
    entries = []
    for path in sorted(folder.glob("*.ipynb")):
        stage, _, model = path.stem.partition(".")
        name = stage.replace("_", " ") + (f" of {model}" if model else "")
        entries.append(f"{name} <{folder.name}/{path.stem}>")
    listed = "\n".join(entries)
    return f"# The notebooks of the findings, executed\n\n```{{toctree}}\n:maxdepth: 1\n{listed}\n```"


def readme_part(topic: str) -> str:
    """Return the paragraph of the README between ``<!-- topic -->`` and ``<!-- end topic -->``."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    part = re.search(rf"<!-- {topic} -->\n(.*?)<!-- end {topic} -->", text, re.DOTALL)
    if part is None:
        raise BookError(f"README.md has no part between <!-- {topic} --> and <!-- end {topic} -->")
    # In the README links start at the project's root, which the book does not hold.
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", part[1])


def figure_pages(figures: Path, source: Path) -> None:
    """Stage every figure with its caption, alternative text and table, and write the page that shows them."""
    folder = source / "pictures"
    folder.mkdir()
    parts = [
        "# Figures\n\nEvery figure of the run, with the table it was drawn from. A test draws each again and compares."
    ]
    for notes in sorted(figures.glob("*.json")):
        content = json.loads(notes.read_text(encoding="utf-8"))
        for suffix in (".svg", ".png", ".csv"):
            shutil.copy(notes.with_suffix(suffix), folder)
        name = notes.stem
        caption = " ".join([content["caption"], *content["notices"]])
        links = " · ".join(
            f'<a href="_static/pictures/{name}.{kind}" download>{kind.upper()}</a>' for kind in ("svg", "png", "csv")
        )
        parts.append(
            f"## {name.replace('_', ' ')}\n\n"
            f"```{{figure}} pictures/{name}.png\n:alt: {content['alt']}\n\n{caption}\n```\n\n{links}"
        )
    shutil.copytree(folder, source / "_static" / "pictures")
    write(source / "figures.md", "\n\n".join(parts))


def facts_of(notebook: Path) -> dict[str, str]:
    """Read the provenance table that an executed notebook ends with; empty where it has none."""
    for cell in reversed(nbformat.read(notebook, as_version=4).cells):
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown", "")
            if text.startswith("| provenance |"):
                return dict(re.findall(r"^\| ([^|]+?) \| ([^|]*?) \|$", text, re.MULTILINE))
    return {}


def provenance_footer(facts: list[dict[str, str]], source: Path) -> str:
    """Return the HTML that every page ends with: versions, hashes, seeds, machine class, wall time and the command."""
    versions = {
        "companion": importlib.metadata.version("moral-indifference-companion"),
        "Python": platform.python_version(),
    }
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    hashes = {p.relative_to(source).as_posix(): sha256_of_file(p) for p in source.rglob("*") if p.is_file()}
    seconds = sum(float(fact["wall time"].removesuffix(" s")) for fact in facts)
    rows = {
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "sources of this book": f"sha256 {sha256_of_json(hashes)[:16]}",
        "code of the stages": ", ".join(f"{fact['stage']} {fact['code'].split()[-1][:8]}" for fact in facts),
        "seeds": ", ".join(sorted({fact["seed"] for fact in facts})),
        "machine": "; ".join(sorted({fact["machine"] for fact in facts})),
        "wall time": f"{seconds:.0f} s for the {len(facts)} notebooks shown",
        "made again by": "make reproduce && make notebooks && make book",
    }
    return '<div class="provenance"><p>' + "<br>".join(f"{k}: {html.escape(v)}" for k, v in rows.items()) + "</p></div>"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the book from executed notebooks, without executing anything.")
    parser.add_argument(
        "profile", help="profiles/demo.yaml takes the committed notebooks, another one those of its run"
    )
    parser.add_argument("--output", type=Path, default=PROJECT / "build" / "book")
    arguments = parser.parse_args()
    run = load_profile(arguments.profile).run
    folder = PROJECT if run == "demo" else resolve(f"runs/{run}")
    print(f"the book: {short(build(folder / 'notebooks', folder / 'figures', arguments.output))}")


if __name__ == "__main__":
    with errors_said():
        main()
