"""The simulated signal peptides follow their rules and are no gift to a simple baseline."""

from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from plft.alphabet import PROTEIN
from plft.builtin.demo import AT_MINUS_1, AT_MINUS_3, DEMO_NOTE, demo_records, write_demo
from plft.errors import PlftError
from plft.labels import LabelSpace, TaskType, guess_task
from plft.records import load_data


def test_the_note_says_that_the_data_is_simulated():
    assert "simulated" in DEMO_NOTE


def test_the_splits_are_two_thirds_a_sixth_and_a_sixth_and_the_classes_are_balanced():
    records = demo_records(n=240)
    assert Counter(each.split for each in records) == {"train": 160, "valid": 40, "test": 40}
    assert Counter(each.label for each in records) == {"signal": 120, "other": 120}


def test_the_seed_decides_every_letter():
    assert demo_records(n=50, seed=3) == demo_records(n=50, seed=3)
    assert demo_records(n=50, seed=3) != demo_records(n=50, seed=4)


def test_sequences_are_plain_proteins_of_60_to_80_residues_without_repeats():
    records = demo_records()
    assert all(set(each.sequence) <= set(PROTEIN.letters) for each in records)
    assert all(60 <= len(each.sequence) <= 80 and each.sequence[0] == "M" for each in records)
    assert len({each.sequence for each in records}) == len(records)


def test_regions_follow_the_rules_of_von_heijne():
    for record in demo_records("token_classification", n=200):
        assert len(record.label) == len(record.sequence)
        n_signal = len(record.label.rstrip("-"))
        if not n_signal:
            continue
        n, h, c = (record.label.count(region) for region in "nhc")
        assert record.label == "n" * n + "h" * h + "c" * c + "-" * (len(record.label) - n_signal)
        assert 7 <= h <= 15
        assert set("KR") & set(record.sequence[:n])
        assert record.sequence[n_signal - 3] in AT_MINUS_3
        assert record.sequence[n_signal - 1] in AT_MINUS_1
        assert record.sequence[n_signal] != "P"


def test_both_tasks_describe_the_same_sequences():
    for whole, residues in zip(demo_records(n=40), demo_records("token_classification", n=40), strict=True):
        assert whole.sequence == residues.sequence
        assert (whole.label == "signal") == ("h" in residues.label)


def test_composition_alone_does_not_give_the_answer():
    records = demo_records()
    counts = np.array([[each.sequence.count(letter) for letter in PROTEIN.letters] for each in records])
    labels = np.array([each.label for each in records])
    train = np.array([each.split == "train" for each in records])
    model = LogisticRegression(max_iter=2000).fit(counts[train], labels[train])
    assert model.score(counts[~train], labels[~train]) < 0.75


@pytest.mark.parametrize("task", ["seq_classification", "token_classification"])
def test_the_written_files_read_back_and_their_task_is_guessed(tmp_path, task):
    path = write_demo(tmp_path / "demo", n=60)[task]
    records = load_data(path)
    assert [(each.id, each.sequence, each.label, each.split) for each in records] == [
        (each.id, each.sequence, each.label, each.split) for each in demo_records(task, n=60)
    ]
    assert guess_task(records).task == task
    classes = LabelSpace.fit(TaskType(task), records).classes
    assert classes == {"seq_classification": ("other", "signal"), "token_classification": ("-", "c", "h", "n")}[task]


def test_other_tasks_and_too_few_records_are_refused():
    with pytest.raises(PlftError, match="Unknown demo task 'seq_regression'"):
        demo_records("seq_regression")
    with pytest.raises(PlftError, match="at least 12"):
        demo_records(n=3)
