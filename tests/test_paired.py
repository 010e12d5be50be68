"""Scores over seeds, paired differences, and the correction for many of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from plft.labels import TaskType
from plft.metrics import difference, evaluate, resampled
from plft.paired import Score, difference_over_seeds, holm, over_seeds, p_value, score_of

RANDOM = np.random.default_rng(0)
TARGETS = [np.array([each]) for each in RANDOM.normal(size=60)]


def predictions(noise: float, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [each + generator.normal(scale=noise, size=1) for each in TARGETS]


def score(noise: float, seed: int, resamples: int = 500) -> Score:
    return score_of(TaskType.SEQ_REGRESSION, predictions(noise, seed), TARGETS, "spearman", resamples)


def test_one_metric_alone_is_what_evaluate_says_of_it() -> None:
    whole = evaluate(TaskType.SEQ_REGRESSION, predictions(1.0, 1), TARGETS, resamples=500)
    value, replicates = resampled(TaskType.SEQ_REGRESSION, predictions(1.0, 1), TARGETS, "spearman", resamples=500)
    assert value == whole.metrics["spearman"].value
    assert np.array_equal(replicates, whole.replicates["spearman"])


def test_with_one_seed_the_difference_is_that_of_the_paired_bootstrap() -> None:
    ours, theirs = ({0: score(noise, seed)} for noise, seed in ((0.3, 1), (1.0, 2)))
    found = difference_over_seeds(ours, theirs)
    pair = [
        evaluate(TaskType.SEQ_REGRESSION, predictions(*each), TARGETS, resamples=500) for each in ((0.3, 1), (1.0, 2))
    ]
    assert found is not None
    assert found.with_interval() == difference(*pair, "spearman")


def test_the_score_over_seeds_is_their_mean() -> None:
    runs = {seed: score(1.0, seed) for seed in range(3)}
    assert over_seeds(runs).value == pytest.approx(np.mean([each.value for each in runs.values()]))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_replicates_vary_over_seeds_as_a_mean_of_so_many_does(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    runs = {seed: Score(value, np.full(200_000, value)) for seed, value in enumerate(values)}
    expected = values.std(ddof=1) / math.sqrt(n)  # the standard error of a mean
    assert over_seeds(runs).replicates.std() == pytest.approx(expected, rel=0.02)


def test_only_seeds_that_both_have_are_compared() -> None:
    ours, theirs = {0: score(0.3, 1), 1: score(0.3, 2)}, {1: score(1.0, 3), 2: score(1.0, 4)}
    found = difference_over_seeds(ours, theirs)
    assert found is not None
    assert found.value == ours[1].value - theirs[1].value
    assert difference_over_seeds({0: ours[0]}, {2: theirs[2]}) is None


def test_p_of_a_normal_difference_is_that_of_the_z_test() -> None:
    for shift in (0.5, 1.5, 2.5):
        replicates = np.random.default_rng(3).normal(shift, 1.0, size=200_000)
        expected = 2 * stats.norm.sf(shift)
        assert p_value(Score(shift, replicates)) == pytest.approx(expected, rel=0.05)
        assert p_value(Score(-shift, -replicates)) == pytest.approx(expected, rel=0.05)


def test_p_is_never_zero_and_never_above_one() -> None:
    assert p_value(Score(1.0, np.ones(99))) == pytest.approx(2 / 100)
    assert p_value(Score(0.0, np.zeros(99))) == 1.0
    assert math.isnan(p_value(Score(1.0, np.zeros(0))))
    assert math.isnan(p_value(Score(math.nan, np.ones(9))))


def test_undefined_replicates_do_not_count() -> None:
    assert p_value(Score(1.0, np.array([np.nan, 1.0, 2.0, -1.0]))) == pytest.approx(2 * 2 / 4)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 -> .005 * 4, .01 * 3, .03 * 2, and .04 * 1 raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_has_no_p_value_is_no_test() -> None:
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)
