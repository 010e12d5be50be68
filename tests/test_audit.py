"""What `plft check` counts, and what it warns about."""

import json

import pytest

from plft.alphabet import DNA
from plft.audit import audit
from plft.errors import PlftError
from plft.labels import TaskType
from plft.records import Columns, Record, load_data


def records(*rows, file="d.csv"):
    """Build records from (sequence, label, split)."""
    return [
        Record(f"s{row}", sequence, label, split, file=file, row=row)
        for row, (sequence, label, split) in enumerate(rows, start=1)
    ]


def warned(found, *words):
    return any(all(word in line for word in words) for line in found.warnings)


def test_lengths_splits_and_label_balance_are_counted():
    found = audit(records(("MKT", "a", "train"), ("MKTAV", "b", "train"), ("MKTA", "b", "test"), ("MK", "", "test")))
    assert (found.n, found.alphabet, found.task, found.files) == (4, "protein", "seq_classification", ("d.csv",))
    assert found.splits == {"train": 2, "test": 2}
    assert (found.lengths.min, found.lengths.median, found.lengths.max, found.lengths.residues) == (2, 3.5, 5, 14)
    assert found.labels["train"].classes == {"a": 1, "b": 1}
    assert (found.labels["test"].classes, found.labels["test"].missing) == ({"b": 1}, 1)
    assert warned(found, "1 of 2 labels missing", "test")


def test_letters_are_counted_by_kind_and_by_sequence():
    found = audit(records(("MXXU", None, None), ("M**J", None, None), ("MK*", None, None)))
    assert {letter: (each.count, each.sequences) for letter, each in found.ambiguous.items()} == {
        "X": (2, 1),
        "U": (1, 1),
    }
    assert {letter: (each.count, each.sequences) for letter, each in found.unknown.items()} == {
        "*": (3, 2),
        "J": (1, 1),
    }
    assert found.sequences_with_unknown == 2
    assert warned(found, "4 letters outside the protein alphabet", "'*' in 2 sequences", "'J' in 1 sequence")
    assert warned(found, "More than a tenth")


def test_u_in_dna_is_not_an_unknown_letter():
    found = audit(records(("ACGU", None, None), ("ACRN", None, None)), alphabet=DNA)
    assert (list(found.ambiguous), list(found.unknown)) == (["N"], ["R"])


def test_duplicates_conflicts_and_shared_sequences_are_counted_once_per_sequence():
    found = audit(
        records(
            ("MKT", "1", "train"),
            ("MKT", "1.0", "train"),  # the same class, written differently
            ("MKT", "1", "test"),
            ("MKA", "0", "train"),
            ("MKA", "1", "valid"),
            ("MKV", "0", "test"),
            ("MKV", "", "valid"),  # a missing label contradicts nothing
        )
    )
    assert (found.duplicate_sequences, found.duplicate_rows, found.conflicting_labels) == (3, 4, 1)
    assert found.shared == {"test&train": 1, "test&valid": 1, "train&valid": 1}
    assert warned(found, "1 sequence shared by test and train")


def test_repeated_ids_are_counted():
    rows = records(("MKT", "1", None), ("MKA", "0", None))
    twice = [rows[0], Record("s1", "MKA", "0")]
    assert audit(twice).duplicate_ids == 1
    assert audit(rows).duplicate_ids == 0


def test_numbers_have_a_range_per_column():
    found = audit(records(("MKT", "0.5", "train"), ("MKA", "2.5", "train"), ("MKV", "nan", "train")))
    assert found.labels["train"].ranges == {"label": {"min": 0.5, "mean": 1.5, "max": 2.5}}
    assert found.labels["train"].missing == 1
    both = audit(records(("MKTA", ("1", ""), None), ("MKVA", ("3", "0.5"), None)), columns=("tm", "kd"))
    assert both.labels["all"].ranges == {
        "tm": {"min": 1, "mean": 2, "max": 3},
        "kd": {"min": 0.5, "mean": 0.5, "max": 0.5},
    }


def test_residue_labels_are_counted_by_residue_without_masked_ones():
    found = audit([Record("a", "MKTA", "HHEC", "train", mask="1101"), Record("b", "MK", "HC", "train")])
    assert found.task == "token_classification"
    assert (found.labels["train"].n, found.labels["train"].missing) == (6, 1)
    assert found.labels["train"].classes == {"C": 2, "H": 3}


def test_members_of_multilabels_are_counted():
    found = audit(
        records(("MKTAA", "a|b", "train"), ("MKA", "b", "train"), ("MKV", "|", "train"), ("MKS", "", "train"))
    )
    assert found.labels["train"].classes == {"a": 1, "b": 2}
    assert (found.labels["train"].n, found.labels["train"].missing) == (4, 1)
    columns = audit(records(("MKTA", ("1", "0"), None), ("MKV", ("1", "1"), None)), columns=("x", "y"))
    assert columns.labels["all"].classes == {"x": 2, "y": 1}


def test_labels_that_do_not_fit_are_warnings_and_not_errors():
    found = audit(records(("MKTA", "HHE", "train"), ("MK", "HC", "train")), TaskType.TOKEN_CLASSIFICATION)
    assert warned(found, "1 label cannot be used", "d.csv, row 1 (id s1)", "3 values", "4 residues")
    found = audit(records(("MKTA", "high", None), ("MK", "1e999", None), ("MV", "1", None)), TaskType.SEQ_REGRESSION)
    assert warned(found, "2 labels cannot be used", "'high' is not a finite number")


def test_a_usual_sentinel_far_from_all_values_is_pointed_out():
    rows = records(("MKT", "999 0.5 1.5", None), ("MKTA", "999 2.5 1 1", None))
    found = audit(rows)
    assert warned(found, "999 occurs 2 times")
    named = audit(rows, missing="999")
    assert not warned(named, "999 occurs")
    assert named.labels["all"].ranges["label"]["max"] == 2.5


def test_classes_that_train_lacks_rare_classes_and_shifts_are_pointed_out():
    train = [(f"MK{'A' * n}", "yes" if n < 4 else "no", "train") for n in range(100)]
    test = [(f"MV{'A' * n}", "yes" if n < 50 else "no", "test") for n in range(99)] + [("MV", "perhaps", "test")]
    found = audit(records(*train, *test))
    assert warned(found, "test holds classes that train lacks: 'perhaps' (1)")
    assert warned(found, "Rare classes", "'yes' 4.0%")
    assert warned(found, "'yes' makes up 4.0% of train but 50.0% of test")


def test_missing_splits_and_a_small_test_set_are_pointed_out():
    assert warned(audit(records(("MKT", "a", None), ("MKA", "b", None))), "No record has a split")
    found = audit(records(("MKT", "a", "train"), ("MKA", "b", "test"), ("MK", "b", None)))
    assert warned(found, "no valid split")
    assert warned(found, "1 record without a split")
    assert warned(found, "test holds only 1 sequence:")
    assert warned(audit(records(("MKT", "a", "train"), ("MKA", "a", "train"))), "All labels to learn from are 'a'")


def test_long_sequences_are_pointed_out():
    assert warned(audit(records(("M" * 1023, None, None))), "1 sequence longer than 1,022 residues (longest 1,023)")


def test_unlabelled_records_have_no_task_and_no_label_warnings():
    found = audit(records(("MKT", None, None), ("MKA", None, None)))
    assert (found.task, found.labels, found.warnings) == (None, {}, ())
    assert "No record has a label" in found.reason


def test_no_record_at_all_is_an_error():
    with pytest.raises(PlftError, match="no records to check"):
        audit([])


def test_the_audit_is_plain_json():
    found = audit(records(("MKT*", "0.5", "train"), ("MKA", "", "valid")))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()
    assert found.to_json()["unknown"] == {"*": {"count": 1, "sequences": 1}}


# --- real data: the figures of its own README files


def test_the_core_promoters_leak_and_contradict_themselves(real_data):
    found = audit(load_data(real_data / "gue" / "prom_prom_core_all.csv.gz"))
    assert (found.alphabet, found.n, found.duplicate_rows, found.conflicting_labels) == ("dna", 59196, 262, 64)
    assert found.shared == {"test&train": 42, "test&valid": 8, "train&valid": 54}


def test_the_stability_data_leaks_and_contradicts_itself(real_data):
    found = audit(load_data(real_data / "tape_stability" / "stability.csv.gz"))
    assert (found.task, found.duplicate_rows, found.conflicting_labels) == ("seq_regression", 69, 63)
    assert found.shared == {"test&train": 26, "test&valid": 0, "train&valid": 0}


def test_the_effectors_hold_stops_within_and_change_their_balance(real_data):
    found = audit(load_data(real_data / "technion_effectors" / "effectors.csv.gz"))
    assert (found.unknown["*"].sequences, found.ambiguous["X"].sequences, found.duplicate_rows) == (6, 4, 53)
    assert warned(found, "'yes' makes up 19.6% of train but 3.5% of test")


def test_the_location_data_has_a_class_that_train_lacks(real_data):
    found = audit(load_data(real_data / "scl_deeploc1" / "deeploc1.csv.gz"))
    assert (found.shared["test&train"], found.shared["train&valid"]) == (4, 5)
    assert warned(found, "'Cytoplasm-Nucleus' (23)")


def test_the_disorder_data_is_per_residue_and_its_999_is_noticed(real_data):
    found = audit(load_data(real_data / "disorder_chezod" / "chezod.csv.gz"))
    assert (found.task, found.lengths.residues) == ("token_regression", 152510)
    assert warned(found, "999 occurs 6,896 times")


def test_a_split_column_of_another_name_can_be_chosen(real_data):
    path = real_data / "flip_gb1" / "gb1_all_splits.csv.gz"
    found = audit(load_data(path, columns=Columns(split="split_one_vs_rest")))
    assert (found.splits["train"], found.splits["valid"]) == (25, 3)


def test_missing_values_are_counted_in_every_label_column() -> None:
    labels = [("", "1.5"), ("2.5", "3.5"), ("2.0", "")]
    records = [Record(str(at), "ACDEFGHIK" + "L" * at, label) for at, label in enumerate(labels)]
    summary = audit(records, TaskType.SEQ_REGRESSION, columns=("tm", "solubility")).labels["all"]
    assert (summary.n, summary.missing) == (6, 2)
