"""What a run will take, measured on a few of its batches; nothing is written."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, set_seed

from plft.batching import INFERENCE_BUDGET, sorted_batches
from plft.config import RunConfig
from plft.dataset import SequenceDataset
from plft.keeping import epochs, kept_features
from plft.model import run_batches
from plft.pipeline import build, make_trainer
from plft.preparation import Prepared, Say, prepare, quiet
from plft.runfolder import RunFolder
from plft.training import SequenceTaskTrainer, choose_precision, training_arguments
from plft.tuning import count_parameters

TRIAL_STEPS = 8  # of training that are tried, the largest batch among them


class _Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def plan(config: RunConfig, head: nn.Module | None = None, say: Say = quiet) -> dict[str, Any]:
    """Parameters, steps, and estimates of time and peak memory of a run, from a trial of some seconds.

    Returns trainable, parameters, precision, device, batches (per epoch), steps, seconds (of the whole run if it is not
    stopped early, without baselines), baselines (seconds they may take at most), memory (peak, bytes: of the GPU where
    there is one, else of the process).
    """
    started = time.monotonic()
    set_seed(config.training.seed)
    prepared = prepare(config, say, custom_head=head is not None)
    config = prepared.config
    precision, _ = choose_precision(config.training.precision, prepared.checkpoint.family)
    model: Any = build(prepared, head)
    trainable, total = count_parameters(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(prepared, model, RunFolder(Path(folder)), precision, ())
        batches = len(trainer.get_train_dataloader())
        passes = epochs(trainer, config.training)
        steps = math.ceil(passes * batches / config.training.accumulation)
        setting_up = time.monotonic() - started
        costs = trial(prepared, model, trainer, Path(folder), precision)
    tokens = {name: int(each.lengths.sum()) for name, each in prepared.datasets.items()}
    judged = tokens["valid"] if prepared.valid is not None else 0
    seconds = setting_up + costs["once"] * (tokens["train"] + judged)
    seconds += passes * (tokens["train"] * costs["train"] + judged * costs["evaluate"])
    compared = min(1.0, config.calibration.neighbours / len(prepared.parts["train"])) * tokens["train"]
    seconds += costs["predict"] * (compared + sum(count for name, count in tokens.items() if name != "train"))
    return {
        "trainable": trainable,
        "parameters": total,
        "precision": precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "batches": batches,
        "steps": steps,
        "seconds": seconds,
        "baselines": 60 * config.baselines.minutes if config.baselines.run else 0,
        "memory": peak_memory(),
    }


def trial(
    prepared: Prepared, model: Any, trainer: SequenceTaskTrainer, folder: Path, precision: str
) -> dict[str, float]:
    """Seconds per token of: work done once, training, evaluation, and the prediction at the end.

    The largest batch and others spread over an epoch are trained on, twice.
    """
    settings = prepared.config.training
    if epochs(trainer, settings) < 2:  # as then nothing is kept
        settings = settings.model_copy(update={"features": "off"})
    sampler: Any = trainer.get_train_dataloader().batch_sampler
    epoch = sorted(sampler.plan(0), key=lambda batch: -sum(trainer.train_dataset.lengths[batch]))
    chosen = [epoch[at] for at in np.linspace(0, len(epoch) - 1, min(TRIAL_STEPS, len(epoch))).round().astype(int)]
    few = subset(trainer.train_dataset, [index for batch in chosen for index in batch])
    once_per_batch: dict[str, Any] = {"max_steps": None, "accumulation": 1, "keep_features": False, "report_to": []}
    tried = settings.model_copy(update=once_per_batch | {"epochs": max(2, math.ceil(4 / len(chosen)))})
    arguments = training_arguments(
        tried, folder, precision=precision, learning_rate=0.0, metric=str(settings.metric), can_evaluate=False
    )
    arguments.save_strategy = "no"
    clock = _Clock()
    trial_trainer = SequenceTaskTrainer(
        model, arguments, train_dataset=few, token_budget=trainer.token_budget, callbacks=[clock]
    )
    begun = time.perf_counter()
    with kept_features(trial_trainer, tried, quiet):
        once = time.perf_counter() - begun if few.features is not None else 0.0
        trial_trainer.train()
        training = (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1) * len(clock.ends)
        evaluating = seconds_of(lambda: trial_trainer.evaluate(few))
    batches = sorted_batches(few.lengths, INFERENCE_BUDGET)
    predicting = seconds_of(lambda: deque(run_batches(model, few, batches), maxlen=0))
    tokens = int(few.lengths.sum())
    seen = tokens * tried.epochs
    return {
        "once": once / tokens,
        "train": training / seen,
        "evaluate": evaluating / tokens,
        "predict": predicting / tokens,
    }


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def subset(dataset: SequenceDataset, indices: list[int]) -> SequenceDataset:
    """Some examples of a dataset, as a dataset."""
    return SequenceDataset(
        [dataset.examples[index] for index in indices],
        labels=dataset.labels,
        pad_token_id=dataset.pad_token_id,
        is_residue_task=dataset.is_residue_task,
    )


def peak_memory() -> int:
    """Most memory used so far, in bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
