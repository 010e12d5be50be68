"""A finished run scored again: on its own test part, or on another labelled file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from plft.errors import PlftError, look_up
from plft.findings import in_order
from plft.labels import TaskType
from plft.pipeline import columns_of, evaluation_of, load
from plft.prediction import Predictor
from plft.preparation import (
    Say,
    by_split,
    files_sha256,
    fit_letters,
    length_sentences,
    quiet,
    read,
    unseen_sentences,
)
from plft.records import Columns, Record, load_data
from plft.runfolder import RunFolder, check_data
from plft.splits import complete_splits


def evaluate(
    path: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    columns: Columns | None = None,
    head: nn.Module | None = None,
    trust_remote_code: bool = False,
    say: Say = quiet,
) -> dict[str, Any]:
    """Metrics with intervals on the run's own test split, or on another labelled file.

    split: which split to score; by default test, else that which stands for it, or the whole file where it has no
    splits.  columns: of the file, by default those of the run, as far as they are there.  Returns the JSON shape of
    one split in metrics.json, with "split" and "task" added.
    """
    predictor = load(path, head, trust_remote_code)
    folder = RunFolder(Path(path))
    if data is None:
        pool, letters = own_records(folder, predictor)
        trained = {each.sequence for each in pool if each.split == "train"}
    else:
        pool, letters = labelled_records(folder, data, predictor, columns)
        trained = trained_sequences(folder, predictor)
    records, name = choose_split(pool, split, whole_file=data is not None)
    known = sum(each.sequence in trained for each in records)
    for sentence in letters:
        say(sentence)
    if known:
        say(f"{known} of these {len(records)} sequences were trained on: results look better than they are")
    say(f"scoring {len(records)} sequences ({name})")
    drops = False
    if folder.config_file.exists():
        settings = folder.read_config().data
        drops = settings.unseen_classes == "drop"
        for sentence in unseen_sentences(settings, {name: records}, predictor.labels):
            say(sentence)
    dataset = predictor.dataset(records, labelled=True, unseen="missing" if drops else "error")
    for sentence in length_sentences({name: dataset}):
        say(sentence)
    evaluation = evaluation_of(predictor, dataset, predictor.outputs(dataset))
    return {"task": predictor.labels.task.value, "split": name} | evaluation.to_json()


def own_records(folder: RunFolder, predictor: Predictor) -> tuple[list[Record], list[str]]:
    """The run's own records with their splits, letters cleaned, and what happened to the letters.

    Raises PlftError where the data are gone or have changed.
    """
    config = folder.read_config()
    records = complete_splits(read(config.data), TaskType(config.task), config.training.seed).records
    check_data(folder, files_sha256([config.data.file, config.data.valid, config.data.test]))
    records, letters = fit_letters(records, predictor.family.alphabet, predictor.unknown_letters)
    return records, letters.sentences


def labelled_records(
    folder: RunFolder, data: str | Path, predictor: Predictor, columns: Columns | None
) -> tuple[list[Record], list[str]]:
    """The records of another labelled file, letters cleaned, and what happened to the letters."""
    records = load_data(data, columns=columns or columns_of(folder.path), labelled=True)
    records, letters = fit_letters(records, predictor.family.alphabet, predictor.unknown_letters)
    return records, letters.sentences


def trained_sequences(folder: RunFolder, predictor: Predictor) -> set[str]:
    """The sequences the run was trained on; empty where its data are gone or have changed, and nothing can be told."""
    try:
        records, _ = own_records(folder, predictor)
    except PlftError:
        return set()
    return {each.sequence for each in records if each.split == "train"}


def choose_split(records: list[Record], split: str | None, whole_file: bool) -> tuple[list[Record], str]:
    """The records to score and a name for them: the split asked for, else test, else all of a file (`whole_file`) or
    what a run without a test part measured instead."""
    parts = by_split(records) if any(each.split for each in records) else {"all": records}
    main = next((each for each in in_order(parts) if each != "train"), "test")
    name = split or ("all" if whole_file and "test" not in parts else main)
    return (records, "all") if name == "all" else (look_up("split", name, parts), name)
