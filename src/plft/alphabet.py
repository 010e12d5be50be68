"""Letters of protein, DNA and RNA sequences, and what to do with the others."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from plft.errors import PlftError, look_up


@dataclass(frozen=True)
class Alphabet:
    """The letters of one kind of sequence; all upper case.

    letters: the unambiguous ones.  ambiguous: rarer letters that models know too.  unknown: the letter that stands
    for any other.  respelled: pairs of letters that mean the same ("UT": U is read as T), so nothing is lost.
    """

    name: str
    letters: str
    ambiguous: str
    unknown: str
    respelled: tuple[str, ...] = ()
    noun: str = "residue"

    @cached_property
    def known(self) -> bytes:
        """Every letter that needs no replacement, as ASCII."""
        return (self.letters + self.ambiguous).encode()

    @cached_property
    def replacements(self) -> dict[int, str]:
        """Table for ``str.translate``: every other ASCII character becomes the unknown letter or its respelling."""
        other = {code: self.unknown for code in range(128) if code not in self.known}
        return other | {ord(pair[0]): pair[1] for pair in self.respelled}


PROTEIN = Alphabet("protein", "ACDEFGHIKLMNPQRSTVWY", "XBZUO", "X", noun="amino acid")
DNA = Alphabet("dna", "ACGT", "N", "N", respelled=("UT",), noun="base of DNA")
RNA = Alphabet("rna", "ACGU", "N", "N", respelled=("TU",), noun="base of RNA")
ALPHABETS: dict[str, Alphabet] = {each.name: each for each in (PROTEIN, DNA, RNA)}

_WHITESPACE = tuple(string.whitespace)


def tidy(sequence: str) -> str:
    """Return the sequence in upper case, without any white space (line breaks, spaces between residues)."""
    if any(space in sequence for space in _WHITESPACE):
        sequence = "".join(sequence.split())
    return sequence.upper()


ENOUGH_LETTERS = 50  # a short peptide may well be spelled in A, C, G and T alone


def guess_alphabet(sequences: Iterable[str], first: int = 1000) -> Alphabet:
    """Decide from the first sequences whether they are protein, DNA or RNA.

    At least 95 % of the letters out of A, C, G, T, U, N and gaps means DNA, or RNA where U is more frequent than T.
    No sequence at all counts as protein.  At most 10,000 letters of each sequence are looked at.
    """
    counts: Counter[str] = Counter()
    for sequence in islice(sequences, first):
        counts.update(sequence[:10_000].upper())
    nucleotides = sum(counts[letter] for letter in "ACGTUN-")
    if not nucleotides or nucleotides < 0.95 * counts.total():
        return PROTEIN
    return RNA if counts["U"] > counts["T"] else DNA


def check_alphabet(sequences: Iterable[str], alphabet: Alphabet) -> None:
    """Refuse DNA or RNA where a model reads protein, and the reverse, with a PlftError; a few letters say neither.

    sequences: the first 1000 are looked at.
    """
    first = list(islice(sequences, 1000))
    guessed = guess_alphabet(first)
    if sum(map(len, first)) >= ENOUGH_LETTERS and (guessed.name == "protein") != (alphabet.name == "protein"):
        raise PlftError(
            f"The sequences look like {guessed.name}, but this model reads {alphabet.name}. Change one of them."
        )


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A sequence of the same length in letters of the alphabet; how many had to be replaced; whether to keep it."""

    sequence: str
    n_unknown: int
    keep: bool = True


@dataclass(frozen=True)
class Policy:
    """What happens to a sequence with letters outside the alphabet."""

    title: str
    refuses: bool = False
    drops: bool = False


POLICIES: dict[str, Policy] = {
    "map": Policy("replace the letter by X (protein) or N (DNA, RNA)"),
    "error": Policy("stop with an error", refuses=True),
    "drop": Policy("leave the sequence out", drops=True),
}


_COMPLEMENT = str.maketrans("ACGTUNRYKMBVDHSW", "TGCAANYRMKVBHDSW")


def reverse_complement(sequence: str) -> str:
    """Return the other strand of upper-case DNA, in the letters A C G T and IUPAC's ambiguous ones."""
    return sequence.translate(_COMPLEMENT)[::-1]


def unknown_letters(sequence: str, alphabet: Alphabet) -> str:
    """Return the letters of a tidied sequence that the alphabet lacks, in order, ``?`` for those outside ASCII."""
    odd = sequence.encode("ascii", "replace").translate(None, alphabet.known).decode()
    for pair in alphabet.respelled:
        odd = odd.replace(pair[0], "")
    return odd


def clean(sequence: str, alphabet: Alphabet, policy: str = "map", place: str = "") -> Cleaned:
    """Apply a policy to the letters that are neither ordinary nor ambiguous in the alphabet.

    sequence: as ``tidy`` returns it.  The length never changes, because residue labels depend on it.
    policy: "map" replaces them by the unknown letter (protein: J, *, -, . become X; DNA: IUPAC codes become N and U
    becomes T, which is not counted), "drop" maps them too but sets ``keep`` to False, "error" raises PlftError that
    starts with ``place``.  An unknown policy is a PlftError.
    """
    act = look_up("policy for unknown letters", policy, POLICIES)
    raw = sequence.encode("ascii", "replace")
    if not raw.translate(None, alphabet.known):
        return Cleaned(sequence, 0)
    odd = unknown_letters(sequence, alphabet)
    if odd and act.refuses:
        raise _not_a_letter(sequence, alphabet, place)
    readable = sequence if sequence.isascii() else raw.decode()
    return Cleaned(readable.translate(alphabet.replacements), len(odd), keep=not (odd and act.drops))


def _not_a_letter(sequence: str, alphabet: Alphabet, place: str) -> PlftError:
    fine = alphabet.letters + alphabet.ambiguous + "".join(pair[0] for pair in alphabet.respelled)
    position = next(index for index, letter in enumerate(sequence) if letter not in fine)
    letter = ascii(sequence[position])
    article = "an" if alphabet.noun[0] in "aeiou" else "a"
    where = f"{place}: " if place else ""
    return PlftError(
        f"{where}{letter} at position {position + 1} is not {article} {alphabet.noun}. "
        "Correct it, or pass --unknown-letters map."
    )
