"""Related sequences by shared k-mers."""

import random

import numpy as np
import pytest

from plft import kmers
from plft.alphabet import DNA, PROTEIN, Alphabet, reverse_complement


def drawn(pick: random.Random, alphabet: Alphabet, length: int) -> str:
    return "".join(pick.choices(alphabet.letters, k=length))


def substituted(pick: random.Random, sequence: str, n: int, alphabet: Alphabet) -> str:
    """Replace n residues by others."""
    letters = list(sequence)
    for at in pick.sample(range(len(letters)), n):
        letters[at] = pick.choice(alphabet.letters.replace(letters[at], ""))
    return "".join(letters)


def longest_first(sequences: list[str]) -> list[str]:
    return sorted(set(sequences), key=lambda sequence: (-len(sequence), sequence))


@pytest.mark.parametrize("alphabet", [PROTEIN, DNA], ids=lambda each: each.name)
def test_relatives_share_a_cluster_and_strangers_do_not(alphabet: Alphabet) -> None:
    pick = random.Random(0)
    family = {}
    for number in range(8):
        founder = drawn(pick, alphabet, 150)
        for each in [founder, *(substituted(pick, founder, 15, alphabet) for _ in range(3))]:
            family[each] = number
    sequences = longest_first(list(family))
    found = kmers.cluster(sequences, alphabet, 0.5, 0.8)
    pairs = {(int(cluster), family[sequence]) for cluster, sequence in zip(found, sequences, strict=True)}
    assert len(pairs) == 8


def test_both_strands_of_dna_have_the_same_kmers() -> None:
    pick = random.Random(1)
    sequence = drawn(pick, DNA, 60)
    one, _ = kmers._codes([sequence], DNA.letters, 11, both_strands=True)
    other, _ = kmers._codes([reverse_complement(sequence)], DNA.letters, 11, both_strands=True)
    assert sorted(one) == sorted(other)
    assert len(one) == 50


def test_kmers_are_those_of_a_plain_loop_and_none_spans_an_unknown_letter_or_two_sequences() -> None:
    sequences = ["ACDXEFGH", "AC", "", "CDE"]
    codes, owner = kmers._codes(sequences, PROTEIN.letters, 3, both_strands=False)
    number = {letter: at for at, letter in enumerate(PROTEIN.letters)}
    expected = [
        (sum(number[letter] * 20**power for letter, power in zip(word, (2, 1, 0), strict=True)), at)
        for at, sequence in enumerate(sequences)
        for word in (sequence[start : start + 3] for start in range(len(sequence) - 2))
        if "X" not in word
    ]
    assert list(zip(codes.tolist(), owner.tolist(), strict=True)) == expected


def test_a_family_larger_than_any_list_of_neighbours_stays_whole() -> None:
    pick = random.Random(2)
    founder = drawn(pick, PROTEIN, 80)
    sequences = longest_first([substituted(pick, founder, 2, PROTEIN) for _ in range(500)])
    assert set(kmers.cluster(sequences, PROTEIN, 0.3, 0.8)) == {0}


def test_lengths_that_do_not_fit_the_coverage_keep_a_fragment_apart() -> None:
    whole = drawn(random.Random(3), PROTEIN, 100)
    sequences = [whole, whole[:70]]
    assert kmers.cluster(sequences, PROTEIN, 0.5, 0.8).tolist() == [0, 1]
    assert kmers.cluster(sequences, PROTEIN, 0.5, 0.7).tolist() == [0, 0]


def test_the_best_target_of_each_query_is_found_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmers, "BATCH", 250)
    pick = random.Random(4)
    targets = [drawn(pick, PROTEIN, 100) for _ in range(12)]
    queries = [substituted(pick, targets[at], 5, PROTEIN) for at in (7, 0, 11)] + [drawn(pick, PROTEIN, 100)]
    query, target, identity = kmers.best(queries, iter(targets), PROTEIN, 0.3, 1.0)
    assert list(zip(query.tolist(), target.tolist(), strict=True)) == [(0, 7), (1, 0), (2, 11)]
    assert identity == pytest.approx([0.95] * 3, abs=0.03)


def test_the_share_of_kmers_that_survives_follows_the_identity() -> None:
    # simulated: 20 % of 40,000 residues substituted, k-mers that are unchanged counted by a plain loop
    changed = np.random.default_rng(0).random(40_000) < 0.2
    unchanged = np.mean([not changed[at : at + 5].any() for at in range(len(changed) - 4)])
    assert kmers.least_share(0.8, 5) == pytest.approx(unchanged, abs=0.01)
    assert kmers.least_share(0.3, 5) == kmers.LEAST_SHARE


def test_nothing_to_compare_is_no_error() -> None:
    assert kmers.cluster([], PROTEIN, 0.3, 0.8).tolist() == []
    assert kmers.cluster(["MK", "M"], PROTEIN, 0.3, 0.8).tolist() == [0, 1]
    assert [len(each) for each in kmers.best([], ["MKV"], PROTEIN, 0.3, 0.8)] == [0, 0, 0]
    assert [len(each) for each in kmers.best(["MKVLA"], [], PROTEIN, 0.3, 0.8)] == [0, 0, 0]
