"""Trials of a search, kept in SQLite by optuna: what was tried, and what to try next.

What is tried next depends on the seed and on the finished trials alone, so a search that was killed goes on as if it
had not been.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from plft.config import RunConfig
from plft.errors import PlftError, missing_extra
from plft.search_space import Dimension, Value, has_effect, value_of

PRUNE_AFTER_TRIALS = 5  # complete ones, before any other is stopped
PRUNE_AFTER_EVALUATIONS = 2  # of a trial, before it may be stopped
LARGEST_GRID = 1000
IMPORTANCE_FROM = 20  # complete trials; with fewer, importances are noise


@dataclass(frozen=True)
class Trial:
    """One finished trial.

    number: from 1, the default settings; interrupted trials are run again and have none.  state: complete, pruned or
    failed.  score: the best on valid.  settings: by `section.key`.  reason: why it failed, or whose result it shares.
    """

    number: int
    state: str
    score: float | None
    settings: dict[str, Value]
    seconds: float
    evaluations: int
    reason: str = ""


def check_optuna() -> None:
    """Refuse a search where optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise missing_extra("optuna", "hpo", "plft tune") from None


class Asked:
    """A trial that is to be run: its settings, and whether it is hopeless after each evaluation."""

    def __init__(self, trial: Any, settings: dict[str, Value], shown: dict[str, Value], higher_is_better: bool) -> None:
        self.trial, self.settings, self.shown = trial, settings, shown
        self.best = max if higher_is_better else min
        self.scores: list[float] = []
        trial.set_user_attr("settings", shown)

    def is_hopeless(self, score: float) -> bool:
        """Note the score of an evaluation; whether the best so far is below the median of trials at this point."""
        self.scores.append(score)
        self.trial.report(score, len(self.scores))
        return bool(self.trial.should_prune())

    @property
    def score(self) -> float:
        """The best score on valid; NaN before the first evaluation."""
        return self.best(self.scores) if self.scores else float("nan")


class Trials:
    """The trials of one search folder.

    file: the SQLite data base, made where it is not there.  default: the settings without a search, all choices made.
    fixed: settings that stay as they are, by `section.key`.
    """

    def __init__(
        self,
        file: Path,
        space: Sequence[Dimension],
        default: RunConfig,
        *,
        seed: int,
        higher_is_better: bool,
        fixed: Collection[str] = (),
    ) -> None:
        self.space, self.default, self.seed, self.higher_is_better = space, default, seed, higher_is_better
        self.fixed = fixed
        self.study = open_study(file, higher_is_better)
        for each in self.study.get_trials(deepcopy=False):
            if each.state.name == "RUNNING":  # by a process that is no more
                self.study.tell(each.number, state=type(each.state).FAIL)

    @property
    def finished(self) -> list[Trial]:
        """All finished trials in their order; those that were interrupted are left out."""
        found = [each for each in self.ended if "seconds" in each.user_attrs]
        return [as_trial(number, each) for number, each in enumerate(found, 1)]

    @property
    def ended(self) -> list[Any]:
        """All trials of optuna's that no longer run; those without "seconds" were interrupted."""
        return [each for each in self.study.get_trials(deepcopy=False) if each.state.is_finished()]

    @property
    def interrupted(self) -> int:
        """How many trials were interrupted, and run again."""
        return len(self.ended) - len(self.finished)

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best score, the earliest of equals."""
        complete = [each for each in self.finished if each.state == "complete"]
        sign = -1 if self.higher_is_better else 1
        return min(complete, key=lambda each: sign * (each.score or 0.0), default=None)

    def ask(self, limit: int | None) -> Asked | None:
        """The next trial: the default settings, then what the sampler draws; None where all there is was tried.

        limit: number of trials in all.  Choices that are few enough are all tried, in order.
        """
        from optuna.samplers import TPESampler

        done = self.finished
        planned = self.planned(done, limit)
        if planned == {} and done:
            return None
        waiting = any(each.state.name == "WAITING" for each in self.study.get_trials(deepcopy=False))
        if planned is not None and not waiting:
            self.study.enqueue_trial(planned)
        seed = np.random.SeedSequence([self.seed, len(done)]).generate_state(1)[0]
        self.study.sampler = TPESampler(seed=int(seed))
        trial = self.study.ask()
        drawn = self.draw(trial, planned if not done else None)
        shown = drawn if done else self.usual()
        return Asked(trial, drawn if done else {}, shown, self.higher_is_better)

    def planned(self, done: Sequence[Trial], limit: int | None) -> dict[str, Value] | None:
        """What must be tried next, or None where the sampler is free; {} where nothing is left."""
        if not done:
            usual = self.usual()
            return {
                each.key: usual[each.key] for each in self.space if each.key in usual and each.holds(usual[each.key])
            }
        grid = self.grid(limit)
        if grid is None:
            return None
        tried = [each.settings for each in done]
        return next((each for each in grid if each not in tried), {})

    def usual(self) -> dict[str, Value]:
        """The default settings of what is searched."""
        model, tuning = self.default.model, self.default.tuning
        keys = [each.key for each in self.space if has_effect(each.key, model.head, tuning.method)]
        return {key: value_of(self.default, key) for key in keys}

    def grid(self, limit: int | None) -> list[dict[str, Value]] | None:
        """All combinations, where every value can be listed and few enough; settings without effect are left out."""
        values = [each.every for each in self.space]
        listed = [each for each in values if each is not None]
        if len(listed) < len(values) or prod(map(len, listed)) > (LARGEST_GRID if limit is None else limit):
            return None
        rows = [dict(zip((each.key for each in self.space), row, strict=True)) for row in product(*listed)]
        kept = [{key: value for key, value in row.items() if self.matters(key, row)} for row in rows]
        return [row for at, row in enumerate(kept) if row not in kept[:at]]

    def matters(self, key: str, settings: dict[str, Value]) -> bool:
        """Whether a setting has an effect beside the others."""
        head = settings.get("model.head", self.default.model.head)
        method = settings.get("tuning.method", self.default.tuning.method)
        return has_effect(key, str(head), str(method))

    def draw(self, trial: Any, only: dict[str, Value] | None) -> dict[str, Value]:
        """Values of what is searched, as far as they have an effect beside those drawn before. only: these keys."""
        drawn: dict[str, Value] = {}
        for each in self.space:
            if self.matters(each.key, drawn) and (only is None or each.key in only):
                drawn[each.key] = drawn_from(trial, each)
        return drawn

    def same_as(self, settings: dict[str, Value]) -> Trial | None:
        """The finished trial with the same settings."""
        return next((each for each in self.finished if each.settings == settings), None)

    def tell(self, asked: Asked, state: str, seconds: float, score: float | None = None, reason: str = "") -> None:
        """Write down how a trial ended. state: complete, pruned or failed."""
        from optuna.trial import TrialState

        attributes = {"evaluations": len(asked.scores), "score": score, "reason": reason, "seconds": round(seconds, 2)}
        for name, value in attributes.items():
            asked.trial.set_user_attr(name, value)
        if state == "complete":
            self.study.tell(asked.trial, score)
        else:
            self.study.tell(asked.trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    def give_up(self, asked: Asked) -> None:
        """Count a trial as interrupted: it is run again when the search goes on."""
        from optuna.trial import TrialState

        self.study.tell(asked.trial, state=TrialState.FAIL)

    def importance(self) -> dict[str, float]:
        """Share of each setting in what tells the best quarter of trials from the others; empty with few trials.

        PED-ANOVA (Watanabe et al. 2023), which needs nothing but the trials.
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        scores = [each.score for each in self.finished if each.state == "complete"]
        if len(scores) < IMPORTANCE_FROM or len(set(scores)) < 2 or len(self.space) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
            found = get_param_importances(self.study, evaluator=evaluator)
        return {key: round(float(value), 4) for key, value in found.items()}


def open_study(file: Path, higher_is_better: bool) -> Any:
    """The optuna study of a data base; a PlftError where the file is no such thing."""
    import optuna
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # the median rule needs no guess of how long a trial lasts, and runs have too few evaluations for halving
    pruner = optuna.pruners.MedianPruner(PRUNE_AFTER_TRIALS, PRUNE_AFTER_EVALUATIONS)
    try:
        return optuna.create_study(
            storage=optuna.storages.RDBStorage(URL.create("sqlite", database=str(file.resolve())).render_as_string()),
            study_name="plft",
            direction="maximize" if higher_is_better else "minimize",
            pruner=pruner,
            load_if_exists=True,
        )
    except (SQLAlchemyError, sqlite3.Error, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise PlftError(f"{file} cannot be read ({reason}). Delete its folder, or choose another --out.") from None


def drawn_from(trial: Any, dimension: Dimension) -> Value:
    """Draw one value."""
    if dimension.kind == "choice":
        return trial.suggest_categorical(dimension.key, dimension.values)
    low, high = dimension.values
    draw = trial.suggest_int if "integer" in dimension.kind else trial.suggest_float
    return draw(dimension.key, low, high, log="log" in dimension.kind)


def as_trial(number: int, frozen: Any) -> Trial:
    """A finished trial of optuna's as one of ours."""
    known, state = frozen.user_attrs, {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}[frozen.state.name]
    return Trial(
        number=number,
        state=state,
        score=known.get("score"),
        settings=known.get("settings", {}),
        seconds=known.get("seconds", 0.0),
        evaluations=known.get("evaluations", 0),
        reason=known.get("reason", ""),
    )
