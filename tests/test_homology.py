"""Clusters and searches with MMseqs2 where it is at hand, and by k-mers."""

import random
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plft import homology
from plft.alphabet import DNA, PROTEIN, RNA, Alphabet, reverse_complement
from plft.errors import PlftError

needs_mmseqs = pytest.mark.skipif(homology.find_mmseqs() is None, reason="MMseqs2 is not at hand")
WAYS = [pytest.param("mmseqs", marks=needs_mmseqs), "kmers"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compare with MMseqs2, then as if it were absent."""
    if request.param == "kmers":
        monkeypatch.setattr(homology, "find_mmseqs", lambda: None)
    return str(request.param)


def drawn(pick: random.Random, alphabet: Alphabet, length: int) -> str:
    return "".join(pick.choices(alphabet.letters, k=length))


def substituted(pick: random.Random, sequence: str, n: int, alphabet: Alphabet) -> str:
    """Replace n residues by others."""
    letters = list(sequence)
    for at in pick.sample(range(len(letters)), n):
        letters[at] = pick.choice(alphabet.letters.replace(letters[at], ""))
    return "".join(letters)


def families(alphabet: Alphabet, n: int, length: int, changed: int, seed: int = 0) -> list[list[str]]:
    """Founders, each with two relatives."""
    pick = random.Random(seed)
    founders = [drawn(pick, alphabet, length) for _ in range(n)]
    return [[each, *(substituted(pick, each, changed, alphabet) for _ in range(2))] for each in founders]


def partition(numbers: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(numbers == each).tolist()) for each in set(numbers.tolist())}


@pytest.mark.parametrize(
    ("alphabet", "length", "changed"),
    [(PROTEIN, 150, 15), (DNA, 200, 10), (RNA, 200, 10)],
    ids=["protein", "dna", "rna"],
)
def test_relatives_form_one_cluster_and_strangers_others(
    way: str, alphabet: Alphabet, length: int, changed: int
) -> None:
    made = families(alphabet, 6, length, changed)
    sequences = [made[number][each] for each in range(3) for number in range(6)]
    assert homology.cluster(sequences, alphabet).tolist() == [0, 1, 2, 3, 4, 5] * 3


def test_both_strands_of_dna_are_one_sequence(way: str) -> None:
    made = families(DNA, 4, 90, 3)
    sequences = [strand for one in made for strand in (one[0], reverse_complement(one[0]), reverse_complement(one[1]))]
    assert homology.cluster(sequences, DNA).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    found = homology.nearest([reverse_complement(one[2]) for one in made], [one[0] for one in made], DNA)
    assert found.target.tolist() == [0, 1, 2, 3]
    assert found.identity == pytest.approx([87 / 90] * 4, abs=0.03)


def test_the_order_of_the_sequences_does_not_change_the_clusters(way: str) -> None:
    sequences = [each for one in families(PROTEIN, 5, 100, 30) for each in one]
    order = random.Random(1).sample(range(len(sequences)), len(sequences))
    mixed = homology.cluster([sequences[at] for at in order], PROTEIN)
    back = np.empty_like(mixed)
    back[order] = mixed
    assert partition(back) == partition(homology.cluster(sequences, PROTEIN))


@needs_mmseqs
def test_an_alignment_finds_relatives_of_40_percent() -> None:
    made = families(PROTEIN, 5, 200, 120)
    found = homology.cluster([sequence for one in made for sequence in one[:2]], PROTEIN)
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_identity_and_target_are_those_of_the_nearest(way: str) -> None:
    pick = random.Random(2)
    targets = [drawn(pick, PROTEIN, 120) for _ in range(4)]
    queries = [substituted(pick, targets[2], 24, PROTEIN), drawn(pick, PROTEIN, 120), targets[1]]
    found = homology.nearest(queries, targets, PROTEIN)
    assert found.target.tolist() == [2, -1, 1]
    assert found.identity == pytest.approx([0.8, 0.0, 1.0], abs=0.05)


def test_coverage_is_of_the_query(way: str) -> None:
    whole = drawn(random.Random(3), PROTEIN, 300)
    fragment = whole[:100]
    assert homology.homologous_queries([fragment], [whole], PROTEIN).tolist() == [True]
    assert homology.homologous_queries([whole], [fragment], PROTEIN).tolist() == [False]
    assert homology.homologous_queries([whole], [fragment], PROTEIN, coverage=0.3).tolist() == [True]


@needs_mmseqs
def test_coverage_of_either_finds_the_long_sequence_by_the_fragment_that_it_holds() -> None:
    pick = random.Random(3)
    whole, other = drawn(pick, PROTEIN, 300), drawn(pick, PROTEIN, 300)
    fragments = [whole[:100], other[:100] + drawn(pick, PROTEIN, 100)]  # the second: half of it, a third of the other
    found = homology.pairs([whole, other], fragments, PROTEIN, either=True)
    assert list(zip(found.query.tolist(), found.target.tolist(), strict=True)) == [(0, 0)]
    assert found.identity.tolist() == [1.0]


def test_equal_sequences_are_related_however_short(way: str) -> None:
    assert homology.cluster(["MKT", "AAA", "MKT"], PROTEIN).tolist() == [0, 1, 0]
    found = homology.nearest(["AAGT", "CCCC"], ["TTTT", "ACTT"], DNA)  # ACTT is the other strand of AAGT
    assert (found.identity.tolist(), found.target.tolist()) == ([1.0, 0.0], [1, -1])


def test_copies_of_a_query_all_get_its_answer(way: str) -> None:
    one, other, stranger = (drawn(random.Random(at), PROTEIN, 80) for at in range(3))
    asked = [one, stranger, one, other, one]
    assert homology.homologous_queries(asked, [other, one], PROTEIN).tolist() == [True, False, True, True, True]


def test_targets_may_be_a_file_of_any_compression(way: str, tmp_path: Path) -> None:
    import gzip

    made = families(PROTEIN, 3, 100, 10)
    file = tmp_path / "corpus.fasta.gz"
    file.write_bytes(gzip.compress("".join(f">x\n{one[0][:50]}\n{one[0][50:].lower()}\n" for one in made).encode()))
    queries = [made[2][1], drawn(random.Random(9), PROTEIN, 100)]
    found = homology.nearest(iter(queries), file, PROTEIN)
    assert found.target.tolist() == [2, -1]
    assert homology.homologous_queries(iter(queries), file, PROTEIN).tolist() == [True, False]


def test_odd_letters_and_empty_sequences_are_no_error(way: str) -> None:
    base = drawn(random.Random(5), PROTEIN, 90)
    sequences = [base + "*", "", base[:-1] + "é", "J"]
    numbers = homology.cluster(sequences, PROTEIN)
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 3
    assert homology.cluster([], PROTEIN).tolist() == []
    assert homology.homologous_queries(["MKV"], [], PROTEIN).tolist() == [False]
    assert homology.homologous_queries([], ["MKV"], PROTEIN).tolist() == []


@pytest.mark.slow
@needs_mmseqs
@pytest.mark.parametrize("search", ["LINKING", "THOROUGH", "VAST"])
def test_what_is_too_much_to_align_in_full_is_found_through_kmers(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homology, "FEW_CELLS", 0)
    monkeypatch.setattr(homology, "LARGE", 0 if search == "VAST" else homology.LARGE)
    made = families(PROTEIN, 6, 150, 60)
    sequences = [made[number][each] for each in range(3) for number in range(6)]
    if search == "LINKING":
        assert homology.cluster(sequences, PROTEIN).tolist() == [0, 1, 2, 3, 4, 5] * 3
    assert homology.nearest(sequences[6:12], sequences[:6], PROTEIN).target.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
@needs_mmseqs
def test_a_family_larger_than_the_list_of_targets_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homology, "FEW_CELLS", 0)
    monkeypatch.setattr(homology, "LINKING", homology.Search(5.7, 6, 2))
    pick = random.Random(6)
    founder = drawn(pick, PROTEIN, 60)
    sequences = [substituted(pick, founder, 2, PROTEIN) for _ in range(40)]
    assert set(homology.cluster(sequences, PROTEIN).tolist()) == {0}


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, 30.0, float("nan")])
@pytest.mark.parametrize("name", ["identity", "coverage"])
def test_thresholds_outside_zero_to_one_are_one_clear_line(name: str, value: float) -> None:
    ask: list[Callable[..., object]] = [
        lambda **given: homology.cluster(["MKV"], PROTEIN, **given),
        lambda **given: homology.homologous_queries(["MKV"], ["MKV"], PROTEIN, **given),
    ]
    for each in ask:
        with pytest.raises(PlftError, match=f"The {name} .* is not a share above 0 and up to 1"):
            each(**{name: value})


def test_a_program_that_fails_is_one_line_with_its_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho starting\necho 'Cannot allocate 12 GB' >&2\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(homology, "find_mmseqs", lambda: program)
    with pytest.raises(PlftError, match=r"failed at createdb: Cannot allocate 12 GB\. Check free memory") as raised:
        homology.cluster(["MKV"], PROTEIN)
    assert "\n" not in str(raised.value)


def test_a_program_killed_by_a_signal_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\nkill -ILL $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(homology, "find_mmseqs", lambda: program)
    with pytest.raises(PlftError, match="exit code -4"):
        homology.cluster(["MKV"], PROTEIN)


def test_the_program_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert homology.find_mmseqs() is None
    assert "k-mers" in homology.method_sentence()
    assert "plft[homology]" in homology.method_sentence()
    (tmp_path / "mmseqs").write_text("#!/bin/sh\n")
    (tmp_path / "mmseqs").chmod(0o755)
    assert homology.find_mmseqs() == tmp_path / "mmseqs"
