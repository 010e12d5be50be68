"""What a set of records holds and what is wrong with it, before anything is trained."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, combinations
from typing import Any

import numpy as np

from plft.alphabet import Alphabet, guess_alphabet
from plft.errors import PlftError, first_three
from plft.labels import (
    LARGEST,
    Label,
    TaskType,
    as_text,
    class_name,
    column_values,
    guess_task,
    is_missing,
    label_is_missing,
    member_classes,
    number,
    printable,
    residue_labels,
    shown,
    sorted_classes,
)
from plft.records import Record

LONG = 1022  # residues that fit ESM-2's 1024 training positions, next to <cls> and <eos>
SMALL_TEST = 100  # below this, the 95 % interval of an accuracy is wider than about +-0.1
RARE = 0.05
USUAL_SENTINELS = (999.0, -999.0, 9999.0, -9999.0, 99999.0, -99999.0)
NO_SPLIT = "all"


@dataclass(frozen=True)
class Lengths:
    """Numbers of residues per sequence: five quantiles and the sum."""

    min: int
    q5: float
    median: float
    q95: float
    max: int
    residues: int


@dataclass(frozen=True)
class Letter:
    """How often a letter occurs, and in how many sequences."""

    count: int
    sequences: int


@dataclass(frozen=True)
class LabelSummary:
    """The labels of one split.

    n: label values, one per sequence or residue and column, that could be there.  missing: how many are not, or are
    masked.
    classes: name -> count (multi-label: of members).  ranges: label column -> min, mean and max.
    """

    n: int
    missing: int
    classes: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """What ``plft check`` reports.

    splits: records per split ("all" without splits).  ambiguous, unknown: letters outside the plain alphabet.
    duplicate_sequences: different sequences that occur more than once.  duplicate_rows: records beyond the first of
    each sequence.  conflicting_labels: different sequences with more than one label.  shared: pair of splits ->
    different sequences in both ("test&train").  duplicate_ids: ids that occur more than once.  warnings: what the
    user should know, in plain words.
    """

    files: tuple[str, ...]
    n: int
    alphabet: str
    splits: dict[str, int]
    lengths: Lengths
    ambiguous: dict[str, Letter]
    unknown: dict[str, Letter]
    sequences_with_unknown: int
    task: str | None
    reason: str
    labels: dict[str, LabelSummary]
    duplicate_sequences: int
    duplicate_rows: int
    conflicting_labels: int
    shared: dict[str, int]
    duplicate_ids: int
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the audit as plain dicts, lists, texts and numbers."""
        plain = asdict(self)
        return plain | {"files": list(self.files), "warnings": list(self.warnings)}


def audit(
    records: Iterable[Record],
    task: TaskType | None = None,
    alphabet: Alphabet | None = None,
    *,
    missing: str | None = None,
    columns: Sequence[str] = ("label",),
) -> Audit:
    """Count what the records hold and collect warnings; nothing about the labels is an error here.

    task, alphabet: None means to guess.  missing: the sentinel of missing labels.  columns: names of the label
    columns.  Raises PlftError only where there is no record at all.
    """
    records = list(records)
    if not records:
        raise PlftError("There are no records to check.")
    alphabet = alphabet or guess_alphabet(record.sequence for record in records)
    task, reason = _task(records, task, missing)
    by_split = _by_split(records)
    reading = _Reading(task, missing, tuple(columns[:1] if task and task.is_residue else columns))
    labels = {name: reading.summary(part) for name, part in by_split.items()} if task else {}
    letters = _letters(records, alphabet)
    found = Audit(
        files=tuple(dict.fromkeys(record.file for record in records)),
        n=len(records),
        alphabet=alphabet.name,
        splits={name: len(part) for name, part in by_split.items()},
        lengths=_lengths(records),
        ambiguous=letters.part(alphabet.ambiguous),
        unknown=letters.part(set(letters.counts) - set(alphabet.ambiguous)),
        sequences_with_unknown=letters.n_with_unknown,
        task=task.value if task else None,
        reason=reason,
        labels=labels,
        duplicate_sequences=_n_repeated(record.sequence for record in records),
        duplicate_rows=len(records) - len({record.sequence for record in records}),
        conflicting_labels=_n_conflicting(records, missing),
        shared=_shared(by_split),
        duplicate_ids=_n_repeated(record.id for record in records),
    )
    return _with_warnings(found, records, reading)


def _task(records: Sequence[Record], task: TaskType | None, missing: str | None) -> tuple[TaskType | None, str]:
    if task is not None:
        return TaskType(task), "as named"
    try:
        guess = guess_task(records, missing)
    except PlftError as error:
        return None, str(error)
    return guess.task, guess.reason


def _by_split(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group the records by split: train, valid, test, then others by name."""
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        parts[record.split or NO_SPLIT].append(record)
    usual = [name for name in ("train", "valid", "test") if name in parts]
    return {name: parts[name] for name in (*usual, *sorted(set(parts) - set(usual)))}


# --- sequences


def _lengths(records: Sequence[Record]) -> Lengths:
    lengths = np.fromiter((len(record.sequence) for record in records), dtype=np.int64)
    q5, median, q95 = (float(each) for each in np.quantile(lengths, (0.05, 0.5, 0.95)))
    return Lengths(int(lengths.min()), q5, median, q95, int(lengths.max()), int(lengths.sum()))


@dataclass(frozen=True)
class _Letters:
    counts: Counter[str]
    sequences: Counter[str]
    n_with_unknown: int

    def part(self, letters: Iterable[str]) -> dict[str, Letter]:
        """Return the counts of these letters, where they occur, the most frequent first."""
        present = [letter for letter in letters if letter in self.counts]
        present.sort(key=lambda letter: (-self.counts[letter], letter))
        return {letter: Letter(self.counts[letter], self.sequences[letter]) for letter in present}


def _letters(records: Sequence[Record], alphabet: Alphabet) -> _Letters:
    """Count letters other than the plain ones; whole sequences of plain letters cost next to nothing."""
    plain = alphabet.letters.encode() + "".join(pair[0] for pair in alphabet.respelled).encode()
    counts: Counter[str] = Counter()
    sequences: Counter[str] = Counter()
    n_with_unknown = 0
    for record in records:
        odd = record.sequence.encode("ascii", "replace").translate(None, plain).decode()
        if odd:
            counts.update(odd)
            sequences.update(set(odd))
            n_with_unknown += bool(set(odd) - set(alphabet.ambiguous))
    return _Letters(counts, sequences, n_with_unknown)


def _n_repeated(values: Iterable[str]) -> int:
    return sum(count > 1 for count in Counter(values).values())


def _n_conflicting(records: Sequence[Record], missing: str | None) -> int:
    """Count the different sequences that carry more than one label; missing labels do not count."""
    repeated = {sequence for sequence, n in Counter(record.sequence for record in records).items() if n > 1}
    seen: dict[str, set[object]] = defaultdict(set)
    for record in records:
        if record.sequence in repeated and not label_is_missing(record.label, missing):
            seen[record.sequence].add(_comparable(record.label))
    return sum(len(labels) > 1 for labels in seen.values())


def _comparable(label: Label | None) -> object:
    if isinstance(label, list | tuple):
        return tuple(_comparable(as_text(value)) for value in label)
    text = as_text(label).strip()
    value = number(text)
    # All-digit residue labels of 17 and more residues would be rounded to the same float.
    return text if value is None or len(text) > 15 else value


def _shared(by_split: Mapping[str, Sequence[Record]]) -> dict[str, int]:
    """Count the different sequences that each pair of splits has in common."""
    sequences = {name: {record.sequence for record in part} for name, part in sorted(by_split.items())}
    return {f"{one}&{two}": len(sequences[one] & sequences[two]) for one, two in combinations(sequences, 2)}


# --- labels


@dataclass(frozen=True)
class _Reading:
    """Reads the labels of one task for counting; labels that cannot be read are collected, not raised."""

    task: TaskType | None
    missing: str | None
    columns: tuple[str, ...]
    offenders: list[str] = field(default_factory=list)
    suspects: Counter[float] = field(default_factory=Counter)

    def summary(self, records: Sequence[Record]) -> LabelSummary:
        """Summarise the labels of one split."""
        return self._numbers(records) if self.task and self.task.is_regression else self._classes(records)

    def _classes(self, records: Sequence[Record]) -> LabelSummary:
        labels = [self._texts(record) for record in records]
        counts = Counter(chain.from_iterable(texts for columns in labels for texts in columns))
        n_missing = counts.pop(None, 0)
        by_name: Counter[str] = Counter()
        for text, count in counts.items():
            by_name[class_name(text or "")] += count
        n = len(records) if self.task is TaskType.SEQ_MULTILABEL else counts.total() + n_missing
        return LabelSummary(n, n_missing, {name: by_name[name] for name in sorted_classes(by_name)})

    def _numbers(self, records: Sequence[Record]) -> LabelSummary:
        values: list[list[float]] = [[] for _ in self.columns]
        for record in records:
            for column, texts in zip(values, self._texts(record), strict=False):
                column.extend(self._number(text, record) for text in texts)
        table = np.asarray(values)
        ranges = {
            name: self._range(column[~np.isnan(column)])
            for name, column in zip(self.columns, table, strict=True)
            if not np.isnan(column).all()
        }
        return LabelSummary(table.size, int(np.isnan(table).sum()), ranges=ranges)

    def _texts(self, record: Record) -> list[list[str | None]]:
        """Return the label as one list of texts per column, one text per residue or sequence; None where missing."""
        try:
            return self._checked_texts(record)
        except PlftError as error:
            self.offenders.append(str(error).rstrip("."))
            return []

    def _checked_texts(self, record: Record) -> list[list[str | None]]:
        if self.task and self.task.is_residue:
            return [list(residue_labels(record, self.missing))]
        multilabel = self.task is TaskType.SEQ_MULTILABEL
        if record.label is None or label_is_missing(record.label, self.missing):
            return [[None]] if multilabel else [[None] for _ in self.columns]
        if multilabel:
            return [list(self._members(record, record.label))]
        texts = column_values(record, len(self.columns))
        return [[None if is_missing(text, self.missing) else text] for text in texts]

    def _members(self, record: Record, label: Label) -> list[str]:
        if len(self.columns) == 1:
            return member_classes(label)
        values = column_values(record, len(self.columns))
        return [name for name, value in zip(self.columns, values, strict=True) if class_name(value) == "1"]

    def _number(self, text: str | None, record: Record) -> float:
        value = math.nan if text is None else number(text)
        if value is None or abs(value) > LARGEST:
            self.offenders.append(f"{record.place}: {shown(text)} is not a finite number")
            return math.nan
        return value

    def _range(self, values: np.ndarray) -> dict[str, float]:
        self._suspect(values)
        return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}

    def _suspect(self, values: np.ndarray) -> None:
        """Note a usual sentinel that occurs often and lies far outside the other values."""
        for sentinel in USUAL_SENTINELS:
            others = values[values != sentinel]
            n_found = len(values) - len(others)
            if n_found > 1 and len(others) and np.abs(others).max() * 3 < abs(sentinel):
                self.suspects[sentinel] += n_found


# --- warnings


def _with_warnings(found: Audit, records: Sequence[Record], reading: _Reading) -> Audit:
    warnings = [line for rule in RULES for line in rule(found)]
    warnings += _about_labels_that_do_not_fit(reading)
    warnings += [
        f"The label {sentinel:g} occurs {count:,} times, far from all other values: if it marks missing values, "
        f"name it as the missing value."
        for sentinel, count in sorted(reading.suspects.items())
    ]
    n_long = sum(len(record.sequence) > LONG for record in records)
    if n_long:
        warnings.append(
            f"{_n(n_long, 'sequence')} longer than {LONG:,} residues (longest {found.lengths.max:,}): "
            "they need much memory, and models with a length limit cut them."
        )
    return replace(found, warnings=tuple(warnings))


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _about_labels_that_do_not_fit(reading: _Reading) -> list[str]:
    if not reading.offenders:
        return []
    return [f"{_n(len(reading.offenders), 'label')} cannot be used: {first_three(reading.offenders)}."]


def _about_letters(found: Audit) -> list[str]:
    if not found.unknown:
        return []
    listed = ", ".join(f"'{letter}' in {_n(each.sequences, 'sequence')}" for letter, each in found.unknown.items())
    count = sum(each.count for each in found.unknown.values())
    lines = [f"{_n(count, 'letter')} outside the {found.alphabet} alphabet ({listed}); read as unknown by default."]
    if count > 0.1 * found.lengths.residues:
        lines.append(f"More than a tenth of all letters are unknown: are these really {found.alphabet} sequences?")
    return lines


def _about_duplicates(found: Audit) -> list[str]:
    lines = []
    if found.duplicate_sequences:
        extra = _n(found.duplicate_rows, "extra row")
        lines.append(f"{_n(found.duplicate_sequences, 'sequence')} occurring more than once ({extra}).")
    if found.conflicting_labels:
        lines.append(f"{_n(found.conflicting_labels, 'sequence')} occurring with different labels.")
    if found.duplicate_ids:
        lines.append(f"{_n(found.duplicate_ids, 'id')} occurring more than once.")
    return lines


def _about_shared(found: Audit) -> list[str]:
    return [
        f"{_n(count, 'sequence')} shared by {printable(pair.replace('&', ' and '))}: results look better than they are."
        for pair, count in found.shared.items()
        if count
    ]


def _about_splits(found: Audit) -> list[str]:
    if found.task is None:
        return []
    if set(found.splits) == {NO_SPLIT}:
        return ["No record has a split: training would split 80/10/10 by itself."]
    lines = [f"There is no {name} split." for name in ("train", "valid", "test") if name not in found.splits]
    if NO_SPLIT in found.splits:
        lines.append(f"{_n(found.splits[NO_SPLIT], 'record')} without a split.")
    if 0 < found.splits.get("test", 0) < SMALL_TEST:
        lines.append(f"test holds only {_n(found.splits['test'], 'sequence')}: its intervals will be wide.")
    return lines


def _about_missing(found: Audit) -> list[str]:
    return [
        f"{each.missing:,} of {each.n:,} labels missing or masked in {printable(name)}."
        for name, each in found.labels.items()
        if each.missing
    ]


def _about_classes(found: Audit) -> list[str]:
    learned = found.labels.get("train") or found.labels.get(NO_SPLIT)
    if learned is None or not learned.classes:
        return []
    return [*_unseen_classes(found, learned), *_rare_classes(learned), *_shifted_classes(found, learned)]


def _unseen_classes(found: Audit, learned: LabelSummary) -> list[str]:
    lines = []
    for name, each in found.labels.items():
        unseen = [f"{shown(one)} ({count:,})" for one, count in each.classes.items() if one not in learned.classes]
        if unseen:
            lines.append(f"{printable(name)} holds classes that train lacks: {first_three(unseen)}.")
    return lines


def _shares(summary: LabelSummary) -> dict[str, float]:
    total = sum(summary.classes.values())
    return {name: count / total for name, count in summary.classes.items()}


def _rare_classes(learned: LabelSummary) -> list[str]:
    shares = _shares(learned)
    rare = [f"{shown(name)} {share:.1%}" for name, share in shares.items() if share < min(RARE, 0.5 / len(shares))]
    if len(learned.classes) == 1:
        return [f"All labels to learn from are {shown(next(iter(learned.classes)))}."]
    if not rare:
        return []
    return [f"Rare classes to learn from: {first_three(rare)}. Look at MCC and F1 rather than accuracy."]


def _shifted_classes(found: Audit, learned: LabelSummary) -> list[str]:
    """Name the classes at least twice as frequent in one of train and test as in the other."""
    test = found.labels.get("test")
    if test is None or not test.classes:
        return []
    pairs = {name: (share, _shares(test).get(name, 0.0)) for name, share in _shares(learned).items()}
    shifted = [
        f"{shown(name)} makes up {one:.1%} of train but {other:.1%} of test"
        for name, (one, other) in pairs.items()
        if max(one, other) >= 2 * min(one, other) and abs(one - other) >= 0.1
    ]
    return [f"Classes differ in frequency: {first_three(shifted)}."] if shifted else []


RULES: tuple[Callable[[Audit], list[str]], ...] = (
    _about_splits,
    _about_shared,
    _about_duplicates,
    _about_letters,
    _about_missing,
    _about_classes,
)
