"""Sequences -> plain features for linear models: composition, k-mers, letters by position. No model is involved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plft import kmers
from plft.alphabet import DNA, PROTEIN, Alphabet
from plft.labels import is_known
from plft.linear import Matrix

WINDOW = 15  # residues; Qian and Sejnowski (1988, J Mol Biol 202:865) found about 13 best for secondary structure


@dataclass(frozen=True)
class Part:
    """Sequences of one split as a baseline sees them.

    targets: as from `LabelSpace.encode`; empty where they are only to be predicted.  weights: (sequences,).
    hidden: what a pretrained backbone makes of each item: a matrix (items, width), or an iterable with one entry per
    sequence, (width,) or for residue tasks (residues, width), read once per call.
    """

    sequences: Sequence[str]
    targets: Sequence[NDArray[Any]] = ()
    weights: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))
    hidden: Iterable[NDArray[Any]] | None = None

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Part:
        """Return the part of some sequences; hidden is then a list, or a matrix with one row per sequence."""
        hidden: Any = self.hidden
        if hidden is not None:
            hidden = hidden[rows] if isinstance(hidden, np.ndarray) else [hidden[row] for row in rows]
        sequences = [self.sequences[row] for row in rows]
        targets = [self.targets[row] for row in rows] if len(self.targets) else ()
        return Part(sequences, targets, self.weights[rows] if len(self.weights) else self.weights, hidden)

    @cached_property
    def is_known(self) -> NDArray[np.bool_]:
        """(sequences,): at least one target is not missing."""
        return np.array([is_known(target).any() for target in self.targets], dtype=bool)


Features = Callable[[Part, "NDArray[np.int64] | None"], Matrix]


def _letters(alphabet: Alphabet) -> str:
    return (PROTEIN if alphabet.name == "protein" else DNA).letters


def _digits(sequences: Sequence[str], alphabet: Alphabet, between: int = 0) -> NDArray[np.int64]:
    """Return every residue as the number of its letter, other letters as one more, and gaps as two more.

    between: gaps before the first sequence, after the last, and between two.
    """
    letters = _letters(alphabet)
    gap = "\n" * between
    text = gap + "".join(sequence + gap for sequence in sequences)
    table = np.full(256, len(letters), dtype=np.int64)
    table[np.frombuffer(letters.encode(), dtype=np.uint8)] = np.arange(len(letters))
    if letters == DNA.letters:
        table[ord("U")] = table[ord("T")]
    table[ord("\n")] = len(letters) + 1
    return table[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]


def composition(part: Part, rows: NDArray[np.int64] | None, *, alphabet: Alphabet) -> Matrix:
    """Share of each letter (others as one more) and the logarithm of the length: (sequences, letters + 2)."""
    sequences = part.sequences if rows is None else [part.sequences[row] for row in rows]
    lengths = np.array([len(sequence) for sequence in sequences])
    width = len(_letters(alphabet)) + 1
    owner = np.repeat(np.arange(len(sequences)), lengths)
    counted = np.bincount(owner * width + _digits(sequences, alphabet), minlength=len(sequences) * width)
    shares = counted.reshape(len(sequences), width) / np.maximum(lengths, 1)[:, None]
    return np.column_stack([shares, np.log(np.maximum(lengths, 1))])


def kmer_profile(part: Part, rows: NDArray[np.int64] | None, *, alphabet: Alphabet, k: int) -> Matrix:
    """Logarithms of one plus the counts of all k-mers of lengths 1 to k, scaled to length 1: sparse."""
    from sklearn.preprocessing import normalize

    sequences = part.sequences if rows is None else [part.sequences[row] for row in rows]
    counted = [kmers.counts(sequences, alphabet, size) for size in range(1, k + 1)]
    return normalize(sparse.hstack(counted, format="csr").log1p())


def one_hot(part: Part, rows: NDArray[np.int64] | None, *, alphabet: Alphabet, length: int) -> Matrix:
    """Which letter stands at each position, counted from the start: sparse (sequences, length x letters)."""
    sequences = part.sequences if rows is None else [part.sequences[row] for row in rows]
    cut = [sequence[:length] for sequence in sequences]
    sizes = np.array([len(sequence) for sequence in cut])
    owner = np.repeat(np.arange(len(cut)), sizes)
    position = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return _indicators(owner, position, _digits(cut, alphabet), (len(cut), length), len(_letters(alphabet)))


def window(part: Part, rows: NDArray[np.int64] | None, *, alphabet: Alphabet) -> Matrix:
    """Which letter stands at each place around a residue: sparse (residues, WINDOW x (letters + 1)).

    Beyond the ends of a sequence stands the one letter more.  rows: residues, counted through all sequences.
    """
    half = WINDOW // 2
    digits = _digits(part.sequences, alphabet, between=half)
    n = len(_letters(alphabet))
    places = np.flatnonzero(digits <= n)
    places = places if rows is None else places[rows]
    around = digits[places[:, None] + np.arange(-half, half + 1)]
    around = np.where(around == n, -1, np.minimum(around, n))  # an unknown letter is no letter; a gap is one
    owner, position = np.repeat(np.arange(len(places)), WINDOW), np.tile(np.arange(WINDOW), len(places))
    return _indicators(owner, position, around.ravel(), (len(places), WINDOW), n + 1)


def _indicators(
    owner: NDArray[Any], position: NDArray[Any], digit: NDArray[Any], shape: tuple[int, int], n_letters: int
) -> sparse.csr_matrix:
    kept = (digit >= 0) & (digit < n_letters)
    columns = position[kept] * n_letters + digit[kept]
    ones = np.ones(int(kept.sum()))
    return sparse.csr_matrix((ones, (owner[kept], columns)), shape=(shape[0], shape[1] * n_letters))


def hidden_states(part: Part, rows: NDArray[np.int64] | None) -> Matrix:
    """The hidden states that the part brings along: (items, width)."""
    hidden = part.hidden
    assert hidden is not None
    matrix = hidden if isinstance(hidden, np.ndarray) else np.concatenate([np.atleast_2d(each) for each in hidden])
    return matrix if rows is None else matrix[rows]
