"""When memory runs out: the same batch again, in smaller pieces, and nothing skipped."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plft.errors import PlftError

M_TRIM, M_MMAP_THRESHOLD = -1, -3  # of mallopt: bytes that are kept free, and from which on a block is mapped alone


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was no room for a tensor, on a GPU or off it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def keep_freed_memory() -> bool:
    """Have this process, from now on, reuse the memory that it frees; whether the C library could be told to.

    glibc returns blocks of megabytes to the system, which clears every page of them before the next step has them
    again: 3 % of the time of training a small model on a CPU. Blocks from 32 MB on still go back.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(
        library.mallopt(setting, value) == 1 for setting, value in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM, 2**31 - 1))
    )


def in_pieces(batch: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """A batch of `batching.collate` as at most `count` batches of neighbouring sequences, padding cut to each.

    Values that belong to the whole batch (no entry per sequence) go with every piece.
    """
    size = len(batch["input_ids"])
    for rows in torch.arange(size).tensor_split(min(count, size)):
        first, last = int(rows[0]), int(rows[-1]) + 1
        piece = {name: each[first:last] if _is_per_sequence(each, size) else each for name, each in batch.items()}
        yield _trimmed(piece, int(piece["attention_mask"].sum(1).max())) if "attention_mask" in piece else piece


def _is_per_sequence(value: Any, size: int) -> bool:
    return (
        isinstance(value, Tensor | list) and (not isinstance(value, Tensor) or value.dim() > 0) and len(value) == size
    )


def _trimmed(piece: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Cut the padding that only longer sequences of other pieces needed."""
    width = piece["input_ids"].shape[1]
    names = ("input_ids", "attention_mask", "residue_mask", "features")
    cut = {name: piece[name][:, :tokens] for name in names if name in piece and piece[name].shape[1] == width}
    return piece | cut


def activation_bytes(config: Any, tokens: int, longest: int, precision: str, frozen: int | None = 0) -> int:
    """About what the forward pass of a batch keeps for the backward pass.

    34 bytes per token, block and unit of width in 16 bits, twice that in 32 (Korthikanti et al. 2022), and in 16 bits
    on a CPU what each token attends to.  config: of the backbone.  longest: tokens of the longest sequence.
    frozen: blocks below the first weight that trains, which keep nothing; None for all of them, as in `Prefix`.
    """
    width, blocks = getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    blocks -= blocks if frozen is None else frozen
    size = 34 * width * tokens * blocks * (2 if precision == "fp32" else 1)
    if precision == "bf16" and not torch.cuda.is_available():
        size += 2 * getattr(config, "num_attention_heads", 0) * min(longest, 1024) * tokens * blocks
    return size


def free_bytes() -> int:
    """Memory that is free: of the GPU where there is one, else of the machine; unknown is no limit."""
    if torch.cuda.is_available():
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # kept by torch for the next tensor
        return int(torch.cuda.mem_get_info()[0]) + unused
    return min(_available(MEMINFO), _left_of_the_group())


MEMINFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def _available(meminfo: Path) -> int:
    """Bytes that Linux can give without swapping: what is free, and what files are cached in."""
    try:
        line = next(each for each in meminfo.read_text().splitlines() if each.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration, ValueError):
        return sys.maxsize


def _left_of_the_group() -> int:
    """Bytes that the limit of a container leaves (version 2 of control groups)."""
    try:
        limit, used = ((GROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)$", (GROUP / "memory.stat").read_text(), re.MULTILINE)
        return sys.maxsize if limit == "max" else int(limit) - int(used) + int(cached[1] if cached else 0)
    except (OSError, ValueError):
        return sys.maxsize


def pieces_that_fit(needed: int) -> int:
    """In how many pieces to begin, so that a batch's activations take two thirds of the free memory at most."""
    pieces = 1
    while needed > pieces * free_bytes() * 2 // 3 and pieces < 1024:
        pieces *= 2
    return pieces


class Pieces:
    """Runs the batches of each optimiser step, in as many pieces as memory allows. count: doubles when it runs out."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.step = -1
        self.batches: list[dict[str, Any]] = []

    def run(
        self,
        step: int,
        batch: dict[str, Any],
        loss_of: Callable[[dict[str, Any]], Tensor],
        undo: Callable[[], None] | None,
    ) -> Tensor:
        """The loss of a batch, its gradients added up. Losses must be shares of the whole step.

        step: the number of the optimiser step.  loss_of: forward and backward.  undo: forgets the gradients of this
        step, whose batches are then all run again; None where that is not possible.
        """
        if step != self.step:
            self.step, self.batches = step, []
        self.batches.append(batch)
        todo = [batch]
        while True:
            try:
                return [self._in_pieces(each, loss_of) for each in todo][-1]
            except RuntimeError as error:
                if not ran_out_of_memory(error) or undo is None:
                    raise
                if self.count >= max(len(each["input_ids"]) for each in self.batches):
                    raise PlftError(
                        "Memory does not hold the training of a single sequence. Set a smaller data.max_residues, "
                        "training.gradient_checkpointing=true, or take a smaller model."
                    ) from error
            self.count *= 2
            undo()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            todo = self.batches

    def _in_pieces(self, batch: dict[str, Any], loss_of: Callable[[dict[str, Any]], Tensor]) -> Tensor:
        pieces = [batch] if self.count == 1 else in_pieces(batch, self.count)
        return torch.stack([loss_of(each) for each in pieces]).sum()
