"""What a trained model says of the parts it was not trained on: outputs, certainty fitted on them, tables of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plft.certainty import assess, fit_certainty
from plft.config import CalibrationConfig
from plft.dataset import SequenceDataset
from plft.novelty import Neighbours, fit_neighbours
from plft.prediction import Predictor
from plft.records import Record
from plft.tables import Row

FITTED_ON = "valid"


@dataclass(frozen=True)
class Part:
    """One split: its records and dataset, the model's outputs before calibration, and its states."""

    records: Sequence[Record]
    dataset: SequenceDataset
    raw: list[np.ndarray]
    states: np.ndarray | None


@dataclass(frozen=True)
class HeldOut:
    """Every split but train, answered once.

    predictor: with its certainty.  beside: distance and far for each record of a split.
    """

    predictor: Predictor
    parts: dict[str, Part]
    beside: dict[str, list[Row]]

    def outputs(self, name: str) -> list[np.ndarray]:
        """Calibrated outputs of a split, one array per record."""
        return self.predictor.certainty.calibrated(self.parts[name].raw)

    def rows(self, name: str) -> Iterator[Row]:
        """Rows of predictions/<split>.csv: id, label, prediction, interval or set, probabilities, distance."""
        part = self.parts[name]
        for record, output, beside in zip(part.records, self.outputs(name), self.beside[name], strict=True):
            target = self.predictor.labels.encode(record, unseen="missing")
            yield from self.predictor.rows(record, output, beside, target)

    def to_json(self) -> dict[str, Any]:
        """What metrics.json says under ``calibration``; empty where nothing was fitted."""
        certainty, labels = self.predictor.certainty, self.predictor.labels
        if FITTED_ON not in self.parts or not self.parts[FITTED_ON].dataset.has_labels:
            return {}
        conformal, neighbours = certainty.conformal, certainty.neighbours
        return {
            "method": certainty.calibration.method,
            "temperature": list(certainty.calibration.temperature),
            "fitted_on": FITTED_ON,
            "level": None if conformal is None else conformal.level,
            "far_above": None if neighbours is None else neighbours.threshold,
            "splits": {
                name: assess(certainty, labels, part.raw, part.dataset.targets(), self.beside[name])
                for name, part in self.parts.items()
                if part.dataset.has_labels
            },
        }


def answer_held_out(
    predictor: Predictor, records: Mapping[str, Sequence[Record]], config: CalibrationConfig, seed: int = 0
) -> HeldOut:
    """Answer for every split but train, and fit on valid, where it has labels, how certain the answers are.

    predictor: just loaded, without certainty.  records: by split, letters cleaned.  config: with its method resolved.
    seed: of the choice of training sequences that inputs are compared with.
    """
    with_states = config.neighbours > 0
    parts = {}
    for name, part in records.items():
        if name != "train":
            dataset = predictor.dataset(part, labelled=True, unseen="missing")
            parts[name] = Part(part, dataset, *predictor.raw(dataset, with_states=with_states))
    valid = parts.get(FITTED_ON)
    neighbours = find_neighbours(predictor, records["train"], valid, config.neighbours, seed) if with_states else None
    certainty = replace(predictor.certainty, neighbours=neighbours)
    beside = {name: certainty.distance_cells(part.states, len(part.records)) for name, part in parts.items()}
    if valid is not None and valid.dataset.has_labels:
        targets = valid.dataset.targets()
        certainty = fit_certainty(config, predictor.labels, valid.raw, targets, neighbours, beside[FITTED_ON])
    return HeldOut(replace(predictor, certainty=certainty), parts, beside)


def find_neighbours(
    predictor: Predictor, training: Sequence[Record], valid: Part | None, most: int, seed: int
) -> Neighbours | None:
    """Keep the states of at most so many training sequences, drawn at random; see `novelty.fit_neighbours`."""
    chosen = np.random.default_rng(seed).permutation(len(training))[:most]
    dataset = predictor.dataset([training[at] for at in np.sort(chosen)], labelled=False)
    states = predictor.raw(dataset, with_states=True)[1]
    return None if states is None else fit_neighbours(states, None if valid is None else valid.states)
