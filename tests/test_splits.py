"""Splitting records: shares, strata, groups, and what is done when splits are missing."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from plft import homology
from plft.alphabet import PROTEIN
from plft.errors import PlftError
from plft.labels import TaskType
from plft.records import Record
from plft.splits import SPLITTERS, add_valid, assign_folds, assign_splits, complete_splits

CLASSES = TaskType.SEQ_CLASSIFICATION


def sequence(pick: random.Random, length: int = 20) -> str:
    return "".join(pick.choices("ACDEFGHIKLMNPQRSTVWY", k=length))


def made(n: int = 200, label=lambda row: "yes" if row % 4 == 0 else "no", seed: int = 0) -> list[Record]:
    pick = random.Random(seed)
    return [Record(f"s{row}", sequence(pick), label(row), file="d.csv", row=row) for row in range(1, n + 1)]


def counts(records) -> dict[str, int]:
    return dict(Counter(record.split for record in records))


@pytest.mark.parametrize("by", ["random", "stratified"])
def test_the_shares_are_met(by):
    split = assign_splits(made(), by, task=CLASSES)
    assert counts(split.records) == {"train": 160, "valid": 20, "test": 20}
    assert "80/10/10" in split.sentence
    assert "train 160, valid 20, test 20" in split.sentence
    assert "seed 0" in split.sentence


def test_records_keep_their_order_and_everything_but_the_split():
    records = made(30)
    split = assign_splits(records, task=CLASSES)
    assert [replace(record, split=None) for record in split.records] == records


def test_classes_have_the_same_share_in_every_part():
    split = assign_splits(made(400), task=CLASSES)
    for part, n in (("train", 80), ("valid", 10), ("test", 10)):
        labels = Counter(record.label for record in split.records if record.split == part)
        assert labels["yes"] == pytest.approx(n, abs=1)


def test_every_class_occurs_in_train_even_a_very_rare_one():
    records = made(100, label=lambda row: f"rare{row}" if row <= 8 else "common")
    for seed in range(5):
        split = assign_splits(records, task=CLASSES, seed=seed)
        assert {each.label for each in split.records if each.split == "train"} == {each.label for each in records}
        assert counts(split.records) == {"train": 80, "valid": 10, "test": 10}


@pytest.mark.parametrize("by", ["random", "stratified"])
def test_a_class_of_residues_that_one_sequence_holds_is_learned(by):
    for row in range(1, 31):
        records = made(30, label=lambda each, row=row: ("I" if each == row else "H") * 10 + "C" * 10)
        split = assign_splits(records, by, task=TaskType.TOKEN_CLASSIFICATION)
        assert split.records[row - 1].split == "train"
        assert min(counts(split.records)[part] for part in ("valid", "test")) >= 2


def test_values_are_spread_evenly():
    split = assign_splits(made(300, label=lambda row: str(row**2)), task=TaskType.SEQ_REGRESSION)
    rows = sorted(record.row for record in split.records if record.split == "test")
    assert len(rows) == 30
    assert all(sum(low < row <= low + 30 for row in rows) in (2, 3, 4) for low in range(0, 300, 30))


@pytest.mark.parametrize("task", list(TaskType))
def test_every_task_can_be_split_also_with_missing_labels(task):
    label = {"token_regression": "1 2 3", "seq_multilabel": "a|b", "seq_regression": "2.5"}.get(task, "HEC")
    records = made(50, label=lambda row: None if row % 5 == 0 else label)
    assert counts(assign_splits(records, task=task).records) == {"train": 40, "valid": 5, "test": 5}


@pytest.mark.parametrize("by", [by for by in SPLITTERS if by != "position"])  # below, with few mutations each
def test_equal_sequences_stay_in_one_part(by):
    base = made(60)
    records = [replace(record, extra={"family": str(index)}) for index, record in enumerate(base * 3)]
    split = assign_splits(records, by, task=CLASSES, group="family")
    parts = {}
    for record in split.records:
        parts.setdefault(record.sequence, set()).add(record.split)
    assert all(len(each) == 1 for each in parts.values())
    assert counts(split.records)["valid"] == pytest.approx(18, abs=3)


def test_groups_stay_whole_even_where_they_share_a_sequence():
    records = [replace(record, extra={"family": f"f{record.row % 40}"}) for record in made(200)]
    bridge = replace(records[0], extra={"family": "f2"})  # the sequence of f1, again in f2
    split = assign_splits([*records, bridge], "group", task=CLASSES, group="family")
    parts = {}
    for record in split.records:
        parts.setdefault(record.extra["family"], set()).add(record.split)
    assert all(len(each) == 1 for each in parts.values())
    assert parts["f1"] == parts["f2"]
    assert counts(split.records)["test"] == pytest.approx(20, abs=5)
    assert "family" in split.sentence


def test_records_without_a_group_are_groups_of_their_own():
    records = [replace(record, extra={"family": ""}) for record in made(50)]
    assert counts(assign_splits(records, "group", task=CLASSES, group="family").records)["train"] == 40


def test_the_seed_decides_and_the_order_of_the_rows_does_not():
    records = made(100)
    one = {each.id: each.split for each in assign_splits(records, task=CLASSES, seed=1).records}
    same = {each.id: each.split for each in assign_splits(records[::-1], task=CLASSES, seed=1).records}
    other = {each.id: each.split for each in assign_splits(records, task=CLASSES, seed=2).records}
    assert one == same
    assert one != other


def test_the_split_is_the_same_on_every_machine():
    # Written down once: a change here changes every published split.
    split = assign_splits(made(20), task=CLASSES, seed=0)
    assert [record.row for record in split.records if record.split == "test"] == [1, 6]
    assert [record.row for record in split.records if record.split == "valid"] == [3, 4]


def test_a_share_of_zero_makes_no_such_part():
    assert counts(assign_splits(made(50), task=CLASSES, test=0.0).records) == {"train": 45, "valid": 5}


def test_the_only_sequence_of_a_class_stays_in_train_where_another_can_go():
    records = made(4, label=lambda row: "rare" if row == 1 else "common")
    for seed in range(5):
        found = assign_splits(records, task=CLASSES, seed=seed).records
        assert {each.split for each in found} == {"train", "valid", "test"}
        assert {each.label for each in found if each.split == "train"} == {"rare", "common"}


@pytest.mark.parametrize("n", range(3, 12))
def test_no_part_is_empty_however_few_the_sequences(n):
    assert set(counts(assign_splits(made(n), task=CLASSES).records)) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "randon"}, "Did you mean 'random'"),
        ({"valid": 0.6, "test": 0.5}, "leave nothing for train"),
        ({"valid": -0.1}, "must be at least 0"),
        ({"by": "group"}, "needs the column"),
        ({"by": "group", "group": "family"}, r"d\.csv, row 1 \(id s1\): has no group column 'family'"),
    ],
)
def test_impossible_splits_are_one_clear_line(options, message):
    with pytest.raises(PlftError, match=message):
        assign_splits(made(20), **({"task": CLASSES} | options))


def test_too_few_different_sequences_cannot_be_split():
    with pytest.raises(PlftError, match=r"Cannot split 2 different sequence\(s\)"):
        assign_splits(made(2) * 5, task=CLASSES)


# --- by homology


def family_of(record: Record) -> int:
    return int(record.id[1:].split("_")[0])


def related(sizes: list[int], label=lambda family, member: "yes" if member % 4 == 0 else "no", seed: int = 0):
    """Families of sequences of 60 residues that differ from their founder in three; ids name family and member."""
    pick = random.Random(seed)
    records = []
    for family, size in enumerate(sizes):
        founder = sequence(pick, 60)
        for member in range(size):
            letters = list(founder)
            for at in pick.sample(range(60), 3):
                letters[at] = pick.choice("ACDEFGHIKLMNPQRSTVWY")
            records.append(Record(f"f{family}_{member}", "".join(letters), label(family, member)))
    pick.shuffle(records)
    return [replace(record, file="d.csv", row=row) for row, record in enumerate(records, start=1)]


@pytest.fixture
def by_kmers(monkeypatch):
    monkeypatch.setattr("plft.homology.find_mmseqs", lambda: None)


def test_families_are_never_cut_and_sizes_and_labels_come_as_close_as_they_allow(by_kmers):
    records = related([30, 20, 12, *[4] * 20, *[1] * 60])
    split = assign_splits(records, "homology", task=CLASSES)
    parts = {}
    for record in split.records:
        parts.setdefault(family_of(record), set()).add(record.split)
    assert all(len(each) == 1 for each in parts.values())
    assert counts(split.records) == {
        "train": pytest.approx(162, abs=2),
        "valid": pytest.approx(20, abs=2),
        "test": pytest.approx(20, abs=2),
    }
    shares = {
        part: sum(each.label == "yes" for each in split.records if each.split == part) / n
        for part, n in counts(split.records).items()
    }
    assert shares["test"] == pytest.approx(shares["train"], abs=0.06)
    assert "83 families (the largest 30) of sequences related at 30 % identity over 80 %" in split.sentence
    assert "k-mers, which miss distant relatives" in split.sentence


def test_a_family_too_large_for_the_other_parts_goes_to_train(by_kmers):
    split = assign_splits(related([50, *[1] * 50], lambda *_: "yes"), "homology", task=CLASSES)
    assert {each.split for each in split.records if family_of(each) == 0} == {"train"}
    assert counts(split.records) == {"train": 80, "valid": 10, "test": 10}


def test_a_split_by_homology_does_not_depend_on_the_order_of_the_rows(by_kmers):
    records = related([5] * 20)
    one = {each.id: each.split for each in assign_splits(records, "homology", task=CLASSES).records}
    assert one == {each.id: each.split for each in assign_splits(records[::-1], "homology", task=CLASSES).records}


@pytest.mark.skipif(homology.find_mmseqs() is None, reason="MMseqs2 is not at hand")
def test_no_alignment_connects_the_parts_of_a_split_by_homology():
    split = assign_splits(related([4] * 25), "homology", task=CLASSES)
    of = {part: [each.sequence for each in split.records if each.split == part] for part in ("train", "valid", "test")}
    assert not homology.homologous_queries(of["test"] + of["valid"], of["train"], PROTEIN, coverage=0.8).any()
    assert "MMseqs2" in split.sentence


def test_one_family_alone_cannot_be_split(by_kmers):
    with pytest.raises(PlftError, match=r"Cannot split 1 group\(s\) of sequences related at 30 % .* Raise --identity"):
        assign_splits(related([12]), "homology", task=CLASSES)


def test_an_identity_that_is_no_share_is_one_clear_line():
    with pytest.raises(PlftError, match=r"The identity 30 is not a share above 0 and up to 1\. Give 0\.3 for 30 %"):
        assign_splits(made(20), "homology", task=CLASSES, identity=30)


# --- mutational scans

WILD_TYPE = "ACDEFGHIKL" * 2


def mutant(*positions: int) -> str:
    return "".join("W" if at in positions else letter for at, letter in enumerate(WILD_TYPE))


def scan() -> list[Record]:
    """Every variant with one mutation, and 40 with two."""
    pick = random.Random(0)
    pairs = sorted({tuple(sorted(pick.sample(range(20), 2))) for _ in range(60)})[:40]
    variants = [(), *((at,) for at in range(20)), *pairs]
    return [Record(str(row), mutant(*each), f"{row}", file="d.csv", row=row) for row, each in enumerate(variants, 1)]


def n_mutations(record: Record) -> int:
    return sum(one != other for one, other in zip(record.sequence, WILD_TYPE, strict=True))


@pytest.mark.parametrize("wild_type", [None, WILD_TYPE])
def test_by_mutations_trains_on_few_and_tests_on_many(wild_type):
    split = assign_splits(scan(), "mutations", task=TaskType.SEQ_REGRESSION, test=0.5, wild_type=wild_type)
    assert {n_mutations(each) for each in split.records if each.split == "test"} == {2}
    assert {n_mutations(each) for each in split.records if each.split != "test"} == {0, 1}
    assert counts(split.records) == {"train": 17, "valid": 4, "test": 40}  # a fifth of the 21: 0.1 of 0.5
    assert "Up to 1 mutations in train and valid, 2 to 2 in test" in split.sentence


def test_by_position_no_mutated_position_is_in_two_parts():
    split = assign_splits(scan(), "position", task=TaskType.SEQ_REGRESSION, valid=0.2, test=0.2, wild_type=WILD_TYPE)
    positions = {}
    for record in split.records:
        differing = {at for at in range(20) if record.sequence[at] != WILD_TYPE[at]}
        positions.setdefault(record.split, set()).update(differing)
    mixed = positions.pop("mixed")
    assert sum(map(len, positions.values())) == 20
    assert len(set.union(*positions.values())) == 20
    assert mixed
    assert f"{counts(split.records)['mixed']} sequences mutated at positions of several parts" in split.sentence
    assert split.records[0].split == "train"  # the wild type itself


@pytest.mark.parametrize(
    ("by", "records", "message"),
    [
        (
            "mutations",
            [Record("a", "MKV", "1"), Record("b", "MK", "2")],
            "A mutational scan needs sequences of one length",
        ),
        ("mutations", [Record(str(at), mutant(at), "1") for at in range(20)], "Every sequence has 1 mutation"),
        ("position", [Record("a", "MKV", "1"), Record("b", "MKV", "1")], r"Cannot split 0 mutated position\(s\)"),
        ("position", made(20), "No sequence has all its mutations at the positions of"),
    ],
)
def test_what_is_no_scan_is_one_clear_line(by, records, message):
    with pytest.raises(PlftError, match=message):
        assign_splits(records, by, task=TaskType.SEQ_REGRESSION)


# --- folds


@pytest.mark.parametrize("by", ["random", "stratified"])
def test_folds_are_equal_and_keep_the_classes(by):
    folds = assign_folds(made(200), 5, by, task=CLASSES)
    assert Counter(folds.numbers) == dict.fromkeys(range(1, 6), 40)
    assert "5 folds" in folds.sentence
    if by == "stratified":
        yes = Counter(fold for fold, record in zip(folds.numbers, made(200), strict=True) if record.label == "yes")
        assert set(yes.values()) == {10}


def test_folds_by_homology_cut_no_family(by_kmers):
    records = related([6] * 10 + [1] * 40)
    folds = assign_folds(records, 4, "homology", task=CLASSES)
    where = {}
    for record, fold in zip(records, folds.numbers, strict=True):
        where.setdefault(family_of(record), set()).add(fold)
    assert all(len(each) == 1 for each in where.values())
    assert Counter(folds.numbers) == {fold: pytest.approx(25, abs=3) for fold in range(1, 5)}


def test_folds_by_position_leave_mixed_variants_out():
    folds = assign_folds(scan(), 2, "position", task=TaskType.SEQ_REGRESSION)
    assert set(folds.numbers) == {0, 1, 2}


@pytest.mark.parametrize(
    ("k", "by", "message"), [(1, "random", "1 folds are none"), (3, "mutations", "makes no folds")]
)
def test_folds_that_cannot_be_are_one_clear_line(k, by, message):
    with pytest.raises(PlftError, match=message):
        assign_folds(scan(), k, by, task=TaskType.SEQ_REGRESSION)


# --- completing


def test_valid_is_taken_from_train_alone():
    records = [replace(record, split="test" if record.row > 150 else "train") for record in made(200)]
    split = add_valid(records)
    assert counts(split.records) == {"train": 135, "valid": 15, "test": 50}
    assert [each.id for each in split.records if each.split == "test"] == [each.id for each in records[150:]]
    assert "10 % of train" in split.sentence


def test_without_any_split_the_records_are_divided():
    split = complete_splits(made(100), CLASSES)
    assert counts(split.records) == {"train": 80, "valid": 10, "test": 10}
    assert split.sentence.startswith("No split given.")


def test_train_alone_is_divided_too():
    records = [replace(record, split="train") for record in made(100)]
    assert counts(complete_splits(records, CLASSES).records) == {"train": 80, "valid": 10, "test": 10}


def test_train_and_test_get_a_valid_split():
    records = [replace(record, split="test" if record.row % 5 == 0 else "train") for record in made(100)]
    assert counts(complete_splits(records, CLASSES).records) == {"train": 72, "valid": 8, "test": 20}


def test_given_splits_are_left_alone_and_a_missing_test_is_said():
    names = ["train", "valid", "test_hard"]
    records = [replace(record, split=names[record.row % 3]) for record in made(30)]
    assert complete_splits(records, CLASSES).records == records
    records = [replace(record, split=names[record.row % 2]) for record in made(30)]
    split = complete_splits(records, CLASSES)
    assert split.records == records
    assert "no test split" in split.sentence


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", None, "test"], r"1 records have no split: d\.csv, row 2"),
        (["valid", "test", "test"], r"No record is in train; there are valid 1, test 2"),
    ],
)
def test_splits_that_cannot_be_completed_are_one_clear_line(splits, message):
    records = [replace(record, split=split) for record, split in zip(made(3), splits, strict=True)]
    with pytest.raises(PlftError, match=message):
        complete_splits(records, CLASSES)


def test_no_records_cannot_be_completed():
    with pytest.raises(PlftError):
        complete_splits([], CLASSES)


def test_the_published_test_split_stays_and_valid_is_added(real_data):
    from plft.records import load_data

    split = complete_splits(load_data(real_data / "dephos_galaxy" / "raw"), CLASSES)
    assert counts(split.records) == {"train": 181, "valid": 20, "test": 50}
