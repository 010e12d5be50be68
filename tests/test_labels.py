"""How labels are read, guessed, and turned into numbers."""

from dataclasses import dataclass

import numpy as np
import pytest

from plft.errors import PlftError
from plft.labels import LabelSpace, TaskType, class_name, guess_task, is_missing, residue_labels, shown, sorted_classes


@dataclass(frozen=True)
class Labelled:
    """The part of a record that labels are read from."""

    sequence: str
    label: object = None
    mask: str | None = None
    place: str = "train.csv, row 1 (id a)"


def labelled(*pairs):
    return [Labelled(sequence, label) for sequence, label in pairs]


def texts(*labels):
    """Records whose sequence lengths fit none of the labels."""
    return [Labelled("M" * (40 + index), label) for index, label in enumerate(labels)]


# --- text, missing values, class names


@pytest.mark.parametrize(
    "value", ["", "  ", "nan", "NaN", "NA", "None", "null", "-100", "-100.0", "-nan", None, float("nan")]
)
def test_the_usual_spellings_of_missing_are_missing(value):
    assert is_missing(value)


@pytest.mark.parametrize("value", ["0", "none", "100", "-1", "na", "A", 0, 0.0, False])
def test_other_values_are_not_missing(value):
    assert not is_missing(value)


def test_a_numeric_sentinel_is_compared_as_a_number():
    assert is_missing("999.0", "999")
    assert is_missing("9.99e2", "999")
    assert not is_missing("99", "999")
    assert is_missing("unknown", "unknown")
    assert is_missing("999", 999)


def test_whole_numbers_written_as_fractions_name_the_same_class():
    assert [class_name(text) for text in ("1.0", "1", "-3.00", "1.5", "01.0", " yes ")] == [
        "1",
        "1",
        "-3",
        "1.5",
        "01.0",
        "yes",
    ]


def test_classes_are_sorted_as_numbers_only_where_all_are_numbers():
    assert sorted_classes(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert sorted_classes(["10", "9", "x"]) == ("10", "9", "x")


def test_a_value_in_a_message_is_one_short_printable_line():
    assert shown("a\nb\x00c") == "'a?b?c'"
    assert shown("x" * 100) == "'" + "x" * 37 + "...'"


# --- residues


@pytest.mark.parametrize(
    "label",
    ["0011223", "0 0 1 1 2 2 3", "0,0,1,1,2,2,3", "[0, 0, 1, 1, 2, 2, 3]", [0, 0, 1, 1, 2, 2, 3], list("0011223")],
)
def test_every_way_to_write_residue_labels_is_read_alike(label):
    assert residue_labels(Labelled("MKTAYIA", label)) == ["0", "0", "1", "1", "2", "2", "3"]


def test_empty_places_between_commas_are_missing_residues():
    assert residue_labels(Labelled("MKT", "1,,3")) == ["1", None, "3"]
    assert residue_labels(Labelled("MKT", [1.5, None, float("nan")])) == ["1.5", None, None]


def test_masked_residues_and_sentinels_are_missing():
    assert residue_labels(Labelled("MKTA", "HHEC", "1010")) == ["H", None, "E", None]
    assert residue_labels(Labelled("MKT", "999 0.5 999.0"), "999") == [None, "0.5", None]
    assert residue_labels(Labelled("MKT", "H-E"), "-") == ["H", None, "E"]


def test_a_missing_label_leaves_out_every_residue():
    assert residue_labels(Labelled("MKT", None)) == [None, None, None]
    assert residue_labels(Labelled("MKTA", "-100")) == [None] * 4


def test_a_blank_within_a_residue_string_is_a_class():
    # DSSP writes coil as a blank.
    assert residue_labels(Labelled("MKTAY", "HE  C")) == ["H", "E", " ", " ", "C"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Labelled("MKTA", "HH"), ["the label has 2 values", "the sequence has 4 residues", "row 1 (id a)"]),
        (Labelled("MKTA", "1 2 3"), ["the label has 3 values"]),
        (Labelled("MKTA", "HHHH", "101"), ["the mask has 3 values"]),
        (Labelled("MKTA", ("1", "2")), ["from one column"]),
    ],
)
def test_a_wrong_number_of_residue_values_names_both_lengths(record, words):
    with pytest.raises(PlftError) as caught:
        residue_labels(record)
    assert all(word in str(caught.value) for word in words)


# --- guessing


@pytest.mark.parametrize(
    ("records", "task", "word"),
    [
        (texts("yes", "no", "yes"), TaskType.SEQ_CLASSIFICATION, "2 different texts (no, yes)"),
        (texts("0", "1", "1", "", "NaN"), TaskType.SEQ_CLASSIFICATION, "2 different whole numbers"),
        (texts("0.0", "1.0", "1.0"), TaskType.SEQ_CLASSIFICATION, "2 different whole numbers"),
        (texts(*"0123401234012340123401234"), TaskType.SEQ_CLASSIFICATION, "5 different whole numbers"),
        (texts("1", "5", "9", "12", "40"), TaskType.SEQ_REGRESSION, "5 different numbers from 1 to 40"),
        (texts("0.5", "1", "2"), TaskType.SEQ_REGRESSION, "from 0.5 to 2"),
        (texts("nucleus|cytoplasm", "nucleus"), TaskType.SEQ_MULTILABEL, "'|'"),
        (texts(["a", "b"], ["a"], []), TaskType.SEQ_MULTILABEL, "lists"),
        (texts(("0.5", "2"), ("1", "")), TaskType.SEQ_REGRESSION, "several label columns"),
        (texts(("0", "1"), ("1", "1")), TaskType.SEQ_MULTILABEL, "only 0 and 1"),
        (labelled(("MKT", "HEC"), ("MK", "HH")), TaskType.TOKEN_CLASSIFICATION, "3 classes for every residue"),
        (labelled(("MKTAYIA", "0011223")), TaskType.TOKEN_CLASSIFICATION, "4 classes"),
        (labelled(("MKT", "0.1 0.2 5"), ("MK", "1 2")), TaskType.TOKEN_REGRESSION, "number for every residue"),
        (labelled(("MKT", [0.5, 1, None]), ("MK", [1, 2])), TaskType.TOKEN_REGRESSION, "number"),
        (labelled(("MKT", [0, 1, 1]), ("MK", [1, 0])), TaskType.TOKEN_CLASSIFICATION, "2 classes"),
    ],
)
def test_the_task_follows_from_the_labels(records, task, word):
    guess = guess_task(records)
    assert guess.task is task
    assert word in guess.reason


def test_words_as_long_as_the_peptides_are_not_residue_labels():
    records = labelled(*[("MKTAYIAK", label) for label in ("positive", "negative") * 5])
    assert guess_task(records).task is TaskType.SEQ_CLASSIFICATION


def test_fractions_as_long_as_the_peptides_are_not_residue_labels():
    records = labelled(("MKTAY", "0.125"), ("MKTAA", "0.250"), ("MKTA", "0.75"))
    assert guess_task(records).task is TaskType.SEQ_REGRESSION


def test_one_label_per_one_letter_sequence_is_a_label_of_the_sequence():
    assert guess_task(labelled(("M", "1"), ("K", "0"))).task is TaskType.SEQ_CLASSIFICATION


def test_one_wrong_length_among_many_still_means_a_residue_task():
    records = labelled(*[("MKTA" + "A" * n, "HHEC" + "C" * n) for n in range(20)], ("MKTA", "HHE"))
    assert guess_task(records).task is TaskType.TOKEN_CLASSIFICATION


def test_a_sentinel_does_not_make_classes_numbers():
    records = labelled(("MKT", "0 1 999"), ("MKTA", "1 999 0 1"))
    assert guess_task(records, "999").reason.endswith("(0, 1)")


def test_no_label_at_all_cannot_be_guessed():
    with pytest.raises(PlftError, match="No record has a label"):
        guess_task(texts("", None, "nan"))


# --- classes


def test_yes_and_no_become_classes_with_yes_as_the_positive_one():
    space = LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, texts("yes", "no", ""))
    assert space.classes == ("no", "yes")
    assert space.n_outputs == 2
    encoded = [space.encode(record) for record in texts("yes", "no", "", None)]
    assert [int(index) for index in encoded] == [1, 0, -100, -100]
    assert encoded[0].dtype == np.int64
    assert encoded[0].shape == ()


def test_a_class_unseen_in_train_is_an_error_or_missing_as_asked():
    space = LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, texts("Nucleus", "Cytoplasm"))
    with pytest.raises(PlftError, match=r"row 1 \(id a\): class 'nucleus' does not occur.*Did you mean 'Nucleus'"):
        space.encode(texts("nucleus")[0])
    assert int(space.encode(texts("Cytoplasm-Nucleus")[0], unseen="missing")) == -100


def test_residue_classes_are_encoded_with_missing_ones_ignored():
    space = LabelSpace.fit(TaskType.TOKEN_CLASSIFICATION, [Labelled("MKT", "HEC"), Labelled("MK", "GG", "00")])
    assert space.classes == ("C", "E", "H")  # G occurs only where the mask is 0
    encoded = space.encode(Labelled("MKTA", "HHEC", "1101"))
    assert encoded.tolist() == [2, 2, -100, 0]
    assert encoded.dtype == np.int64
    assert space.encode(Labelled("MK", "GH"), unseen="missing").tolist() == [-100, 2]


def test_multilabels_become_indicators_and_a_missing_one_nan():
    space = LabelSpace.fit(TaskType.SEQ_MULTILABEL, texts("b|a", "c", "|"))
    assert space.classes == ("a", "b", "c")
    assert space.encode(texts("c|a")[0]).tolist() == [1, 0, 1]
    assert space.encode(texts("|")[0]).tolist() == [0, 0, 0]
    assert space.encode(texts(["b"])[0]).tolist() == [0, 1, 0]
    assert space.encode(texts([])[0]).tolist() == [0, 0, 0]
    assert np.isnan(space.encode(texts("")[0])).all()
    assert space.encode(texts("a")[0]).dtype == np.float32


def test_columns_of_zero_and_one_are_a_multilabel_too():
    space = LabelSpace.fit(TaskType.SEQ_MULTILABEL, texts(("1", "0")), columns=("nucleus", "golgi"))
    assert space.classes == ("nucleus", "golgi")
    encoded = space.encode(texts(("0", ""))[0])
    assert encoded[0] == 0
    assert np.isnan(encoded[1])
    with pytest.raises(PlftError, match="only 0 and 1"):
        space.encode(texts(("0", "2"))[0])


# --- numbers


def test_regression_learns_mean_and_scale_and_keeps_raw_units():
    space = LabelSpace.fit(TaskType.SEQ_REGRESSION, texts("1", "3", "", "nan"))
    assert (space.mean, space.scale, space.n_outputs) == ((2.0,), (1.0,), 1)
    assert space.encode(texts("2.5")[0]).tolist() == [2.5]
    assert np.isnan(space.encode(texts("NA")[0])).all()
    assert space.encode(texts("2.5")[0]).dtype == np.float32


def test_small_values_are_scaled_too():
    space = LabelSpace.fit(TaskType.SEQ_REGRESSION, texts("1e-9", "3e-9"))
    assert space.mean == pytest.approx((2e-9,))
    assert space.scale == pytest.approx((1e-9,))


def test_several_columns_are_several_outputs_each_with_its_own_gaps():
    space = LabelSpace.fit(TaskType.SEQ_REGRESSION, texts(("1", "10"), ("3", "")), columns=("tm", "kd"))
    assert space.mean == (2.0, 10.0)
    assert space.scale == (1.0, 1.0)  # a constant column is not blown up
    encoded = space.encode(texts(("1", ""))[0])
    assert encoded[0] == 1
    assert np.isnan(encoded[1])


def test_residue_numbers_leave_out_the_sentinel():
    space = LabelSpace.fit(TaskType.TOKEN_REGRESSION, [Labelled("MKT", "999 1 3")], missing="999")
    assert (space.mean, space.scale) == ((2.0,), (1.0,))
    encoded = space.encode(Labelled("MK", "999 5"))
    assert np.isnan(encoded[0])
    assert encoded[1] == 5
    assert encoded.shape == (2,)


@pytest.mark.parametrize(
    ("task", "records", "message"),
    [
        ("seq_classification", texts("", None), "No train record has a label"),
        ("seq_classification", texts("a", "a"), "All train labels are 'a'"),
        ("seq_classification", texts(["a", "b"]), "the label is a list of 2 values where one value is expected"),
        ("seq_classification", texts(("a", "b")), "2 label columns where 1 are expected"),
        ("seq_regression", texts("1", "high", "x", "y", "z"), r"'high'; .*'x'; .*'y' \(and 1 more\)"),
        ("seq_regression", texts("1", "inf"), "must be a finite number"),
        ("seq_regression", texts("1", "1e300"), "must be a finite number"),
        ("seq_regression", texts("", "nan"), "No train record has a value for 'label'"),
        ("token_regression", labelled(("MKT", "HHH")), "'H'; .*'H'; .*'H'"),
        ("token_regression", labelled(("MKT", "1 2")), "the label has 2 values"),
        ("seq_multilabel", texts("|"), "No train record has a label"),
    ],
)
def test_labels_that_cannot_be_learned_are_one_clear_line(task, records, message):
    with pytest.raises(PlftError, match=message) as caught:
        LabelSpace.fit(TaskType.named(task), records)
    assert "\n" not in str(caught.value)


def test_a_residue_task_has_one_label_column():
    with pytest.raises(PlftError, match="has one label column, not 2"):
        LabelSpace.fit(TaskType.TOKEN_REGRESSION, labelled(("MK", "1 2")), columns=("a", "b"))


def test_an_unknown_task_is_answered_with_a_suggestion():
    with pytest.raises(PlftError, match="Did you mean 'seq_regression'"):
        TaskType.named("seq_regresion")


@pytest.mark.parametrize(
    "space",
    [
        LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, texts("b", "a"), missing="?"),
        LabelSpace.fit(TaskType.SEQ_REGRESSION, texts(("1", "2"), ("3", "5")), columns=("x", "y")),
    ],
)
def test_a_space_survives_json(space):
    assert LabelSpace.from_json(space.to_json()) == space


def test_a_multilabel_with_an_unseen_class_is_missing_and_not_empty():
    space = LabelSpace.fit(TaskType.SEQ_MULTILABEL, texts("b|a", "c"))
    assert np.isnan(space.encode(texts("a|other")[0], unseen="missing")).all()
    assert space.encode(texts("a")[0], unseen="missing").tolist() == [1, 0, 0]


def test_unseen_classes_are_found_in_every_task_with_classes():
    residues = LabelSpace.fit(TaskType.TOKEN_CLASSIFICATION, [Labelled("MKT", "HEC")])
    assert residues.unseen(Labelled("MKTA", "HGGX", "1101")) == {"G", "X"}
    assert residues.unseen(Labelled("MKTA", "HHHG", "1110")) == set()
    members = LabelSpace.fit(TaskType.SEQ_MULTILABEL, texts("b|a", "c"))
    assert members.unseen(texts("a|other")[0]) == {"other"}
    assert members.unseen(texts("")[0]) == set()
    numbers = LabelSpace.fit(TaskType.SEQ_REGRESSION, texts("1", "2"))
    assert numbers.unseen(texts("3")[0]) == set()


def test_unseen_classes_are_counted_by_record_over_all_parts():
    from plft.preparation import unseen_classes

    parts = {"train": texts("a|b"), "valid": texts("a|other", "other|new", "b"), "test": texts("", "new")}
    space = LabelSpace.fit(TaskType.SEQ_MULTILABEL, parts["train"])
    assert unseen_classes(parts, space) == {"other": 2, "new": 2}
