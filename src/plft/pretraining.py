"""The transformers Trainer, set up for language models: packed crops in an endless stream, exactly resumable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from plft.batching import pack_by_length
from plft.budget import UNKNOWN, Budget
from plft.config import LanguageModelConfig
from plft.corpus import Crops
from plft.errors import PlftError
from plft.objectives import NOTHING, Corrupted, LanguageModelTask, Objective, Symbols, pack, pad, perplexity
from plft.optimizers import MuonWithAdamW, matrices
from plft.training import has_accelerator, readable_checkpoint

AHEAD = 512  # crops looked up together
POOL = 16  # padded batches are cut from so many batches' worth of crops, sorted by length


@dataclass(frozen=True)
class Recipe:
    """How crops become batches.

    objective, symbols, rate: what is predicted.  budget: tokens per batch.  pad_id: None where batches are packed.
    measures: leaves out of the targets what a causal model learns but is not judged by, as what ends a sequence.
    """

    objective: Objective
    symbols: Symbols
    rate: float
    budget: int
    pad_id: int | None = None
    measures: bool = False

    def corrupt(self, tokens: np.ndarray, draw: int) -> Corrupted:
        """One crop, corrupted the way its number says: the same in every run and on every machine."""
        random = np.random.Generator(np.random.Philox(key=draw))
        corrupted = self.objective.corrupt(tokens, self.symbols, self.rate, random)
        if not self.measures:
            return corrupted
        is_special = (corrupted.targets != NOTHING) & self.symbols.is_special[np.maximum(corrupted.targets, 0)]
        return replace(corrupted, targets=np.where(is_special, NOTHING, corrupted.targets))

    def batch(self, crops: Crops, rows: np.ndarray) -> dict[str, Any]:
        """Read and corrupt crops, and lay them into one batch."""
        tokens = [crops.read(row) for row in rows]
        corrupted = [self.corrupt(each, int(row[3])) for each, row in zip(tokens, rows, strict=True)]
        batch = pack(corrupted) if self.pad_id is None else pad(corrupted, self.pad_id)
        return batch | {"eligible": sum(each.eligible for each in corrupted), "tokens": sum(map(len, tokens))}

    def cut(self, crops: Crops, last: int | None = None) -> Iterator[np.ndarray]:
        """Crops up to the last (or for ever), in order, as the rows of `Crops.table` that make up each batch."""
        first, rest = 0, np.empty((0, 4), np.int64)
        ahead = AHEAD if self.pad_id is None else max(AHEAD, POOL * self.budget // max(crops.room, 1))
        while last is None or first < last:
            stop = first + ahead if last is None else min(first + ahead, last)
            table = np.concatenate([rest, crops.table(np.arange(first, stop))])
            batches, rest = self._cut(table, crops.sizes(table), is_last=last is not None and stop == last)
            yield from batches
            first = stop

    def _cut(self, table: np.ndarray, sizes: np.ndarray, is_last: bool) -> tuple[list[np.ndarray], np.ndarray]:
        if self.pad_id is not None:
            order = np.argsort(-sizes, kind="stable")
            batches = [table[batch] for batch in pack_by_length(order, sizes, self.budget)]
            turn = np.random.default_rng(table[0, 3]).permutation(len(batches))
            return [batches[number] for number in turn], table[:0]
        ends, total = [0], 0
        for index, size in enumerate(sizes.tolist()):
            if total + size > self.budget and index > ends[-1]:
                ends.append(index)
                total = 0
            total += size
        batches = [table[a:b] for a, b in pairwise(ends)]
        return ([*batches, table[ends[-1] :]], table[:0]) if is_last else (batches, table[ends[-1] :])


class Stream(IterableDataset):
    """An endless stream of batches; process `rank` of `world` takes every world-th, beginning at batch `start`."""

    def __init__(self, crops: Crops, recipe: Recipe, rank: int = 0, world: int = 1) -> None:
        self.crops, self.recipe = crops, recipe
        self.rank, self.world = rank, world
        self.start = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, rows in enumerate(self.recipe.cut(self.crops)):
            if number >= self.start * self.world and number % self.world == self.rank:
                yield self.recipe.batch(self.crops, rows)


def mean_loss(task: LanguageModelTask, batches: Iterator[dict[str, Any]], autocast: Any) -> tuple[float, int]:
    """Mean -log p in nats over the predicted tokens of batches (on the model's device), and how many there were.

    Several processes have batches of their own, and get the mean over all of them.
    """
    was_training = task.training
    task.eval()
    total, count = 0.0, 0
    with torch.no_grad(), autocast():
        for batch in batches:
            total += float(task(**batch))
            count += int((batch["labels"] != NOTHING).sum())
    task.train(was_training)
    if dist.is_available() and dist.is_initialized():
        sums = torch.tensor([total, count], dtype=torch.float64, device=next(task.parameters()).device)
        dist.all_reduce(sums)
        total, count = float(sums[0]), int(sums[1])
    return (total / count if count else math.nan), count


class LanguageModelTrainer(Trainer):
    """The Trainer for a `LanguageModelTask`: loss summed over predicted tokens and divided by their number per step.

    stream: training batches.  held_out: makes the batches to evaluate on, on the model's device.
    budget: the `Budget` that ends training and shapes the learning rate.  optimizer: muon or adamw.
    """

    def __init__(
        self,
        task: LanguageModelTask,
        args: TrainingArguments,
        stream: Stream,
        held_out: Callable[[], Iterator[dict[str, Any]]],
        budget: Budget,
        optimizer: str,
    ) -> None:
        args._n_gpu = min(args.n_gpu, 1)
        self.stream, self.held_out, self.uses_muon = stream, held_out, optimizer == "muon"
        self.started = budget.started
        self.journal: Any = None
        super().__init__(model=task, args=args, train_dataset=stream)
        self.loss_is_scaled_for_ga = True
        self.add_callback(budget)
        self.remove_callback(PrinterCallback)

    @property
    def budget(self) -> Budget:
        """The budget; resuming replaces the object."""
        return next(each for each in self.callback_handler.callbacks if isinstance(each, Budget))

    def go_on(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint where there is one; one at which training was over only gives its weights back."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)) if checkpoint is not None else None
        if checkpoint is None or state is None or state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
            return
        self.state = state
        self._load_callback_state()
        self.budget.started = self.started
        self._load_from_checkpoint(str(checkpoint))

    @property
    def tokens_read(self) -> int:
        """Tokens that all processes have learned from, those before an interruption included."""
        return self.budget.counted["tokens"]

    @property
    def predicted_share(self) -> float:
        """Share of the tokens that are not special which was predicted."""
        return self.budget.counted["predicted"] / max(1, self.budget.counted["eligible"])

    def get_train_dataloader(self) -> DataLoader:
        """The stream, from where the steps taken so far have left it."""
        own = torch.Generator()  # by default it draws from the global one, and shifts dropout after an interruption
        return DataLoader(self.stream, batch_size=None, generator=own)

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: Any) -> Any:
        self.stream.start = self.state.global_step * self.args.gradient_accumulation_steps
        self.budget.started = self.started
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """AdamW, with Muon for the matrices where it is wanted."""
        if self.optimizer is None:  # type: ignore[has-type]
            adamw = super().create_optimizer(model)
            found = matrices(self.accelerator.unwrap_model(self.model).plain) if self.uses_muon else []
            precision = torch.bfloat16 if self.args.bf16 else torch.float32
            self.optimizer: Any = MuonWithAdamW(adamw, found, precision) if found else adamw
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The budget's learning rate; it may still change its mind, so it is asked anew at every step."""
        if self.lr_scheduler is None:  # type: ignore[has-type]
            self.lr_scheduler: Any = LambdaLR(optimizer or self.optimizer, lambda step: self.budget.factor(step))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        here = [
            sum(int((batch["labels"] != NOTHING).sum()) for batch in batch_samples),
            *(sum(batch[name] for batch in batch_samples) for name in ("tokens", "eligible")),
        ]
        everywhere = self.accelerator.reduce(torch.tensor(here, device=device), reduction="sum")
        for name, count in zip(("predicted", "tokens", "eligible"), everywhere.tolist(), strict=True):
            self.budget.counted[name] += count
        return everywhere[0].clamp(min=1)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This batch's share of the step's mean loss; DDP averages over processes, hence the factor."""
        return model(**inputs) * self.args.world_size / num_items_in_batch

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss and perplexity on held-out sequences."""
        task = self.accelerator.unwrap_model(self.model)
        loss, count = mean_loss(task, self.held_out(), self.compute_loss_context_manager)
        metrics = (
            {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_perplexity": perplexity(loss)} if count else {}
        )
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As ever, unless training has diverged, which is not worth a checkpoint."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise PlftError(
                f"The loss is no longer a number at step {self.state.global_step}: training has diverged. "
                "Begin again with a lower --learning-rate."
            )
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.accelerator.unwrap_model(self.model), str(folder / SAFE_WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with readable_checkpoint(Path(resume_from_checkpoint)):
            load_model(self.model, str(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable_checkpoint(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)


class Journal(TrainerCallback):
    """Writes history.jsonl: step, tokens read, loss, perplexity, learning rate, speed; and the held-out perplexity."""

    def __init__(self, file: Path, trainer: LanguageModelTrainer) -> None:
        self.file, self.trainer = file, trainer
        self.last = (time.monotonic(), 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what earlier sessions logged up to this step; steps after it are done again."""
        if state.is_world_process_zero:
            lines = self.file.read_text().splitlines(keepends=True) if self.file.is_file() and state.global_step else []
            whole = [line for line in lines if line.endswith("\n")]  # a crash may have torn the last one
            self.file.write_text("".join(line for line in whole if json.loads(line)["step"] <= state.global_step))
        self.last = (time.monotonic(), self.trainer.tokens_read)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append one row."""
        logs = logs or {}
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        row: dict[str, Any] = {"step": state.global_step, "seconds": round(self.trainer.budget.seconds, 1)}
        if "loss" in logs:
            now, tokens = time.monotonic(), self.trainer.tokens_read
            speed = (tokens - self.last[1]) / (now - self.last[0])
            self.last = (now, tokens)
            row |= {
                "loss": logs["loss"],
                "perplexity": perplexity(logs["loss"]),
                "learning_rate": logs["learning_rate"],
                "tokens": tokens,
                "predicted_share": self.trainer.predicted_share,
                "tokens_per_second": round(speed, 1),
            }
        if "eval_loss" in logs:
            row |= {"tokens": self.trainer.tokens_read, "held_out_loss": logs["eval_loss"]}
            row["held_out_perplexity"] = logs["eval_perplexity"]
        self.append(row)

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        with self.file.open("a") as handle:
            handle.write(json.dumps(row) + "\n")

    def close(self, perplexity: float | None) -> None:
        """Add what the finished model reached on all held-out sequences, unless an earlier session did."""
        state, lines = self.trainer.state, self.file.read_text().splitlines() if self.file.is_file() else []
        if perplexity is not None and not any(json.loads(line).get("is_final") for line in lines):
            row = {"step": state.global_step, "seconds": round(self.trainer.budget.seconds, 1)}
            row |= {"tokens": self.trainer.tokens_read, "held_out_perplexity": perplexity, "is_final": True}
            self.append(row)


def arguments(
    config: LanguageModelConfig,
    folder: Path,
    *,
    steps: int | None,
    learning_rate: float,
    accumulation: int,
    precision: str,
) -> TrainingArguments:
    """TrainingArguments of a pretraining run; the `Budget` decides what they leave open."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps or UNKNOWN,
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=0.98,  # as in the pretraining of ESM-2 (Lin et al. 2023)
        max_grad_norm=config.max_grad_norm,
        gradient_accumulation_steps=accumulation,
        activation_checkpointing=config.gradient_checkpointing,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        seed=config.seed,
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=20,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is no number ends training
        ignore_data_skip=True,  # the stream knows where it is
        restore_callback_states_from_checkpoint=True,
        report_to=config.report_to or "none",
        use_cpu=not has_accelerator(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
