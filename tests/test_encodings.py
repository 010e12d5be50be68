"""Plain features of sequences: each against a count by hand or by a plain loop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from plft.alphabet import DNA, PROTEIN, RNA
from plft.encodings import Part, composition, kmer_profile, one_hot, window

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def test_composition_is_shares_of_letters_and_the_logarithm_of_the_length():
    found = composition(Part(["AACX", "Y"]), None, alphabet=PROTEIN)
    assert found.shape == (2, 22)
    assert found[0, :2].tolist() == [0.5, 0.25]
    assert found[0, 20] == 0.25
    assert found[1, 19] == 1
    assert found[:, 21] == pytest.approx(np.log([4, 1]))
    assert np.array_equal(composition(Part(["AACX", "Y"]), np.array([1]), alphabet=PROTEIN), found[1:])


def test_kmers_are_counted_up_to_their_length_and_rows_have_length_one():
    sequence = "ACGTACGNAC"
    found = kmer_profile(Part([sequence, "NN"]), None, alphabet=DNA, k=2).toarray()
    counts = Counter(sequence[at : at + k] for k in (1, 2) for at in range(len(sequence) - k + 1))
    words = ["A", "C", "G", "T", *(a + b for a in "ACGT" for b in "ACGT")]
    expected = np.log1p([counts[word] for word in words])
    assert found[0] == pytest.approx(expected / np.linalg.norm(expected))
    assert not found[1].any()


def test_rna_counts_like_dna():
    dna, rna = (kmer_profile(Part([s]), None, alphabet=a, k=3) for s, a in (("ACGTTA", DNA), ("ACGUUA", RNA)))
    assert (dna != rna).nnz == 0
    assert (
        one_hot(Part(["ACU"]), None, alphabet=RNA, length=3) != one_hot(Part(["ACT"]), None, alphabet=DNA, length=3)
    ).nnz == 0


def test_one_hot_counts_positions_from_the_start_and_cuts_what_is_longer():
    found = one_hot(Part(["AC", "XYA"]), None, alphabet=PROTEIN, length=2).toarray().reshape(2, 2, 20)
    there = [(int(i), int(p), AMINO_ACIDS[a]) for i, p, a in np.argwhere(found)]
    assert there == [(0, 0, "A"), (0, 1, "C"), (1, 1, "Y")]


def test_a_window_holds_the_neighbours_of_each_residue_and_says_where_the_sequence_ends():
    sequences = ["ACDXE", "K" * 20, "W"]
    found = window(Part(sequences), None, alphabet=PROTEIN).toarray().reshape(-1, 15, 21)
    at = 0
    for sequence in sequences:
        for position in range(len(sequence)):
            for place in range(15):
                there = position + place - 7
                letter = sequence[there] if 0 <= there < len(sequence) else None
                expected = [int(letter == each) for each in AMINO_ACIDS] + [int(letter is None)]
                assert found[at, place].tolist() == expected
            at += 1
    assert at == len(found)
    some = window(Part(sequences), np.array([2, 25]), alphabet=PROTEIN).toarray().reshape(-1, 15, 21)
    assert np.array_equal(some, found[[2, 25]])
