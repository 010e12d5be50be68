"""The transformers Trainer, set up for packed budgets, exact accumulation and resumable runs."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, unwrap_peft_model
from transformers.utils import SAFE_WEIGHTS_NAME

from plft.batching import Collator, TrainingBatches, default_budget, evaluation_budget, share_of, sorted_batches
from plft.config import TrainingConfig
from plft.dataset import SequenceDataset
from plft.errors import PlftError, look_up
from plft.families import Family
from plft.labels import TaskType
from plft.memory import Pieces, activation_bytes, pieces_that_fit
from plft.metrics import METRICS, point
from plft.model import (
    is_wrapped_by_peft,
    keep_outputs,
    load_trained_state,
    run_batches,
    train_the_head,
    trained_state,
)
from plft.tasks import NO_CLASS, TASKS, target_weights

TRAINER_OPTIONS = ("compute_metrics", "optimizers", "optimizer_cls_and_kwargs")
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "output_dir": "trainer",
    "num_train_epochs": 10,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "report_to": "none",
    "disable_tqdm": True,
}


class EpochLoader(DataLoader):
    """A DataLoader that passes `set_epoch` on to its batch sampler, which the Trainer calls before each epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Tell the batch sampler which epoch's mixture to draw."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class SequenceTaskTrainer(Trainer):
    """The transformers Trainer for sequence and residue tasks.

    model: a `PLMTaskModel`, or what `peft.get_peft_model` made of one (its head trains and is saved also then).
    train_dataset, eval_dataset, test_dataset: `SequenceDataset`s.  args: TrainingArguments; without them they are made
    from the fields in `more`, with the defaults in `DEFAULT_ARGUMENTS`.  Their per_device_train_batch_size counts
    sequences of average length; token_budget: tokens per batch instead.  compute_metrics, optimizers and
    optimizer_cls_and_kwargs in `more` are the Trainer's own; compute_metrics gets probabilities, or values in the
    labels' units, one array per sequence, and adds to the metrics there are.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        *,
        train_dataset: SequenceDataset,
        eval_dataset: SequenceDataset | None = None,
        test_dataset: SequenceDataset | None = None,
        tokenizer: Any = None,
        token_budget: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **more: Any,
    ) -> None:
        options = {name: more.pop(name) for name in TRAINER_OPTIONS if name in more}
        args = arguments_from(args, more, can_evaluate=eval_dataset is not None)
        train_the_head(model)
        args._n_gpu = min(args.n_gpu, 1)  # one process uses one GPU: DataParallel is slower, and sums losses wrongly
        self.token_budget = token_budget or int(args.per_device_train_batch_size * float(train_dataset.lengths.mean()))
        self.test_dataset = test_dataset
        self.labels = train_dataset.labels
        self.task_model: Any = unwrap_peft_model(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=Collator(train_dataset),
            processing_class=tokenizer,
            callbacks=callbacks,
            **options,
        )
        self.remove_callback(PrinterCallback)
        longest, prefix = int(train_dataset.lengths.max()), getattr(self.task_model, "prefix", None)
        shape = (max(self.token_budget, longest), longest, self.precision, prefix.blocks if prefix else 0)
        needed = activation_bytes(self.model.config, *shape)  # type: ignore[union-attr]
        self.pieces = Pieces(pieces_that_fit(needed) if self.args.world_size == 1 else 1)  # several stay in step

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """As the Trainer's; a checkpoint at which training was over already only gives its best weights back."""
        if isinstance(resume_from_checkpoint, str) and self.was_over(Path(resume_from_checkpoint)):
            self.state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            best = self.state.best_global_step or self.state.global_step
            return self.put_back(str(Path(resume_from_checkpoint).with_name(f"checkpoint-{best}")))
        return super().train(resume_from_checkpoint, **options)

    def was_over(self, checkpoint: Path) -> bool:
        """Whether training had ended when this checkpoint was written, by its steps or by early stopping."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        stopping = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        kept: Any = state.stateful_callbacks.get("EarlyStoppingCallback", {})
        bad_evaluations = kept.get("attributes", {}).get("early_stopping_patience_counter", 0)
        stopped = any(bad_evaluations >= each.early_stopping_patience for each in stopping)
        return state.global_step >= max_steps or stopped

    def get_train_dataloader(self) -> DataLoader:
        """Batches of similar length within the token budget, a new mixture every epoch, every sequence once."""
        world = self.args.world_size
        sampler = TrainingBatches(
            self.train_dataset.lengths,
            self.token_budget,
            self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            multiple_of=world * self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            world=world,
        )
        if sampler.count < world:
            raise PlftError(f"{world} processes but only {sampler.count} training sequences: start fewer processes.")
        return EpochLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """The weight of all known targets of one optimiser step, over accumulation and processes."""
        total = sum(self.weight_of(batch) for batch in batch_samples)
        return self.accelerator.reduce(torch.tensor(total, device=device), reduction="sum")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As the Trainer's; where memory runs out, the step begins anew in smaller pieces, which add up to the same."""
        step = super().training_step

        def loss_of(batch: dict[str, Any]) -> Tensor:
            return step(model, batch, num_items_in_batch)  # type: ignore[arg-type]

        may_repeat = self.args.world_size == 1  # others would wait for this process's gradients
        return self.pieces.run(self.state.global_step, inputs, loss_of, model.zero_grad if may_repeat else None)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: counting walks through all weights at every step, and takes frozen ones for run."""
        return 0

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        part = self.task_model.trained_part  # a wrapper may have weights of its own, such as peft's prompts
        return super()._clip_grad_norm(model if part is self.task_model else part)

    def weight_of(self, batch: dict[str, Any]) -> float:
        """Sum of the weights of a batch's known targets, class weights included."""
        weights = self.task_model.class_weights
        weights = None if weights is None else weights.to(batch["labels"].device)
        return float(target_weights(batch["labels"], batch["sequence_weights"], weights).sum())

    def evaluate(
        self,
        eval_dataset: SequenceDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        split: str | None = None,
    ) -> dict[str, float]:
        """Loss and metrics of a dataset. split: "train", "validation" or "test" instead of a dataset."""
        if split is not None:
            sets = {"train": self.train_dataset, "validation": self.eval_dataset, "test": self.test_dataset}
            eval_dataset = look_up("split", split, {name: each for name, each in sets.items() if each is not None})
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """A loader that only carries its dataset: `evaluation_loop` makes the batches."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(dataset, batch_size=1, collate_fn=Collator(dataset))

    get_test_dataloader = get_eval_dataloader

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run over all batches (shared out between processes) and score per record, windows stitched."""
        dataset: SequenceDataset = dataloader.dataset  # type: ignore[assignment]
        labels = dataset.labels
        if labels is None:
            raise PlftError("These sequences have no labels to be scored against. Use Predictor.predict for them.")
        batches = sorted_batches(dataset.lengths, evaluation_budget(self.token_budget))
        mine, n_counted = share_of(batches, self.args.process_index, self.args.world_size)
        outputs: list[Any] = [None] * len(dataset)
        loss = weight = 0.0
        results = run_batches(self.evaluation_model(), dataset, mine, self.precision)
        for turn, (indices, inputs, result) in enumerate(results):
            if turn >= n_counted and self.args.world_size > 1:
                continue
            keep_outputs(outputs, indices, result.logits, dataset, labels)
            if "labels" in inputs:
                batch_weight = self.weight_of(inputs)
                loss += float(result.loss) * batch_weight
                weight += batch_weight
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        outputs, loss, weight = self.from_all_processes(outputs, loss, weight)
        per_record = dataset.per_record(outputs)
        targets = dataset.targets() if dataset.has_labels else None
        metrics = point(labels.task, per_record, targets, labels.classes) if targets is not None else {}
        metrics["loss"] = loss / weight if weight else math.nan
        if self.compute_metrics is not None and targets is not None:
            metrics |= self.compute_metrics(EvalPrediction(per_record, targets))  # type: ignore[arg-type]
        best = (self.args.metric_for_best_model or "").removeprefix("eval_") if self.is_in_train else ""
        if best in metrics:
            metrics[best] = or_worst(best, float(metrics[best]))
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in metrics.items()}
        return EvalLoopOutput(predictions=per_record, label_ids=targets, metrics=metrics, num_samples=len(per_record))

    def evaluation_model(self) -> nn.Module:
        """The model to evaluate with: sharded models must be called through their wrapper, others need none."""
        return self.model_wrapped if self.is_fsdp_enabled else self.model

    @property
    def precision(self) -> str:
        """The name of the mixed precision that the arguments ask for."""
        return "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"

    def from_all_processes(self, outputs: list[Any], loss: float, weight: float) -> tuple[list[Any], float, float]:
        """Join what each process computed; a single process gets its own back."""
        if self.args.world_size == 1:
            return outputs, loss, weight
        shares: list[Any] = [None] * self.args.world_size
        dist.all_gather_object(shares, (outputs, loss, weight))
        joined = [
            next(each for each in candidates if each is not None)
            for candidates in zip(*(s[0] for s in shares), strict=True)
        ]
        return joined, sum(share[1] for share in shares), sum(share[2] for share in shares)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights; of a model in peft's wrapper also the folder that peft reads, head included."""
        super().save_model(output_dir, _internal_call)
        whole = self.accelerator.unwrap_model(self.model)
        if is_wrapped_by_peft(whole) and self.args.should_save and not (_internal_call or self.is_fsdp_enabled):
            whole.save_pretrained(output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what training changed, as safetensors; the frozen rest is where it came from."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_state(self.model) if state_dict is None else state_dict, folder / SAFE_WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.put_back(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self.put_back(self.state.best_model_checkpoint)

    def unsharded(self, build: Callable[[], nn.Module]) -> Any:
        """The trained model, whole; where FSDP has sharded it, a new one filled with the gathered weights.

        build: makes a model of the same shape.  Every process must call this.
        """
        if not self.is_fsdp_enabled:
            return self.model
        state = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.args.should_save:
            return None
        whole = build()
        load_trained_state(whole, {name: state[name] for name in trained_state(whole)}, "the sharded model")
        return whole

    def put_back(self, folder: str | None) -> None:
        """Load the weights of a checkpoint folder."""
        file = Path(folder or "") / SAFE_WEIGHTS_NAME
        with readable_checkpoint(file.parent):
            state = load_file(file)
        load_trained_state(self.model, state, f"checkpoint {file.parent.name}")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable_checkpoint(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)


ProteinTaskTrainer = SequenceTaskTrainer


def or_worst(metric: str, value: float) -> float:
    """The value, or for an undefined metric its worst: NaN compares with nothing, and would stay the best for ever."""
    if not math.isnan(value) or metric not in METRICS:
        return value
    return -math.inf if METRICS[metric].higher_is_better else math.inf


@contextmanager
def readable_checkpoint(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a damaged checkpoint is read into an error that says how to go on without it."""
    try:
        yield
    except (SafetensorError, OSError, EOFError, RuntimeError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise PlftError(
            f"{folder} is damaged ({reason}). Delete that folder: --resume then goes on from the checkpoint before it."
        ) from error


def arguments_from(args: TrainingArguments | None, given: dict[str, Any], can_evaluate: bool) -> TrainingArguments:
    """The arguments as they are, or made from single fields; a PlftError for names that are neither's."""
    fields = [each.name for each in dataclasses.fields(TrainingArguments) if each.init]
    for name in given:
        look_up("argument of the trainer", name, dict.fromkeys([*TRAINER_OPTIONS, *fields]))
    if args is not None and given:
        raise PlftError(f"'{next(iter(given))}' is given beside args=. Set it in the TrainingArguments instead.")
    if args is not None:
        return args
    chosen = {**DEFAULT_ARGUMENTS, "use_cpu": not has_accelerator(), **given}
    chosen["output_dir"] = str(chosen["output_dir"])
    return TrainingArguments(**chosen if can_evaluate else {**chosen, "eval_strategy": "no"})


def get_compute_metrics_fn(
    task_type: TaskType | str, classes: tuple[str, ...] = ()
) -> Callable[[Any], dict[str, float]]:
    """A `compute_metrics` for a plain transformers Trainer: takes an EvalPrediction with logits and label_ids.

    Labels that are missing (-100, NaN) are not scored. Logits: (n, classes), (n, tokens, classes), or (n[, tokens], 1).
    """
    task_type = TaskType(task_type)

    def compute(prediction: Any) -> dict[str, float]:
        logits = torch.as_tensor(np.asarray(prediction.predictions))
        values = TASKS[task_type.value].activate(logits).numpy()
        targets = np.asarray(prediction.label_ids)
        if not task_type.is_classification:
            targets = np.where(targets == NO_CLASS, np.nan, targets)
        if task_type.is_regression:
            values = values.reshape(targets.shape)
            if targets.ndim == 1:
                values, targets = values[:, None], targets[:, None]
        return point(task_type, list(values), list(targets), classes)

    return compute


def choose_precision(wanted: str, family: Family) -> tuple[str, str]:
    """(precision, reason): "fp32", "bf16" or "fp16" for this device and family.

    bf16 where the hardware computes in it; T5 overflows in fp16, so fp16 is refused for it.
    """
    look_up("precision", wanted, dict.fromkeys(("auto", "fp32", "bf16", "fp16")))
    if wanted == "fp16" and not family.fp16:
        raise PlftError(f"precision fp16: {family.title} overflows to NaN in fp16. Use bf16 or fp32.")
    if wanted == "fp16" and not torch.cuda.is_available():
        raise PlftError("precision fp16 needs a CUDA device. Use auto, fp32 or bf16.")
    if wanted != "auto":
        return wanted, "as asked"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return "bf16", "the GPU computes in bf16"
        return (
            ("fp16", "the GPU has no bf16")
            if family.fp16
            else ("fp32", f"no bf16, and {family.title} overflows in fp16")
        )
    if torch.backends.mps.is_available():
        return "fp32", "Apple GPU"
    features = torch.cpu.get_capabilities()
    if features.get("amx_bf16") or features.get("avx512_bf16"):
        return "bf16", "the CPU computes in bf16"
    return "fp32", "the CPU has no fast bf16"


def training_arguments(
    settings: TrainingConfig,
    folder: Path,
    *,
    precision: str,
    learning_rate: float,
    metric: str,
    can_evaluate: bool,
    uses_all_weights: bool = True,
) -> TrainingArguments:
    """TrainingArguments of a run; `metric` is a key of the metric table, evaluated on the validation part.

    uses_all_weights: every weight that trains takes part in every step, so DDP need not look for those that do not.
    """
    by = "steps" if settings.save_steps else "epoch"
    interval = {"eval_steps": settings.save_steps, "save_steps": settings.save_steps} if settings.save_steps else {}
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_share,  # below 1 it is read as a share of all steps
        lr_scheduler_type={"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[
            settings.schedule
        ],
        max_grad_norm=settings.max_grad_norm,
        gradient_accumulation_steps=settings.accumulation,
        activation_checkpointing=settings.gradient_checkpointing,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy=by if can_evaluate else "no",
        save_strategy=by,
        save_total_limit=2,
        load_best_model_at_end=can_evaluate,
        metric_for_best_model=f"eval_{metric}" if can_evaluate else None,
        greater_is_better=METRICS[metric].higher_is_better if can_evaluate else None,
        logging_strategy="steps",
        logging_steps=20,
        logging_first_step=True,
        restore_callback_states_from_checkpoint=True,
        report_to=settings.report_to or "none",
        use_cpu=not has_accelerator(),
        ddp_find_unused_parameters=False if uses_all_weights else None,
        disable_tqdm=True,
        remove_unused_columns=False,
        **interval,
    )


def has_accelerator() -> bool:
    """Whether there is a GPU; accelerate wants to be told when not, or several processes know nothing of another."""
    return torch.accelerator.is_available()


class History(TrainerCallback):
    """Writes history.jsonl: one JSON object per logged step or evaluation; nothing doubles on resume.

    The loss is logged with every checkpoint too, so that a resumed run logs the same averages as an undisturbed one.
    """

    def __init__(self, file: Path, residues_per_epoch: int) -> None:
        self.file = file
        self.residues_per_epoch = residues_per_epoch
        self.last = (time.monotonic(), 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the file with what earlier, interrupted sessions logged."""
        self.last = (time.monotonic(), state.epoch or 0.0)
        if state.is_world_process_zero:
            self.file.write_text("".join(json.dumps(self.row(each)) + "\n" for each in state.log_history))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log whenever a checkpoint is written."""
        control.should_log |= control.should_save

    on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append the newest entry, with the speed since the last one."""
        row = state.log_history[-1]
        if not state.is_world_process_zero or "train_runtime" in row:  # the Trainer's summary of this session alone
            return
        if "loss" in row:
            now, epoch = time.monotonic(), row.get("epoch", 0.0)
            row["residues_per_second"] = round(
                (epoch - self.last[1]) * self.residues_per_epoch / (now - self.last[0]), 1
            )
            self.last = (now, epoch)
        with self.file.open("a") as handle:
            handle.write(json.dumps(self.row(row)) + "\n")

    @staticmethod
    def row(entry: dict[str, Any]) -> dict[str, Any]:
        """Rename the Trainer's keys to ours: step and epoch first, eval_ becomes valid_, NaN becomes null."""
        first = {"step": entry.get("step"), "epoch": entry.get("epoch")}
        rest = {key.replace("eval_", "valid_", 1): value for key, value in entry.items() if key not in first}
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in (first | rest).items()
        }


def stopping(settings: TrainingConfig, can_evaluate: bool) -> list[TrainerCallback]:
    """The early-stopping callback, where it is wanted and there is a validation part to judge by."""
    if settings.early_stopping is None or not can_evaluate:
        return []
    return [EarlyStoppingCallback(early_stopping_patience=settings.early_stopping)]


def leave_process_group() -> None:
    """Close the process group: a distributed CPU run that leaves it open aborts at interpreter exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def check_tracker(name: str) -> None:
    """Refuse a tracker that transformers does not know, or whose package is not installed."""
    look_up("tracker in training.report_to", name, INTEGRATION_TO_CALLBACK)
    if name not in get_available_reporting_integrations():
        raise PlftError(f"training.report_to: the package of '{name}' is not installed. Install it, or leave it out.")


def token_budget(settings: TrainingConfig, dataset: SequenceDataset) -> int:
    """Tokens per batch: the user's `batch_residues`, or a default that depends on lengths and size."""
    return settings.batch_residues or default_budget(dataset)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder."""
    steps = {each: each.name.removeprefix("checkpoint-") for each in folder.glob("checkpoint-*")}
    numbered = (each for each, step in steps.items() if step.isdecimal())  # and not a copy that a user put aside
    return next(filter(is_complete, sorted(numbered, key=lambda each: -int(steps[each]))), None)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the state is the last of its files, and whole."""
    try:
        return bool(json.loads((checkpoint / TRAINER_STATE_NAME).read_text()))
    except (OSError, ValueError):
        return False
