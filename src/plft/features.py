"""What the frozen beginning of a network makes of each sequence, computed once and kept on disk.

Below the first trainable parameter nothing changes during training. A head trains on kept hidden states, or on one
pooled vector per sequence where that is all it sees; a model whose last blocks are tuned begins at those blocks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plft.attention import Laid, can_pack, run_packed, without_adapters
from plft.batching import sorted_batches
from plft.dataset import SequenceDataset
from plft.tuning import final_norms, lists_of_modules, longest_list

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARE_OF_DISK = 0.5  # of what is free, at most


@dataclass(frozen=True)
class Prefix:
    """The frozen beginning of a backbone.

    blocks: how many of them, 0 for nothing; None is the whole backbone with what comes behind them.
    pooled: the head sees one vector per sequence, which is what is kept.
    """

    blocks: int | None
    pooled: bool = False

    @classmethod
    def of(cls, backbone: nn.Module, head: nn.Module) -> Prefix:
        """What lies below the first trainable parameter, in whole blocks."""
        if not any(each.requires_grad for each in backbone.parameters()):
            return cls(None, bool(getattr(head, "pools_first", False)))
        plain = without_adapters(backbone)
        if not can_pack(plain) or plain.config.model_type == "t5":  # whose blocks hand on more than hidden states
            return cls(0)
        path = longest_list(lists_of_modules(plain))
        blocks = plain.get_submodule(path)
        number = {id(each): index for index, block in enumerate(blocks) for each in block.parameters()}
        number |= {id(each): len(blocks) for norm in final_norms(plain, path) for each in norm.parameters()}
        first = min(number.get(id(each), 0) for each in plain.parameters() if each.requires_grad)
        return cls(min(first, len(blocks) - 1))

    def modules(self, backbone: nn.Module) -> Sequence[nn.Module]:
        """The frozen parts; dropout in them is off also in training, or they would give something else every time."""
        if self.blocks is None:
            return [backbone]
        if self.blocks == 0:
            return []
        plain = without_adapters(backbone)
        path = longest_list(lists_of_modules(plain))
        holds_blocks, behind = path.partition(".")[0], final_norms(plain, path)
        others = [each for name, each in plain.named_children() if name != holds_blocks and each not in behind]
        return [*list(plain.get_submodule(path))[: self.blocks], *others]


# -- beginning and end of a network ------------------------------------------------------------------------------------


class _ReachedError(Exception):
    """Carries the hidden states out of a network that is left half-way."""


class _Leave(nn.Module):
    """A block that ends the run."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """hidden_states: (1, tokens, width)."""
        raise _ReachedError(hidden_states)


class _Enter(nn.Module):
    """A block that answers with hidden states from elsewhere."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The states: (1, tokens, width)."""
        return self.states


@contextmanager
def _with_blocks(backbone: nn.Module, change: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """Run a network with other blocks for a while."""
    path = longest_list(lists_of_modules(backbone))
    parent, _, name = path.rpartition(".")
    owner = backbone.get_submodule(parent)
    blocks = owner._modules[name]
    owner._modules[name] = nn.ModuleList(change(list(blocks)))  # type: ignore[call-overload]
    try:
        yield
    finally:
        owner._modules[name] = blocks


def states_before(backbone: Any, number: int, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What reaches block `number`: (batch, tokens) -> (batch, tokens, width), zero where padded."""
    laid = Laid.of(attention_mask)
    with _with_blocks(backbone, lambda blocks: [*blocks[:number], _Leave()]):
        try:
            run_packed(backbone, laid.row(input_ids), laid.packing)
        except _ReachedError as reached:
            return laid.padded(reached.args[0][0])
    raise AssertionError("the blocks were not run")


def run_from(backbone: Any, number: int, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last hidden states from what reaches block `number`: the second half of `states_before`, same shapes."""
    laid = Laid.of(attention_mask)
    enter = _Enter(laid.row(states)[None])
    with _with_blocks(backbone, lambda blocks: [enter, *blocks[number:]]):
        return laid.padded(run_packed(backbone, laid.row(input_ids), laid.packing))


# -- keeping -----------------------------------------------------------------------------------------------------------


class Features:
    """Kept states of a dataset, memory-mapped: features[i] is (tokens, width) of example i, or (1, width) if pooled."""

    def __init__(self, file: Path, lengths: np.ndarray, width: int, dtype: torch.dtype) -> None:
        self.file = file
        self.ends = np.cumsum(lengths)
        self.states = torch.from_file(str(file), shared=True, size=int(lengths.sum()) * width, dtype=dtype)
        self.states = self.states.view(-1, width)

    def __getitem__(self, index: int) -> Tensor:
        return self.states[self.ends[index - 1] if index else 0 : self.ends[index]]


def bytes_needed(dataset: SequenceDataset, prefix: Prefix, like: Tensor) -> int:
    """Size of the file that `keep` writes. like: (width,) in the type to keep."""
    rows = len(dataset) if prefix.pooled else int(dataset.lengths.sum())
    return rows * len(like) * like.itemsize


def fits(folder: Path, size: int) -> bool:
    """Whether a folder's disk has room for so many bytes, with as many to spare."""
    return size <= SHARE_OF_DISK * shutil.disk_usage(folder).free


def key_of(backbone: nn.Module, dataset: SequenceDataset, prefix: Prefix, how: str) -> str:
    """A name that changes with what the kept states depend on: frozen weights, tokens, and how they are computed."""
    configuration = without_adapters(backbone).config.to_json_string()
    digest = hashlib.sha256(f"{prefix} {how} {type(backbone).__name__} {configuration}".encode())
    for module in prefix.modules(backbone):
        for each in module.parameters():
            digest.update(each.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    for example in dataset.examples:
        digest.update(len(example.input_ids).to_bytes(8, "little") + example.input_ids.tobytes())
    return digest.hexdigest()[:32]


def keep(
    states_of: Callable[[list[list[int]]], Iterator[Tensor]],
    dataset: SequenceDataset,
    prefix: Prefix,
    file: Path,
    like: Tensor,
    budget: int,
) -> Features:
    """What the frozen part makes of every example; computed unless the file is there already.

    states_of: batches of indices -> (batch, tokens or 1, width) of each.  like: (width,) in the type to keep.
    budget: tokens per batch.
    """
    width, dtype = len(like), like.dtype
    lengths = np.ones(len(dataset), dtype=np.int64) if prefix.pooled else dataset.lengths
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.part")
        try:
            with partial.open("wb") as handle:
                handle.truncate(bytes_needed(dataset, prefix, like))
            features = Features(partial, lengths, width, dtype)
            batches = sorted_batches(dataset.lengths, budget)
            for indices, batch in zip(batches, states_of(batches), strict=True):
                for index, states in zip(indices, batch, strict=True):
                    features[index].copy_(states[: lengths[index]])
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    return Features(file, lengths, width, dtype)
