"""The worst predictions of a run, read from its predictions table: where a reader looks first.

Which columns the table has depends on the task, and so does what "worst" means: one row of TABLE per task.
"""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from plft.errors import PlftError
from plft.labels import TaskType
from plft.plots import significant

Cells = dict[str, str]
LONGEST_CELL = 60


@dataclass(frozen=True)
class Mistakes:
    """A small table, worst first.

    n_text: how many leading columns are words.  note: how the order came about.  n: how many mistakes there are in all.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int
    note: str
    n: int


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction.  badness: the larger, the worse."""

    badness: float
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """What a mistake is in one task.  find: rows of the predictions table -> the mistakes among them."""

    header: tuple[str, ...]
    n_text: int
    note: str
    find: Callable[[Iterable[Cells]], Iterator[Mistake]]


def worst_mistakes(table: Path, task: TaskType, most: int = 10) -> Mistakes:
    """Return the worst predictions of a CSV table; rows without a label do not count.

    Raises PlftError when the table cannot be read or lacks a column the task needs.
    """
    kind = TABLE[task]
    count = 0

    def counted() -> Iterator[Mistake]:
        nonlocal count
        for mistake in kind.find(_rows(table)):
            count += 1
            yield mistake

    try:
        worst = heapq.nlargest(most, counted(), key=lambda mistake: mistake.badness)
    except KeyError as missing:
        raise PlftError(
            f"{table.name}: there is no column {missing}. Train the run again, or copy the file again."
        ) from None
    except (ValueError, csv.Error, OSError) as error:
        raise PlftError(f"{table.name} cannot be read: {error}. Train the run again, or copy the file again.") from None
    return Mistakes(kind.header, tuple(mistake.cells for mistake in worst), kind.n_text, kind.note, count)


def _rows(table: Path) -> Iterator[Cells]:
    with table.open(newline="", encoding="utf-8") as handle:
        yield from csv.DictReader(handle)


def _wrong_classes(rows: Iterable[Cells]) -> Iterator[Mistake]:
    for row in rows:
        true, predicted = row["label"], row["prediction"]
        if true not in ("", predicted):
            confidence = float(row.get(f"probability_{predicted}") or "nan")
            cells = (_short(row["id"]), _short(true), _short(predicted), _percent(confidence))
            yield Mistake(confidence if math.isfinite(confidence) else 0.0, cells)


def _wrong_sets(rows: Iterable[Cells]) -> Iterator[Mistake]:
    for row in rows:
        known = {name for name in _members(row["label"]) if not name.endswith("?")}
        unknown = {name[:-1] for name in _members(row["label"]) - known}  # cells that were empty
        true, predicted = known, _members(row["prediction"]) - unknown
        different = true ^ predicted
        if row["label"] and different:
            shown = (_short(row["id"]), _joined(true - predicted), _joined(predicted - true), _joined(true & predicted))
            yield Mistake(len(different) + _surprise(row, true, different), shown)


def _surprise(row: Cells, true: set[str], different: set[str]) -> float:
    """Break ties between equally many wrong labels by how sure the model was of them: 0 to 1."""
    sure = [float(row.get(f"probability_{name}") or 0.5) for name in different]
    off = [1 - p if name in true else p for name, p in zip(different, sure, strict=True)]
    return sum(off) / (len(off) + 1)


def _wrong_values(rows: Iterable[Cells]) -> Iterator[Mistake]:
    for row in rows:
        for suffix in _suffixes(row):
            true, predicted = row[f"label{suffix}"], row[f"prediction{suffix}"]
            if true and predicted:
                error = float(predicted) - float(true)
                name = _short(row["id"]) + (f" ({_short(suffix[1:])})" if suffix else "")
                yield Mistake(
                    abs(error), (name, significant(float(true)), significant(float(predicted)), significant(error, "+"))
                )


def _suffixes(row: Cells) -> Sequence[str]:
    if "label" in row:
        return ("",)
    found = [name.removeprefix("label") for name in row if name.startswith("label_")]
    if not found:
        raise KeyError("label")
    return found


def _by_protein(rows: Iterable[Cells]) -> Iterator[tuple[str, list[Cells]]]:
    """Group residues of one sequence, which stand together and count up from position 1."""
    starts = 0

    def number_of_sequence(row: Cells) -> int:
        nonlocal starts
        starts += row["position"] == "1"
        return starts

    for _, residues in groupby(rows, key=number_of_sequence):
        labelled = list(residues)
        yield labelled[0]["id"], [row for row in labelled if row["label"]]


def _wrong_residues(rows: Iterable[Cells]) -> Iterator[Mistake]:
    for name, residues in _by_protein(rows):
        wrong = sum(row["label"] != row["prediction"] for row in residues)
        if wrong:
            share = wrong / len(residues)
            yield Mistake(share, (_short(name), f"{len(residues):,}", f"{wrong:,}", _percent(1 - share)))


def _wrong_residue_values(rows: Iterable[Cells]) -> Iterator[Mistake]:
    for name, residues in _by_protein(rows):
        errors = [float(row["prediction"]) - float(row["label"]) for row in residues]
        if errors:
            size, bias = sum(map(abs, errors)) / len(errors), sum(errors) / len(errors)
            yield Mistake(size, (_short(name), f"{len(errors):,}", significant(size), significant(bias, "+")))


def _members(text: str) -> set[str]:
    return set(filter(None, text.split("|")))


def _joined(names: set[str]) -> str:
    return ", ".join(_short(name) for name in sorted(names)) or "none"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "unknown"


TABLE: dict[TaskType, Kind] = {
    TaskType.SEQ_CLASSIFICATION: Kind(
        ("sequence", "true", "predicted", "confidence"),
        3,
        "Wrong predictions, the most confident first.",
        _wrong_classes,
    ),
    TaskType.SEQ_MULTILABEL: Kind(
        ("sequence", "missed", "predicted in error", "right"),
        4,
        "Sequences with the most wrong labels first.",
        _wrong_sets,
    ),
    TaskType.SEQ_REGRESSION: Kind(
        ("sequence", "true", "predicted", "error"),
        1,
        "Largest errors first.",
        _wrong_values,
    ),
    TaskType.TOKEN_CLASSIFICATION: Kind(
        ("sequence", "scored residues", "wrong", "accuracy"),
        1,
        "Sequences with the largest share of wrong residues first.",
        _wrong_residues,
    ),
    TaskType.TOKEN_REGRESSION: Kind(
        ("sequence", "scored residues", "MAE", "mean error"),
        1,
        "Sequences with the largest mean absolute error first.",
        _wrong_residue_values,
    ),
}
