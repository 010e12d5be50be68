"""What a tutorial found, for docs/results.md: one row per result, kept in `rows.json` of the tutorial's workplace.

`tutorials/build.py` puts the rows of published data on the page.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = "rows.json"


@dataclass(frozen=True)
class Row:
    """One row. train, test: sequences.  weights, trainable: of the model.  result: with its 95 % interval.

    published: the figure that others report and where, and whether it compares.  minutes: of the whole run.
    """

    data: str
    train: int
    test: int
    model: str
    weights: int
    trainable: int
    result: str
    published: str
    minutes: float
    is_real: bool


def record(is_real: bool, data: str, published: str, **found: Any) -> None:
    """Add a row to the workplace's rows, and print it.

    is_real: of the `Data` that was used.  data, published: see `Row`.  found: the rest, by hand or from `of_run`.
    """
    row = Row(data=data, published=published, is_real=is_real, **found)
    file = Path(FILE)
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    file.write_text(json.dumps([*rows, asdict(row)], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{row.data}: {row.result}; published: {row.published}")


def of_run(
    folder: str | Path, split: str = "test", metric: str | None = None, minutes: float | None = None
) -> dict[str, Any]:
    """Everything of a row that a run folder knows.

    metric: the run's main one by default.  minutes: of training and testing by default.
    """
    folder = Path(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    metric, scored = metric or metrics["main_metric"], metrics["splits"][split]
    return {
        "train": environment["data"]["counts"]["train"],
        "test": scored["n_sequences"],
        "model": environment["model"]["name"],
        "weights": environment["parameters"]["total"],
        "trainable": environment["parameters"]["trainable"],
        "result": with_interval(metric, scored["metrics"][metric]),
        "minutes": round(environment["seconds"] / 60 if minutes is None else minutes, 1),
    }


def with_interval(name: str, score: Mapping[str, float]) -> str:
    """ "mcc 0.683 (0.459 to 0.880)"."""
    return f"{name} {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def perplexity(scores: str | Path) -> str:
    """Perplexity per residue over a file that `plft score-lm` wrote, with its bootstrap interval over sequences."""
    with open(scores, encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if float(line["nll"]) > 0]
    nll = np.array([float(line["nll"]) for line in lines])
    per_residue = np.array([float(line.get("perplexity_per_residue") or line["perplexity"]) for line in lines])
    residues = nll / np.log(per_residue)
    picks = np.random.default_rng(0).integers(len(lines), size=(1000, len(lines)))
    low, high = np.quantile(np.exp(nll[picks].sum(1) / residues[picks].sum(1)), (0.025, 0.975))
    return f"{np.exp(nll.sum() / residues.sum()):.2f} ({low:.2f} to {high:.2f})"
