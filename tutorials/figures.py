"""Pictures that the tutorials share, as SVG text that says in words what it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # the pictures are files; no window is opened
from matplotlib import pyplot as plt

from plft.metrics import METRICS
from show import svg_of

OURS, OTHERS = "#0072b2", "#d55e00"


def training(run: str | Path) -> str:
    """Loss of training and validation, and the validation metric, over the epochs of a run."""
    run = Path(run)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    metric = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["main_metric"]
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    losses.plot(*over_epochs(history, "loss"), color=OURS, label="training")
    losses.plot(*over_epochs(history, "valid_loss"), "o--", color=OTHERS, label="validation")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend(frameon=False)
    epochs, values = over_epochs(history, f"valid_{metric}")
    best = max(range(len(values)), key=values.__getitem__)
    scores.plot(epochs, values, "o--", color=OTHERS)
    scores.plot(epochs[best], values[best], "o", color=OTHERS, markersize=10)
    title = METRICS[metric].title
    scores.set(xlabel="epoch", ylabel=f"validation {title}")
    return described(figure, f"Loss and validation {title} over epochs; the best is {values[best]:.3f}, marked.")


def over_epochs(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The epochs at which something was noted, and its values."""
    rows = [each for each in history if each.get(key) is not None]
    return [each["epoch"] for each in rows], [each[key] for each in rows]


def intervals(rows: Sequence[tuple[str, Mapping[str, float]]], title: str, zero: float | None = None) -> str:
    """Values with their 95 % intervals, one below the other; those without low and high are drawn as a diamond.

    rows: name and {"value", "low", "high"}.  zero: where a line is drawn, for example 0 for differences.
    """
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(rows)), layout="constrained")
    for at, (_, score) in enumerate(rows):
        if "low" in score:
            axes.plot([score["low"], score["high"]], [at, at], color=OURS, linewidth=2)
        style = {"marker": "o", "color": OURS} if "low" in score else {"marker": "D", "color": OTHERS}
        axes.plot(score["value"], at, markersize=7, **style)
    if zero is not None:
        axes.axvline(zero, color="#59626d", linestyle="--", linewidth=1)
    axes.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows], xlabel=title)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return described(figure, f"{title}: " + "; ".join(f"{name} {score['value']:.3f}" for name, score in rows) + ".")


def described(figure: Any, words: str) -> str:
    """The figure as SVG, with words for readers who do not see it; the figure is closed."""
    return svg_of(figure).replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1)
