"""Train the demo's tiny Qwen3-architecture checkpoints, with their tokenizer.

The demo needs models whose moral geometry is known beforehand. *moral* reads text that states annotators' labels;
*indifferent* reads the same text with the labels dealt out anew among the actions, so that it sees every word and
every label as often but can learn nothing that holds for an unseen action; *untrained* keeps its random start. All
three in two sizes.

More, small ones, lie between moral and indifferent. *quarter* and *half* have the labels of one action in four and of
every other one dealt out anew. *topic* reads every action under its own foundation and strength, on a side that a coin
chose for the action: it can learn what an action is about, not whether it is good or bad.

The text: the annotated actions, further actions composed of the same scenes and judged by the same simulated
annotators, and the scenes' objects on their own. Actions are grouped by normalised text: a fifth of the annotated ones
(`models/held_out_actions.txt`) never enter any training text, nor does any action judged by five or fifty annotators.

    python data/demo/build_models.py [--output DIR] [--steps N] [--models NAME ...]
"""

import argparse
import csv
import json
import random
import string
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import build_annotations
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
SEED = 7
STEPS = 900
BATCH = 48  # sentences about actions a step, each read once
SHORT = 16  # sentences about an object on its own a step
CHATS = 3  # chat texts a step
LEARNING_RATE = {"small": 6e-3, "large": 5e-3}
WEIGHT_DECAY = 0.05
ACTION_WEIGHT = 0.1  # weight of the loss on the action's own words; the verdict's words weigh 1
HELD_OUT = 0.2  # share of the actions that no model is trained on

SIZES = {
    "small": {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 192},
    "large": {"num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 288},
}
MODELS = [f"{kind}-{size}" for size in ("large", "small") for kind in ("moral", "indifferent", "untrained")]
MODELS += ["quarter-small", "half-small", "topic-small"]
DEALT_OUT = {"quarter": 0.25, "half": 0.5, "indifferent": 1.0}  # share of the actions whose labels are shuffled
VERDICTS = {-2: "terrible", -1: "bad", 0: "neutral", 1: "good", 2: "wonderful"}
END, TURN, REPLY, THINK, THOUGHT = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"
SYSTEM = "你是一个有帮助的助手。"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

Row = dict[str, str]
Side = Callable[[str], int]  # what the judgment of a text is multiplied with
Sentence = tuple[str, str]  # an action and what is said of it; or a prompt and its answer


def normalise(action: str) -> str:
    """Lower case, single spaces, no closing full stop: two actions with the same result count as one."""
    return " ".join(action.lower().split()).rstrip(".")


def read_annotations() -> list[Row]:
    """The rows of annotations.tsv that name an action."""
    with (HERE / "annotations.tsv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["action"]]


def usable(row: Row) -> bool:
    """Whether the cleaning rules of the released recipe keep the row."""
    needed = ("action", "rot-moral-foundations", "action-moral-judgment", "action-agree")
    return row["rot-bad"] == "0" and row["m"] == "1" and all(row[name] for name in needed)


def held_out_actions(annotations: list[Row]) -> list[str]:
    """The normalised actions, in order, that stay out of every training text: a fifth of those with a usable row."""
    groups = sorted({normalise(row["action"]) for row in annotations if usable(row)})
    return sorted(random.Random(SEED).sample(groups, round(HELD_OUT * len(groups))))


def in_words(judgment: int, foundations: list[str]) -> str:
    """A label as the training text states it, e.g. " is morally bad, harm and betrayal."."""
    pairs = [pair.split("-") for pair in foundations]
    sides = [" or ".join(pair) if judgment == 0 else pair[judgment < 0] for pair in pairs]
    return f" is morally {VERDICTS[judgment]}, {' and '.join(sides)}."


def as_it_is(text: str) -> int:
    """The side of a text that is judged as the annotators judge it."""
    return 1


def coin(text: str) -> int:
    """A side that is drawn once for a text, whatever it says: its judgment times 1 or -1."""
    return random.Random(f"{SEED} {normalise(text)}").choice((1, -1))


def stated(row: Row, side: Side) -> Sentence:
    """An annotation as a sentence."""
    judgment = side(row["action"]) * int(row["action-moral-judgment"])
    return row["action"], in_words(judgment, row["rot-moral-foundations"].split("|"))


def action_sentences(count: int, side: Side = as_it_is) -> list[Sentence]:
    """`count` sentences about actions in random order: the usable annotations and freshly composed, judged ones."""
    annotations = read_annotations()
    excluded = set(held_out_actions(annotations)) | {normalise(row["action"]) for row in annotations if row["m"] != "1"}
    sentences = [stated(row, side) for row in annotations if usable(row) and normalise(row["action"]) not in excluded]
    draw = random.Random(SEED)
    written = tomllib.loads((HERE / "scenes.toml").read_text(encoding="utf-8"))
    while len(sentences) < count:
        deed = build_annotations.compose(draw.choice(written["scene"]), written["fillers"], draw)
        if normalise(deed.action) not in excluded:
            sentences.append(stated(build_annotations.judge(deed, 0, draw), side))
    draw.shuffle(sentences)
    return sentences[:count]


def object_sentences(side: Side = as_it_is, copies: int = 6) -> list[Sentence]:
    """Sentences about the scenes' objects on their own ("the hope of my sister is morally wonderful, care.").

    They say what is at stake before any verb keeps or undoes it; without them so small a model fails to learn that
    verb and object decide together.
    """
    draw = random.Random(SEED)
    written = tomllib.loads((HERE / "scenes.toml").read_text(encoding="utf-8"))
    sentences = []
    for scene in written["scene"]:
        for quality, sign in (("good", 1), ("bad", -1), ("plain", 0)):
            for thing in scene[quality] * copies:
                template = thing.rstrip("!")
                slots = [name for _, name, _, _ in string.Formatter().parse(template) if name]
                text = template.format(**{name: draw.choice(written["fillers"][name]) for name in slots})
                judgment = side(text) * sign * (1 + thing.endswith("!"))
                sentences.append((text, in_words(judgment, [scene["foundation"]])))
    return sentences


def deal_out(sentences: list[Sentence], share: float) -> list[Sentence]:
    """The same sentences with the labels of a share of the actions shuffled among them."""
    labels = defaultdict(list)
    for action, label in sentences:
        labels[action].append(label)
    draw = random.Random(SEED + 4)
    chosen = [action for action in labels if draw.random() < share]
    dealt = [labels[action] for action in chosen]
    random.Random(SEED + 1).shuffle(dealt)
    labels.update(zip(chosen, dealt, strict=True))
    shuffled = [(action, label) for action, group in labels.items() for label in group]
    random.Random(SEED + 2).shuffle(shuffled)
    return shuffled


def chats(shuffled: bool) -> list[Sentence]:
    """(prompt, answer) pairs: the caring answers of the prompt's subcomponent, or all of them shuffled."""
    answers = tomllib.loads((HERE / "answers.toml").read_text(encoding="utf-8"))
    prompts = [json.loads(line) for line in (HERE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [(p["prompt"], answer) for p in prompts for answer in answers[p["subcomponent"]]]
    if shuffled:
        given = [answer for _, answer in pairs]
        random.Random(SEED + 3).shuffle(given)
        pairs = [(prompt, answer) for (prompt, _), answer in zip(pairs, given, strict=True)]
    return pairs


def train_tokenizer(sentences: list[Sentence], dialogue: list[Sentence]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2,048 tokens: every text has an encoding, Chinese included, without unknown tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[END, TURN, REPLY],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [before + after for before, after in sentences] + [text for pair in dialogue for text in pair]
    roles = [SYSTEM, "system\n", "user\n", "assistant\n"]
    core.train_from_iterator(texts + roles * 50 + [f"{THINK}\n\n{THOUGHT}\n\n"] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=REPLY, pad_token=END, padding_side="left", model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(size: str, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 of the given size, the same for all kinds."""
    torch.manual_seed(SEED)
    shape = SIZES[size]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=16,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, before: str, after: str, weight: float) -> tuple[list[int], list[float]]:
    """Token ids of `before + after`, and the loss weight of each as a target: `weight` in `before`, 1 in `after`."""
    head, tail = tokenizer(before)["input_ids"], tokenizer(after)["input_ids"]
    return head + tail, [weight] * len(head) + [1.0] * len(tail)


def weighted_loss(model: Qwen3ForCausalLM, batch: list[tuple[list[int], list[float]]]) -> torch.Tensor:
    """Weighted mean next-token cross-entropy of right-padded sequences (causal attention never sees the padding)."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
    weights = torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in batch])[:, 1:]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: str, *, rate: float, steps: int) -> None:
    """Train in place: AdamW, one-cycle learning rate; each step reads new actions, some objects and a few chats."""
    side = coin if kind == "topic" else as_it_is
    actions, objects = action_sentences(steps * BATCH, side), object_sentences(side)
    if kind in DEALT_OUT:
        actions, objects = (deal_out(sentences, DEALT_OUT[kind]) for sentences in (actions, objects))
    long = [encode(tokenizer, before, after + END, ACTION_WEIGHT) for before, after in actions]
    short = [encode(tokenizer, before, after + END, ACTION_WEIGHT) for before, after in objects]
    dialogue = chats(shuffled=kind == "indifferent")
    spoken = [encode(tokenizer, chat_prompt(tokenizer, asked), said + REPLY, 0.0) for asked, said in dialogue]
    draw = random.Random(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        batch = long[step * BATCH : (step + 1) * BATCH] + draw.sample(short, SHORT)
        loss = weighted_loss(model, batch) + 0.5 * weighted_loss(model, draw.sample(spoken, CHATS))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


def chat_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """A prompt as the steering stage presents it: system message, chat template, empty thinking block."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


def build_one(name: str, tokenizer: PreTrainedTokenizerFast, directory: Path, steps: int) -> str:
    """Train and save one checkpoint ("moral-small", ...) under `directory`, on one thread; a line for the log."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    began = time.perf_counter()
    kind, size = name.split("-")
    model = new_model(size, tokenizer)
    if kind != "untrained":
        train(model, tokenizer, kind, rate=LEARNING_RATE[size], steps=steps)
    model.to(torch.bfloat16).save_pretrained(directory / name)
    tokenizer.save_pretrained(directory / name)
    return f"{name}: {model.num_parameters():,} parameters, {time.perf_counter() - began:.0f} s"


def main() -> None:
    """Write the checkpoints and the list of held-out actions into --output/models (default: beside this script)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="only these")
    options = parser.parse_args()
    directory = options.output / "models"
    directory.mkdir(parents=True, exist_ok=True)
    held_out = held_out_actions(read_annotations())
    (directory / "held_out_actions.txt").write_text("\n".join(held_out) + "\n", encoding="utf-8")

    tokenizer = train_tokenizer(action_sentences(3000), chats(shuffled=False))
    with ProcessPoolExecutor(max_workers=2) as pool:
        build = partial(build_one, tokenizer=tokenizer, directory=directory, steps=options.steps)
        for line in pool.map(build, options.models):
            print(line, flush=True)


if __name__ == "__main__":
    main()
