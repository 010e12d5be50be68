"""What a run folder says about itself: its documented files, and the words and tables a reader gets from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plft.config import RUN_YAML
from plft.errors import PlftError
from plft.labels import TaskType
from plft.metrics import METRICS, MetricRow, metrics_for
from plft.plots import significant, typeset

METRICS_JSON, HISTORY = "metrics.json", "history.jsonl"
ENVIRONMENT, PREDICTIONS = "environment.json", "predictions"
MOST_CLASSES_IN_MATRIX = 15
MOST_CLASSES_IN_TABLES = 40

TASK_TITLES = {
    TaskType.SEQ_CLASSIFICATION: "one class per sequence",
    TaskType.SEQ_REGRESSION: "numbers per sequence",
    TaskType.TOKEN_CLASSIFICATION: "one class per residue",
    TaskType.TOKEN_REGRESSION: "one number per residue",
    TaskType.SEQ_MULTILABEL: "any number of classes per sequence",
}
LOW_RANK = "{title}, rank {rank}, alpha {alpha:g}"
TUNING_TITLES = {
    "head": "head only, backbone frozen",
    "full": "full fine-tuning",
    "lora": LOW_RANK.replace("{title}", "LoRA"),
    "dora": LOW_RANK.replace("{title}", "DoRA"),
    "qlora": LOW_RANK.replace("{title}", "QLoRA (4-bit)"),
    "ia3": "(IA)³",
    "adapter": "bottleneck adapters, width {bottleneck}",
}


@dataclass(frozen=True)
class RunFiles:
    """What a run folder says about itself, as read from its documented files."""

    folder: Path
    task: TaskType
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]

    @property
    def splits(self) -> dict[str, Any]:
        """Evaluated splits: test first, other test sets, then valid, then train."""
        return in_order(self.results.get("splits", {}))

    @property
    def main_split(self) -> str:
        """The split that the headline and the plots show."""
        return next(iter(self.splits))

    @property
    def details(self) -> Mapping[str, Any]:
        """Confusion matrix, curves and the like of the main split."""
        found: Mapping[str, Any] = self.splits[self.main_split].get("details", {})
        return found

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.results.get("classes", ())]

    @property
    def main_metric(self) -> str:
        """The metric of the headline; the task's first one where the run names none."""
        there = self.splits[self.main_split]["metrics"]
        named = self.results.get("main_metric")
        return str(named) if named in there and named in METRICS else next(name for name in METRICS if name in there)


def in_order(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Sort evaluated splits: test first, other test sets, then valid, then train."""
    rank = {"test": 0, "valid": 2, "train": 3}
    return dict(sorted(splits.items(), key=lambda item: (rank.get(item[0], 1), item[0])))


def read_run(folder: Path) -> RunFiles:
    """Read a run folder. Raises PlftError when it is not one, or when a file in it is broken."""
    for name in (RUN_YAML, METRICS_JSON):
        if not (folder / name).is_file():
            raise PlftError(
                f"{folder}: there is no {name}, so this is not a finished run. Give the folder of plft train --out."
            )
    results = _read(folder / METRICS_JSON, json.loads)
    task = TaskType.named(str(results.get("task")))
    if not isinstance(results.get("splits"), dict) or not results["splits"]:
        raise PlftError(f"{folder / METRICS_JSON}: no split was evaluated. Train again with a valid or test split.")
    run = RunFiles(
        folder=folder,
        task=task,
        config=_read(folder / RUN_YAML, yaml.safe_load),
        results=results,
        history=_read(folder / HISTORY, _json_lines, list) if (folder / HISTORY).is_file() else [],
        environment=_read(folder / ENVIRONMENT, json.loads) if (folder / ENVIRONMENT).is_file() else {},
    )
    broken = [name for name, each in run.splits.items() if not isinstance(each, dict) or not each.get("metrics")]
    if broken:
        raise PlftError(f"{folder / METRICS_JSON} is damaged (no metrics of {broken[0]}). Restore it, or train again.")
    return run


def _read(file: Path, parse: Callable[[str], Any], kind: type = dict) -> Any:
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise PlftError(f"{file} is damaged ({reason}). Restore the file, or train again.") from None
    if not isinstance(content, kind):
        raise PlftError(f"{file} is damaged (it holds no sections). Restore the file, or train again.")
    return content


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


# --- words and numbers


def in_words(value: float | None, metric: str = "") -> str:
    """Write a metric: three decimals, three significant digits for errors in the label's unit, or "undefined"."""
    if value is None:
        return "undefined"
    on_a_common_scale = metric in METRICS and METRICS[metric].higher_is_better
    return typeset(f"{value:.3f}") if on_a_common_scale else significant(value)


def interval_in_words(entry: Mapping[str, Any], metric: str) -> str:
    """Write "0.74 to 0.87", or nothing where there is no interval."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"{in_words(entry['low'], metric)} to {in_words(entry['high'], metric)}"


def duration(seconds: float | None) -> str:
    """Write seconds as "41 s", "3 min 12 s" or "2 h 5 min"."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tuning_title(tuning: Mapping[str, Any]) -> str:
    """Name the tuning method with the settings that matter for it."""
    method = str(tuning.get("method", ""))
    if method.startswith("last-"):
        return f"last {method.removeprefix('last-')} blocks"
    defaults = {"rank": "?", "alpha": math.nan, "bottleneck": "?"}
    return TUNING_TITLES.get(method, method).format(**{**defaults, **tuning})


def headline(run: RunFiles) -> dict[str, str]:
    """Return the parts of the page's first sentence."""
    split, metric = run.splits[run.main_split], run.main_metric
    entry = split["metrics"][metric]
    scored = f"{split['n_scored']:,} sequences"
    if run.task.is_residue:
        scored = f"{split['n_scored']:,} residues in {split.get('n_sequences', split['n']):,} sequences"
    return {
        "metric": METRICS[metric].title,
        "value": in_words(entry["value"], metric),
        "interval": interval_in_words(entry, metric),
        "split": run.main_split,
        "scored": scored,
    }


def title(run: RunFiles) -> str:
    """Name the run by what was learned and from what."""
    data = Path(str(_section(run, "data").get("file", "data")))
    return f"{data.name.split('.')[0] or 'data'} with {_model_name(run)}"


def _section(run: RunFiles, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.config.get(name) or {}
    return found


def _model_name(run: RunFiles) -> str:
    name = run.environment.get("model", {}).get("name") or _section(run, "model").get("name", "model")
    return str(name)


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what was run, as pairs of a term and its value; what is not known is left out."""
    environment, model = run.environment, _section(run, "model")
    parameters = environment.get("parameters", {})
    hardware = [environment.get("device"), environment.get("precision")]
    pairs = [
        ("Task", f"{run.task.value} ({TASK_TITLES[run.task]})"),
        ("Model", _model_name(run)),
        ("Revision", environment.get("model", {}).get("revision")),
        ("Family", environment.get("family")),
        ("Tuning", tuning_title(_section(run, "tuning"))),
        (
            "Head",
            environment.get("head") or ", ".join(str(model[key]) for key in ("head", "pooling") if model.get(key)),
        ),
        ("Settings", _how_chosen(run.results.get("search"))),
        ("Parameters trained", _trained(parameters)),
        ("Device", ", ".join(str(part) for part in hardware if part)),
        ("Training time", duration(environment.get("seconds"))),
        ("Seed", str(_section(run, "training").get("seed", ""))),
    ]
    return [(term, str(value)) for term, value in pairs if value]


def _how_chosen(search: Mapping[str, Any] | None) -> str:
    """Write how a search chose the settings, and what that does to the scores on valid."""
    if not search:
        return ""
    metric = METRICS[search["metric"]].title
    return (
        f"chosen among {search['trials']:,} trials by {metric} on valid, whose scores are therefore optimistic; "
        "test was not looked at"
    )


def _trained(parameters: Mapping[str, int]) -> str:
    if not parameters:
        return ""
    trainable, total = parameters["trainable"], parameters["total"]
    return f"{trainable:,} of {total:,} ({100 * trainable / max(total, 1):.3g} %)"


# --- data


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first n_text columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int = 1


def split_table(run: RunFiles) -> Table:
    """Return sequences, and scored labels where evaluated, of every split."""
    counts = dict(_data(run).get("counts") or {})
    for name, split in run.splits.items():
        counts.setdefault(name, split["n"])
    unit = "scored residues" if run.task.is_residue else "scored labels"
    rows = [
        (name, _count(counts[name]), _count(run.splits.get(name, {}).get("n_scored")))
        for name in sorted(counts, key=_reading_order)
    ]
    return Table(("split", "sequences", unit), tuple(rows))


def label_table(run: RunFiles) -> Table | None:
    """Return the balance of classes, or the range of values, per split; None where nothing is known.

    They come from the audit in environment.json, which covers all splits; without one, from the evaluated splits.
    """
    part = "ranges" if run.task.is_regression else "classes"
    audited = {split: found.get(part) for split, found in (_audit(run).get("labels") or {}).items()}
    labels = {split: found for split, found in audited.items() if found} or _scored_labels(run)
    if not labels:
        return None
    labels = {split: labels[split] for split in sorted(labels, key=_reading_order)}
    if run.task.is_regression:
        return _range_table(labels)
    shown = run.classes[:MOST_CLASSES_IN_TABLES]
    rows = [(name, *(_class_count(run, name, counts) for counts in labels.values())) for name in shown]
    return Table(("class", *labels), tuple(rows))


def _reading_order(split: str) -> tuple[int, str]:
    return {"train": 0, "valid": 1, "test": 2}.get(split, 3), split


def _class_count(run: RunFiles, name: str, counts: Mapping[str, int]) -> str:
    """Write a count with its share; in multi-label tasks classes overlap, so that a share of all says little."""
    n = counts.get(name, 0)
    return f"{n:,}" if run.task.is_multilabel else f"{n:,} ({n / max(sum(counts.values()), 1):.0%})"


def _range_table(labels: Mapping[str, Any]) -> Table:
    names = ("min", "mean", "max")
    has_several = any(len(columns) > 1 for columns in labels.values())
    rows = [
        (f"{split}, {column}" if has_several else split, *(_known(values.get(name)) for name in names))
        for split, columns in labels.items()
        for column, values in columns.items()
    ]
    return Table(("label", *names), tuple(rows))


def _known(value: float | None) -> str:
    return "" if value is None else significant(value)


def _scored_labels(run: RunFiles) -> dict[str, dict[str, Any]]:
    if run.task.is_regression:
        ranges = {name: split.get("details", {}).get("range") for name, split in run.splits.items()}
        return {split: found for split, found in ranges.items() if found}
    per_class = {name: split.get("details", {}).get("per_class") for name, split in run.splits.items()}
    return {
        split: {name: values["support"] for name, values in classes.items()}
        for split, classes in per_class.items()
        if classes
    }


def data_notes(run: RunFiles) -> list[str]:
    """Return what the data is like and what happened to it on the way in, one sentence each; warnings left out."""
    lengths, warnings = _audit(run).get("lengths"), data_warnings(run)
    notes = (
        [f"Lengths {lengths['min']:,} to {lengths['max']:,} residues, median {lengths['median']:,g}."]
        if lengths
        else []
    )
    said = [_sentence(str(each)) for each in run.environment.get("sentences") or _counted(_data(run))]
    return notes + [each for each in said if each not in warnings]


def _counted(data: Mapping[str, Any]) -> list[str]:
    words = {
        "truncated": "sequences were longer than the model reads and lost their end",
        "dropped": "sequences were dropped",
        "duplicated": "sequences occur more than once",
        "unknown_letters": "letters are not in the alphabet and were read as unknown",
    }
    return [f"{data[key]:,} {what}" for key, what in words.items() if data.get(key)]


def data_warnings(run: RunFiles) -> list[str]:
    """Return what the audit of the data warned of."""
    return [_sentence(str(warning)) for warning in _audit(run).get("warnings") or ()]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _data(run: RunFiles) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.environment.get("data") or {}
    return found


def _audit(run: RunFiles) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _data(run).get("audit") or {}
    return found


def _count(n: int | None) -> str:
    return "" if n is None else f"{n:,}"


# --- results


@dataclass(frozen=True)
class MetricLine:
    """One row of the metrics table.  cells: (value, interval) in words for each split.  entry: the main split's."""

    row: MetricRow
    cells: tuple[tuple[str, str], ...]
    entry: Mapping[str, Any]


def metric_lines(run: RunFiles) -> list[MetricLine]:
    """Return the metrics of every evaluated split, the main metric first, then in the order of METRICS."""
    known = [
        row for row in metrics_for(run.task, len(run.classes)) if row.name in run.splits[run.main_split]["metrics"]
    ]
    known.sort(key=lambda row: row.name != run.main_metric)
    lines = []
    for row in known:
        entries = [split["metrics"].get(row.name, {"value": None}) for split in run.splits.values()]
        cells = tuple((in_words(entry["value"], row.name), interval_in_words(entry, row.name)) for entry in entries)
        lines.append(MetricLine(row, cells, entries[0]))
    return lines


def part_table(run: RunFiles) -> Table | None:
    """Return the results per class or per column of the main split; None where there is only one."""
    per_class, per_column = run.details.get("per_class") or {}, run.details.get("per_column") or {}
    if len(per_column) > 1:
        names = [row.name for row in metrics_for(run.task, 0)]
        rows = [
            (column, *(in_words(values.get(name), name) for name in names)) for column, values in per_column.items()
        ]
        return Table(("column", *(METRICS[name].title for name in names)), tuple(rows))
    if len(per_class) < (2 if run.task.is_multilabel else 3):
        return None
    names = ["precision", "recall", "f1", "roc_auc", "pr_auc"]
    common = sorted(per_class.items(), key=lambda item: -item[1]["support"])[:MOST_CLASSES_IN_TABLES]
    kept = [(name, values) for name, values in per_class.items() if name in dict(common)]
    rows = [(n, f"{v['support']:,}", *(in_words(v.get(each), each) for each in names)) for n, v in kept]
    return Table(("class", "n", "precision", "recall", "F1", "ROC-AUC", "PR-AUC"), tuple(rows))


@dataclass(frozen=True)
class Cell:
    """One cell of the confusion matrix: a count, its share of the true class, and whether it is right."""

    count: str
    share: float
    is_right: bool


def confusion_cells(run: RunFiles) -> list[tuple[str, list[Cell]]]:
    """Return (true class, cells by predicted class); empty when there are too many classes to read."""
    matrix = run.details.get("confusion") or []
    if not 0 < len(matrix) <= MOST_CLASSES_IN_MATRIX:
        return []
    rows = []
    for at, counts in enumerate(matrix):
        total = max(sum(counts), 1)
        rows.append((run.classes[at], [Cell(f"{n:,}", n / total, at == to) for to, n in enumerate(counts)]))
    return rows


def frequent_confusions(run: RunFiles, most: int = 10) -> Table | None:
    """Return the most frequent confusions; None when the matrix is small enough to be shown whole, or unknown."""
    matrix = run.details.get("confusion") or []
    if len(matrix) <= MOST_CLASSES_IN_MATRIX:
        return None
    wrong = [(n, at, to) for at, counts in enumerate(matrix) for to, n in enumerate(counts) if n and at != to]
    wrong.sort(key=lambda each: (-each[0], each[1:]))
    rows = [
        (f"{run.classes[at]} taken for {run.classes[to]}", f"{n:,}", f"{n / sum(matrix[at]):.0%}")
        for n, at, to in wrong
    ]
    return Table(("confusion", "count", "of the true class"), tuple(rows[:most]))
