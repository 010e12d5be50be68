"""The report page and the model card of made-up runs of every kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import yaml

from plft.labels import TaskType
from plft.metrics import evaluate

LOCATIONS = [
    "cytoplasm",
    "nucleus",
    "membrane",
    "mitochondrion",
    "secreted",
    "plastid",
    "ER",
    "Golgi",
    "lysosome",
    "peroxisome",
]
MANY = [f"fold {at}" for at in range(30)]
# name of the run: task, classes or columns, main metric
RUNS = {
    "binary": (TaskType.SEQ_CLASSIFICATION, ["other", "effector"], "mcc"),
    "locations": (TaskType.SEQ_CLASSIFICATION, LOCATIONS, "mcc"),
    "folds": (TaskType.SEQ_CLASSIFICATION, MANY, "mcc"),
    "fitness": (TaskType.SEQ_REGRESSION, ["label"], "spearman"),
    "stability": (TaskType.SEQ_REGRESSION, ["dG", "Tm"], "spearman"),
    "q3": (TaskType.TOKEN_CLASSIFICATION, ["C", "E", "H"], "accuracy"),
    "disorder": (TaskType.TOKEN_REGRESSION, ["label"], "spearman"),
    "tags": (TaskType.SEQ_MULTILABEL, LOCATIONS[:5], "f1_micro"),
}


def predictions(task, width, n, random):
    """Made-up outputs and targets of n sequences, as `evaluate` takes them."""
    outputs, targets = [], []
    for length in random.integers(40, 90, n) if task.is_residue else [1] * n:
        if task.is_regression:
            true = random.normal(size=(length, width)).astype(np.float32)
            out = 0.8 * true + 0.45 * random.normal(size=true.shape)
            flat = (out[:, 0], true[:, 0]) if task.is_residue else (out[0], true[0])
        elif task.is_multilabel:
            true = (random.random((1, width)) < [0.5, 0.4, 0.3, 0.15, 0.1]).astype(np.float32)
            flat = (1 / (1 + np.exp(-(random.normal(size=width) * 1.3 + 4 * true[0] - 2))), true[0])
        else:
            share = np.linspace(3, 1, width)
            true = random.choice(width, length, p=share / share.sum())
            score = np.exp(1.3 * random.normal(size=(length, width)) + 2.5 * np.eye(width)[true])
            probability = score / score.sum(axis=1, keepdims=True)
            flat = (probability, true) if task.is_residue else (probability[0], true[0])
        outputs.append(flat[0])
        targets.append(flat[1])
    return outputs, targets


def table_rows(task, names, outputs, targets):
    """Rows of predictions/<split>.csv in the shape of the run folder's contract."""
    for at, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        name = f"sp|P{at:05d}|PROT{at}"
        if not task.is_residue:
            yield {"id": name, **cells(task, names, output, target)}
            continue
        for position, (out, true) in enumerate(zip(output, target, strict=True), start=1):
            yield {"id": name, "position": position, "residue": "A", **cells(task, names, np.atleast_1d(out), true)}


def cells(task, names, output, target):
    if task.is_regression:
        pairs = zip(names, output, np.atleast_1d(target), strict=True)
        many = len(names) > 1
        return {
            f"{what}_{n}" if many else what: v for n, o, t in pairs for what, v in (("label", t), ("prediction", o))
        }
    probabilities = {f"probability_{n}": p for n, p in zip(names, output, strict=True)}
    if task.is_multilabel:
        sets = {"label": target, "prediction": output}
        return {
            k: "|".join(n for n, v in zip(names, s, strict=True) if v >= 0.5) or "|" for k, s in sets.items()
        } | probabilities
    return {"label": names[int(target)], "prediction": names[int(np.argmax(output))], **probabilities}


def make_run(folder: Path, name: str, n: int = 60) -> Path:
    """Write a run folder with the documented files of a made-up run."""
    task, names, main_metric = RUNS[name]
    random = np.random.default_rng(5)
    run = folder / name
    (run / "predictions").mkdir(parents=True)
    splits = {}
    for split, size in {"test": n, "valid": n // 2}.items() if name != "binary" else [("test", n)]:
        outputs, targets = predictions(task, len(names), size, random)
        splits[split] = evaluate(task, outputs, targets, names, names, resamples=100).to_json()
        rows = list(table_rows(task, names, outputs, targets))
        with (run / "predictions" / f"{split}.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    classes = [] if task.is_regression else names
    results = {"schema": 1, "task": task.value, "classes": classes, "columns": names if task.is_regression else []}
    results |= {"main_metric": main_metric, "splits": splits, "baselines": {}}
    (run / "metrics.json").write_text(json.dumps(results))
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history(main_metric, random)))
    (run / "environment.json").write_text(json.dumps(environment(name, n)))
    (run / "run.yaml").write_text(yaml.safe_dump(config(name, task)))
    return run


def history(main_metric, random):
    for epoch in range(1, 11):
        for part in (0.5, 1.0):
            at = epoch - 1 + part
            yield {"step": int(at * 40), "epoch": at, "loss": 0.25 + 0.6 * np.exp(-at / 3) + 0.02 * random.random()}
        score = 0.8 - 0.55 * np.exp(-epoch / 2.5) + 0.02 * random.random()
        yield {"step": epoch * 40, "epoch": epoch, "valid_loss": 0.4 + 0.4 * np.exp(-epoch / 2) + 0.008 * epoch} | {
            f"valid_{main_metric}": score
        }


def environment(name, n):
    return {
        "versions": {"plft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "device": "cpu",
        "precision": "fp32",
        "threads": 2,
        "data": {
            "file": f"{name}.csv",
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "counts": {"train": 8 * n, "valid": n // 2, "test": n},
            "truncated": 12,
            "dropped": 0,
            "duplicated": 3,
            "unknown_letters": 41,
            "warnings": ["8 sequences are in both train and test: scores on them are too good."],
        },
        "sentences": ["No split column: 80 % train, 10 % valid, 10 % test, stratified by class, seed 0."],
        "parameters": {"trainable": 151_234, "total": 8_012_345},
        "family": "esm2",
        "model": {"name": "scratch:esm2-8m", "revision": None, "sha256": None},
        "seconds": 192.4,
        "command": f"plft train {name}.csv --model scratch:esm2-8m --tune lora --out {name}",
    }


def config(name, task):
    return {
        "task": task.value,
        "data": {"file": f"{name}.csv"},
        "model": {"name": "scratch:esm2-8m", "head": "mlp", "pooling": "mean"},
        "tuning": {"method": "lora", "rank": 8, "alpha": 16.0},
        "training": {"epochs": 10, "seed": 0},
    }
