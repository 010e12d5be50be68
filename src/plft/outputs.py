"""What a split is scored by, unrounded on disk: models are compared later without being loaded again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from plft.errors import PlftError
from plft.runfolder import read_weights, share

Arrays = Sequence[NDArray[Any]]


def write_outputs(file: Path, outputs: Arrays, targets: Arrays) -> None:
    """Write outputs and targets, one array per sequence as for `metrics.evaluate`, in place of a file that is there.

    predictions/SPLIT.csv holds the same, but rounded, and with names in place of classes.
    """
    tensors = {}
    for name, arrays in (("outputs", outputs), ("targets", targets)):
        joined = np.concatenate([np.atleast_1d(each) for each in arrays])
        tensors[name] = torch.from_numpy(np.ascontiguousarray(joined))  # arrays in Fortran's order stay so when joined
        tensors[f"{name}_lengths"] = torch.tensor([len(each) if each.ndim else SCALAR for each in arrays])
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    save_file(tensors, partial)
    share(partial)
    os.replace(partial, file)


SCALAR = -1  # in place of the length of an array of shape ()


def read_outputs(file: Path) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Read outputs and targets that `write_outputs` wrote; a missing or damaged file is a PlftError."""
    tensors = read_weights(file)
    try:
        return _arrays(tensors, "outputs"), _arrays(tensors, "targets")
    except (KeyError, ValueError, IndexError) as error:
        raise PlftError(f"{file} is damaged ({error}). Train the run again.") from None


def _arrays(tensors: dict[str, Any], name: str) -> list[NDArray[Any]]:
    lengths = tensors[f"{name}_lengths"].numpy()
    ends = np.cumsum(np.where(lengths == SCALAR, 1, lengths))
    pieces = np.split(tensors[name].numpy(), ends[:-1])
    return [piece[0] if length == SCALAR else piece for piece, length in zip(pieces, lengths, strict=True)]
