"""How a label is read: task types, missing values, classes, and the numbers a model learns from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plft.errors import PlftError, did_you_mean, first_three, look_up

Scalar = str | int | float | bool | None
Label = str | tuple[str, ...] | list[Any]
Target = npt.NDArray[Any]

LARGEST = float(np.finfo(np.float32).max)
IGNORED_CLASS = -100  # the index that torch's cross-entropy leaves out
# "none" and "na" in lower case are not here: they may well be the names of classes.
MISSING_TEXTS = frozenset({"", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "None", "null", "NULL", "-100"})


class TaskType(StrEnum):
    """What is predicted: for a whole sequence or for every residue; a class, a number or a set of classes."""

    SEQ_CLASSIFICATION = "seq_classification"
    SEQ_REGRESSION = "seq_regression"
    TOKEN_CLASSIFICATION = "token_classification"
    TOKEN_REGRESSION = "token_regression"
    SEQ_MULTILABEL = "seq_multilabel"

    @classmethod
    def named(cls, name: str) -> TaskType:
        """Return the task of that name; an unknown one is a PlftError that lists the known ones."""
        return look_up("task", name, {task.value: task for task in cls})

    @property
    def is_residue(self) -> bool:
        """Whether every residue has its own label."""
        return self in (TaskType.TOKEN_CLASSIFICATION, TaskType.TOKEN_REGRESSION)

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers on a scale."""
        return self in (TaskType.SEQ_REGRESSION, TaskType.TOKEN_REGRESSION)

    @property
    def is_multilabel(self) -> bool:
        """Whether a sequence may have several classes, or none."""
        return self is TaskType.SEQ_MULTILABEL

    @property
    def is_classification(self) -> bool:
        """Whether exactly one class is right for each sequence or residue."""
        return self in (TaskType.SEQ_CLASSIFICATION, TaskType.TOKEN_CLASSIFICATION)


class Labelled(Protocol):
    """The part of a record that labels are read from."""

    @property
    def sequence(self) -> str: ...
    @property
    def label(self) -> Label | None: ...
    @property
    def mask(self) -> str | None: ...
    @property
    def place(self) -> str: ...


# --- text and numbers


def printable(value: object, limit: int = 40) -> str:
    """Return a value as one short line without control characters, cut after ``limit`` characters."""
    text = str(value)
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def shown(value: object, limit: int = 40) -> str:
    """Return a value in quotes for a message: ``'abc'``; see ``printable``."""
    return f"'{printable(value, limit)}'"


def as_text(value: object) -> str:
    """Return a label value as text; None becomes the empty string, which is missing."""
    return "" if value is None else str(value)


def number(text: str) -> float | None:
    """Return the text as a number (infinities too), or None where it is not one. ``1_000`` is not a number."""
    if "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


# Residue labels ask this millions of times about the same few texts.
@lru_cache(maxsize=4096, typed=True)
def is_missing(value: Scalar, sentinel: str | None = None) -> bool:
    """Tell whether a value stands for "not known": empty, NaN, NA, None, null, -100 or the user's sentinel.

    A numeric sentinel is compared as a number: 999 also matches ``999.0``.
    """
    text = as_text(value).strip()
    if text in MISSING_TEXTS or text == as_text(sentinel):
        return True
    value = None if text[0].isalpha() else number(text)
    return value is not None and (math.isnan(value) or value in (IGNORED_CLASS, number(as_text(sentinel))))


@lru_cache(maxsize=4096)
def class_name(text: str) -> str:
    """Return the name of a class as text; ``1.0``, which is how tables with gaps write 1, becomes ``1``."""
    text = text.strip() or text
    return text.partition(".")[0] if re.fullmatch(r"-?(0|[1-9]\d*)\.0+", text) else text


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names as numbers where all of them are numbers, otherwise as text. Names occur once."""
    distinct = sorted(set(names))
    numbers = [number(name) for name in distinct]
    if any(value is None or math.isnan(value) for value in numbers):
        return tuple(distinct)
    return tuple(sorted(distinct, key=float))


# --- labels of residues


def label_is_missing(label: Label | None, sentinel: str | None = None) -> bool:
    """Tell whether a record has no label at all; of several columns, whether all are missing."""
    if isinstance(label, tuple):
        return all(is_missing(value, sentinel) for value in label)
    return not isinstance(label, list) and is_missing(label, sentinel)


def separate(label: Label, length: int) -> list[str]:
    """Take the label of a sequence of ``length`` residues apart into one text per residue.

    A list gives its entries; text with as many entries between commas or spaces as there are residues gives those;
    any other text its characters.  The result may be shorter or longer than ``length``: then the label does not fit.
    """
    if not isinstance(label, str):
        return [as_text(value) for value in label]
    tokens = _tokens(label)
    # "1 2" is two numbers even for a sequence of three residues.
    if len(tokens) == length or "," in label or (len(tokens) > 1 and all(number(each) is not None for each in tokens)):
        return tokens
    for text in (label, label.strip()):
        if len(text) == length:
            return list(text)
    return tokens if len(tokens) > 1 else list(label.strip())


def _tokens(text: str) -> list[str]:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = text.split(",") if "," in text else text.split()
    return [part.strip().strip("\"'") for part in parts]


def fits_residues(label: Label | None, length: int) -> bool:
    """Tell whether the label could be one value per residue of a sequence of that length."""
    return label is not None and not isinstance(label, tuple) and len(separate(label, length)) == length


def residue_labels(record: Labelled, missing: str | None = None) -> list[str | None]:
    """Return one text per residue; None where the value is missing or the mask is 0.

    Raises PlftError where the label or the mask does not have one value per residue.
    """
    length = len(record.sequence)
    if record.label is None or label_is_missing(record.label, missing):
        return [None] * length
    if isinstance(record.label, tuple):
        raise PlftError(f"{record.place}: a label per residue comes from one column, not from {len(record.label)}.")
    texts = separate(record.label, length)
    if len(texts) != length:
        raise _wrong_length(record, "label", len(texts))
    values = [None if is_missing(text, missing) and text != " " else text for text in texts]
    return values if record.mask is None else _masked(record, values, record.mask)


def _masked(record: Labelled, values: list[str | None], mask: str) -> list[str | None]:
    if len(mask) != len(values):
        raise _wrong_length(record, "mask", len(mask))
    return [None if kept == "0" else value for value, kept in zip(values, mask, strict=True)]


def _wrong_length(record: Labelled, what: str, n_values: int) -> PlftError:
    return PlftError(
        f"{record.place}: the {what} has {n_values} values but the sequence has {len(record.sequence)} residues. "
        f"Give one {what} value per residue."
    )


# --- labels of sequences


def member_classes(label: Label) -> list[str]:
    """Return the classes of a multi-label: the entries of a list or what ``|`` separates; ``|`` alone is none."""
    parts = label.split("|") if isinstance(label, str) else [as_text(value) for value in label]
    return [class_name(part) for part in parts if part.strip()]


def column_values(record: Labelled, n_columns: int = 1) -> list[str]:
    """Return the label as one text per label column; PlftError where a list stands for a single value."""
    if record.label is None:
        return [""] * n_columns
    if isinstance(record.label, list):
        raise PlftError(
            f"{record.place}: the label is a list of {len(record.label)} values where one value is expected. "
            "Choose a residue task or seq_multilabel."
        )
    values = [record.label] if isinstance(record.label, str) else list(record.label)
    if len(values) != n_columns:
        raise PlftError(f"{record.place}: {len(values)} label columns where {n_columns} are expected.")
    return [value.strip() for value in values]


# --- guessing the task


def is_known(target: Target) -> npt.NDArray[np.bool_]:
    """Which targets are not missing (NaN, or a class below 0): bool in the shape of the target."""
    return np.asarray(~np.isnan(target) if np.issubdtype(target.dtype, np.floating) else target >= 0)


@dataclass(frozen=True)
class Guess:
    """A task and, for the user, why: one clause such as ``label holds 2 different texts (no, yes)``."""

    task: TaskType
    reason: str


def guess_task(records: Iterable[Labelled], missing: str | None = None) -> Guess:
    """Decide the task from the labels alone.

    Labels that have one value per residue mean a residue task; several numeric columns a regression with several
    outputs; lists or ``|`` a multi-label task; few different whole numbers, or texts, classes; other numbers a
    regression.  Raises PlftError where no record has a label.
    """
    labelled = [record for record in records if not label_is_missing(record.label, missing)]
    if not labelled:
        raise PlftError("No record has a label, so the task cannot be guessed. Name the label column.")
    if any(isinstance(record.label, tuple) for record in labelled):
        return _guess_from_columns(labelled, missing)
    if _looks_per_residue(labelled):
        return _guess_from_residues(labelled, missing)
    if any(isinstance(record.label, list) for record in labelled):
        return Guess(TaskType.SEQ_MULTILABEL, "label holds lists that do not have one value per residue")
    if any("|" in as_text(record.label) for record in labelled):
        return Guess(TaskType.SEQ_MULTILABEL, "some labels join several classes with '|'")
    return _guess_from_values([class_name(as_text(record.label)) for record in labelled])


def _guess_from_columns(labelled: Sequence[Labelled], missing: str | None) -> Guess:
    texts = {text for record in labelled for text in as_columns(record.label) if not is_missing(text, missing)}
    wrong = sorted(text for text in texts if number(text) is None)
    if wrong:
        raise PlftError(
            f"Several label columns must hold numbers, but {first_three([shown(text) for text in wrong])} is not one."
        )
    if {class_name(text) for text in texts} <= {"0", "1"}:
        return Guess(TaskType.SEQ_MULTILABEL, "several label columns hold only 0 and 1")
    return Guess(TaskType.SEQ_REGRESSION, "several label columns hold numbers")


def as_columns(label: Label | None) -> tuple[str, ...]:
    """Return a label as a tuple of column texts, also where there is only one column."""
    if isinstance(label, tuple):
        return label
    return () if label is None else (as_text(label),)


def _looks_per_residue(labelled: Sequence[Labelled]) -> bool:
    lengths = {len(record.sequence) for record in labelled}
    if lengths == {1}:
        return False
    n_fitting = sum(fits_residues(record.label, len(record.sequence)) for record in labelled)
    # One wrong label among many must end in an error about that row, not in a class for each label.
    if n_fitting < len(labelled) and (len(labelled) < 20 or n_fitting < 0.9 * len(labelled)):
        return False
    return any(_lists_residues(record) for record in labelled) or not _happens_to_fit(labelled, lengths)


def _lists_residues(record: Labelled) -> bool:
    values = _tokens(record.label) if isinstance(record.label, str) else record.label
    return isinstance(values, list) and len(values) == len(record.sequence) > 1


def _happens_to_fit(labelled: Sequence[Labelled], lengths: set[int]) -> bool:
    """Tell whether words of one length ("negative", "positive" for 8-mers) or fractions only look like residues."""
    texts = {as_text(record.label) for record in labelled}
    if all("." in text and number(text) is not None for text in texts):
        return True
    return len(lengths) == 1 and len(labelled) >= 4 and len(texts) <= len(labelled) / 2


def _guess_from_residues(labelled: Sequence[Labelled], missing: str | None) -> Guess:
    fitting = [record for record in labelled if fits_residues(record.label, len(record.sequence))]
    texts = {text for record in fitting for text in separate(record.label or "", len(record.sequence))}
    names = {class_name(text) for text in texts if not is_missing(text, missing)}
    numbers = [number(name) for name in names]
    if not any(value is None for value in numbers) and (len(names) > 20 or not all(map(_is_whole, numbers))):
        return Guess(TaskType.TOKEN_REGRESSION, "label holds a number for every residue")
    listed = _listed(sorted_classes(names))
    return Guess(TaskType.TOKEN_CLASSIFICATION, f"label holds one of {len(names)} classes for every residue ({listed})")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:6])) + (", ..." if len(names) > 6 else "")


def _guess_from_values(names: Sequence[str]) -> Guess:
    distinct = sorted_classes(names)
    listed = _listed(distinct)
    numbers = [value for value in map(number, distinct) if value is not None]
    if len(numbers) < len(distinct):
        return Guess(TaskType.SEQ_CLASSIFICATION, f"label holds {len(distinct)} different texts ({listed})")
    # Few whole numbers that come back often are codes of classes; counts and scores are spread wider.
    if all(map(_is_whole, numbers)) and len(distinct) <= max(2, min(20, len(names) // 5)):
        return Guess(TaskType.SEQ_CLASSIFICATION, f"label holds {len(distinct)} different whole numbers ({listed})")
    span = f"from {min(numbers):g} to {max(numbers):g}"
    return Guess(TaskType.SEQ_REGRESSION, f"label holds {len(distinct)} different numbers {span}")


def _is_whole(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value == int(value)


# --- what a model learns from


@dataclass(frozen=True)
class LabelSpace:
    """The classes or the scale of the train labels, and how a label becomes numbers.

    classes: names in the order of the model's outputs; of two classes the last is the positive one.
    columns: names of the regression outputs (or of the 0/1 columns of a multi-label task).
    mean, scale: of the train values, one per column; the scale of a constant column is 1.
    missing: the user's sentinel for missing values, such as ``"999"``.
    """

    task: TaskType
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("label",)
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    missing: str | None = None

    @property
    def n_outputs(self) -> int:
        """Width of the model's output: the number of classes, or of regression columns."""
        return len(self.columns) if self.task.is_regression else len(self.classes)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    @classmethod
    def fit(
        cls,
        task: TaskType,
        records: Iterable[Labelled],
        missing: str | None = None,
        columns: Sequence[str] = ("label",),
    ) -> LabelSpace:
        """Find the classes, or mean and scale, of the train records; other splits must not be passed.

        Raises PlftError where no label is present, fewer than two classes occur, or a regression label is not a
        finite number.
        """
        task = TaskType(task)
        if task.is_residue and len(columns) != 1:
            raise PlftError(f"A residue task has one label column, not {len(columns)}. Choose one.")
        blank = cls(task, columns=tuple(columns), missing=missing)
        return blank._with_scale(records) if task.is_regression else blank._with_classes(records)

    def _with_classes(self, records: Iterable[Labelled]) -> LabelSpace:
        if self._one_column_per_class:
            names = self.columns
        else:
            names = sorted_classes({name for record in records for name in self._names(record) if name is not None})
        if not names:
            raise PlftError("No train record has a label. Check the label column and the missing value.")
        if len(names) < 2 and not self.task.is_multilabel:
            raise PlftError(
                f"All train labels are {shown(names[0])}; classification needs at least two classes. "
                "Check the label column, or add records of another class."
            )
        return LabelSpace(self.task, names, self.columns, missing=self.missing)

    def _with_scale(self, records: Iterable[Labelled]) -> LabelSpace:
        read = _Numbers(self.missing)
        values = np.concatenate(
            [np.empty((0, self.n_outputs)), *(read.of(record, self) for record in records)], dtype=np.float64
        )
        read.refuse_offenders()
        for name, column in zip(self.columns, values.T, strict=True):
            if np.isnan(column).all():
                raise PlftError(f"No train record has a value for '{name}'. Check the label column.")
        deviations = np.nanstd(values, axis=0)
        rounding = 1e-12 * np.nanmax(np.abs(values), axis=0)
        scale = np.where(deviations <= rounding, 1.0, deviations)
        return LabelSpace(
            self.task,
            columns=self.columns,
            mean=tuple(map(float, np.nanmean(values, axis=0))),
            scale=tuple(map(float, scale)),
            missing=self.missing,
        )

    @property
    def _one_column_per_class(self) -> bool:
        return self.task.is_multilabel and len(self.columns) > 1

    def _names(self, record: Labelled) -> Sequence[str | None]:
        """Return the class names of a record, one per residue for residue tasks; None where missing."""
        if self.task.is_residue:
            return [text if text is None else class_name(text) for text in residue_labels(record, self.missing)]
        if record.label is None or label_is_missing(record.label, self.missing):
            return [None]
        if self.task.is_multilabel:
            return member_classes(record.label)
        return [class_name(column_values(record)[0])]

    def unseen(self, record: Labelled) -> set[str]:
        """Return the classes of a record that the train records lack."""
        if self.task.is_regression or self._one_column_per_class:
            return set()
        return {name for name in self._names(record) if name is not None and name not in self._index}

    def encode(self, record: Labelled, unseen: str = "error") -> Target:
        """Return the label of one record as numbers in raw units.

        seq_classification: int64, shape (), -100 when missing.  token_classification: int64 (residues,), -100 when
        missing or masked.  seq_multilabel: float32 (classes,) of 0 and 1, NaN when missing.  seq_regression: float32
        (columns,), NaN when missing.  token_regression: float32 (residues,), NaN when missing or masked.
        unseen: "error" raises PlftError for a class that the train records lack, "missing" takes the label for missing.
        Raises PlftError where lengths differ or a regression label is not a finite number.
        """
        return _ENCODERS[self.task](self, record, unseen)

    def _class_index(self, name: str | None, record: Labelled, unseen: str) -> int:
        if name is None:
            return IGNORED_CLASS
        if name not in self._index and unseen == "error":
            known = list(map(printable, self.classes))
            advice = f"{did_you_mean(name, known)} Training with data.unseen_classes=drop leaves it out."
            where = f"{record.place}: class {shown(name)} does not occur in the train split"
            raise PlftError(f"{where}. Known: {first_three(known, 'others')}.{advice}")
        return self._index.get(name, IGNORED_CLASS)

    def _encode_class(self, record: Labelled, unseen: str) -> Target:
        return np.asarray(self._class_index(self._names(record)[0], record, unseen), dtype=np.int64)

    def _encode_residue_classes(self, record: Labelled, unseen: str) -> Target:
        indices = [self._class_index(name, record, unseen) for name in self._names(record)]
        return np.asarray(indices, dtype=np.int64)

    def _encode_members(self, record: Labelled, unseen: str) -> Target:
        if self._one_column_per_class:
            return self._encode_member_columns(record)
        present = {self._class_index(name, record, unseen) for name in self._names(record)}
        if IGNORED_CLASS in present:
            return np.full(len(self.classes), np.nan, dtype=np.float32)
        return np.asarray([index in present for index in range(len(self.classes))], dtype=np.float32)

    def _encode_member_columns(self, record: Labelled) -> Target:
        read = _Numbers(self.missing)
        values = np.asarray([read.one(text, record) for text in column_values(record, len(self.columns))])
        read.refuse_offenders()
        if not np.isin(values[~np.isnan(values)], (0, 1)).all():
            raise PlftError(f"{record.place}: a multi-label column holds {values.max():g}; only 0 and 1 are possible.")
        return values.astype(np.float32)

    def _encode_numbers(self, record: Labelled, unseen: str) -> Target:
        read = _Numbers(self.missing)
        values = read.of(record, self)
        read.refuse_offenders()
        return (values[:, 0] if self.task.is_residue else values[0]).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return the space as a plain dict that ``from_json`` reads back."""
        return {
            "task": self.task.value,
            "classes": list(self.classes),
            "columns": list(self.columns),
            "mean": list(self.mean),
            "scale": list(self.scale),
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> LabelSpace:
        """Build the space from what ``to_json`` returned."""
        lists = {name: tuple(fields[name]) for name in ("classes", "columns", "mean", "scale")}
        return cls(TaskType.named(fields["task"]), missing=fields["missing"], **lists)


_ENCODERS: dict[TaskType, Callable[[LabelSpace, Labelled, str], Target]] = {
    TaskType.SEQ_CLASSIFICATION: LabelSpace._encode_class,
    TaskType.SEQ_REGRESSION: LabelSpace._encode_numbers,
    TaskType.TOKEN_CLASSIFICATION: LabelSpace._encode_residue_classes,
    TaskType.TOKEN_REGRESSION: LabelSpace._encode_numbers,
    TaskType.SEQ_MULTILABEL: LabelSpace._encode_members,
}


class _Numbers:
    """Reads numbers and collects what is not one, so that an error can name the first three and count the rest."""

    def __init__(self, missing: str | None) -> None:
        self.missing = missing
        self.offenders: list[str] = []

    def one(self, text: str | None, record: Labelled) -> float:
        """Return the number, NaN when missing or when the text is not a finite number."""
        value = None if text is None else number(text)
        if value is not None and abs(value) <= LARGEST and not is_missing(text, self.missing):
            return value
        if text is not None and not is_missing(text, self.missing):
            self.offenders.append(f"{record.place}: {shown(text)}")
        return math.nan

    def of(self, record: Labelled, space: LabelSpace) -> Target:
        """Return the values of a record, shape (1, columns), or (residues, 1) for residue tasks."""
        if space.task.is_residue:
            return np.asarray([[self.one(text, record)] for text in residue_labels(record, self.missing)])
        return np.asarray([[self.one(text, record) for text in column_values(record, len(space.columns))]])

    def refuse_offenders(self) -> None:
        """Raise PlftError if any text was not a number."""
        if self.offenders:
            raise PlftError(
                f"A regression label must be a finite number, but {first_three(self.offenders)}. "
                "Correct it, name the missing value, or choose a classification task."
            )
