"""How far a run's probabilities and intervals hold, in a table, a sentence and a diagram for its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from plft.calibration import METHODS, TEMPERATURE
from plft.findings import RunFiles, Table
from plft.plots import Line, line_chart, significant


@dataclass(frozen=True)
class Diagram:
    """A plot with its caption and the names of its curves, by colour."""

    plot: Markup
    caption: str
    legend: tuple[tuple[int, str], ...]


def certainty_table(run: RunFiles) -> Table | None:
    """Return calibration error, coverage and far inputs of every evaluated split; None where nothing was fitted."""
    splits = _splits(run)
    columns = [(title, cell) for title, cell in _columns(run) if any(cell(each) for each in splits.values())]
    if not splits or not columns:
        return None
    rows = [(name, *(cell(each) for _, cell in columns)) for name, each in splits.items()]
    return Table(("split", *(title for title, _ in columns)), tuple(rows))


def _columns(run: RunFiles) -> list[tuple[str, Any]]:
    found = run.results.get("calibration") or {}
    level, calibrated = found.get("level"), found.get("method") in METHODS
    cost = "mean width of the intervals" if run.task.is_regression else "classes in a set"
    return [
        ("calibration error", lambda split: _decimals(split.get("after", {}).get("ece"))),
        ("as trained", lambda split: _decimals(split.get("before", {}).get("ece") if calibrated else None)),
        (f"covered at {100 * level:g}%" if level else "covered", lambda split: _coverage(split.get("coverage"))),
        (cost, _cost),
        ("far inputs", lambda split: "" if split.get("far") is None else f"{split['far']:.1%}"),
    ]


def _splits(run: RunFiles) -> dict[str, Mapping[str, Any]]:
    found = (run.results.get("calibration") or {}).get("splits") or {}
    return {name: found[name] for name in run.splits if name in found}


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _coverage(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return ""
    interval = f" ({entry['low']:.1%} to {entry['high']:.1%})" if entry.get("low") is not None else ""
    return f"{entry['value']:.1%}{interval}"


def _cost(split: Mapping[str, Any]) -> str:
    widths = split.get("width")
    if widths:
        return ", ".join(significant(width) for width in widths)
    return "" if split.get("size") is None else f"{split['size']:.2f}"


def certainty_notes(run: RunFiles) -> list[str]:
    """Return what the table rests on, one sentence each."""
    splits = _splits(run)
    if not splits:
        return []
    found = run.results["calibration"]
    method = METHODS[found["method"]].title if found.get("method") in METHODS else None
    fitted = f"Fitted on {found['fitted_on']}, whose own numbers are therefore too good."
    bins = max((each.get("bins", 0) for each in splits.values()), default=0)
    error = f"Calibration error: expected |frequency \N{MINUS SIGN} probability| over {bins} bins of equal size."
    residues = "Residues of one protein depend on each other, so that the coverage of a single protein can be far off."
    leaning = "Class weights move probabilities towards rare classes, which a temperature cannot take back."
    is_weighted = bool((run.config.get("training") or {}).get("class_weights"))
    far = "Far: further from the kept training sequences than 99 % of valid, in the space of hidden states."
    return [
        *([f"{method.capitalize()}{_degrees(found)}."] if method else []),
        *([fitted] if method or found.get("level") else []),
        *([leaning] if is_weighted and found.get("method") == TEMPERATURE else []),
        *([error] if bins else []),
        *([residues] if run.task.is_residue and found.get("level") else []),
        *([far] if found.get("far_above") is not None else []),
    ]


def _degrees(found: Mapping[str, Any]) -> str:
    temperatures = found.get("temperature") or []
    if len(temperatures) == 1:
        return f", temperature {temperatures[0]:.2f}"
    return f", temperatures {min(temperatures):.2f} to {max(temperatures):.2f}" if temperatures else ""


def reliability_diagram(run: RunFiles) -> Diagram | None:
    """Return frequency against probability on the main split, before and after; None for regressions and old runs."""
    split = _splits(run).get(run.main_split)
    if split is None or "after" not in split:
        return None
    calibrated = run.results["calibration"]["method"] in METHODS
    shown = [("calibrated", "after"), ("as trained", "before")] if calibrated else [("as trained", "after")]
    lines = [Line(name, split[key]["confidence"], split[key]["frequency"], with_marks=True) for name, key in shown]
    claim, came_true = _axis_titles(run)
    caption = f"Reliability on {run.main_split}: calibration error {split['after']['ece']:.3f}"
    caption += f", {split['before']['ece']:.3f} before calibration." if calibrated else "."
    whole = (0.0, 1.0)
    plot = line_chart(lines, (claim, came_true), caption, x_range=whole, y_range=whole, with_diagonal=True)
    return Diagram(plot, caption, tuple((at, line.name) for at, line in enumerate(lines)) if calibrated else ())


def _axis_titles(run: RunFiles) -> tuple[str, str]:
    if run.task.is_multilabel:
        return "probability of a class", "share that has it"
    if len(run.classes) == 2:
        return f"probability of {run.classes[1]}", f"share that is {run.classes[1]}"
    return "probability of the predicted class", "share that is right"
