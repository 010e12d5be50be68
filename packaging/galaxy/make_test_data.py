"""Writes test-data/, what the tools' tests read: python packaging/galaxy/make_test_data.py"""

from __future__ import annotations

import csv
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import plft
from plft.builtin.demo import demo_records

FOLDER = Path(__file__).with_name("test-data")


def write(name: str, delimiter: str, rows: list[list[Any]]) -> None:
    """A table in the current folder."""
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def basic(each: str) -> str:
    """The labels of the residues: 1 for lysine and arginine."""
    return "".join("1" if letter in "KR" else "0" for letter in each)


def write_run(data: str) -> None:
    """The archive that `plft predict` takes: a tiny model that needs nothing but what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "data": {"file": data},
            "model": {"name": "scratch:tiny-esm2"},
            "tuning": {"method": "full"},
            "training": {"epochs": 1},
            "baselines": {"run": False},
        }
        plft.finetune(config, out=f"{folder}/run")
        settings = Path(folder, "run", "run.yaml")
        settings.write_text(settings.read_text().replace(f"{FOLDER.resolve()}/", ""))  # no folder of this machine
        with tarfile.open("run.tar", "w") as archive:
            archive.add(settings, "run.yaml")
            archive.add(f"{folder}/run/model", "model")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    os.chdir(FOLDER)
    records = demo_records(n=80)
    write(
        "proteins.csv", ",", [["id", "sequence", "label"], *([each.id, each.sequence, each.label] for each in records)]
    )
    short = [(each.id, each.sequence[:25]) for each in records[:40]]
    write("sites.tsv", "\t", [["id", "protein", "site"], *([name, each, basic(each)] for name, each in short)])
    Path("new.fasta").write_text("".join(f">new{n}\n{each.sequence}\n" for n, each in enumerate(records[:3], 1)))
    write_run("proteins.csv")
