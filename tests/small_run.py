"""A small data file and a configuration that trains on it in about two seconds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import grid
from plft.config import RunConfig, make_config
from plft.labels import TaskType

SPLITS = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
VARIES = ("seconds", "runtime", "per_second", "versions", "command")  # differs from run to run: speed and time


def write_table(path: Path, task: TaskType = TaskType.SEQ_CLASSIFICATION, n: int = 60, family: str = "esm2") -> Path:
    """Write records of the grid as a CSV with a split column."""
    rows = grid.records(family, task, n)
    with path.open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["id", "sequence", "label", "split"])
        table.writerows([each.id, each.sequence, each.label, SPLITS[at % len(SPLITS)]] for at, each in enumerate(rows))
    return path


def values(data: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a small run; sections given are laid over the defaults."""
    defaults: dict[str, dict[str, Any]] = {
        "data": {"file": str(data)},
        "model": {"name": "scratch:tiny-esm2", "head_dropout": 0.3},
        "tuning": {"method": "full"},
        "training": {"epochs": 2, "batch_residues": 200, "precision": "fp32", "early_stopping": None},
        "baselines": {"run": False},
    }
    return {name: part | sections.get(name, {}) for name, part in defaults.items()} | (
        {"task": sections["task"]} if "task" in sections else {}
    )


def config(data: Path, /, **sections: Any) -> RunConfig:
    """The configuration of a small run."""
    return make_config(values(data, **sections))


def history(run: Path) -> list[dict[str, Any]]:
    """history.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: each for key, each in row.items() if not key.endswith(VARIES)} for row in rows]
