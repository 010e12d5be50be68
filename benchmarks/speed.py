"""How fast plft is beside the plain transformers Trainer, beside an expert's use of it, and beside what is possible.

    python benchmarks/speed.py [--cases full lora ...] [--lengths natural equal dna] [--repeats 5] [--quick]

Every measurement is a process of its own, so that its peak memory is its own; contenders take turns, and a row is the
median of the ratios within a turn, in valid residues per second: start-up, padding and special tokens do not count.

trainer        transformers.Trainer as it comes: 8 sequences a batch in any order, padded, torch's attention, fp32
trainer-tuned  the same with bf16 and its sampler that groups by length
products       the matrix products of full training alone: nothing can be faster on this machine
biotrainer     embedding with biotrainer, from an environment of its own: --biotrainer ITS_PYTHON
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from plft.apps.cli import quiet_libraries
from plft.checkpoints import Checkpoint, resolve
from plft.config import ModelConfig, TrainingConfig, TuningConfig
from plft.dataset import SequenceDataset, build_dataset
from plft.families import spell
from plft.keeping import kept_features
from plft.labels import LabelSpace, TaskType
from plft.model import PLMTaskModel
from plft.pipeline import embedder, on_device
from plft.prediction import Predictor
from plft.records import Record
from plft.runfolder import build_model
from plft.training import SequenceTaskTrainer, choose_precision, training_arguments

BATCH = 8
RATE = 1e-4


@dataclass(frozen=True)
class Lengths:
    """Simulated sequences. draw: (random, n) -> lengths.  model: what reads them, by default."""

    title: str
    letters: str
    draw: Callable[[np.random.Generator, int], np.ndarray]
    model: str = "scratch:esm2-8m"


def evenly(n: int) -> np.ndarray:
    """A normal distribution at n equal steps of probability: any number of sequences has the same mix of lengths."""
    return ndtri((np.arange(n) + 0.5) / n)


LENGTHS = {
    "natural": Lengths(
        "lengths as in Swiss-Prot (log-normal, median 300, 40 to 1022)",
        "ACDEFGHIKLMNPQRSTVWY",
        lambda random, n: random.permutation(np.clip(300 * np.exp(0.7 * evenly(n)), 40, 1022).astype(int)),
    ),
    "equal": Lengths("56 residues each, as in a mutational scan", "ACDEFGHIKLMNPQRSTVWY", lambda _, n: np.full(n, 56)),
    "dna": Lengths(
        "100 bases each, as in a motif data set", "ACGT", lambda _, n: np.full(n, 100), "scratch:tiny-mistral-dna"
    ),
}


@dataclass(frozen=True)
class Case:
    """A job. tune: method, or None for a job without training.  epochs: of plft; the others do one and are scaled."""

    title: str
    tune: str | None
    contenders: tuple[str, ...]
    epochs: int = 1


CASES = {
    "full": Case("full fine-tuning", "full", ("trainer", "trainer-tuned", "products")),
    "lora": Case("LoRA", "lora", ("trainer", "trainer-tuned")),
    "head": Case("head only, 20 epochs", "head", ("trainer", "plft-predict"), 20),
    "last": Case("last 2 blocks, 5 epochs", "last-2", ("trainer", "plft-full"), 5),
    "predict": Case("prediction", None, ("trainer", "plft-fp32")),
    "embed": Case("embedding", None, ("trainer",)),
}


def simulated(lengths: Lengths, n: int, seed: int = 0) -> list[Record]:
    """Random sequences with random classes."""
    random = np.random.default_rng(seed)
    letters = list(lengths.letters)
    sizes = lengths.draw(random, n)
    return [Record(str(at), "".join(random.choice(letters, size)), str(at % 2)) for at, size in enumerate(sizes)]


@dataclass(frozen=True)
class Job:
    """What is to be done, with everything that start-up makes."""

    case: Case
    checkpoint: Checkpoint
    records: list[Record]
    labels: LabelSpace

    @property
    def dataset(self) -> SequenceDataset:
        """The records tokenised."""
        tokenizer, longest = self.checkpoint.residue_tokenizer, self.checkpoint.family.trained_residues
        return build_dataset(self.records, tokenizer, self.labels, is_residue_task=False, max_residues=longest)

    def model(self, tune: str) -> PLMTaskModel:
        """The model with a tuning method applied."""
        return build_model(self.checkpoint, self.labels, ModelConfig(), TuningConfig(method=tune))


def ours(job: Job, tune: str, epochs: int) -> float:
    """Seconds of training with plft, what it computes beforehand included."""
    dataset, precision = job.dataset, choose_precision("auto", job.checkpoint.family)[0]
    budget = int(BATCH * dataset.lengths.mean())
    settings = TrainingConfig(epochs=epochs, batch_residues=budget)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            settings, Path(folder), precision=precision, learning_rate=RATE, metric="mcc", can_evaluate=False
        )
        arguments.save_strategy = "no"
        trainer = SequenceTaskTrainer(job.model(tune), arguments, train_dataset=dataset, token_budget=budget)
        started = time.perf_counter()
        with kept_features(trainer, settings, lambda line: None):
            trainer.train()
        return time.perf_counter() - started


def theirs(job: Job, tune: str, epochs: int, tuned: bool) -> float:
    """Seconds of training with the plain Trainer: an ...ForSequenceClassification, or peft's wrapper around it."""
    tokenizer = job.checkpoint.tokenizer
    inputs = [each.input_ids.tolist() for each in job.dataset.examples]
    rows = [{"input_ids": ids, "labels": number % 2} for number, ids in enumerate(inputs)]
    model: Any = AutoModelForSequenceClassification.from_config(job.checkpoint.config)
    model.config.pad_token_id = tokenizer.pad_token_id
    if tune == "lora":
        from peft import LoraConfig, get_peft_model

        targets = list(job.checkpoint.family.lora_targets)
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="SEQ_CLS"))
    elif tune != "full":
        model.base_model.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=epochs,
            learning_rate=RATE,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
            bf16=tuned,
            train_sampling_strategy="group_by_length" if tuned else "random",
        )
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), train_dataset=rows)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def their_loop(job: Job) -> float:
    """Seconds of the usual loop for prediction: 8 sequences at a time, in the order of the file, padded, fp32."""
    tokenizer = job.checkpoint.tokenizer
    model: Any = AutoModelForSequenceClassification.from_config(job.checkpoint.config).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    started = time.perf_counter()
    for at in range(0, len(job.records), BATCH):
        texts = [spell(job.checkpoint.family, each.sequence).text for each in job.records[at : at + BATCH]]
        with torch.no_grad():
            model(**tokenizer(texts, padding=True, truncation=True, max_length=1024, return_tensors="pt"))
    return time.perf_counter() - started


def our_answers(job: Job, predictor: Predictor) -> float:
    """Seconds of answering for every record, tokenising included."""
    started = time.perf_counter()
    answered = sum(1 for _ in predictor.stream(job.records))
    assert answered == len(job.records)
    return time.perf_counter() - started


def our_prediction(job: Job, precision: str = "auto") -> float:
    """Seconds of prediction with plft."""
    family, model = job.checkpoint.family, job.model("full").eval()
    predictor = Predictor(model, job.checkpoint.residue_tokenizer, job.labels, family, family.trained_residues)
    return our_answers(job, on_device(predictor, precision))


def products(job: Job) -> float:
    """Seconds of the matrix products of full training, in the precision that plft trains in.

    A linear layer is three products: for its output, the gradient of its input and that of its weights. Attention is
    two forward and four backward for each sequence.
    """
    config, dataset = job.checkpoint.config, job.dataset
    is_bf16 = choose_precision("auto", job.checkpoint.family)[0] == "bf16"

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(torch.bfloat16 if is_bf16 else torch.float32)

    width, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads = config.num_attention_heads
    tokens = int(BATCH * dataset.lengths.mean())
    linear = []
    for inside, outside, count in ((width, width, 4 * blocks), (width, inner, blocks), (inner, width, blocks)):
        x, w, g = random(tokens, inside), random(outside, inside), random(tokens, outside)
        linear += [(x, w.T, count), (g, w, count), (g.T, x, count)]
    states = {length: random(heads, length, width // heads) for length in set(dataset.lengths.tolist())}
    scores = {length: random(heads, length, length) for length in states}
    started = time.perf_counter()
    for _ in range(round(dataset.lengths.sum() / tokens)):
        for left, right, count in linear:
            for _ in range(count):
                left @ right
    for length in dataset.lengths.tolist():
        for _ in range(2 * blocks):
            states[length] @ states[length].transpose(1, 2)
        for _ in range(4 * blocks):
            scores[length] @ states[length]
    return time.perf_counter() - started


def seconds(job: Job, contender: str) -> float:
    """Seconds that a contender takes for as many epochs as the case has."""
    case = job.case
    if contender == "products":
        return products(job)
    if contender in ("plft-predict", "plft-fp32"):
        return our_prediction(job, "auto" if contender == "plft-predict" else "fp32")
    if case.tune is None:
        if contender != "plft":
            return their_loop(job)
        if case is CASES["predict"]:
            return our_prediction(job)
        return our_answers(job, embedder(job.checkpoint.name, precision="auto"))
    if contender.startswith("trainer"):
        return theirs(job, case.tune, 1, contender == "trainer-tuned") * case.epochs
    if contender == "plft-full":
        return ours(job, "full", 1) * case.epochs
    return ours(job, case.tune, case.epochs)


def measure(case: str, lengths: str, contender: str, n: int, model: str | None) -> dict[str, float]:
    """Speed and peak memory of one contender, in this process; a short run warms up."""
    quiet_libraries()
    kind = LENGTHS[lengths]
    checkpoint = resolve(model or kind.model)
    result = {}
    for size in (2 * BATCH, n):
        records = simulated(kind, size)
        job = Job(CASES[case], checkpoint, records, LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, records))
        passes = 1 if contender == "plft-predict" else CASES[case].epochs
        taken = seconds(job, contender)
        result = {"speed": passes * sum(len(each.sequence) for each in records) / taken, "seconds": taken}
    return result | {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_a_process(case: str, lengths: str, contender: str, options: argparse.Namespace) -> dict[str, float]:
    """What `measure` gives, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if contender == "biotrainer":
            command = for_biotrainer(lengths, options, Path(folder))
        else:
            command = [sys.executable, __file__, "--one", case, lengths, contender]
            command += ["--sequences", str(options.sequences), *(["--model", options.model] if options.model else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case}, {lengths}, {contender}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def for_biotrainer(lengths: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """The command that embeds the same sequences with the same shape; both are written to the folder."""
    kind = LENGTHS[lengths]
    checkpoint = resolve(options.model or kind.model)
    AutoModel.from_config(checkpoint.config).save_pretrained(folder / "model")
    checkpoint.tokenizer.save_pretrained(folder / "model")
    written = folder / "sequences.txt"
    written.write_text("\n".join(each.sequence for each in simulated(kind, options.sequences)))
    script = Path(__file__).with_name("biotrainer_embedding.py")
    return [options.biotrainer, str(script), str(folder / "model"), str(written)]


def rows(case: str, lengths: str, options: argparse.Namespace) -> list[str]:
    """Lines of the table for one case: the contenders take turns."""
    beside = ("biotrainer",) if case == "embed" and options.biotrainer else ()
    contenders = ("plft", *CASES[case].contenders, *beside)
    found: dict[str, list[dict[str, float]]] = {each: [] for each in contenders}
    for _ in range(options.repeats):
        for contender in contenders:
            found[contender].append(in_a_process(case, lengths, contender, options))
    lines = []
    for contender, results in found.items():
        ratios = [mine["speed"] / other["speed"] for mine, other in zip(found["plft"], results, strict=True)]
        speed, memory = (statistics.median(each[key] for each in results) for key in ("speed", "mb"))
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        lines.append(f"| {CASES[case].title} | {lengths} | {contender} | {speed:,.0f} | {ratio} | {memory:,.0f} |")
    return lines


def growth(options: argparse.Namespace) -> list[str]:
    """Lines of a table: how the time of full fine-tuning grows with the residues, start-up excluded."""
    found: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
    for _ in range(options.repeats):
        for times, speeds in found.items():
            size = argparse.Namespace(sequences=times * options.sequences, model=options.model)
            speeds.append(in_a_process("full", "natural", "plft", size)["speed"])
    lines = []
    for times, speeds in found.items():
        ratios = [times * first / speed for first, speed in zip(found[1], speeds, strict=True)]
        lines.append(f"| {times}x | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")
    return lines


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=["natural"])
    parser.add_argument("--model", help="another model than that of the lengths")
    parser.add_argument("--biotrainer", metavar="PYTHON", help="of an environment with biotrainer: embed beside it")
    parser.add_argument("--sequences", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true", help="instead: time against the amount of data")
    parser.add_argument("--quick", action="store_true", help="a small model, few sequences, once: does it run at all?")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "LENGTHS", "CONTENDER"), help="in this process, as JSON")
    options = parser.parse_args()
    if options.quick:
        options.model, options.sequences, options.repeats = "scratch:tiny-esm2", 16, 1
    if options.one:
        print(json.dumps(measure(*options.one, options.sequences, options.model)))
        return
    print(f"{torch.get_num_threads()} threads, {options.sequences} sequences, median of {options.repeats}\n")
    if options.growth:
        print("\n".join(["| residues | time of full fine-tuning |", "|---:|---:|", *growth(options)]))
        return
    print("| job | lengths | | valid residues/s | plft is faster by | peak memory, MB |\n|---|---|---|---:|---:|---:|")
    for lengths in options.lengths:
        for case in options.cases:
            print("\n".join(rows(case, lengths, options)), flush=True)


if __name__ == "__main__":
    main()
