"""Write the demo annotations: own-written actions in the exact Social-Chemistry-101 v1.0 schema.

The demo must run without the real dataset, yet meet every cleaning rule and every level of the moral vectors.
It must also have a known answer: virtue and vice share their verbs, objects and people (see `scenes.toml`), so that
a bag of words hardly separates them while a model that learned the labels does. Plain Python's seeded generator only:
the same bytes on every machine.

    python data/demo/build_annotations.py [--output DIR]
"""

import argparse
import csv
import io
import random
import string
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEED = 101

# The official column order of social-chem-101.v1.0.tsv.
# fmt: off
COLUMNS = (
    "area", "m", "split", "rot-agree", "rot-categorization", "rot-moral-foundations", "rot-char-targeting", "rot-bad",
    "rot-judgment", "action", "action-agency", "action-moral-judgment", "action-agree", "action-legal",
    "action-pressure", "action-char-involved", "action-hypothetical", "situation", "situation-short-id", "rot",
    "rot-id", "rot-worker-id", "breakdown-worker-id", "n-characters", "characters",
)
# fmt: on

FRESH_PER_SCENE = 84  # distinct actions a scene, one annotator each
REPEATED = 420  # further annotations of those actions by other annotators
FIVE_FOLD = 70  # actions judged by five annotators each (m = 5)
FIFTY_FOLD = 3  # actions judged by fifty annotators each (m = 50)
SPOILED = 30  # rows of each kind that one cleaning rule removes

SITUATIONS = {
    "amitheasshole": "asking whether I was wrong about {action}",
    "confessions": "looking back on {action}",
    "dearabby": "A reader writes about {action}.",
    "rocstories": "The day began with {action}.",
}
VERDICTS = {
    -2: ("It's terrible", "It's very wrong", "It's never right"),
    -1: ("It's bad", "It's not okay", "It's a bit unkind"),
    0: ("It's okay", "It's fine", "It's normal"),
    1: ("It's good", "It's nice", "It's decent"),
    2: ("It's wonderful", "It's very good", "It's admirable"),
}
# How many of a hundred annotators choose "agreement" 0, 1, 2, 3, 4, by the size of their own judgment: mostly 3, and
# the more extreme the judgment, the more universal it is held to be.
AGREEMENT = {0: (3, 7, 25, 55, 10), 1: (2, 7, 19, 58, 14), 2: (1, 3, 9, 46, 41)}

BREAKDOWN = ("action", "rot-moral-foundations", "action-moral-judgment", "action-agree")  # must not be null

Row = dict[str, str]


@dataclass(frozen=True)
class Deed:
    """One action and what annotators say of it on average: `leaning` is signed, in units of the judgment scale."""

    action: str
    foundation: str
    also: str | None
    leaning: float
    people: tuple[str, ...]


def compose(scene: dict[str, Any], fillers: dict[str, list[str]], draw: random.Random) -> Deed:
    """One deed of a scene: verb x object x people x circumstances; its leaning follows the table in scenes.toml."""
    verb_side = draw.choice(("keep", "flip"))
    object_side = draw.choices(("good", "bad", "plain"), (4, 4, 1))[0]
    verb, thing = draw.choice(scene[verb_side]), draw.choice(scene[object_side])
    strength = 1.75 if thing.endswith("!") else 1.05
    template = f"{verb} {thing.rstrip('!')}"
    if draw.random() < 0.25:
        template = f"{draw.choice(fillers['manner'])} {template}"
    circumstance = draw.choices((None, "time", "much", "little"), (4, 4, 1, 1))[0]
    if circumstance:
        template += f" {draw.choice(fillers[circumstance])}"
    strength += {"much": 0.35, "little": -0.45}.get(circumstance or "", 0.0)
    sign = {"good": 1, "bad": -1, "plain": 0}[object_side] * (1 if verb_side == "keep" else -1)
    if scene.get("feigned") and verb_side == "flip" and object_side == "bad":
        sign = 0
    slots = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    filled = {name: draw.choice(fillers[name]) for name in slots}
    return Deed(
        template.format(**filled), scene["foundation"], scene.get("also"), sign * strength, tuple(filled.values())
    )


def judge(deed: Deed, worker: int, draw: random.Random) -> Row:
    """The columns that one annotator fills in for a deed; annotators differ by chance, rarely in direction."""
    opinion = deed.leaning * (-1 if draw.random() < 0.015 else 1) + draw.gauss(0, 0.3)
    judgment = max(-2, min(2, round(opinion)))
    if deed.leaning == 0 and draw.random() < 0.9:
        judgment = 0
    foundations = [deed.foundation]
    if deed.also and draw.random() < 0.3:
        foundations.append(deed.also)
    return {
        "rot-agree": str(draw.choices(range(5), AGREEMENT[abs(judgment)])[0]),
        "rot-categorization": draw.choice(
            ("morality-ethics", "social-norms", "morality-ethics|social-norms", "advice")
        ),
        "rot-moral-foundations": "|".join(foundations),
        "rot-char-targeting": "char-0",
        "rot-bad": "0",
        "rot-judgment": draw.choice(VERDICTS[judgment]),
        "action": deed.action,
        "action-agency": "agency",
        "action-moral-judgment": str(judgment),
        "action-agree": str(draw.choices(range(5), AGREEMENT[abs(judgment)])[0]),
        "action-legal": "tolerated" if judgment == -2 and draw.random() < 0.3 else "legal",
        "action-pressure": str(max(-2, min(2, judgment + draw.choice((-1, 0, 0, 1))))),
        "action-char-involved": "char-0",
        "action-hypothetical": draw.choice(("explicit", "probable", "hypothetical")),
        "breakdown-worker-id": str(worker),
    }


def source_columns(deed: Deed, number: int, verdict: str, draw: random.Random) -> Row:
    """The columns that belong to the rule of thumb and its situation, the same for all its annotators."""
    area = draw.choice(tuple(SITUATIONS))
    situation_id = f"demo/{area}/{number:05d}"
    return {
        "area": area,
        "situation": SITUATIONS[area].format(action=deed.action),
        "situation-short-id": situation_id,
        "rot": f"{verdict} {deed.action}.",
        "rot-id": f"rot/{situation_id}/1",
        "rot-worker-id": str(draw.randrange(40)),
        "n-characters": str(1 + len(deed.people)),
        "characters": "|".join(("narrator", *deed.people)),
    }


def annotate(deed: Deed, number: int, m: int, split: str, draw: random.Random) -> list[Row]:
    """`m` annotations of one rule of thumb by `m` different annotators."""
    judged = [judge(deed, worker, draw) for worker in draw.sample(range(60), m)]
    source = source_columns(deed, number, judged[0]["rot-judgment"], draw)
    return [source | {"m": str(m), "split": split} | row for row in judged]


def build() -> list[Row]:
    """All rows, in file order: one per annotator."""
    draw = random.Random(SEED)
    written = tomllib.loads((HERE / "scenes.toml").read_text(encoding="utf-8"))
    scenes, fillers = written["scene"], written["fillers"]

    deeds: dict[str, Deed] = {}

    def fresh(scene: dict[str, Any]) -> Deed:
        deed = compose(scene, fillers, draw)
        while deed.action in deeds:
            deed = compose(scene, fillers, draw)
        deeds[deed.action] = deed
        return deed

    once = [fresh(scene) for scene in scenes for _ in range(FRESH_PER_SCENE)]
    once += draw.sample(once, REPEATED)
    five = [fresh(scenes[i % len(scenes)]) for i in range(FIVE_FOLD)]
    fifty = [fresh(scenes[i * 7]) for i in range(FIFTY_FOLD)]

    groups = [(deed, 1, draw.choices(("train", "dev", "test"), (8, 1, 1))[0]) for deed in once]
    groups += [(deed, 5, ("dev-extra", "test-extra")[i % 2]) for i, deed in enumerate(five)]
    groups += [(deed, 50, "analysis") for deed in fifty]
    draw.shuffle(groups)
    rows = [row for number, (deed, m, split) in enumerate(groups) for row in annotate(deed, number, m, split, draw)]
    return rows + spoiled_rows(once, len(groups), draw)


def spoiled_rows(deeds: list[Deed], start: int, draw: random.Random) -> list[Row]:
    """Rows that exactly one cleaning rule removes (a null, or rot-bad), and rot-bad rows left blank altogether."""
    faults: list[Row] = [
        {"action": ""},
        {"rot-moral-foundations": ""},
        {"action-moral-judgment": ""},
        {"action-agree": ""},
        {"rot-bad": "1"},
        {"rot-bad": "1"} | dict.fromkeys(BREAKDOWN, ""),
    ]
    chosen = draw.sample(deeds, SPOILED * len(faults))
    return [annotate(deed, start + i, 1, "train", draw)[0] | faults[i % len(faults)] for i, deed in enumerate(chosen)]


def text() -> str:
    """The TSV file: header and rows, tab-separated, nulls as empty strings, "\\n" line ends."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    writer.writeheader()
    writer.writerows(build())
    return out.getvalue()


def main() -> None:
    """Write annotations.tsv into --output (default: beside this script)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE)
    directory = parser.parse_args().output
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "annotations.tsv").write_bytes(text().encode("utf-8"))


if __name__ == "__main__":
    main()
