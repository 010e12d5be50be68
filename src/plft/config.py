"""One run, as pydantic models; YAML in, YAML out.

`None` always means "choose for me"; the choice is written to run.yaml. Field descriptions are the reference from which
help texts and the JSON schema come.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from plft.errors import PlftError, did_you_mean, unknown_name
from plft.records import Columns

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


Settings = TypeVar("Settings", bound=BaseModel)


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values are checked also on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the sequences and labels are and how they are read."""

    file: Name = Field(description="table, FASTA or folder with the labelled sequences")
    valid: Name | None = Field(None, description="file with the validation part, when it is a file of its own")
    test: Name | None = Field(None, description="file with the test part, when it is a file of its own")
    sequence_column: Name = Field("sequence", description="column that holds the sequences")
    label_column: Name | list[Name] = Field(
        "label",
        description="column of the labels; several make a multi-output regression, or multi-label if all hold 0 or 1",
    )
    id_column: Name = Field("id", description="column of the identifiers")
    split_column: Name = Field("split", description="column that says train, valid or test")
    mask_column: Name | None = Field(
        "mask", description="column of per-residue masks: 0 is neither learned from nor scored; null: none"
    )
    weight_column: Name | None = Field("weight", description="column of sequence weights in the loss; null: none")
    extra_columns: list[Name] = Field([], description="columns handed to a head of your own as keyword arguments")
    missing: str | None = Field(None, description="sentinel of a missing label, for example 999")
    unknown_letters: Literal["map", "error", "drop"] = Field(
        "map", description="letters outside the alphabet: map to X or N, stop, or drop the sequence"
    )
    unseen_classes: Literal["error", "drop"] = Field(
        "error", description="classes that only valid or test hold: stop, or leave those labels out and say how many"
    )
    max_residues: Annotated[int, Field(ge=8)] | None = Field(
        None,
        description="longest input in residues; a longer sequence loses its end, or becomes windows in residue tasks",
    )

    @field_validator("missing", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """A number in YAML is meant as the cell holds it."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @property
    def columns(self) -> Columns:
        """The column names, as `records` wants them."""
        label = (self.label_column,) if isinstance(self.label_column, str) else tuple(self.label_column)
        return Columns(
            sequence=self.sequence_column,
            label=label if len(label) > 1 else label[0],
            id=self.id_column,
            split=self.split_column,
            mask=self.mask_column,
            weight=self.weight_column,
            extra=tuple(self.extra_columns),
        )


class ModelConfig(Section):
    """The pretrained model and the head on top of it."""

    name: Name | None = Field(
        None,
        description="builtin:protein, builtin:dna, a local folder, a hub id, a short name, or scratch:NAME; "
        "null is the built-in model of the sequences' alphabet",
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(False, description="run code that the model brings along; needs a pinned revision")
    head: Literal["mlp", "linear", "cnn", "light_attention"] = Field(
        "mlp", description="what turns hidden states into outputs"
    )
    pooling: Literal["mean", "max", "cls", "attention"] | None = Field(
        None, description="how residues become one vector; null is the head's own default"
    )
    head_layers: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="hidden layers of the head")
    head_width: Annotated[int, Field(ge=1)] | None = Field(None, description="width of the head's hidden layers")
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="dropout inside the head")
    head_kernel: Annotated[int, Field(ge=1)] | None = Field(
        None, description="kernel size of convolutional heads, in residues"
    )


class TuningConfig(Section):
    """Which weights train."""

    method: Name = Field("lora", description="head, lora, dora, qlora, ia3, adapter, last-N or full")
    rank: Annotated[int, Field(ge=1)] = Field(8, description="rank of LoRA, DoRA and QLoRA")
    alpha: Annotated[float, Field(gt=0)] = Field(16, description="LoRA scaling: updates are multiplied by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="dropout before the low-rank update")
    targets: list[Name] | None = Field(
        None, description="names of the linear layers that get an adapter; null is the family's default"
    )
    blocks: Name | None = Field(None, description="only these blocks: last-N; null is all of them")
    train_layer_norms: bool = Field(False, description="train the layer norms too")
    bottleneck: Annotated[int, Field(ge=1)] = Field(32, description="width of bottleneck adapters")

    @field_validator("blocks")
    @classmethod
    def _blocks_are_last_n(cls, value: str | None) -> str | None:
        if value is not None:
            parse_last(value)
        return value


class TrainingConfig(Section):
    """How the weights are trained."""

    epochs: Annotated[float, Field(gt=0)] = Field(10, description="passes over the training sequences")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="stop after this many optimiser steps")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="peak learning rate; null is the tuning method's default"
    )
    batch_residues: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens in one batch on one process, padding included"
    )
    accumulation: Annotated[int, Field(ge=1)] = Field(
        1, description="batches whose gradients are added up for one step"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW weight decay")
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.06, description="share of the steps over which the learning rate rises"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls after the warm-up"
    )
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(
        1.0, description="gradients are clipped to this norm; 0 switches clipping off"
    )
    early_stopping: Annotated[int, Field(ge=1)] | None = Field(
        3, description="stop after this many evaluations without a better validation metric; null never stops early"
    )
    metric: Name | None = Field(
        None, description="validation metric that picks the best checkpoint; null is the task's own"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="mixed precision; auto asks the device and the family"
    )
    features: Literal["auto", "fp32", "bf16", "off"] = Field(
        "auto", description="type in which the frozen part's output is kept on disk; auto is fp32 where that pays"
    )
    keep_features: bool = Field(False, description="leave what was kept in the cache, for other runs")
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None, description="balanced, or a weight per class"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seed of everything random")
    save_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="evaluate and save every so many steps; null is once an epoch"
    )
    report_to: list[Name] = Field([], description="trackers that transformers knows, for example tensorboard")

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_names_are_text(cls, value: Any) -> Any:
        return {str(name): weight for name, weight in value.items()} if isinstance(value, Mapping) else value


class CalibrationConfig(Section):
    """What the validation part says about how certain predictions are."""

    method: Literal["auto", "temperature", "isotonic", "none"] = Field(
        "auto",
        description="how probabilities are calibrated; auto is temperature where valid holds labels of classes",
    )
    level: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.9, description="share of new sequences whose truth intervals or sets of classes hold; null leaves them out"
    )
    neighbours: Annotated[int, Field(ge=0, le=100_000)] = Field(
        2000,
        description="training sequences that inputs are compared with, to tell far ones and widen their intervals; 0 "
        "leaves both out",
    )


class BaselinesConfig(Section):
    """What the same data give without a neural network, and with the pretrained one left as it is."""

    run: bool = Field(True, description="train baselines beside the model and compare it with them")
    minutes: Annotated[float, Field(gt=0)] = Field(
        2, description="time for all baselines; what does not fit learns from fewer sequences or is left out, and said"
    )


class LanguageModelConfig(Section):
    """Pretraining from scratch, or further from a model: what `pretraining.yaml` in the new folder holds."""

    files: list[Name] = Field(min_length=1, description="sequence files to learn from")
    valid: list[Name] = Field([], description="held-out sequence files; without them a part of the files is held out")
    general: list[Name] = Field([], description="sequence files on which forgetting is measured, before and after")
    model: Name = Field(description="scratch:NAME to begin with random weights, or the model to go on from")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(False, description="run code that the model brings along; needs a pinned revision")
    method: Literal["full", "lora"] = Field("full", description="train all weights, or low-rank updates of the blocks")
    keep_adapter: bool = Field(False, description="lora: leave the adapter too, beside the model it is merged into")
    rank: Annotated[int, Field(ge=1)] = Field(16, description="rank of LoRA")
    biases: bool = Field(True, description="train biases; without, those of all linear layers stay zero (cramming)")
    minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="budget: wall-clock minutes, all included")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="budget: optimiser steps")
    residues: Annotated[int, Field(ge=1)] | None = Field(None, description="budget: tokens read")
    crop: Annotated[int, Field(ge=16)] | None = Field(None, description="longest stretch read at a time, in tokens")
    batch_residues: Annotated[int, Field(ge=16)] | None = Field(
        None, description="tokens per forward pass on each process"
    )
    step_residues: Annotated[int, Field(ge=16)] | None = Field(
        None, description="tokens per optimiser step, by accumulation over passes and processes"
    )
    rate: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of tokens that is predicted")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(None, description="peak learning rate")
    optimizer: Literal["auto", "muon", "adamw"] = Field(
        "auto",
        description="muon: for weight matrices, AdamW for the rest; auto: muon for a new model, else adamw",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.05, description="decoupled weight decay")
    warmup_share: Annotated[float, Field(ge=0, le=0.5)] = Field(0.05, description="share of the budget that warms up")
    decay_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="share of the budget at the end in which the learning rate falls to zero"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradients are clipped to this norm")
    both_strands: bool | None = Field(None, description="DNA is read in both directions; null is yes for DNA")
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02, description="share of the stretches that is held out where no file is given"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the device has it")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    workers: Annotated[int, Field(ge=1)] = Field(1, description="processes that train together on a CPU")
    save_minutes: Annotated[float, Field(gt=0)] = Field(5, description="minutes between checkpoints")
    save_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="steps between checkpoints instead")
    report_to: Name | None = Field(None, description="a tracker that transformers knows, for example tensorboard")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="seed of weights, order, crops and masks")

    @model_validator(mode="after")
    def _one_budget(self) -> LanguageModelConfig:
        given = [name for name in ("minutes", "steps", "residues") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) or "none"
            raise ValueError(f"give one budget, minutes, steps or residues ({found} given)")
        return self

    @model_validator(mode="after")
    def _an_adapter_to_keep(self) -> LanguageModelConfig:
        if self.keep_adapter and self.method != "lora":
            raise ValueError("keep_adapter is for method lora: training all weights leaves no adapter")
        return self


class RunConfig(Section):
    """Everything that defines a run; `plft train --config run.yaml` repeats it."""

    task: Literal[
        "auto", "seq_classification", "seq_regression", "token_classification", "token_regression", "seq_multilabel"
    ] = Field("auto", description="what is predicted; auto decides from the labels and says so")
    data: DataConfig
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    tuning: TuningConfig = Field(default_factory=lambda: TuningConfig())
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig())
    calibration: CalibrationConfig = Field(default_factory=lambda: CalibrationConfig())
    baselines: BaselinesConfig = Field(default_factory=lambda: BaselinesConfig())

    @model_validator(mode="after")
    def _several_columns_fit_the_task(self) -> RunConfig:
        several = isinstance(self.data.label_column, list) and len(self.data.label_column) > 1
        if several and self.task not in ("auto", "seq_regression", "seq_multilabel"):
            raise ValueError(f"several label columns make a seq_regression or seq_multilabel, not a {self.task}")
        return self


def parse_last(text: str) -> int:
    """Read ``last-N`` and return N; anything else is a ValueError that says what is expected."""
    prefix, _, number = text.partition("-")
    if prefix != "last" or not number.isdigit() or int(number) < 1:
        raise ValueError(f"'{text}' is not of the form last-N (for example last-2)")
    return int(number)


class _Loader(yaml.SafeLoader):
    """YAML in which yes and no are the texts they look like: they are names of classes more often than truth values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds nothing but plain values


def load_config(path: str | Path) -> dict[str, Any]:
    """Read the YAML file of a run into a plain dict; `make_config` checks it. Errors name the file and the line."""
    sections = read_yaml(path)
    for name, section in sections.items():
        if known_keys(str(name)) and not isinstance(section, dict):
            raise PlftError(f"{Path(path).name}: '{name}' is a section of settings, but holds {_kind_of(section)}.")
    return sections


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; keys with nothing behind them are left out."""
    path = Path(path)
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlftError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PlftError(f"{path.name} cannot be read as a YAML text file: {reason}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PlftError(
            f"{path.name}{where}: not valid YAML ({getattr(error, 'problem', None) or 'cannot be parsed'})."
        ) from None
    if not isinstance(content, dict):
        raise PlftError(f"{path.name}: expected sections such as data: and model:, found {_kind_of(content)}.")
    return {name: each for name, each in content.items() if each is not None}  # a heading with nothing below it


def _kind_of(content: Any) -> str:
    names = {
        list: "a list",
        dict: "a mapping",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "a truth value",
    }
    return names.get(type(content), "nothing")


def set_values(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return a copy of `values` with each ``section.key=value`` set; values are YAML (``null``, numbers, lists)."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for assignment in assignments:
        key, value = assigned(assignment, "section.key=value, for example training.epochs=5")
        section, _, name = key.partition(".")
        if name:
            sections = [each for each in known_keys("") if known_keys(each)]
            if section not in sections:
                raise unknown_name("section of --set", section, sections)
            result[section] = {**(result.get(section) or {}), name: value}
        elif known_keys(section) and not isinstance(value, dict):
            raise PlftError(f"--set {section}: it is a section of settings. Name one: {section}.KEY=VALUE.")
        else:
            result[section] = value
    return result


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Say where two plain values differ: "training.epochs was 8, now 5"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *before]):
            yield from differences(before.get(key), now.get(key), f"{place}.{key}" if place else str(key))
    elif before != now:
        yield f"{place} was {_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not given" if value is None else str(value)


RUN_YAML = "run.yaml"
# What a run's own run.yaml states because plft chose it to fit another setting: where that changes, it is chosen anew.
FOLLOWERS = {
    ("tuning", "method"): [("training", "learning_rate")],
    ("model", "name"): [
        ("model", "revision"),
        ("training", "learning_rate"),
        ("training", "batch_residues"),
        ("data", "max_residues"),
    ],
    ("model", "head"): [("model", "pooling"), ("model", "head_layers")],
}


def merged(
    source: Path | None,
    flags: Mapping[str, Mapping[str, Any]],
    task: str | None,
    assignments: list[str],
    resumed: bool = False,
    varied: Collection[tuple[str, str]] = (),
) -> dict[str, Any]:
    """The values of a file, with flags (None is not given) and then `--set` laid over them.

    resumed: the file is of the run that goes on, so a model that is named again is the same, revision included.
    varied: settings that get several values later, so that nothing in a run's record that follows from them holds.
    """
    values = load_config(source) if source is not None else {}
    given = {name: {key: each for key, each in flag.items() if each is not None} for name, flag in flags.items()}
    kept = (values.get("model") or {}).get("name")
    if resumed and kept is not None and str(given.get("model", {}).get("name")).partition("@")[0] == kept:
        del given["model"]["name"]
    chosen = set_values({name: flag for name, flag in given.items() if flag}, assignments)
    if is_record(values) and not resumed:
        values = without_followers(values, chosen, varied)
    for name, each in chosen.items():
        values[name] = {**(values.get(name) or {}), **each} if isinstance(each, dict) else each
    if task is not None:
        values["task"] = task
    return values


def is_record(values: Mapping[str, Any]) -> bool:
    """Whether values are those of a finished configuration, with every key, and not what a user wrote down."""
    return all(set(known_keys(name)) <= set(values.get(name) or {}) for name in ("model", "tuning", "training"))


def without_followers(
    record: dict[str, Any], chosen: dict[str, Any], varied: Collection[tuple[str, str]] = ()
) -> dict[str, Any]:
    """A run's record without what follows from settings that are chosen otherwise now, or are varied."""

    def of(values: dict[str, Any], place: tuple[str, str]) -> Any:
        return (values.get(place[0]) or {}).get(place[1])

    left = {name: dict(each) if isinstance(each, dict) else each for name, each in record.items()}
    for place, followers in FOLLOWERS.items():
        if place in varied or of(chosen, place) not in (None, of(record, place)):
            for section, key in followers:
                left.get(section, {}).pop(key, None)
    return left


def configured(
    source: Path | None,
    flags: Mapping[str, Mapping[str, Any]],
    task: str | None,
    assignments: list[str],
    resumed: bool = False,
) -> RunConfig | None:
    """The configuration of a file with flags and `--set` (see `merged`); None where it names no data."""
    values = merged(source, flags, task, assignments, resumed)
    return make_config(values) if (values.get("data") or {}).get("file") else None


def assigned(assignment: str, form: str = "key=value, for example decay_share=0.5") -> tuple[str, Any]:
    """Read ``key=value``, the value in YAML (``null``, numbers, lists). form: what it should look like."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise PlftError(f"--set '{assignment}' is not of the form {form}.")
    try:
        return key.strip(), _parse(text)
    except yaml.YAMLError:
        raise PlftError(f"--set '{assignment}': the value is not valid YAML; put quotes around it.") from None


def make_config(values: dict[str, Any]) -> RunConfig:
    """Check plain values and build the configuration; the first three problems become one PlftError."""
    return _checked(RunConfig, values, "Configuration: ")


def data_config(values: dict[str, Any]) -> DataConfig:
    """As `make_config`, for the data alone."""
    return _checked(DataConfig, values, "")


def language_model_config(values: dict[str, Any]) -> LanguageModelConfig:
    """As `make_config`, for pretraining."""
    return _checked(LanguageModelConfig, values, "")


def _checked(model: type[Settings], values: dict[str, Any], heading: str) -> Settings:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        keys = None if model is RunConfig else list(model.model_fields)
        problems = [explain(each, keys) for each in error.errors() if not is_beside_the_point(each)]
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        text = heading + "; ".join(problems[:3]) + more
        text = text[0].upper() + text[1:]
        raise PlftError(text if text.endswith("?") else f"{text}.") from None


def is_beside_the_point(problem: Any) -> bool:
    """A mapping of class weights with a mistake in it is not "balanced" either, which nobody needs to be told."""
    return problem["type"] == "literal_error" and isinstance(problem["input"], dict)


def explain(problem: Any, keys: list[str] | None = None) -> str:
    """Put one pydantic problem in a user's words: the key, what is wrong, and the nearest known key.

    keys: that are known, where it is not a run's configuration.
    """
    # pydantic names the members of a union too, such as dict[str,...] and literal['balanced']
    place = ".".join(str(part) for part in problem["loc"] if str(part).replace("_", "").isalnum() or "." in str(part))
    if problem["type"] == "extra_forbidden":
        known = keys or known_keys(".".join(map(str, problem["loc"][:-1])))
        hint = did_you_mean(str(problem["loc"][-1]), known)
        return f"unknown key '{place}'; known here: {', '.join(known)}.{hint}".rstrip(".")
    if problem["type"] == "literal_error":
        given = str(problem["input"])
        choices = [each.strip("'") for each in problem["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        hint = did_you_mean(given, choices)
        return f"{place}: '{given}' is not known; choose from {', '.join(choices)}.{hint}".rstrip(".")
    if problem["type"] == "missing":
        return f"'{place}' is needed"
    if problem["type"] == "string_too_short":
        return f"{place} must not be empty"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = problem.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return f"{place}: {message}{shown}" if place else message


def known_keys(section: str) -> list[str]:
    """Keys of a section ("" is the top level)."""
    if not section:
        return list(RunConfig.model_fields)
    field = RunConfig.model_fields.get(section)
    fields = getattr(field.annotation, "model_fields", {}) if field else {}
    return list(fields)


def to_yaml(config: BaseModel) -> str:
    """The configuration as YAML, every key explicit, sections in a fixed order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
