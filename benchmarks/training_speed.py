"""How much faster training is in batches of similar length than in the plain Trainer's padded batches.

    python benchmarks/training_speed.py [--model scratch:esm2-1m] [--repeats 3]

Both sides train the same model on the same simulated proteins (lengths as in Swiss-Prot, roughly log-normal) with the
same number of sequences per batch on average. They alternate, and the figure is the median ratio of valid residues per
second, so that a noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from plft.batching import TrainingBatches, collate
from plft.checkpoints import resolve
from plft.config import ModelConfig, TuningConfig
from plft.dataset import SequenceDataset, build_dataset
from plft.labels import LabelSpace, TaskType
from plft.records import Record
from plft.runfolder import build_model

SEQUENCES_PER_BATCH = 8


def simulated(n: int, seed: int = 0) -> list[Record]:
    """Random proteins with log-normal lengths, median 300, between 40 and 1022, and random classes."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(300), 0.7, n), 40, 1022).astype(int)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    return [Record(str(at), "".join(random.choice(letters, size)), str(at % 2)) for at, size in enumerate(lengths)]


def padded_batches(dataset: SequenceDataset, seed: int) -> list[list[int]]:
    """What the plain Trainer does: shuffle, then a fixed number of sequences per batch."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    return [list(order[at : at + SEQUENCES_PER_BATCH]) for at in range(0, len(order), SEQUENCES_PER_BATCH)]


def residues_per_second(model: torch.nn.Module, dataset: SequenceDataset, batches: list[list[int]]) -> float:
    """Forward, backward and optimiser step over the batches; real residues only are counted."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    residues = 0
    started = time.perf_counter()
    for indices in batches:
        examples = [dataset[index] for index in indices]
        residues += sum(len(each.residue_tokens) for each in examples)
        model(**collate(examples, dataset.labels, dataset.pad_token_id, False)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return residues / (time.perf_counter() - started)


def main() -> None:
    """Print the median ratio with its spread, and both speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scratch:esm2-1m")
    parser.add_argument("--sequences", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    records = simulated(chosen.sequences)
    labels = LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, records)
    checkpoint = resolve(chosen.model)
    dataset = build_dataset(
        records,
        checkpoint.residue_tokenizer,
        labels,
        is_residue_task=False,
        max_residues=checkpoint.family.trained_residues,
    )
    model = build_model(checkpoint, labels, ModelConfig(name=chosen.model), TuningConfig(method="full"))
    budget = int(SEQUENCES_PER_BATCH * dataset.lengths.mean())
    ours = TrainingBatches(dataset.lengths, budget, seed=0)
    residues_per_second(model, dataset, ours.plan(0)[:2])  # warm up
    pairs = []
    for repeat in range(chosen.repeats):
        padded = residues_per_second(model, dataset, padded_batches(dataset, repeat))
        sorted_by_length = residues_per_second(model, dataset, ours.plan(repeat))
        pairs.append((sorted_by_length / padded, sorted_by_length, padded))
    ratios = [pair[0] for pair in pairs]
    print(f"model {chosen.model}, {chosen.sequences} sequences, {torch.get_num_threads()} threads")
    print(f"similar lengths: {statistics.median(pair[1] for pair in pairs):.0f} valid residues/s")
    print(f"padded batches:  {statistics.median(pair[2] for pair in pairs):.0f} valid residues/s")
    print(f"ratio: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
