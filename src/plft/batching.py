"""Examples -> batches of similar length within a token budget; no sequence is ever dropped."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plft.dataset import Example, SequenceDataset
from plft.labels import LabelSpace
from plft.tasks import NO_CLASS

JITTER = 0.1  # lengths are blurred by this share before sorting: a set that fits one pool is mixed anew all the same
PROBES = 4  # epochs drawn in advance to learn how many batches an epoch needs
ATTEMPTS = 20  # shuffles tried for an epoch that needs more than those did; only then are batches joined
INFERENCE_BUDGET = 16_384 if torch.accelerator.is_available() else 4_096  # tokens of a batch without gradients
EVALUATION_SHARE = 4  # of the tokens of a training batch, at most: no activations are kept
POOL = 64  # batches' worth of sequences are sorted by length together: similar lengths, yet a new mixture every epoch


def pack_by_length(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Cut an order of examples into consecutive batches whose padded size stays within the budget.

    lengths: tokens per example.  budget: tokens per batch, padding included; a longer example is
    a batch of its own.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for index in order:
        longest_with = max(longest, int(lengths[index]))
        if current and longest_with * (len(current) + 1) > budget:
            batches.append(current)
            current, longest_with = [], int(lengths[index])
        current.append(int(index))
        longest = longest_with
    return [*batches, current] if current else batches


def fit_to_count(batches: list[list[int]], count: int) -> list[list[int]]:
    """Halve the largest batches until there are `count` of them, or join the smallest where there are too many.

    count: at most the number of sequences.
    """
    batches = sorted(batches, key=len)
    while len(batches) < count:
        whole = batches.pop()
        half = len(whole) // 2
        for part in (whole[:half], whole[half:]):
            insort(batches, part, key=len)
    while len(batches) > count:
        joined = batches[0] + batches[1]
        del batches[:2]
        insort(batches, joined, key=len)
    return batches


def sorted_batches(lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Batches for evaluation: longest first, so that running out of memory happens at once or never."""
    return pack_by_length(np.argsort(-lengths, kind="stable"), lengths, budget)


def share_of(batches: list[list[int]], rank: int, world: int) -> tuple[list[list[int]], int]:
    """The batches one of several processes runs over, and how many of them count.

    Where they do not come out even, the last batch is repeated, to no account: a sharded model is gathered anew for
    every batch, so all processes have to run equally many.
    """
    repeated = batches[-1:] * (-len(batches) % world)
    return [*batches, *repeated][rank::world], len(batches[rank::world])


class TrainingBatches:
    """Batch sampler: a new mixture every epoch, fixed by (seed, epoch), always with the same number of batches.

    lengths: tokens per example.  budget: tokens per batch, padding included.
    multiple_of: processes x accumulation; every optimiser step then has the same number of batches on every process.
    rank, world: this process takes batches rank, rank + world, ... so that N processes see the batches that one process
    with N-fold accumulation would see.
    """

    def __init__(
        self, lengths: np.ndarray, budget: int, seed: int, multiple_of: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        self.lengths, self.budget, self.seed = lengths, budget, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        needed = max(len(self.draw(epoch)) for epoch in range(PROBES))
        self.count = min(-(-needed // multiple_of) * multiple_of, len(lengths) // world * world)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose mixture comes next."""
        self.epoch = int(epoch)

    def draw(self, epoch: int, attempt: int = 0) -> list[list[int]]:
        """Shuffle, sort by about the length within pools, cut into batches within the budget."""
        random = np.random.default_rng([self.seed, epoch, attempt])
        order = random.permutation(len(self.lengths))
        about = self.lengths * random.uniform(1 - JITTER, 1 + JITTER, len(self.lengths))
        pool = max(1, int(POOL * self.budget / max(1.0, float(self.lengths.mean()))))
        pools = np.split(order, range(pool, len(order), pool))
        mixed = np.concatenate([part[np.argsort(about[part], kind="stable")] for part in pools])
        return pack_by_length(mixed, self.lengths, self.budget)

    def plan(self, epoch: int) -> list[list[int]]:
        """All batches of one epoch, for all processes, in the order they are used."""
        attempts = (self.draw(epoch, attempt) for attempt in range(ATTEMPTS))
        drawn = next((each for each in attempts if len(each) <= self.count), None) or self.draw(epoch)
        batches = fit_to_count(drawn, self.count)
        return [batches[index] for index in np.random.default_rng([self.seed, epoch]).permutation(len(batches))]

    def __len__(self) -> int:
        return self.count // self.world

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.plan(self.epoch)[self.rank :: self.world]


class Collator:
    """Turns a list of examples of one dataset into a batch; what a DataLoader wants as `collate_fn`."""

    def __init__(self, dataset: SequenceDataset) -> None:
        self.labels = dataset.labels
        self.pad_token_id = dataset.pad_token_id
        self.is_residue_task = dataset.is_residue_task

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        return collate(examples, self.labels, self.pad_token_id, self.is_residue_task)


def collate(
    examples: Sequence[Example], labels: LabelSpace | None, pad_token_id: int, is_residue_task: bool
) -> dict[str, Any]:
    """Pad examples into one batch of tensors.

    Returns input_ids, attention_mask (batch, tokens); residue_mask (batch, tokens) bool for sequence tasks or
    residue_tokens (batch, residues) int64 with -1 as padding for residue tasks; when labelled, labels (standardised for
    regressions; missing and padding as -100 or NaN) and sequence_weights (batch,); features (batch, tokens or 1, width)
    where they are kept; and every extra column.
    """
    tokens = max(len(each.input_ids) for each in examples)
    input_ids = np.full((len(examples), tokens), pad_token_id, dtype=np.int64)
    attention = np.zeros((len(examples), tokens), dtype=np.int64)
    for row, each in enumerate(examples):
        input_ids[row, : len(each.input_ids)] = each.input_ids
        attention[row, : len(each.input_ids)] = 1
    batch: dict[str, Any] = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention)}
    if is_residue_task:
        batch["residue_tokens"] = torch.from_numpy(padded([each.residue_tokens for each in examples], -1, np.int64))
    else:
        batch["residue_mask"] = residue_mask(examples, tokens)
    if labels is not None and all(each.label is not None for each in examples):
        batch["labels"] = torch.from_numpy(batch_labels(examples, labels, is_residue_task))
        batch["sequence_weights"] = torch.tensor([each.weight for each in examples], dtype=torch.float32)
    if examples[0].features is not None:
        batch["features"] = pad_sequence([each.features for each in examples], batch_first=True)
    for name in examples[0].extra:
        batch[name] = extra_column([each.extra[name] for each in examples])
    return batch


def padded(arrays: Sequence[np.ndarray], value: float, dtype: Any) -> np.ndarray:
    """Stack 1-D arrays of unequal length, the rest filled with `value`: (batch, longest)."""
    result = np.full((len(arrays), max(len(each) for each in arrays)), value, dtype=dtype)
    for row, each in enumerate(arrays):
        result[row, : len(each)] = each
    return result


def residue_mask(examples: Sequence[Example], tokens: int) -> Tensor:
    """(batch, tokens) bool: tokens that cover at least one residue."""
    mask = np.zeros((len(examples), tokens), dtype=bool)
    for row, each in enumerate(examples):
        mask[row, each.residue_tokens] = True
    return torch.from_numpy(mask)


def batch_labels(examples: Sequence[Example], labels: LabelSpace, is_residue_task: bool) -> np.ndarray:
    """Targets of a batch: padded behind the residues, silent outside a window's scored part, numbers standardised."""
    values = [each.label for each in examples if each.label is not None]
    is_float = labels.task.is_regression or labels.task.is_multilabel
    if is_residue_task:
        silent = np.nan if is_float else NO_CLASS
        values = [only_scored(value, each.scored, silent) for value, each in zip(values, examples, strict=True)]
        stacked = padded(values, silent, np.float32 if is_float else np.int64)
    else:
        stacked = np.stack(values)
    if not labels.task.is_regression:
        return stacked
    return ((stacked - np.array(labels.mean)) / np.array(labels.scale)).astype(np.float32)


def only_scored(values: np.ndarray, scored: tuple[int, int], silent: float) -> np.ndarray:
    """A copy of the targets with `silent` outside [from, to)."""
    if scored == (0, len(values)):
        return values
    result = np.full_like(values, silent)
    result[scored[0] : scored[1]] = values[scored[0] : scored[1]]
    return result


def extra_column(values: list[Any]) -> Any:
    """Numbers become a float tensor (batch,), lists of numbers (batch, longest) padded with 0; others stay a list."""
    try:
        if all(isinstance(value, list | tuple | np.ndarray) for value in values):
            return torch.from_numpy(padded([np.asarray(value, dtype=np.float32) for value in values], 0, np.float32))
        return torch.tensor([float(value) for value in values])
    except (TypeError, ValueError):
        return values


def most_tokens(batches: Iterable[list[int]], lengths: np.ndarray) -> int:
    """The padded size of the largest batch."""
    return max((len(each) * int(lengths[each].max()) for each in batches), default=0)


def evaluation_budget(training: int) -> int:
    """Tokens in a batch of evaluation, beside a training batch of so many."""
    return min(EVALUATION_SHARE * training, INFERENCE_BUDGET)


def default_budget(dataset: SequenceDataset) -> int:
    """Tokens in a training batch by default: about 16 sequences, fewer where that leaves under 30 steps an epoch."""
    mean = float(dataset.lengths.mean())
    total = float(dataset.lengths.sum())
    wanted = min(max(16 * mean, 2048), 16384)
    return int(max(min(wanted, total / 30), mean, 256))
