"""The data sets of a comparison, split once: every run learns from and is tested on the same sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from plft.config import DataConfig, RunConfig
from plft.errors import PlftError
from plft.findings import in_order
from plft.formats import reader_of, rows_of
from plft.labels import TaskType, is_missing, number
from plft.preparation import decide_task, files_sha256, read
from plft.records import Record
from plft.runfolder import write_text
from plft.splits import Split, add_valid, assign_folds, assign_splits, complete_splits

FOLD_COLUMN = "fold"
MOST_FOLDS = 20  # more different numbers than that are something else
SPLIT_SEED = 0  # of splits and folds, whatever the seeds of the runs: they all share one test set


@dataclass(frozen=True)
class DataSet:
    """One data set of a comparison.

    name: unique among them.  source: the file as it was given.  config: how `source` is read.  folds: the numbers of
    the folds, each of which is the test set once; empty for one division into train, valid and test.  splits: the
    split of each record, for each fold or once.  tested: the split that counts.  sentence: how they were made.
    """

    name: str
    source: str
    sha256: str
    config: DataConfig
    task: TaskType
    records: Sequence[Record]
    folds: tuple[int, ...]
    splits: tuple[tuple[str, ...], ...]
    tested: str
    sentence: str

    @property
    def parts(self) -> tuple[int | None, ...]:
        """The folds, or one None where there are none: what each seed is trained for."""
        return self.folds or (None,)

    def facts(self) -> dict[str, Any]:
        """What comparison.yaml says of it."""
        named = {"file": str(Path(self.source).resolve()), "sha256": self.sha256, "task": self.task.value}
        return named | {"tested": self.tested, "folds": len(self.folds) or None, "division": self.sentence}

    def write(self, file: Path) -> None:
        """Write the records with their splits as JSON lines, which every run then reads."""
        rows = (self._row(record, at) for at, record in enumerate(self.records))
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def read_from(self, file: Path, fold: int | None) -> DataConfig:
        """How a run reads what `write` wrote."""
        return self.config.model_copy(
            update={"file": str(file), "valid": None, "test": None, "split_column": split_column(fold)}
        )

    def _row(self, record: Record, at: int) -> dict[str, Any]:
        names = self.config.columns
        labels = record.label if isinstance(record.label, tuple) else (record.label,)
        row: dict[str, Any] = {names.id: record.id, names.sequence: record.sequence}
        row |= {name: each for name, each in ((names.mask, record.mask), (names.weight, record.weight)) if name}
        row |= {**dict(zip(names.labels, labels, strict=True)), **record.extra}
        row |= {split_column(fold): split[at] for fold, split in zip(self.parts, self.splits, strict=True)}
        return {name: value for name, value in row.items() if value is not None}


def split_column(fold: int | None) -> str:
    """The column that says train, valid or test: one for each fold."""
    return "split" if fold is None else f"split_of_fold_{fold}"


def names_of(files: Sequence[str]) -> list[str]:
    """A name for each data file, fit for a folder: its stem, numbered where that is taken already."""
    return unique([Path(file).name.split(".")[0] for file in files])


def unique(names: Sequence[str]) -> list[str]:
    """The names as folders can have them, all different: `ESM2/8m` is `ESM2-8m`, a second one `ESM2-8m-2`."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "unnamed"
        candidates = [plain, *(f"{plain}-{number}" for number in range(2, len(names) + 2))]
        found.append(next(each for each in candidates if each.lower() not in {name.lower() for name in found}))
    return found


def read_data_set(name: str, config: RunConfig, folds: int | None, by: str | None) -> DataSet:
    """Read a data set and decide its task and its splits or folds.

    folds: how many to make; None takes the file's column ``fold``, or else its splits; 1 takes the splits in any case.
    by: how to divide, a name of `splits.SPLITTERS`.  Raises PlftError for data that cannot be read or divided so.
    """
    data = config.data
    if by == "group":
        raise PlftError(
            f"--by group needs a column: plft split {data.file} --by group --group COLUMN --folds 5 -o folds.csv "
            "writes folds that plft compare folds.csv uses."
        )
    column = None if folds == 1 else fold_column(data)
    if column is not None:
        extra = [*data.extra_columns, column]
        records = read(data.model_copy(update={"extra_columns": extra}))
    else:
        records = read(data)
    task, _ = decide_task(config, records)
    numbers = None if column is None else read_folds(records, column, folds, name)
    if numbers is not None:
        refuse_by(by, name, "has a fold column")
        divided = into_folds(records, numbers, task, f"folds of column '{column}'")
    elif folds is not None and folds > 1:
        made = assign_folds(records, folds, by or "stratified", task=task, seed=SPLIT_SEED)
        note = " The splits of the file are not used." if any(each.split for each in records) else ""
        divided = into_folds(records, made.numbers, task, made.sentence + note)
    else:
        divided = into_splits(records, task, by, name)
    if column is not None:
        records = [replace(each, extra={k: v for k, v in each.extra.items() if k != column}) for each in records]
    sha256 = files_sha256([data.file, data.valid, data.test])
    kept = [records[at] for at in divided.kept]
    return DataSet(
        name, data.file, sha256, data, task, kept, divided.folds, divided.splits, divided.tested, divided.sentence
    )


@dataclass(frozen=True)
class Divided:
    """The fields of a DataSet that say how it is divided.  kept: indices of the records that are used."""

    kept: list[int]
    folds: tuple[int, ...]
    splits: tuple[tuple[str, ...], ...]
    tested: str
    sentence: str


def into_splits(records: Sequence[Record], task: TaskType, by: str | None, name: str) -> Divided:
    """Train, valid and test as the file has them, or made where it has none."""
    if {each.split for each in records} in ({None}, {"train"}):
        made = assign_splits(records, by or "stratified", task=task, seed=SPLIT_SEED)
    else:
        refuse_by(by, name, "has splits already")
        made = complete_splits(records, task, SPLIT_SEED)
    splits = tuple(str(each.split) for each in made.records)
    tested = next(each for each in in_order(dict.fromkeys(splits)) if each != "train")
    return Divided(list(range(len(records))), (), (splits,), tested, made.sentence)


def refuse_by(by: str | None, name: str, reason: str) -> None:
    """Refuse a way to divide what is divided already."""
    if by is not None:
        raise PlftError(f"--by {by} has no effect: {name} {reason}. Leave it out, or ask for --folds.")


def into_folds(records: Sequence[Record], numbers: Sequence[int], task: TaskType, sentence: str) -> Divided:
    """For each fold: it is the test set, a tenth of the rest is for validation.  Number 0: in no fold, and left out."""
    kept = [at for at, number in enumerate(numbers) if number]
    folds = tuple(sorted({numbers[at] for at in kept}))
    splits = []
    for fold in folds:
        parts = [replace(records[at], split="test" if numbers[at] == fold else "train") for at in kept]
        divided: Split = add_valid(parts, seed=SPLIT_SEED, task=task)
        splits.append(tuple(str(each.split) for each in divided.records))
    left_out = len(records) - len(kept)
    said = f" {left_out:,} sequences are in no fold and are left out." if left_out else ""
    return Divided(kept, folds, tuple(splits), "test", sentence + said)


# --- the fold column of a file


def fold_column(data: DataConfig) -> str | None:
    """The column ``fold`` of a single file, as the file spells it; None where there is none."""
    path = Path(data.file)
    if not path.is_file() or data.valid or data.test:
        return None
    first = next(islice(rows_of(path, reader_of(path)), 1), {})
    taken = {data.sequence_column, data.id_column, data.split_column, *data.columns.labels, *data.extra_columns}
    return next((key for key in first if key.strip().lower() == FOLD_COLUMN and key not in taken), None)


def read_folds(records: Sequence[Record], column: str, folds: int | None, name: str) -> list[int] | None:
    """The fold of each record, 0 for none; None where the column holds something else (kinds of protein folds, say).

    Raises PlftError where the number of folds is not the one asked for.
    """
    texts = [str(each.extra.get(column, "")) for each in records]
    values = [0.0 if is_missing(text) else number(text) for text in texts]
    if any(value is None or value != int(value) or value < 0 for value in values):
        return None
    given = {
        int(value) for value, text in zip(values, texts, strict=True) if not is_missing(text) and value is not None
    }
    if not 2 <= len(given) <= MOST_FOLDS:
        return None
    if folds is not None and folds != len(given):
        raise PlftError(f"{name} has a column '{column}' with {len(given)} folds, not {folds}. Leave --folds out.")
    shift: Callable[[int], int] = (lambda fold: fold + 1) if 0 in given else (lambda fold: fold)
    return [0 if is_missing(text) else shift(int(value or 0)) for value, text in zip(values, texts, strict=True)]
