"""What a trained model knows about its own answers: calibrated, with intervals or sets, and told apart from far inputs.

Fitted on the validation part after training, kept in the model folder, and part of every prediction from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plft.calibration import METHODS, NONE, Calibration, claims, reliability
from plft.config import CalibrationConfig
from plft.conformal import Conformal, coverage, fit_conformal
from plft.labels import LabelSpace
from plft.novelty import Neighbours
from plft.tables import Row
from plft.tallies import Scored

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Certainty:
    """The calibration of a model, its intervals or sets, and the training sequences it compares inputs with.

    conformal, neighbours: None where they were not asked for or could not be fitted.
    """

    calibration: Calibration = field(default_factory=Calibration)
    conformal: Conformal | None = None
    neighbours: Neighbours | None = None

    def calibrated(self, outputs: Arrays) -> list[NDArray[Any]]:
        """Return outputs, one array per sequence, with calibrated probabilities; regressions stay as they are."""
        return [self.calibration.apply(output) for output in outputs]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that `from_json` reads back, beside the states of the neighbours."""
        return {
            "calibration": self.calibration.to_json(),
            "conformal": None if self.conformal is None else self.conformal.to_json(),
            "far_above": None if self.neighbours is None else self.neighbours.threshold,
            "typical_distance": None if self.neighbours is None else self.neighbours.typical,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], states: NDArray[Any] | None) -> Certainty:
        """Read what `to_json` returned; KeyError, TypeError or ValueError where it is something else.

        states: of the neighbours, (sequences, width), where ``far_above`` is not None.
        """
        conformal = None if fields["conformal"] is None else Conformal.from_json(fields["conformal"])
        typical = fields.get("typical_distance")
        typical = None if typical is None else float(typical)
        neighbours = None if states is None else Neighbours(states, float(fields["far_above"]), typical)
        return cls(Calibration.from_json(fields["calibration"]), conformal, neighbours)

    def difficulty(self, beside: Row) -> float:
        """Return by how much intervals of a sequence are wider than usual; beside: of `distance_cells`."""
        distance = beside.get("distance")
        return 1.0 if self.neighbours is None or distance is None else self.neighbours.difficulty(float(distance))

    def interval_cells(self, labels: LabelSpace, values: NDArray[Any], beside: Row) -> Row:
        """Return low and high of one (columns,) output; with several columns low_<column> and high_<column>.

        beside: what `distance_cells` says of its sequence.
        """
        if self.conformal is None:
            return {}
        row: Row = {}
        low, high = self.conformal.bounds(values.astype(np.float64), self.difficulty(beside))
        for at, column in enumerate(labels.columns):
            suffix = f"_{column}" if len(labels.columns) > 1 else ""
            row |= {f"low{suffix}": float(f"{low[at]:.7g}"), f"high{suffix}": float(f"{high[at]:.7g}")}
        return row

    def set_cells(self, labels: LabelSpace, probabilities: NDArray[Any]) -> Row:
        """Return the classes in the set of one (classes,) output, joined by ``|``; "|" for none of them."""
        if self.conformal is None:
            return {}
        inside = self.conformal.members(probabilities, labels.task.is_multilabel)
        return {"set": "|".join(name for name, is_in in zip(labels.classes, inside, strict=True) if is_in) or "|"}

    def distance_cells(self, states: NDArray[Any] | None, n_sequences: int) -> list[Row]:
        """Return distance and far for each sequence; without neighbours nothing.  states: (sequences, width)."""
        if self.neighbours is None or states is None:
            return [{} for _ in range(n_sequences)]
        distances, threshold = self.neighbours.distances(states), self.neighbours.threshold
        return [{"distance": float(f"{d:.4g}"), "far": "true" if d > threshold else "false"} for d in distances]


def fit_certainty(
    config: CalibrationConfig,
    labels: LabelSpace,
    outputs: Arrays,
    targets: Arrays,
    neighbours: Neighbours | None,
    beside: Sequence[Row],
) -> Certainty:
    """Fit calibration, and intervals or sets, on the outputs of held-out sequences.

    config: with a method of METHODS or "none".  outputs: as the model gives them, targets: as from `LabelSpace.encode`,
    one array per sequence.  beside: what `Certainty.distance_cells` says of the sequences.
    """
    scored = Scored.of(labels.task, outputs, targets)
    calibration = Calibration() if config.method == NONE else METHODS[config.method].fit(scored)
    certainty = Certainty(calibration, None, neighbours)
    if config.level is None:
        return certainty
    even = _even(labels, certainty.calibrated(outputs), targets, _difficulties(certainty, labels, beside))
    return replace(certainty, conformal=fit_conformal(even, config.level))


def assess(certainty: Certainty, labels: LabelSpace, outputs: Arrays, targets: Arrays, beside: Sequence[Row]) -> Row:
    """Return what metrics.json says of one split: calibration error before and after, coverage, share of far inputs.

    outputs: before calibration.  beside: what `Certainty.distance_cells` says of the sequences.
    """
    scored = Scored.of(labels.task, outputs, targets)
    calibrated = certainty.calibrated(outputs)
    found: Row = {"n": len(scored.targets)}
    if labels.task.is_classification or labels.task.is_multilabel:
        after_scaling = Scored.of(labels.task, calibrated, targets)
        before, after = (reliability(*claims(each)) for each in (scored, after_scaling))
        found |= {"before": before.to_json(), "after": after.to_json(), "bins": len(after.count)}
    if certainty.conformal is not None:
        difficulties = _difficulties(certainty, labels, beside)
        found |= coverage(certainty.conformal, _even(labels, calibrated, targets, difficulties))
        if labels.task.is_regression:
            known = [np.isfinite(target).sum() for target in targets]  # a residue counts as often as its sequence
            found["width"] = [width * float(np.average(difficulties, weights=known)) for width in found["width"]]
    if certainty.neighbours is not None and beside:
        found["far"] = sum(each.get("far") == "true" for each in beside) / len(beside)
    return found


def _difficulties(certainty: Certainty, labels: LabelSpace, beside: Sequence[Row]) -> NDArray[np.float64]:
    """Return the difficulty of each sequence; 1 for all where no interval depends on it."""
    return np.array([certainty.difficulty(row) if labels.task.is_regression else 1.0 for row in beside])


def _even(labels: LabelSpace, outputs: Arrays, targets: Arrays, difficulties: NDArray[np.float64]) -> Scored:
    """Return outputs and targets in units of their sequence's difficulty, in which intervals are equally wide."""
    if (difficulties != 1).any():
        outputs, targets = (
            [array / difficulty for array, difficulty in zip(each, difficulties, strict=True)]
            for each in (outputs, targets)
        )
    return Scored.of(labels.task, outputs, targets)
