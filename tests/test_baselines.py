"""Baselines find rules that they can express, answer in the shape that is scored, and see only train and valid."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from plft import homology
from plft.alphabet import DNA, PROTEIN
from plft.baselines import BASELINES, NoTimeError, Problem, train_baseline
from plft.encodings import Part
from plft.labels import IGNORED_CLASS, LabelSpace, TaskType
from plft.metrics import evaluate

METRIC = {
    TaskType.SEQ_CLASSIFICATION: "mcc",
    TaskType.SEQ_REGRESSION: "spearman",
    TaskType.TOKEN_CLASSIFICATION: "accuracy",
    TaskType.TOKEN_REGRESSION: "rmse",
    TaskType.SEQ_MULTILABEL: "f1_micro",
}
LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def target_of(task, sequence):
    """A target that can be read off the sequence."""
    first, second = float(sequence[0] in "ACDEFGHIKL"), float(sequence[1] in "ACDEFGHIKL")
    if task is TaskType.SEQ_CLASSIFICATION:
        return np.asarray(int(first), dtype=np.int64)
    if task is TaskType.SEQ_REGRESSION:
        return np.array([first + 2 * second], dtype=np.float32)
    if task is TaskType.SEQ_MULTILABEL:
        return np.array([first, second], dtype=np.float32)
    before = ["", *sequence][: len(sequence)]
    if task is TaskType.TOKEN_CLASSIFICATION:
        return np.array([int(letter != "" and letter in "ACDEF") for letter in before], dtype=np.int64)
    return np.array([LETTERS.index(letter) if letter else 0 for letter in sequence], dtype=np.float32)


def part(task, n, seed, length=20):
    random = np.random.default_rng(seed)
    sequences = ["".join(random.choice(LETTERS, length)) for _ in range(n)]
    targets = [target_of(task, sequence) for sequence in sequences]
    hidden = [random.normal(size=(length, 5) if task.is_residue else 5).astype(np.float32) for _ in sequences]
    for states, sequence in zip(hidden, sequences, strict=True):  # the first number tells part of the rule
        flags = np.array([letter in "ACDEFGHIKL" for letter in sequence], dtype=np.float32)
        states[..., 0] += 3 * (flags if task.is_residue else flags[0])
    return Part(sequences, targets, np.ones(n), hidden)


def problem_of(task, n=300, n_valid=120, **options):
    classes = () if task.is_regression else ("a", "b")
    space = LabelSpace(task, classes, ("label",), (0.0,), (1.0,)) if task.is_regression else LabelSpace(task, classes)
    valid = part(task, n_valid, 1) if n_valid else None
    return Problem(space, PROTEIN, part(task, n, 0), valid, METRIC[task], n_asked=100, **options)


def trained(name, problem, test, seconds=60.0):
    return train_baseline(BASELINES[name], problem, {"test": test}, time.monotonic(), seconds)


def scores(problem, outputs, test):
    found = evaluate(problem.task, outputs, test.targets, problem.labels.classes, resamples=0)
    return {name: each.value for name, each in found.metrics.items()}


class Sealed:
    """Targets that nobody may look at."""

    def __len__(self):
        raise AssertionError("a baseline looked at the targets of test")

    __getitem__ = __iter__ = __len__


def test_residues_without_labels_do_not_make_valid_large_enough(monkeypatch):
    monkeypatch.setattr("plft.baselines.MOST_JUDGED", 100)
    problem = problem_of(TaskType.TOKEN_CLASSIFICATION, n=60, n_valid=20)
    unlabelled = replace(problem.valid, targets=[np.full(20, IGNORED_CLASS) for _ in range(20)])
    outputs = trained("window", replace(problem, valid=unlabelled), part(TaskType.TOKEN_CLASSIFICATION, 5, 2))
    assert len(outputs.outputs["test"]) == 5


@pytest.mark.parametrize("task", list(TaskType))
@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_answers_every_task_it_applies_to_without_seeing_the_targets_of_test(task, name):
    problem, test = problem_of(task), part(task, 50, 2)
    row = BASELINES[name]
    applies = row.applies(problem)
    assert applies == (name in ("constant", "frozen") or (name == "window") == task.is_residue)
    if applies:
        outputs = trained(name, problem, replace(test, targets=Sealed())).outputs["test"]
        assert scores(problem, outputs, test)
        if not task.is_regression and not task.is_multilabel:
            assert all(np.allclose(each.sum(axis=-1), 1) for each in outputs)


@pytest.mark.parametrize(
    ("task", "name", "metric", "least"),
    [
        (TaskType.SEQ_CLASSIFICATION, "one_hot", "accuracy", 0.97),
        (TaskType.SEQ_CLASSIFICATION, "frozen", "accuracy", 0.85),
        (TaskType.SEQ_REGRESSION, "one_hot", "r2", 0.9),
        (TaskType.SEQ_MULTILABEL, "one_hot", "subset_accuracy", 0.95),
        (TaskType.TOKEN_CLASSIFICATION, "window", "accuracy", 1.0),
        (TaskType.TOKEN_REGRESSION, "window", "r2", 0.99),
        (TaskType.TOKEN_REGRESSION, "frozen", "r2", 0.5),
    ],
)
@pytest.mark.parametrize("n_valid", [120, 0])
def test_a_rule_that_a_baseline_can_express_is_found(task, name, metric, least, n_valid):
    problem, test = problem_of(task, 300 if task.is_residue else 1500, n_valid), part(task, 100, 2)
    found = trained(name, problem, test)
    assert scores(problem, found.outputs["test"], test)[metric] >= least
    assert ("chosen on valid" if n_valid else "cross-validation") in found.note


def test_kmers_find_a_motif_wherever_it_stands():
    random = np.random.default_rng(0)

    def made(n):
        sequences, targets = [], []
        for at in range(n):
            letters = "".join(random.choice(list("ACGT"), 60))
            start = random.integers(0, 50)
            letters = letters.replace("TATAA", "TATGA")
            sequences.append(letters[:start] + "TATAA" + letters[start + 5 :] if at % 2 else letters)
            targets.append(np.asarray(at % 2, dtype=np.int64))
        return Part(sequences, targets, np.ones(n))

    problem = Problem(LabelSpace(TaskType.SEQ_CLASSIFICATION, ("a", "b")), DNA, made(1000), made(200), "mcc")
    test = made(300)
    assert scores(problem, trained("kmers", problem, test).outputs["test"], test)["accuracy"] > 0.95
    assert scores(problem, trained("composition", problem, test).outputs["test"], test)["accuracy"] < 0.75


def test_the_constant_is_the_weighted_share_or_mean_of_what_is_known():
    space = LabelSpace(TaskType.SEQ_CLASSIFICATION, ("a", "b"))
    targets = [np.asarray(each) for each in (0, 1, 1, -100)]
    train = Part(["AC", "AD", "AE", "AF"], targets, np.array([2.0, 1.0, 1.0, 9.0]))
    problem = Problem(space, PROTEIN, train, None, "mcc")
    assert trained("constant", problem, Part(["A"])).outputs["test"][0].tolist() == [0.5, 0.5]
    weighted = replace(problem, class_weights=[1.0, 3.0])  # for what learns; the majority stays what it is
    assert trained("constant", weighted, Part(["A"])).outputs["test"][0].tolist() == [0.5, 0.5]
    values = [np.array(each) for each in ([1.0, np.nan], [4.0, 6.0], [np.nan, 8.0], [np.nan, np.nan])]
    numbers = LabelSpace(TaskType.SEQ_REGRESSION, columns=("x", "y"))
    problem = Problem(numbers, PROTEIN, replace(train, targets=values), None, "spearman")
    assert trained("constant", problem, Part(["A"])).outputs["test"][0].tolist() == [2.0, 7.0]


def test_the_nearest_neighbour_gives_its_label_and_strangers_get_the_mean(monkeypatch):
    monkeypatch.setattr(homology, "find_mmseqs", lambda: None)
    problem = problem_of(TaskType.SEQ_REGRESSION, n=50)
    numbers = [np.array([float(at)]) for at in range(50)]
    problem = replace(problem, train=replace(problem.train, targets=numbers))
    asked = [problem.train.sequences[7], "W" + problem.train.sequences[30][1:], "W" * 20]
    found = trained("neighbour", problem, Part(asked))
    assert [float(each[0]) for each in found.outputs["test"]] == [7.0, 30.0, 24.5]
    assert "weaker" in found.note


def test_the_label_of_the_nearest_neighbour_always_wins_and_closer_ones_are_surer(monkeypatch):
    monkeypatch.setattr(homology, "find_mmseqs", lambda: None)
    problem = problem_of(TaskType.SEQ_CLASSIFICATION, n=50)
    rare = [np.asarray(int(at == 7)) for at in range(50)]
    problem = replace(problem, train=replace(problem.train, targets=rare))
    same = problem.train.sequences[7]
    equal, near = trained("neighbour", problem, Part([same, same[:14] + "WWWWWW"])).outputs["test"]
    assert equal.tolist() == [0, 1]
    assert 0.5 < near[1] < 1


def test_where_nothing_aligns_shared_kmers_find_a_neighbour_and_slow_alignments_are_not_begun(monkeypatch):
    problem = problem_of(TaskType.SEQ_REGRESSION, n=50)
    problem = replace(problem, train=replace(problem.train, targets=[np.array([float(at)]) for at in range(50)]))
    sequences = problem.train.sequences
    aligned = homology.Nearest(np.array([0.9, 0.0]), np.array([3, -1]))
    monkeypatch.setattr(homology, "find_mmseqs", lambda: "mmseqs")
    monkeypatch.setattr(homology, "nearest", lambda *_: aligned)
    found = trained("neighbour", problem, Part([sequences[20], sequences[40]]))
    assert [float(each[0]) for each in found.outputs["test"]] == [3.0, 40.0]
    assert found.note == "by alignment, else by shared k-mers"
    found = trained("neighbour", replace(problem, n_asked=1_000_000), Part([sequences[20]]))
    assert found.outputs["test"][0][0] == 20.0
    assert "weaker" in found.note


@pytest.mark.parametrize("name", ["composition", "one_hot", "kmers", "neighbour"])
def test_sequences_without_weight_or_label_teach_nothing(name):
    problem, test = problem_of(TaskType.SEQ_CLASSIFICATION), part(TaskType.SEQ_CLASSIFICATION, 40, 2)
    train = problem.train
    wrong = part(TaskType.SEQ_CLASSIFICATION, 100, 9)
    flipped = [np.asarray(1 - int(each)) for each in wrong.targets[:50]] + [np.asarray(-100)] * 50
    joined = Part(
        [*train.sequences, *wrong.sequences],
        [*train.targets, *flipped],
        np.concatenate([np.ones(300), np.zeros(50), np.ones(50)]),
    )
    plain = trained(name, replace(problem, train=replace(train, hidden=None)), test).outputs["test"]
    other = trained(name, replace(problem, train=joined), test).outputs["test"]
    if name == "composition":  # standardised over all sequences, which changes what a penalty means, not the ranks
        assert np.corrcoef(np.stack(plain)[:, 1], np.stack(other)[:, 1])[0, 1] > 0.95
    else:
        assert np.allclose(plain, other, atol=1e-6)


@pytest.mark.parametrize("name", ["kmers", "one_hot", "neighbour", "frozen"])
def test_the_same_seed_gives_the_same_baseline(name):
    problem, test = problem_of(TaskType.SEQ_CLASSIFICATION, n_valid=0), part(TaskType.SEQ_CLASSIFICATION, 30, 2)
    one, other = (trained(name, problem, test).outputs["test"] for _ in range(2))
    assert np.array_equal(one, other)


def test_what_the_time_does_not_allow_is_left_out_and_fewer_items_are_said():
    problem, test = problem_of(TaskType.TOKEN_CLASSIFICATION), part(TaskType.TOKEN_CLASSIFICATION, 10, 2)
    with pytest.raises(NoTimeError, match="used up"):
        train_baseline(BASELINES["window"], problem, {"test": test}, time.monotonic() - 10, 5)
    with pytest.raises(NoTimeError, match=r"raise baselines\.minutes"):
        trained("window", problem, test, seconds=0.005)
    fitted = BASELINES["window"].fit(replace(problem, seconds=0.03))
    assert "of 6,000 residues" in fitted.note
    assert scores(problem, fitted.predict(test), test)["accuracy"] > 0.9


def test_one_hot_needs_lengths_that_agree():
    problem = problem_of(TaskType.SEQ_REGRESSION)
    applies = BASELINES["one_hot"].applies
    sequences = list(problem.train.sequences)
    assert applies(replace(problem, train=replace(problem.train, sequences=["A" * 16, *sequences[1:]])))
    assert applies(replace(problem, train=replace(problem.train, sequences=["A" * 3, *sequences[1:]])))
    assert not applies(replace(problem, train=replace(problem.train, sequences=["A" * 26, *sequences[1:]])))


def test_titles_name_the_kind_of_model():
    titles = {task: BASELINES["kmers"].title_for(task) for task in TaskType}
    assert titles[TaskType.SEQ_REGRESSION] == "k-mer ridge regression"
    assert titles[TaskType.SEQ_CLASSIFICATION] == "k-mer logistic regression"
    assert BASELINES["constant"].title_for(TaskType.TOKEN_CLASSIFICATION) == "majority class"


def test_many_residues_of_few_validation_proteins_are_enough_to_choose_settings(monkeypatch):
    monkeypatch.setattr("plft.baselines.MOST_JUDGED", 1000)
    task = TaskType.TOKEN_CLASSIFICATION
    for n_valid, by_folds in ((30, False), (20, True)):
        note = trained("window", problem_of(task, n=60, n_valid=n_valid), part(task, 5, 2)).note
        assert ("cross-validation" in note) == by_folds
