"""Metrics against scikit-learn and scipy, and the weighted bootstrap against literally repeating the sequences."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from plft.errors import PlftError
from plft.labels import TaskType
from plft.metrics import METRICS, difference, evaluate, metrics_for, point
from plft.resampling import affordable, draw
from plft.tallies import Scored, scorer_of

SEQ_CLASS, SEQ_VALUE = TaskType.SEQ_CLASSIFICATION, TaskType.SEQ_REGRESSION
RESIDUE_CLASS, RESIDUE_VALUE = TaskType.TOKEN_CLASSIFICATION, TaskType.TOKEN_REGRESSION
MULTILABEL = TaskType.SEQ_MULTILABEL
CASES = [(SEQ_CLASS, 2), (SEQ_CLASS, 5), (SEQ_VALUE, 1), (SEQ_VALUE, 3), (RESIDUE_CLASS, 2), (RESIDUE_CLASS, 3)]
CASES += [(RESIDUE_VALUE, 1), (MULTILABEL, 4)]


def simulated(task, width, n=60, seed=0):
    """Predictions that are partly right, rounded so that ties are common; about one label in eight is missing."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 9, n) if task.is_residue else np.ones(n, int)
    targets, outputs = [], []
    for length in lengths:
        gone = random.random(length) < 0.12
        if task.is_regression:
            true = np.round(random.normal(size=(length, width)), 1).astype(np.float32)
            predicted = np.round(true + random.normal(size=true.shape), 1)
            true[gone] = np.nan
        elif task.is_multilabel:
            true = (random.random((length, width)) < 0.4).astype(np.float32)
            predicted = np.round(np.clip(0.35 + 0.3 * true + random.normal(0, 0.2, true.shape), 0, 1), 1)
            true[gone] = np.nan
        else:
            true = random.integers(0, width, length)
            score = np.round(random.normal(size=(length, width)) + 1.2 * np.eye(width)[true], 1)
            predicted = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
            true = np.where(gone, -100, true)
        flat = task is RESIDUE_VALUE
        targets.append((true[:, 0] if flat else true) if task.is_residue else true[0])
        outputs.append((predicted[:, 0] if flat else predicted) if task.is_residue else predicted[0])
    return outputs, targets


def joined(task, outputs, targets):
    """What scikit-learn gets: present items only, (items, width) and (items,) or (items, width)."""
    predicted = np.concatenate([np.atleast_2d(o.T).T if task.is_residue else np.atleast_2d(o) for o in outputs])
    true = np.concatenate([t if task.is_residue else np.atleast_1d(t)[None] for t in targets]).reshape(
        len(predicted), -1
    )
    present = (true != -100).all(axis=1) & np.isfinite(true).all(axis=1)
    return predicted[present], true[present]


def recall_of_the_best(true, predicted, k):
    """The mean over many random orders of tied predictions."""
    good = true >= np.sort(true)[-k]
    random = np.random.default_rng(0)
    orders = [np.lexsort((random.random(len(true)), -predicted))[:k] for _ in range(3000)]
    return np.mean([good[order].mean() for order in orders])


def by_scikit_learn(task, outputs, targets):
    predicted, true = joined(task, outputs, targets)
    if task.is_regression:
        pairs = list(zip(true.T, predicted.T, strict=True))
        k = max(1, len(true) // 10)
        best = {
            "ndcg": np.mean([sk.ndcg_score([t - t.min()], [p], k=k) for t, p in pairs]),
            "top_recall": np.mean([recall_of_the_best(t, p, k) for t, p in pairs]),
        }
        return (best if task is SEQ_VALUE else {}) | {
            "spearman": np.mean([stats.spearmanr(t, p).statistic for t, p in pairs]),
            "pearson": np.mean([stats.pearsonr(t, p).statistic for t, p in pairs]),
            "r2": np.mean([sk.r2_score(t, p) for t, p in pairs]),
            "rmse": np.mean([sk.root_mean_squared_error(t, p) for t, p in pairs]),
            "mae": np.mean([sk.mean_absolute_error(t, p) for t, p in pairs]),
        }
    if task.is_multilabel:
        called = predicted >= 0.5
        return {
            "f1_micro": sk.f1_score(true, called, average="micro"),
            "f1_macro": sk.f1_score(true, called, average="macro"),
            "subset_accuracy": sk.accuracy_score(true, called),
            "jaccard": np.mean(
                [
                    1.0 if not (t.any() or c.any()) else (t * c).sum() / ((t + c) > 0).sum()
                    for t, c in zip(true, called, strict=True)
                ]
            ),
            "roc_auc": sk.roc_auc_score(true, predicted, average="macro"),
            "pr_auc": sk.average_precision_score(true, predicted, average="macro"),
        }
    true, called = true[:, 0], predicted.argmax(axis=1)
    average = "binary" if predicted.shape[1] == 2 else "macro"
    one_hot = np.eye(predicted.shape[1])[true]
    last = slice(1, 2) if average == "binary" else slice(None)
    specificity = [sk.recall_score(true != c, called != c) for c in range(predicted.shape[1])]
    found = {
        "mcc": sk.matthews_corrcoef(true, called),
        "accuracy": sk.accuracy_score(true, called),
        "balanced_accuracy": sk.balanced_accuracy_score(true, called),
        "f1_macro": sk.f1_score(true, called, average="macro"),
        "precision": sk.precision_score(true, called, average=average),
        "recall": sk.recall_score(true, called, average=average),
        "specificity": np.mean(specificity[last]),
        "roc_auc": sk.roc_auc_score(one_hot[:, last], predicted[:, last], average="macro"),
        "pr_auc": sk.average_precision_score(one_hot[:, last], predicted[:, last], average="macro"),
    }
    return found | ({"f1": sk.f1_score(true, called)} if average == "binary" else {})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("task", "width"), CASES)
def test_every_metric_of_a_task_equals_scikit_learn_and_scipy(task, width, seed):
    outputs, targets = simulated(task, width, seed=seed)
    ours = point(task, outputs, targets)
    theirs = by_scikit_learn(task, outputs, targets)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=0.03 if name == "top_recall" else 1e-6), name


def test_metrics_of_the_best_tenth_by_hand():
    # Twenty variants with fitness 0 to 19, so the best two are 18 and 19. Predicted best: 19, then 10.
    true = [np.array([float(at)]) for at in range(20)]
    predicted = [np.array([{19: 30.0, 10: 25.0}.get(at, float(at))]) for at in range(20)]
    ours = point(SEQ_VALUE, predicted, true)
    assert ours["top_recall"] == 0.5
    assert ours["ndcg"] == pytest.approx((19 / 1 + 10 / math.log2(3)) / (19 / 1 + 18 / math.log2(3)))


def test_a_constant_prediction_picks_the_best_tenth_by_chance():
    true = [np.array([float(at)]) for at in range(20)]
    assert point(SEQ_VALUE, [np.array([0.0])] * 20, true)["top_recall"] == pytest.approx(0.1)


def test_the_best_tenth_does_not_depend_on_the_unit_of_the_label():
    outputs, targets = simulated(SEQ_VALUE, 1)
    moved = [target * 7 - 3 for target in targets]
    for name in ("ndcg", "top_recall"):
        assert point(SEQ_VALUE, outputs, moved)[name] == pytest.approx(point(SEQ_VALUE, outputs, targets)[name])


def test_a_column_without_labels_has_no_best_tenth():
    targets = [np.array([at, np.nan]) for at in range(5)]
    details = evaluate(SEQ_VALUE, [np.zeros(2)] * 5, targets, columns=["a", "b"], resamples=10).details
    assert details["per_column"]["b"]["ndcg"] is None
    assert details["per_column"]["a"]["ndcg"] is not None


@pytest.mark.parametrize(("task", "width"), CASES)
def test_a_weighted_resample_equals_literally_repeating_the_sequences(task, width):
    outputs, targets = simulated(task, width, n=25)
    scored = Scored.of(task, outputs, targets)
    present = [at for at, target in enumerate(targets) if np.any((target != -100) & np.isfinite(target))]
    (weights,) = draw(scored.n_sequences, 20, seed=1)
    tally = scorer_of(scored).tally(weights)
    literal = []
    for resample in weights:
        repeated = np.repeat(present, resample.astype(int))
        literal.append(point(task, [outputs[at] for at in repeated], [targets[at] for at in repeated]))
    for row in metrics_for(task, width):
        values = row.function(tally).reshape(20, -1).mean(axis=1)
        assert values == pytest.approx([each[row.name] for each in literal], abs=1e-6, nan_ok=True), row.name


@pytest.mark.parametrize(("task", "width"), CASES)
def test_each_interval_holds_its_value_and_is_the_same_for_the_same_seed(task, width):
    outputs, targets = simulated(task, width)
    first, again = (evaluate(task, outputs, targets, resamples=200, seed=7) for _ in range(2))
    for name, metric in first.metrics.items():
        assert metric.low <= metric.value <= metric.high, name
    assert first == again


def test_residue_tasks_resample_whole_sequences():
    # Two kinds of protein, all right or all wrong: the residues are many, the independent observations are eight.
    right, wrong = np.tile([[0.9, 0.1]], (500, 1)), np.tile([[0.1, 0.9]], (500, 1))
    accuracy = evaluate(RESIDUE_CLASS, [right, wrong] * 4, [np.zeros(500, int)] * 8).metrics["accuracy"]
    assert accuracy.value == 0.5
    assert accuracy.high - accuracy.low >= 0.5


def test_missing_labels_are_counted_and_never_scored():
    outputs = [np.array([0.9, 0.1]), np.array([0.2, 0.8]), np.array([0.6, 0.4])]
    evaluation = evaluate(SEQ_CLASS, outputs, [np.array(0), np.array(1), np.array(-100)], classes=["no", "yes"])
    assert (evaluation.n, evaluation.n_scored, evaluation.n_sequences) == (3, 2, 2)
    assert evaluation.metrics["accuracy"].value == 1.0


def test_a_regression_column_may_miss_labels_that_another_column_has():
    targets = [np.array([1.0, np.nan]), np.array([2.0, 5.0]), np.array([4.0, 7.0]), np.array([np.nan, 6.0])]
    outputs = [np.array([1.0, 0.0]), np.array([2.0, 6.0]), np.array([3.0, 7.0]), np.array([9.0, 6.0])]
    details = evaluate(SEQ_VALUE, outputs, targets, columns=["a", "b"], resamples=10).details
    assert details["per_column"]["a"]["mae"] == pytest.approx(1 / 3)
    assert details["per_column"]["b"]["mae"] == pytest.approx(1 / 3)
    assert details["scatter"]["a"] == [[1.0, 2.0, 4.0], [1.0, 2.0, 3.0]]


def test_the_positive_class_is_the_last_of_two():
    outputs = [np.array(p) for p in ([0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2])]
    ours = point(SEQ_CLASS, outputs, [np.array(c) for c in (0, 0, 1, 1)])
    assert (ours["precision"], ours["recall"], ours["specificity"], ours["f1"]) == (0.5, 0.5, 0.5, 0.5)
    assert ours["roc_auc"] == 0.75


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("task", "outputs", "targets", "undefined"),
    [
        (SEQ_CLASS, [[0.2, 0.8], [0.9, 0.1]], [1, 1], {"mcc", "roc_auc", "specificity"}),
        (SEQ_CLASS, [[0.2, 0.8], [0.9, 0.1]], [0, 0], {"mcc", "roc_auc", "pr_auc", "recall"}),
        (SEQ_CLASS, [[0.2, 0.8], [0.1, 0.9]], [0, 1], set()),
        (SEQ_VALUE, [[0.3], [0.3], [0.3]], [[1.0], [2.0], [3.0]], {"spearman", "pearson"}),
        (SEQ_VALUE, [[0.1], [0.2], [0.3]], [[1.1], [1.1], [1.1]], {"spearman", "pearson", "r2", "ndcg", "top_recall"}),
        (SEQ_VALUE, [[0.1]], [[1.1]], {"spearman", "pearson", "r2", "ndcg", "top_recall"}),
        (MULTILABEL, [[0.1, 0.2], [0.3, 0.1]], [[0.0, 0.0]] * 2, {"f1_micro", "f1_macro", "roc_auc", "pr_auc"}),
    ],
)
def test_what_is_undefined_is_null_and_nothing_warns(task, outputs, targets, undefined):
    arrays = [np.array(o) for o in outputs], [np.array(t) for t in targets]
    written = json.loads(json.dumps(evaluate(task, *arrays, resamples=50).to_json(), allow_nan=False))
    assert {name for name, metric in written["metrics"].items() if metric["value"] is None} == undefined


def test_one_sequence_gives_values_without_an_interval():
    metric = evaluate(SEQ_CLASS, [np.array([0.1, 0.9])], [np.array(1)]).metrics["accuracy"]
    assert metric.value == 1.0
    assert math.isnan(metric.low)
    assert math.isnan(metric.high)


def test_a_constant_prediction_has_an_mcc_of_zero():
    outputs = [np.array([0.2, 0.8])] * 4
    assert point(SEQ_CLASS, outputs, [np.array(c) for c in (0, 1, 1, 1)])["mcc"] == 0.0


def test_classes_that_never_occur_do_not_lower_a_macro_average():
    outputs = [np.array(p) for p in ([0.8, 0.1, 0.1], [0.1, 0.8, 0.1])]
    ours = point(SEQ_CLASS, outputs, [np.array(0), np.array(1)])
    assert (ours["f1_macro"], ours["balanced_accuracy"], ours["roc_auc"]) == (1.0, 1.0, 1.0)


def test_the_confusion_matrix_has_true_classes_as_rows():
    outputs = [np.array(p) for p in ([0.9, 0.1], [0.2, 0.8], [0.3, 0.7])]
    details = evaluate(SEQ_CLASS, outputs, [np.array(c) for c in (0, 0, 1)], classes=["no", "yes"]).details
    assert details["confusion"] == [[1, 1], [0, 1]]
    assert details["per_class"]["yes"]["precision"] == 0.5
    assert details["per_class"]["no"]["support"] == 2


@pytest.mark.parametrize(("task", "width"), [(SEQ_CLASS, 2), (RESIDUE_CLASS, 3), (MULTILABEL, 4)])
def test_the_curves_enclose_the_reported_areas(task, width):
    outputs, targets = simulated(task, width, n=90)
    details = evaluate(task, outputs, targets, resamples=1).details
    for name, (false_rate, recall) in details["roc"].items():
        assert len(recall) <= 200
        if width > 2:
            assert sk.auc(false_rate, recall) == pytest.approx(details["per_class"][name]["roc_auc"], abs=1e-3)
    if width == 2:
        area = point(task, outputs, targets)["roc_auc"]
        assert sk.auc(*details["roc"]["1"]) == pytest.approx(area, abs=1e-4)


def test_long_curves_and_large_scatters_are_thinned():
    random = np.random.default_rng(0)
    true = random.integers(0, 2, 5000)
    score = 1 / (1 + np.exp(-random.normal(true, 1)))
    pairs = np.stack([1 - score, score], axis=1)
    roc = evaluate(SEQ_CLASS, list(pairs), list(true), ["a", "b"], resamples=1).details["roc"]["b"]
    assert len(roc[0]) <= 200
    assert sk.auc(*roc) == pytest.approx(sk.roc_auc_score(true, score), abs=2e-3)
    values = evaluate(SEQ_VALUE, list(pairs[:, 1:]), list(true[:, None].astype(float)), resamples=1)
    assert len(values.details["scatter"]["label"][0]) == 2000


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        ([], [], "nothing to score: no sequences"),
        ([np.array([0.5, 0.5])], [np.array(-100)], "all 1 labels are missing"),
        ([np.array([np.nan, 0.5])], [np.array(1)], "1 of 1 predictions are not finite"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(outputs, targets, message):
    with pytest.raises(PlftError, match=message) as raised:
        evaluate(SEQ_CLASS, outputs, targets)
    assert "\n" not in str(raised.value)


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="2 outputs for 1 targets"):
        point(SEQ_CLASS, [np.zeros(2)] * 2, [np.array(1)])
    with pytest.raises(ValueError, match="shape"):
        point(RESIDUE_CLASS, [np.zeros((4, 2))], [np.zeros(5, int)])
    with pytest.raises(ValueError, match="2 classes, but 3 class names"):
        point(SEQ_CLASS, [np.zeros(2)], [np.array(1)], ["a", "b", "c"])


def test_millions_of_residues_draw_fewer_resamples_but_never_below_a_hundred():
    assert affordable(1000, 200_000) == 1000
    assert affordable(1000, 5_000_000) == 200
    assert affordable(1000, 10**9) == 100
    assert affordable(20, 10**9) == 20


def test_every_bootstrap_row_adds_up_to_the_number_of_sequences():
    blocks = list(draw(50_000, 12, seed=0))
    assert sum(len(block) for block in blocks) == 12
    assert all((block.sum(axis=1) == 50_000).all() for block in blocks)


def test_better_means_higher_except_for_errors():
    assert {name for name, row in METRICS.items() if not row.higher_is_better} == {"rmse", "mae"}


# --- intervals cover the truth: samples from populations whose value is known


def accuracy_of_80_percent(random):
    right = random.random(300) < 0.8
    return SEQ_CLASS, [np.array([r, 1 - r], float) for r in right], [np.array(0)] * 300, "accuracy", 0.8


def classes_told_apart(random):
    """40 % positive, of which 80 % are found; of the others 85 % are left alone."""
    true = random.random(300) < 0.4
    called = random.random(300) < np.where(true, 0.8, 0.15)
    hit, false_hit, missed, rest = 0.4 * 0.8, 0.6 * 0.15, 0.4 * 0.2, 0.6 * 0.85
    margins = (hit + false_hit) * (hit + missed) * (rest + false_hit) * (rest + missed)
    truth = (hit * rest - false_hit * missed) / math.sqrt(margins)
    return SEQ_CLASS, [np.array([1 - c, c], float) for c in called], [np.array(int(t)) for t in true], "mcc", truth


def normal_scores(random):
    """Scores of positives are normal around 1, of the others around 0."""
    true = random.random(300) < 0.5
    p = stats.norm.cdf(random.normal(size=300) + true)
    outputs = list(np.stack([1 - p, p], axis=1))
    return SEQ_CLASS, outputs, [np.array(int(t)) for t in true], "roc_auc", stats.norm.cdf(1 / math.sqrt(2))


def correlated_values(random):
    pairs = random.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 200)
    truth = 6 / math.pi * math.asin(0.7 / 2)  # the population value for a bivariate normal
    return SEQ_VALUE, list(pairs[:, :1]), list(pairs[:, 1:]), "spearman", truth


def residues_that_go_together(random):
    """Each protein has its own accuracy, mean 0.7."""
    right = [random.random(20) < share for share in random.beta(7, 3, 120)]
    outputs = [np.stack([r, 1 - r], 1).astype(float) for r in right]
    return RESIDUE_CLASS, outputs, [np.zeros(20, int)] * 120, "accuracy", 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    "sample",
    [accuracy_of_80_percent, classes_told_apart, normal_scores, correlated_values, residues_that_go_together],
)
def test_the_95_percent_interval_covers_the_truth_93_to_97_percent_of_the_time(sample):
    random = np.random.default_rng(0)
    covered = []
    for _ in range(1500):
        task, outputs, targets, name, truth = sample(random)
        with warnings.catch_warnings(action="error"):
            metric = evaluate(task, outputs, targets, resamples=500).metrics[name]
        covered.append(metric.low <= truth <= metric.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_paired_difference_has_the_interval_of_the_differences_per_sequence():
    random = np.random.default_rng(4)
    targets = [np.asarray(each) for each in random.integers(0, 2, 400)]
    hard = random.random(400) < 0.4  # both fail together on these: a paired interval does not mind
    right = [~hard, ~hard & (random.random(400) < 0.9)]
    outputs = [[np.eye(2)[t if ok else 1 - t] for t, ok in zip(targets, rights, strict=True)] for rights in right]
    one, other = (evaluate(TaskType.SEQ_CLASSIFICATION, each, targets) for each in outputs)
    found = difference(one, other, "accuracy")
    each = right[0].astype(float) - right[1]
    error = 1.96 * each.std() / 20  # of a mean of 400
    assert found.value == pytest.approx(each.mean())
    assert (found.low, found.high) == pytest.approx((each.mean() - error, each.mean() + error), abs=0.004)
    widths = [row.metrics["accuracy"].high - row.metrics["accuracy"].low for row in (one, other)]
    assert found.high - found.low < 0.7 * min(widths)
    back = difference(other, one, "accuracy")
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_a_difference_with_itself_is_nothing_and_other_targets_are_refused():
    outputs, targets = [np.eye(2)[at % 2] for at in range(30)], [np.asarray(int(at % 3 == 0)) for at in range(30)]
    one = evaluate(TaskType.SEQ_CLASSIFICATION, outputs, targets)
    found = difference(one, one, "mcc")
    assert (found.value, found.low, found.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="not of the same targets"):
        difference(one, evaluate(TaskType.SEQ_CLASSIFICATION, outputs[1:], targets[1:]), "mcc")


def test_multi_label_rows_with_gaps_count_where_they_are_known():
    random = np.random.default_rng(3)
    targets = random.integers(0, 2, (200, 3)).astype(float)
    outputs = np.clip(0.5 * targets + random.random((200, 3)) * 0.6, 0, 1)
    targets[random.random(targets.shape) < 0.4] = np.nan
    found = evaluate(MULTILABEL, list(outputs), list(targets), ("a", "b", "c"), resamples=0)
    known, called = np.isfinite(targets), outputs >= 0.5
    complete = known.all(axis=1)
    per_class = [(targets[rows, at], outputs[rows, at]) for at, rows in enumerate(known.T)]
    value = {name: each.value for name, each in found.metrics.items()}
    assert 20 < complete.sum() < 100
    assert value["roc_auc"] == pytest.approx(np.mean([sk.roc_auc_score(*each) for each in per_class]))
    assert value["pr_auc"] == pytest.approx(np.mean([sk.average_precision_score(*each) for each in per_class]))
    assert value["f1_micro"] == pytest.approx(sk.f1_score(targets[known], called[known]))
    assert value["f1_macro"] == pytest.approx(np.mean([sk.f1_score(t, o >= 0.5) for t, o in per_class]))
    assert value["subset_accuracy"] == pytest.approx(sk.accuracy_score(targets[complete], called[complete]))


def test_without_a_single_complete_row_only_what_needs_one_is_undefined():
    targets = np.array([[1, 0, np.nan], [np.nan, 1, 0], [0, np.nan, 1], [1, 0, np.nan]])
    found = evaluate(MULTILABEL, list(np.full((4, 3), 0.6)), list(targets), ("a", "b", "c"), resamples=0)
    undefined = {name for name, each in found.metrics.items() if np.isnan(each.value)}
    assert undefined == {"subset_accuracy", "jaccard"}
    assert found.metrics["f1_micro"].value == pytest.approx(2 * 4 / (4 + 8))
