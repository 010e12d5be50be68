"""How long pretraining lasts, and the learning rate along the way: warm-up, stable, decay, tied to the budget.

A budget in minutes becomes a number of steps, which is estimated anew while training runs; whatever was decided is kept
in the checkpoint, so that a resumed run goes on from there.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SETTLE = 20  # steps before the first estimate: the first ones are slower
WINDOW = 64  # steps that the speed is measured over
LOOKS = 10  # evaluations on held-out sequences along the way
LOOK = 60_000  # tokens read in each of them, at most
UNKNOWN = 10_000_000  # steps, as long as a budget in minutes has not been estimated


class Budget(TrainerCallback, ExportableState):
    """Decides when to warm up, decay, evaluate, save and stop.

    steps: the budget in optimiser steps, or None.  minutes: the budget in wall-clock minutes, counted from `started`
    (a `time.monotonic()`), with everything before and after training in it.  reserve: seconds kept for what comes
    after the last step.  guess: steps that a budget in minutes is believed to give, before any was made.
    counted: tokens read, those that could have been predicted, and those that were; the trainer counts them here.
    """

    def __init__(
        self,
        steps: int | None = None,
        minutes: float | None = None,
        warmup_share: float = 0.05,
        decay_share: float = 0.3,
        save_minutes: float = 5,
        save_steps: int | None = None,
        started: float | None = None,
        reserve: float = 5.0,
        guess: int | None = None,
    ) -> None:
        self.steps, self.minutes = steps, minutes
        self.warmup_share, self.decay_share = warmup_share, decay_share
        self.save_minutes, self.save_steps = save_minutes, save_steps
        self.total = steps or guess or UNKNOWN
        self.warmup, self.decay_from = self._parts(self.total)
        self.used = 0.0
        self.next_look = 1.0 / LOOKS
        self.reserve = reserve
        self.counted = {"tokens": 0, "eligible": 0, "predicted": 0}
        self.started = time.monotonic() if started is None else started
        self.saved_at = self.started
        self.step_ends: list[float] = []
        self.left_at_begin = 0.0

    def _parts(self, total: int) -> tuple[int, int]:
        return max(1, round(self.warmup_share * total)), round((1 - self.decay_share) * total)

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        if step < self.decay_from:
            return rise
        return rise * max(0.0, (self.total - step) / max(1, self.total - self.decay_from))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds used, those before an interruption included."""
        return self.used + time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds left for steps, of a budget in minutes."""
        return 60 * (self.minutes or 0) - self.reserve - self.seconds

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        names = ("total", "warmup", "decay_from", "next_look", "reserve", "counted")
        return {
            "args": {
                name: getattr(self, name)
                for name in ("steps", "minutes", "warmup_share", "decay_share", "save_minutes", "save_steps")
            },
            "attributes": {name: getattr(self, name) for name in names} | {"used": self.seconds},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take over the number of steps."""
        state.max_steps = self.total
        self.saved_at = time.monotonic()
        self.step_ends = [self.saved_at]
        self.left_at_begin = self.left

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Estimate the number of steps anew, and say what is due."""
        self.step_ends = [*self.step_ends[-WINDOW:], time.monotonic()]
        if self.minutes is not None:
            self._estimate(state.global_step)
            state.max_steps = self.total
        is_due = self._save_is_due(state.global_step)
        if dist.is_available() and dist.is_initialized():
            is_due = self._agree(is_due)
            state.max_steps = self.total
        control.should_training_stop = state.global_step >= self.total
        if state.global_step >= self.next_look * self.total and not control.should_training_stop:
            control.should_evaluate = control.should_log = True
            self.next_look = (math.floor(LOOKS * state.global_step / self.total) + 1) / LOOKS
        if is_due or control.should_training_stop:
            control.should_save = control.should_log = True
            self.saved_at = time.monotonic()

    def _agree(self, is_due: bool) -> bool:
        """Take over what the first process decided by its clock, so that all save and stop at the same step."""
        decided: list[Any] = [self.total, self.warmup, self.decay_from, is_due]
        dist.broadcast_object_list(decided, src=0)
        self.total, self.warmup, self.decay_from, is_due = decided
        return is_due

    def _save_is_due(self, step: int) -> bool:
        if self.save_steps is not None:
            return step % self.save_steps == 0
        return time.monotonic() - self.saved_at > 60 * self.save_minutes

    def _estimate(self, step: int) -> None:
        """Fit the steps that are left into the time that is left; evaluations do not count as steps' time.

        Not before so many steps after a start, or a fifth of the time that was left then: after an interruption too,
        the first step is slow, and one estimate that is far too low would have the learning rate fall for good.
        """
        left, gaps = self.left, [b - a for a, b in pairwise(self.step_ends)]
        is_early = len(gaps) < SETTLE and left > 0.8 * self.left_at_begin
        if left > 0 and is_early and step < self.total:
            return
        gaps = sorted(gaps[1:] if 1 < len(gaps) < WINDOW else gaps)
        middle = gaps[len(gaps) // 8 : max(len(gaps) // 8 + 1, len(gaps) * 7 // 8)]
        total = step + (int(left / (sum(middle) / len(middle))) if left > 0 else 0)
        if abs(total - self.total) > 0.01 * (self.total - step) or total <= step:
            self.total = total
            if step < self.decay_from or self.decay_from > total:
                self.warmup, self.decay_from = self._parts(total)
                self.decay_from = max(self.decay_from, step)
            elif step < self.warmup:
                self.warmup = self._parts(total)[0]
