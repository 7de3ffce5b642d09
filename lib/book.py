"""The companion as a book: executed notebooks, ledger, figures and reference as one static site.

``python -m lib.book`` (``make book``) stages the sources of ``docs/``, the executed notebooks and what is generated from the
run's tables into one folder and calls Sphinx there. Nothing is executed, so a book shows what was run; nothing is
fetched, so it is built and read without network.
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

from lib import files, flames, runs
from lib.claims import DEMO_STANDING, NOT_RUN, summary
from lib.profiles import load_profile
from lib.provenance import sha256_of_json

PACKAGES = ("Sphinx", "myst-nb", "sphinx-book-theme", "pydata-sphinx-theme")
COPIES = {
    "CITATION.cff": "CITATION.cff",
    "data/store_protocol.md": "store_protocol.md",
    "data/cards/social-chemistry-101.md": "cards/social-chemistry-101.md",
    "data/cards/flames.md": "cards/flames.md",
    "data/demo/README.md": "cards/demo.md",
    "figures/pipeline.svg": "pipeline.svg",
    "profiles/examples": "examples",
}
"""What is staged beside ``docs/``: path below the project root -> path in the book."""


class BookError(RuntimeError):
    """Something that the book shows is not there; the message says which command makes it."""


def build(notebooks: Path, figures: Path, output: Path) -> Path:
    """Build the book and return its front page.

    Args:
        notebooks: folder of executed notebooks.
        figures: folder of figures with their tables and notes; its ``verdicts.csv`` is the ledger.
        output: folder that will hold ``source`` (staged) and ``html``. Both are replaced.

    Raises:
        BookError: there is no ledger or no notebook, or Sphinx warned; warnings are errors.
    """
    source, site = output / "source", output / "html"
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    stage_sources(notebooks, figures, source)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", str(source), str(site)]
    if subprocess.run(command, cwd=runs.PROJECT).returncode:
        raise BookError("Sphinx warned, see above; the book is not complete")
    return site / "index.html"


def stage_sources(notebooks: Path, figures: Path, source: Path) -> None:
    """Write everything that Sphinx reads into ``source``."""
    ledger, chapters = figures / "verdicts.csv", sorted(notebooks.glob("*.ipynb"))
    if not ledger.exists() or not chapters:
        missing = "ledger (verdicts.csv)" if chapters else "executed notebook"
        raise BookError(f"no {missing} in {runs.short(figures if chapters else notebooks)}; run `make reproduce` first")
    shutil.copytree(runs.PROJECT / "docs", source)
    for origin, place in COPIES.items():
        path = runs.PROJECT / origin
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, source / place) if path.is_dir() else shutil.copy(path, source / place)
    (source / "chapters").mkdir()
    for path in chapters:
        shutil.copy(path, source / "chapters" / path.name)
    table = pd.read_csv(ledger)
    write(source / "generated" / "ledger.md", ledger_page(table))
    write(source / "generated" / "edition.md", edition_page(is_demo(table)))
    write(source / "generated" / "examples.md", examples_page())
    for topic in ("gpu", "slurm"):
        write(source / "generated" / f"{topic}.md", readme_part(topic))
    figure_pages(figures, source)
    api_pages(source / "api")
    facts = [f for path in chapters if (f := facts_of(path))]
    write(source / "provenance.json", json.dumps({"html": provenance_footer(facts, source)}))


def write(path: Path, text: str) -> None:
    """Write a staged page, with its folder."""
    files.write_text_atomically(path, text.rstrip() + "\n")


def ledger_page(table: pd.DataFrame) -> str:
    """Return the ledger as Markdown: what was measured as a table, what was not folded below it."""
    measured, not_run = table[table["verdict"] != NOT_RUN], table[table["verdict"] == NOT_RUN]
    heading = f"**{summary(table)}.**" + (
        " On the demo: a check of the instrument, not a finding." if is_demo(table) else ""
    )
    return (
        f"{heading}\n\n{claims_table(measured)}\n\n"
        f"<details><summary>{len(not_run)} claims that this run could not speak to, and why</summary>\n\n"
        f"{not_run_table(not_run)}\n\n</details>\n"
    )


def is_demo(table: pd.DataFrame) -> bool:
    """Say whether a ledger is the demo's."""
    return bool((table["standing"] == DEMO_STANDING).any())


def edition_page(demo: bool) -> str:
    """Say on the front page what the numbers of this edition are worth."""
    text = (
        "It was built from the **demo**: annotations, prompts and six tiny models made by this project, of which the right "
        "answer is\nknown. Its numbers check the instruments. None of them is a finding about language models or about people."
        if demo
        else "It was built from one run. Its verdicts are about that run's models and data, and the chapters say which."
    )
    return f":::{{admonition}} What this edition shows\n:class: important\n{text}\n:::"


def claims_table(measured: pd.DataFrame) -> str:
    """Return the measured claims as a Markdown table: claim, paper, ours, control, ceiling, verdict."""
    rows = ["| claim | paper | ours (interval) | control | ceiling | verdict |", "|---|---|---|---|---|---|"]
    for row in measured.itertuples():
        ours = _number(row.ours) + (
            "" if pd.isna(row.ci_low) else f" ({_number(row.ci_low)} to {_number(row.ci_high)})"
        )
        control = "" if pd.isna(row.control_value) else f"{row.control}: {_number(row.control_value)}"
        cells = (_cell(row.statement), paper_value(row), ours, _cell(control), _number(row.ceiling), f"*{row.verdict}*")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def not_run_table(not_run: pd.DataFrame) -> str:
    """Return the claims without a measurement as a Markdown table, with the reason."""
    rows = ["| claim | paper | why it was not run |", "|---|---|---|"]
    rows += [f"| {_cell(row.statement)} | {paper_value(row)} | {_cell(row.reason)} |" for row in not_run.itertuples()]
    return "\n".join(rows)


def paper_value(row: "pd.Series[float]") -> str:
    """Write a claim's relation and value: "above 0.5", "no difference"."""
    if row.relation == "equivalent":
        return "no difference"
    words = {"equals": "", "near": "about "}.get(row.relation, f"{row.relation} ")
    return f"{words}{_number(row.value)}"


def _number(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|")


def examples_page(rows: int = 6) -> str:
    """Return some demo annotations and prompts, each kind folded until a reader opens it."""
    annotations = pd.read_csv(runs.resolve(runs.DEMO_ANNOTATIONS), sep="\t", keep_default_na=False)
    columns = ["action", "rot-moral-foundations", "action-moral-judgment", "action-agree"]
    spread = annotations[annotations["action"] != ""].iloc[:: len(annotations) // rows][columns].head(rows)
    prompts = flames.choose(flames.read_prompts("data/demo/prompts.jsonl"), rows)[["dimension", "prompt"]]
    parts = []
    for title, frame in (("annotations of the demo", spread), ("prompts of the demo (Chinese)", prompts)):
        lines = [" | ".join(frame.columns), "|".join("---" for _ in frame.columns)]
        lines += [" | ".join(_cell(value) for value in row) for row in frame.itertuples(index=False)]
        table = "\n".join(f"| {line} |" for line in lines)
        parts.append(f"<details><summary>Show {rows} {title}</summary>\n\n{table}\n\n</details>\n")
    return "\n".join(parts)


def readme_part(topic: str) -> str:
    """Return the paragraph of the README between ``<!-- topic -->`` and ``<!-- end topic -->``."""
    text = (runs.PROJECT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {topic} -->\n(.*?)<!-- end {topic} -->", text, re.DOTALL)
    if not found:
        raise BookError(f"README.md has no part between <!-- {topic} --> and <!-- end {topic} -->")
    # In the README links start at the project's root, which the book does not hold.
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", found[1])


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
            f'<a href="_downloads/{name}{suffix}" download>{suffix[1:].upper()}</a>'
            for suffix in (".svg", ".png", ".csv")
        )
        parts.append(
            f"## {name.replace('_', ' ')}\n\n"
            f"```{{figure}} pictures/{name}.png\n:alt: {content['alt']}\n\n{caption}\n```\n\n"
            + links.replace(f"_downloads/{name}", f"_static/pictures/{name}")
        )
    shutil.copytree(folder, source / "_static" / "pictures")
    write(source / "figures.md", "\n\n".join(parts))


def api_pages(folder: Path) -> None:
    """Write one page a module of ``lib``, for autodoc, and their index."""
    modules = []
    for path in sorted((runs.PROJECT / "lib").rglob("*.py")):
        parts = path.relative_to(runs.PROJECT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "lib":
            modules.append(name)
            write(folder / f"{name}.md", f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n")
    listing = "\n".join(modules)
    text = "# API reference\n\nFrom the docstrings: what each function takes and gives, with shapes, units and errors."
    write(folder / "index.md", f"{text}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n")


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
    hashes = {p.relative_to(source).as_posix(): runs.sha256_of_file(p) for p in source.rglob("*") if p.is_file()}
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


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the book from executed notebooks, without executing anything.")
    parser.add_argument(
        "profile", help="profiles/demo.yaml takes the committed notebooks, another one those of its run"
    )
    parser.add_argument("--output", type=Path, default=runs.PROJECT / "build" / "book")
    arguments = parser.parse_args()
    run = load_profile(arguments.profile).run
    folder = runs.PROJECT if run == "demo" else runs.resolve(f"runs/{run}")
    try:
        page = build(folder / "notebooks", folder / "figures", arguments.output)
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the book: {runs.short(page)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
