"""Mutational scans: which positions of each sequence differ from the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plft.errors import PlftError
from plft.records import Record


def consensus(sequences: Sequence[str]) -> str:
    """Return the most frequent letter of each position; of equally frequent ones the first in the alphabet.

    sequences: of one length, at least one; equal ones count once each time.
    """
    letters = _letters(sequences)
    known = np.unique(letters)
    counts = np.stack([(letters == code).sum(axis=0) for code in known])
    return bytes(known[counts.argmax(axis=0)].tolist()).decode()


def mutated_positions(records: Sequence[Record], wild_type: str | None = None) -> list[tuple[int, ...]]:
    """Return for each record the positions, from 0, at which it differs from the reference.

    wild_type: the reference; None takes the consensus.  Raises PlftError where a sequence is not as long as the
    reference: insertions and deletions have no position to compare.
    """
    length = len(wild_type) if wild_type is not None else len(records[0].sequence)
    odd = [record for record in records if len(record.sequence) != length]
    if odd:
        raise PlftError(
            f"{odd[0].place}: {len(odd[0].sequence)} residues where the reference has {length} ({len(odd)} such "
            "sequences). A mutational scan needs sequences of one length; split --by homology or random instead."
        )
    sequences = [record.sequence for record in records]
    reference = _letters([wild_type or consensus(sequences)])
    differs = _letters(sequences) != reference
    return [tuple(np.flatnonzero(row).tolist()) for row in differs]


def _letters(sequences: Sequence[str]) -> np.ndarray:
    """Return the letters as ASCII codes, (sequences, positions)."""
    text = "".join(sequences).encode("ascii", "replace")
    return np.frombuffer(text, dtype=np.uint8).reshape(len(sequences), -1)
