"""Mutational scans."""

import pytest

from plft.errors import PlftError
from plft.records import Record
from plft.scans import consensus, mutated_positions


def records(*sequences: str) -> list[Record]:
    return [Record(f"s{row}", sequence, file="d.csv", row=row) for row, sequence in enumerate(sequences, start=1)]


def test_the_consensus_is_the_most_frequent_letter_of_each_position() -> None:
    assert consensus(["MKV", "MKA", "MAV", "GKV"]) == "MKV"
    assert consensus(["MK", "MA"]) == "MA"  # equally frequent: the first in the alphabet


def test_positions_are_counted_from_zero_against_the_consensus_or_the_wild_type() -> None:
    rows = records("MKV", "MKA", "GAV", "MKV")
    assert mutated_positions(rows) == [(), (2,), (0, 1), ()]
    assert mutated_positions(rows, "GKV") == [(0,), (0, 2), (1,), (0,)]


def test_a_sequence_of_another_length_is_one_clear_line() -> None:
    with pytest.raises(PlftError, match=r"d\.csv, row 2 \(id s2\): 2 residues where the reference has 3 \(1 such"):
        mutated_positions(records("MKV", "MK"))
