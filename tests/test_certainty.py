"""Intervals that depend on the distance to training: what they cover in simulation, where plain ones do not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from plft.certainty import Certainty, assess, fit_certainty
from plft.config import CalibrationConfig
from plft.labels import LabelSpace, TaskType
from plft.novelty import fit_neighbours

VALUES = LabelSpace(TaskType.SEQ_REGRESSION, columns=("label",))
CONFIG = CalibrationConfig(method="none", level=0.9, neighbours=10)
MEDIAN = 0.6745  # of the absolute value of a standard normal variable


def drawn(random, n, scale=1.0):
    """States on a line through the one training state, answers of zero, truths that scatter with the distance."""
    states = np.abs(random.normal(scale=scale, size=(n, 1))).astype(np.float32)
    truths = random.normal(size=n) * (1 + states[:, 0] / MEDIAN)
    return [np.zeros(1)] * n, [np.array([truth]) for truth in truths], states


def cells(kept, states):
    """What is written beside the predictions for sequences with these states."""
    return Certainty(neighbours=kept).distance_cells(states, len(states))


@cache
def covered(scale, neighbours_used):
    """The mean coverage and width for new sequences so many times as far from training as the held-out ones."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(80):
        outputs, targets, states = drawn(random, 150)
        kept = fit_neighbours(np.zeros((2, 1), dtype=np.float32), states) if neighbours_used else None
        certainty = fit_certainty(CONFIG, VALUES, outputs, targets, kept, cells(kept, states))
        new, truths, where = drawn(random, 400, scale)
        entry = assess(certainty, VALUES, new, truths, cells(kept, where))
        found.append((entry["coverage"]["value"], entry["width"][0]))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("neighbours_used", [True, False])
def test_sequences_like_the_held_out_ones_are_covered_at_the_level(neighbours_used):
    assert covered(1.0, neighbours_used)[0] == pytest.approx(0.9, abs=0.015)


def test_sequences_further_from_training_stay_covered_by_wider_intervals():
    near, far, plain = covered(1.0, True), covered(4.0, True), covered(4.0, False)
    assert far[0] == pytest.approx(0.9, abs=0.02)
    assert plain[0] < 0.7
    assert far[1] > 1.5 * near[1]


def test_the_mean_width_of_residues_is_that_of_their_rows():
    labels = LabelSpace(TaskType.TOKEN_REGRESSION, columns=("label",))
    random = np.random.default_rng(0)
    lengths = random.integers(5, 60, size=80)
    states = (lengths[:, None] / 10).astype(np.float32)  # long sequences lie further away
    outputs = [np.zeros(length) for length in lengths]
    targets = [random.normal(size=length) for length in lengths]
    targets[0][:] = np.nan
    kept = fit_neighbours(np.zeros((2, 1), dtype=np.float32), states)
    beside = cells(kept, states)
    certainty = fit_certainty(CONFIG, labels, outputs, targets, kept, beside)
    widths = []
    for row, target in zip(beside[1:], targets[1:], strict=True):
        interval = certainty.interval_cells(labels, np.zeros(1), row)
        widths += [interval["high"] - interval["low"]] * len(target)
    assert assess(certainty, labels, outputs, targets, beside)["width"][0] == pytest.approx(np.mean(widths), rel=1e-5)
