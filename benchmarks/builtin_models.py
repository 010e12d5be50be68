"""Train the models that ship with plft, and put them into the package: builtin:protein and builtin:dna.

    python benchmarks/builtin_models.py DATA_FOLDER WORK_FOLDER [--only protein] [--minutes 120] [--only-measure]

DATA_FOLDER holds the corpora (they do not come with plft). Training goes on from WORK_FOLDER's last checkpoint when the
command is given again. The weights that ship are rounded to bf16; the perplexities on the card are of those weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import plft
from plft.alphabet import PROTEIN
from plft.config import LanguageModelConfig, language_model_config
from plft.homology import homologous_queries
from plft.language_card import write_language_card
from plft.language_preparation import prepare
from plft.language_run import perplexities, run_language_model
from plft.records import read_records
from plft.runfolder import write_json

PACKAGE = Path(plft.__file__).parent / "builtin"


@dataclass(frozen=True)
class Model:
    """One model to ship. files, valid: below the data folder.  minutes: of training, by default."""

    files: tuple[str, ...]
    valid: tuple[str, ...]
    arch: str
    minutes: float
    crop: int = 512


MODELS = {
    "protein": Model(
        files=("pretrain_protein/train.fasta.gz",),
        valid=("pretrain_protein/valid.fasta.gz",),
        arch="esm2-6x160x5",
        minutes=76,
    ),
    "dna": Model(
        files=(
            "genomes/ecoli_K12_MG1655.fna.gz",
            "genomes/phage_lambda.fna.gz",
            "genomes/C.elegans_1pct.fna.gz",
            "genomes/D.melanogaster_1pct.fna.gz",
            "genomes/A.thaliana_1pct.fna.gz",
        ),
        valid=(),
        arch="dna-1m",
        minutes=15,
    ),
}


def configuration(model: Model, data: Path, minutes: float | None) -> LanguageModelConfig:
    """The settings of `plft pretrain` that make a model."""
    return language_model_config(
        {
            "files": [str(data / file) for file in model.files],
            "valid": [str(data / file) for file in model.valid],
            "model": f"scratch:{model.arch}",
            "minutes": minutes or model.minutes,
            "crop": model.crop,
        }
    )


def without_homologs(model: Model, data: Path, work: Path) -> Path:
    """Write the held-out sequences that no training sequence is related to (30 % identity over half their length)."""
    target = work / "clean.fasta"
    if not target.exists():
        records = [record for file in model.valid for record in read_records(data / file, labelled=False)]
        (train,) = (data / file for file in model.files)
        related = homologous_queries([record.sequence for record in records], train, PROTEIN)
        kept = [record for record, has_homolog in zip(records, related, strict=True) if not has_homolog]
        target.write_text("".join(f">{record.id}\n{record.sequence}\n" for record in kept))
        print(f"{len(kept)} of {len(records)} held-out sequences have no homolog in training")
    return target


def ship(name: str, trained: Path) -> Path:
    """Copy a trained model into the package, in bf16; the head for contacts in it was never trained."""
    folder = PACKAGE / name
    model = AutoModelForMaskedLM.from_pretrained(trained, dtype=torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
    for kept in ("metrics.json", "history.jsonl", "pretraining.yaml"):
        shutil.copy(trained / kept, folder / kept)
    return folder


def measure(name: str, model: Model, data: Path, work: Path, folder: Path) -> None:
    """Measure the shipped weights on all held-out sequences and on those without homologs, and write the card."""
    metrics = json.loads((folder / "metrics.json").read_text())
    sets = {"held_out": [str(data / file) for file in model.valid]}
    if model.valid:
        sets["clean"] = [str(without_homologs(model, data, work))]
    for part, files in sets.items():
        shipped = {"model": str(folder), "valid": files, "precision": "fp32"}
        config = configuration(model, data, None).model_copy(update=shipped)
        prepared = prepare(config, work / name, print, time.monotonic(), resume=True)  # the same part is held out
        found = perplexities(prepared, 10**9)
        metrics["perplexity"]["after"] |= {part: found.pop("held_out"), **found}
    write_json(folder / "metrics.json", metrics)
    write_language_card(folder, f"builtin:{name}")
    for used in ("history.jsonl", "pretraining.yaml"):  # for the card alone; the script holds the settings
        (folder / used).unlink()


def main() -> None:
    """Train, ship and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=MODELS, action="append")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--only-measure", action="store_true", help="ship and measure what WORK_FOLDER holds")
    options = parser.parse_args()
    for name in options.only or MODELS:
        model, work = MODELS[name], options.work / name
        if not options.only_measure:
            config = configuration(model, options.data.resolve(), options.minutes)
            run_language_model(config, work, resume=(work / "pretraining.yaml").exists(), say=print)
        measure(name, model, options.data.resolve(), options.work, ship(name, work))


if __name__ == "__main__":
    main()
