"""How all answers are made: the same prompts, batches and seeds for every arm and, under the careful protocol, the same decoding.

:mod:`lib.steering.answers` says what the files hold.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from nnsight import TransformersModel
from torch import Tensor
from tqdm.auto import tqdm

from lib.run.parameters import SteeringParameters
from lib.run.stage import share
from lib.steering import generation
from lib.steering.answers import CONDITION, DRAWS, read_answers
from lib.steering.interventions import Intervention, LoadArm, to_answer
from lib.steering.loading import order
from lib.steering.prompts import choose


class Asked(NamedTuple):
    """Prompts (columns ``id, dimension, prompt``) that every one of some interventions answers, into one directory."""

    directory: Path
    conditions: Iterable[Intervention]
    prompts: pd.DataFrame


class Batch(NamedTuple):
    """Prompts that are answered together: the ``sample``-th time, by one intervention, into one file."""

    path: Path
    intervention: Intervention
    sample: int
    seed: int
    prompts: pd.DataFrame

    def keys(self) -> list[dict[str, Any]]:
        """Return what tells apart the lines that this batch writes."""
        condition = self.intervention.condition()
        return [{"id": key} | condition | {"sample": self.sample} for key in self.prompts["id"]]


def answer_stage(
    model: TransformersModel,
    parameters: SteeringParameters,
    *,
    load_arm: LoadArm,
    prompts: pd.DataFrame,
    directory: Path,
) -> None:
    """Answer everything that stage 07 answers: the folders of :func:`lib.steering.interventions.to_answer`."""
    few = choose(prompts, parameters.sweep_prompts) if parameters.sweep_prompts else prompts
    asked = [
        Asked(directory / folder, conditions, prompts if folder == "." else few)
        for folder, conditions in to_answer(parameters).items()
    ]
    answer_all(model, parameters, asked, load_arm)


def answer_all(
    model: TransformersModel, parameters: SteeringParameters, asked: Collection[Asked], load_arm: LoadArm
) -> None:
    """Answer every prompt under every condition and write ``<arm>.jsonl`` into each directory, a batch at a time.

    Batch b is sampled with ``seed + b`` in every arm and layer, and a further sample with numbers beyond those of the last. A
    finished batch is on disk before the next begins and is not computed again after an interruption; the files are then the
    same, byte for byte, as those of an uninterrupted run. An arm's file depends on no other arm, so a part of the stage
    (:func:`lib.run.stage.share`) answers some of the arms. An arm has its layers, replicates, strengths and samples one after
    the other in its file.

    The work is done layer by layer over all directories, so that an autoencoder is read once
    (:func:`lib.steering.loading.order`). In memory at a time: the model, what one condition needs, and the logits of the
    untouched model after each prompt (.3 GB for 1,000 prompts and the vocabulary of Qwen3 in bfloat16). These are the same
    for all arms: they come from the baseline if it is answered first, else they are computed once.

    ``parameters`` say how tokens are chosen, the seed, the samples, and how many prompts make a batch (part of the result, as
    sampling depends on it); conditions come in any order.
    """
    listed = [Asked(each.directory, sorted(each.conditions, key=order), each.prompts) for each in asked]
    mine = set(share(list(dict.fromkeys(one.arm for each in listed for one in each.conditions))))
    files: dict[Path, list[Batch]] = {}
    for batch in (batch for each in listed for batch in _batches(each, parameters) if batch.intervention.arm in mine):
        files.setdefault(batch.path, []).append(batch)
    left = [batch for path, batches in files.items() for batch in batches[keep_finished_batches(path, batches) :]]
    arm, unsteered = None, dict[tuple[str, ...], Tensor]()
    total = sum(map(len, files.values()))
    for batch in tqdm(
        sorted(left, key=lambda batch: order(batch.intervention)),
        desc="answers", unit="batch", initial=total - len(left), total=total,
    ):  # fmt: skip
        if arm is None or arm.intervention != batch.intervention:
            # Otherwise two autoencoders would be in memory while the next is read.
            arm = None
            arm = load_arm(batch.intervention)
        decoding = generation.decoding_of(arm.intervention.arm, parameters)
        texts, known = batch.prompts["prompt"].tolist(), tuple(batch.prompts["id"])
        if arm.intervention.layers and known not in unsteered:
            unsteered[known] = generation.unsteered_logits(model, texts, decoding)
        replies, first_logits = generation.answer_batch(
            model, arm, texts, decoding=decoding, seed=batch.seed, unsteered=unsteered.get(known)
        )
        # Unequal decoding may cut prompts unequally, where the context is short.
        if not arm.intervention.layers and parameters.protocol != "published":
            unsteered[known] = first_logits.cpu()
        about = batch.prompts[["id", "dimension", "prompt"]].assign(protocol=parameters.protocol).to_dict("records")
        lines = zip(about, batch.keys(), replies, strict=True)
        append_answers(batch.path, [row | key | reply for row, key, reply in lines])


def _batches(asked: Asked, parameters: SteeringParameters) -> Iterator[Batch]:
    """List the batches of all arms; those of one arm in the order of its file."""
    size = parameters.steering_batch
    starts = range(0, len(asked.prompts), size)
    for intervention in asked.conditions:
        path = asked.directory / f"{intervention.arm}.jsonl"
        for sample in range(parameters.samples):
            for number, start in enumerate(starts):
                seed = parameters.seed + sample * len(starts) + number
                yield Batch(path, intervention, sample, seed, asked.prompts.iloc[start : start + size])


def append_answers(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add one finished batch to an arm's file; when this returns, it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab") as stream:
        stream.write(lines.encode())
        stream.flush()
        os.fsync(stream.fileno())


def keep_finished_batches(path: Path, plan: list[Batch]) -> int:
    """Cut an interrupted file of answers after its last whole batch and return how many batches it holds.

    ``plan`` lists the batches that the whole file will have.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if line.endswith(b"\n")]
    batches = kept = 0
    for keys in (batch.keys() for batch in plan):
        rows = [json.loads(line) for line in lines[kept : kept + len(keys)]]
        if [{name: row[name] for name in ("id", *CONDITION, *DRAWS)} for row in rows] != keys:
            break
        batches, kept = batches + 1, kept + len(keys)
    if path.exists():
        os.truncate(path, sum(len(line) for line in lines[:kept]))
    return batches


def read_stage(directory: Path, parameters: SteeringParameters) -> dict[str, pd.DataFrame]:
    """Read everything that :func:`answer_stage` has answered: folder -> answers."""
    return {
        folder: read_answers(directory / folder, dict.fromkeys(each.arm for each in conditions))
        for folder, conditions in to_answer(parameters).items()
    }
