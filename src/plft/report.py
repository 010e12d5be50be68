"""A run folder -> one self-contained page (report.html) and a model card (README.md).

The page holds no script and asks for nothing from anywhere; every text of the user's goes through escaping.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from plft import worth
from plft.findings import (
    PREDICTIONS,
    MetricLine,
    RunFiles,
    confusion_cells,
    data_notes,
    data_warnings,
    facts,
    frequent_confusions,
    headline,
    in_words,
    label_table,
    metric_lines,
    part_table,
    read_run,
    split_table,
    title,
)
from plft.metrics import METRICS
from plft.mistakes import Mistakes, worst_mistakes
from plft.plots import Line, agreement_chart, interval_bar, line_chart, typeset
from plft.reliability import certainty_notes, certainty_table, reliability_diagram
from plft.runfolder import write_text

REPORT, CARD = "report.html", "README.md"
MOST_CURVES = 8  # as many as there are colours
MOST_COLUMNS = 4  # of a multi-output regression that get a plot
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Figure:
    """A plot with its caption; legend: (colour number, name) of each curve, empty for a single one."""

    plot: Markup
    caption: str
    legend: tuple[tuple[int, str], ...] = ()


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder and return its path.

    Reads run.yaml and metrics.json, and where they are there history.jsonl, environment.json and the predictions of the
    main split.  Raises PlftError when the folder is not a run or one of the files is damaged.
    """
    run = read_run(Path(run_folder))
    return _write(run.folder / REPORT, render("report.html.j2", page(run)))


def write_model_card(run_folder: Path) -> Path:
    """Write README.md, the model card, into a run folder and return its path. Raises PlftError like `write_report`."""
    run = read_run(Path(run_folder))
    front = yaml.safe_dump(front_matter(run), sort_keys=False, allow_unicode=True)
    return _write(run.folder / CARD, render("model_card.md.j2", {**words(run), "front_matter": front}))


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


def render(template: str, context: dict[str, Any]) -> str:
    """Fill in one of the package's templates; values are escaped in HTML."""
    environment = Environment(
        loader=PackageLoader("plft", "templates"),
        autoescape=lambda name: name is None or ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = markdown_cell
    return environment.get_template(template).render(context)


def markdown_cell(text: object) -> str:
    """Make a text safe inside a Markdown table: no markup, no cell borders, no line breaks."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", flat)


def words(run: RunFiles) -> dict[str, Any]:
    """Return what page and card both say."""
    name = run.folder.resolve().name
    return {
        "title": title(run),
        "headline": headline(run),
        "facts": facts(run),
        "splits": split_table(run),
        "labels": label_table(run),
        "notes": data_notes(run),
        "warnings": data_warnings(run),
        "evaluated": list(run.splits),
        "metrics": metric_lines(run),
        "verdict": worth.verdict(run.results),
        "baselines": worth.table(run),
        "left_out": worth.left_out(run),
        "resamples": run.details.get("resamples"),
        "parts": part_table(run),
        "several_columns": len(run.details.get("per_column") or {}) > 1,
        "run_name": name,
        "run_in_shell": shlex.quote(name),
        "run_in_python": json.dumps(name, ensure_ascii=False),
        "command": run.environment.get("command"),
        "versions": run.environment.get("versions") or {},
        "data_file": Path(str((run.environment.get("data") or {}).get("file") or "")).name,
        "data_sha256": (run.environment.get("data") or {}).get("sha256"),
    }


def page(run: RunFiles) -> dict[str, Any]:
    """Return everything the page's template shows."""
    return words(run) | {
        "bars": _bars(run),
        "bar_span": [typeset(str(end)) for end in bar_span(run)],
        "training": training_figures(run),
        "confusion": confusion_cells(run),
        "confusions": frequent_confusions(run),
        "classes": run.classes,
        "figures": [*curve_figures(run), *agreement_figures(run)],
        "certainty": certainty_table(run),
        "certainty_notes": certainty_notes(run),
        "reliability": reliability_diagram(run),
        "mistakes": _mistakes(run),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
    }


def front_matter(run: RunFiles) -> dict[str, Any]:
    """Return the card's metadata in the terms of the Hugging Face hub."""
    name = str((run.config.get("model") or {}).get("name", "")).partition("@")[0]
    values = {line.row.name: line.entry["value"] for line in metric_lines(run) if line.entry["value"] is not None}
    results = [{"type": name, "value": round(value, 6)} for name, value in values.items()]
    return {
        "library_name": "plft",
        "tags": ["biology", "biological-sequences", "fine-tuning", run.task.value.replace("_", "-")],
        **({"base_model": name} if HUB_ID.fullmatch(name) else {}),
        "metrics": list(values),
        "model-index": [
            {
                "name": run.folder.resolve().name,
                "results": [
                    {
                        "task": {"type": run.task.value.replace("_", "-")},
                        "dataset": {
                            "name": title(run).partition(" with ")[0],
                            "type": "custom",
                            "split": run.main_split,
                        },
                        "metrics": results,
                    }
                ],
            }
        ],
    }


# --- figures


def training_figures(run: RunFiles) -> list[Figure]:
    """Return the loss and the main metric over epochs; nothing where the run kept no history."""
    valid_metric = f"valid_{run.main_metric}"
    losses = [_over_epochs(run, "loss", "training"), _over_epochs(run, "valid_loss", "validation", with_marks=True)]
    losses = [line for line in losses if line.x]
    score = _over_epochs(run, valid_metric, "validation", with_marks=True)
    figures = []
    if losses:
        legend = tuple((at, line.name) for at, line in enumerate(losses))
        summary = f"Loss over epochs; the last training loss is {losses[0].y[-1]:.3g}."
        figures.append(
            Figure(
                line_chart(losses, ("epoch", "loss"), summary),
                "Loss of training and validation." if len(losses) > 1 else "Training loss.",
                legend,
            )
        )
    if score.x:
        figures.append(_score_figure(run, score))
    return figures


def _over_epochs(run: RunFiles, key: str, name: str, with_marks: bool = False) -> Line:
    rows = [row for row in run.history if row.get(key) is not None and row.get("epoch") is not None]
    return Line(name, [row["epoch"] for row in rows], [row[key] for row in rows], with_marks)


def _score_figure(run: RunFiles, score: Line) -> Figure:
    row = METRICS[run.main_metric]
    best = (max if row.higher_is_better else min)(range(len(score.y)), key=lambda at: score.y[at])
    caption = f"Validation {row.title}; best {in_words(score.y[best], row.name)} at epoch {score.x[best]:g}."
    return Figure(line_chart([score], ("epoch", row.title), caption, first_colour=1), caption)


def curve_figures(run: RunFiles) -> list[Figure]:
    """Return ROC and precision-recall curves of the main split, of the eight most frequent classes at most."""
    per_class = run.details.get("per_class") or {}
    roc, pr = run.details.get("roc") or {}, run.details.get("pr") or {}
    chosen = sorted(roc, key=lambda name: -per_class.get(name, {}).get("support", 0))[:MOST_CURVES]
    names = [name for name in roc if name in chosen]
    if not names:
        return []
    several = f" The {MOST_CURVES} most frequent classes." if len(per_class) > len(names) > 1 else ""
    return [
        _curves(run, roc, names, "roc_auc", ("false positive rate", "true positive rate"), "ROC curve", several),
        _curves(run, pr, names, "pr_auc", ("recall", "precision"), "Precision against recall", several),
    ]


def _curves(
    run: RunFiles,
    curves: dict[str, Any],
    names: Sequence[str],
    metric: str,
    titles: tuple[str, str],
    what: str,
    several: str,
) -> Figure:
    entry = run.splits[run.main_split]["metrics"].get(metric, {"value": None})
    caption = f"{what}; {METRICS[metric].title} {in_words(entry['value'], metric)}.{several}"
    lines = [Line(name, *curves[name]) for name in names]
    legend = tuple(enumerate(names)) if len(names) > 1 else ()
    whole = (0.0, 1.0)
    plot = line_chart(lines, titles, caption, x_range=whole, y_range=whole, with_diagonal=metric == "roc_auc")
    return Figure(plot, caption, legend)


def agreement_figures(run: RunFiles) -> list[Figure]:
    """Return predicted against true values, one plot for each of the first four columns that have any."""
    figures = []
    drawable = {name: pair for name, pair in (run.details.get("scatter") or {}).items() if pair[0]}
    for name, (true, predicted) in list(drawable.items())[:MOST_COLUMNS]:
        values = run.details.get("per_column", {}).get(name, {})
        what = f"{name}, predicted against true" if len(run.details["scatter"]) > 1 else "Predicted against true"
        caption = f"{what}; Spearman {in_words(values.get('spearman'), 'spearman')}."
        if len(true) < run.splits[run.main_split]["n_scored"]:
            caption += f" {len(true):,} points drawn at random."
        figures.append(Figure(agreement_chart(true, predicted, caption), caption))
    return figures


def bar_span(run: RunFiles) -> tuple[int, int]:
    """Return the range of the interval bars: from 0 to 1, or from -1 where a metric of the main split is negative."""
    lows = [value for line in metric_lines(run) if has_bar(line) for value in (line.entry["value"], line.entry["low"])]
    return (-1 if any(low is not None and low < 0 for low in lows) else 0), 1


def has_bar(line: MetricLine) -> bool:
    """Whether the metric lives between -1 and 1 here; errors and a very bad R2 have no natural range."""
    lowest = line.entry["low"] if line.entry.get("low") is not None else line.entry["value"]
    return lowest is not None and lowest >= -1 and line.row.higher_is_better


def _bars(run: RunFiles) -> dict[str, Markup]:
    span = bar_span(run)
    lines = {line.row.name: line for line in metric_lines(run)}
    return {
        name: interval_bar(line.entry["value"], line.entry["low"], line.entry["high"], span)
        if has_bar(line)
        else Markup("")
        for name, line in lines.items()
    }


def _mistakes(run: RunFiles) -> Mistakes | None:
    table = run.folder / PREDICTIONS / f"{run.main_split}.csv"
    found = worst_mistakes(table, run.task) if table.is_file() else None
    return found if found and found.rows else None
