"""What a run was, by its manifests, in the words of the claims' gates."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lib.claims.flames import CAREFUL, PUBLISHED
from lib.paper import TEMPLATE
from lib.paper import models as paper_models
from lib.vectors.social_chemistry import TSV_SHA256

OFFICIAL = "Social-Chemistry-101"
FLAMES = "Flames"
FLAMES_SHA256 = "f53400dcbb8795fb262993bda0615afdc77de1c4685e7c94d2df2a3cd47613fa"
"""Of ``Flames_1k_Chinese.jsonl`` as its authors publish it."""

AS_PUBLISHED = {"keep": "m", "agreement": "action-agree"}
"""Parameters of stage 01 under which the official file gives the published rows."""

AS_READ = {"template": TEMPLATE, "pooling": "mean"}
"""Parameters of stage 03 under which a model is read as published."""


def facts_of(
    identities: Mapping[str, Mapping[str, Any]],
    *,
    models: Sequence[str],
    diagnosed: Iterable[Mapping[str, Any]],
    verdicts: pd.DataFrame,
    summary: pd.DataFrame,
    demo: bool,
) -> dict[str, str]:
    """Return a text for every gate of :data:`lib.claims.ledger.GATES`; an empty one agrees with no gate.

    Args:
        identities: of the manifests, by stage: vectors, steering, and the diagnosis by the model's name. A model that was read
            under other words than the published ones is not the one that a claim is about.
        models: short names of the models of the run.
        diagnosed: parameters of stage 03 of every model that the claims of the diagnosis read; read in another way they are
            none of the paper's.
        verdicts: of the comparison, as notebook 08 writes them.
        summary: of notebook 08; its judge counts unless it is the offline rule, or was found unusable. Only what was answered
            *and* judged as published has the published protocol.
        demo: whether the run is on the demo's annotations; then its model is none that a claim could be about.
    """
    vectors, steering = identities["vectors"], identities["steering"]
    official = vectors["inputs"]["annotations"] == TSV_SHA256
    rows = "" if _chose(vectors["parameters"], AS_PUBLISHED) else ", other rows"
    hub = steering["facts"].get("hub", f"{steering['parameters']['model']} (local)")
    templates = {identity["parameters"].get("template", TEMPLATE) for identity in identities.values()}
    counted = len(set(models) & set(paper_models()["name"]))
    way = "" if all(_chose(parameters, AS_READ) for parameters in diagnosed) else ", read in another way"
    flames = steering["inputs"]["prompts"] == FLAMES_SHA256
    judged = verdicts[verdicts["arm"] == "aligned"]
    as_published = steering["parameters"]["protocol"] == PUBLISHED and PUBLISHED in set(verdicts["protocol"])
    return {
        "data": f"{OFFICIAL}{rows}" if official else "another file",
        "model": "" if demo else hub if templates == {TEMPLATE} else f"{hub}, another template",
        "models": f"{counted}{way}",
        "layers": ranges(judged["layer"].dropna().unique()),
        "prompts": f"{FLAMES if flames else 'others,'} {verdicts['id'].nunique()}",
        "judge": judge_of(summary),
        "protocol": PUBLISHED if as_published else CAREFUL,
    }


def _chose(parameters: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(parameters[name] == value for name, value in values.items())


def judge_of(summary: pd.DataFrame) -> str:
    """Return the name of the judge without its provider; empty for the offline rule and for a judge that is not usable."""
    usable = summary["standing"].iloc[0] != "plumbing" and summary["usable"].all()
    return str(summary["judge"].iloc[0]).rpartition("/")[2].lower() if usable else ""


def ranges(layers: Iterable[int]) -> str:
    """Write layers as ranges: ``0-2, 5``."""
    parts: list[list[int]] = []
    for layer in sorted(map(int, layers)):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
