"""What fine-tuning added over the baselines: in one sentence, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plft.findings import RunFiles, Table, in_order, in_words, interval_in_words
from plft.metrics import METRICS, MetricRow


def verdict(results: Mapping[str, Any]) -> str:
    """Return one sentence on whether fine-tuning was worth it; empty where there is no baseline to compare with.

    results: the content of metrics.json, of which the main split (test, where it is there) counts.  The best baseline
    is the best on this very split: chosen in favour of the baselines, so that the gain is rather too small than too
    large.
    """
    metric = results.get("main_metric")
    if metric not in METRICS or not results.get("baselines"):
        return ""
    row, split = METRICS[metric], next(iter(in_order(results["splits"])))
    scores = {name: _entry(each, split, row) for name, each in _baselines(results, split).items()}
    known = {name: entry["value"] for name, entry in scores.items() if entry["value"] is not None}
    if not known:
        return ""
    name = (max if row.higher_is_better else min)(known, key=lambda each: known[each])
    best = results["baselines"][name]
    return _sentence(row, f"{best['title']} ({row.title} {in_words(known[name], row.name)})", _gain(best, split))


def _sentence(row: MetricRow, best: str, gain: Mapping[str, Any]) -> str:
    value, low, high = gain["value"], gain["low"], gain["high"]
    if value is None:
        return f"Whether fine-tuning added anything over the best baseline, {best}, is undefined."
    interval = interval_in_words(gain, row.name)
    if low is None or high is None or low <= 0 <= high:
        said = f"95 % interval {interval}" if interval else "too few sequences for an interval"
        return (
            f"Fine-tuning added nothing that can be told apart from the best baseline, {best}: "
            f"the difference is {in_words(value, row.name)} ({said})."
        )
    amount = _amount(row, value, low, high)
    if (value > 0) == row.higher_is_better:
        verb = "added" if row.higher_is_better else "removed"
        return f"Fine-tuning {verb} {amount} over the best baseline, {best}."
    return f"The best baseline, {best}, was better than the fine-tuned model by {amount}."


def _amount(row: MetricRow, value: float, low: float, high: float) -> str:
    """Write the size of a difference whose interval does not contain 0."""
    ends = {"low": min(abs(low), abs(high)), "high": max(abs(low), abs(high))}
    size = in_words(abs(value), row.name)
    if row.higher_is_better and abs(value) < 0.0005:
        return f"less than 0.001 {row.title}"
    return f"{size} {row.title} (95 % interval {interval_in_words(ends, row.name)})"


def table(run: RunFiles) -> Table | None:
    """Return model and baselines with their intervals on the main split, best baseline first; None without any."""
    split, row = run.main_split, METRICS[run.main_metric]
    baselines = _baselines(run.results, split)
    if not baselines:
        return None
    own = run.splits[split]["metrics"][row.name]
    lines = [("fine-tuned model", "", *_cells(own, row), "", "")]
    for each in sorted(baselines.values(), key=lambda each: _rank(_entry(each, split, row)["value"], row)):
        cells = (*_cells(_entry(each, split, row), row), *_cells(_gain(each, split), row))
        lines.append((str(each["title"]), str(each.get("settings", "")), *cells))
    header = ("model", "settings", row.title, "95 % interval", "fine-tuned minus this", "95 % interval")
    return Table(header, tuple(lines), n_text=2)


def left_out(run: RunFiles) -> list[str]:
    """Return which baselines were left out, and why, one sentence each."""
    found = run.results.get("baselines_left_out") or {}
    return [f"Not trained: {title} ({reason})." for title, reason in found.items()]


def _baselines(results: Mapping[str, Any], split: str) -> dict[str, Any]:
    return {name: each for name, each in (results.get("baselines") or {}).items() if split in each.get("splits", {})}


def _entry(baseline: Mapping[str, Any], split: str, row: MetricRow) -> Mapping[str, Any]:
    found: Mapping[str, Any] = baseline["splits"][split]["metrics"].get(row.name) or {"value": None}
    return found


def _gain(baseline: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = baseline["splits"][split]["difference"]
    return found


def _cells(entry: Mapping[str, Any], row: MetricRow) -> tuple[str, str]:
    return in_words(entry["value"], row.name), interval_in_words(entry, row.name)


def _rank(value: float | None, row: MetricRow) -> tuple[bool, float]:
    return value is None, 0.0 if value is None else -value if row.higher_is_better else value
