"""Bootstrap over sequences by whole-number weights: a resample is a count per sequence, and nothing is copied.

Scoring under such weights gives exactly what literally repeating each sequence would give, ties included; everything
that depends on the order of the scores is sorted once, so that a resample costs linear time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

WEIGHTS_AT_ONCE = 250_000  # numbers in one block of weights: about 2 MB, so that it stays in the processor's cache
ENOUGH_WORK = 1_000_000_000  # scored items x classes x resamples, about ten seconds; beyond it resamples are saved
FEWEST_RESAMPLES = 100


def affordable(resamples: int, n_scores: int) -> int:
    """Return how many resamples to draw: those asked for, fewer (never below 100) for millions of scores."""
    return min(resamples, max(FEWEST_RESAMPLES, ENOUGH_WORK // max(n_scores, 1)))


def draw(n_sequences: int, resamples: int, seed: int, n_items: int = 0) -> Iterator[Floats]:
    """Yield blocks of bootstrap weights, each (some resamples, n_sequences); every row adds up to n_sequences.

    n_items: the largest number of items (residues) the weights are later spread over; it only sets the block size.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, WEIGHTS_AT_ONCE // max(n_sequences, n_items, 1))
    for start in range(0, resamples, rows):
        n_rows = min(rows, resamples - start)
        drawn = generator.integers(0, n_sequences, size=(n_rows, n_sequences))
        drawn += np.arange(n_rows)[:, None] * n_sequences
        counts = np.bincount(drawn.ravel(), minlength=n_rows * n_sequences)
        yield counts.reshape(n_rows, n_sequences).astype(np.float64)


def interval(replicates: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the defined replicates; NaN, NaN when none is defined."""
    defined = replicates[np.isfinite(replicates)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def divide(numerator: Floats, denominator: Floats, otherwise: float = float("nan")) -> Floats:
    """Divide element by element; ``otherwise`` where the denominator is not positive."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    quotient: Floats = np.divide(numerator, denominator, out=np.full(shape, otherwise), where=denominator > 0)
    return quotient


def mean_of_defined(values: Floats) -> Floats:
    """Average the last axis over what is not NaN; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1).astype(np.float64))


def cumulative(weights: Floats) -> Floats:
    """Return running totals along the last axis with a leading zero: (rows, n) -> (rows, n + 1)."""
    totals = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=totals[:, 1:])
    return totals


@dataclass(frozen=True)
class Ranking:
    """Positives and negatives of one class in ascending order of their scores.

    positives, negatives: the sequence each item belongs to.  For each positive: below, not_above: how many negatives
    score lower, and no higher; first_tie: the position of the first positive with the same score.
    """

    positives: Indices
    negatives: Indices
    below: Indices
    not_above: Indices
    first_tie: Indices

    @classmethod
    def of(cls, scores: NDArray[np.floating], is_positive: NDArray[np.bool_], sequence: Indices) -> Ranking:
        """Sort once.  scores, is_positive, sequence: (items,); sequence is a column of the weights to come."""
        order = np.argsort(scores, kind="stable")
        positive_order, negative_order = order[is_positive[order]], order[~is_positive[order]]
        positive, negative = scores[positive_order], scores[negative_order]
        return cls(
            positives=sequence[positive_order],
            negatives=sequence[negative_order],
            below=np.searchsorted(negative, positive, side="left"),
            not_above=np.searchsorted(negative, positive, side="right"),
            first_tie=np.searchsorted(positive, positive, side="left"),
        )

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return (area under ROC, average precision) for each row of weights, both (rows,).

        The ROC area counts a tie as half a win (Mann-Whitney); average precision is scikit-learn's sum of precision
        over steps of recall.  NaN where a row holds no positive (or, for ROC, no negative).
        """
        won = cumulative(weights[:, self.negatives])
        each = weights[:, self.positives]
        below, n_negative, n_positive = won[:, self.below], won[:, -1], each.sum(axis=1)
        wins = np.einsum("ri,ri->r", each, below + won[:, self.not_above]) / 2
        true_positives = n_positive[:, None] - cumulative(each)[:, self.first_tie]
        called = true_positives + (n_negative[:, None] - below)
        precision = np.einsum("ri,ri->r", each, divide(true_positives, called, otherwise=0.0))
        return divide(wins, n_positive * n_negative), divide(precision, n_positive)


@dataclass(frozen=True)
class RankPairs:
    """Two values per item, ranked once: what Spearman's correlation needs under any weights.

    x_items, y_items: the sequence of each item in ascending order of x and of y.  x_first, x_last (and y_...): for each
    item, taken in ascending order of x, where its group of ties starts and ends in the order of that value.
    """

    x_items: Indices
    y_items: Indices
    x_first: Indices
    x_last: Indices
    y_first: Indices
    y_last: Indices

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.floating], sequence: Indices) -> RankPairs:
        """Sort once.  x, y, sequence: (items,)."""
        order = np.argsort(x, kind="stable")
        x, y, sequence = x[order], y[order], sequence[order]
        by_y = np.argsort(y, kind="stable")
        ends = [np.searchsorted(v, at, side=side) for v, at in ((x, x), (y[by_y], y)) for side in ("left", "right")]
        return cls(sequence, sequence[by_y], *ends)

    def spearman(self, weights: Floats) -> Floats:
        """Return Spearman's correlation (mid-ranks for ties) for each row of weights; NaN where a value is constant."""
        each = weights[:, self.x_items]
        x = _midranks(cumulative(each), self.x_first, self.x_last)
        y = _midranks(cumulative(weights[:, self.y_items]), self.y_first, self.y_last)
        weighted_x = each * x
        covariance = np.einsum("ri,ri->r", weighted_x, y)
        spread_x, spread_y = np.einsum("ri,ri->r", weighted_x, x), np.einsum("ri,ri,ri->r", each, y, y)
        return np.clip(divide(covariance, np.sqrt(spread_x * spread_y)), -1.0, 1.0)


def _midranks(totals: Floats, first: Indices, last: Indices) -> Floats:
    # The weighted mean of these ranks is exactly half the total weight, so centring needs no second pass.
    return (totals[:, first] + totals[:, last] - totals[:, -1:]) / 2


@dataclass(frozen=True)
class TopRanks:
    """Predictions and true values of items, sorted once from the best down: what metrics of the best tenth need.

    by_prediction, by_truth: the sequence of each item in descending order of the prediction and of the true value.
    gains, place: for each item in the first order, its true value above the lowest one and its position in the second.
    first, last: where its group of equal predictions starts and ends.  true_gains, true_last: for each item in the
    second order, its true value above the lowest one and where its group of equal values ends.
    """

    by_prediction: Indices
    by_truth: Indices
    gains: Floats
    place: Indices
    first: Indices
    last: Indices
    true_gains: Floats
    true_last: Indices

    @classmethod
    def of(cls, x: Floats, y: Floats, sequence: Indices) -> TopRanks:
        """Sort once.  x: predictions, y: true values, sequence: (items,) each."""
        down, true_down = np.argsort(-x, kind="stable"), np.argsort(-y, kind="stable")
        place = np.empty(len(y), dtype=np.int64)
        place[true_down] = np.arange(len(y))
        gains = y - y.min() if len(y) else y
        return cls(
            by_prediction=sequence[down],
            by_truth=sequence[true_down],
            gains=gains[down],
            place=place[down],
            first=np.searchsorted(-x[down], -x[down], side="left"),
            last=np.searchsorted(-x[down], -x[down], side="right"),
            true_gains=gains[true_down],
            true_last=np.searchsorted(-y[true_down], -y[true_down], side="right"),
        )

    def scores(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return (NDCG, recall) of the best tenth for each row of whole-number weights, both (rows,).

        k is a tenth of the items, rounded down, at least 1.  NDCG (Jarvelin and Kekalainen 2002) discounts the value
        at rank r by log2(r + 1), down to rank k; values count from the lowest, and equal predictions share their ranks
        (McSherry and Najork 2008).  Recall is the share of the k items predicted best whose true value is at least the
        k-th best.  NaN where the true values are constant.
        """
        if not len(self.gains):
            return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        each, true_each = weights[:, self.by_prediction], weights[:, self.by_truth]
        total = cumulative(each).astype(np.int64)
        true_total = cumulative(true_each).astype(np.int64)
        k = np.maximum(total[:, -1:] // 10, 1)
        before, until = np.minimum(total[:, self.first], k), np.minimum(total[:, self.last], k)
        tied = (total[:, self.last] - total[:, self.first]).astype(np.float64)
        discounts = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, max(int(k.max(initial=1)), 1) + 2))))
        ranks = np.minimum(true_total, k)
        lowest = self._lowest(true_each)
        floor = lowest * discounts[k[:, 0]]
        reached = (each * self.gains * divide(discounts[until] - discounts[before], tied, 0.0)).sum(axis=1) - floor
        best = (self.true_gains * np.diff(discounts[ranks], axis=1)).sum(axis=1) - floor
        best = np.where((self._highest(true_each) > lowest) & (total[:, -1] > 0), best, 0.0)
        kth = (true_total[:, 1:] >= k).argmax(axis=1)
        is_top = self.place < self.true_last[kth][:, None]
        found = (each * divide((until - before).astype(np.float64), tied, 0.0) * is_top).sum(axis=1)
        return divide(reached, best), np.where(best > 0, found / k[:, 0], np.nan)

    def _lowest(self, true_each: Floats) -> Floats:
        return self.true_gains[len(self.true_gains) - 1 - (true_each[:, ::-1] > 0).argmax(axis=1)]

    def _highest(self, true_each: Floats) -> Floats:
        return self.true_gains[(true_each > 0).argmax(axis=1)]
