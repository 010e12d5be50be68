"""Models on the same test sequences: means over seeds, paired differences, and a correction for many of them.

A score varies with the test sequences that happened to be drawn, and with the seed. The bootstrap here draws both:
each resample of the sequences, the same for all models, is scored with seeds drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plft.labels import TaskType
from plft.metrics import Metric, resampled
from plft.resampling import Floats, interval

RESAMPLES = 5_000  # the smallest p value is two in so many, and has to survive a correction for all cells
SIGNIFICANT = 0.05
SEED_OF_DRAWS = 1


@dataclass(frozen=True)
class Score:
    """A metric on the test sequences, and its values on the resamples of them: (resamples,), none without resamples."""

    value: float
    replicates: Floats

    def minus(self, other: Score) -> Score:
        """Return the paired difference; both must be of the same targets."""
        return Score(self.value - other.value, self.replicates - other.replicates)

    def with_interval(self) -> Metric:
        """Return the value with its 95 % percentile interval, which is NaN without resamples."""
        return Metric(self.value, *interval(self.replicates))


def score_of(
    task: TaskType, outputs: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]], metric: str, resamples: int
) -> Score:
    """Score predictions by one metric; see `metrics.resampled`."""
    return Score(*resampled(task, outputs, targets, metric, resamples=resamples))


def over_seeds(scores: Mapping[int, Score]) -> Score:
    """Return the mean over seeds, with replicates that vary as test sequences and seeds do.

    scores: by seed, of the same targets.  Each replicate averages n - 1 of the n seeds, drawn with replacement: means
    of n would vary too little by a factor of (n - 1) / n (Rao and Wu 1988, J. Am. Stat. Assoc. 83:231), which is much
    for the usual three.  A seed is drawn alike for all models of one comparison, so that differences stay paired.
    With one seed only the sequences vary.
    """
    runs = [scores[seed] for seed in sorted(scores)]
    value = float(np.mean([each.value for each in runs]))
    stacked = np.stack([each.replicates for each in runs])
    n, resamples = stacked.shape
    if n == 1:
        return Score(value, stacked[0])
    drawn = np.random.default_rng(SEED_OF_DRAWS).integers(0, n, size=(n - 1, resamples))
    return Score(value, stacked[drawn, np.arange(resamples)].mean(axis=0))


def difference_over_seeds(ours: Mapping[int, Score], reference: Mapping[int, Score]) -> Score | None:
    """Return ours minus the reference, seed by seed, averaged as by `over_seeds`; None without a seed in common."""
    common = ours.keys() & reference.keys()
    return over_seeds({seed: ours[seed].minus(reference[seed]) for seed in common}) if common else None


def p_value(difference: Score) -> float:
    """Return the two-sided p value of a difference: twice the share of replicates on the other side of zero.

    That is the level at which the percentile interval begins to hold zero (Efron and Tibshirani 1993, An Introduction
    to the Bootstrap, chapters 15 and 16).  One is added to both counts, so that it is never 0 (Davison and Hinkley
    1997, chapter 4).  NaN without replicates.
    """
    defined = difference.replicates[np.isfinite(difference.replicates)]
    if not defined.size or not math.isfinite(difference.value):
        return math.nan
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (1 + defined.size))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values of a family of tests by Holm's step-down procedure (1979, Scand. J. Stat. 6:65).

    It bounds the chance of a single false alarm in the whole family, whatever the tests have to do with each other.
    NaN counts for nothing and stays NaN.
    """
    order = sorted((at for at, p in enumerate(p_values) if not math.isnan(p)), key=lambda at: p_values[at])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected
