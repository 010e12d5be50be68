"""Batches: every sequence once an epoch, within the budget, padded without changing anything."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plft.batching import (
    TrainingBatches,
    collate,
    default_budget,
    evaluation_budget,
    extra_column,
    fit_to_count,
    pack_by_length,
    share_of,
    sorted_batches,
)
from plft.dataset import Example, SequenceDataset
from plft.labels import LabelSpace, TaskType

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=120).map(np.array)
BUDGETS = st.integers(1, 2000)


def padded_size(batch: list[int], lengths: np.ndarray) -> int:
    return len(batch) * max(int(lengths[index]) for index in batch)


# --- which sequences share a batch


@given(LENGTHS, BUDGETS)
def test_packing_keeps_order_and_budget(lengths: np.ndarray, budget: int) -> None:
    order = np.random.default_rng(0).permutation(len(lengths))
    batches = pack_by_length(order, lengths, budget)
    assert [index for batch in batches for index in batch] == order.tolist()
    assert all(len(batch) == 1 or padded_size(batch, lengths) <= budget for batch in batches)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, BUDGETS, st.integers(0, 5), st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3), (3, 1)]))
def test_every_epoch_holds_every_sequence_exactly_once(
    lengths: np.ndarray, budget: int, epoch: int, shape: tuple[int, int]
) -> None:
    world, accumulation = shape
    if len(lengths) < world:
        return
    ranks = [TrainingBatches(lengths, budget, 0, world * accumulation, rank, world) for rank in range(world)]
    for each in ranks:
        each.set_epoch(epoch)
    batches = [list(each) for each in ranks]
    assert sorted(index for rank in batches for batch in rank for index in batch) == list(range(len(lengths)))
    assert {len(rank) for rank in batches} == {len(ranks[0])}, "all processes take equally many steps"


@settings(max_examples=60, deadline=None)
@given(LENGTHS, BUDGETS, st.integers(1, 6))
def test_the_number_of_batches_is_the_same_in_every_epoch(lengths: np.ndarray, budget: int, multiple_of: int) -> None:
    sampler = TrainingBatches(lengths, budget, seed=3, multiple_of=multiple_of)
    for epoch in range(6):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
    assert len(sampler) % multiple_of == 0 or len(sampler) == len(lengths), "unless each sequence is a batch already"


def test_the_budget_holds_in_every_epoch_and_longer_sequences_are_kept() -> None:
    lengths = np.random.default_rng(0).integers(5, 900, 700)
    sampler = TrainingBatches(lengths, budget=600, seed=0, multiple_of=4)
    for epoch in range(30):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(index for batch in batches for index in batch) == list(range(700))
        assert all(len(batch) == 1 or padded_size(batch, lengths) <= 600 for batch in batches)


def test_each_epoch_mixes_anew_and_a_seed_repeats_it() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 200)

    def epochs(seed: int) -> list[list[list[int]]]:
        sampler = TrainingBatches(lengths, 400, seed)
        drawn = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            drawn.append(list(sampler))
        return drawn

    first, second, third = epochs(0)
    together = [{frozenset(batch) for batch in epoch} for epoch in (first, second, third)]
    assert not together[0] & together[1]
    assert not together[1] & together[2]
    assert epochs(0) == [first, second, third]
    assert epochs(1)[0] != first


def test_a_batch_holds_sequences_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(20, 500, 2000)
    batches = list(TrainingBatches(lengths, 4000, seed=0))
    padding = sum(padded_size(batch, lengths) for batch in batches) / lengths.sum()
    assert padding < 1.1


def test_two_processes_see_the_batches_that_one_sees_with_accumulation() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 101)
    one = list(TrainingBatches(lengths, 300, seed=0, multiple_of=2))
    ranks = [list(TrainingBatches(lengths, 300, 0, 2, rank, 2)) for rank in (0, 1)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == one


def test_fitting_halves_the_largest_or_joins_the_smallest() -> None:
    assert sorted(fit_to_count([[0, 1, 2, 3], [4]], 3), key=min) == [[0, 1], [2, 3], [4]]
    assert sorted(fit_to_count([[0], [1], [2, 3]], 2), key=min) == [[0, 1], [2, 3]]


def test_evaluation_starts_with_the_longest() -> None:
    batches = sorted_batches(np.array([3, 9, 4, 8]), budget=16)
    assert batches == [[1], [3, 2], [0]] or batches[0] == [1]
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3]


# --- what a batch holds


def an_example(n_tokens: int, label: object, **others: object) -> Example:
    """<cls>, residues, <eos> as tokens 1, 10, 11, ..., 2."""
    n_residues = n_tokens - 2
    return Example(
        record=0,
        start=0,
        input_ids=np.array([1, *range(10, 10 + n_residues), 2], dtype=np.int32),
        residue_tokens=np.arange(1, n_residues + 1, dtype=np.int32),
        scored=others.pop("scored", (0, n_residues)),
        label=None if label is None else np.asarray(label),
        **others,
    )


def test_tokens_are_padded_and_masked() -> None:
    batch = collate([an_example(5, None), an_example(3, None)], None, pad_token_id=7, is_residue_task=False)
    assert batch["input_ids"].tolist() == [[1, 10, 11, 12, 2], [1, 10, 2, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["residue_mask"].tolist() == [[False, True, True, True, False], [False, True, False, False, False]]
    assert "labels" not in batch


def test_residue_labels_are_padded_with_no_class() -> None:
    labels = LabelSpace(TaskType.TOKEN_CLASSIFICATION, ("C", "H"))
    batch = collate([an_example(5, [0, 1, 1]), an_example(4, [1, 0])], labels, 0, is_residue_task=True)
    assert batch["labels"].tolist() == [[0, 1, 1], [1, 0, -100]]
    assert batch["residue_tokens"].tolist() == [[1, 2, 3], [1, 2, -1]]


def test_residue_numbers_are_standardised_and_padded_with_nan() -> None:
    labels = LabelSpace(TaskType.TOKEN_REGRESSION, columns=("label",), mean=(2.0,), scale=(4.0,))
    examples = [an_example(5, np.float32([2, 6, np.nan])), an_example(3, np.float32([-2]))]
    values = collate(examples, labels, 0, is_residue_task=True)["labels"]
    torch.testing.assert_close(
        values, torch.tensor([[0.0, 1.0, torch.nan], [-1.0, torch.nan, torch.nan]]), equal_nan=True
    )


def test_several_columns_are_standardised_each_by_its_own_scale() -> None:
    labels = LabelSpace(TaskType.SEQ_REGRESSION, columns=("a", "b"), mean=(1.0, 10.0), scale=(2.0, 5.0))
    batch = collate([an_example(3, np.float32([3, np.nan])), an_example(4, np.float32([1, 0]))], labels, 0, False)
    torch.testing.assert_close(batch["labels"], torch.tensor([[1.0, torch.nan], [0.0, -2.0]]), equal_nan=True)


def test_the_part_of_a_window_that_another_answers_for_is_silent() -> None:
    labels = LabelSpace(TaskType.TOKEN_CLASSIFICATION, ("C", "H"))
    example = an_example(6, [0, 1, 1, 0], scored=(1, 3))
    assert collate([example], labels, 0, True)["labels"].tolist() == [[-100, 1, 1, -100]]
    assert example.label.tolist() == [0, 1, 1, 0], "the example itself is untouched"


def test_weights_and_extra_columns_come_along() -> None:
    labels = LabelSpace(TaskType.SEQ_CLASSIFICATION, ("no", "yes"))
    extra = ({"ph": "7.5", "graph": [1.0, 2.0], "note": "a"}, {"ph": 6, "graph": [3.0], "note": "b"})
    examples = [an_example(3, 0, weight=2.0, extra=extra[0]), an_example(3, 1, weight=0.5, extra=extra[1])]
    batch = collate(examples, labels, 0, False)
    assert batch["sequence_weights"].tolist() == [2.0, 0.5]
    assert batch["ph"].tolist() == [7.5, 6.0]
    assert batch["graph"].tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert batch["note"] == ["a", "b"]


def test_extra_numbers_that_are_missing_stay_missing() -> None:
    assert torch.isnan(extra_column([1.0, float("nan")])).tolist() == [False, True]


def test_the_default_budget_is_some_sequences_and_leaves_steps_to_take() -> None:
    def dataset(n: int, length: int) -> SequenceDataset:
        examples = [an_example(length, None)] * n
        return SequenceDataset(examples, labels=None, pad_token_id=0, is_residue_task=False)

    assert default_budget(dataset(10_000, 1000)) == 16_000
    assert default_budget(dataset(10_000, 50)) == 2048
    assert default_budget(dataset(100, 100)) == 333, "at least 30 batches"
    assert default_budget(dataset(1, 100)) == 256


# --- several processes


def test_every_process_runs_equally_many_batches_and_each_batch_counts_once() -> None:
    batches = [[0, 1], [2], [3], [4], [5]]
    for world in (1, 2, 3, 4):
        shares = [share_of(batches, rank, world) for rank in range(world)]
        assert len({len(mine) for mine, _ in shares}) == 1
        counted = [batch for mine, n_counted in shares for batch in mine[:n_counted]]
        assert sorted(counted) == batches
    assert share_of(batches[:1], 2, 4) == ([[0, 1]], 0), "more processes than batches"


def test_evaluation_reads_more_at_once_than_training_up_to_a_limit(monkeypatch) -> None:
    monkeypatch.setattr("plft.batching.INFERENCE_BUDGET", 6_000)
    assert [evaluation_budget(training) for training in (500, 2_000, 50_000)] == [2_000, 6_000, 6_000]
