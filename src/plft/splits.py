"""Records -> train, valid and test; equal sequences always stay in one part."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from plft.errors import PlftError, first_three, look_up
from plft.labels import (
    TaskType,
    as_columns,
    class_name,
    is_missing,
    label_is_missing,
    member_classes,
    number,
    printable,
)
from plft.records import Record

N_BINS = 10  # strata of a regression: tenths of the sorted values
Group = tuple[int, ...]  # indices of records that must not be parted


@dataclass(frozen=True)
class Split:
    """The records in their old order, each with its split, and one sentence that says how they were split."""

    records: list[Record]
    sentence: str


# --- which records belong together


def _by_sequence(records: Sequence[Record], column: str | None) -> list[Group]:
    """Put records with equal sequences together, in the order of their first occurrence."""
    members: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        members.setdefault(record.sequence, []).append(index)
    return [tuple(group) for group in members.values()]


def _by_column(records: Sequence[Record], column: str | None) -> list[Group]:
    """Put records with an equal value in a column together, and groups that share a sequence as well."""
    if column is None:
        raise PlftError("Splitting by group needs the column that holds the groups. Name it.")
    root: dict[Hashable, Hashable] = {}

    def find(key: Hashable) -> Hashable:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for record in records:
        value = _group_value(record, column)
        if not is_missing(value):
            root[find(("group", value))] = find(("sequence", record.sequence))
    members: dict[Hashable, list[int]] = {}
    for index, record in enumerate(records):
        members.setdefault(find(("sequence", record.sequence)), []).append(index)
    return [tuple(group) for group in members.values()]


def _group_value(record: Record, column: str) -> str:
    if column not in record.extra:
        raise PlftError(f"{record.place}: has no group column '{column}'. Name a column that every row has.")
    return str(record.extra[column])


# --- what should be spread evenly


def _one_stratum(records: Sequence[Record], groups: Sequence[Group], task: TaskType) -> list[str]:
    return [""] * len(groups)


def _by_label(records: Sequence[Record], groups: Sequence[Group], task: TaskType) -> list[str]:
    """Name the stratum of each group by its first label: class, tenth of the value, or tenth of the length."""
    first = [records[group[0]] for group in groups]
    if task.is_residue:
        return _tenths([float(len(record.sequence)) for record in first])
    if task.is_regression:
        return _tenths([_first_number(record) for record in first])
    if task.is_multilabel:
        return _rarest_class(first)
    return ["" if label_is_missing(record.label) else class_name(as_columns(record.label)[0]) for record in first]


def _first_number(record: Record) -> float | None:
    values = [number(text) for text in as_columns(record.label) if not is_missing(text)]
    return next((value for value in values if value is not None), None)


def _tenths(values: Sequence[float | None]) -> list[str]:
    ordered = sorted(value for value in values if value is not None)
    edges = [ordered[len(ordered) * tenth // N_BINS] for tenth in range(1, N_BINS)] if ordered else []
    return ["" if value is None else f"{bisect_right(edges, value):02d}" for value in values]


def _rarest_class(records: Sequence[Record]) -> list[str]:
    members = [_members(record) for record in records]
    counts = Counter(name for names in members for name in names)
    return [min(names, key=lambda name: (counts[name], name), default="") for names in members]


def _members(record: Record) -> list[str]:
    if isinstance(record.label, tuple):
        return [str(index) for index, value in enumerate(record.label) if class_name(value) == "1"]
    return [] if record.label is None or label_is_missing(record.label) else sorted(set(member_classes(record.label)))


@dataclass(frozen=True)
class Splitter:
    """One way to split: which records stay together, and what is spread evenly over the parts.

    largest_first: deal out large groups before small ones, which can then even out the shares.
    """

    title: str
    groups: Callable[[Sequence[Record], str | None], list[Group]]
    strata: Callable[[Sequence[Record], Sequence[Group], TaskType], list[str]]
    largest_first: bool = False


SPLITTERS: dict[str, Splitter] = {
    "random": Splitter("at random", _by_sequence, _one_stratum),
    "stratified": Splitter("at random within classes, value ranges or lengths", _by_sequence, _by_label),
    "group": Splitter("at random by whole groups", _by_column, _one_stratum, largest_first=True),
}


# --- dealing out


def _draw(records: Sequence[Record], group: Group, seed: int) -> bytes:
    """Return a hash of the seed and a sequence of the group: a random order that is the same on every machine."""
    smallest = min(records[member].sequence for member in group)
    return hashlib.blake2b(f"{seed}:{smallest}".encode(), digest_size=16).digest()


def _deal(sizes: Sequence[int], strata: Sequence[str], order: Iterable[int], shares: Mapping[str, float]) -> list[str]:
    """Give each group, in order, to the part that is furthest behind its share.

    The count runs on from stratum to stratum, so that many small strata still add up to the shares.  The first group
    of a stratum goes to train: a class that train lacks could not be learned.
    """
    parts = [""] * len(sizes)
    behind = dict.fromkeys(shares, 0.0)
    previous: str | None = None
    for index in order:
        for part, share in shares.items():
            behind[part] += share * sizes[index]
        furthest = max(behind, key=lambda part: behind[part])
        parts[index] = "train" if strata[index] != previous else furthest
        behind[parts[index]] -= sizes[index]
        previous = strata[index]
    return parts


def _divide(
    records: Sequence[Record], by: str, task: TaskType, seed: int, shares: Mapping[str, float], column: str | None
) -> list[Record]:
    splitter = look_up("way to split", by, SPLITTERS)
    groups = splitter.groups(records, column)
    wanted = {part: share for part, share in shares.items() if share > 0}
    if len(groups) < len(wanted):
        what = "group" if by == "group" else "different sequence"
        raise PlftError(
            f"Cannot split {len(groups)} {what}(s) into {', '.join(wanted)}. Give more, or files for each part."
        )
    strata = splitter.strata(records, groups, task)
    sizes = [len(group) for group in groups]
    frequency = Counter(strata)
    keys = [
        # Rare strata first: what they cannot give to valid and test, the frequent ones make up for.
        (frequency[stratum], stratum, -size if splitter.largest_first else 0, _draw(records, group, seed))
        for stratum, size, group in zip(strata, sizes, groups, strict=True)
    ]
    parts = _deal(sizes, strata, sorted(range(len(groups)), key=keys.__getitem__), wanted)
    parts = _fill_empty(parts, sizes, list(wanted))
    by_index = {index: part for group, part in zip(groups, parts, strict=True) for index in group}
    return [replace(record, split=by_index[index]) for index, record in enumerate(records)]


def _fill_empty(parts: Sequence[str], sizes: Sequence[int], wanted: Sequence[str]) -> list[str]:
    """Move the smallest group of the part with the most groups into each part that got none."""
    filled = list(parts)
    for part in wanted:
        if part not in filled:
            largest = Counter(filled).most_common(1)[0][0]
            candidates = [index for index, name in enumerate(filled) if name == largest]
            filled[min(candidates, key=lambda index: sizes[index])] = part
    return filled


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise PlftError(f"The {name} share is {share:g}; it must be at least 0 and below 1.")
    if sum(shares.values()) >= 1:
        raise PlftError(
            f"The shares {' + '.join(f'{share:g}' for share in shares.values())} leave nothing for train. Lower one."
        )


def assign_splits(
    records: Sequence[Record],
    by: str = "stratified",
    *,
    task: TaskType,
    seed: int = 0,
    valid: float = 0.1,
    test: float = 0.1,
    group: str | None = None,
) -> Split:
    """Give every record a split, whatever it had before; the rest of the shares is train.

    by: a name of ``SPLITTERS``.  group: for "group", a column kept in ``Record.extra``.  Equal sequences stay in one
    part.  The same records and seed give the same split everywhere.  Raises PlftError for shares that leave no train,
    too few sequences, or an unknown way.
    """
    _check_shares(valid=valid, test=test)
    shares = {"train": 1 - valid - test, "valid": valid, "test": test}
    divided = _divide(records, by, task, seed, shares, group)
    ratio = "/".join(f"{100 * share:g}" for share in shares.values())
    way = SPLITTERS[by].title + (f" (column '{group}')" if by == "group" else "")
    return Split(
        divided,
        f"Split {ratio} {way}, seed {seed}: {counts_of(divided)}. Equal sequences stay in one part.",
    )


def add_valid(
    records: Sequence[Record],
    share: float = 0.1,
    seed: int = 0,
    task: TaskType = TaskType.SEQ_CLASSIFICATION,
) -> Split:
    """Take a share of the train records for validation, stratified; all other records stay as they are."""
    _check_shares(valid=share)
    train = [record for record in records if record.split == "train"]
    divided = iter(_divide(train, "stratified", task, seed, {"train": 1 - share, "valid": share}, None))
    added = [next(divided) if record.split == "train" else record for record in records]
    return Split(
        added,
        f"No valid split: {100 * share:g} % of train was set aside for it (stratified, seed {seed}): "
        f"{counts_of(added)}.",
    )


def counts_of(records: Iterable[Record]) -> str:
    """Return ``train 80, valid 10, test 10``; train, valid and test first, others by name."""
    counts = Counter(record.split or "none" for record in records)
    order = [*("train", "valid", "test"), *sorted(set(counts) - {"train", "valid", "test"})]
    return ", ".join(f"{printable(name)} {counts[name]}" for name in order if counts[name])


def complete_splits(records: Sequence[Record], task: TaskType, seed: int = 0) -> Split:
    """Make sure there is a train and a valid split, and say what was done.

    No split, or train only: 80/10/10.  Train without valid, with other splits: a tenth of train becomes valid.  Train
    with valid: left as it is.  Raises PlftError where only some records have a split, or none is in train.
    """
    names = {record.split for record in records}
    if names in ({None}, {"train"}):
        made = assign_splits(records, task=task, seed=seed)
        return Split(made.records, "No split given. " + made.sentence)
    if None in names:
        without = [record.place for record in records if record.split is None]
        raise PlftError(f"{len(without)} records have no split: {first_three(without)}. Fill in the split column.")
    if "train" not in names:
        raise PlftError(f"No record is in train; there are {counts_of(records) or 'no records'}. Call one split train.")
    if "valid" not in names:
        return add_valid(records, seed=seed, task=task)
    missing_test = "" if names - {"train", "valid"} else " There is no test split: the valid split alone is measured."
    return Split(list(records), f"Splits as given: {counts_of(records)}.{missing_test}")
