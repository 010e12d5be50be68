"""Ridge and logistic regression on given features, their penalty chosen on held-out data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Matrix = Any  # (items, features): sparse CSR, or dense

PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3)  # strong to weak: lambda of ridge, 1 / C of logistic regression
PATIENCE = 2  # weaker penalties that score worse than the best, one after the other, before the search ends
MOST_ITERATIONS = 200
PER_SECOND = 4e8  # multiply-adds of a fit, on one slow core; deliberately low
USUAL_ITERATIONS = 30


@dataclass(frozen=True)
class Linear:
    """A fitted model: `outputs` turns features (items, features) into probabilities or values (items, outputs)."""

    outputs: Callable[[Matrix], Floats]


def fit(matrix: Matrix, targets: NDArray[Any], weights: Floats, n_outputs: int, penalty: float) -> Linear:
    """Fit one linear model per output.

    targets: (items,) int classes, below 0 where missing, for one multinomial logistic regression; (items, outputs)
    int64 of 0 and 1, below 0 where missing, for one binary logistic regression per output; (items, outputs) floats, NaN
    where missing, for one ridge regression per output.  weights: (items,), 0 leaves an item out.  An output without a
    choice to learn (one class only) is constant.
    """
    if targets.ndim == 1:
        return _classes(matrix, targets, weights, n_outputs, penalty)
    one = _values if np.issubdtype(targets.dtype, np.floating) else _membership
    columns = [one(matrix, targets[:, at], weights, penalty) for at in range(n_outputs)]
    return Linear(lambda asked: np.column_stack([column(asked) for column in columns]))


def _classes(matrix: Matrix, targets: NDArray[Any], weights: Floats, n_outputs: int, penalty: float) -> Linear:
    kept = np.flatnonzero((targets >= 0) & (weights > 0))
    there = np.unique(targets[kept])
    if len(there) < 2:
        return Linear(lambda asked: np.tile(np.eye(n_outputs)[there[0] if len(there) else 0], (asked.shape[0], 1)))
    model = _logistic(matrix[kept], targets[kept], weights[kept], penalty)

    def outputs(asked: Matrix) -> Floats:
        full = np.zeros((asked.shape[0], n_outputs))
        full[:, there] = model.predict_proba(asked)
        return full

    return Linear(outputs)


def _membership(matrix: Matrix, targets: NDArray[Any], weights: Floats, penalty: float) -> Callable[[Matrix], Floats]:
    kept = np.flatnonzero((targets >= 0) & (weights > 0))
    if len(np.unique(targets[kept])) < 2:
        constant = float(targets[kept].mean()) if len(kept) else 0.0
        return lambda asked: np.full(asked.shape[0], constant)
    model = _logistic(matrix[kept], targets[kept], weights[kept], penalty)
    return lambda asked: np.asarray(model.predict_proba(asked)[:, 1])


def _values(matrix: Matrix, targets: NDArray[Any], weights: Floats, penalty: float) -> Callable[[Matrix], Floats]:
    from sklearn.linear_model import Ridge

    kept = np.flatnonzero(np.isfinite(targets) & (weights > 0))
    if not len(kept):
        return lambda asked: np.zeros(asked.shape[0])
    if sparse.issparse(matrix):
        model = Ridge(penalty, solver="sparse_cg", max_iter=MOST_ITERATIONS)
    else:
        model = Ridge(penalty, solver="cholesky")
        matrix = matrix.astype(np.float64, copy=False)  # hidden states in single precision are close to singular
    matrix = matrix if len(kept) == matrix.shape[0] else matrix[kept]
    model.fit(matrix, targets[kept].astype(np.float64), sample_weight=_mean_one(weights[kept]))
    return lambda asked: np.asarray(model.predict(asked))


def _logistic(matrix: Matrix, targets: NDArray[Any], weights: Floats, penalty: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / penalty, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties; they are judged by their score
        return model.fit(matrix, targets, sample_weight=_mean_one(weights))


def _mean_one(weights: Floats) -> Floats:
    return weights / weights.mean()


def work(matrix: Matrix, n_outputs: int) -> float:
    """Return about how many seconds one fit to these features takes."""
    cells = matrix.nnz if sparse.issparse(matrix) else matrix.size
    return 2 * float(cells) * USUAL_ITERATIONS * (1 + n_outputs / 4) / PER_SECOND


def path(score: Callable[[float], float], in_time: Callable[[], bool]) -> Iterator[tuple[float, float]]:
    """Yield (penalty, score) from strong to weak until scores fall or time is up; an undefined score is -inf."""
    best, worse = -np.inf, 0
    for penalty in PENALTIES:
        if not in_time():
            return
        value = score(penalty)
        value = value if np.isfinite(value) else -np.inf
        yield penalty, value
        worse = worse + 1 if value < best else 0
        best = max(best, value)
        if worse == PATIENCE:
            return
