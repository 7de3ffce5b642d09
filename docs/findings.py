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
from workflow.headline import FOLDER, Found, explained_by_length, headline

TEMPLATE = FOLDER / "page.md"
"""What the page says in words; ``{...}`` are generated from the tables."""

ALT = "Gain over words in margins, one row per kind of indifference, for each model and, where there is one, its untrained twin."

WORDS = (
    "*Words alone*: a linear model of an action's words, pairs of words and groups of letters. *Gain*: what a model's residual "
    "stream adds to it on held-out actions. *Untrained twin*: the same configuration with random weights. *Margin*: the largest "
    "gain that may still be called equivalent to words. Intervals are 95% ones."
)
"""The terms that the finding uses, before it uses them."""


def gains_and_twins(frame: pd.DataFrame) -> Figure:
    """Gain over words of each model at its best layer, in margins of its kind, with 95% intervals; the band is the margin."""
    figure, ax = plt.subplots(figsize=(7, 4.6))
    ax.axvspan(-1, 1, color="0.9", zorder=0)
    ax.axvline(0, color="0.4", linewidth=0.8)
    kinds, models = list(frame["kind"].unique()), list(frame["model"].unique())
    colours = dict(zip(frame["trained"].unique(), COLOURS_OF_LINES, strict=False))
    for offset, model in enumerate(models):
        own = frame[frame["model"] == model].set_index("kind").loc[kinds]
        trained = own["trained"].iloc[0]
        gain, low, high = (own[column] / own["margin"] for column in ("gain", "ci_low", "ci_high"))
        places = [index + 0.15 * (offset - (len(models) - 1) / 2) for index in range(len(kinds))]
        filled = None if model == trained else "white"
        ax.errorbar(
            gain, places, xerr=(gain - low, high - gain), fmt="o", color=colours[trained], mfc=filled, capsize=2, label=model
        )  # fmt: skip
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    ax.set_xlabel("gain over words, in margins of its kind")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def write() -> None:
    """Write the headline, its figure and the page, from ``findings/tables``."""
    found = committed()
    write_text_atomically(FOLDER / "headline.csv", headline(found).to_csv(index=False, float_format="%.6g"))
    drawn = [model for model in found.models if model not in found.profile.readings]
    of_models = {model: found.table("diagnosis", "decisions", model) for model in drawn}
    frame = pd.concat(of_models, names=["model"]).reset_index("model")
    frame["trained"] = frame["model"].replace(found.profile.twins)
    frame = frame[["model", "trained", "kind", "gain", "ci_low", "ci_high", "margin"]]
    plt.close(keep(FOLDER / "figures", "headline", gains_and_twins, frame, stage="diagnosis", notices=[], alt=ALT))
    write_text_atomically(FOLDER / "README.md", page(found))


def page(found: Found) -> str:
    """Return the page of the findings as Markdown: what was asked, done and found, and what it does not say."""
    recorded = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    rows = pd.read_parquet(FOLDER / "tables" / "rows.parquet")
    table = headline(found)
    said = {
        "front": front(found, table),
        "table": in_markdown(table),
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
        "prompts": found.profile.prompt_limit,
        "sae_model": found.sae_model,
        "arms": len(found.profile.arms),
        **{key: getattr(found.profile, key) for key in ("max_new_tokens", "second_judge_prompts", "gold_pairs")},
        "machine": recorded["stages"]["claims"]["machine"],
    }
    return TEMPLATE.read_text(encoding="utf-8").format(**said)


def committed() -> Found:
    """Return the committed findings."""
    return Found(load_profile(FOLDER / "profile.yaml"), FOLDER / "tables")


def front_page() -> str:
    """Return the finding as the project's README and its book open with it: figure, sentences, what they are worth."""
    found = committed()
    return (
        f"![{ALT}](findings/figures/headline.svg)\n\n{WORDS}\n\n{front(found, headline(found))}\n\n"
        f"Small models, a part of the annotations with `rot-agree` in place of `action-agree`, {found.profile.prompt_limit} "
        "prompts and small judges: what the paper's measures respond to, no decision on its 23 models. "
        "[The whole finding](findings/README.md)."
    )


def front(found: Found, table: pd.DataFrame) -> str:
    """Return the finding, whose headline is ``table``, in a few sentences, one per question, as the README opens with it."""
    decided = {model: found.table("diagnosis", "decisions", model).set_index("kind") for model in found.models}
    areas = []
    for model in found.trained:
        row = decided[model].loc["categorical"]
        areas.append(
            f"{model} {row['words']:.3f} by words alone, {row['careful']:.3f} with the model (gain {row['gain']:+.3f}, "
            f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f})"
        )
    by_kind = (f"{model}: {_by_answer(decided[model]['decision'])}" for model in found.trained)
    of_twins = pd.concat([decided[twin]["decision"] for twin in found.profile.twins])
    counts = ", ".join(f"*{decision}* {count}" for decision, count in of_twins.value_counts().items())
    cosines = (f"{model} {_cosine(found.table('diagnosis', 'cosine', model))}" for model in found.trained)
    lines = [
        f"**Signal beyond words**, by kind of indifference: {'. '.join(by_kind)}. Virtue against vice, area under the curve: "
        f"{'; '.join(areas)}.",
        f"**Untrained twins**, {len(of_twins)} decisions: {counts}. Each model beside its twin, paired: "
        f"{_by_model(table, 'More than its untrained twin')}.",
        f"**Larger models**, each beside the one before it, paired: {_by_model(table, 'Does it grow with size')}.",
        f"**Cosine of opposing prototypes by the published recipe**, middle layers (the paper: above 0.5): {'; '.join(cosines)}.",
        f"**Alignment** of {found.sae_model}. {in_words(against_best(found.table('alignment', 'alignment')))[0]}",
    ]
    return "\n".join(f"* {line}" for line in lines)


def _by_model(table: pd.DataFrame, question: str) -> str:
    """Say what the headline answers to a question that is asked of every kind, model by model."""
    asked = table[table["question"].str.startswith(question)]
    kinds = asked["question"].str.removeprefix(f"{question}: ").str.removesuffix("?")
    answers = asked.set_index(kinds)[["model", "answer"]]
    return ". ".join(
        f"{model}: {_by_answer(answers.loc[answers['model'] == model, 'answer'])}"
        for model in answers["model"].unique()
    )


def _by_answer(answers: pd.Series) -> str:
    """Name the kinds of each answer, kinds with the same answer together."""
    alike = answers.groupby(answers, sort=False).groups
    if len(alike) == 1:
        return f"*{answers.iloc[0]}* in all {len(answers)}"
    return "; ".join(f"*{answer}* in {', '.join(kinds)}" for answer, kinds in alike.items())


def _cosine(table: pd.DataFrame) -> str:
    """Say in a line what the published cosine of a model is made of."""
    mean = cosine.in_the_middle(table)
    return (
        f"{mean['published']:.2f}, where length alone gives {mean['length_only']:.2f} and {mean['length_removed']:.2f} is left "
        f"with length regressed out (*{cosine.decision(explained_by_length(table))}*)"
    )


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
        if directory == "vectors" or name in ("prompts", "gold", "rubrics", "judge", "second_judge", "model_source")
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
