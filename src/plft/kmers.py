"""Related sequences by the k-mers they share: the stand-in where MMseqs2 is not at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from plft.alphabet import DNA, PROTEIN, Alphabet

K = {"protein": 5, "dna": 11, "rna": 11}
FEWEST_SHARED = 3  # k-mers: unrelated proteins of 400 residues share 0.05 on average
LEAST_SHARE = 0.02
BATCH = 10_000_000  # residues whose k-mers are in memory at once
PAIRS = 100_000  # candidate pairs compared at once


def least_share(identity: float, k: int) -> float:
    """Share of common k-mers that counts as this identity: identity**k survive independent substitutions.

    That is the model of Mash (Ondov et al. 2016, Genome Biology 17:132) for small distances; never below 2 %, where
    chance begins.
    """
    return max(LEAST_SHARE, identity**k)


def cluster(sequences: Sequence[str], alphabet: Alphabet, identity: float, coverage: float) -> np.ndarray:
    """Return a cluster number per sequence, (n,): sequences linked by shared k-mers, directly or through others.

    sequences: longest first, none twice.  A k-mer suggests the pairs of its first holder with every other one, as in
    Linclust (Steinegger and Soding 2018, Nature Communications 9:2542), which is linear in the number of sequences;
    a suggested pair is linked where the k-mers in common are enough of the smaller set and lengths agree to coverage.
    """
    table = _table(sequences, alphabet)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.float64)
    one, other = _suggested(table)
    fits = lengths[other] >= coverage * lengths[one]
    one, other = one[fits], other[fits]
    linked = _share_enough(table, one, other, least_share(identity, K[alphabet.name]))
    links = sparse.coo_matrix((np.ones(linked.sum()), (one[linked], other[linked])), shape=(len(sequences),) * 2)
    return connected_components(links, directed=False)[1].astype(np.int64)


def best(
    queries: Sequence[str], targets: Iterable[str], alphabet: Alphabet, identity: float, coverage: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return query, target and estimated identity of the best target of each query that has one.

    targets are read in batches; those shorter than the coverage asked for are left out.  The share of the query's
    k-mers that a target holds, relative to that coverage, is turned into an identity by its k-th root.
    """
    k = K[alphabet.name]
    asked = _table(queries, alphabet)
    shortest = coverage * np.array([len(query) for query in queries], dtype=np.float64)
    n_kmers = np.maximum(np.asarray(asked.sum(axis=1)).ravel(), 1)
    most, target = np.zeros(len(queries)), np.full(len(queries), -1, dtype=np.int64)
    done = 0
    for batch in _batches(targets):
        shared, at = _most_shared(asked, shortest, _table(batch, alphabet), np.array([len(each) for each in batch]))
        better = shared > most
        most[better], target[better] = shared[better], at[better] + done
        done += len(batch)
    share = np.minimum(most / (coverage * n_kmers), 1)
    related = (share >= least_share(identity, k)) & (most >= np.minimum(FEWEST_SHARED, n_kmers))
    query = np.flatnonzero(related)
    return query, target[query], share[query] ** (1 / k)


def _batches(sequences: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    residues = 0
    for sequence in sequences:
        batch.append(sequence)
        residues += len(sequence)
        if residues >= BATCH:
            yield batch
            batch, residues = [], 0
    if batch:
        yield batch


def _most_shared(
    asked: sparse.csr_matrix, shortest: np.ndarray, held: sparse.csr_matrix, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return per query the most k-mers that one target shares with it, and that target.

    shortest: length from which on a target counts, per query.  lengths: of the targets.
    """
    transposed = held.T.tocsr()
    step = max(1, 20_000_000 // max(1, held.shape[0]))  # a dense result of this many numbers at most
    counts, where = [], []
    for start in range(0, asked.shape[0], step):
        shared = (asked[start : start + step] @ transposed).tocsr()
        asking = np.repeat(np.arange(shared.shape[0]) + start, np.diff(shared.indptr))
        shared.data[lengths[shared.indices] < shortest[asking]] = 0
        where.append(np.asarray(shared.argmax(axis=1)).ravel())
        counts.append(shared.max(axis=1).toarray().ravel())
    return np.concatenate(counts or [np.zeros(0)]), np.concatenate(where or [np.zeros(0, dtype=np.int64)])


# --- k-mers


def counts(sequences: Sequence[str], alphabet: Alphabet, k: int) -> sparse.csr_matrix:
    """Return how often each k-mer of plain letters occurs in each sequence, (sequences, letters**k), this strand only.

    A k-mer with any other letter is not counted; U and T of RNA and DNA are the same letter.
    """
    letters = (PROTEIN if alphabet.name == "protein" else DNA).letters
    spelled = sequences if alphabet.name != "rna" else [sequence.replace("U", "T") for sequence in sequences]
    codes, owner = _codes(spelled, letters, k, both_strands=False)
    shape = (len(sequences), len(letters) ** k)
    found = sparse.csr_matrix((np.ones(len(codes)), (owner, codes)), shape=shape)
    found.sum_duplicates()
    return found


def _table(sequences: Sequence[str], alphabet: Alphabet) -> sparse.csr_matrix:
    """Which sequence holds which k-mer: (sequences, all possible k-mers) of ones."""
    protein = alphabet.name == "protein"
    letters, k = (PROTEIN if protein else DNA).letters, K[alphabet.name]
    codes, owner = _codes(sequences, letters, k, both_strands=not protein)
    size = len(letters) ** k
    keys = np.unique(owner * size + codes)
    shape = (len(sequences), size)
    return sparse.csr_matrix((np.ones(len(keys), dtype=np.int32), (keys // size, keys % size)), shape=shape)


def _codes(sequences: Sequence[str], letters: str, k: int, both_strands: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of every k-mer of plain letters and the sequence it is from; of two strands the smaller."""
    digit = np.full(256, -1, dtype=np.int64)
    digit[np.frombuffer(letters.encode(), dtype=np.uint8)] = np.arange(len(letters))
    text = "".join(chain.from_iterable((sequence, "\n") for sequence in sequences)).encode("ascii", "replace")
    digits = digit[np.frombuffer(text, dtype=np.uint8)]
    n = max(0, len(digits) - k + 1)
    codes, other = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    plain = np.ones(n, dtype=bool)
    for at in range(k):
        here = digits[at : at + n]
        plain &= here >= 0
        codes = codes * len(letters) + here
        other += (len(letters) - 1 - here) * len(letters) ** at  # A C G T: the complement counts from the other end
    owner = np.repeat(np.arange(len(sequences)), [len(sequence) + 1 for sequence in sequences])[:n]
    smaller = np.minimum(codes, other) if both_strands else codes
    return smaller[plain], owner[plain]


# --- pairs


def _suggested(table: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the different pairs (first holder, other holder) over all k-mers."""
    by_kmer = table.tocsc()
    by_kmer.sort_indices()
    counts = np.diff(by_kmer.indptr)
    held = counts > 0
    first = np.repeat(by_kmer.indices[by_kmer.indptr[:-1][held]], counts[held]).astype(np.int64)
    holder = by_kmer.indices.astype(np.int64)
    keys = np.unique((first * table.shape[0] + holder)[first != holder])
    return keys // table.shape[0], keys % table.shape[0]


def _share_enough(table: sparse.csr_matrix, one: np.ndarray, other: np.ndarray, least: float) -> np.ndarray:
    """Return for each pair whether the k-mers in common are enough of the smaller set, (pairs,) bool."""
    sizes = np.asarray(table.sum(axis=1)).ravel()
    enough = np.zeros(len(one), dtype=bool)
    for start in range(0, len(one), PAIRS):
        here = slice(start, start + PAIRS)
        shared = np.asarray(table[one[here]].multiply(table[other[here]]).sum(axis=1)).ravel()
        smaller = np.minimum(sizes[one[here]], sizes[other[here]])
        enough[here] = (shared >= least * smaller) & (shared >= np.minimum(FEWEST_SHARED, smaller)) & (shared > 0)
    return enough
