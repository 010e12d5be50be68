"""Which settings are worth searching, and in which range. TABLE: SPACE.

Epochs are not among them: early stopping finds their number in every trial. What would change the data, the measure or
the luck of the draw is never searched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from plft.config import RunConfig, assigned, is_record, known_keys, make_config, without_followers
from plft.errors import PlftError, did_you_mean, first_three
from plft.heads import HEADS
from plft.tuning import find_method

Kind = Literal["log", "uniform", "integer", "log integer", "choice"]
Value = str | int | float | bool | None
SEARCHED = ("model", "tuning", "training")  # sections of the configuration that hold what can be searched
FEW = 10  # whole numbers that are tried one by one
LOG_FROM = 10  # a range whose ends differ by this factor is searched on a logarithmic scale
LOW_RANK = ("lora", "dora", "qlora")


@dataclass(frozen=True)
class Row:
    """One setting that is worth searching.

    values: the ends of a range, or the choices.  of_default: they are factors of the default.  methods: tuning methods
    on which the setting has an effect; none named is all of them.  why: in a few words, with the source.
    """

    key: str
    kind: Kind
    values: tuple[Value, ...]
    why: str
    of_default: bool = False
    methods: tuple[str, ...] = ()


SPACE: dict[str, Row] = {
    row.key: row
    for row in (
        Row(
            *("training.learning_rate", "log", (0.1, 10.0), "often the single most important one (Bengio 2012)"),
            of_default=True,
        ),
        Row(
            *("training.batch_residues", "choice", (0.5, 1.0, 2.0), "small batches often do better (Masters 2018)"),
            of_default=True,
        ),
        Row("model.head", "choice", ("mlp", "linear", "cnn"), "how much the head must add depends on the backbone"),
        Row("model.head_width", "choice", (None, 64, 256), "few labels bear few weights"),
        Row("model.head_dropout", "uniform", (0.0, 0.5), "the smaller the data, the more (Srivastava et al. 2014)"),
        Row(
            *("tuning.rank", "choice", (4, 8, 16, 32), "small ranks often suffice (Hu et al. 2021, section 7.2)"),
            methods=LOW_RANK,
        ),
        Row("tuning.dropout", "uniform", (0.0, 0.2), "against learning by heart", methods=LOW_RANK),
        Row(
            *("tuning.bottleneck", "choice", (8, 32, 64, 256), "tasks differ in what suits them (Houlsby et al. 2019)"),
            methods=("adapter",),
        ),
    )
}

NEVER = {
    "data": "it would change what is measured",
    "task": "it would change what is measured",
    "calibration": "it does not change the model",
    "baselines": "it does not change the model",
    "training.metric": "trials are compared by it",
    "training.seed": "the best of several seeds is luck, not a better setting",
    "training.report_to": "it does not change the model",
    "training.features": "it does not change the model",
    "training.keep_features": "it does not change the model",
    "model.trust_remote_code": "consent is not a matter of trying",
}


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched, and its range or choices."""

    key: str
    kind: Kind
    values: tuple[Value, ...]
    why: str = ""

    def __str__(self) -> str:
        if self.kind == "choice":
            return ", ".join(map(written, self.values))
        return f"{written(self.values[0])} to {written(self.values[1])}" + (", log" if "log" in self.kind else "")

    @property
    def typed(self) -> str:
        """Range or choices as `--search` takes them."""
        between = "," if self.kind == "choice" else ".."
        return between.join("null" if each is None else str(each) for each in self.values)

    @property
    def every(self) -> Sequence[Value] | None:
        """All values that can be drawn, where there are few: choices, or a short range of whole numbers."""
        if self.kind == "choice":
            return self.values
        low, high = self.values
        is_short = "integer" in self.kind and high - low < FEW  # type: ignore[operator]
        return range(low, high + 1) if is_short else None  # type: ignore[arg-type, operator]

    def holds(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        if self.kind == "choice":
            return any(value == each and type(value) is type(each) for each in self.values)
        low, high = self.values
        return isinstance(value, int | float) and low <= value <= high  # type: ignore[operator]


def written(value: Value) -> str:
    """A setting in a few characters: three significant digits; null is the default."""
    if value is None:
        return "default"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def search_space(
    wanted: Sequence[str], config: RunConfig, default: RunConfig, fixed: Collection[str] = ()
) -> list[Dimension]:
    """What is searched: the table's rows that have an effect and are not fixed, or exactly the settings in `wanted`.

    wanted: ``section.key=low..high``, ``section.key=a,b,c``, or ``section.key`` for the table's own range.  config: as
    the user gave it; what it states is fixed, unless it is the record of a run.  default: the same with every choice
    made.  fixed: more settings that stay as they are, by `section.key`.  Raises PlftError for what cannot be searched.
    """
    if wanted:
        space = [asked_for(each, config, default) for each in wanted]
        twice = sorted({each.key for each in space if [other.key for other in space].count(each.key) > 1})
        if twice:
            raise PlftError(f"--search names {', '.join(twice)} twice. Give all values at once: {twice[0]}=a,b,c.")
    else:
        kept = {*fixed, *stated(config)}
        space = [from_row(row, default) for row in SPACE.values() if row.key not in kept]
        space = [usable for each in space if (usable := without_idle_heads(each, kept)) is not None]
        space = [each for each in space if may_matter(each.key, space, default)]
    if not space:
        raise PlftError("Every setting that is worth searching is fixed. Name what to search: --search SETTING.")
    idle = [each.key for each in space if not may_matter(each.key, space, default)]
    if idle:
        setting = f"tuning.method {default.tuning.method} and model.head {default.model.head}"
        raise PlftError(f"--search {first_three(idle)} has no effect with {setting}. Leave it out.")
    # heads and methods are drawn first: what else is drawn depends on them
    return sorted(space, key=lambda each: each.key not in ("model.head", "tuning.method"))


def stated(config: RunConfig) -> set[str]:
    """The settings that the user wrote down, by `section.key`; none in a run's record, which states all of them."""
    values = config.model_dump(exclude_unset=True)
    if is_record(values):
        return set()
    return {f"{name}.{key}" for name in SEARCHED for key, each in values.get(name, {}).items() if each is not None}


def without_idle_heads(dimension: Dimension, kept: Collection[str]) -> Dimension | None:
    """The choice among heads without those on which a setting that is kept has no effect; None if one head is left."""
    if dimension.key != "model.head":
        return dimension
    heads = [str(each) for each in dimension.values]
    able = tuple(each for each in heads if not any(f"model.{name}" in kept for name in HEADS[each].ignores))
    return replace(dimension, values=able) if len(able) > 1 else None


def from_row(row: Row, default: RunConfig) -> Dimension:
    """A row of the table around the default, which is always among its choices."""
    usual = value_of(default, row.key)
    values: tuple[Any, ...] = row.values
    if row.of_default:
        scaled = [usual * factor for factor in values]
        values = tuple(max(1, round(each)) if isinstance(usual, int) else float(f"{each:.3g}") for each in scaled)
    if row.kind == "choice":
        values = tuple(dict.fromkeys(values if usual in values else (usual, *values)))
    return Dimension(row.key, row.kind, values, row.why)


def asked_for(text: str, config: RunConfig, default: RunConfig) -> Dimension:
    """Read one `--search`; every value it names must be one that `--set` would take."""
    key, equals, values = (each.strip() for each in text.partition("="))
    check_key(key)
    if not equals:
        if key not in SPACE:
            raise PlftError(f"--search {key}: no range is known for it. Give one: {key}=low..high or {key}=a,b,c.")
        return from_row(SPACE[key], default)
    low, dots, high = values.partition("..")
    if not dots:
        choices = tuple(dict.fromkeys(checked(config, key, each) for each in listed(text, values)))
        if len(choices) < 2:
            raise PlftError(f"--search {text} leaves nothing to choose. Use --set for one value.")
        return Dimension(key, "choice", choices)
    ends = tuple(checked(config, key, number(text, each)) for each in (low, high))
    return Dimension(key, kind_of(text, *ends), ends)


def check_key(key: str) -> None:
    """Refuse what is no setting, and what must not be searched."""
    section, _, name = key.partition(".")
    reason = NEVER.get(key) or NEVER.get(section)
    if reason:
        raise PlftError(f"--search {key} is not possible: {reason}. Use --set {key}=... for one value.")
    known = [f"{each}.{field}" for each in SEARCHED for field in known_keys(each)]
    known = [each for each in known if each not in NEVER]
    if not name or key not in known:
        raise PlftError(f"--search: unknown setting '{key}'; see docs/configuration.md.{did_you_mean(key, known)}")


def listed(text: str, values: str) -> list[Value]:
    """The choices between commas, as YAML reads them."""
    found = assigned(f"choices=[{values}]")[1]
    if any(isinstance(each, list | dict) for each in found):
        raise PlftError(f"--search {text}: choices are single values between commas, for example tuning.rank=4,8,16.")
    return found


def number(text: str, end: str) -> float:
    """One end of a range."""
    try:
        value = float(end)
    except ValueError:
        raise PlftError(f"--search {text}: '{end}' is not a number. Ranges look like 1e-5..1e-3.") from None
    return int(value) if value.is_integer() else value


def kind_of(text: str, low: Any, high: Any) -> Kind:
    """The scale of a range: logarithmic where its ends differ tenfold or more."""
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (low, high))
    if not numbers or low >= high:
        raise PlftError(f"--search {text}: a range goes from a smaller number to a larger one.")
    is_log = low > 0 and high / low >= LOG_FROM
    if isinstance(low, int) and isinstance(high, int):
        return "log integer" if is_log else "integer"
    return "log" if is_log else "uniform"


def checked(config: RunConfig, key: str, value: Any) -> Any:
    """The value as the configuration reads it; a PlftError where it does not take it."""
    return value_of(with_settings(config, {key: value}), key)


def with_settings(config: RunConfig, settings: Mapping[str, Any], fixed: Collection[str] = ()) -> RunConfig:
    """A copy of a configuration with some settings changed, by `section.key`.

    What a run's record states because it fits another head or method is chosen anew, unless it is fixed.
    """
    values = config.model_dump(exclude_unset=True)
    chosen: dict[str, dict[str, Any]] = {name: {} for name in SEARCHED}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        chosen[section][name] = value
    if is_record(values):
        values = without_followers(values, chosen)
        for key in fixed:
            section, _, name = key.partition(".")
            if section in chosen:
                chosen[section].setdefault(name, value_of(config, key))
    return make_config(values | {name: {**values.get(name, {}), **each} for name, each in chosen.items()})


def value_of(config: RunConfig, key: str) -> Any:
    """The value of `section.key`."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def has_effect(key: str, head: str, method: str) -> bool:
    """Whether a setting does anything with this head and this tuning method."""
    section, _, name = key.partition(".")
    if section == "model":
        return name not in HEADS[head].ignores
    methods = SPACE[key].methods if key in SPACE else ()
    return not methods or find_method(method).name in methods


def may_matter(key: str, space: Iterable[Dimension], default: RunConfig) -> bool:
    """Whether a setting has an effect with one at least of the heads and methods that are tried."""
    tried = {each.key: each.values for each in space}
    heads: Any = tried.get("model.head", (default.model.head,))
    methods: Any = tried.get("tuning.method", (default.tuning.method,))
    return any(has_effect(key, head, method) for head in heads for method in methods)
