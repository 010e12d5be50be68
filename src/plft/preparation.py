"""Everything about a run that can be read, decided and checked before any weight is loaded."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plft.alphabet import ALPHABETS, PROTEIN, check_alphabet, clean, guess_alphabet
from plft.audit import audit
from plft.calibration import choose_method
from plft.checkpoints import Checkpoint, resolve
from plft.config import DataConfig, RunConfig
from plft.dataset import SequenceDataset, build_dataset, class_counts, longest_input
from plft.errors import PlftError, first_three, look_up
from plft.heads import HEADS
from plft.labels import LabelSpace, TaskType, guess_task, is_known
from plft.metrics import METRICS, metrics_for, point
from plft.records import Record, files_of_folder, load_data
from plft.splits import complete_splits
from plft.tasks import TASKS, balanced_class_weights
from plft.training import check_tracker, token_budget
from plft.tuning import apply, check_settings, find_method

Say = Callable[[str], None]


def quiet(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before any weight is loaded.

    parts: records by split, letters cleaned.  sentences: what was decided, dropped or mapped on the way, for the user.
    """

    config: RunConfig
    task: TaskType
    parts: dict[str, list[Record]]
    labels: LabelSpace
    checkpoint: Checkpoint
    datasets: dict[str, SequenceDataset]
    max_residues: int
    class_weights: list[float] | None
    sentences: list[str]
    facts: dict[str, Any]

    @property
    def valid(self) -> SequenceDataset | None:
        """The validation set, where it holds labels to judge by."""
        dataset = self.datasets.get("valid")
        return dataset if dataset is not None and dataset.has_labels else None

    @cached_property
    def is_judged(self) -> bool:
        """Whether the metric is defined on the validation set, so that it can tell a better epoch from a worse one."""
        return self.valid is not None and is_defined(str(self.config.training.metric), self.labels, self.valid)


def prepare(config: RunConfig, say: Say = quiet, custom_head: bool = False) -> Prepared:
    """Read and check everything that can be read and checked without loading weights; says what it found."""
    check_settings(config.tuning)
    records = read(config.data)
    task, reason = decide_task(config, records)
    check_head(config, task, custom_head)
    split = complete_splits(records, task, config.training.seed)
    checkpoint = find_checkpoint(config, split.records)
    records, letters = fit_letters(split.records, checkpoint.family.alphabet, config.data.unknown_letters)
    parts = by_split(records)
    if "train" not in parts:
        raise PlftError(
            "Every train sequence holds letters outside the alphabet and was dropped. Pass --unknown-letters map."
        )
    labels = LabelSpace.fit(task, parts["train"], config.data.missing, config.data.columns.labels)
    check_metric(config, labels)
    check_tuning(config, checkpoint)
    max_residues = longest_input(checkpoint.family, config.data.max_residues)
    datasets = tokenised(config.data, parts, checkpoint, labels, max_residues)
    check_labels(datasets)
    calibration_method(config, labels, datasets)
    weights = class_weights(config, labels, datasets["train"])
    findings = audit(records, task, missing=config.data.missing, columns=config.data.columns.labels)
    facts = letters.facts | data_facts(config.data, parts, datasets) | {"audit": findings.to_json()}
    sentences = [
        *([reason] if reason else []),
        *(
            [f"no model was named: {checkpoint.name}, a small one that ships with plft"]
            if not config.model.name
            else []
        ),
        split.sentence,
        *letters.sentences,
        *length_sentences(datasets),
        *unseen_sentences(config.data, parts, labels),
        *(f"{name} holds no label, so it is not scored" for name, each in datasets.items() if not each.has_labels),
        *weight_sentences(records, config.data.weight_column),
        *findings.warnings,
        *([checkpoint.family.note] if not checkpoint.family.is_known else []),
    ]
    for sentence in sentences:
        say(sentence)
    config = resolved(config, task, checkpoint, max_residues, datasets["train"])
    config.calibration.method = calibration_method(config, labels, datasets)
    prepared = Prepared(config, task, parts, labels, checkpoint, datasets, max_residues, weights, sentences, facts)
    if prepared.valid is not None and not prepared.is_judged:
        title = METRICS[str(config.training.metric)].title
        sentences.append(f"{title} is undefined on valid, so the last epoch is kept and none is left out")
        say(sentences[-1])
    return prepared


def prepare_again(prepared: Prepared, config: RunConfig) -> Prepared:
    """The same records and base model with another head, tuning or training, checked as `prepare` checks them.

    config: as a user gives it, its data and base model those of `prepared`.
    """
    check_settings(config.tuning)
    check_head(config, prepared.task, custom_head=False)
    check_pooling(config, prepared.checkpoint)
    check_metric(config, prepared.labels)
    check_tuning(config, prepared.checkpoint)
    train_set = prepared.datasets["train"]
    weights = class_weights(config, prepared.labels, train_set)
    config = resolved(config, prepared.task, prepared.checkpoint, prepared.max_residues, train_set)
    return replace(prepared, config=config, class_weights=weights)


def find_checkpoint(config: RunConfig, records: Sequence[Record]) -> Checkpoint:
    """The base model of a run; `records` train the tokenizer of a scratch model that learns its pieces."""
    checkpoint = resolve(
        config.model.name or builtin_for(records),
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        sequences=(each.sequence for each in records if each.split == "train"),
        seed=config.training.seed,
    )
    check_pooling(config, checkpoint)
    return checkpoint


def check_pooling(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuse to pool by a token that the family does not have."""
    if config.model.pooling == "cls" and not has_cls(checkpoint):
        raise PlftError(f"model.pooling cls: {checkpoint.family.title} has no token for the whole sequence. Use mean.")


def builtin_for(records: Sequence[Record]) -> str:
    """The built-in model that reads the letters of these sequences."""
    return "builtin:protein" if guess_alphabet(each.sequence for each in records) is PROTEIN else "builtin:dna"


def tokenised(
    data: DataConfig, parts: Mapping[str, list[Record]], checkpoint: Checkpoint, labels: LabelSpace, max_residues: int
) -> dict[str, SequenceDataset]:
    """Datasets by split."""
    return {
        name: build_dataset(
            part,
            checkpoint.residue_tokenizer,
            labels,
            is_residue_task=labels.task.is_residue,
            max_residues=max_residues,
            unseen="error" if data.unseen_classes == "error" else "missing",
            extra_columns=tuple(data.extra_columns),
        )
        for name, part in parts.items()
    }


def read(data: DataConfig) -> list[Record]:
    """Read the data files of a configuration."""
    return load_data(data.file, data.valid, data.test, data.columns, labelled=True)


def decide_task(config: RunConfig, records: Sequence[Record]) -> tuple[TaskType, str]:
    """The task that was asked for, or guessed from the labels with the reason for it."""
    if config.task != "auto":
        return TaskType(config.task), ""
    guess = guess_task(records, config.data.missing)
    return guess.task, f"task {guess.task.value}: {guess.reason}"


def check_head(config: RunConfig, task: TaskType, custom_head: bool) -> None:
    """Refuse a head that does not fit the task, and settings that it would ignore."""
    row = look_up("head", config.model.head, HEADS)
    if custom_head:
        return
    if task.is_residue and not row.labels_residues:
        raise PlftError(f"The head {row.name} pools the sequence and cannot label residues. Use cnn, mlp or linear.")
    if config.data.extra_columns:
        raise PlftError(
            f"data.extra_columns has no effect: the head {row.name} does not use them. "
            "Remove it, or pass a head of your own from Python."
        )
    defaults = {"pooling": row.pooling, "head_layers": row.hidden_layers}  # run.yaml states these in any case
    for name in [*row.ignores, *(["pooling"] if task.is_residue else [])]:
        if getattr(config.model, name) not in (None, defaults.get(name)):
            where = " in a residue task" if name == "pooling" and task.is_residue else ""
            raise PlftError(f"model.{name} has no effect with the head {row.name}{where}. Remove it.")


def check_metric(config: RunConfig, labels: LabelSpace) -> None:
    """Refuse a metric that this task cannot be measured by, and trackers that are not there."""
    if config.training.metric is not None:
        known = {row.name: row for row in metrics_for(labels.task, labels.n_outputs)}
        look_up(f"metric for {labels.task.value}", config.training.metric, known)
    for tracker in config.training.report_to:
        check_tracker(tracker)


def is_defined(metric: str, labels: LabelSpace, dataset: SequenceDataset) -> bool:
    """Whether a metric can be told of a dataset's labels: some cannot for a single class, or for equal values."""
    targets = dataset.targets()
    if labels.task.is_regression or labels.task.is_multilabel:
        outputs = [np.nan_to_num(each) for each in targets]
    else:
        one_hot = np.eye(labels.n_outputs, dtype=np.float32)
        outputs = [one_hot[np.maximum(each, 0)] for each in targets]
    return math.isfinite(point(labels.task, outputs, targets, labels.classes)[metric])


def check_tuning(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Apply the tuning method to the backbone without its weights: layers and blocks that are not there show now."""
    backbone = checkpoint.without_weights()
    if backbone is not None:
        with torch.device("meta"):
            apply(backbone, checkpoint.family, config.tuning)


def check_labels(datasets: Mapping[str, SequenceDataset]) -> None:
    """Refuse data from which nothing can be learned, or with which nothing could be measured."""
    if not any(each.weight > 0 and each.label is not None and is_known(each.label).any() for each in datasets["train"]):
        raise PlftError("No labelled train record has a weight above 0. Check the weight column.")
    others = [name for name in datasets if name != "train"]
    if not any(datasets[name].has_labels for name in others):
        raise PlftError(f"No record of {' or '.join(others)} has a label, so nothing can be measured. Add some.")


def class_weights(config: RunConfig, labels: LabelSpace, train_set: SequenceDataset) -> list[float] | None:
    """Weights of the classes in the loss, in the order of the model's outputs."""
    wanted = config.training.class_weights
    if wanted is None:
        return None
    if labels.task.is_regression:
        raise PlftError("training.class_weights: a regression has no classes. Remove it, or use a weight column.")
    if wanted == "balanced":
        return balanced_class_weights(labels, class_counts(train_set, labels))
    for name in wanted:
        look_up("class in training.class_weights", name, dict.fromkeys(labels.classes))
    weights = [float(wanted.get(name, 1.0)) for name in labels.classes]
    if not any(weights):
        raise PlftError("training.class_weights: every class has the weight 0, so nothing is learned. Raise one.")
    return weights


def calibration_method(config: RunConfig, labels: LabelSpace, datasets: Mapping[str, SequenceDataset]) -> Any:
    """How probabilities will be calibrated; a wish that cannot be met is a PlftError."""
    can_fit = "valid" in datasets and datasets["valid"].has_labels
    return choose_method(config.calibration.method, labels.task, labels.n_outputs, can_fit=can_fit)


def has_cls(checkpoint: Checkpoint) -> bool:
    """Whether the first token stands for the whole sequence: a special token that sees it, and no family's prefix."""
    start, stop = checkpoint.residue_tokenizer.encode("ACGT" * 4).spans[0]
    return bool(start == stop) and not checkpoint.family.prefix and not checkpoint.family.causal


@dataclass(frozen=True)
class Letters:
    """What happened to letters outside the alphabet."""

    sentences: list[str]
    facts: dict[str, Any]


def fit_letters(records: Sequence[Record], alphabet_name: str, policy: str) -> tuple[list[Record], Letters]:
    """Clean every sequence for a family's alphabet; says how much was mapped or dropped.

    Raises PlftError with the policy "error", and where most letters are foreign (DNA given to a protein model, say).
    """
    alphabet = ALPHABETS[alphabet_name]
    check_alphabet((each.sequence for each in records), alphabet)
    kept: list[Record] = []
    mapped = with_unknown = dropped = 0
    for record in records:
        cleaned = clean(record.sequence, alphabet, policy, record.place)
        with_unknown += cleaned.n_unknown > 0
        mapped += cleaned.n_unknown
        dropped += not cleaned.keep
        if cleaned.keep:
            kept.append(record if cleaned.sequence == record.sequence else replace(record, sequence=cleaned.sequence))
    sentences = []
    if dropped:
        sentences.append(f"{dropped} sequences with letters outside the alphabet were dropped")
    elif mapped:
        sentences.append(
            f"{mapped} letters in {with_unknown} sequences are not in the alphabet and were read as {alphabet.unknown}"
        )
    return kept, Letters(sentences, {"unknown_letters": 0 if dropped else mapped, "dropped": dropped})


def by_split(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by split: train, valid, test, then any other in order of appearance."""
    parts: dict[str, list[Record]] = {"train": [], "valid": [], "test": []}
    for record in records:
        parts.setdefault(record.split or "train", []).append(record)
    return {name: part for name, part in parts.items() if part}


def data_facts(
    data: DataConfig, parts: Mapping[str, list[Record]], datasets: Mapping[str, SequenceDataset]
) -> dict[str, Any]:
    """What environment.json says of the data."""
    return {
        "file": Path(data.file).name,
        "sha256": files_sha256([data.file, data.valid, data.test]),
        "counts": {name: len(part) for name, part in parts.items()},
        "residues": {name: sum(len(each.sequence) for each in part) for name, part in parts.items()},
        "truncated": sum(each.truncated for each in datasets.values()),
        "windowed": sum(each.windowed for each in datasets.values()),
    }


def length_sentences(datasets: Mapping[str, SequenceDataset]) -> list[str]:
    """What happened to sequences longer than the model's input."""
    truncated = sum(each.truncated for each in datasets.values())
    windowed = sum(each.windowed for each in datasets.values())
    longer = "sequences are longer than the model's input and"
    sentences = [f"{truncated} {longer} lost their end"] if truncated else []
    if unread := sum(each.unread for each in datasets.values()):
        sentences.append(f"{unread:,} residues are in tokens that the model does not know: it reads [UNK] there")
    return sentences + ([f"{windowed} {longer} were cut into overlapping windows"] if windowed else [])


def weight_sentences(records: Sequence[Record], column: str | None) -> list[str]:
    """That sequences are weighted, for a column may be called so and mean something else."""
    weights = [each.weight for each in records if each.weight is not None]
    span = f"from {min(weights):g} to {max(weights):g}" if weights else ""
    return [f"sequences are weighted by the column '{column}', {span}"] if weights else []


def unseen_sentences(data: DataConfig, parts: Mapping[str, list[Record]], labels: LabelSpace) -> list[str]:
    """Which labels were left out because training holds no such class."""
    if data.unseen_classes == "error":
        return []
    names = first_three([f"{name} ({count})" for name, count in unseen_classes(parts, labels).items()])
    return [f"labels of classes that training does not hold were left out: {names}"] if names else []


def unseen_classes(parts: Mapping[str, list[Record]], labels: LabelSpace) -> dict[str, int]:
    """Classes that training lacks, with how many records hold them."""
    return dict(Counter(name for part in parts.values() for record in part for name in sorted(labels.unseen(record))))


def files_sha256(files: Iterable[str | None]) -> str:
    """One checksum over the content of the data files (a folder counts as its files in order of name)."""
    digest = hashlib.sha256()
    for name in files:
        if name is None:
            continue
        path = Path(name)
        for file in sorted(files_of_folder(path).values()) if path.is_dir() else [path]:
            with file.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def resolved(
    config: RunConfig, task: TaskType, checkpoint: Checkpoint, max_residues: int, train_set: SequenceDataset
) -> RunConfig:
    """The configuration with every choice made explicit."""
    method = find_method(config.tuning.method)
    row = HEADS[config.model.head]
    chosen_rate = method.rate(checkpoint.width, checkpoint.is_scratch)
    values = config.model_dump()
    values["task"] = task.value
    values["data"] |= {"max_residues": max_residues}
    values["model"] |= {
        "name": checkpoint.lasting_name,
        "revision": checkpoint.revision,
        "pooling": config.model.pooling or row.pooling,
        "head_layers": row.hidden_layers if config.model.head_layers is None else config.model.head_layers,
    }
    values["training"] |= {
        "learning_rate": config.training.learning_rate or chosen_rate,
        "batch_residues": token_budget(config.training, train_set),
        "metric": config.training.metric or TASKS[task.value].main_metric,
    }
    for key in ("file", "valid", "test"):
        if values["data"][key] is not None:
            values["data"][key] = str(Path(values["data"][key]).resolve())
    return RunConfig.model_validate(values)
