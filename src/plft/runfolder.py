"""What a run leaves on disk. This module alone knows the names inside a run folder.

A model folder (``RUN/model``, or what `plft export` writes) holds:

    plft.json              task, labels, head, tuning, base model with revision and checksum
    trained.safetensors    the head and every other weight that training changed
    adapter/               peft's own files, for LoRA, DoRA, QLoRA and (IA)3
    backbone/              configuration and tokenizer; weights too where nobody could fetch them again
    calibration.json       how outputs are calibrated, and how far intervals or sets reach
    neighbours.safetensors training sequences, as hidden states, that inputs are compared with
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from plft.certainty import Certainty
from plft.checkpoints import SHORT_NAMES, Checkpoint, check_loaded, quiet_transformers, resolve
from plft.config import ModelConfig, RunConfig, TuningConfig, load_config, make_config, to_yaml
from plft.dataset import longest_input
from plft.errors import PlftError, first_three
from plft.heads import build_head
from plft.labels import LabelSpace, TaskType
from plft.model import PLMTaskModel, ReadyMadeModel, load_trained_state, trained_state
from plft.prediction import Predictor
from plft.tables import Row, TableWriter
from plft.tuning import apply, find_method, quantization_config

FORMAT = 1
CALIBRATION, NEIGHBOURS = "calibration.json", "neighbours.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "run.yaml"

    @property
    def metrics_file(self) -> Path:
        """Metrics with intervals of every evaluated split."""
        return self.path / "metrics.json"

    @property
    def history_file(self) -> Path:
        """One JSON object per logged step or evaluation."""
        return self.path / "history.jsonl"

    @property
    def environment_file(self) -> Path:
        """Versions, device, data checksums, counts."""
        return self.path / "environment.json"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """What resuming needs."""
        return self.path / "checkpoints"

    @property
    def everything(self) -> tuple[Path, ...]:
        """All that a run writes, and so all that --overwrite may delete."""
        files = (self.config_file, self.metrics_file, self.history_file, self.environment_file)
        pages = (self.path / "report.html", self.path / "README.md")
        return (*files, *pages, self.model, self.checkpoints, self.path / "predictions")

    def predictions_file(self, split: str) -> Path:
        """Predictions of one split."""
        return self.path / "predictions" / f"{split}.csv"

    def outputs_file(self, split: str) -> Path:
        """Outputs and targets of one split, unrounded."""
        return self.path / "predictions" / f"{split}.safetensors"

    def read_config(self) -> RunConfig:
        """The run's configuration; a PlftError where the folder is not a run."""
        if not self.config_file.exists():
            raise PlftError(f"{self.path} is not a run folder: it has no run.yaml. Give a folder that plft train made.")
        return make_config(load_config(self.config_file))

    def write_config(self, config: RunConfig) -> None:
        """Write run.yaml."""
        write_text(self.config_file, to_yaml(config))


def write_text(file: Path, text: str) -> None:
    """Write beside the target and rename into place, so that a crash leaves the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def write_json(file: Path, content: Any) -> None:
    """Write JSON, indented, atomically."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file is a PlftError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlftError(f"{file} is missing: the folder is incomplete, or training has not finished.") from None
    except (OSError, ValueError) as error:
        raise PlftError(f"{file} is damaged and cannot be read ({error}). Copy the folder again.") from None
    if not isinstance(content, dict):
        raise PlftError(f"{file} is damaged: it should hold a JSON object. Copy the folder again.")
    return content


def check_place(target: Path) -> None:
    """Refuse a folder that cannot be made, before any work is done for it."""
    parent = next(each for each in (target.absolute(), *target.absolute().parents) if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PlftError(f"{target} cannot be made: {parent} is not a folder to write in. Choose another --out.")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target that replaces it at the end, or vanishes after an error."""
    check_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        if target.exists():
            shutil.rmtree(target)
        share(partial)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_run(folder: RunFolder) -> None:
    """Delete an old run's files, and only those."""
    for each in folder.everything:
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)


def check_data(folder: RunFolder, sha256: str) -> None:
    """Refuse to go on with data other than those the run began with: its splits would no longer be the same."""
    if not folder.environment_file.exists():  # killed before anything was trained
        return
    known = read_json(folder.environment_file).get("data", {}).get("sha256")
    if known != sha256:
        raise PlftError(
            f"The data of {folder.path} have changed since the run began, so its splits cannot be told. "
            "Restore the file, name another one, or train again with --overwrite."
        )


def check_settings_kept(folder: RunFolder, config: RunConfig) -> None:
    """Refuse to go on with other settings: the learning rate's schedule and much else would no longer fit."""
    before, now = folder.read_config().model_dump(), config.model_dump()
    changed = [
        f"{section}.{key}"
        for section in ("data", "model", "tuning", "training")
        for key, value in now[section].items()
        if value != before[section][key]
    ]
    if changed:
        raise PlftError(
            f"--resume goes on with the settings the run began with, but {first_three(changed)} changed. "
            "Leave them out, or train anew with --overwrite."
        )


def share(folder: Path) -> None:
    """Give files and folders the usual rights: safetensors and temporary folders are made for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for each in (folder, *folder.rglob("*")):
        each.chmod((0o777 if each.is_dir() else 0o666) & ~umask)


@dataclass(frozen=True)
class ModelCard:
    """The content of plft.json: all that is needed to build the model again around its weights.

    base: name, revision and sha256 of the checkpoint that training started from.  backbone: folder with the backbone's
    weights, relative to the model folder, or None when they are fetched from `base` again.  custom_head: class name
    of a head that came from Python.
    """

    labels: dict[str, Any]
    family: str
    model: dict[str, Any]
    tuning: dict[str, Any]
    base: dict[str, Any]
    max_residues: int
    unknown_letters: str = "map"
    extra_columns: list[str] = field(default_factory=list)
    backbone: str | None = None
    custom_head: str | None = None
    seed: int = 0
    format: int = FORMAT


def build_model(
    checkpoint: Checkpoint,
    labels: LabelSpace,
    model: ModelConfig,
    tuning: TuningConfig,
    *,
    head: nn.Module | None = None,
    class_weights: list[float] | None = None,
    seed: int = 0,
) -> PLMTaskModel:
    """Backbone with its tuning method applied, and the head: one model, ready to train or to be filled with weights."""
    method = find_method(tuning.method)
    quantization = quantization_config() if method.quantizes else None
    backbone = checkpoint.load_backbone(quantization_config=quantization, seed=seed)
    tuned = apply(backbone, checkpoint.family, tuning)
    if head is not None:
        head = copy.deepcopy(head)  # a head of the user's own is a pattern: training one model must not change another
    else:
        head = build_head(
            model.head,
            checkpoint.width,
            labels.n_outputs,
            residues=labels.task.is_residue,
            num_hidden_layers=model.head_layers,
            hidden_dim=model.head_width,
            dropout_rate=model.head_dropout,
            pooling_strategy=model.pooling,
            kernel_size=model.head_kernel,
        )
    return PLMTaskModel(labels.task, tuned, head, class_weights=class_weights)


def save_model(folder: Path, model: Any, card: ModelCard, checkpoint: Checkpoint) -> None:
    """Write a model folder in one go: beside the target first, then renamed into place."""
    method = find_method(card.tuning["method"])
    keeps_weights = method.name == "full" or checkpoint.is_scratch
    state = trained_state(model)
    with new_folder(folder) as partial, quiet_transformers():
        backbone_folder = partial / "backbone"
        if method.name == "full":
            model.backbone.save_pretrained(backbone_folder)
            state = {name: each for name, each in state.items() if not name.startswith("backbone.")}
        elif checkpoint.is_scratch:
            fresh: Any = checkpoint.load_backbone(seed=card.seed)
            fresh.save_pretrained(backbone_folder)
        else:
            checkpoint.config.save_pretrained(backbone_folder)
        checkpoint.tokenizer.save_pretrained(backbone_folder)
        if method.is_peft:
            model.backbone.peft_config["default"].base_model_name_or_path = checkpoint.lasting_name
            model.backbone.save_pretrained(partial / "adapter", save_embedding_layers=False)
            adapter = {name for name in state if ".lora_" in name or ".ia3_" in name}
            state = {name: each for name, each in state.items() if name not in adapter}
        save_file(state, partial / "trained.safetensors")
        content = asdict(card) | {"backbone": "backbone" if keeps_weights else None}
        write_json(partial / "plft.json", content)


def load_predictor(folder: Path, head: nn.Module | None = None, trust_remote_code: bool = False) -> Predictor:
    """Build the model of a model folder again, with exactly the weights it was saved with.

    head: needed when the run used a head of your own.  trust_remote_code: consent to run code that the base model
    brings along; whoever loads must give it, a folder cannot give it for itself.
    A missing, damaged or foreign file is a PlftError.
    """
    card = read_card(folder)
    if card.custom_head and head is None:
        raise PlftError(
            f"{folder}: made with a head of your own ({card.custom_head}). Pass it: plft.load(..., head=...)."
        )
    labels = LabelSpace.from_json(card.labels)
    checkpoint = base_checkpoint(folder, card, trust_remote_code)
    tuning = TuningConfig(**card.tuning)
    model = build_model(checkpoint, labels, ModelConfig(**card.model), tuning, head=head, seed=card.seed)
    if find_method(tuning.method).is_peft:
        load_adapter(model.backbone, folder / "adapter")
    state = read_weights(folder / "trained.safetensors")
    expected = {name for name in trained_state(model) if not skipped_on_load(name, tuning)}
    missing = sorted(expected - set(state))
    if missing:
        raise PlftError(f"{folder}: trained.safetensors lacks '{missing[0]}'. The folder is incomplete.")
    load_trained_state(model, state, f"{folder / 'trained.safetensors'}", partial=True)
    if find_method(tuning.method).is_peft and not find_method(tuning.method).quantizes:
        model.backbone = model.backbone.merge_and_unload()  # one product per layer instead of three
    return Predictor(
        model=model.eval(),
        tokenizer=checkpoint.residue_tokenizer,
        labels=labels,
        family=checkpoint.family,
        max_residues=card.max_residues,
        unknown_letters=card.unknown_letters,
        extra_columns=tuple(card.extra_columns),
        certainty=read_certainty(folder),
    )


def write_certainty(folder: Path, certainty: Certainty) -> None:
    """Write calibration.json, and neighbours.safetensors where there are any, into a model folder."""
    if certainty.neighbours is not None:
        save_file({"states": torch.from_numpy(certainty.neighbours.states)}, folder / NEIGHBOURS)
    write_json(folder / CALIBRATION, {"format": FORMAT} | certainty.to_json())
    share(folder)


def read_certainty(folder: Path) -> Certainty:
    """Read what `write_certainty` wrote; a folder from before calibration has none.  Damage is a PlftError."""
    if not (folder / CALIBRATION).exists():
        return Certainty()
    content = read_json(folder / CALIBRATION)
    try:
        has_states = content["far_above"] is not None
        return Certainty.from_json(content, read_weights(folder / NEIGHBOURS)["states"].numpy() if has_states else None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise PlftError(f"{folder / CALIBRATION} is damaged ({reason}). Copy the folder again.") from None


def load_anything(path: str | Path, head: nn.Module | None = None, trust_remote_code: bool = False) -> Predictor:
    """Load a run folder, a model folder, an exported folder, or a checkpoint with a classification head of its own."""
    folder = Path(path)
    for candidate in (folder, folder / "model"):
        if (candidate / "plft.json").exists():
            return load_predictor(candidate, head, trust_remote_code)
    if (folder / "run.yaml").exists():
        raise PlftError(f"{folder} is a run without a trained model. Finish it with plft train --resume.")
    if folder.is_dir() and not (folder / "config.json").exists():
        raise PlftError(
            f"{folder} is neither a run nor a model: it has no run.yaml, plft.json or config.json. "
            "Give the folder of plft train --out."
        )
    if not folder.exists() and means_a_folder(str(path)):
        raise PlftError(
            f"There is no run folder '{path}'. Give the folder of plft train --out, "
            "or the hub id of a checkpoint that has its own head."
        )
    return ready_made(str(path), trust_remote_code)


def means_a_folder(name: str) -> bool:
    """Whether a name that is no folder was meant as one, rather than as a hub id or one of our names."""
    if name.startswith(("scratch:", "builtin:")) or name.partition("@")[0] in SHORT_NAMES:
        return False
    return "/" not in name or name.startswith((".", "/", "~")) or Path(name).parent.is_dir()


def ready_made(name: str, trust_remote_code: bool = False) -> Predictor:
    """A predictor from a transformers checkpoint that is a sequence or token classifier already."""
    checkpoint = resolve(name, trust_remote_code=trust_remote_code)
    kind = next(iter(checkpoint.config.architectures or [""]))
    loaders = {
        "ForSequenceClassification": AutoModelForSequenceClassification,
        "ForTokenClassification": AutoModelForTokenClassification,
    }
    loader = next((each for ending, each in loaders.items() if kind.endswith(ending)), None)
    if loader is None:
        raise PlftError(
            f"{name} has no trained head ({kind or 'unknown kind'}): give a run folder, or train one with plft train."
        )
    model, info = loader.from_pretrained(
        str(checkpoint.folder),
        config=checkpoint.config,
        use_safetensors=True,
        dtype=torch.float32,  # a checkpoint kept in fp16 would otherwise compute in it
        trust_remote_code=checkpoint.trust_remote_code,
        output_loading_info=True,
    )
    check_loaded(name, model, info)
    tokenizer = checkpoint.residue_tokenizer
    return Predictor(
        model=ReadyMadeModel(model).eval(),
        tokenizer=tokenizer,
        labels=labels_of_config(checkpoint.config, residues=kind.endswith("ForTokenClassification")),
        family=checkpoint.family,
        max_residues=longest_input(checkpoint.family),
    )


def labels_of_config(config: Any, residues: bool) -> LabelSpace:
    """Task, class names or columns as a transformers configuration states them."""
    problem = getattr(config, "problem_type", None)
    names = tuple(name for _, name in sorted(config.id2label.items(), key=lambda pair: int(pair[0])))
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):  # nobody named them: the numbers are the classes
        names = tuple(name.removeprefix("LABEL_") for name in names)
    if problem == "regression" or (problem is None and len(names) == 1):
        columns = names if len(names) > 1 else ("label",)
        task = TaskType.TOKEN_REGRESSION if residues else TaskType.SEQ_REGRESSION
        return LabelSpace(task, columns=columns, mean=(0.0,) * len(columns), scale=(1.0,) * len(columns))
    if problem == "multi_label_classification":
        return LabelSpace(TaskType.SEQ_MULTILABEL, names)
    return LabelSpace(TaskType.TOKEN_CLASSIFICATION if residues else TaskType.SEQ_CLASSIFICATION, names)


def skipped_on_load(name: str, tuning: TuningConfig) -> bool:
    """Weights that have a file of their own: the adapter, or a fully tuned backbone."""
    if tuning.method == "full":
        return name.startswith("backbone.")
    return ".lora_" in name or ".ia3_" in name


def read_card(folder: Path) -> ModelCard:
    """Read plft.json."""
    content = read_json(folder / "plft.json")
    if content.get("format") != FORMAT:
        raise PlftError(
            f"{folder}: written by another version of plft (format {content.get('format')}, this one reads {FORMAT})."
        )
    unknown = sorted(content.keys() - {each.name for each in fields(ModelCard)})
    if unknown:
        raise PlftError(
            f"{folder}: written by another version of plft ('{unknown[0]}' is not known). Use that version."
        )
    try:
        card = ModelCard(**content)
        check_card(card)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise PlftError(f"{folder / 'plft.json'} is damaged ({reason}). Copy the folder again.") from None
    return card


def check_card(card: ModelCard) -> None:
    """Read every part of plft.json once; what is missing or wrong in it raises what reading it raises."""
    LabelSpace.from_json(card.labels)
    ModelConfig(**card.model)
    TuningConfig(**card.tuning)
    for name in ("name", "revision", "sha256"):
        card.base[name]


def base_checkpoint(folder: Path, card: ModelCard, trust_remote_code: bool) -> Checkpoint:
    """The backbone to build on: the folder's own, or the base model, which must still be the same."""
    if card.backbone is not None:
        return resolve(str((folder / card.backbone).resolve()), trust_remote_code=trust_remote_code)
    base = card.base
    checkpoint = resolve(base["name"], revision=base["revision"], trust_remote_code=trust_remote_code)
    if base["sha256"] and checkpoint.sha256 != base["sha256"]:
        raise PlftError(
            f"The base model {base['name']} is not the one this run was trained on (its weights have another sha256). "
            "Restore it, or use a folder made with plft export."
        )
    return checkpoint


def load_adapter(backbone: Any, folder: Path) -> None:
    """Load peft's weights into an already wrapped backbone; each must be there and fit, or it is a PlftError."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    state = read_weights(folder / "adapter_model.safetensors")
    own = get_peft_model_state_dict(backbone, save_embedding_layers=False)
    wrong = {name for name in own.keys() | state.keys() if shape_of(own, name) != shape_of(state, name)}
    if wrong:
        raise PlftError(
            f"{folder}: weight '{min(wrong)}' is missing or does not fit this model. Copy the folder again."
        )
    set_peft_model_state_dict(backbone, state)


def shape_of(state: dict[str, Any], name: str) -> tuple[int, ...] | None:
    """Shape of a weight, None where there is none of that name."""
    return tuple(state[name].shape) if name in state else None


def read_weights(file: Path) -> dict[str, Any]:
    """Read a safetensors file; a missing or damaged one is a PlftError."""
    if not file.exists():
        raise PlftError(f"{file} is missing: the model folder is incomplete. Copy it again.")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise PlftError(f"{file} is damaged and cannot be read ({error}). Copy the folder again.") from None


def export_model(folder: Path, target: Path, trust_remote_code: bool = False) -> None:
    """Write a stand-alone transformers folder: adapters merged, tokenizer, head and labels beside the weights.

    `AutoModel.from_pretrained(target)` loads the backbone (for T5 `T5EncoderModel`), and `plft predict target ...` the
    whole model.  A QLoRA adapter is merged into the base model's full-precision weights, so its predictions differ
    slightly from those of the 4-bit run.
    """
    card = read_card(folder)
    method = find_method(card.tuning["method"])
    if method.name == "adapter":
        raise PlftError(
            "Bottleneck adapters cannot be merged into the backbone's weights. Share the run's model folder instead."
        )
    tuning = dict(card.tuning) | (
        {"method": "lora"} if method.quantizes else {}
    )  # merged in full precision, not in 4 bits
    checkpoint = base_checkpoint(folder, card, trust_remote_code)
    labels = LabelSpace.from_json(card.labels)
    head = None if card.custom_head is None else nn.Identity()
    model = build_model(
        checkpoint, labels, ModelConfig(**card.model), TuningConfig(**tuning), head=head, seed=card.seed
    )
    if method.is_peft:
        load_adapter(model.backbone, folder / "adapter")
    state = read_weights(folder / "trained.safetensors")
    is_head = {name: name.startswith("head.") for name in state}
    load_trained_state(model, {k: v for k, v in state.items() if not is_head[k]}, str(folder), partial=True)
    merged = model.backbone.merge_and_unload() if method.is_peft else model.backbone
    with new_folder(target) as partial, quiet_transformers():
        merged.save_pretrained(partial)
        checkpoint.tokenizer.save_pretrained(partial)
        save_file({k: v for k, v in state.items() if is_head[k]}, partial / "trained.safetensors")
        exported = asdict(card) | {"backbone": ".", "tuning": TuningConfig(method="head").model_dump()}
        write_json(partial / "plft.json", exported)
        if (folder / CALIBRATION).exists():
            write_certainty(partial, read_certainty(folder))


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write a small table atomically."""
    with TableWriter(file) as write:
        write(rows)
