"""Records -> train, valid and test; equal sequences always stay in one part."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plft import homology
from plft.alphabet import guess_alphabet
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
    separate,
)
from plft.records import Record
from plft.scans import mutated_positions
from plft.separation import Group, Separation, members_of

N_BINS = 10  # strata of a regression: tenths of the sorted values


@dataclass(frozen=True)
class Split:
    """The records in their old order, each with its split, and one sentence that says how they were split."""

    records: list[Record]
    sentence: str


@dataclass(frozen=True)
class Plan:
    """What is asked of a split.

    shares: part -> share of the records, above 0, adding up to 1.  group: column of the groups.  identity, coverage:
    from where on two sequences are related, see `homology`.  wild_type: reference of a mutational scan, otherwise the
    consensus.
    """

    shares: Mapping[str, float]
    task: TaskType
    seed: int = 0
    group: str | None = None
    identity: float | None = None
    coverage: float = homology.COVERAGE
    wild_type: str | None = None


@dataclass(frozen=True)
class Dealt:
    """The part of each record, in their order, and what there is to say about it."""

    parts: list[str]
    note: str = "Equal sequences stay in one part."


# --- which records belong together


def _by_sequence(records: Sequence[Record], column: str | None = None) -> list[Group]:
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
        parts[index] = "train" if strata[index] != previous and "train" in shares else furthest
        behind[parts[index]] -= sizes[index]
        previous = strata[index]
    return parts


Groups = Callable[[Sequence[Record], str | None], list[Group]]
Strata = Callable[[Sequence[Record], Sequence[Group], TaskType], list[str]]


def _by_groups(
    groups_of: Groups, strata_of: Strata, *, largest_first: bool = False
) -> Callable[[Sequence[Record], Plan], Dealt]:
    """Deal out groups stratum by stratum.

    largest_first: large groups before small ones, which can then even out the shares.
    """

    def deal(records: Sequence[Record], plan: Plan) -> Dealt:
        groups = groups_of(records, plan.group)
        _check_enough(len(groups), plan, "group(s)" if plan.group else "different sequence(s)")
        strata = strata_of(records, groups, plan.task)
        sizes = [len(group) for group in groups]
        frequency = Counter(strata)
        keys = [
            # Rare strata first: what they cannot give to valid and test, the frequent ones make up for.
            (frequency[stratum], stratum, -size if largest_first else 0, _draw(records, group, plan.seed))
            for stratum, size, group in zip(strata, sizes, groups, strict=True)
        ]
        parts = _deal(sizes, strata, sorted(range(len(groups)), key=keys.__getitem__), plan.shares)
        parts = _taught(records, groups, _fill_empty(parts, sizes, list(plan.shares), strata), plan.task)
        return Dealt(_of_records(groups, parts))

    return deal


def _check_enough(n_groups: int, plan: Plan, what: str, how: str = "Give more, or files for each part.") -> None:
    if n_groups < len(plan.shares):
        raise PlftError(f"Cannot split {n_groups} {what} into {', '.join(plan.shares)}. {how}")


def _of_records(groups: Sequence[Group], parts: Sequence[str]) -> list[str]:
    """Return the part of each record from the part of each group."""
    by_index = {index: part for group, part in zip(groups, parts, strict=True) for index in group}
    return [by_index[index] for index in range(len(by_index))]


def _fill_empty(
    parts: Sequence[str], sizes: Sequence[int], wanted: Sequence[str], strata: Sequence[str] | None = None
) -> list[str]:
    """Move the smallest group of the part with the most groups into each part that got none.

    The last of its stratum (its class) stays where there is another one to move.
    """
    filled = list(parts)
    kinds = strata or [""] * len(filled)
    for part in wanted:
        if part not in filled:
            largest = Counter(filled).most_common(1)[0][0]
            candidates = [index for index, name in enumerate(filled) if name == largest]
            left = Counter(kinds[index] for index in candidates)
            filled[min(candidates, key=lambda index: (left[kinds[index]] == 1, sizes[index]))] = part
    return filled


def _residue_classes(record: Record) -> list[str]:
    if record.label is None or isinstance(record.label, tuple) or label_is_missing(record.label):
        return []
    return [text for text in separate(record.label, len(record.sequence)) if not is_missing(text)]


def _taught(records: Sequence[Record], groups: Sequence[Group], parts: Sequence[str], task: TaskType) -> list[str]:
    """The parts, with a group moved to train for each class of residues that train lacks: it could not be learned.

    The smallest group that holds the class is moved, unless its part would be empty then.
    """
    taught = list(parts)
    if task is not TaskType.TOKEN_CLASSIFICATION or "train" not in parts:
        return taught
    classes = [{name for at in group for name in _residue_classes(records[at])} for group in groups]
    known = {name for part, names in zip(parts, classes, strict=True) if part == "train" for name in names}
    for name in sorted(set().union(*classes) - known):
        holders = [at for at, names in enumerate(classes) if name in names]
        groups_in = Counter(taught)
        movable = [at for at in holders if groups_in[taught[at]] > 1]
        if movable and not any(taught[at] == "train" for at in holders):
            taught[min(movable, key=lambda at: len(groups[at]))] = "train"
    return taught


# --- by homology


def _by_homology(records: Sequence[Record], plan: Plan) -> Dealt:
    """Deal out whole families of related sequences, with the labels as even as they allow."""
    sequences = [record.sequence for record in records]
    alphabet = guess_alphabet(sequences)
    identity = homology.IDENTITY[alphabet.name] if plan.identity is None else plan.identity
    threshold = f"{100 * identity:g} % identity over {100 * plan.coverage:g} % of a sequence"
    groups = members_of(homology.cluster(sequences, alphabet, identity, plan.coverage).tolist())
    advice = "Raise --identity, or split --by random, mutations or position."
    _check_enough(len(groups), plan, f"group(s) of sequences related at {threshold}", advice)
    order = sorted(range(len(groups)), key=lambda at: (-len(groups[at]), _draw(records, groups[at], plan.seed)))
    parts = _deal_evenly(_label_counts(records, groups, plan.task), order, plan.shares)
    filled = _of_records(groups, _fill_empty(parts, [len(group) for group in groups], list(plan.shares)))
    apart = Separation(sequences, alphabet, identity, plan.coverage).keep_apart(groups, filled)
    empty = [part for part in plan.shares if part not in apart.parts]
    if empty:
        raise PlftError(f"Every family of {' and '.join(empty)} is related to another part at {threshold}. {advice}")
    moved = f" {apart.n_moved:,} sequences were moved after a search between the parts." if apart.n_moved else ""
    largest = max(len(group) for group in groups)
    return Dealt(
        apart.parts,
        f"{len(groups):,} families (the largest {largest:,}) of sequences related at {threshold}, none cut.{moved} "
        f"{homology.method_sentence()}",
    )


def _label_counts(records: Sequence[Record], groups: Sequence[Group], task: TaskType) -> np.ndarray:
    """Count records per group and stratum: (groups, 1 + strata); the first column counts them all."""
    strata = _by_label(records, [(index,) for index in range(len(records))], task)
    column = {name: at for at, name in enumerate(sorted(set(strata)), start=1)}
    counts = np.zeros((len(groups), 1 + len(column)))
    for at, group in enumerate(groups):
        counts[at, 0] = len(group)
        for index in group:
            counts[at, column[strata[index]]] += 1
    return counts


def _deal_evenly(counts: np.ndarray, order: Iterable[int], shares: Mapping[str, float]) -> list[str]:
    """Give each group, in order, to the part where it brings sizes and labels closest to what they should be.

    counts: (groups, strata).  Closest: the least sum of (have - wanted)^2 / wanted over parts and strata, the statistic
    of Pearson's chi-squared test.
    """
    names = list(shares)
    wanted = np.outer(list(shares.values()), counts.sum(axis=0))
    have = np.zeros_like(wanted)
    parts = [""] * len(counts)
    for at in order:
        added = counts[at]
        further = ((2 * (have - wanted) + added) * added / wanted).sum(axis=1)
        best = int(further.argmin())
        have[best] += added
        parts[at] = names[best]
    return parts


# --- mutational scans


def _by_mutations(records: Sequence[Record], plan: Plan) -> Dealt:
    """Test on the sequences with the most mutations; valid is drawn at random from the others."""
    if "test" not in plan.shares:
        raise PlftError(
            "Only a test part can hold the many mutations: --by mutations makes no folds and needs a test share."
        )
    counts = [len(positions) for positions in mutated_positions(records, plan.wild_type)]
    most = _most_in_train(counts, plan.shares["test"])
    few = [index for index, count in enumerate(counts) if count <= most]
    rest = 1 - plan.shares["test"]
    shares = {part: share / rest for part, share in plan.shares.items() if part != "test"}
    dealt = _by_groups(_by_sequence, _by_label)([records[index] for index in few], replace(plan, shares=shares))
    parts = ["test"] * len(records)
    for index, part in zip(few, dealt.parts, strict=True):
        parts[index] = part
    return Dealt(
        parts,
        f"Up to {most} mutations in {' and '.join(shares)}, {most + 1} to {max(counts)} in test, counted from "
        f"{_reference(plan)}.",
    )


def _most_in_train(counts: Sequence[int], share: float) -> int:
    """Return the number of mutations up to which sequences are for training, so that test comes nearest its share."""
    levels = sorted(set(counts))
    if len(levels) < 2:
        raise PlftError(
            f"Every sequence has {levels[0]} mutation(s): few and many cannot be told apart. "
            "Split --by position, or name the reference with --wild-type."
        )
    above = {level: sum(count > level for count in counts) for level in levels[:-1]}
    return min(above, key=lambda level: abs(above[level] - share * len(counts)))


def _reference(plan: Plan) -> str:
    return "the consensus" if plan.wild_type is None else "the wild type"


MIXED = "mixed"  # variants mutated at positions of several parts


def _by_position(records: Sequence[Record], plan: Plan) -> Dealt:
    """Deal out the mutated positions; a variant goes where all its positions are, otherwise to a part of its own."""
    positions = mutated_positions(records, plan.wild_type)
    mutated = Counter(position for each in positions for position in each)
    _check_enough(len(mutated), plan, "mutated position(s)")
    order = sorted(mutated, key=lambda at: hashlib.blake2b(f"{plan.seed}:{at}".encode(), digest_size=16).digest())
    sizes = {at: [mutated[at]] for at in sorted(mutated)}
    dealt = _deal_evenly(np.array(list(sizes.values()), float), [list(sizes).index(at) for at in order], plan.shares)
    home = dict(zip(sizes, dealt, strict=True))
    parts = [_home(each, home, next(iter(plan.shares))) for each in positions]
    empty = [part for part in plan.shares if part not in parts]
    if empty:
        raise PlftError(
            f"No sequence has all its mutations at the positions of {' or '.join(empty)}: they have "
            f"{np.mean([len(each) for each in positions]):.1f} mutations on average. Split --by mutations or random."
        )
    n_mixed = parts.count(MIXED)
    said = f" {n_mixed:,} sequences mutated at positions of several parts are in the part '{MIXED}'." if n_mixed else ""
    counted = Counter(home.values())
    listed = ", ".join(f"{part} {counted[part]}" for part in plan.shares)
    return Dealt(parts, f"No mutated position in two parts ({listed}), seen from {_reference(plan)}.{said}")


def _home(positions: Sequence[int], home: Mapping[int, str], unmutated: str) -> str:
    """Return the part of a variant; the reference itself goes to the first part."""
    parts = {home[position] for position in positions}
    return MIXED if len(parts) > 1 else parts.pop() if parts else unmutated


# --- the ways to split


@dataclass(frozen=True)
class Splitter:
    """One way to split: records and what is asked -> the part of each record."""

    title: str
    deal: Callable[[Sequence[Record], Plan], Dealt]


SPLITTERS: dict[str, Splitter] = {
    "random": Splitter("at random", _by_groups(_by_sequence, _one_stratum)),
    "stratified": Splitter("at random within classes, value ranges or lengths", _by_groups(_by_sequence, _by_label)),
    "group": Splitter("at random by whole groups", _by_groups(_by_column, _one_stratum, largest_first=True)),
    "homology": Splitter("by whole families of related sequences", _by_homology),
    "mutations": Splitter("by the number of mutations", _by_mutations),
    "position": Splitter("by mutated positions", _by_position),
}


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
    identity: float | None = None,
    coverage: float = homology.COVERAGE,
    wild_type: str | None = None,
) -> Split:
    """Give every record a split, whatever it had before; the rest of the shares is train.

    by: a name of ``SPLITTERS``.  group: for "group", a column kept in ``Record.extra``.  identity, coverage: for
    "homology", as in `homology.cluster`.  wild_type: for "mutations" and "position", the reference.  Equal sequences
    stay in one part.  The same records and seed give the same split everywhere.  Raises PlftError for shares that
    leave no train, too few sequences or families, or an unknown way.
    """
    _check_shares(valid=valid, test=test)
    shares = {"train": 1 - valid - test, "valid": valid, "test": test}
    wanted = {part: share for part, share in shares.items() if share > 0}
    plan = Plan(wanted, task, seed, _group_of(by, group), identity, coverage, wild_type)
    dealt = look_up("way to split", by, SPLITTERS).deal(records, plan)
    divided = [replace(record, split=part) for record, part in zip(records, dealt.parts, strict=True)]
    ratio = "/".join(f"{100 * share:g}" for share in shares.values())
    return Split(divided, f"Split {ratio} {_way(by, group)}, seed {seed}: {counts_of(divided)}. {dealt.note}")


def _group_of(by: str, group: str | None) -> str | None:
    return group if by == "group" else None


def _way(by: str, group: str | None) -> str:
    return SPLITTERS[by].title + (f" (column '{group}')" if by == "group" else "")


@dataclass(frozen=True)
class Folds:
    """The fold of each record, from 1 to k, and one sentence that says how they were made.

    0: in no fold (by position, variants mutated at positions of several folds).
    """

    numbers: list[int]
    sentence: str


def assign_folds(
    records: Sequence[Record],
    k: int,
    by: str = "stratified",
    *,
    task: TaskType,
    seed: int = 0,
    group: str | None = None,
    identity: float | None = None,
    coverage: float = homology.COVERAGE,
    wild_type: str | None = None,
) -> Folds:
    """Divide the records into k folds of equal shares, with the guarantees and errors of ``assign_splits``."""
    if k < 2:
        raise PlftError(f"{k} folds are none. Give --folds 2 or more.")
    shares = {str(fold): 1 / k for fold in range(1, k + 1)}
    plan = Plan(shares, task, seed, _group_of(by, group), identity, coverage, wild_type)
    dealt = look_up("way to split", by, SPLITTERS).deal(records, plan)
    numbers = [0 if part == MIXED else int(part) for part in dealt.parts]
    sizes = ", ".join(str(numbers.count(fold)) for fold in range(1, k + 1))
    return Folds(numbers, f"{k} folds {_way(by, group)}, seed {seed}: {sizes} sequences. {dealt.note}")


def add_valid(
    records: Sequence[Record],
    share: float = 0.1,
    seed: int = 0,
    task: TaskType = TaskType.SEQ_CLASSIFICATION,
) -> Split:
    """Take a share of the train records for validation, stratified; all other records stay as they are."""
    _check_shares(valid=share)
    train = [record for record in records if record.split == "train"]
    plan = Plan({"train": 1 - share, "valid": share}, task, seed)
    parts = iter(SPLITTERS["stratified"].deal(train, plan).parts)
    added = [replace(record, split=next(parts)) if record.split == "train" else record for record in records]
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
