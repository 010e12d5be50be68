"""Train the models that ship with plft, and put them into the package: builtin:protein and builtin:dna.

    python benchmarks/builtin_models.py DATA_FOLDER WORK_FOLDER [--only protein]

DATA_FOLDER holds the corpora (they do not come with plft). A model is trained in one stretch or in several, each going
on from the one before with another order and other masks. What WORK_FOLDER holds already is not done again. The weights
that ship are rounded to bf16; the perplexities on the card are of those weights, with 15 % of the residues hidden.
(What ships saw that rounding four times more, after its third, its fifth, its sixth and its seventh stretch.)
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer, EsmForMaskedLM

import plft
from plft.alphabet import PROTEIN
from plft.config import LanguageModelConfig, language_model_config, read_yaml
from plft.homology import find_mmseqs, homologous_queries
from plft.language_card import write_language_card
from plft.language_preparation import prepare
from plft.language_run import perplexities, run_language_model
from plft.optimizers import OPTIMIZERS
from plft.records import read_records
from plft.runfolder import write_json

RATE = 0.15  # perplexities are measured with so much hidden, however much was in training
PACKAGE = Path(plft.__file__).parent / "builtin"


@dataclass(frozen=True)
class Stretch:
    """One stretch of training. settings: its budget at least.  shrink: weights are made so many times smaller after it,
    see `shrunk`.  of_family: read at most so many sequences of each family, see `few_of_each_family`.
    """

    settings: dict[str, Any]
    shrink: float = 1.0
    of_family: int | None = None


@dataclass(frozen=True)
class Model:
    """One model to ship. files, valid: below the data folder."""

    files: tuple[str, ...]
    valid: tuple[str, ...]
    arch: str
    stretches: tuple[Stretch, ...]


LATER = {"workers": 2, "optimizer": "muon", "rate": 0.25, "weight_decay": 0.1}
MODELS = {
    "protein": Model(
        files=("pretrain_protein/train.fasta.gz",),
        valid=("pretrain_protein/valid.fasta.gz",),
        arch="esm2-6x160x5",
        stretches=(
            Stretch({"minutes": 76, "optimizer": "adamw"}),
            Stretch({"residues": 24_000_000, "seed": 1, "decay_share": 0.5, "optimizer": "adamw"}),
            Stretch({"minutes": 105, "seed": 2, "learning_rate": 1.5e-3, "decay_share": 0.5} | LATER, shrink=2.5),
            Stretch({"minutes": 50, "seed": 3, "learning_rate": 1.2e-3, "decay_share": 0, "crop": 256} | LATER),
            Stretch({"minutes": 36, "seed": 4, "learning_rate": 1.2e-3, "decay_share": 0.9} | LATER, shrink=1.7),
            Stretch({"minutes": 42, "seed": 5, "learning_rate": 6e-4, "decay_share": 0.95, "crop": 384} | LATER),
            Stretch({"minutes": 80, "seed": 6, "learning_rate": 1e-3, "decay_share": 0.85, "crop": 384} | LATER),
            Stretch(
                {"minutes": 62, "seed": 7, "learning_rate": 1e-3, "decay_share": 0.9, "crop": 384} | LATER,
                of_family=2,
            ),
        ),
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
        stretches=(Stretch({"minutes": 25, "workers": 2, "optimizer": "muon"}),),
    ),
}


def configuration(model: Model, data: Path, work: Path, number: int) -> LanguageModelConfig:
    """The settings of one stretch."""
    files, stretch = [data / file for file in model.files], model.stretches[number]
    if stretch.of_family is not None:
        files = [few_of_each_family(files, stretch.of_family, int(stretch.settings["seed"]), work / f"few{number}")]
    return language_model_config(
        {
            "files": [str(file) for file in files],
            "valid": [str(data / file) for file in model.valid],
            "model": f"scratch:{model.arch}" if number == 0 else str(left_by(model, work, number - 1)),
            "crop": 512,
        }
        | stretch.settings
    )


def left_by(model: Model, work: Path, number: int) -> Path:
    """The folder with the weights that a stretch left, made smaller where that is wanted."""
    folder, factor = work / str(number), model.stretches[number].shrink
    if factor == 1:
        return folder
    smaller = folder / "smaller"
    if not (smaller / "tokenizer_config.json").exists():
        shrunk(EsmForMaskedLM.from_pretrained(folder, dtype=torch.float32), factor).save_pretrained(smaller)
        AutoTokenizer.from_pretrained(folder).save_pretrained(smaller)
    return smaller


def few_of_each_family(files: list[Path], count: int, seed: int, work: Path) -> Path:
    """Write the longest sequence of each family, its representative, and others of it up to `count`, drawn by `seed`.

    Families are the clusters of MMseqs2 at 50 % identity over 80 % of both sequences, as UniRef50 has them: the large
    ones would else take most of the training (ESM-2 draws from UniRef50 for the same reason).
    """
    program, target = find_mmseqs(), work / "few.fasta"
    if program is None:
        sys.exit("Families are found with MMseqs2: install the homology extra.")
    if target.exists():
        return target
    work.mkdir(parents=True, exist_ok=True)
    records = [record for file in files for record in read_records(file, labelled=False)]
    numbered = work / "all.fasta"
    numbered.write_text("".join(f">{number}\n{record.sequence}\n" for number, record in enumerate(records)))
    clustering = [program, "easy-cluster", numbered, work / "families", work / "mmseqs"]
    subprocess.run([*clustering, "--min-seq-id", "0.5", "-c", "0.8", "-s", "4", "-v", "1"], check=True)
    members: dict[int, list[int]] = {}
    for line in (work / "families_cluster.tsv").read_text().splitlines():
        first, member = map(int, line.split())
        members.setdefault(first, []).append(member)
    generator, kept = random.Random(seed), set(members)
    for first, family in sorted(members.items(), key=lambda found: min(found[1])):
        others = sorted(set(family) - {first})
        kept.update(generator.sample(others, min(count - 1, len(others))))
    unfinished = work / "few.unfinished"
    unfinished.write_text("".join(f">{records[each].id}\n{records[each].sequence}\n" for each in sorted(kept)))
    return unfinished.rename(target)


def without_homologs(model: Model, data: Path, work: Path) -> Path:
    """Write the held-out sequences that no training sequence is related to (30 % identity over half their length)."""
    target = work / "clean.fasta"
    if find_mmseqs() is None:
        sys.exit("Held-out sequences without homologs are found with MMseqs2: install the homology extra.")
    if not target.exists():
        records = [record for file in model.valid for record in read_records(data / file, labelled=False)]
        (train,) = (data / file for file in model.files)
        related = homologous_queries([record.sequence for record in records], train, PROTEIN)
        kept = [record for record, has_homolog in zip(records, related, strict=True) if not has_homolog]
        target.write_text("".join(f">{record.id}\n{record.sequence}\n" for record in kept))
        print(f"{len(kept)} of {len(records)} held-out sequences have no homolog in training")
    return target


@torch.no_grad()
def shrunk(model: EsmForMaskedLM, factor: float) -> EsmForMaskedLM:
    """Make the weights smaller by this factor, the function staying what it is (but for the epsilon of layer norms).

    Long training at a high rate left weights 2 to 4 times as large as a new model's. A step of AdamW is as large as the
    learning rate, whatever the weight, so such a model learns slowly at the usual rates. What is written into the
    residual stream shrinks, which the layer norms undo; what reads them shrinks too, which the norms' own weights undo.
    """
    written = [model.esm.embeddings.word_embeddings.weight]
    for block in model.esm.encoder.layer:
        attention = block.attention.self
        written += [*block.attention.output.dense.parameters(), *block.output.dense.parameters()]
        for norm, readers in (
            (block.attention.LayerNorm, (attention.query, attention.key, attention.value)),
            (block.LayerNorm, (block.intermediate.dense,)),
        ):
            for weight in norm.parameters():
                weight.mul_(factor)
            for reader in readers:
                reader.weight.div_(factor)
    for weight in written:
        weight.div_(factor)
    for weight in model.lm_head.layer_norm.parameters():  # the logits read the embeddings' own weights
        weight.mul_(factor)
    return model


def ship(name: str, model: Model, work: Path) -> Path:
    """Copy a trained model into the package, in bf16, with the record of all its stretches."""
    stretches = [work / str(number) for number in range(len(model.stretches))]
    folder, trained = PACKAGE / name, left_by(model, work, len(stretches) - 1)
    weights = AutoModelForMaskedLM.from_pretrained(trained, dtype=torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    weights.save_pretrained(folder)  # the head for contacts in it was never trained
    AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
    settings = [read_yaml(each / "pretraining.yaml") for each in stretches]
    (folder / "pretraining.yaml").write_text(yaml.safe_dump(settings[-1] | {"rate": RATE}))  # as it is measured
    records = [json.loads((each / "metrics.json").read_text()) for each in stretches]
    metrics, first = records[-1], records[0]
    metrics |= {key: first[key] for key in ("model", "data", "counting")}
    metrics["perplexity"]["before"] = first["perplexity"]["before"]
    metrics["hardware"] = "; then ".join(dict.fromkeys(each["hardware"] for each in records))
    choices = [each["choices"] for each in records]
    metrics["choices"]["precision"] = ", then ".join(dict.fromkeys(each["precision"] for each in choices))
    metrics["choices"]["optimizer"] = ", then ".join(dict.fromkeys(OPTIMIZERS[each["optimizer"]] for each in choices))
    metrics["choices"]["learning_rate"] = max(each["learning_rate"] for each in choices)
    sentences: list[str] = []
    for stretch, record in zip(model.stretches, records, strict=True):
        lines = [line.replace(f"{work}/", "stretch ").replace("/smaller", "") for line in record["sentences"]]
        if stretch.of_family is not None:
            few = f"these are at most {stretch.of_family} of each family (clusters at 50 % identity)"
            lines.append(f"{few}, so that large families count less")
        if stretch.shrink != 1:
            lines.append(f"then weights made {stretch.shrink:g} times smaller, the function left as it was")
        sentences += [line for line in lines if line not in sentences]
    metrics["sentences"] = sentences
    history = []
    for before, stretch in enumerate(stretches):
        done = {key: sum(each[key] for each in records[:before]) for key in ("tokens", "steps", "minutes")}
        for row in map(json.loads, (stretch / "history.jsonl").read_text().splitlines()):
            if "tokens" in row and settings[before]["rate"] == RATE:
                shifted = {"step": row["step"] + done["steps"], "tokens": row["tokens"] + done["tokens"]}
                history.append(row | shifted | {"seconds": row["seconds"] + 60 * done["minutes"]})
    metrics |= {key: sum(each[key] for each in records) for key in ("tokens", "steps", "minutes")}
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    write_json(folder / "metrics.json", metrics)
    return folder


def of_one_process(work: Path) -> Path:
    """What the first stretch held out and chose, in a folder that says nothing of how many processes trained."""
    first, folder = work / "0", work / "measured"
    folder.mkdir(exist_ok=True)
    shutil.copy(first / "held_out.json", folder)
    write_json(folder / "choices.json", json.loads((first / "choices.json").read_text()) | {"processes": 0})
    return folder


def measure(name: str, model: Model, data: Path, work: Path, folder: Path) -> None:
    """Measure the shipped weights on all held-out sequences and on those without homologs, and write the card."""
    metrics = json.loads((folder / "metrics.json").read_text())
    sets = {"held_out": [str(data / file) for file in model.valid]}
    if model.valid:
        sets["clean"] = [str(without_homologs(model, data, work))]
    for part, files in sets.items():
        shipped = {"model": str(folder), "valid": files, "minutes": None, "steps": 1, "rate": RATE}
        config = configuration(model, data, work, 0).model_copy(update=shipped)
        same_part = not files  # held out of the corpus itself, as the first stretch wrote down
        began = of_one_process(work) if same_part else work / "0"
        prepared = prepare(config, began, print, time.monotonic(), resume=same_part)
        prepared = replace(prepared, choices=replace(prepared.choices, precision="fp32"))
        found = perplexities(prepared, 10**9)
        metrics["perplexity"]["after"] |= {part: found.pop("held_out"), **found}
        metrics["choices"]["crop"] = prepared.choices.crop  # the last stretch may have had another
    if model.stretches[-1].settings.get("rate", RATE) != RATE:  # its own measurements do not belong on the curve
        last = {"tokens": metrics["tokens"], "seconds": 60 * metrics["minutes"]}
        with (folder / "history.jsonl").open("a") as history:
            history.write(json.dumps(last | {"held_out_perplexity": metrics["perplexity"]["after"]["held_out"]}) + "\n")
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
    options = parser.parse_args()
    data = options.data.resolve()
    for name in options.only or MODELS:
        model, work = MODELS[name], options.work.resolve() / name
        for number in range(len(model.stretches)):
            folder = work / str(number)
            if not (folder / "metrics.json").exists():
                resume = (folder / "pretraining.yaml").exists()
                run_language_model(configuration(model, data, work, number), folder, resume=resume, say=print)
        measure(name, model, data, work, ship(name, model, work))


if __name__ == "__main__":
    main()
