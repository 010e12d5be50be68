"""Probabilities that mean what they say: fitted on the validation part, measured by the calibration error.

A classifier's probabilities are usually too sure of themselves after fine-tuning. Temperature scaling (Guo et al. 2017)
divides all logits by one number, so that what is predicted stays the same; isotonic regression (Zadrozny and Elkan
2002) maps the probability of the positive class along any rising curve, which needs more data. TABLE: METHODS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from plft.errors import PlftError, look_up
from plft.labels import TaskType
from plft.tallies import BINARY, MULTICLASS, MULTILABEL, Scored, kind_of

NONE, AUTO, TEMPERATURE = "none", "auto", "temperature"
MOST_BINS = 15
FEWEST_PER_BIN = 10
FEWEST_OF_EACH = 10  # targets and non-targets of a multi-label class, for a temperature of its own
HOTTEST = math.log(50.0)
LEAST = 1e-38  # about the smallest probability that single precision holds
MOST = 1 - 2.0**-25  # half a step of single precision below 1

Probabilities = NDArray[np.floating]


@dataclass(frozen=True)
class Calibration:
    """How probabilities are calibrated.

    method: a key of METHODS, or "none".  temperature: one number, or in multi-label one per class.  knots: (x, y) of
    the rising curve of the isotonic method, probabilities of the positive class before and after.
    """

    method: str = NONE
    temperature: tuple[float, ...] = ()
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def apply(self, probabilities: Probabilities) -> Probabilities:
        """Calibrate (..., classes) probabilities; the shape and the type stay."""
        if self.method == NONE:
            return probabilities
        return look_up("calibration method", self.method, METHODS).apply(self, probabilities)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that `from_json` reads back."""
        return {"method": self.method, "temperature": list(self.temperature), "knots": [list(k) for k in self.knots]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Calibration:
        """Read what `to_json` returned; KeyError, TypeError or ValueError where it is something else."""
        before, after = fields["knots"]
        known = cls(str(fields["method"]), tuple(map(float, fields["temperature"])), (tuple(before), tuple(after)))
        if known.method not in (NONE, *METHODS) or any(t <= 0 for t in known.temperature):
            raise ValueError(f"calibration method {known.method}, temperature {known.temperature}")
        return known


def fit_temperature(scored: Scored) -> Calibration:
    """Find the temperature with the highest likelihood; in multi-label tasks one for each class.

    The logarithm of a temperature has a standard normal prior, so that a few targets that are all predicted right do
    not send it to zero.  A multi-label class with few targets, or few others, takes the temperature of all together.
    """
    if scored.kind == MULTILABEL:
        odds, targets, known = log_odds(scored.outputs), scored.true_labels, scored.known
        common = _best_temperature(*_of_binary(odds[known], targets[known]))
        n_true = targets.sum(axis=0)
        enough = np.minimum(n_true, known.sum(axis=0) - n_true) >= FEWEST_OF_EACH
        own = [
            _best_temperature(*_of_binary(odds[rows, at], targets[rows, at])) if enough[at] else common
            for at, rows in enumerate(known.T)
        ]
        return Calibration(TEMPERATURE, tuple(own))
    return Calibration(TEMPERATURE, (_best_temperature(_log(scored.outputs), scored.targets),))


def _of_binary(odds: NDArray[np.float64], is_true: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.stack([np.zeros_like(odds), odds], axis=1), is_true.astype(np.int64)


def _best_temperature(logits: NDArray[np.float64], targets: NDArray[Any]) -> float:
    """logits: (items, classes).  targets: (items,) classes."""
    items = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        log_p = log_softmax(logits / math.exp(log_temperature), axis=1)
        return float(-log_p[items, targets].sum() + log_temperature**2 / 2)

    return math.exp(minimize_scalar(loss, bounds=(-HOTTEST, HOTTEST), method="bounded").x)


def _log(probabilities: Probabilities) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log(np.clip(probabilities.astype(np.float64), LEAST, None))
    return found


def log_odds(probabilities: Probabilities) -> NDArray[np.float64]:
    """Return log(p / (1 - p)), finite also where single precision rounded p to 0 or 1."""
    p = np.clip(probabilities.astype(np.float64), LEAST, MOST)
    found: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return found


def _cooled(calibration: Calibration, probabilities: Probabilities) -> Probabilities:
    temperature = np.array(calibration.temperature)
    if len(temperature) == 1 and probabilities.shape[-1] > 1:
        calibrated = softmax(_log(probabilities) / temperature, axis=-1)
    else:
        calibrated = expit(log_odds(probabilities) / temperature)
    return calibrated.astype(probabilities.dtype)


def fit_isotonic(scored: Scored) -> Calibration:
    """Fit a rising curve from the probability of the positive class to its frequency (scikit-learn).

    It stays away from 0 and 1 by 1 / (items + 2), the rule of succession: n targets cannot tell less.
    """
    margin = 1 / (len(scored.targets) + 2)
    curve = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip")
    curve.fit(scored.outputs[:, 1].astype(np.float64), scored.targets)
    return Calibration("isotonic", knots=(tuple(curve.X_thresholds_.tolist()), tuple(curve.y_thresholds_.tolist())))


def _along_the_curve(calibration: Calibration, probabilities: Probabilities) -> Probabilities:
    positive = np.interp(probabilities[..., 1], *calibration.knots)
    return np.stack([1 - positive, positive], axis=-1).astype(probabilities.dtype)


@dataclass(frozen=True)
class Method:
    """One way to calibrate.  kinds: what it applies to."""

    name: str
    title: str
    kinds: frozenset[str]
    fit: Callable[[Scored], Calibration]
    apply: Callable[[Calibration, Probabilities], Probabilities]


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            *(TEMPERATURE, "temperature scaling", frozenset({BINARY, MULTICLASS, MULTILABEL})),
            *(fit_temperature, _cooled),
        ),
        Method("isotonic", "isotonic regression", frozenset({BINARY}), fit_isotonic, _along_the_curve),
    )
}


def choose_method(wanted: str, task: TaskType, n_classes: int, *, can_fit: bool) -> str:
    """Return the method that a run uses: "auto" is temperature where there are classes and labels to fit it on.

    can_fit: whether the validation part holds labels.  Raises PlftError where another wish cannot be met.
    """
    kind = kind_of(task, n_classes)
    if wanted in (AUTO, NONE):
        return TEMPERATURE if wanted == AUTO and can_fit and kind in METHODS[TEMPERATURE].kinds else NONE
    row = look_up("calibration method", wanted, METHODS)
    if kind not in row.kinds:
        needs = "two classes" if row.kinds == {BINARY} else "classes"
        raise PlftError(f"calibration.method {wanted} needs {needs}, which {task.value} here has not. Pass auto.")
    if not can_fit:
        raise PlftError(f"calibration.method {wanted} needs a validation part with labels. Add one, or pass none.")
    return wanted


# --- how good probabilities are


@dataclass(frozen=True)
class Reliability:
    """Confidence against frequency in bins of about equal size; both and count: (bins,).  error: see `reliability`."""

    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: |frequency - confidence|, averaged over all items."""
        return float((self.count * np.abs(self.frequency - self.confidence)).sum() / self.count.sum())

    def to_json(self) -> dict[str, Any]:
        """Return error and points, rounded to five digits."""
        points = {"confidence": self.confidence, "frequency": self.frequency}
        return {"ece": round(self.error, 6)} | {name: [round(float(v), 5) for v in p] for name, p in points.items()}


def claims(scored: Scored) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return what the probabilities claim and whether it came true, both (claims,).

    Two classes: the probability of the positive one for each item.  More: that of the predicted one.  Multi-label: that
    of each class of each item, where the label is known.
    """
    if scored.kind == BINARY:
        return scored.outputs[:, 1].astype(np.float64), scored.true_labels[:, 1]
    if scored.kind == MULTILABEL:
        return scored.outputs[scored.known].astype(np.float64), scored.true_labels[scored.known]
    best = scored.outputs.argmax(axis=1)
    return scored.outputs.max(axis=1).astype(np.float64), np.asarray(best == scored.targets)


def reliability(confidence: NDArray[np.floating], came_true: NDArray[np.bool_], bins: int = MOST_BINS) -> Reliability:
    """Compare claims with frequencies in bins that hold equally many (Nixon et al. 2019; Naeini et al. 2015).

    confidence, came_true: (items,), at least one.  bins: fewer where they would hold less than ten; equal claims share
    a bin.
    """
    n_bins = max(1, min(bins, len(confidence) // FEWEST_PER_BIN))
    order = np.sort(confidence)
    edges = np.unique(order[[len(order) * at // n_bins for at in range(n_bins)]])
    place = np.searchsorted(edges, confidence, side="right") - 1
    count = np.bincount(place, minlength=len(edges))
    sums = [np.bincount(place, values, len(edges)) for values in (confidence, came_true)]
    return Reliability(sums[0] / count, sums[1] / count, count)
