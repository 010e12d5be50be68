"""The whole run, top to bottom: read this first.

`train` reads and checks the data, builds the model, trains it, saves it, loads it again from disk and scores what it
loaded, so that the numbers of a run are those of the artefact it leaves.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, set_seed

from plft.alphabet import ALPHABETS, check_alphabet
from plft.baseline_run import States, beside
from plft.checkpoints import resolve
from plft.config import RunConfig, load_config, make_config
from plft.dataset import SequenceDataset, longest_input
from plft.errors import PlftError
from plft.heads import LightAttentionHead, TaskHead
from plft.held_out import answer_held_out
from plft.keeping import kept_features
from plft.labels import LabelSpace, TaskType
from plft.metrics import Evaluation
from plft.metrics import evaluate as score
from plft.model import PLMTaskModel
from plft.outputs import write_outputs
from plft.peaks import measure_peak
from plft.prediction import Answered, Predictor, answers, choose_device, write_predictions
from plft.preparation import (
    Prepared,
    Say,
    prepare,
    quiet,
)
from plft.ranks import is_first, processes
from plft.records import Columns, Record, read_records
from plft.report import write_model_card, write_report
from plft.runfolder import (
    ModelCard,
    RunFolder,
    build_model,
    check_data,
    check_place,
    check_settings_kept,
    load_anything,
    load_predictor,
    read_card,
    read_json,
    remove_run,
    save_model,
    write_certainty,
    write_json,
    write_rows,
)
from plft.tables import TableWriter
from plft.training import (
    History,
    SequenceTaskTrainer,
    choose_precision,
    last_checkpoint,
    leave_process_group,
    stopping,
    training_arguments,
)
from plft.tuning import count_parameters


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and its model ready to predict."""

    path: Path
    head: nn.Module | None = field(default=None, repr=False)
    trust_remote_code: bool = False

    @cached_property
    def predictor(self) -> Predictor:
        """The trained model, loaded from the run folder."""
        return on_device(load_predictor(RunFolder(self.path).model, self.head, self.trust_remote_code))

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return read_json(RunFolder(self.path).metrics_file)

    def predict(self, sequences: str | Iterable[str | Record]) -> list[Any]:
        """Predictions for sequences: see `Predictor.predict`."""
        return self.predictor.predict(sequences)


# --- training


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    head: nn.Module | None = None,
    say: Say = quiet,
    callbacks: Sequence[TrainerCallback] = (),
    command: str = "",
) -> Run:
    """Run a configuration and leave a run folder.

    resume: go on from the folder's last checkpoint.  overwrite: replace an existing run.  head: a head of your own
    instead of `config.model.head`.  say: told each thing the user should know.  Raises PlftError for anything the user
    can put right, before weights are loaded wherever that is possible.
    """
    folder = RunFolder(Path(out))
    if is_first():
        check_folder(folder, resume=resume, overwrite=overwrite)
    try:
        run_training(config, folder, resume, head, say, callbacks, command)
    finally:
        leave_process_group()
    return Run(folder.path, head, config.model.trust_remote_code)


def run_training(
    config: RunConfig,
    folder: RunFolder,
    resume: bool,
    head: nn.Module | None,
    say: Say,
    callbacks: Sequence[TrainerCallback],
    command: str,
) -> None:
    """Prepare, build, train, save and score; every process of a distributed run does this, the first one writes."""
    started = time.monotonic()
    peak_memory = measure_peak()
    set_seed(config.training.seed)
    prepared = prepare(config, say, custom_head=head is not None)
    config = prepared.config
    precision, why = choose_precision(config.training.precision, prepared.checkpoint.family)
    if resume:
        check_data(folder, prepared.facts["sha256"])
        check_settings_kept(folder, config)
    use_own_gpu()
    model: Any = build(prepared, head)
    trainable, total = count_parameters(model)
    say(f"{trainable:,} of {total:,} parameters train ({trainable / total:.2%}); {precision}, {why}")
    say(f"batches are {'packed, without' if model.packs else 'of similar lengths, with little'} padding")
    if prepared.checkpoint.is_scratch and config.tuning.method != "full":
        say(f"the model starts from random weights, and {config.tuning.method} leaves most of them so; full trains all")
    environment = describe(prepared, precision, (trainable, total), command)
    if head is not None:
        environment["head"] = type(head).__name__
    before = read_json(folder.environment_file) if resume and folder.environment_file.exists() else {}
    if is_first():
        open_folder(folder, keep=resume)
        folder.write_config(config)
        if not before:
            write_json(folder.environment_file, environment)
    trainer = make_trainer(prepared, model, folder, precision, callbacks)

    def cost() -> dict[str, Any]:
        peaks = [each for each in (before.get("peak_memory"), peak_memory()) if each is not None]
        seconds = before.get("seconds", 0) + time.monotonic() - started
        return {"seconds": round(seconds, 1), "peak_memory": max(peaks, default=None)}

    trainer.add_callback(Cost(folder.environment_file, cost))
    last = last_checkpoint(folder.checkpoints) if resume else None
    say(f"going on from {last.name}" if last else f"{len(trainer.get_train_dataloader())} batches per epoch")
    with kept_features(trainer, config.training, say):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    state, cost_of_training = trainer.state, cost()
    model = trainer.unsharded(lambda: build(prepared, head))
    if is_first():
        save_model(folder.model, model, model_card(prepared, head), prepared.checkpoint)
        steps = {"steps": state.global_step, "epochs": round(state.epoch or 0, 2), "best_step": state.best_global_step}
        del trainer, model
        gc.collect()
        earlier = {"command": before["command"]} if before.get("command") else {}
        finish(folder, prepared, head, environment | earlier | steps | cost_of_training, say)


class Cost(TrainerCallback):
    """Writes down what a run has cost with every checkpoint, so that an interruption does not hide it.

    file: environment.json.  so_far: tells seconds and peak memory, those before an interruption included.
    """

    def __init__(self, file: Path, so_far: Callable[[], dict[str, Any]]) -> None:
        self.file, self.so_far = file, so_far

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Update the file."""
        if state.is_world_process_zero:
            write_json(self.file, read_json(self.file) | self.so_far())


def check_folder(folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
    """Refuse to write over anything but a run that is to be resumed or overwritten, or where nothing can be written."""
    if resume and overwrite:
        raise PlftError("--resume goes on with a run and --overwrite replaces it. Give only one of them.")
    exists = folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir()))
    if exists and not folder.config_file.exists():
        raise PlftError(f"{folder.path} exists and is not a run folder. Choose another --out.")
    if exists and not (resume or overwrite):
        raise PlftError(
            f"{folder.path} holds a run already. Pass --resume to go on, --overwrite to replace it, or another --out."
        )
    if resume and not exists:
        raise PlftError(f"{folder.path} holds no run to resume. Leave out --resume to start one.")
    check_place(folder.path)


def open_folder(folder: RunFolder, *, keep: bool) -> None:
    """Make the run folder; an old run goes only now, when the new one has passed every check."""
    if not keep and folder.config_file.exists():
        remove_run(folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlftError(f"{folder.path} cannot be made: {error.strerror}.") from None


def use_own_gpu() -> None:
    """In a distributed run each process computes on the GPU of its own; 4-bit weights are placed when they are read."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def build(prepared: Prepared, head: nn.Module | None) -> nn.Module:
    """The model, ready to train."""
    config = prepared.config
    return build_model(
        prepared.checkpoint,
        prepared.labels,
        config.model,
        config.tuning,
        head=head,
        class_weights=prepared.class_weights,
        seed=config.training.seed,
    )


def make_trainer(
    prepared: Prepared, model: nn.Module, folder: RunFolder, precision: str, callbacks: Sequence[TrainerCallback]
) -> SequenceTaskTrainer:
    """The trainer of a run, with history, early stopping and checkpoints in the run folder."""
    config, valid = prepared.config, prepared.valid
    arguments = training_arguments(
        config.training,
        folder.checkpoints,
        precision=precision,
        learning_rate=float(config.training.learning_rate or 0),
        metric=str(config.training.metric),
        can_evaluate=valid is not None,
        uses_all_weights=isinstance(model.head, TaskHead | LightAttentionHead),
    )
    residues = sum(len(each.sequence) for each in prepared.parts["train"])
    trainer = SequenceTaskTrainer(
        model,
        arguments,
        train_dataset=prepared.datasets["train"],
        eval_dataset=valid,
        token_budget=config.training.batch_residues,
        callbacks=[History(folder.history_file, residues), *stopping(config.training, prepared.is_judged), *callbacks],
    )
    steps_per_epoch = len(trainer.get_train_dataloader()) / config.training.accumulation
    if arguments.max_steps >= math.ceil(config.training.epochs * steps_per_epoch):
        arguments.max_steps = -1  # the Trainer would let max_steps override the epochs; what comes first ends a run
    return trainer


def model_card(prepared: Prepared, head: nn.Module | None) -> ModelCard:
    """What plft.json says of this run's model."""
    config, checkpoint = prepared.config, prepared.checkpoint
    return ModelCard(
        labels=prepared.labels.to_json(),
        family=checkpoint.family.name,
        model=config.model.model_dump(),
        tuning=config.tuning.model_dump(),
        base={
            "name": checkpoint.lasting_name,
            "revision": checkpoint.revision,
            "sha256": checkpoint.sha256,
            "trust_remote_code": checkpoint.trust_remote_code,
        },
        max_residues=prepared.max_residues,
        unknown_letters=config.data.unknown_letters,
        extra_columns=list(config.data.extra_columns),
        custom_head=None if head is None else type(head).__name__,
        seed=config.training.seed,
    )


def describe(prepared: Prepared, precision: str, parameters: tuple[int, int], command: str) -> dict[str, Any]:
    """What environment.json says of machine, model and data."""
    packages = ("plft", "torch", "transformers", "peft", "accelerate", "numpy")
    checkpoint = prepared.checkpoint
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": processes(),
        "data": prepared.facts | {"duplicated": prepared.facts["audit"]["duplicate_sequences"]},
        "sentences": prepared.sentences,
        "parameters": {"trainable": parameters[0], "total": parameters[1]},
        "family": checkpoint.family.title,
        "model": {"name": checkpoint.name, "revision": checkpoint.revision, "sha256": checkpoint.sha256},
        "command": command,
    }


def finish(
    folder: RunFolder, prepared: Prepared, head: nn.Module | None, environment: dict[str, Any], say: Say
) -> None:
    """Load the saved model, score it and the baselines on every split but train, and write what the run leaves."""
    predictor = on_device(load_predictor(folder.model, head, prepared.config.model.trust_remote_code))
    config = prepared.config
    held_out = answer_held_out(predictor, prepared.parts, config.calibration, config.training.seed)
    write_certainty(folder.model, held_out.predictor.certainty)
    evaluations = {}
    for name, part in held_out.parts.items():
        if part.dataset.has_labels:
            evaluations[name] = evaluation_of(predictor, part.dataset, held_out.outputs(name))
            write_outputs(folder.outputs_file(name), held_out.outputs(name), part.dataset.targets())
        write_rows(folder.predictions_file(name), held_out.rows(name))
    certain = held_out.to_json()
    del predictor, held_out
    labels = prepared.labels
    write_json(folder.environment_file, environment)
    write_json(  # the last of what a run knows: where it is, the run is finished
        folder.metrics_file,
        {
            "schema": 1,
            "task": prepared.task.value,
            "classes": list(labels.classes),
            "columns": list(labels.columns),
            "main_metric": prepared.config.training.metric,
            "splits": {name: each.to_json() for name, each in evaluations.items()},
            **beside(prepared, evaluations, say),
            "calibration": certain,
        },
    )
    write_report(folder.path)
    write_model_card(folder.path)


# --- using a trained model


def on_device(predictor: Predictor, precision: str = "fp32") -> Predictor:
    """Move a predictor to the best device there is, to compute in this precision (see `training.choose_precision`)."""
    choose_device(predictor.model)
    return replace(predictor, precision=choose_precision(precision, predictor.family)[0])


def load(
    path: str | Path, head: nn.Module | None = None, trust_remote_code: bool = False, precision: str = "fp32"
) -> Predictor:
    """Load a run folder, a model folder, an exported folder, or a checkpoint that brings its own head.

    head: needed when the run used a head of your own.  trust_remote_code: consent to run code that the base model
    brings along.  precision: fp32 gives the same everywhere; auto is bf16 where that is faster.
    """
    return on_device(load_anything(path, head, trust_remote_code), precision)


def evaluation_of(predictor: Predictor, dataset: SequenceDataset, outputs: Sequence[np.ndarray]) -> Evaluation:
    """Metrics with intervals of a labelled dataset and the outputs for its records."""
    labels = predictor.labels
    return score(labels.task, outputs, dataset.targets(), labels.classes, labels.columns)


def columns_of(
    run: str | Path, sequence: str | None = None, labels: Sequence[str] | None = None, id: str | None = None
) -> Columns:
    """The columns of another file: what is named, else those of the run, of which only sequence and labels must be
    there (and the id where it is named)."""
    folder = RunFolder(Path(run))
    if folder.config_file.exists():
        own = folder.read_config().data.columns
    else:
        own = Columns(label=label_columns(folder.path))
    named = own.labels if not labels or set(labels) == set(own.labels) else tuple(labels)  # outputs have one order
    return replace(
        own,
        sequence=sequence or own.sequence,
        label=named if len(named) > 1 else named[0],
        id=id or own.id,
        required=(id,) if id else (),
    )


def label_columns(folder: Path) -> str | tuple[str, ...]:
    """The label columns of the data that a model was trained on: "label" where nothing is written of them."""
    if not (folder / "plft.json").exists():
        return Columns.label
    names = LabelSpace.from_json(read_card(folder).labels).columns
    return names if len(names) > 1 else names[0]


def predict(
    path: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    sequence_column: str | None = None,
    id_column: str | None = None,
    head: nn.Module | None = None,
    trust_remote_code: bool = False,
    precision: str = "fp32",
    workers: int = 1,
    each_batch: Callable[[int], Any] | None = None,
) -> Answered:
    """Predict for every sequence of a file and write a table; returns what was answered.

    sequence_column, id_column: by default those of the run.  precision: as for `load`.  workers: processes that share
    the work.
    """
    check_files(data, out)
    predictor = load(path, head, trust_remote_code, precision)
    columns = replace(columns_of(path, sequence_column, id=id_column), extra=predictor.extra_columns)
    check_records(data, columns, predictor)
    records = in_alphabet(read_records(data, columns, labelled=False), predictor)
    again = partial(load, path, head, trust_remote_code, precision)
    return write_predictions(answers(predictor, records, each_batch, workers, again), out, predictor.rows)


def check_files(data: str | Path, out: str | Path) -> None:
    """Refuse what can be seen without a model: no such file, an unknown format, the input as the output."""
    read_records(data, labelled=False)  # nothing is read yet
    TableWriter(out)
    if Path(data).resolve() == Path(out).resolve():
        raise PlftError(f"{out} is the input, which the predictions would replace. Choose another --out.")


def check_records(data: str | Path, columns: Columns, predictor: Predictor) -> None:
    """Read all records once: a bad one near the end is told before hours of work, not after them."""
    for record in in_alphabet(read_records(data, columns, labelled=False), predictor):
        predictor.tidied(record)


def in_alphabet(records: Iterator[Record], predictor: Predictor) -> Iterator[Record]:
    """The records, unless the first of them show that they are DNA for a protein model, or the reverse."""
    first = list(islice(records, 100))
    check_alphabet((each.sequence for each in first), ALPHABETS[predictor.family.alphabet])
    yield from chain(first, records)


def embed(
    name: str,
    data: str | Path,
    out: str | Path,
    *,
    sequence_column: str | None = None,
    id_column: str | None = None,
    trust_remote_code: bool = False,
    precision: str = "fp32",
    workers: int = 1,
    each_batch: Callable[[int], Any] | None = None,
) -> Answered:
    """Write the mean hidden state over residues of every sequence; returns what was answered.

    name: a run folder (its tuned backbone) or anything `--model` takes.  sequence_column, id_column, precision,
    workers: as for `predict`.
    """
    check_files(data, out)
    predictor = embedder(name, trust_remote_code, precision)
    columns = columns_of(name, sequence_column, id=id_column)
    check_records(data, columns, predictor)
    records = in_alphabet(read_records(data, columns, labelled=False), predictor)

    def row(record: Record, output: np.ndarray, beside: dict[str, Any]) -> list[dict[str, Any]]:
        values = zip(predictor.labels.columns, output, strict=True)
        return [{"id": record.id} | {column: float(f"{value:.7g}") for column, value in values} | beside]

    again = partial(embedder, name, trust_remote_code, precision)
    return write_predictions(answers(predictor, records, each_batch, workers, again), out, row)


def embedder(name: str, trust_remote_code: bool = False, precision: str = "fp32") -> Predictor:
    """A predictor whose outputs are the mean hidden states over residues."""
    if (Path(name) / "run.yaml").exists() or (Path(name) / "plft.json").exists():
        trained = load(name, trust_remote_code=trust_remote_code)
        backbone: Any = trained.model.backbone
        tokenizer, limit = trained.tokenizer, trained.max_residues
    else:
        checkpoint = resolve(name, trust_remote_code=trust_remote_code)
        tokenizer, limit = checkpoint.residue_tokenizer, longest_input(checkpoint.family)
        backbone = checkpoint.load_backbone()
    width = backbone.config.hidden_size
    columns = tuple(f"e{index}" for index in range(width))
    labels = LabelSpace(TaskType.SEQ_REGRESSION, columns=columns, mean=(0.0,) * width, scale=(1.0,) * width)
    model = PLMTaskModel(TaskType.SEQ_REGRESSION, backbone, States(per_residue=False))
    return on_device(Predictor(model.eval(), tokenizer, labels, tokenizer.family, limit), precision)


def finetune(config: RunConfig | Mapping[str, Any] | str | Path, out: str | Path = "run", **options: Any) -> Run:
    """Train from Python. config: a RunConfig, plain values in its shape, or a YAML file.  options: as for `train`."""
    if isinstance(config, str | Path):
        config = load_config(config)
    return train(config if isinstance(config, RunConfig) else make_config(dict(config)), out, **options)
