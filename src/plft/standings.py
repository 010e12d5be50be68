"""What the runs of a comparison add up to: scores over seeds and folds, differences, and which of them are significant.

Nothing here loads a model: every run left what it is scored by in its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plft.baselines import BASELINES
from plft.comparison_data import DataSet
from plft.comparison_plan import SCHEMA, Cell, ComparisonFolder, Plan, Trial
from plft.errors import PlftError
from plft.labels import TaskType
from plft.metrics import METRICS
from plft.outputs import read_outputs
from plft.paired import RESAMPLES, SIGNIFICANT, Score, difference_over_seeds, holm, over_seeds, p_value, score_of
from plft.runfolder import RunFolder, read_json

BASELINES_JSON, FROZEN = "baselines.json", "frozen"
Row = dict[str, Any]
Arrays = Sequence[NDArray[Any]]
NOTHING: Row = {"value": None, "low": None, "high": None}


def is_finished(run: RunFolder) -> bool:
    """Whether a run was trained and scored to its end."""
    return run.metrics_file.exists()


@dataclass(frozen=True)
class Baselines:
    """The baselines of a data set with what is said of each, best first; why others were left out, by title."""

    found: list[tuple[Score, Row]]
    left_out: dict[str, str]

    @property
    def best(self) -> Score | None:
        """The best on the test set itself, which favours the baselines; None where there are none."""
        return self.found[0][0] if self.found else None

    def to_json(self) -> Row:
        """What comparison.json says of them."""
        entries = [entry | score.with_interval().to_json() for score, entry in self.found]
        return {"baselines": entries, "baselines_left_out": self.left_out}


@dataclass
class Standings:
    """The results of a comparison so far.  Scores are kept, so that asking again after each run costs little.

    failed: why a cell, or one of its runs, could not be had.
    """

    plan: Plan
    folder: ComparisonFolder
    failed: dict[Cell, str] = field(default_factory=dict)
    _scores: dict[Any, Score] = field(default_factory=dict, repr=False)
    _targets: dict[str, Arrays] = field(default_factory=dict, repr=False)
    _metrics: dict[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything found, as comparison.json has it."""
        baselines = {data.name: self._baselines(data) for data in self.plan.data}
        rows = [self._row(cell, baselines[cell.data].best) for cell in self.plan.cells]
        corrected = holm([math.nan if row["p"] is None else row["p"] for row in rows])
        for row, p in zip(rows, corrected, strict=True):
            row["p_corrected"] = None if math.isnan(p) else p
            row["significant"] = p < SIGNIFICANT
        left = (trial for trial in self.plan.trials() if trial.cell not in self.failed)
        missing = [trial.title for trial in left if not is_finished(self.folder.run(self.plan, trial))]
        return {
            "schema": SCHEMA,
            "reference": self.plan.reference,
            "seeds": list(self.plan.seeds),
            "significance": {
                "level": SIGNIFICANT,
                "correction": "Holm",
                "tests": sum(not math.isnan(p) for p in corrected),
            },
            "missing": missing,
            "data": {each.name: self._data(each) | baselines[each.name].to_json() for each in self.plan.data},
            "rows": rows,
        }

    def _data(self, data: DataSet) -> Row:
        metric = self._metrics.get(data.name)
        found = {"task": data.task.value, "metric": metric, "tested": data.tested, "folds": len(data.folds) or None}
        targets = self._targets.get(data.name)
        tests = {"n": None if targets is None else len(targets), "division": data.sentence}
        resamples = next((len(each.replicates) for key, each in self._scores.items() if key[0] == data.name), None)
        return found | tests | {"resamples": resamples}

    # --- cells

    def _row(self, cell: Cell, baseline: Score | None) -> Row:
        scores = self.scores(cell)
        reference = self.scores(Cell(cell.data, cell.model, self.plan.reference))
        is_reference = cell.tune == self.plan.reference
        gain = None if is_reference else difference_over_seeds(scores, reference)
        values = [each.value for each in scores.values() if math.isfinite(each.value)]
        return {
            "data": cell.data,
            "model": cell.model,
            "tune": cell.tune,
            "metric": self._metrics.get(cell.data),
            **(over_seeds(scores).with_interval().to_json() if scores else NOTHING),
            "lowest": min(values, default=None),
            "highest": max(values, default=None),
            "seeds": len(scores),
            "difference": NOTHING if gain is None else gain.with_interval().to_json(),
            "p": None if gain is None or math.isnan(p := p_value(gain)) else p,
            "p_corrected": None,  # of all cells together, see `to_json`
            "significant": False,
            "over_baseline": over(baseline, scores),
            **self._cost(cell),
            "problem": self.failed.get(cell, ""),
        }

    def scores(self, cell: Cell) -> dict[int, Score]:
        """The score of each seed that is finished in all its folds."""
        found = {}
        for seed in self.plan.seeds:
            if self._is_complete(cell, seed):
                try:
                    found[seed] = self._score(cell, seed)
                except PlftError as error:
                    self.failed.setdefault(cell, f"seed {seed}: {error}")
        return found

    def _runs(self, cell: Cell, seed: int) -> list[RunFolder]:
        parts = self.plan.data_set(cell.data).parts
        return [self.folder.run(self.plan, Trial(cell, seed, fold)) for fold in parts]

    def _is_complete(self, cell: Cell, seed: int) -> bool:
        return all(is_finished(run) for run in self._runs(cell, seed))

    def _score(self, cell: Cell, seed: int) -> Score:
        key = (cell.data, cell, seed)
        if key not in self._scores:
            runs, data = self._runs(cell, seed), self.plan.data_set(cell.data)
            self._metrics.setdefault(data.name, str(read_json(runs[0].metrics_file)["main_metric"]))
            refuse_other_classes([read_json(run.metrics_file)["classes"] for run in runs])
            self._scores[key] = self._pooled(data, [run.outputs_file(data.tested) for run in runs])
        return self._scores[key]

    def _pooled(self, data: DataSet, files: Sequence[Path]) -> Score:
        """Score the test sets of all folds together."""
        outputs, targets = (
            [each for part in parts for each in part] for parts in zip(*map(read_outputs, files), strict=True)
        )
        if not are_equal(self._targets.setdefault(data.name, targets), targets):
            raise PlftError("It was not tested on the same labels as the others, so it cannot be compared with them.")
        return score_of(data.task, outputs, targets, self._metrics[data.name], RESAMPLES)

    def _cost(self, cell: Cell) -> Row:
        """Seconds of training per seed, parameters trained, and the most memory of any run."""
        seeds = [seed for seed in self.plan.seeds if self._is_complete(cell, seed)]
        found = [read_json(run.environment_file) for seed in seeds for run in self._runs(cell, seed)]
        peaks = [each["peak_memory"] for each in found if each.get("peak_memory")]
        return {
            "seconds": round(sum(each["seconds"] for each in found) / len(seeds), 1) if seeds else None,
            "trainable": max((each["parameters"]["trainable"] for each in found), default=None),
            "parameters": max((each["parameters"]["total"] for each in found), default=None),
            "peak_memory": max(peaks) if peaks and len(peaks) == len(found) else None,
        }

    # --- baselines

    def _baselines(self, data: DataSet) -> Baselines:
        found: list[tuple[Score, Row]] = []
        left_out: dict[str, str] = {}
        for model, slug in self.plan.models.items():
            folders = [self.folder.baselines(data, slug, fold) for fold in data.parts]
            if not all((each / BASELINES_JSON).exists() for each in folders):
                continue
            parts = [read_json(each / BASELINES_JSON) for each in folders]
            for part in parts:
                left_out |= {of_model(title, model, data.task): why for title, why in part["left_out"].items()}
            for name, about in parts[0]["found"].items():
                title = of_model(about["title"], model, data.task)
                settings = about["settings"] if len(parts) == 1 else ""  # each fold may have chosen its own
                try:
                    if all(name in part["found"] for part in parts):
                        found.append(
                            (self._baseline(data, model, name, folders), {"title": title, "settings": settings})
                        )
                except PlftError as error:
                    left_out[title] = str(error)
        return Baselines(self._best_first(data, found), left_out)

    def _best_first(self, data: DataSet, found: Sequence[tuple[Score, Row]]) -> list[tuple[Score, Row]]:
        """Those whose score is defined, best first."""
        known = [pair for pair in found if math.isfinite(pair[0].value)]
        metric = METRICS.get(self._metrics.get(data.name, ""))
        return sorted(known, key=lambda pair: pair[0].value, reverse=metric is None or metric.higher_is_better)

    def _baseline(self, data: DataSet, model: str, name: str, folders: Sequence[Path]) -> Score:
        key = (data.name, model, name)
        if key not in self._scores:
            self._metrics.setdefault(data.name, read_json(folders[0] / BASELINES_JSON)["metric"])
            refuse_other_classes([read_json(folder / BASELINES_JSON)["classes"] for folder in folders])
            self._scores[key] = self._pooled(data, [folder / f"{name}.safetensors" for folder in folders])
        return self._scores[key]


def refuse_other_classes(classes: Sequence[Sequence[str]]) -> None:
    """Raise PlftError where folds differ in their classes, whose outputs do not stand for the same things then."""
    if len(set(map(tuple, classes))) > 1:
        raise PlftError("The training parts of the folds hold different classes. Leave the rare ones out.")


def over(baseline: Score | None, scores: Mapping[int, Score]) -> Row:
    """The mean over seeds minus a baseline, which has no seeds."""
    if baseline is None or not scores:
        return NOTHING
    return over_seeds({seed: each.minus(baseline) for seed, each in scores.items()}).with_interval().to_json()


def of_model(title: str, model: str, task: TaskType) -> str:
    """The title of a baseline, with its model where it has one."""
    return f"{title}, {model}" if title == BASELINES[FROZEN].title_for(task) else title


def are_equal(ours: Arrays, theirs: Arrays) -> bool:
    """Whether two lists of targets are the same, missing ones included."""
    return len(ours) == len(theirs) and all(
        one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        for one, other in zip(ours, theirs, strict=True)
    )


def table_rows(results: Mapping[str, Any]) -> list[Row]:
    """The rows of comparison.csv: one for each data set, model and tuning method; empty where there is no number."""
    return [_flat(row) for row in results["rows"]]


def _flat(row: Mapping[str, Any]) -> Row:
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {name if part == "value" else f"{name}_{part}": each for part, each in value.items()}
        else:
            flat[name] = json.dumps(value) if isinstance(value, bool) else value
    return {name: "" if value is None else value for name, value in flat.items()}
