"""A search for settings, top to bottom: trials judged on valid alone, then one ordinary run with the best of them.

A trial trains as a run does, without checkpoints and without a folder, and never gets to see the test part. The best
settings are trained once more instead of keeping the weights of trials: that costs one trial more, and leaves a run
like any other, which `plft train --config` repeats.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from transformers import TrainerCallback, set_seed

from plft.config import RunConfig, differences, load_config, make_config, read_yaml
from plft.errors import PlftError, first_three
from plft.keeping import kept_features
from plft.memory import ran_out_of_memory
from plft.metrics import METRICS
from plft.pipeline import Run, build, make_trainer, train
from plft.preparation import Prepared, Say, prepare, prepare_again, quiet
from plft.ranks import processes
from plft.report import write_model_card, write_report
from plft.runfolder import RunFolder, check_place, read_json, remove_run, write_json, write_text
from plft.search_report import write_search_report
from plft.search_space import Dimension, search_space, with_settings, written
from plft.tables import TableWriter
from plft.training import choose_precision
from plft.trials import Asked, Trial, Trials, check_optuna

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two searches apart
    fcntl = None  # type: ignore[assignment]

DEFAULT_TRIALS = 20
FINAL_RUN = 1.25  # times the longest trial, for writing and scoring
SCORING_SECONDS = 10  # of the final run, at least


@dataclass(frozen=True)
class SearchFolder:
    """Paths inside one search folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """What is searched: the settings that are fixed, and the space of the others."""
        return self.path / "search.yaml"

    @property
    def study_file(self) -> Path:
        """Optuna's data base."""
        return self.path / "study.db"

    @property
    def table_file(self) -> Path:
        """One row per finished trial."""
        return self.path / "trials.csv"

    @property
    def summary_file(self) -> Path:
        """Trials, best settings and what they gained."""
        return self.path / "search.json"

    @property
    def features(self) -> Path:
        """What the frozen part made of each sequence, while the search lasts."""
        return self.path / "features"

    @property
    def best(self) -> RunFolder:
        """The run with the best settings."""
        return RunFolder(self.path / "best")


@dataclass(frozen=True)
class Search:
    """A finished search: its folder, and the run with the best settings."""

    path: Path

    @cached_property
    def best(self) -> Run:
        """The run with the best settings."""
        return Run(SearchFolder(self.path).best.path)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of search.json."""
        return read_json(SearchFolder(self.path).summary_file)


@dataclass(frozen=True)
class Budget:
    """How much a search may take, and when it began.

    trials: in all, of earlier sessions too.  minutes: likewise, the final run included.  spent: seconds of earlier
    sessions.  baselines: seconds that those of the final run may take.
    """

    trials: int | None
    minutes: float | None
    started: float
    spent: float = 0.0
    baselines: float = 0.0

    def left(self, done: Sequence[Trial]) -> float:
        """Seconds that are left for trials: what the final run will take is set aside."""
        if self.minutes is None:
            return float("inf")
        longest = max((each.seconds for each in done if each.state == "complete"), default=0.0)
        reserved = FINAL_RUN * longest + SCORING_SECONDS + self.baselines
        return 60 * self.minutes - self.spent - (time.monotonic() - self.started) - reserved

    def allows_another(self, done: Sequence[Trial]) -> bool:
        """Whether a further trial may begin; the first one always may."""
        if self.trials is not None and len(done) >= self.trials:
            return False
        seconds = [each.seconds for each in done if each.seconds]
        return not done or self.left(done) > (mean(seconds) if seconds else 0.0)


def tune(
    config: RunConfig | Mapping[str, Any] | str | Path,
    out: str | Path = "search",
    *,
    trials: int | None = None,
    minutes: float | None = None,
    search: Sequence[str] = (),
    fixed: Collection[str] = (),
    say: Say = quiet,
    callbacks: Sequence[TrainerCallback] = (),
    command: str = "",
    started: float | None = None,
) -> Search:
    """Search settings, or go on with a search; leaves a folder with the trials and the run `best`.

    config: what is fixed, as for `finetune`, or a run's record, around which everything is searched.  trials: how
    many, by default 20, or as many as fit in `minutes`.  search: what is searched and where (see
    `search_space.search_space`), by default the table's settings that are not fixed.  fixed: more settings that stay as
    they are, as `training.learning_rate`.  say: told each thing the user should know.  started: `time.monotonic()` from
    which the minutes count.  Raises PlftError for anything the user can put right, among it another search in the
    folder.
    """
    check_optuna()
    config = as_config(config)
    budget = make_budget(config, trials, minutes, started)
    folder = SearchFolder(Path(out))
    check_folder(folder)
    prepared = prepare(config, say)
    if prepared.valid is None:
        raise PlftError("A search chooses by the validation part, which holds no label here. Add a part named valid.")
    space = search_space(search, config, prepared.config, fixed)
    with only_one(folder):
        open_folder(folder, prepared, space)
        row = METRICS[str(prepared.config.training.metric)]
        tried = Trials(
            folder.study_file,
            space,
            prepared.config,
            seed=config.training.seed,
            higher_is_better=row.higher_is_better,
            fixed=fixed,
        )
        budget = replace(budget, spent=sum(each.seconds for each in tried.finished))
        say_beginning(tried, space, budget, say)
        run_trials(tried, config, without_test(prepared), folder, budget, say, callbacks)
        train_best(tried, config, folder, row.name, say, callbacks, command)
        remove_features(folder)
    return Search(folder.path)


def as_config(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    """The configuration, from any of its forms."""
    if isinstance(config, str | Path):
        config = load_config(config)
    return config if isinstance(config, RunConfig) else make_config(dict(config))


def make_budget(config: RunConfig, trials: int | None, minutes: float | None, started: float | None) -> Budget:
    """The budget of a search; a PlftError where it holds none."""
    baselines = 60 * config.baselines.minutes if config.baselines.run else 0.0
    if trials is not None and trials < 1:
        raise PlftError(f"--trials {trials}: a search needs one trial at least.")
    if minutes is not None and 60 * minutes <= baselines + SCORING_SECONDS:
        hint = " Give more, or --set baselines.run=false." if baselines else ""
        raise PlftError(
            f"--minutes {minutes:g} leaves no time for trials: after training, scoring"
            f"{' and baselines' if baselines else ''} may take {baselines + SCORING_SECONDS:.0f} s.{hint}"
        )
    if trials is None and minutes is None:
        trials = DEFAULT_TRIALS
    return Budget(trials, minutes, time.monotonic() if started is None else started, baselines=baselines)


# --- the folder


def check_folder(folder: SearchFolder) -> None:
    """Refuse a folder that holds something else, and several processes."""
    if processes() > 1:
        raise PlftError("plft tune runs in one process. Start it without torchrun or accelerate.")
    there = folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir()))
    if there and not folder.config_file.exists():
        raise PlftError(f"{folder.path} exists and is not a search folder. Choose another --out.")
    check_place(folder.path)


@contextmanager
def only_one(folder: SearchFolder) -> Iterator[None]:
    """While this lasts no other process works in the folder; the system forgets the lock of a process that dies."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lock").open("w") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlftError(
                f"{folder.path}: another plft tune is at work there. Wait, or choose another --out."
            ) from None
        yield


def open_folder(folder: SearchFolder, prepared: Prepared, space: Sequence[Dimension]) -> None:
    """Write search.yaml, or see that the one that is there says the same."""
    content: dict[str, Any] = {
        "config": prepared.config.model_dump(mode="json"),
        "search": {each.key: each.typed for each in space},
        "data_sha256": prepared.facts["sha256"],
    }
    if folder.config_file.exists():
        before = read_yaml(folder.config_file)
        was, now = ({**(each.get("config") or {}), "search": each.get("search")} for each in (before, content))
        changed = ["the data have changed"] if before.get("data_sha256") != content["data_sha256"] else []
        changed += differences(was, now)
        if changed:
            raise PlftError(
                f"{folder.path} holds a search with other settings: {first_three(changed)}. "
                "Give the same command to go on, or choose another --out."
            )
    write_text(folder.config_file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def remove_features(folder: SearchFolder) -> None:
    """Delete what the trials shared."""
    if folder.features.exists():
        for each in folder.features.iterdir():
            each.unlink()
        folder.features.rmdir()


# --- trials


def without_test(prepared: Prepared) -> Prepared:
    """Training and validation only: what is not there cannot be looked at."""
    names = ("train", "valid")
    return replace(
        prepared,
        parts={name: prepared.parts[name] for name in names},
        datasets={name: prepared.datasets[name] for name in names},
    )


def say_beginning(tried: Trials, space: Sequence[Dimension], budget: Budget, say: Say) -> None:
    """Print the space, and how far the search has come."""
    usual = tried.usual()
    for each in space:
        default = f" (default {written(usual[each.key])})" if usual.get(each.key) is not None else ""
        say(f"searched: {each.key} {each}{default}{'; ' + each.why if each.why else ''}")
    limits = [
        f"{budget.trials} trials" if budget.trials else "",
        f"{budget.minutes:g} minutes" if budget.minutes else "",
    ]
    say(f"ends after {' or '.join(each for each in limits if each)}; trials are compared on valid alone")
    if tried.finished:
        say(f"going on after {len(tried.finished)} finished trials")


def run_trials(
    tried: Trials,
    config: RunConfig,
    prepared: Prepared,
    folder: SearchFolder,
    budget: Budget,
    say: Say,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Run trials until the budget is spent or nothing is left to try. Raises PlftError where all of them fail."""
    while budget.allows_another(tried.finished):
        asked = tried.ask(budget.trials)
        if asked is None:
            say("every combination was tried")
            break
        if not run_trial(tried, asked, config, prepared, folder, budget, callbacks):
            say("the time for trials is up")
            break
        say(told(tried, str(prepared.config.training.metric), budget.trials))
        write_progress(tried, folder, str(prepared.config.training.metric))
    if tried.best is None:
        raise PlftError(f"Every trial failed. The first one: {tried.finished[0].reason}")


def run_trial(
    tried: Trials,
    asked: Asked,
    config: RunConfig,
    prepared: Prepared,
    folder: SearchFolder,
    budget: Budget,
    callbacks: Sequence[TrainerCallback],
) -> bool:
    """Train with the settings asked for and write down what came of it; False where the time was up before that."""
    twin = tried.same_as(asked.shown)
    if twin is not None:
        tried.tell(asked, twin.state, 0.0, twin.score, twin.reason or f"the same settings as trial {twin.number}")
        return True
    begun, done = time.monotonic(), tried.finished
    watch = Watch(asked, str(prepared.config.training.metric), begun + budget.left(done) if done else float("inf"))
    try:
        wanted = with_settings(config, asked.settings, tried.fixed)
        train_trial(settled(prepared, wanted, asked), [watch, *callbacks], folder.features)
    except (PlftError, MemoryError, RuntimeError) as error:
        if not isinstance(error, PlftError) and not ran_out_of_memory(error):
            raise
        tried.tell(asked, "failed", time.monotonic() - begun, reason=reason_of(error))
        return True
    finally:
        gc.collect()
    if watch.is_late:
        tried.give_up(asked)
        return False
    seconds, score = time.monotonic() - begun, asked.score
    if abs(score) < float("inf"):
        tried.tell(asked, "pruned" if watch.is_pruned else "complete", seconds, score)
    else:  # or NaN
        tried.tell(asked, "failed", seconds, reason="the metric was undefined at every evaluation")
    return True


def settled(prepared: Prepared, wanted: RunConfig, asked: Asked) -> Prepared:
    """What a trial trains on, with its settings; read again only where the base model is another one."""
    if any(key in asked.settings for key in ("model.name", "model.revision")):
        return without_test(prepare(wanted))
    return prepare_again(prepared, wanted)


def train_trial(prepared: Prepared, callbacks: Sequence[TrainerCallback], features: Path) -> None:
    """Train as a run does, with neither checkpoints nor trackers. features: folder of what all trials share."""
    settings = prepared.config.training.model_copy(update={"report_to": []})
    prepared = replace(prepared, config=prepared.config.model_copy(update={"training": settings}))
    set_seed(settings.seed)
    precision, _ = choose_precision(settings.precision, prepared.checkpoint.family)
    model = build(prepared, None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(prepared, model, RunFolder(Path(folder)), precision, callbacks)
        trainer.args.save_strategy = "no"  # type: ignore[assignment]
        with kept_features(trainer, settings, quiet, features):
            trainer.train()


class Watch(TrainerCallback):
    """Hands the scores of a trial on; stops it when it is hopeless, or at the deadline (`time.monotonic()`)."""

    def __init__(self, asked: Asked, metric: str, deadline: float) -> None:
        self.asked, self.metric, self.deadline = asked, metric, deadline
        self.is_pruned = self.is_late = False

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Compare with the other trials, unless training is over anyway."""
        hopeless = self.asked.is_hopeless(metrics[f"eval_{self.metric}"])
        self.is_pruned = hopeless and state.global_step < state.max_steps
        control.should_training_stop |= self.is_pruned

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the clock."""
        self.is_late |= time.monotonic() > self.deadline and state.global_step < state.max_steps
        control.should_training_stop |= self.is_late


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line."""
    return " ".join(str(error).split()) if isinstance(error, PlftError) else "out of memory"


# --- what is said and written


def told(tried: Trials, metric: str, limit: int | None) -> str:
    """One line on the trial that has just finished."""
    trial, best = tried.finished[-1], tried.best
    of = f" of {limit}" if limit else ""
    settings = ", ".join(f"{key.partition('.')[2]} {written(value)}" for key, value in trial.settings.items())
    score = f"valid {metric} {trial.score:.3f}" if trial.score is not None else trial.reason
    state = "" if trial.state == "complete" else f" {trial.state},"
    most = f"; best {best.score:.3f}, trial {best.number}" if best is not None and best.score is not None else ""
    usual = " (the default settings)" if trial.number == 1 else ""
    return f"trial {trial.number}{of}{usual}:{state} {score} in {trial.seconds:.0f} s with {settings}{most}"


def final_of(folder: SearchFolder) -> dict[str, Any]:
    """What search.json says of the run with the best settings; empty where there is none yet."""
    return (read_json(folder.summary_file).get("final") or {}) if folder.summary_file.exists() else {}


def write_progress(tried: Trials, folder: SearchFolder, metric: str, final: Mapping[str, Any] | None = None) -> None:
    """Write trials.csv, search.json and the page. final: on the run with the best settings, where that is news."""
    trials = tried.finished
    with TableWriter(folder.table_file) as write:
        write(trial_rows(trials, [each.key for each in tried.space], metric))
    best = tried.best
    states = [each.state for each in trials]
    usual = trials[0].score if trials and trials[0].state == "complete" else None
    content = {
        "schema": 1,
        "data": Path(tried.default.data.file).name,
        "model": tried.default.model.name,
        "method": tried.default.tuning.method,
        "metric": metric,
        "higher_is_better": tried.higher_is_better,
        "counts": {state: states.count(state) for state in ("complete", "pruned", "failed")}
        | {"interrupted": tried.interrupted},
        "seconds": round(sum(each.seconds for each in trials), 1),
        "searched": {each.key: str(each) for each in tried.space},
        "default": {"settings": tried.usual(), "score": usual},
        "best": None if best is None else {"trial": best.number, "settings": best.settings, "score": best.score},
        "importance": tried.importance(),
        "final": (dict(final) if final else final_of(folder)) or None,
        "trials": [asdict(each) for each in trials],
    }
    write_json(folder.summary_file, content)
    write_search_report(folder.path, content)


def trial_rows(trials: Sequence[Trial], keys: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """Rows of trials.csv."""
    return [
        {"trial": each.number, "state": each.state, f"valid_{metric}": each.score, "seconds": each.seconds}
        | {"evaluations": each.evaluations}
        | {key: each.settings.get(key, "") for key in keys}
        | {"reason": each.reason}
        for each in trials
    ]


# --- the run with the best settings


def chosen_in(run: RunFolder) -> int | None:
    """The trial whose settings a finished run has; None where it is not finished, or does not say so yet."""
    metrics = read_json(run.metrics_file) if run.metrics_file.exists() else {}
    return metrics.get("search", {}).get("trial")


def train_best(
    tried: Trials,
    config: RunConfig,
    folder: SearchFolder,
    metric: str,
    say: Say,
    callbacks: Sequence[TrainerCallback],
    command: str,
) -> None:
    """Train the best settings once more, as an ordinary run, unless that was done; say in it how they were chosen."""
    best, run = tried.best, folder.best
    if best is None:
        return
    is_same = final_of(folder).get("trial") == best.number and chosen_in(run) in (None, best.number)
    is_same = is_same and run.config_file.exists()
    if not (is_same and run.metrics_file.exists()):
        write_progress(tried, folder, metric, {"trial": best.number})
        say(f"training the settings of trial {best.number} once more, with baselines and the test part")
        chosen = with_settings(config, best.settings if best.number > 1 else {}, tried.fixed)
        overwrite = run.config_file.exists() and not is_same
        if not run.config_file.exists():
            remove_run(run)  # what a kill has left of an earlier one
        train(chosen, run.path, resume=is_same, overwrite=overwrite, callbacks=callbacks, command=command)
    metrics = read_json(run.metrics_file)
    usual = tried.finished[0].score
    note = {"trials": len(tried.finished), "trial": best.number, "metric": metric, "score": best.score}
    if metrics.get("search") != note | {"default_score": usual}:
        write_json(run.metrics_file, metrics | {"search": note | {"default_score": usual}})
        write_report(run.path)
        write_model_card(run.path)
    splits = {name: {"n": each["n"], **each["metrics"][metric]} for name, each in metrics["splits"].items()}
    write_progress(tried, folder, metric, {"trial": best.number, "run": "best", "splits": splits})
