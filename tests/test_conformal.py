"""Conformal intervals and sets: quantiles by hand, and coverage in simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.special import expit, softmax

from plft.conformal import Conformal, coverage, fit_conformal, quantile, scores_of
from plft.labels import TaskType
from plft.tallies import Scored

VALUES, CLASSES, TAGS = TaskType.SEQ_REGRESSION, TaskType.SEQ_CLASSIFICATION, TaskType.SEQ_MULTILABEL


@pytest.mark.parametrize(
    ("n", "level", "expected"), [(9, 0.9, 9), (19, 0.9, 18), (10, 0.9, 10), (99, 0.95, 95), (8, 0.9, math.inf)]
)
def test_the_quantile_has_the_correction_for_few_scores(n, level, expected):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert quantile(scores, level) == expected
    assert quantile(np.append(scores, np.nan), level) == expected


def test_scores_by_hand():
    values = Scored.of(VALUES, [np.array([1.0, 5.0])], [np.array([3.0, np.nan])])
    assert scores_of(values)[0].tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
    classes = Scored.of(CLASSES, [np.array([0.2, 0.5, 0.3])], [np.array(2)])
    assert scores_of(classes)[0].tolist() == pytest.approx([0.7])
    tags = Scored.of(TAGS, [np.array([0.2, 0.9, 0.6])] * 2, [np.array([0.0, 1.0, 1.0]), np.zeros(3)])
    assert scores_of(tags)[:, 0].tolist() == pytest.approx([0.4, 0.0])


def test_sets_hold_likely_classes_and_always_what_is_predicted():
    sets = Conformal(0.9, (0.6,), 100)
    probabilities = np.array([[0.45, 0.45, 0.1], [0.9, 0.06, 0.04], [0.34, 0.33, 0.33]])
    assert sets.members(probabilities).tolist() == [[True, True, False], [True, False, False], [True, False, False]]
    tags = Conformal(0.9, (0.3,), 100).members(np.array([[0.8, 0.6, 0.2]]), is_multilabel=True)
    assert tags.tolist() == [[True, True, False]]


def test_too_few_sequences_for_the_level_give_nothing():
    few = Scored.of(VALUES, [np.array([float(at)]) for at in range(8)], [np.array([0.0])] * 8)
    assert fit_conformal(few, 0.9) is None
    assert fit_conformal(few, 0.8) is not None


def test_an_interval_comes_back_from_json_as_it_was():
    before = Conformal(0.9, (0.1 + 0.2, 1e-17), 50)
    assert Conformal.from_json(json.loads(json.dumps(before.to_json()))) == before


def covered(draw, task, level=0.9, n=150, rounds=250):
    """The mean coverage of fresh data over many fits."""
    random = np.random.default_rng(1)
    rates = []
    for _ in range(rounds):
        conformal = fit_conformal(Scored.of(task, *draw(random, n)), level)
        rates.append(coverage(conformal, Scored.of(task, *draw(random, 400)), resamples=1)["coverage"]["value"])
    return np.mean(rates)


def values(random, n):
    true = random.normal(size=(n, 2))
    return list(true + random.standard_t(3, size=(n, 2)) * [1, 4]), list(true)


def classes(random, n):
    z = random.normal(size=(n, 4))
    targets = (softmax(z, axis=1).cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return list(softmax(3 * z, axis=1)), list(targets)  # too sure, which coverage does not mind


def tags(random, n):
    z = random.normal(size=(n, 5))
    return list(expit(2 * z)), list((random.random((n, 5)) < expit(z)).astype(float))


@pytest.mark.parametrize(("draw", "task"), [(values, VALUES), (classes, CLASSES), (tags, TAGS)])
def test_new_sequences_are_covered_at_the_stated_rate(draw, task):
    assert covered(draw, task) == pytest.approx(0.9, abs=0.02)
    assert covered(draw, task, level=0.7, rounds=100) == pytest.approx(0.7, abs=0.03)


def test_coverage_and_its_cost_by_hand():
    conformal = Conformal(0.9, (1.0,), 10)
    targets = [np.array([at]) for at in (0.0, 0.5, -1.0, 2.0)]
    found = coverage(conformal, Scored.of(VALUES, [np.array([0.0])] * 4, targets))
    assert (found["coverage"]["value"], found["width"]) == (0.75, [2.0])
    assert 0 <= found["coverage"]["low"] < 0.75 < found["coverage"]["high"] <= 1
    sets = Conformal(0.9, (0.75,), 10)
    outputs = [np.array([0.7, 0.3]), np.array([0.9, 0.1]), np.array([0.2, 0.8])]
    found = coverage(sets, Scored.of(CLASSES, outputs, [np.array(c) for c in (1, 1, 1)]))
    assert (found["coverage"]["value"], found["size"]) == (pytest.approx(2 / 3), pytest.approx(4 / 3))
