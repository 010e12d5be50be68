"""Intervals and sets of classes that hold the truth at a stated rate: split-conformal prediction.

The scores of the validation part say how wrong a prediction usually is. An interval or set that reaches as far as the
(n + 1) * level smallest of n scores holds the truth of a new sequence with at least that probability, whatever the
model, as long as new and validation sequences are exchangeable (Vovk et al. 2005; Lei et al. 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plft.resampling import draw, interval
from plft.tallies import LABEL_THRESHOLD, MULTILABEL, REGRESSION, Scored

Values = NDArray[np.floating]


def quantile(scores: NDArray[np.floating], level: float) -> float:
    """Return the ceil((n + 1) * level)-th smallest of n scores; infinity where there are too few of them.

    scores: (n,), NaN = missing.  level: share of new scores at or below it, for example 0.9.
    """
    known = np.sort(scores[~np.isnan(scores)])
    rank = math.ceil((len(known) + 1) * level - 1e-9)  # 10 * 0.9 is not quite 9 to a computer
    return float(known[rank - 1]) if 0 < rank <= len(known) else math.inf


@dataclass(frozen=True)
class Conformal:
    """How far intervals or sets reach.

    level: the share of new sequences whose truth they hold.  reach: for a regression half the width of the interval of
    each column at difficulty 1, else one number: a class is in the set when its probability is at least 1 - reach.
    n: targets (sequences or residues) it was found on.
    """

    level: float
    reach: tuple[float, ...]
    n: int

    def bounds(self, values: Values, difficulty: float = 1.0) -> tuple[Values, Values]:
        """Return low and high of (..., columns) predicted values.

        difficulty: what the reach is multiplied by.  Residuals over a difficulty that was fixed beforehand and does not
        depend on the label are as exchangeable as residuals are (Lei et al. 2018, section 5.2).
        """
        reach = difficulty * np.array(self.reach)
        return values - reach, values + reach

    def members(self, probabilities: Values, is_multilabel: bool = False) -> NDArray[np.bool_]:
        """Return which classes are in the sets of (..., classes) probabilities; what is predicted always is."""
        likely = 1 - probabilities.astype(np.float64) <= self.reach[0]
        if is_multilabel:
            return np.asarray(likely | (probabilities >= LABEL_THRESHOLD))
        best = probabilities.argmax(axis=-1)[..., None] == np.arange(probabilities.shape[-1])
        return np.asarray(likely | best)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that `from_json` reads back."""
        return {"level": self.level, "reach": list(self.reach), "n": self.n}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Conformal:
        """Read what `to_json` returned; KeyError, TypeError or ValueError where it is something else."""
        return cls(float(fields["level"]), tuple(map(float, fields["reach"])), int(fields["n"]))


def scores_of(scored: Scored) -> NDArray[np.float64]:
    """Return how wrong each prediction is: (items, columns) for a regression, else (items, 1).

    Regression: the absolute residual.  One class of many: 1 - the probability of the true class (LAC; Sadinle et al.
    2019).  Multi-label: 1 - the lowest probability of a true class, so that the set holds all of them.
    """
    outputs = scored.outputs.astype(np.float64)
    if scored.kind == REGRESSION:
        return np.abs(outputs - scored.targets)
    if scored.kind == MULTILABEL:
        return 1 - np.where(scored.true_labels, outputs, 1.0).min(axis=1, keepdims=True)
    return 1 - outputs[np.arange(len(outputs)), scored.targets][:, None]


def fit_conformal(scored: Scored, level: float) -> Conformal | None:
    """Find the reach on held-out predictions; None where they are too few for the level (9 are needed for 0.9)."""
    reach = tuple(quantile(column, level) for column in scores_of(scored).T)
    return Conformal(level, reach, len(scored.targets)) if all(map(math.isfinite, reach)) else None


def coverage(conformal: Conformal, scored: Scored, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return how often the truth was inside, with a 95 % interval over whole sequences, and how much that costs.

    The cost is ``width`` of a regression at difficulty 1 (a list, one per column) or ``size``, the mean number of
    classes in a set.
    """
    if scored.kind == REGRESSION:
        low, high = conformal.bounds(scored.outputs.astype(np.float64))
        known = np.isfinite(scored.targets)
        inside = (low <= scored.targets) & (scored.targets <= high) & known
        cost: dict[str, Any] = {"width": [2 * reach for reach in conformal.reach]}
    else:
        members = conformal.members(scored.outputs, scored.kind == MULTILABEL)
        inside = (members | ~scored.true_labels).all(axis=1, keepdims=True)
        known, cost = np.ones_like(inside), {"size": float(members.sum(axis=1).mean())}
    hits, total = scored.sums(inside.sum(axis=1)), scored.sums(known.sum(axis=1))
    found: dict[str, float | None] = {"value": float(hits.sum() / total.sum()), "low": None, "high": None}
    if scored.n_sequences > 1:
        rates = [(weights @ hits) / (weights @ total) for weights in draw(scored.n_sequences, resamples, seed)]
        found["low"], found["high"] = interval(np.concatenate(rates))
    return {"coverage": found, **cost}
