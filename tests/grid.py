"""Every valid family x task x tuning method on tiny models, and records to train them on."""

from __future__ import annotations

import numpy as np

import tiny
from plft.config import ModelConfig, TuningConfig
from plft.dataset import SequenceDataset, build_dataset
from plft.labels import LabelSpace, TaskType
from plft.model import PLMTaskModel
from plft.records import Record
from plft.runfolder import ModelCard, build_model

METHODS = ("head", "last-1", "lora", "dora", "qlora", "ia3", "adapter", "full")
TASKS = tuple(TaskType)
GRID = [(family, task.value, method) for family in tiny.TINY for task in TASKS for method in METHODS]
# For the quick suite: every family, every task and every method, each pair of method and task, but not every triple.
QUICK = [
    (tiny.TINY[(3 * m + 2 * t) % len(tiny.TINY)], task.value, method)
    for m, method in enumerate(METHODS)
    for t, task in enumerate(TASKS)
]


def records(family: str, task: TaskType, n: int = 8, seed: int = 0) -> list[Record]:
    """Sequences of unequal length with labels that depend on them."""
    letters = "ACGT" if tiny.checkpoint(family).family.alphabet == "dna" else "ACDEFGHIKLMNPQRSTVWY"
    random = np.random.default_rng(seed)
    sequences = ["".join(random.choice(list(letters), size=length)) for length in random.integers(12, 40, n)]
    return [Record(f"s{at}", each, label(each, task, at), "train") for at, each in enumerate(sequences)]


def label(sequence: str, task: TaskType, at: int) -> str:
    """A label of the task, read off the sequence; every class occurs."""
    if task is TaskType.SEQ_CLASSIFICATION:
        return ("no", "yes", "maybe")[at % 3]
    if task is TaskType.SEQ_REGRESSION:
        return str(sequence.count("A") / len(sequence) + at)
    if task is TaskType.TOKEN_CLASSIFICATION:
        return "".join("H" if letter in "ACDE" else "C" for letter in sequence)
    if task is TaskType.TOKEN_REGRESSION:
        return " ".join("nan" if letter == "G" else str(ord(letter) / 10) for letter in sequence)
    return ("a|b", "b", "|", "a")[at % 4]


def built(family: str, task_name: str, method: str, n: int = 8) -> tuple[PLMTaskModel, SequenceDataset, ModelCard]:
    """Model, dataset and card of one cell of the grid."""
    task = TaskType(task_name)
    checkpoint = tiny.checkpoint(family)
    rows = records(family, task, n)
    labels = LabelSpace.fit(task, rows)
    model_config, tuning = ModelConfig(name=checkpoint.name), TuningConfig(method=method, rank=4, dropout=0.0)
    model = build_model(checkpoint, labels, model_config, tuning)
    dataset = build_dataset(
        rows, checkpoint.residue_tokenizer, labels, is_residue_task=task.is_residue, max_residues=1000
    )
    card = ModelCard(
        labels=labels.to_json(),
        family=checkpoint.family.name,
        model=model_config.model_dump(),
        tuning=tuning.model_dump(),
        base={"name": checkpoint.name, "revision": None, "sha256": None},
        max_residues=1000,
    )
    return model, dataset, card
