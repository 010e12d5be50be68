"""Calibration: known temperatures are found, errors are those worked out by hand, predictions stay."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import log_loss

from plft.calibration import AUTO, METHODS, NONE, Calibration, choose_method, claims, log_odds, reliability
from plft.config import CalibrationConfig
from plft.errors import PlftError
from plft.labels import TaskType
from plft.tallies import Scored

CLASSES, TAGS, RESIDUES = TaskType.SEQ_CLASSIFICATION, TaskType.SEQ_MULTILABEL, TaskType.TOKEN_CLASSIFICATION


def overconfident(random, n=4000, n_classes=4, temperature=2.5):
    """Targets drawn from softmax(z), and what a model says that answers with logits `temperature` times too large."""
    z = 1.5 * random.normal(size=(n, n_classes))
    true = softmax(z, axis=1)
    targets = (true.cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return softmax(temperature * z, axis=1).astype(np.float32), targets, true


def fitted(method, task, outputs, targets):
    return METHODS[method].fit(Scored.of(task, list(outputs), list(targets)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature):
    outputs, targets, true = overconfident(np.random.default_rng(0), temperature=temperature)
    found = fitted("temperature", CLASSES, outputs, targets)
    assert found.temperature[0] == pytest.approx(temperature, rel=0.06)
    assert found.apply(outputs) == pytest.approx(true, abs=0.03)


def test_the_temperature_is_the_one_with_the_highest_likelihood():
    outputs, targets, _ = overconfident(np.random.default_rng(1), n=800)
    found = fitted("temperature", CLASSES, outputs, targets).temperature[0]
    candidates = np.geomspace(0.5, 8, 200)
    losses = [log_loss(targets, Calibration("temperature", (t,)).apply(outputs.astype(float))) for t in candidates]
    assert found == pytest.approx(candidates[np.argmin(losses)], rel=0.02)


def test_residues_share_one_temperature_and_missing_ones_do_not_count():
    outputs, targets, _ = overconfident(np.random.default_rng(2), n=3000)
    proteins = np.split(outputs, 30)
    labels = [part.copy() for part in np.split(targets, 30)]
    for part in labels:
        part[::7] = -100
    assert fitted("temperature", RESIDUES, proteins, labels).temperature[0] == pytest.approx(2.5, rel=0.1)


def test_each_class_of_a_multi_label_task_has_its_own_temperature():
    random = np.random.default_rng(3)
    z = random.normal(size=(4000, 3))
    targets = (random.random(z.shape) < expit(z)).astype(np.float32)
    targets[:, 2] = 0  # never there, so that it takes the common temperature
    outputs = expit(z * [3.0, 0.5, 1.0]).astype(np.float32)
    found = fitted("temperature", TAGS, outputs, targets)
    assert found.temperature[:2] == pytest.approx([3.0, 0.5], rel=0.15)
    assert np.array_equal(found.apply(outputs) >= 0.5, outputs >= 0.5)


def test_a_temperature_changes_no_prediction():
    outputs, targets, _ = overconfident(np.random.default_rng(4))
    calibrated = fitted("temperature", CLASSES, outputs, targets).apply(outputs)
    assert np.array_equal(calibrated.argmax(axis=1), outputs.argmax(axis=1))
    assert calibrated.dtype == np.float32
    assert calibrated.sum(axis=1) == pytest.approx(1.0, abs=1e-6)


def test_a_few_targets_that_are_all_right_do_not_make_the_model_certain():
    outputs = np.tile([[0.8, 0.2], [0.3, 0.7]], (5, 1))
    calibrated = fitted("temperature", CLASSES, outputs, [0, 1] * 5).apply(outputs)
    assert 0.8 < calibrated.max() < 0.999


def test_probabilities_that_were_rounded_to_0_and_1_stay_finite():
    outputs = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=np.float32)
    for temperature in (0.2, 1.0, 5.0):
        assert np.isfinite(Calibration("temperature", (temperature,)).apply(outputs)).all()
        assert np.isfinite(Calibration("temperature", (temperature,) * 3).apply(outputs.T)).all()
    assert np.isfinite(log_odds(np.array([0.0, 1.0], dtype=np.float32))).all()


def test_isotonic_regression_learns_a_curve_that_no_temperature_has():
    random = np.random.default_rng(5)
    said = random.random(8000)
    true = 0.2 + 0.5 * said**2
    outputs = np.stack([1 - said, said], axis=1)
    targets = (random.random(8000) < true).astype(int)
    calibrated = fitted("isotonic", CLASSES, outputs, targets).apply(outputs)
    assert np.abs(calibrated[:, 1] - true).mean() < 0.03
    assert 0 < calibrated.min() < calibrated.max() < 1


def test_a_calibration_comes_back_from_json_as_it_was():
    outputs, targets, _ = overconfident(np.random.default_rng(6), n=300, n_classes=2)
    for name in METHODS:
        before = fitted(name, CLASSES, outputs, targets)
        again = Calibration.from_json(json.loads(json.dumps(before.to_json())))
        assert np.array_equal(again.apply(outputs), before.apply(outputs))
    assert Calibration.from_json(Calibration().to_json()).apply(outputs) is outputs


@pytest.mark.parametrize("change", [{"method": "magic"}, {"temperature": [0.0]}, {"temperature": None}, {"knots": []}])
def test_a_damaged_calibration_is_refused(change):
    with pytest.raises((ValueError, TypeError)):
        Calibration.from_json(Calibration().to_json() | change)


# --- the error


def test_the_calibration_error_by_hand():
    # Two bins of ten: 0.2 said and 0.4 true, 0.9 said and 0.6 true. (10 * 0.2 + 10 * 0.3) / 20 = 0.25
    said = np.repeat([0.2, 0.9], 10)
    true = np.array([1] * 4 + [0] * 6 + [1] * 6 + [0] * 4, bool)
    found = reliability(said, true, bins=2)
    assert found.error == pytest.approx(0.25)
    assert found.frequency.tolist() == pytest.approx([0.4, 0.6])
    assert found.count.tolist() == [10, 10]


def test_bins_hold_equally_many_at_least_ten_and_never_part_equal_claims():
    random = np.random.default_rng(7)
    assert set(reliability(random.random(1500), random.random(1500) < 0.5).count) == {100}
    assert len(reliability(random.random(45), random.random(45) < 0.5).count) == 4
    assert reliability(np.full(100, 0.7), np.arange(100) < 50).count.tolist() == [100]


def test_probabilities_that_hold_have_no_error_and_calibration_lowers_one():
    random = np.random.default_rng(8)
    outputs, targets, true = overconfident(random, n=20_000)
    errors = [reliability(*claims(Scored.of(CLASSES, list(each), list(targets)))).error for each in (true, outputs)]
    assert errors[0] < 0.015
    calibration = fitted("temperature", CLASSES, outputs[:2000], targets[:2000])
    after = Scored.of(CLASSES, list(calibration.apply(outputs[2000:])), list(targets[2000:]))
    assert reliability(*claims(after)).error < 0.03 < errors[1]


def test_what_is_claimed_depends_on_the_kind_of_task():
    two = Scored.of(CLASSES, [np.array([0.3, 0.7]), np.array([0.6, 0.4])], [np.array(0), np.array(1)])
    assert [each.tolist() for each in claims(two)] == [[0.7, 0.4], [False, True]]
    three = Scored.of(CLASSES, [np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.3, 0.1])], [np.array(1), np.array(1)])
    assert [each.tolist() for each in claims(three)] == [[0.5, 0.6], [True, False]]
    tags = Scored.of(TAGS, [np.array([0.2, 0.9])], [np.array([0.0, 1.0])])
    assert [each.tolist() for each in claims(tags)] == [[0.2, 0.9], [False, True]]


# --- which method


def test_the_configuration_names_every_method():
    assert set(CalibrationConfig.model_fields["method"].annotation.__args__) == {AUTO, NONE, *METHODS}


@pytest.mark.parametrize(
    ("wanted", "task", "n_classes", "can_fit", "chosen"),
    [
        ("auto", CLASSES, 2, True, "temperature"),
        ("auto", RESIDUES, 3, True, "temperature"),
        ("auto", TAGS, 5, True, "temperature"),
        ("auto", CLASSES, 2, False, "none"),
        ("auto", TaskType.SEQ_REGRESSION, 1, True, "none"),
        ("none", CLASSES, 2, True, "none"),
        ("isotonic", CLASSES, 2, True, "isotonic"),
    ],
)
def test_auto_is_temperature_where_there_is_something_to_fit_it_on(wanted, task, n_classes, can_fit, chosen):
    assert choose_method(wanted, task, n_classes, can_fit=can_fit) == chosen


@pytest.mark.parametrize(
    ("wanted", "task", "n_classes", "can_fit", "message"),
    [
        ("isotonic", CLASSES, 3, True, "needs two classes"),
        ("isotonic", TAGS, 2, True, "needs two classes"),
        ("temperature", TaskType.TOKEN_REGRESSION, 1, True, "needs classes"),
        ("temperature", CLASSES, 2, False, "needs a validation part with labels"),
    ],
)
def test_a_method_that_cannot_be_fitted_is_refused(wanted, task, n_classes, can_fit, message):
    with pytest.raises(PlftError, match=message):
        choose_method(wanted, task, n_classes, can_fit=can_fit)


def test_a_missing_multi_label_teaches_nothing_and_claims_nothing():
    random = np.random.default_rng(8)
    z = random.normal(size=(3000, 2)) * 1.5
    targets = (random.random(z.shape) < expit(z)).astype(float)
    hidden = random.random(z.shape) < 0.3
    outputs = expit(2 * z)
    gaps = np.where(hidden, np.nan, targets)
    found = fitted("temperature", TAGS, outputs, gaps)
    alone = [
        fitted("temperature", TAGS, outputs[rows][:, [at]], targets[rows][:, [at]]).temperature[0]
        for at, rows in enumerate(~hidden.T)
    ]
    assert found.temperature == pytest.approx(alone, rel=1e-3)
    said, true = claims(Scored.of(TAGS, list(outputs), list(gaps)))
    assert len(said) == len(true) == (~hidden & ~hidden.all(axis=1, keepdims=True)).sum()
