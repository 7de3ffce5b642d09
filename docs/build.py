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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from benchmarks import calibrate
from docs import findings, interactive
from docs.both_sides import both_sides
from docs.errors import errors_page
from docs.markdown import markdown_table
from lib.claims.ledger import DEMO_STANDING, NOT_RUN, SCIENTIFIC, summary
from lib.run.files import PROJECT, CompanionError, errors_said, resolve, sha256_of_file, short, write_text_atomically
from lib.run.profile import ModelSource, Profile, load_profile
from lib.run.provenance import sha256_of_json
from lib.run.stage import DEMO_ANNOTATIONS
from lib.run.table import STAGES, StageSpecification
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
}
"""What is staged beside ``docs/``: path below the project root -> path in the book."""


TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "null": "`null`",
}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
"""Words for JSON Schema's types, and for its bounds of a range."""


WORDED = {"equivalent": "no difference", "different": "a difference", "signal": "signal beyond words"}
"""Relation of a claim -> how it is written where its value says nothing."""


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
    table = pd.read_csv(ledger)
    write(source / "generated" / "ledger.md", ledger_page(table))
    write(source / "generated" / "edition.md", edition_page(is_demo(table)))
    found = findings.committed()
    write(source / "generated" / "finding.md", findings.front_page())
    write(source / "generated" / "both_sides.md", both_sides(found.table("claims", "claims"), table))
    write(source / "generated" / "interactive.md", interactive.page(found))
    shutil.copy(interactive.SCRIPT, source / "_static")
    write(source / "generated" / "calibration.md", calibrate.page())
    write(source / "generated" / "examples.md", examples_page())
    write(source / "generated" / "keys.md", keys_page())
    write(source / "generated" / "errors.md", errors_page())
    for topic in ("gpu", "slurm"):
        write(source / "generated" / f"{topic}.md", readme_part(topic))
    figure_pages(figures, source)
    facts = [f for path in chapters if (f := facts_of(path))]
    write(source / "provenance.json", json.dumps({"html": provenance_footer(facts, source)}))


def write(path: Path, text: str) -> None:
    """Write a staged page, with its folder."""
    write_text_atomically(path, text.rstrip() + "\n")


def ledger_page(table: pd.DataFrame) -> str:
    """Return the ledger as Markdown: measured claims paper by paper; what was not run folded below."""
    not_run = table[(table["group"] == SCIENTIFIC) & (table["decision"] == NOT_RUN)]
    return (
        f"{headline(table)}\n\n{claims_part(table)}\n\n"
        f"<details><summary>{len(not_run)} claims that this run could not speak to, and why</summary>\n\n"
        f"{reasons_table(not_run)}\n\n</details>\n"
    )


def claims_part(table: pd.DataFrame) -> str:
    """Return the measured scientific claims as Markdown, a table for each paper."""
    measured = table[(table["group"] == SCIENTIFIC) & (table["decision"] != NOT_RUN)]
    parts = measured.groupby(measured["paper"].astype(str), sort=False)
    return "\n\n".join(f"**arXiv {paper}**\n\n{claims_table(part)}" for paper, part in parts)


def headline(table: pd.DataFrame) -> str:
    """Return how many scientific claims met each decision, and what that is worth."""
    return f"{summary(table)}." + (" On the demo: a check of the instrument, not a finding." if is_demo(table) else "")


def is_demo(table: pd.DataFrame) -> bool:
    """Say whether a ledger is the demo's."""
    return bool((table["standing"] == DEMO_STANDING).any())


def edition_page(demo: bool) -> str:
    """Say on the front page what the numbers of this edition are worth."""
    text = (
        "It was built from the **demo**: annotations, prompts and six tiny models made by this project, of which the right "
        "answer is\nknown. Its numbers check the instruments. None of them is a finding about language models or about people."
        if demo
        else "It was built from one run. Its decisions are about that run's models and data, and the chapters say which."
    )
    return f":::{{admonition}} What this edition shows\n:class: important\n{text}\n:::"


def claims_table(measured: pd.DataFrame) -> str:
    """Return measured claims as a Markdown table: claim, paper, ours, control, ceiling, decision, and the same on our terms."""
    rows = []
    for row in measured.itertuples():
        ours = _number(row.ours) + (
            "" if pd.isna(row.ci_low) else f" ({_number(row.ci_low)} to {_number(row.ci_high)})"
        )
        control = "" if pd.isna(row.control_value) else f"{row.control_name}: {_number(row.control_value)}"
        outcomes = (f"*{row.decision}*", "" if row.here == row.decision else row.here)
        rows.append((row.statement, paper_value(row), ours, control, _number(row.ceiling), *outcomes))
    header = ("claim", "paper", "ours (interval)", "control", "ceiling", "decision", "on this run's own terms")
    return markdown_table(header, rows)


def reasons_table(claims: pd.DataFrame) -> str:
    """Return claims as a Markdown table with what was counted, if anything, the decision and its reason."""
    rows = [
        (
            row.statement,
            paper_value(row),
            _number(row.ours),
            f"*{row.decision}*",
            "" if pd.isna(row.reason) else row.reason,
        )
        for row in claims.itertuples()
    ]
    return markdown_table(("claim", "paper", "ours", "decision", "why"), rows)


def paper_value(row: "pd.Series[float]") -> str:
    """Write a claim's relation and value: "above 0.5", "no difference"."""
    if row.relation in WORDED:
        return WORDED[row.relation]
    words = {"equals": "", "near": "about "}.get(row.relation, f"{row.relation} ")
    return f"{words}{_number(row.value)}"


def _number(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def examples_page(rows: int = 6) -> str:
    """Return some demo annotations and prompts, each kind folded until a reader opens it."""
    annotations = pd.read_csv(resolve(DEMO_ANNOTATIONS), sep="\t", keep_default_na=False)
    columns = ["action", "rot-moral-foundations", "action-moral-judgment", "action-agree"]
    spread = annotations[annotations["action"] != ""].iloc[:: len(annotations) // rows][columns].head(rows)
    chosen = prompts.choose(prompts.read_prompts("data/demo/prompts.jsonl"), rows)[["dimension", "prompt"]]
    return "\n".join(
        f"<details><summary>Show {rows} {title}</summary>\n\n{markdown_table(frame, frame.to_numpy())}\n\n</details>\n"
        for title, frame in (("annotations of the demo", spread), ("prompts of the demo (Chinese)", chosen))
    )


def keys_page() -> str:
    """Return every key of a profile as Markdown tables, from the one statement of parameters.

    A table each for the run as a whole, for what several stages share, and for every stage.
    """
    fields = {key: _described(field) for key, field in Profile.model_json_schema()["properties"].items()}
    of_model = {key: _described(field) for key, field in ModelSource.model_json_schema()["properties"].items()}
    of_run = {key: fields.pop(key) for key in Profile.__annotations__}
    readers = {key: [stage for stage in STAGES.values() if key in stage.parameters.model_fields] for key in fields}
    header = ("key", "meaning", "value", "default")
    shared = [
        (f"`{key}`", *fields[key], ", ".join(f"[{stage.number:02d}]({_chapter(stage)})" for stage in stages))
        for key, stages in readers.items()
        if len(stages) > 1
    ]
    parts = ["## The run", markdown_table(header, _rows(of_run)), "Each of `models` has these keys:"]
    parts += [markdown_table(header, _rows(of_model)), "## Shared by stages"]
    parts += [markdown_table((*header, "read by"), shared)]
    for stage in STAGES.values():
        own = {key: fields[key] for key, stages in readers.items() if stages == [stage]}
        parts += [f"## {stage.notebook}", markdown_table(header, _rows(own)), f"[The chapter]({_chapter(stage)})."]
    return "\n\n".join(parts)


def _rows(fields: Mapping[str, tuple[str, str, str]]) -> list[tuple[str, ...]]:
    return [(f"`{key}`", *described) for key, described in fields.items()]


def _chapter(stage: StageSpecification) -> str:
    return f"chapters/{stage.notebook}.ipynb"


def _described(field: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return meaning, possible values and default of a field of a JSON Schema, as Markdown."""
    default = f"`{json.dumps(field['default'])}`" if "default" in field else "must be given"
    return field["description"], _values(field), default


def _values(field: Mapping[str, Any]) -> str:
    """Say which values a field of a JSON Schema takes: type or choices, and range."""
    if "anyOf" in field:
        return " or ".join(_values(choice) for choice in field["anyOf"])
    if "enum" in field:
        return "one of " + ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        entries = "mappings, see below" if "$ref" in field["items"] else _values(field["items"])
        return f"list: {entries}"
    ranges = [f"{words} {field[bound]:g}" for bound, words in BOUNDS.items() if bound in field]
    return " ".join([TYPES[field["type"]], *ranges])


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


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the book from executed notebooks, without executing anything.")
    parser.add_argument(
        "profile", help="profiles/demo.yaml takes the committed notebooks, another one those of its run"
    )
    parser.add_argument("--output", type=Path, default=PROJECT / "build" / "book")
    arguments = parser.parse_args()
    run = load_profile(arguments.profile).run
    folder = PROJECT if run == "demo" else resolve(f"runs/{run}")
    try:
        page = build(folder / "notebooks", folder / "figures", arguments.output)
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the book: {short(page)}")
    return 0


if __name__ == "__main__":
    with errors_said():
        sys.exit(main())
