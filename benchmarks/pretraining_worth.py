"""What pretraining is worth: builtin:protein against the same shape from random weights, with the same settings.

    python benchmarks/pretraining_worth.py DATA_FOLDER RUNS_FOLDER [--only secondary] [--seeds 3] [--at-once 2]

Runs that are finished are not repeated, so take another RUNS_FOLDER for another pretrained model. Each line is the
metric of the test part, per seed, and the mean difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

KINDS = ("pretrained", "scratch")


@dataclass(frozen=True)
class Task:
    """One data set. arguments: of `plft train`, the same for both models.  split, metric: what is compared."""

    data: str
    arguments: tuple[str, ...]
    split: str
    metric: str = "accuracy"


SECONDARY, LOCATION = "flip_secondary_structure/sampled.csv.gz", "scl_deeploc1/deeploc1.csv.gz"
ACCURACY = ("--set", "training.metric=accuracy")
FIRST_256 = ("--set", "data.max_residues=256", "--set", "data.unseen_classes=drop")


def full(epochs: int, rate: float, *more: str) -> tuple[str, ...]:
    """Full fine-tuning at a peak learning rate."""
    return ("--tune", "full", "--epochs", str(epochs), "--learning-rate", str(rate), *ACCURACY, *more)


TASKS = {
    "secondary": Task(SECONDARY, full(1, 0.00024), "test"),  # plft's own rate for a pretrained model of this width
    "secondary-fast": Task(SECONDARY, full(1, 0.0015), "test"),
    "secondary-slow": Task(SECONDARY, full(2, 0.0005), "test"),
    "location": Task(LOCATION, full(2, 0.00024, *FIRST_256), "test_hard"),
    "location-fast": Task(LOCATION, full(2, 0.001, *FIRST_256), "test_hard"),
    "secondary-head": Task(
        SECONDARY,
        (
            *("--tune", "head", "--head", "cnn", "--epochs", "6", *ACCURACY),
            *("--set", "model.head_layers=3", "--set", "model.head_width=128", "--set", "model.head_kernel=9"),
        ),
        "test",
    ),
}


def finished(name: str, kind: str, seed: int, options: argparse.Namespace) -> float:
    """The metric of one run, trained first if it is not there."""
    task = TASKS[name]
    settings = hashlib.sha256(" ".join(task.arguments).encode()).hexdigest()[:6]
    out = options.runs / f"{name}-{settings}-{kind}-{seed}"
    if not (out / "metrics.json").exists():
        data = str(options.data / task.data)
        command = [sys.executable, "-m", "plft", "train", data, "--model", getattr(options, kind), "--seed", str(seed)]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.at_once))}
        with (options.runs / f"{out.name}.log").open("a") as log:
            lean = ["--set", "baselines.run=false"]
            resume = ["--resume"] if (out / "run.yaml").exists() else []
            subprocess.run(
                [*command, *task.arguments, *lean, "--out", str(out), *resume],
                check=True,
                stdout=log,
                stderr=log,
                env=os.environ | threads,
            )
    metrics = json.loads((out / "metrics.json").read_text())
    return metrics["splits"][task.split]["metrics"][task.metric]["value"]


def main() -> None:
    """Run what is missing and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", choices=TASKS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrained", default="builtin:protein")
    parser.add_argument("--scratch", default="scratch:builtin:protein", help="the same shape")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side; each gets its share of the cores")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    for name in options.only or TASKS:
        jobs = [(kind, seed) for seed in range(options.seeds) for kind in KINDS]
        with ThreadPoolExecutor(options.at_once) as pool:
            found = dict(zip(jobs, pool.map(lambda job, name=name: finished(name, *job, options), jobs), strict=True))
        for kind in KINDS:
            print(f"{name}, {kind}: {', '.join(f'{found[kind, seed]:.3f}' for seed in range(options.seeds))}")
        gains = [found["pretrained", seed] - found["scratch", seed] for seed in range(options.seeds)]
        print(
            f"{name}: {TASKS[name].metric} of {TASKS[name].split} is higher by {statistics.mean(gains):+.3f} on average"
        )


if __name__ == "__main__":
    main()
