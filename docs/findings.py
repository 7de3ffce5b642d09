"""The page of the findings, and what README and book open with: written from ``findings/tables`` and the words of ``page.md``.

``make readme`` writes them; a test computes every number again from the tables.
"""

import json
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from docs.markdown import markdown_table
from lib.alignment.evaluation import against_best, in_words
from lib.claims.ledger import NOT_RUN, SCIENTIFIC, summary
from lib.diagnosis import cosine, decisions
from lib.diagnosis.figures import COLOURS_OF_LINES
from lib.plotting import keep
from lib.run.files import write_text_atomically
from lib.run.profile import load_profile
from workflow.findings import FOLDER, Found, headline, of_profile

TEMPLATE = FOLDER / "page.md"
"""What the page says in words; ``{...}`` are generated from the tables."""

ALT = "Gain over words in margins, one row per kind of indifference, for the model and its untrained twin."


def gains_and_twin(frame: pd.DataFrame) -> Figure:
    """Gain over words of each model at its best layer, in margins of its kind, with 95% intervals; the band counts as none."""
    figure, ax = plt.subplots(figsize=(7, 3.2))
    ax.axvspan(-1, 1, color="0.9", zorder=0)
    ax.axvline(0, color="0.4", linewidth=0.8)
    kinds, models = list(frame["kind"].unique()), list(frame["model"].unique())
    for offset, (model, colour) in enumerate(zip(models, COLOURS_OF_LINES, strict=False)):
        own = frame[frame["model"] == model].set_index("kind").loc[kinds]
        gain, low, high = (own[column] / own["margin"] for column in ("gain", "ci_low", "ci_high"))
        places = [index + 0.18 * (offset - (len(models) - 1) / 2) for index in range(len(kinds))]
        ax.errorbar(gain, places, xerr=(gain - low, high - gain), fmt="o", color=colour, capsize=2, label=model)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    ax.set_xlabel("gain over words, in margins of its kind")
    ax.legend(loc="lower right", frameon=False)
    return figure


def write() -> None:
    """Write the headline, its figure and the page, from ``findings/tables``."""
    found = committed()
    write_text_atomically(FOLDER / "headline.csv", headline(found).to_csv(index=False, float_format="%.6g"))
    of_models = {model: found.table("diagnosis", "decisions", model) for model in found.models}
    frame = pd.concat(of_models, names=["model"]).reset_index("model")
    frame = frame[["model", "kind", "gain", "ci_low", "ci_high", "margin"]]
    plt.close(keep(FOLDER / "figures", "headline", gains_and_twin, frame, stage="diagnosis", notices=[], alt=ALT))
    write_text_atomically(FOLDER / "README.md", page(found))


def page(found: Found) -> str:
    """Return the page of the findings as Markdown: what was asked, done and found, and what it does not say."""
    recorded = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    rows = pd.read_parquet(FOLDER / "tables" / "rows.parquet")
    said = {
        "front": front(found),
        "table": in_markdown(headline(found)),
        "cosine": "\n".join(
            f"* *{model}*. {cosine.sentence(found.table('diagnosis', 'cosine', model))}" for model in found.models
        ),
        "decisions": "\n".join(
            f"* *{model}*, {decisions.sentence(row)}"
            for model in found.models
            for _, row in found.table("diagnosis", "decisions", model).iterrows()
        ),
        "alignment": "\n".join(f"* {line}" for line in in_words(against_best(found.table("alignment", "alignment")))),
        "ledger": _ledger(found.table("claims", "claims")),
        "inputs": in_markdown(_inputs(recorded["stages"])),
        "rows": f"{len(rows):,}",
        "diagnosed": f"{rows['diagnosed'].sum():,}",
        "commit": recorded["commit"][:12],
        "hours": f"{sum(stage['wall_seconds'] for stage in recorded['stages'].values()) / 3600:.1f}",
        "prompts": prompts_of(recorded, found),
        "machine": recorded["stages"]["claims"]["machine"],
    }
    return TEMPLATE.read_text(encoding="utf-8").format(**said)


def committed() -> Found:
    """Return the committed findings."""
    return of_profile(load_profile(FOLDER / "profile.yaml"), FOLDER / "tables")


def front_page() -> str:
    """Return the finding as the project's README and its book open with it: figure, sentences, what they are worth."""
    found = committed()
    prompts = prompts_of(json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8")), found)
    return (
        f"![{ALT}](findings/figures/headline.svg)\n\n{front(found)}\n\n"
        f"One small model, a part of the annotations with `rot-agree` in place of `action-agree`, {prompts} prompts and a small "
        "judge: what the paper's measures respond to, no decision on its 23 models. [The whole finding](findings/README.md)."
    )


def prompts_of(recorded: dict[str, Any], found: Found) -> int:
    """Return how many prompts were answered."""
    return int(recorded["stages"][f"steering/{found.sae_model}"]["identity"]["parameters"]["prompt_limit"])


def front(found: Found) -> str:
    """Return the finding in three sentences, as the README opens with it."""
    model, *twins = found.models
    lines = []
    for name in (model, *twins):
        by_kind = found.table("diagnosis", "decisions", name).set_index("kind")
        row = by_kind.loc["categorical"]
        decided = ", ".join(f"{kind} *{decision}*" for kind, decision in by_kind["decision"].items())
        lines.append(
            f"**{name}**: virtue against vice {row['words']:.3f} by words alone, {row['careful']:.3f} with the model (area under "
            f"the curve; gain {row['gain']:+.3f}, {row['ci_low']:+.3f} to {row['ci_high']:+.3f}); {decided}."
        )
    lines[0] += f" {_beyond_twin(found.table('comparison', 'twins'))}"
    lines.append(cosine.sentence(found.table("diagnosis", "cosine", model)))
    lines.append(" ".join(in_words(against_best(found.table("alignment", "alignment")))[:1]))
    return "\n".join(f"* {line}" for line in lines)


def _beyond_twin(twins: pd.DataFrame) -> str:
    """Say in which kinds a model has more than its untrained twin; differences are paired, replicate by replicate."""
    more = twins["ci_low"] > 0
    beyond, open_ = (", ".join(twins.loc[chosen, "kind"]) or "none" for chosen in (more, ~more))
    return f"More than its untrained twin, replicate by replicate: {beyond}; no difference to tell: {open_}."


def _ledger(claims: pd.DataFrame) -> str:
    measured = (claims["group"] == SCIENTIFIC) & (claims["decision"] != NOT_RUN)
    columns = ["paper", "statement", "here", "ours", "ci_low", "ci_high", "against"]
    return f"{summary(claims)}.\n\n{in_markdown(claims.loc[measured, columns])}"


def _inputs(stages: dict[str, Any]) -> pd.DataFrame:
    """List the files from outside the run with their hashes."""
    rows = [
        (directory, name, sha256[:16])
        for directory, recorded in stages.items()
        for name, sha256 in recorded["identity"]["inputs"].items()
        if directory == "vectors" or name in ("prompts", "gold", "rubrics", "model_source")
    ]
    rows += [
        (directory, name, str(value)[:64])
        for directory, recorded in stages.items()
        for name, value in recorded["identity"]["facts"].items()
        if directory.startswith("activations/")
    ]
    return pd.DataFrame(rows, columns=["stage", "input", "sha256 or fact"])


def in_markdown(frame: pd.DataFrame) -> str:
    """Return a table as Markdown, numbers with three digits."""

    def cell(value: Any) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return markdown_table(frame.columns, [map(cell, row) for row in frame.itertuples(index=False)])
