"""Memory: how much was held at most, and giving it back."""

from __future__ import annotations

import platform

import numpy as np
import psutil
import pytest

from plft.peaks import forget_peak, give_back, resident_peak

MILLION = 1_000_000


def hold_and_free() -> list[np.ndarray]:
    """Take 256 MB in blocks of 64 kB, which malloc does not return by itself, and keep every hundredth."""
    blocks = [np.ones(8_000) for _ in range(4_000)]
    return blocks[::100]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_memory_between_blocks_in_use_is_given_back() -> None:
    kept = hold_and_free()
    before = psutil.Process().memory_info().rss
    give_back()
    assert before - psutil.Process().memory_info().rss > 200 * MILLION
    assert len(kept) == 40


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux tells")
def test_the_peak_is_counted_from_where_it_was_forgotten() -> None:
    hold_and_free()
    if not forget_peak():
        pytest.skip("this system does not let a process forget its peak")
    start = resident_peak()
    hold_and_free()
    assert start is not None
    assert 200 * MILLION < (resident_peak() or 0) - start < 400 * MILLION
