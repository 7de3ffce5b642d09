"""What the name of a judge says. Nothing here loads Inspect, which takes seconds: a profile is read many times."""

import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from lib.run.files import resolve
from lib.run.parameters import JudgingKeys
from lib.run.validation import nearest

OFFLINE = r"offline/rule(?:-([1-9]\d*))?"
"""Names of the offline judge beside ``offline``; the number says how many characters of an answer it reads."""


def local_source(judge: str) -> str | None:
    """Return the directory, GGUF file or hub id of a judge on this machine, ``hf/...`` or a GGUF file; None of any other."""
    return judge.removeprefix("hf/") if judge.startswith("hf/") or judge.endswith(".gguf") else None


def weights_of(parameters: JudgingKeys) -> dict[str, Path]:
    """Return what of the judges and of the scorer lies on this machine, by the parameters' names: it decides the results too."""
    named = {"judge": local_source(parameters.judge), "second_judge": local_source(parameters.second_judge or "")}
    named |= {"flames_scorer": parameters.flames_scorer}
    return {name: resolve(source) for name, source in named.items() if source and resolve(source).exists()}


def misnamed(judge: str) -> str | None:
    """Say why nothing can be called by this name; None of a name that may be right."""
    provider, slash, _ = judge.partition("/")
    if judge == "offline" or local_source(judge) is not None or re.fullmatch(OFFLINE, judge):
        return None
    if not slash:
        said = f"should be offline or a model as Inspect names it, provider/model, got {judge!r}."
        return said + nearest(judge, ["offline"])
    if provider == "offline":
        return f"should be offline, or offline/rule-N for a rule that reads N characters, got {judge!r}"
    known = providers()
    if provider in known or _extended():
        return None
    said = f"{provider!r} is no provider of Inspect, got {judge!r}."
    return f"{said}{nearest(provider, known)} Known: {', '.join(known)}."


def providers() -> list[str]:
    """Return the providers of models that Inspect brings, as its source registers them."""
    package = Path(find_spec("inspect_ai").origin).parent
    source = (package / "model" / "_providers" / "providers.py").read_text(encoding="utf-8")
    return sorted(re.findall(r'@modelapi\(name="([^"]+)"\)', source))


def _extended() -> bool:
    """Say whether another package than this project extends Inspect, perhaps by a provider."""
    return any(not entry.value.startswith("lib.judging") for entry in entry_points(group="inspect_ai"))
