"""Predictions and targets -> counts and sums per sequence, which any bootstrap weights then add up.

Everything that does not depend on the weights (what is missing, which class wins, the order of the scores) is worked
out once; a tally of a thousand resamples is then a matrix product and a few linear passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plft.errors import PlftError
from plft.labels import IGNORED_CLASS, TaskType
from plft.resampling import Floats, Indices, Ranking, RankPairs, TopRanks, divide, mean_of_defined

LABEL_THRESHOLD = 0.5  # a multi-label class is predicted at this probability or above

BINARY, MULTICLASS, MULTILABEL, REGRESSION = "binary", "multiclass", "multilabel", "regression"


def kind_of(task: TaskType, n_classes: int) -> str:
    """Return what a task's metrics are chosen by: binary, multiclass, multilabel or regression."""
    if task.is_regression:
        return REGRESSION
    if task.is_multilabel:
        return MULTILABEL
    return BINARY if n_classes == 2 else MULTICLASS


@dataclass(frozen=True)
class Tally:
    """Counts of classes under some rows of weights; the last class of two is the positive one.

    true, predicted, hits: (rows, classes) how often a class was the target, was predicted, and was both, where that is
    known.  total, exact, overlap: (rows,) items of which every label is known, those of them predicted exactly, and
    their summed Jaccard index.  roc_auc, pr_auc: (rows, classes),
    one against the rest.
    """

    true: Floats
    predicted: Floats
    hits: Floats
    total: Floats
    exact: Floats
    overlap: Floats
    roc_auc: Floats
    pr_auc: Floats
    is_binary: bool

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """(rows, classes): the class is a target or a prediction at least once."""
        return (self.true + self.predicted) > 0

    def one_number(self, per_class: Floats) -> Floats:
        """Return the positive class of two, or the average over the classes that are defined."""
        return per_class[:, -1] if self.is_binary else mean_of_defined(per_class)


@dataclass(frozen=True)
class Agreement:
    """Regression under some rows of weights; every field is (rows, columns).

    total: items; sums of centred targets (y), centred predictions (x), their squares and product; absolute and squared
    errors.  spearman, ndcg and top_recall are rank statistics and come ready; the last two are NaN for residues.
    """

    total: Floats
    x: Floats
    y: Floats
    xx: Floats
    yy: Floats
    xy: Floats
    absolute: Floats
    squared: Floats
    spearman: Floats
    ndcg: Floats
    top_recall: Floats

    @property
    def spread_x(self) -> Floats:
        """Sum of squared deviations of the predictions from their mean; 0 where they are constant."""
        return _deviation(self.xx, self.x, self.total)

    @property
    def spread_y(self) -> Floats:
        """Sum of squared deviations of the targets from their mean; 0 where they are constant."""
        return _deviation(self.yy, self.y, self.total)


def _deviation(squares: Floats, sums: Floats, total: Floats) -> Floats:
    spread = squares - divide(sums**2, total)
    return np.where(spread > 1e-12 * squares, spread, 0.0)  # below that it is rounding, and the values are constant


@dataclass(frozen=True)
class Scored:
    """The targets that count and what was predicted for them, one after another.

    outputs: (items, classes) probabilities or (items, columns) values.  targets: (items,) int64 classes, or (items,
    classes | columns) floats.  sequence: (items,) the index of the sequence an item belongs to, 0 .. n_sequences - 1,
    counting only sequences that have an item.
    """

    outputs: NDArray[np.floating]
    targets: NDArray[Any]
    sequence: Indices
    n_sequences: int
    n: int
    kind: str

    @classmethod
    def of(cls, task: TaskType, outputs: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]]) -> Scored:
        """Join per-sequence arrays and leave out what is missing.

        Raises PlftError when nothing is left or a prediction is not finite, ValueError when shapes do not match.
        """
        if len(outputs) != len(targets):
            raise ValueError(f"{len(outputs)} outputs for {len(targets)} targets")
        rows = [_items(task, output, target) for output, target in zip(outputs, targets, strict=True)]
        if not rows:
            raise PlftError("There is nothing to score: no sequences. Give a file with at least one labelled sequence.")
        predicted = np.concatenate([row[0] for row in rows])
        true = np.concatenate([row[1] for row in rows])
        sequence = np.repeat(np.arange(len(rows)), [len(row[1]) for row in rows])
        present = _is_present(task, true)
        if not present.any():
            raise PlftError(
                f"There is nothing to score: all {len(true)} labels are missing. "
                "Check the label column and the value that marks missing labels."
            )
        predicted, true, sequence = predicted[present], true[present], sequence[present]
        _refuse_not_finite(predicted)
        kept, sequence = np.unique(sequence, return_inverse=True)
        return cls(predicted, true, sequence, len(kept), len(rows), kind_of(task, predicted.shape[1]))

    @property
    def n_outputs(self) -> int:
        """Classes, or columns of a regression."""
        return int(self.outputs.shape[1])

    @property
    def is_one_per_sequence(self) -> bool:
        """Whether no sequence has several items: not a residue task."""
        return len(self.sequence) == self.n_sequences

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """(items, classes): the item's label for the class is not missing, as it may be in multi-label tasks."""
        if self.kind == MULTILABEL:
            return np.isfinite(self.targets)
        return np.ones((len(self.outputs), self.n_outputs), dtype=bool)

    @cached_property
    def true_labels(self) -> NDArray[np.bool_]:
        """(items, classes): the class is known to be a target of the item."""
        if self.kind == MULTILABEL:
            return np.asarray(self.targets >= LABEL_THRESHOLD)
        return np.asarray(self.targets[:, None] == np.arange(self.n_outputs))

    @cached_property
    def predicted_labels(self) -> NDArray[np.bool_]:
        """(items, classes): the class is predicted; the most probable one, or all at 0.5 and above in multi-label."""
        if self.kind == MULTILABEL:
            return np.asarray(self.outputs >= LABEL_THRESHOLD)
        return np.asarray(self.outputs.argmax(axis=1)[:, None] == np.arange(self.n_outputs))

    def sums(self, values: NDArray[Any]) -> Floats:
        """Sum (items,) values over the items of each sequence -> (n_sequences,)."""
        return np.bincount(self.sequence, values, self.n_sequences).astype(np.float64)

    def counts(self, labels: NDArray[np.bool_]) -> sparse.csr_array:
        """Count (items, classes) labels over the items of each sequence -> sparse (n_sequences, classes)."""
        items, classes = np.nonzero(labels)
        where = (self.sequence[items], classes)
        return sparse.csr_array((np.ones(len(items)), where), shape=(self.n_sequences, labels.shape[1]))


def _items(task: TaskType, output: NDArray[Any], target: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return one sequence's (items, n) outputs and its (items,) or (items, n) targets."""
    output, target = np.asarray(output), np.asarray(target)
    if task.is_residue:
        output = output.reshape(len(output), -1)
        target = target.reshape(len(target), -1) if task.is_regression else target
    else:
        output = output.reshape(1, -1)
        target = target.reshape(1) if task.is_classification else target.reshape(1, -1)
    if len(output) != len(target) or (target.ndim == 2 and output.shape != target.shape):
        raise ValueError(f"outputs of shape {output.shape} for targets of shape {target.shape}")
    return output, target


def _is_present(task: TaskType, targets: NDArray[Any]) -> NDArray[np.bool_]:
    if task.is_classification:
        return np.asarray(targets != IGNORED_CLASS)
    return np.asarray(np.isfinite(targets).any(axis=1))


def _refuse_not_finite(outputs: NDArray[np.floating]) -> None:
    n_bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    if n_bad:
        raise PlftError(
            f"{n_bad} of {len(outputs)} predictions are not finite numbers: training diverged. "
            "Lower the learning rate (--set training.learning_rate=...) or pass --set training.precision=fp32."
        )


@dataclass(frozen=True)
class ClassScorer:
    """Everything about classified items that does not depend on the weights."""

    counts: sparse.csr_array
    rankings: tuple[Ranking, ...]
    n_classes: int
    kind: str

    @classmethod
    def of(cls, scored: Scored) -> ClassScorer:
        true, predicted, complete = scored.true_labels, scored.predicted_labels & scored.known, scored.known.all(axis=1)
        both, either = (true & predicted).sum(axis=1), (true | predicted).sum(axis=1)
        overlap = divide(both.astype(float), either.astype(float), otherwise=1.0)  # no labels, none predicted: right
        ranked = range(1, 2) if scored.kind == BINARY else range(scored.n_outputs)
        whole = [scored.sums(values * complete) for values in (np.ones(len(true)), both == either, overlap)]
        return cls(
            counts=sparse.hstack(
                [*map(scored.counts, (true, predicted, true & predicted)), np.stack(whole, axis=1)]
            ).tocsr(),
            rankings=tuple(
                Ranking.of(scored.outputs[rows, c], true[rows, c], scored.sequence[rows])
                for c, rows in ((c, scored.known[:, c]) for c in ranked)
            ),
            n_classes=scored.n_outputs,
            kind=scored.kind,
        )

    def tally(self, weights: Floats) -> Tally:
        """Count under (rows, n_sequences) weights."""
        n = self.n_classes
        sums = np.asarray(weights @ self.counts)
        areas = [ranking.areas(weights) for ranking in self.rankings]
        return Tally(
            true=sums[:, :n],
            predicted=sums[:, n : 2 * n],
            hits=sums[:, 2 * n : 3 * n],
            total=sums[:, -3],
            exact=sums[:, -2],
            overlap=sums[:, -1],
            roc_auc=np.array([area[0] for area in areas]).T,
            pr_auc=np.array([area[1] for area in areas]).T,
            is_binary=self.kind == BINARY,
        )


@dataclass(frozen=True)
class ValueScorer:
    """Everything about predicted values that does not depend on the weights."""

    moments: tuple[Floats, ...]
    pairs: tuple[RankPairs, ...]
    tops: tuple[TopRanks, ...] = ()

    @classmethod
    def of(cls, scored: Scored) -> ValueScorer:
        moments, pairs, tops = [], [], []
        for column in range(scored.n_outputs):
            y = scored.targets[:, column].astype(np.float64)
            present = np.isfinite(y)
            x = np.where(present, scored.outputs[:, column], np.nan).astype(np.float64)
            moments.append(np.stack([scored.sums(np.nan_to_num(part)) for part in _moments(x, y)], axis=1))
            pairs.append(RankPairs.of(x[present], y[present], scored.sequence[present]))
            if scored.is_one_per_sequence:
                tops.append(TopRanks.of(x[present], y[present], scored.sequence[present]))
        return cls(tuple(moments), tuple(pairs), tuple(tops))

    def tally(self, weights: Floats) -> Agreement:
        """Sum under (rows, n_sequences) weights."""
        sums = np.stack([weights @ moments for moments in self.moments], axis=1)
        spearman = np.stack([pairs.spearman(weights) for pairs in self.pairs], axis=1)
        total, x, y, xx, yy, xy, absolute, squared = np.moveaxis(sums, 2, 0)
        best = np.full((2, *spearman.shape), np.nan)
        for column, top in enumerate(self.tops):
            best[:, :, column] = top.scores(weights)
        return Agreement(total, x, y, xx, yy, xy, absolute, squared, spearman, *best)


def _moments(x: Floats, y: Floats) -> tuple[Floats, ...]:
    """Return eight (items,) terms in the order of Agreement's fields; x and y are centred to keep the squares small."""
    error = x - y
    x, y = _centred(x), _centred(y)
    return np.isfinite(y).astype(np.float64), x, y, x * x, y * y, x * y, np.abs(error), error**2


def _centred(values: Floats) -> Floats:
    present = values[np.isfinite(values)]
    if not present.size:
        return values
    return np.where(np.isfinite(values), values - present.mean(), np.nan) * float(np.ptp(present) > 0)


def scorer_of(scored: Scored) -> ClassScorer | ValueScorer:
    """Prepare what the task's tallies are made from."""
    return ValueScorer.of(scored) if scored.kind == REGRESSION else ClassScorer.of(scored)
