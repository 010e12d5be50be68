"""Batches without gradients, several at a time on the cores of a CPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from plft.attention import can_pack, without_adapters
from plft.batching import INFERENCE_BUDGET
from plft.tuning import has_4bit_layers

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 4  # batches, whatever the number of cores


def workers_for(model: Any, tokens: int) -> int:
    """How many threads may run a model at a time, with batches of up to so many tokens each.

    More than one on a CPU, for backbones that running leaves as they are: transformers' own code of known families.
    Code from elsewhere and 4-bit layers keep things in the model, and a backbone of which only some blocks are run has
    the others taken out for a while.  Long batches run alone, for want of memory; so do those of a process that has
    to stay in step with others.
    """
    prefix, plain = getattr(model, "kept_prefix", None), without_adapters(getattr(model, "backbone", model))
    is_pure = getattr(plain, "config", None) is not None and can_pack(plain)
    is_pure = is_pure and not has_4bit_layers(plain)
    is_whole = prefix is None or prefix.blocks is None
    in_step = dist.is_available() and dist.is_initialized()
    if not is_pure or not is_whole or in_step or tokens > INFERENCE_BUDGET:
        return 1
    return min(AT_ONCE, torch.get_num_threads()) if next(model.parameters()).device.type == "cpu" else 1


def side_by_side(call: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield call(item) for every item, in order, computed by threads that share the cores.

    Threads with a batch each need not wait for one another at every operation, and what a batch computes stays in its
    core's cache: a seventh faster on two cores than one batch after the other on both.  call: sets gradient mode and
    autocast itself, for they belong to a thread.  items: taken as they are needed; fewer than workers are done one
    after the other, each by all cores.
    """
    items = iter(items)
    first = list(islice(items, workers))
    if workers == 1 or len(first) < workers:
        yield from map(call, chain(first, items))
        return
    cores = torch.get_num_threads()
    shares = [max(1, cores // workers + (at < cores % workers)) for at in range(workers)]
    have_begun = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread that never asked would forget its own number for that of the process
        torch.set_num_threads(shares.pop())
        have_begun.wait()

    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        try:
            waiting.extend(pool.submit(call, item) for item in first)
            have_begun.wait()
            torch.set_num_threads(cores)  # of this thread, and of those that others begin
            for item in items:
                waiting.append(pool.submit(call, item))
                yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            have_begun.abort()  # nobody waits where a thread could not be started
            for each in waiting:
                each.cancel()
