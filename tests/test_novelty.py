"""Far inputs: distances against scipy, and a threshold that one in a hundred held-out inputs passes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from plft.novelty import Neighbours, fit_neighbours


def test_the_distance_is_that_to_the_nearest_kept_state_also_far_from_the_origin():
    random = np.random.default_rng(0)
    kept, asked = (1000 + random.normal(size=(n, 16)).astype(np.float32) for n in (50, 20))
    found = Neighbours(kept, 1.0).distances(asked)
    assert found == pytest.approx(cdist(asked.astype(float), kept.astype(float)).min(axis=1), rel=1e-6)
    assert Neighbours(kept, 1.0).distances(kept) == pytest.approx(0.0, abs=1e-5)
    assert len(Neighbours(kept, 1.0).distances(asked[:0])) == 0


def test_one_in_a_hundred_like_the_held_out_ones_is_far_and_all_that_are_elsewhere():
    random = np.random.default_rng(1)
    kept, held_out, new = (random.normal(size=(n, 8)).astype(np.float32) for n in (500, 2000, 5000))
    neighbours = fit_neighbours(kept, held_out)
    assert np.mean(neighbours.distances(new) > neighbours.threshold) == pytest.approx(0.01, abs=0.005)
    assert (neighbours.distances(new + 20) > neighbours.threshold).all()


def test_without_held_out_states_each_training_state_is_asked_for_its_nearest_other():
    states = np.arange(10, dtype=np.float32)[:, None] ** 2
    gaps = [1, 1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert fit_neighbours(states, None).threshold == pytest.approx(np.quantile(gaps, 0.99))
    assert fit_neighbours(states[:1], None) is None


def test_difficulty_is_one_at_the_median_distance_and_a_half_at_none():
    kept, held_out = np.zeros((2, 1), dtype=np.float32), np.array([[1.0], [2.0], [9.0]], dtype=np.float32)
    neighbours = fit_neighbours(kept, held_out)
    assert neighbours.typical == 2.0
    assert [neighbours.difficulty(distance) for distance in (0.0, 2.0, 6.0)] == [0.5, 1.0, 2.0]
    random = np.random.default_rng(2)
    states = 100 + random.normal(size=(100, 16)).astype(np.float32)
    most_are_copies = np.concatenate([states[:60], states[:40] + 3])
    for copies in (states, most_are_copies):  # their distance is what rounding leaves of 0
        assert fit_neighbours(states, copies).difficulty(5.0) == 1.0
    assert Neighbours(kept, 1.0).difficulty(5.0) == 1.0  # from before it was kept


def test_states_that_are_no_numbers_have_no_neighbours():
    states = np.ones((5, 3), dtype=np.float32)
    assert fit_neighbours(np.full_like(states, np.nan), states) is None
    assert fit_neighbours(states, np.full_like(states, np.nan)) is None
