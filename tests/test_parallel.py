"""Batches side by side: the same results in the same order, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from plft.config import ModelConfig, TuningConfig
from plft.dataset import build_dataset
from plft.features import Prefix
from plft.labels import LabelSpace, TaskType
from plft.model import infer
from plft.parallel import side_by_side, workers_for
from plft.records import Record
from plft.runfolder import build_model

LABELS = LabelSpace(TaskType.TOKEN_CLASSIFICATION, classes=("a", "b"))


def built(family: str, **tuning: Any) -> Any:
    """A tiny model with its tuning method applied."""
    return build_model(tiny.checkpoint(family), LABELS, ModelConfig(), TuningConfig(**tuning)).eval()


def cores_of_a_new_thread() -> int:
    """What torch says in a thread that begins now."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("two_cores")
def test_results_come_in_order_from_threads_that_share_the_cores() -> None:
    together = threading.Barrier(2, timeout=20)  # nobody passes alone: both threads work at a time

    def call(item: int) -> tuple[int, int, str]:
        together.wait()
        return item, torch.get_num_threads(), threading.current_thread().name

    found = list(side_by_side(call, range(20), 2))
    assert [item for item, _, _ in found] == list(range(20))
    assert {cores for _, cores, _ in found} == {1}
    assert len({name for _, _, name in found}) == 2
    assert torch.get_num_threads() == 2
    assert cores_of_a_new_thread() == 2


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(("items", "workers"), [([7], 2), ([], 2), ([1, 2, 3], 1)])
def test_too_few_batches_run_where_they_are_asked_for(items: list[int], workers: int) -> None:
    found = list(side_by_side(lambda item: (item, threading.current_thread()), items, workers))
    assert found == [(item, threading.current_thread()) for item in items]


@pytest.mark.usefixtures("two_cores")
def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = side_by_side(lambda item: item, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 3
    assert cores_of_a_new_thread() == 2, "also while it goes on"
    results.close()
    assert len(taken) <= 3


@pytest.mark.usefixtures("two_cores")
def test_an_error_comes_in_its_turn_and_ends_it() -> None:
    def call(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    results = side_by_side(call, range(100), 2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "method"), [*((name, "full") for name in tiny.packable()), ("esm2", "lora")])
def test_a_model_answers_alike_alone_and_in_threads(
    monkeypatch: pytest.MonkeyPatch, family: str, method: str, precision: str
) -> None:
    model, checkpoint, random = built(family, method=method), tiny.checkpoint(family), np.random.default_rng(0)
    sequences = ["".join(random.choice(list("ACGT"), length)) for length in random.integers(5, 30, 60)]
    records = [Record(str(at), sequence) for at, sequence in enumerate(sequences)]
    dataset = build_dataset(records, checkpoint.residue_tokenizer, None, is_residue_task=True, max_residues=20)
    assert workers_for(model, 100) == 2
    answers, means = {}, {}
    for workers in (2, 1):
        monkeypatch.setattr("plft.model.workers_for", lambda *_, workers=workers: workers)
        means[workers] = []
        answers[workers] = infer(model, dataset, LABELS, budget=100, precision=precision, states=means[workers])
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for found in (answers, means):
        assert len(found[2]) == len(records)
        assert all(np.allclose(each, alone, atol=tolerance) for each, alone in zip(found[2], found[1], strict=True))


@pytest.mark.usefixtures("two_cores")
def test_what_running_changes_is_not_shared_between_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("esm2", method="last-1")
    assert workers_for(model, 4_096) == 2
    assert workers_for(model, 1_000_000) == 1
    model.kept_prefix = Prefix(None)
    assert workers_for(model, 100) == 2
    model.kept_prefix = Prefix(1)  # its first blocks are taken out of the backbone while the others run
    assert workers_for(model, 100) == 1
    model.kept_prefix = None
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert workers_for(model, 100) == 1
    monkeypatch.undo()
    layers = model.backbone.get_submodule("encoder.layer")
    layers.append(type("Linear4bit", (nn.Linear,), {})(2, 2))
    assert workers_for(model, 100) == 1
    assert workers_for(nn.Linear(2, 2), 100) == 1, "somebody's own model"
