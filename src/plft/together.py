"""Several processes that train together, started on one machine without a launcher."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState

from plft.errors import PlftError

MOST_WORKERS = 8  # that are started unasked
WORKER_BYTES = 3 * 2**30  # of free memory for each, at least

T = TypeVar("T")


def most_workers(free: int, each: int = WORKER_BYTES) -> int:
    """Processes that get the most out of this machine's processor: one for each thread, as memory allows.

    Two processes of one thread learn faster than one of two, as only their sums of gradients wait for one another.
    free: bytes of memory.  each: what a process takes of them.
    """
    return max(1, min(torch.get_num_threads(), MOST_WORKERS, free // max(each, WORKER_BYTES)))


def train_together(workers: int, train: Callable[..., T], *shared: Any, **own: Any) -> T:
    """train(*shared, **own) in this process and train(*shared) in workers - 1 others, which end with it.

    What is returned is what this process, the first, returns. train and shared have to be picklable, and a script of
    one's own needs `if __name__ == "__main__":`, as always where processes are started. The threads are divided up.
    Raises PlftError where one of the others was ended.
    """
    threads, environment = torch.get_num_threads(), dict(os.environ)
    each = max(1, threads // workers)
    os.environ |= {"WORLD_SIZE": str(workers), "OMP_NUM_THREADS": str(each)} | _place(0)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_join, args=(rank, train, shared), daemon=True) for rank in range(1, workers)]
    torch.set_num_threads(each)
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers how many processes there were
    try:
        for other in others:
            other.start()
        return train(*shared, **own)
    except RuntimeError as error:
        for other in others:
            other.join(1)  # what broke the connection may still be on its way out
        if any(other.exitcode for other in others):
            raise PlftError("A worker was ended, most likely for want of memory. Take fewer --workers.") from error
        raise
    finally:
        for other in others:
            if other.pid is not None:  # it was started
                other.terminate()
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def _place(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _join(rank: int, train: Callable[..., Any], shared: tuple[Any, ...]) -> None:
    """What another process does. It is silent: the first one says what there is to say, and ends it by leaving."""
    os.environ |= _place(rank)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    first = multiprocessing.parent_process()
    try:
        train(*shared)
    except (PlftError, KeyboardInterrupt):
        sys.exit(1)
    except RuntimeError:
        if first is not None and first.is_alive():
            raise
