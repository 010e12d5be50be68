"""Batches side by side: the same results in the same order, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from plft.parallel import AT_ONCE, side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def two_cores() -> Iterator[None]:
    """As on a machine with two cores, whatever this one has."""
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(cores)


@pytest.mark.usefixtures("two_cores")
def test_results_come_in_order_from_threads_that_share_the_cores() -> None:
    together = threading.Barrier(2, timeout=20)  # nobody passes alone: both threads work at a time

    def call(item: int) -> tuple[int, int, str]:
        together.wait()
        return item, torch.get_num_threads(), threading.current_thread().name

    found = list(side_by_side(call, range(20), CPU))
    assert [item for item, _, _ in found] == list(range(20))
    assert {cores for _, cores, _ in found} == {1}
    assert len({name for _, _, name in found}) == 2
    assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2], "threads that begin afterwards have all cores again"


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(("items", "device"), [([7], CPU), ([], CPU), ([1, 2, 3], torch.device("meta"))])
def test_a_single_batch_and_those_of_a_gpu_run_where_they_are_asked_for(items: list[int], device: torch.device) -> None:
    found = list(side_by_side(lambda item: (item, threading.current_thread()), items, device))
    assert found == [(item, threading.current_thread()) for item in items]


@pytest.mark.usefixtures("two_cores")
def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = side_by_side(lambda item: item, items(), CPU)
    assert next(results) == 0
    assert len(taken) <= AT_ONCE
    results.close()
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
def test_an_error_comes_in_its_turn_and_ends_it() -> None:
    def call(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    results = side_by_side(call, range(100), CPU)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert torch.get_num_threads() == 2
