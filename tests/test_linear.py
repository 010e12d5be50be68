"""Ridge and logistic regression: against closed forms and by their optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from plft.linear import PENALTIES, fit, path

RANDOM = np.random.default_rng(3)
FEATURES = RANDOM.normal(size=(60, 4))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_ridge_is_the_weighted_closed_form_with_a_free_intercept(form):
    targets = FEATURES @ [1.0, -2.0, 0.5, 0.0] + RANDOM.normal(size=60)
    weights = RANDOM.integers(1, 4, 60).astype(float)
    predicted = fit(form(FEATURES), targets[:, None], weights, 1, penalty=7.0).outputs(form(FEATURES))[:, 0]
    share = weights / weights.mean()
    centred = FEATURES - np.average(FEATURES, axis=0, weights=share)
    middle = np.average(targets, weights=share)
    slope = np.linalg.solve(centred.T * share @ centred + 7.0 * np.eye(4), centred.T * share @ (targets - middle))
    assert np.allclose(predicted, middle + centred @ slope, atol=1e-3)


def test_logistic_regression_is_at_the_minimum_of_its_penalised_loss():
    classes = (FEATURES[:, 0] + RANDOM.normal(size=60) > 0).astype(int)
    probability = fit(FEATURES, classes, np.ones(60), 2, penalty=2.0).outputs(FEATURES)[:, 1]
    logits = np.log(probability / (1 - probability))
    design = np.column_stack([np.ones(60), FEATURES])
    slope = np.linalg.lstsq(design, logits, rcond=None)[0]
    gradient = FEATURES.T @ (probability - classes) + 2.0 * slope[1:]
    assert np.abs(gradient).max() < 0.01
    assert abs((probability - classes).sum()) < 0.01  # the intercept is not penalised


def test_what_is_missing_or_has_no_weight_is_as_if_it_were_not_there():
    classes = RANDOM.integers(0, 3, 60)
    values = RANDOM.normal(size=(60, 2))
    flags = RANDOM.integers(0, 2, (60, 2))
    hidden_classes, hidden_values, hidden_flags = classes.copy(), values.copy(), flags.copy()
    hidden_classes[:20], hidden_values[:20, 1], hidden_flags[:20, 1] = -100, np.nan, -100
    ones, late = np.ones(60), np.repeat([0.0, 1.0], [20, 40])
    without = fit(FEATURES[20:], classes[20:], ones[20:], 3, 1.0).outputs(FEATURES)
    assert np.allclose(fit(FEATURES, hidden_classes, ones, 3, 1.0).outputs(FEATURES), without, atol=1e-6)
    assert np.allclose(fit(FEATURES, classes, late, 3, 1.0).outputs(FEATURES), without, atol=1e-6)
    for whole, hidden in ((values, hidden_values), (flags, hidden_flags)):
        found = fit(FEATURES, hidden, ones, 2, 1.0).outputs(FEATURES)
        assert np.allclose(found[:, 0], fit(FEATURES, whole, ones, 2, 1.0).outputs(FEATURES)[:, 0], atol=1e-6)
        late_only = fit(FEATURES[20:], whole[20:], ones[20:], 2, 1.0).outputs(FEATURES)
        assert np.allclose(found[:, 1], late_only[:, 1], atol=1e-6)


def test_a_class_that_was_never_seen_has_no_probability():
    found = fit(FEATURES, np.repeat([0, 2], 30), np.ones(60), 4, 1.0).outputs(FEATURES)
    assert np.all(found[:, [1, 3]] == 0)
    assert np.allclose(found.sum(axis=1), 1)
    assert np.array_equal(fit(FEATURES, np.full(60, 1), np.ones(60), 3, 1.0).outputs(FEATURES[:2]), [[0, 1, 0]] * 2)
    one_flag = fit(FEATURES, np.ones((60, 1), dtype=int), np.ones(60), 1, 1.0).outputs(FEATURES)
    assert np.all(one_flag == 1)


def test_penalties_are_tried_until_scores_fall_twice_or_time_is_up():
    scores = dict(zip(PENALTIES, [float("nan"), 0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9], strict=True))
    tried = list(path(lambda penalty: scores[penalty], lambda: True))
    assert [penalty for penalty, _ in tried] == list(PENALTIES[:7])
    assert tried[0][1] == -np.inf
    left = iter([True, True, False])
    assert len(list(path(lambda penalty: 0.0, lambda: next(left)))) == 2
