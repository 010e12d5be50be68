"""Train, evaluate and predict on the published data sets, and write docs/results.md from what the runs left.

    python benchmarks/results.py DATA_FOLDER RUNS_FOLDER [--only NAME ...] [--table]

DATA_FOLDER holds the data sets (they do not come with plft). Finished runs are not repeated; --table only writes the
page again. Each row is three commands of the command line: train, evaluate, predict.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
TUTORIALS = re.compile(r"<!-- tutorials -->\n.*?<!-- end of tutorials -->\n", re.DOTALL)  # tutorials/build.py writes it


@dataclass(frozen=True)
class Row:
    """One data set: what to train, which metric the field reports, and what it reports."""

    name: str
    title: str
    data: str
    arguments: str
    metric: str
    published: str
    split: str = "test"


ROWS = (
    Row(
        "dephos",
        "Dephosphorylation sites (Y), two FASTA files",
        "dephos_galaxy/raw",
        "--model scratch:esm2-0.2m --tune full --head cnn --epochs 20 --set training.metric=roc_auc "
        "--set training.early_stopping=null",
        "mcc",
        "ProtT5 + LoRA .479; one-hot logistic regression .439",
    ),
    Row(
        "gb1",
        "GB1 fitness (three-vs-rest)",
        "schmirler_gb1/gb1.csv.gz",
        "--model scratch:tiny-esm2 --tune full --head cnn --set model.head_width=128 --set model.head_kernel=9 "
        "--epochs 24 --set training.early_stopping=8",
        "spearman",
        "ESM2-8M random-init .857, frozen .818, full .883; one-hot ridge .750",
    ),
    Row(
        "stability",
        "Stability (TAPE)",
        "tape_stability/stability.csv.gz",
        "--model scratch:tiny-esm2 --tune full --head cnn --set model.head_width=128 --epochs 5",
        "spearman",
        "ESM2-8M random-init .684, frozen .750, full .765; one-hot ridge .473",
    ),
    Row(
        "secondary",
        "Secondary structure, 3 states, with mask",
        "flip_secondary_structure/sampled.csv.gz",
        "--model scratch:tiny-esm2 --tune full --head cnn --set model.head_width=192 --set model.head_layers=3 "
        "--set model.head_kernel=9 --epochs 7 --set training.metric=accuracy",
        "accuracy",
        "ESM2-8M random-init .708, frozen .753, full .761; one-hot .643",
    ),
    Row(
        "disorder",
        "Disorder (CheZOD), 999 = missing",
        "disorder_chezod/chezod.csv.gz",
        "--missing 999 --model scratch:esm2-0.2m --tune full --head cnn --epochs 12",
        "spearman",
        "ESM2-8M random-init .649, frozen .697, full .715",
    ),
    Row(
        "location",
        "Subcellular location, 10 classes, hard test set",
        "scl_deeploc1/deeploc1.csv.gz",
        "--model scratch:tiny-esm2 --tune full --head light_attention --epochs 4 "
        "--set data.unseen_classes=drop --set data.max_residues=512 --set training.metric=accuracy",
        "accuracy",
        "ESM2-8M random-init .470, frozen .520, full .559",
        "test_hard",
    ),
    Row(
        "tf_0",
        "Transcription-factor binding, GUE tf_0",
        "gue/tf_0.csv.gz",
        "--model scratch:tiny-dnabert --tune full --head cnn --set model.head_width=128 --set model.head_kernel=11 "
        "--epochs 5",
        "mcc",
        "Mistral-DNA + LoRA .628; DNABERT-2 .720; k-mer logistic regression .675",
    ),
    Row(
        "effectors",
        "Bacterial effectors, imbalanced",
        "technion_effectors/effectors.csv.gz",
        "--model scratch:esm2-0.2m --tune full --head cnn --epochs 8 --set training.class_weights=balanced",
        "mcc",
        "none",
    ),
)


def commands(row: Row, data: str, run: str) -> list[str]:
    """The three commands of a row."""
    sequences = f"{data}/test_sequences.fasta" if row.name == "dephos" else data
    return [
        f"plft train {data} {row.arguments} --out {run}",
        f"plft evaluate {run} --split {row.split}",
        f"plft predict {run} {sequences} -o {run}.csv",
    ]


def run_row(row: Row, data: Path, runs: Path) -> None:
    """Run the three commands and note how long each took, in minutes."""
    folder = runs / row.name
    minutes = {}
    for line in commands(row, str(data / row.data), str(folder)):
        words = [*shlex.split(line), *(["--overwrite"] if " train " in line else [])]
        started = time.monotonic()
        with (runs / f"{row.name}.log").open("a") as log:
            subprocess.run([sys.executable, "-m", *words], check=True, stdout=log, stderr=log)
        minutes[words[1]] = round((time.monotonic() - started) / 60, 2)
    (runs / f"{row.name}.json").write_text(json.dumps(minutes))


def cells(row: Row, runs: Path) -> str:
    """One line of the table."""
    metrics = json.loads((runs / row.name / "metrics.json").read_text())["splits"][row.split]
    environment = json.loads((runs / row.name / "environment.json").read_text())
    minutes = json.loads((runs / f"{row.name}.json").read_text())
    found = metrics["metrics"][row.metric]
    value = f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    counts = environment["data"]["counts"]
    size = f"{counts['train']:,} / {metrics['n_sequences']:,}"
    model = f"{environment['model']['name']}, {environment['parameters']['total']:,} weights"
    times = f"{minutes['train']:.1f} + {minutes['evaluate']:.1f} + {minutes['predict']:.1f}"
    return f"| {row.title} | {size} | {model} | {times} | {row.metric} {value} | {row.published} |"


HEADER = """# Results on published data sets

Every row of the first table was trained from random weights (`scratch:`), before plft had pretrained models of its own;
the point of this page is that the whole path from file to scored predictions works on real data, with the splits the
data sets come with (a validation part is set aside from training where they have none). Intervals are 95 % bootstrap
intervals over sequences. Minutes are for train + evaluate + predict on one thread of a 2-core CPU (Intel Xeon without
bf16) that was also doing other work. Published figures are those of the data sets' papers and benchmarks; "random-init"
is the comparable one. On tf_0 the linear k-mer model, .675, was not beaten; one run and one seed per row.

| data | train / test sequences | model | minutes | result | published |
|---|---|---|---|---|---|
"""


COMMANDS = """## Commands

Run from the folder of the data sets; `python benchmarks/results.py DATA_FOLDER RUNS_FOLDER` runs them all.

"""


def write_page(runs: Path) -> None:
    """Write docs/results.md from the finished runs; the tutorials' part of it stays."""
    done = [row for row in ROWS if (runs / f"{row.name}.json").exists()]
    lines = [cells(row, runs) for row in done]
    blocks = [f"### {row.title}\n\n<!-- not run: needs the data set -->\n```bash\n" for row in done]
    texts = [
        block + "\n".join(commands(row, row.data, row.name)) + "\n```\n"
        for block, row in zip(blocks, done, strict=True)
    ]
    kept = TUTORIALS.search(PAGE.read_text())
    assert kept is not None, f"{PAGE} has no part for the tutorials"
    PAGE.write_text(HEADER + "\n".join(lines) + f"\n\n{kept[0]}\n" + COMMANDS + "\n".join(texts))


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", nargs="*", default=[row.name for row in ROWS])
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    chosen.runs.mkdir(parents=True, exist_ok=True)
    for row in ROWS if not chosen.table else ():
        if row.name in chosen.only and not (chosen.runs / f"{row.name}.json").exists():
            run_row(row, chosen.data, chosen.runs)
    write_page(chosen.runs)


if __name__ == "__main__":
    main()
