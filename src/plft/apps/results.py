"""What a run reached, on the console."""

from __future__ import annotations

from typing import Any


def show_metrics(metrics: dict[str, Any]) -> None:
    """Tables of the evaluated splits, validation only where there is nothing else; then whether it was worth it."""
    from plft import console
    from plft.metrics import METRICS
    from plft.worth import verdict

    names = {name: row.title for name, row in METRICS.items()}
    splits = metrics["splits"]
    shown = [name for name in splits if name != "valid"] or list(splits)
    for name in shown:
        console.metrics_table(f"{name}: {splits[name]['n']} sequences", splits[name]["metrics"], names)
    sentence = verdict(metrics)
    if sentence:
        console.result(f"\n{sentence}")
