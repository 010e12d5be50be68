"""A comparison, top to bottom: plan, check, train what is not there yet, and say what it adds up to after every run."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from plft.baseline_run import problem_of, train_each
from plft.baselines import BASELINES, Trained
from plft.checkpoints import resolve
from plft.comparison_data import DataSet
from plft.comparison_page import write_results
from plft.comparison_plan import Cell, ComparisonFolder, Plan, Trial, make_plan
from plft.config import load_config
from plft.errors import PlftError
from plft.findings import duration, in_words
from plft.memory import ran_out_of_memory
from plft.outputs import write_outputs
from plft.pipeline import train
from plft.preparation import Prepared, Say, check_tuning, prepare, quiet
from plft.ranks import processes
from plft.report import CARD, write_model_card, write_report
from plft.runfolder import read_json, write_json
from plft.standings import BASELINES_JSON, FROZEN, Standings, is_finished
from plft.tuning import check_settings, find_method, quantization_config

PATIENCE = 10  # times baselines.minutes, for the frozen backbone of each model
Watch = Callable[[], Sequence[TrainerCallback]]


@dataclass(frozen=True)
class Comparison:
    """A comparison on disk."""

    path: Path

    @property
    def results(self) -> dict[str, Any]:
        """The content of comparison.json."""
        return read_json(ComparisonFolder(self.path).results_file)


def compare(
    data: str | Path | Sequence[str | Path],
    models: Sequence[str],
    tunes: Sequence[str],
    out: str | Path = "comparison",
    *,
    seeds: int = 3,
    folds: int | None = None,
    by: str | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    say: Say = quiet,
    watch: Watch = tuple,
    command: str = "",
) -> Comparison:
    """Train every model with every tuning method and seed on every data set, and compare them on the same test sets.

    data: files or folders as for `plft train`.  models, tunes: names as for `--model` and `--tune`.  folds:
    cross-validation; None takes the file's column ``fold``, or else its splits.  by: how folds, or splits where there
    are none, are made (see `splits.SPLITTERS`).  config: other settings of every run, as values or a YAML file.  watch:
    makes the callbacks of a run.

    The same call on the same folder goes on where an earlier one ended.  A run that fails for a reason that the user
    can put right is noted, and the others go on.  Raises PlftError for what can be checked before anything is trained,
    and for a folder that holds another comparison.
    """
    if processes() > 1:
        raise PlftError("plft compare runs in one process. Start it without torchrun.")
    files = [str(each) for each in ([data] if isinstance(data, str | Path) else data)]
    settings = load_config(config) if isinstance(config, str | Path) else dict(config or {})
    folder = ComparisonFolder(Path(out))
    plan = make_plan(files, list(models), list(tunes), seeds, folds, by, settings)
    goes_on = folder.check(plan)
    failed = check_cells(plan, say)
    folder.open(plan)
    standings = Standings(plan, folder, failed)
    trials = [each for each in plan.trials() if each.cell not in failed]
    left = [each for each in trials if not is_finished(folder.run(plan, each))]
    say(f"{'going on: ' if goes_on else ''}{len(left)} of {len(trials)} runs to train, in {folder.path}")
    train_baselines(plan, folder, failed, say)
    write_results(standings)
    for number, trial in enumerate(trials, start=1):
        if trial in left:
            say(f"run {number} of {len(trials)}: {trial.title}")
            say(f"  {run_trial(standings, trial, watch(), command)}")
            write_results(standings)
        complete_report(folder, plan, trial)
    write_results(standings)
    return Comparison(folder.path)


# --- before anything is trained


def check_cells(plan: Plan, say: Say) -> dict[Cell, str]:
    """Prepare every model on every data set, without weights; returns the cells that cannot be trained, and why.

    Raises PlftError for a model that is not there, and where nothing can be trained.
    """
    failed: dict[Cell, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for data in plan.data:
            file = Path(temporary) / f"{data.name}.jsonl"
            data.write(file)
            say(f"{data.name}: {data.sentence}")
            for model in plan.models:
                check_model(plan, model, data)
                failed |= dict(failures(plan, data, model, file, say if model == next(iter(plan.models)) else quiet))
    for cell, reason in failed.items():
        say(f"left out: {cell.data}, {cell.model}, {cell.tune}: {reason}")
    if len(failed) == len(plan.cells):
        raise PlftError(f"Nothing can be trained. {next(iter(failed.values()))}")
    return failed


def check_model(plan: Plan, name: str, data: DataSet) -> None:
    """Find a model: a name that leads nowhere is a PlftError."""
    settings = plan.settings["model"]
    resolve(
        name,
        revision=settings["revision"],
        trust_remote_code=settings["trust_remote_code"],
        sequences=(each.sequence for each in data.records),
        seed=plan.seeds[0],
    )


def failures(plan: Plan, data: DataSet, model: str, file: Path, warn: Say) -> Iterator[tuple[Cell, str]]:
    """The tuning methods with which a model cannot be trained on a data set, and why.  warn: told what is odd in it."""
    cells = [Cell(data.name, model, tune) for tune in plan.tunes]
    configs = [plan.config(cell, plan.seeds[0], data.parts[0], file) for cell in cells]
    prepared: Prepared | None = None
    for cell, config in zip(cells, configs, strict=True):
        try:
            check_settings(config.tuning)
            if find_method(cell.tune).quantizes:
                quantization_config()
            if prepared is None:
                prepared = prepare(config)
                for warning in prepared.facts["audit"]["warnings"]:
                    warn(f"{data.name}: {warning}")
                if not prepared.datasets[data.tested].has_labels:
                    raise PlftError(f"The {data.tested} part of {data.name} holds no label to compare on. Add labels.")
            check_tuning(config, prepared.checkpoint)
        except PlftError as error:
            yield cell, str(error)


# --- runs


def run_trial(standings: Standings, trial: Trial, callbacks: Sequence[TrainerCallback], command: str) -> str:
    """Train one run, or what is left of it; returns a sentence on how it went."""
    plan, folder = standings.plan, standings.folder
    run, data = folder.run(plan, trial), plan.data_set(trial.cell.data)
    resume = run.config_file.exists()
    if not resume and run.path.exists():
        shutil.rmtree(run.path)  # killed before it had a configuration
    config = plan.config(trial.cell, trial.seed, trial.fold, folder.data_file(data))
    try:
        train(config, run.path, resume=resume, callbacks=callbacks, command=command)
    except (PlftError, MemoryError, RuntimeError) as error:
        reason = reason_of(error)
        standings.failed.setdefault(trial.cell, f"seed {trial.seed}: {reason}")
        return f"failed: {reason}"
    shutil.rmtree(run.checkpoints, ignore_errors=True)  # of a finished run; of many they would fill a disk
    metrics = read_json(run.metrics_file)
    metric, environment = metrics["main_metric"], read_json(run.environment_file)
    score = metrics["splits"][data.tested]["metrics"][metric]["value"]
    return f"{metric} {in_words(score, metric)} in {duration(environment['seconds'])}"


def reason_of(error: Exception) -> str:
    """What the user can do about a run that failed; an error that is a bug of ours is raised again."""
    if isinstance(error, PlftError):
        return str(error)
    if ran_out_of_memory(error):
        return "Out of memory. Lower training.batch_residues and raise training.accumulation."
    raise error


def complete_report(folder: ComparisonFolder, plan: Plan, trial: Trial) -> None:
    """Write the report of a run that was killed between its metrics and its report."""
    run = folder.run(plan, trial)
    if is_finished(run) and not (run.path / CARD).exists():
        write_report(run.path)
        write_model_card(run.path)
        shutil.rmtree(run.checkpoints, ignore_errors=True)


# --- baselines


def train_baselines(plan: Plan, folder: ComparisonFolder, failed: Iterable[Cell], say: Say) -> None:
    """Train the baselines of each data set and fold once, and the frozen backbone of each model."""
    if not plan.settings["baselines"]["run"]:
        return
    for data in plan.data:
        able = {cell.model: cell for cell in reversed(plan.cells) if cell.data == data.name and cell not in failed}
        models = [model for model in plan.models if model in able]
        for fold, model in product(data.parts, models):
            place = folder.baselines(data, plan.models[model], fold)
            if (place / BASELINES_JSON).exists():
                continue
            say(f"baselines of {data.name}, {model}" + ("" if fold is None else f", fold {fold}"))
            config = plan.config(able[model], plan.seeds[0], fold, folder.data_file(data))
            try:
                write_baselines(place, prepare(config), data.tested, with_plain=model == models[0])
            except PlftError as error:
                say(f"  none: {error}")


def write_baselines(place: Path, prepared: Prepared, tested: str, *, with_plain: bool) -> None:
    """Train the frozen backbone as a baseline, and those that need no model where asked for; keep their outputs.

    The list of them is written last, and marks the end.
    """
    problem, parts = problem_of(prepared, [tested])

    def keep(trained: Trained) -> dict[str, str]:
        write_outputs(place / f"{trained.row.name}.safetensors", trained.outputs[tested], parts[tested].targets)
        return {"title": trained.title, "settings": trained.note}

    frozen, plain = BASELINES[FROZEN], [row for row in BASELINES.values() if row.name != FROZEN and with_plain]
    found, left_out = train_each(plain, problem, parts, prepared, keep, time.monotonic())
    slow, too_slow = train_each([frozen], problem, parts, patiently(prepared), keep, time.monotonic())
    write_json(
        place / BASELINES_JSON,
        {
            "metric": problem.metric,
            "classes": prepared.labels.classes,
            "found": found | slow,
            "left_out": left_out | too_slow,
        },
    )


def patiently(prepared: Prepared) -> Prepared:
    """The same with more time: the frozen backbone's speed is clocked, and a busy moment should change nothing."""
    config = prepared.config.model_copy(deep=True)
    config.baselines.minutes *= PATIENCE
    return replace(prepared, config=config)
