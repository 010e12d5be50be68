"""Which of several processes that train together this one is, as torch.distributed's launchers say it."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process talks and writes: the only one, or the first of several."""
    return rank() == 0
