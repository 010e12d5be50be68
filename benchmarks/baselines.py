"""What the baselines reach on a table with official splits: python benchmarks/baselines.py DATA [--only one_hot kmers].

DATA is one file, or a folder of which the files in FILES are measured. Settings are chosen on valid, or within train
where there is no valid part; the test part is only scored.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from plft.alphabet import guess_alphabet
from plft.baselines import BASELINES, NoTimeError, Problem, train_baseline
from plft.encodings import Part
from plft.labels import LabelSpace, TaskType, guess_task
from plft.metrics import evaluate
from plft.records import Record, load_data

FILES = (
    "schmirler_gb1/gb1.csv.gz",
    "tape_stability/stability.csv.gz",
    "gue/tf_0.csv.gz",
    "gue/tf_1.csv.gz",
    "dephos_galaxy/dephos_Y.csv.gz",
    "dephos_dtl/dephos_ST.csv.gz",
)
SHOWN = ("mcc", "accuracy", "roc_auc", "spearman", "f1_micro")
MAIN = {
    TaskType.SEQ_CLASSIFICATION: "mcc",
    TaskType.TOKEN_CLASSIFICATION: "accuracy",
    TaskType.SEQ_MULTILABEL: "f1_micro",
}


def part_of(records: list[Record], labels: LabelSpace) -> Part:
    """Sequences and targets of one split."""
    targets = [labels.encode(each, unseen="missing") for each in records]
    return Part([each.sequence for each in records], targets, np.ones(len(records)))


def measure(file: Path, minutes: float, only: list[str]) -> None:
    """Print one line per baseline."""
    records = load_data(file, labelled=True)
    task = guess_task(records).task
    by_split = {name: [each for each in records if each.split == name] for name in ("train", "valid", "test")}
    labels = LabelSpace.fit(task, by_split["train"])
    parts = {name: part_of(each, labels) for name, each in by_split.items() if each}
    alphabet = guess_alphabet(each.sequence for each in records)
    problem = Problem(
        labels, alphabet, parts["train"], parts.get("valid"), MAIN.get(task, "spearman"), n_asked=len(by_split["test"])
    )
    print(f"{file.name}: {', '.join(f'{name} {len(each):,}' for name, each in by_split.items())}")
    began = time.monotonic()
    for row in BASELINES.values():
        if (only and row.name not in only) or not row.applies(problem):
            continue
        start = time.monotonic()
        try:
            found = train_baseline(row, problem, {"test": parts["test"]}, began, 60 * minutes)
        except NoTimeError as error:
            print(f"  {row.name:12} left out: {error}")
            continue
        seconds = time.monotonic() - start
        scores = evaluate(task, found.outputs["test"], parts["test"].targets, labels.classes, resamples=200).metrics
        values = [
            f"{name} {each.value:.3f} ({each.low:.3f} to {each.high:.3f})"
            for name, each in scores.items()
            if name in SHOWN
        ]
        print(f"  {row.name:12} {', '.join(values)}; {seconds:.1f} s; {found.note}", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a table, or the folder that holds FILES")
    parser.add_argument("--minutes", type=float, default=2.0, help="time budget for the baselines of one table")
    parser.add_argument("--only", nargs="*", default=[], choices=list(BASELINES), help="these baselines")
    given = parser.parse_args()
    for file in [given.data / name for name in FILES] if given.data.is_dir() else [given.data]:
        measure(file, given.minutes, given.only)


if __name__ == "__main__":
    main()
