"""What a comparison runs: models x tuning methods x seeds (x folds) over data sets, and where each lies on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from plft.comparison_data import DataSet, names_of, read_data_set, unique
from plft.config import RunConfig, differences, make_config, read_yaml
from plft.errors import PlftError, first_three
from plft.runfolder import RunFolder, check_place, write_text
from plft.tuning import find_method

SCHEMA = 1
REFERENCE = "head"  # what fine-tuning is compared with: the same model, frozen


@dataclass(frozen=True)
class Cell:
    """One cell of the heat map: a model tuned in one way on one data set, over all seeds and folds."""

    data: str
    model: str
    tune: str


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.  fold: its test set, None where there are no folds."""

    cell: Cell
    seed: int
    fold: int | None = None

    @property
    def title(self) -> str:
        """The run in words."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.cell.data}, {self.cell.model}, {self.cell.tune}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison does.

    models: by name, with the name of each one's folder.  reference: the tuning method that the others are compared
    with.  settings: those of every run, in the shape of a RunConfig; files, model, method and seed are laid over them.
    """

    data: tuple[DataSet, ...]
    models: Mapping[str, str]
    tunes: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str
    settings: Mapping[str, Any]

    @property
    def cells(self) -> list[Cell]:
        """All cells: by data set, model and tuning method."""
        return [Cell(data.name, *pair) for data in self.data for pair in product(self.models, self.tunes)]

    def trials(self) -> Iterator[Trial]:
        """All runs; the first seed of everything comes first, so that there is a whole table early."""
        for seed, cell in product(self.seeds, self.cells):
            yield from (Trial(cell, seed, fold) for fold in self.data_set(cell.data).parts)

    def data_set(self, name: str) -> DataSet:
        """The data set of that name."""
        return next(each for each in self.data if each.name == name)

    def decided(self) -> dict[str, Any]:
        """What comparison.yaml says: with it the comparison can be taken up again, or repeated."""
        return {
            "schema": SCHEMA,
            "data": {each.name: each.facts() for each in self.data},
            "models": list(self.models),
            "tunes": list(self.tunes),
            "reference": self.reference,
            "seeds": list(self.seeds),
            "settings": dict(self.settings),
        }

    def config(self, cell: Cell, seed: int, fold: int | None, file: Path) -> RunConfig:
        """The configuration of a run that reads its data from `file`."""
        data, values = self.data_set(cell.data), dict(self.settings)
        tuning, method = dict(values["tuning"]) | {"method": cell.tune}, find_method(cell.tune)
        if not method.is_peft:
            tuning["targets"] = None  # meant for the adapters among the methods
        if not (method.is_peft or method.name == "adapter"):
            tuning["blocks"] = None
        return make_config(
            values
            | {
                "task": data.task.value,
                "data": data.read_from(file, fold).model_dump(),
                "model": values["model"] | {"name": cell.model},
                "tuning": tuning,
                "training": values["training"] | {"seed": seed},
                "baselines": values["baselines"] | {"run": False},  # once per data set, see `comparison`
            }
        )


def make_plan(
    data: Sequence[str],
    models: Sequence[str],
    tunes: Sequence[str],
    seeds: int,
    folds: int | None,
    by: str | None,
    settings: Mapping[str, Any],
) -> Plan:
    """Read the data and check all that needs no model; see `comparison.compare` for the arguments."""
    given = {"data set": data, "model": models, "tuning method": tunes}
    for what, names in given.items():
        if not names:
            raise PlftError(f"There is no {what} to compare. Name at least one.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PlftError(f"The {what} {first_three(twice)} is named twice. Name each once.")
    for tune in tunes:
        find_method(tune)
    if seeds < 1 or (folds is not None and folds < 1):
        raise PlftError("--seeds and --folds count: give 1 or more.")
    own = dict(settings.get("data") or {})
    if len(data) > 1 and (own.get("valid") or own.get("test")):
        raise PlftError("data.valid and data.test belong to one data set, but several are named. Use a split column.")
    configs = [make_config({**settings, "data": own | {"file": file}}) for file in data]
    values = configs[0].model_dump(mode="json")
    first = values["training"].pop("seed")
    del values["task"], values["model"]["name"], values["tuning"]["method"]
    for key in ("file", "valid", "test"):
        del values["data"][key]
    return Plan(
        tuple(read_data_set(*pair, folds, by) for pair in zip(names_of(data), configs, strict=True)),
        dict(zip(models, unique(models), strict=True)),
        tuple(tunes),
        tuple(range(first, first + seeds)),
        REFERENCE if REFERENCE in tunes else tunes[0],
        values,
    )


@dataclass(frozen=True)
class ComparisonFolder:
    """Paths inside the folder of a comparison."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Everything decided."""
        return self.path / "comparison.yaml"

    @property
    def results_file(self) -> Path:
        """Everything found."""
        return self.path / "comparison.json"

    @property
    def table_file(self) -> Path:
        """One row for each data set, model and tuning method."""
        return self.path / "comparison.csv"

    @property
    def heat_map_file(self) -> Path:
        """The heat map as a picture of its own."""
        return self.path / "heatmap.svg"

    @property
    def report_file(self) -> Path:
        """The page with heat map and tables."""
        return self.path / "report.html"

    def data_file(self, data: DataSet) -> Path:
        """A data set with its splits, as all runs read it."""
        return self.path / "data" / f"{data.name}.jsonl"

    def run(self, plan: Plan, trial: Trial) -> RunFolder:
        """The run folder of a trial."""
        fold = "" if trial.fold is None else f"-fold-{trial.fold}"
        names = (trial.cell.data, plan.models[trial.cell.model], trial.cell.tune)
        return RunFolder(self.path.joinpath("runs", *names, f"seed-{trial.seed}{fold}"))

    def baselines(self, data: DataSet, model: str, fold: int | None) -> Path:
        """The folder of the baselines of a data set; model: the folder name of the one whose hidden states are read."""
        return self.path.joinpath("baselines", data.name, model, *([] if fold is None else [f"fold-{fold}"]))

    def check(self, plan: Plan) -> bool:
        """Whether this comparison was begun here before; another one, or other files, are a PlftError."""
        if not self.config_file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise PlftError(f"{self.path} exists and is not a comparison. Choose another --out.")
            check_place(self.path)
            return False
        changed = list(differences(read_yaml(self.config_file), plan.decided()))
        if changed:
            raise PlftError(
                f"{self.path} holds another comparison: {first_three(changed)}. "
                "Give the same command to go on with it, or another --out."
            )
        return True

    def open(self, plan: Plan) -> None:
        """Write what is decided, and the data with their splits."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config_file.exists():
            write_text(self.config_file, yaml.safe_dump(plan.decided(), sort_keys=False, allow_unicode=True))
        for each in plan.data:
            if not self.data_file(each).exists():
                each.write(self.data_file(each))
