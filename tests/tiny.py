"""Tiny models of every family that can be built offline: width 32, two blocks, made in milliseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from plft.attention import can_pack
from plft.checkpoints import Checkpoint, resolve
from plft.language_models import load_language_model
from plft.scratch import ARCHITECTURES

TINY = tuple(name.removeprefix("tiny-") for name in ARCHITECTURES if name.startswith("tiny-"))
KNOWN = tuple(family for family in TINY if family != "generic")


@cache
def checkpoint(family: str, seed: int = 0) -> Checkpoint:
    """The tiny model of a family, with random weights."""
    return resolve(f"scratch:tiny-{family}", seed=seed)


def save(tiny: Checkpoint, folder: Path) -> Path:
    """Write a tiny model as a transformers folder, the way a published one lies on a disk."""
    tiny.load_backbone().save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def sequence(tiny: Checkpoint, n_residues: int = 20) -> str:
    """A sequence of the family's alphabet."""
    letters = "ATGCCGTAGCTTGAC" if tiny.family.alphabet == "dna" else "MKTAYIAKQRQISFVKSHFSRQ"
    return (letters * (n_residues // len(letters) + 1))[:n_residues]


@cache
def packable() -> tuple[str, ...]:
    """The families whose language models take packed rows."""
    return tuple(name for name in TINY if can_pack(load_language_model(checkpoint(name))))
