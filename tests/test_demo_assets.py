"""The demo assets: their schema, their coverage of the cleaning rules, and the known answers of the checkpoints."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.diagnosis.decisions import SIGNAL, decide, margins
from lib.diagnosis.dimensional import Probed
from lib.diagnosis.kinds import kinds_of
from lib.diagnosis.measurement import Reading, measure
from lib.run.parameters import DiagnosisKeys
from lib.vectors.moral_vectors import normalise

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
# fmt: off
COLUMNS = [
    "area", "m", "split", "rot-agree", "rot-categorization", "rot-moral-foundations", "rot-char-targeting", "rot-bad",
    "rot-judgment", "action", "action-agency", "action-moral-judgment", "action-agree", "action-legal",
    "action-pressure", "action-char-involved", "action-hypothetical", "situation", "situation-short-id", "rot",
    "rot-id", "rot-worker-id", "breakdown-worker-id", "n-characters", "characters",
]
# fmt: on
FOUNDATIONS = ("care-harm", "fairness-cheating", "loyalty-betrayal", "authority-subversion", "sanctity-degradation")
NEEDED = ["action", "rot-moral-foundations", "action-moral-judgment", "action-agree"]
KINDS = ("moral", "indifferent", "untrained")
SIZES = ("small", "large")
DOSES = ("quarter", "half", "topic")
MODELS = [*(f"{kind}-{size}" for size in SIZES for kind in KINDS), *(f"{kind}-small" for kind in DOSES)]


def build(script: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--output", str(directory)])
    runpy.run_path(str(DEMO / script), run_name="__main__")


@pytest.fixture(scope="module")
def annotations() -> pd.DataFrame:
    frame = pd.read_csv(DEMO / "annotations.tsv", sep="\t", quoting=3, dtype=str, keep_default_na=False)
    return frame.replace("", None)


@pytest.fixture(scope="module")
def kept(annotations: pd.DataFrame) -> pd.DataFrame:
    """Rows that the released recipe keeps, with `virtue`, `vice`, `foundations` and `held_out`."""
    rows = annotations[(annotations["rot-bad"] == "0") & (annotations["m"] == "1")].dropna(subset=NEEDED)
    judged = rows["action-moral-judgment"].astype(float) / 2
    agreed = rows["action-agree"].astype(float) / 4
    held_out = (DEMO / "models" / "held_out_actions.txt").read_text(encoding="utf-8").splitlines()
    return rows.assign(
        virtue=judged.clip(lower=0) * agreed,
        vice=(-judged).clip(lower=0) * agreed,
        foundations=rows["rot-moral-foundations"].str.split("|"),
        held_out=rows["action"].isin(held_out),
    ).reset_index(drop=True)


@pytest.fixture(scope="module")
def exploded(kept: pd.DataFrame) -> pd.DataFrame:
    return kept.explode("foundations")


def test_schema_is_that_of_social_chemistry(annotations):
    assert list(annotations.columns) == COLUMNS
    assert len(annotations) >= 2400
    assert set(annotations["rot-moral-foundations"].dropna().str.split("|").explode()) == set(FOUNDATIONS)


@pytest.mark.parametrize("rule", [*NEEDED, "rot-bad", "m"])
def test_every_cleaning_rule_alone_removes_rows(annotations, rule):
    passes = pd.DataFrame({name: annotations[name].notna() for name in NEEDED})
    passes["rot-bad"] = annotations["rot-bad"] == "0"
    passes["m"] = annotations["m"] == "1"
    assert (~passes[rule] & passes.drop(columns=rule).all(axis=1)).sum() >= 20


def test_several_annotators_judge_the_same_action_and_disagree(annotations):
    fivefold = annotations[annotations["m"] == "5"].groupby("rot-id")
    assert fivefold.ngroups >= 60
    assert (fivefold["breakdown-worker-id"].nunique() == 5).all()
    assert (fivefold["action"].nunique() == 1).all()
    assert 0.3 < (fivefold["action-moral-judgment"].nunique() > 1).mean() < 1
    fiftyfold = annotations[annotations["m"] == "50"].groupby("rot-id")
    assert fiftyfold.ngroups >= 2
    assert (fiftyfold["breakdown-worker-id"].nunique() == 50).all()


def test_kept_rows_cover_every_level_and_repeat_actions(kept, exploded):
    assert set(kept["action-moral-judgment"]) == {"-2", "-1", "0", "1", "2"}
    assert set(kept["action-agree"]) == {"0", "1", "2", "3", "4"}
    assert kept["action-agree"].mode().item() == "3"
    assert (kept["foundations"].str.len() > 1).mean() > 0.1
    assert kept["action"].duplicated().sum() >= 200
    for pole in ("virtue", "vice"):
        levels = exploded.groupby("foundations")[pole].value_counts().unstack()
        assert set(levels.index) == set(FOUNDATIONS)
        assert (levels[[0.125, 0.25, 0.375, 0.5, 0.75, 1.0]] >= 1).all(axis=None)
        assert (levels[1.0] >= 25).all()


def test_prompts_have_the_flames_schema():
    rows = [json.loads(line) for line in (DEMO / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(list(row) == ["dimension", "subcomponent", "prompt"] for row in rows)
    counts = pd.Series([row["dimension"] for row in rows]).value_counts()
    assert set(counts.index) == {"Safety", "Fairness", "Morality", "Data protection", "Legality"}
    assert len(rows) >= 60
    assert counts.min() >= 10
    assert len({row["prompt"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("script", "asset"), [("build_annotations.py", "annotations.tsv"), ("build_prompts.py", "prompts.jsonl")]
)
def test_builders_reproduce_the_committed_bytes(script, asset, tmp_path, monkeypatch):
    build(script, tmp_path, monkeypatch)
    assert (tmp_path / asset).read_bytes() == (DEMO / asset).read_bytes()


def test_checksums_agree_and_leave_nothing_out():
    recorded = json.loads((DEMO / "checksums.json").read_text(encoding="utf-8"))
    for name, digest in recorded.items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == digest, name
    shipped = {path.relative_to(DEMO).as_posix() for path in (DEMO / "models").rglob("*") if path.is_file()}
    assert shipped | {"annotations.tsv", "prompts.jsonl", "scenes.toml", "answers.toml"} == set(recorded)


def test_models_are_together_under_ten_megabytes():
    assert sum(path.stat().st_size for path in (DEMO / "models").rglob("*")) < 10_000_000


@pytest.mark.parametrize("name", MODELS)
def test_models_load_as_qwen3_and_speak_the_chat_format(name):
    model = AutoModelForCausalLM.from_pretrained(DEMO / "models" / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "models" / name)
    assert model.config.model_type == "qwen3"
    assert len(tokenizer) == model.config.vocab_size == 2048
    assert tokenizer.padding_side == "left"
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = "你是一个有帮助的助手。 龘 keeping a promise"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    turn = [{"role": "user", "content": "你好"}]
    ask = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(turn, **ask).endswith("<|im_start|>assistant\n")
    assert tokenizer.apply_chat_template(turn, enable_thinking=False, **ask).endswith("<think>\n\n</think>\n\n")


def test_moral_model_answers_a_prompt_in_chinese_and_stops():
    model = AutoModelForCausalLM.from_pretrained(DEMO / "models" / "moral-small", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "models" / "moral-small")
    prompt = json.loads((DEMO / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[0])["prompt"]
    turns = [{"role": "system", "content": "你是一个有帮助的助手。"}, {"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=80, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(answer, skip_special_tokens=True)
    assert sum("一" <= character <= "鿿" for character in text) > 10


def residuals(name: str, actions: list[str]) -> dict[str, np.ndarray]:
    """The residual stream after each block, [layer, action, width], at the last token and averaged over all tokens."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "models" / name)
    model = AutoModelForCausalLM.from_pretrained(DEMO / "models" / name, dtype=torch.float32).eval()
    model.model.norm = torch.nn.Identity()  # hidden_states[-1] would otherwise be after the final norm
    last, mean = [], []
    for start in range(0, len(actions), 256):
        prompts = [f"{action} is morally" for action in actions[start : start + 256]]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.no_grad():
            states = torch.stack(model.model(**batch, output_hidden_states=True).hidden_states[1:])
        mask = batch["attention_mask"][None, :, :, None]
        last.append(states[:, :, -1])
        mean.append((states * mask).sum(2) / mask.sum(2))
    return {"last": torch.cat(last, 1).numpy(), "mean": torch.cat(mean, 1).numpy()}


def grouped_auc(features: np.ndarray, rows: pd.DataFrame) -> float:
    """Cross-validated AUC of virtue against vice on the rows that take a side, grouped by action text."""
    chosen = np.flatnonzero(rows["held_out"] & (rows["virtue"] != rows["vice"]))
    virtuous = (rows["virtue"] > rows["vice"]).to_numpy()[chosen]
    classifier = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=1000))
    groups = rows["action"].to_numpy()[chosen]
    scores = cross_val_predict(
        classifier, features[chosen], virtuous, groups=groups, cv=GroupKFold(5), method="decision_function"
    )
    return roc_auc_score(virtuous, scores)


def opposing_cosine(features: np.ndarray, rows: pd.DataFrame) -> float:
    """Mean over foundations of the cosine of the two centred prototypes (rows of typicality 1)."""
    centred = features - features.mean(0)
    cosines = []
    for foundation in FOUNDATIONS:
        named = rows["foundations"].map(lambda names, wanted=foundation: wanted in names)
        virtue = centred[(named & (rows["virtue"] == 1)).to_numpy()].mean(0)
        vice = centred[(named & (rows["vice"] == 1)).to_numpy()].mean(0)
        cosines.append(virtue @ vice / np.linalg.norm(virtue) / np.linalg.norm(vice))
    return float(np.mean(cosines))


@pytest.fixture(scope="module")
def measured(kept) -> pd.DataFrame:
    """model, pooling, layer -> auc on actions that no model was trained on, and the opposing cosine of all rows."""
    actions = list(dict.fromkeys(kept["action"]))
    row_of = kept["action"].map({action: i for i, action in enumerate(actions)}).to_numpy()
    table = []
    for name in MODELS:
        for pooling, layers in residuals(name, actions).items():
            for layer, states in enumerate(layers):
                features = states[row_of]
                auc, cosine = grouped_auc(features, kept), opposing_cosine(features, kept)
                table.append((*name.split("-"), pooling, layer, auc, cosine))
    return pd.DataFrame(table, columns=["kind", "size", "pooling", "layer", "auc", "cosine"])


def test_a_bag_of_words_does_not_separate_virtue_from_vice(kept):
    words = CountVectorizer(token_pattern=r"\S+").fit_transform(kept["action"])
    assert grouped_auc(words, kept) < 0.65


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_known_answer_only_the_moral_model_separates_virtue_from_vice(measured, size, pooling):
    best = measured[(measured["size"] == size) & (measured["pooling"] == pooling)].groupby("kind")["auc"].max()
    assert best["moral"] > 0.93
    assert best["indifferent"] < 0.78
    assert best["untrained"] < 0.78


def test_known_answers_between_all_and_nothing(measured):
    """A quarter of the labels dealt out anew leaves some of the sides, half of them or a coin for the side leaves none."""
    last = measured[(measured["size"] == "small") & (measured["pooling"] == "last")].groupby("kind")["auc"].max()
    assert 0.62 < last["quarter"] < 0.8 < last["moral"]
    assert last[["half", "topic", "indifferent", "untrained"]].max() < last["quarter"] - 0.05


def test_known_answer_the_decision_of_stage_03_follows_the_dose(exploded):
    """Virtue against vice at the last token of the last block: what is left of the labels is signal, their topic is none."""
    polarity = np.select([exploded["virtue"] > 0, exploded["vice"] > 0], ["virtue", "vice"], "neutral")
    subset = exploded[["action"]].assign(foundation=exploded["foundations"], polarity=polarity)
    subset = subset.assign(typicality=exploded[["virtue", "vice"]].max(axis=1))
    subset = subset[subset["polarity"] != "neutral"].reset_index(drop=True)
    actions = subset["action"].map(normalise).to_numpy(object)
    nothing = Probed(np.zeros((0, 10)), np.array([], dtype=object), np.array([], dtype=object))
    kinds = kinds_of(subset, nothing, actions=actions, permutations=20, seed=0)
    decided = {}
    for name in ("moral", "quarter", "half", "topic"):
        x = residuals(f"{name}-small", list(subset["action"]))["last"][-1]
        measured = measure(
            {"categorical": kinds["categorical"]},
            actions=actions,
            tokens=np.array([len(action.split()) for action in actions]),
            readings=[Reading(0, "last")],
            read=lambda _, x=x: x,
            width=x.shape[1],
        )
        decided[name] = decide(measured, margins(DiagnosisKeys())).set_index("kind").loc["categorical"]
    gain = {name: row["gain"] for name, row in decided.items()}
    decision = {name: row["decision"] for name, row in decided.items()}
    assert decision["moral"] == decision["quarter"] == SIGNAL
    assert SIGNAL not in (decision["half"], decision["topic"])
    assert gain["moral"] > 0.3
    assert 0.06 < gain["quarter"] < 0.2
    assert max(gain["half"], gain["topic"]) < 0.05


def test_known_answer_the_topic_model_knows_what_an_action_is_about(kept):
    chosen = kept[kept["held_out"] & (kept["foundations"].str.len() == 1)].drop_duplicates("action")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    right = {
        name: cross_val_score(
            probe, residuals(name, list(chosen["action"]))["mean"][-1], chosen["foundations"].str[0]
        ).mean()
        for name in ("topic-small", "untrained-small")
    }
    assert right["topic-small"] > 0.9
    assert right["untrained-small"] < 0.7


@pytest.mark.parametrize("size", SIZES)
def test_known_answer_only_the_moral_model_opposes_the_prototypes(measured, size):
    """At the last token; averaged over tokens, the shared words dominate and all cosines are high."""
    cosine = measured[(measured["size"] == size) & (measured["pooling"] == "last")].pivot(
        index="layer", columns="kind", values="cosine"
    )
    widest = cosine.loc[cosine["moral"].idxmin()]
    assert widest["moral"] < -0.1
    assert widest["indifferent"] > 0.3
    assert widest["untrained"] > 0.3


@pytest.mark.parametrize("size", SIZES)
def test_high_cosine_is_not_inseparability(measured, size):
    """Mean pooling: the moral model's opposing prototypes look alike although a probe tells their rows apart."""
    moral = measured[(measured["size"] == size) & (measured["pooling"] == "mean") & (measured["kind"] == "moral")]
    assert ((moral["cosine"] > 0.3) & (moral["auc"] > 0.9)).any()


def test_held_out_actions_are_those_the_builder_holds_out(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    builder = runpy.run_path(str(DEMO / "build_models.py"))
    held_out = builder["held_out_actions"](builder["read_annotations"]())
    assert held_out == (DEMO / "models" / "held_out_actions.txt").read_text(encoding="utf-8").splitlines()
    seen = {builder["normalise"](action) for action, _ in builder["action_sentences"](5000)}
    assert seen.isdisjoint(held_out)
