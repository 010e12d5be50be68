"""The most memory that a part of a program held at a time, where the system can tell, and giving memory back."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # proc(5): the peak of the resident set becomes what it is now


def measure_peak() -> Callable[[], int | None]:
    """Begin to measure; the returned function tells the bytes held at most since then, None where the system cannot.

    They are those allocated on the GPU where there is one, and else what the whole process had in RAM.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    return resident_peak if forget_peak() else lambda: None


def forget_peak() -> bool:
    """Let the peak of the resident set count from here on; whether the system can do so (Linux)."""
    gc.collect()
    give_back()  # what earlier runs of this process left behind
    try:
        FORGET.write_text(FORGET_PEAK)
    except OSError:
        return False
    return True


def resident_peak() -> int | None:
    """Bytes of RAM that this process held at most."""
    found = [line.split() for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0][1]) if found else None


def give_back() -> None:
    """Return memory that nobody uses to the system: glibc keeps what is freed between blocks in use, in every thread.

    Without glibc nothing happens.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
