"""Training progress on the console: a bar for the steps and one line per evaluation."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress
from transformers import TrainerCallback

from plft import console
from plft.budget import LOOK


class TrainingProgress(TrainerCallback):
    """Moves a progress bar with the optimiser steps and prints a line per evaluation."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar at the step training goes on from."""
        self.task = self.bar.add_task("steps", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance by one step."""
        self.bar.update(self.task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Print the line of this evaluation."""
        metric = (args.metric_for_best_model or "eval_loss").removeprefix("eval_")
        console.say(console.evaluation_line(metrics, metric))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away and say how training ended."""
        self.bar.remove_task(self.task)
        if state.best_global_step:
            console.say(f"{state.global_step} steps; the best checkpoint is that of step {state.best_global_step}")


class TrialProgress(TrainingProgress):
    """Only the bar: what a trial reached is one line when it is over."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Print nothing."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.bar.remove_task(self.task)


class PretrainingProgress(TrainingProgress):
    """The same for language models: the number of steps may change, and what counts is held-out perplexity."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance by one step; a budget in minutes changes how many there are."""
        self.bar.update(self.task, completed=state.global_step, total=state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Print the line of this evaluation."""
        if "eval_perplexity" in metrics:
            value = f"{metrics['eval_perplexity']:.2f}"
            console.say(f"step {state.global_step:,}: held-out perplexity {value}, of at most {LOOK:,} tokens")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.bar.remove_task(self.task)
