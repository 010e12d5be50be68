"""Sequences to token ids, and which residues every token covers.

Where a family has one token per residue, a look-up table does the work of the tokenizer: it is built from the tokenizer
itself, checked against it once, and not used when they disagree. Everything else goes through the tokenizer, and the
residues come from character offsets, or from the token strings when the tokenizer has no offsets.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from plft.alphabet import ALPHABETS
from plft.errors import PlftError
from plft.families import (
    AMINO_ACIDS,
    FAMILIES,
    NUCLEOTIDES,
    Family,
    Spelled,
    kind_of_vocabulary,
    recognise,
    spell,
)

Speller = Callable[[str], Spelled]
Alone = tuple[tuple[int, ...], int, tuple[int, ...]]


@dataclass(frozen=True)
class Encoded:
    """One sequence as tokens.

    input_ids: (tokens,) int32 with special tokens.  spans: (tokens, 2) int32; token i covers the residues
    spans[i, 0]:spans[i, 1] counted from 0, and special tokens cover none (0:0).  n_cut: residues at the end that have
    no token of their own because the model takes no more tokens; the last token covers them as well.
    """

    input_ids: np.ndarray
    spans: np.ndarray
    n_cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class LetterTable:
    """Token id of every letter (256 entries, -1: ask the tokenizer) and the ids put around a sequence."""

    ids: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray

    def encode(self, sequence: str) -> Encoded | None:
        """Encode by look-up; None when a letter is not in the table."""
        if not sequence.isascii():
            return None
        body = self.ids[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]
        if body.size and body.min() < 0:
            return None
        spans = np.zeros((len(self.prefix) + len(body) + len(self.suffix), 2), dtype=np.int32)
        residues = np.arange(len(body) + 1, dtype=np.int32)
        inside = slice(len(self.prefix), len(self.prefix) + len(body))
        spans[inside, 0], spans[inside, 1] = residues[:-1], residues[1:]
        return Encoded(np.concatenate([self.prefix, body, self.suffix]), spans)


class ResidueTokenizer:
    """A tokenizer that knows which residues its tokens cover.

    tokenizer: a transformers tokenizer, with or without offsets.  family: how sequences are spelled for it, and the
    hard limit on tokens.  preprocess: replaces the family's spelling by a function from sequence to text; its residues
    are found again when it only adds spaces, special tokens or replaces letters one by one.
    Raises PlftError where residues and tokens cannot be brought into line.
    """

    def __init__(self, tokenizer: Any, family: Family, preprocess: Callable[[str], str] | None = None) -> None:
        self.tokenizer = tokenizer
        self.family = family
        self._spell = partial(spell, family) if preprocess is None else partial(_spell_by, preprocess, family)
        self._table = _letter_table(tokenizer, family, self._spell)

    @property
    def is_letterwise(self) -> bool:
        """True when every residue is one token and the look-up table is in use."""
        return self._table is not None

    @property
    def pad_token_id(self) -> int:
        """The id to pad with; the end token's where the tokenizer has no padding of its own, 0 where it has neither."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(each) for each in ids if each is not None), 0)

    def encode(self, sequence: str) -> Encoded:
        """Return the tokens of one sequence and the residues they cover."""
        return self.encode_all([sequence])[0]

    def encode_all(self, sequences: Iterable[str]) -> list[Encoded]:
        """Return the tokens of many sequences, in their order, none longer than the family's hard limit."""
        return [_within(each, self.family.max_tokens) for each in self._encode_whole(list(sequences))]

    def _encode_whole(self, sequences: list[str]) -> list[Encoded]:
        encoded = [self._table.encode(sequence) if self._table else None for sequence in sequences]
        rest = [i for i, each in enumerate(encoded) if each is None]
        others = _through_tokenizer(self.tokenizer, self.family, self._spell, [sequences[i] for i in rest])
        for i, each in zip(rest, others, strict=True):
            encoded[i] = each
        return [each for each in encoded if each is not None]

    @cached_property
    def n_special(self) -> int:
        """Tokens around a sequence that stand for no residue (a prefix included)."""
        spans = self.encode("A").spans
        return int((spans[:, 0] == spans[:, 1]).sum())

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """Token ids before the first residue and after the last; a causal model without any gets its end token there.

        Without that, it could never learn where a sequence begins and ends. ProtGPT2 read a line break before the end
        token, as before the first line.
        """
        encoded = self.encode("AAAAAAAA")
        where = np.flatnonzero(encoded.spans[:, 1] > encoded.spans[:, 0])
        before, after = encoded.input_ids[: where[0]].tolist(), encoded.input_ids[where[-1] + 1 :].tolist()
        end = self.tokenizer.eos_token_id
        if self.family.causal and not after and end is not None:
            return before or [int(end)], [*before[1:], int(end)]
        return before, after

    @property
    def letters(self) -> np.ndarray:
        """ASCII code of every token of a letterwise tokenizer: (vocabulary,) uint8, X for those that are no letter."""
        codes = np.full(len(self.tokenizer.get_vocab()) + 1, ord("X"), dtype=np.uint8)
        if self._table is not None:
            known = np.flatnonzero(self._table.ids >= 0)
            unknown = ord(ALPHABETS[self.family.alphabet].unknown)
            # Of letters that share a token the last one here stays: the unknown letter, else the first in the alphabet.
            known = np.append(known[::-1], known[known == unknown])
            codes[self._table.ids[known]] = known
        return codes

    def bodies(self, sequences: Iterable[str]) -> list[np.ndarray]:
        """Return the tokens of sequences without the special ones around them, however long: (tokens,) int32 each."""
        found = []
        for encoded in self._encode_whole(list(sequences)):
            where = np.flatnonzero(encoded.spans[:, 1] > encoded.spans[:, 0])
            found.append(encoded.input_ids[where[0] : where[-1] + 1])
        return found

    @property
    def max_residues(self) -> int | None:
        """Residues that always fit the hard limit; None without a limit, or when tokens have no fixed length."""
        limit = self.family.max_tokens
        fixed_length = self.is_letterwise or self.family.kmer is not None
        return self.residues_within(limit) if limit is not None and fixed_length else None

    def residues_within(self, max_tokens: int) -> int:
        """Residues that fill `max_tokens` tokens, special ones included; an estimate for pieces of varying length."""
        tokens, kmer = max_tokens - self.n_special, self.family.kmer or 1
        if self.family.spelling == "kmers":
            return max(tokens + kmer - 1, 1)
        return max(int(tokens * (kmer if kmer > 1 else self._residues_per_token)), 1)

    @cached_property
    def _residues_per_token(self) -> float:
        """1 for letterwise tokenizers; otherwise measured on random letters, which make the shortest pieces."""
        if self.is_letterwise:
            return 1.0
        letters = NUCLEOTIDES if self.family.alphabet == "dna" else AMINO_ACIDS
        probe = "".join(np.random.default_rng(0).choice(list(letters), size=240))
        (encoded,) = _through_tokenizer(self.tokenizer, self.family, self._spell, [probe])
        return len(probe) / (len(encoded) - self.n_special)

    @cached_property
    def unknown_letters(self) -> str:
        """The letters A to Z that become the unknown token, in order."""
        words = [letter * 2 * (self.family.kmer or 1) for letter in string.ascii_uppercase]
        return "".join(word[0] for word in words if self._is_unknown(word))

    def unknown_residues(self, encoded: Encoded) -> int:
        """Count the residues that lie in an unknown token."""
        hit = encoded.spans[encoded.input_ids == _unknown_id(self.tokenizer)]
        if not len(hit):
            return 0
        return int(np.count_nonzero(_covered(hit, int(hit[:, 1].max()))))

    def _is_unknown(self, word: str) -> bool:
        try:
            return self.unknown_residues(self.encode(word)) > 0
        except PlftError:
            return True


def residue_spans(tokenizer: Any, family: Family, sequence: str) -> tuple[list[int], np.ndarray]:
    """Return the token ids of a sequence, and the residues of every token: (tokens, 2) int32, empty for specials."""
    (encoded,) = _through_tokenizer(tokenizer, family, partial(spell, family), [sequence])
    return encoded.input_ids.tolist(), encoded.spans


# -- which family a tokenizer belongs to -------------------------------------------------------------------------------

_MARKS = {"[CLS]": "bert", "<cls>": "esm", "<s>": "unknown", "</s>": "t5"}  # the first one in the vocabulary decides


def family_of(tokenizer: Any, config: Any = None) -> Family | None:
    """Return the family of a tokenizer whose model is not at hand; None where it cannot be told.

    config: the model's; by default the config.json in the folder that the tokenizer came from.  Without either the kind
    of vocabulary and the special tokens decide, where they leave no doubt about the spelling.
    """
    vocab, name = tokenizer.get_vocab(), str(getattr(tokenizer, "name_or_path", ""))
    config = _config_beside(name) if config is None else config
    if config is not None:
        return recognise(config, vocab, name)
    family = recognise(_likely_config(tokenizer, vocab, name), vocab, name)
    return family if family.is_known else None


def _config_beside(name: str) -> SimpleNamespace | None:
    file = Path(name) / "config.json"
    return SimpleNamespace(**json.loads(file.read_text(encoding="utf-8"))) if name and file.is_file() else None


def _likely_config(tokenizer: Any, vocab: Mapping[str, int], name: str) -> SimpleNamespace:
    kind = kind_of_vocabulary(vocab)
    rows = [row for row in FAMILIES.values() if kind in row.vocabularies]
    model_type = next((model for mark, model in _MARKS.items() if mark in vocab), "unknown")
    if len(rows) == 1:
        model_type = rows[0].model_types[0]
    elif type(tokenizer).__name__.startswith("Esmc"):
        model_type = "esmc"
    # of the ESM models of single residues only the first generation numbers positions absolutely
    rotary = model_type == "esm" and kind == "residues" and "esm1" not in name.lower()
    return SimpleNamespace(model_type=model_type, position_embedding_type="rotary" if rotary else "absolute")


def _within(encoded: Encoded, max_tokens: int | None) -> Encoded:
    """Cut to the hard limit: the last token that stays stands for the residues after it, which are counted."""
    if max_tokens is None or len(encoded) <= max_tokens:
        return encoded
    is_residue = encoded.spans[:, 1] > encoded.spans[:, 0]
    n_suffix = len(encoded) - 1 - int(np.flatnonzero(is_residue)[-1])
    keep = np.r_[0 : max_tokens - n_suffix, len(encoded) - n_suffix : len(encoded)]
    spans, n_residues = encoded.spans[keep], int(encoded.spans[:, 1].max())
    last = int(np.flatnonzero(spans[:, 1] > spans[:, 0])[-1])
    n_cut = n_residues - int(spans[last, 1])
    spans[last, 1] = n_residues
    return Encoded(encoded.input_ids[keep], spans, n_cut)


_MARKUP = re.compile(r"<[^<>]*>|\[[A-Z]+\]|\s+")  # special tokens and spaces in a text that somebody else spelled


def _spell_by(preprocess: Callable[[str], str], family: Family, sequence: str) -> Spelled:
    """Spell with a function of the user's, and find the residues in what it returns."""
    text, usual = preprocess(sequence), spell(family, sequence)
    if text == usual.text:
        return usual
    is_letter = np.ones(len(text), dtype=bool)
    for match in _MARKUP.finditer(text):
        is_letter[match.start() : match.end()] = False
    if np.count_nonzero(is_letter) != len(sequence):
        raise PlftError(
            f"preprocess_fn made {np.count_nonzero(is_letter)} letters out of {len(sequence)} residues, so residues "
            "and tokens cannot be matched. It may add spaces and special tokens, and replace letters one by one."
        )
    return Spelled(text, np.where(is_letter, is_letter.cumsum() - 1, -1).astype(np.int32))


# -- through the tokenizer ---------------------------------------------------------------------------------------------

_BATCH = 512  # sequences handed to a fast tokenizer at a time: enough to keep its threads busy


def _through_tokenizer(tokenizer: Any, family: Family, speller: Speller, sequences: Sequence[str]) -> list[Encoded]:
    """Encode with the tokenizer itself and align every token; PlftError when a residue is in no token."""
    encode = _by_offsets if getattr(tokenizer, "is_fast", False) else _by_surface
    if family.spelling == "chunks":
        encode = _by_letters
    encoded = []
    for start in range(0, len(sequences), _BATCH):
        spelled = [speller(sequence) for sequence in sequences[start : start + _BATCH]]
        encoded += encode(tokenizer, spelled)
    for sequence, each in zip(sequences, encoded, strict=True):
        _check_cover(sequence, each, family)
    return encoded


def _by_offsets(tokenizer: Any, spelled: Sequence[Spelled]) -> list[Encoded]:
    texts = [each.text for each in spelled]
    batch = tokenizer(texts, return_offsets_mapping=True, padding=False, truncation=False, verbose=False)
    rows = zip(batch["input_ids"], batch["offset_mapping"], spelled, strict=True)
    return [Encoded(_ids(ids), _spans(np.array(offsets, dtype=np.int64).reshape(-1, 2), s)) for ids, offsets, s in rows]


def _by_letters(tokenizer: Any, spelled: Sequence[Spelled]) -> list[Encoded]:
    """For families that read a list of single letters: the vocabulary alone decides.

    Handing such a list to the tokenizer is not safe: its pre-tokenizer may put a space mark before every letter.
    """
    around = tokenizer("")["input_ids"]
    n_before = int(bool(around) and around[0] == tokenizer.cls_token_id)
    encoded = []
    for each in spelled:
        ids = tokenizer.convert_tokens_to_ids(list(each.text))
        offsets = np.zeros((len(around) + len(ids), 2), dtype=np.int64)
        offsets[n_before : n_before + len(ids)] = np.arange(len(ids))[:, None] + np.array([0, 1])
        encoded.append(Encoded(_ids([*around[:n_before], *ids, *around[n_before:]]), _spans(offsets, each)))
    return encoded


def _by_surface(tokenizer: Any, spelled: Sequence[Spelled]) -> list[Encoded]:
    """For tokenizers without offsets: find the token strings one after the other in the text."""
    encoded = []
    for each in spelled:
        surfaces = tokenizer.tokenize(each.text)
        inner = tokenizer.convert_tokens_to_ids(surfaces)
        ids = _ids(tokenizer(each.text, padding=False, truncation=False, verbose=False)["input_ids"])
        offsets = np.zeros((len(ids), 2), dtype=np.int64)
        first = _find_run(ids, inner)
        offsets[first : first + len(inner)] = _scan(each.text, surfaces)
        encoded.append(Encoded(ids, _spans(offsets, each)))
    return encoded


def _ids(ids: Sequence[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int32).reshape(-1)


def _find_run(ids: np.ndarray, inner: Sequence[int]) -> int:
    """Where the tokens of the text begin among the special tokens."""
    for first in range(len(ids) - len(inner) + 1):
        if np.array_equal(ids[first : first + len(inner)], inner):
            return first
    raise PlftError(
        "The tokenizer gives other ids with special tokens than without, so tokens cannot be matched to residues. "
        "Choose a model with a fast tokenizer."
    )


def _scan(text: str, surfaces: Sequence[str]) -> np.ndarray:
    """Return (tokens, 2) character offsets of token strings that follow one another in a text."""
    offsets, cursor = np.zeros((len(surfaces), 2), dtype=np.int64), 0
    for i, surface in enumerate(surfaces):
        plain = surface.removeprefix("##").replace("▁", "")
        start = text.find(plain, cursor)
        if start < 0:
            raise PlftError(
                f"Token '{surface}' is not in the text after character {cursor}, so tokens cannot be matched to "
                "residues. Choose a model with a fast tokenizer."
            )
        cursor = start + len(plain)
        offsets[i] = start, cursor
    return offsets


def _spans(offsets: np.ndarray, spelled: Spelled) -> np.ndarray:
    """Turn character offsets (tokens, 2) into residue spans (tokens, 2): first to last residue inside a token."""
    residues = spelled.residue_of_char
    spans = np.zeros(offsets.shape, dtype=np.int32)
    if not len(residues):
        return spans
    where, chars = np.flatnonzero(residues >= 0), np.arange(len(residues))
    # index into `where` of the first residue at or after a character, and of the last at or before it
    after, before = np.searchsorted(where, chars), np.searchsorted(where, chars, side="right") - 1
    start, last = offsets[:, 0].clip(max=len(residues) - 1), (offsets[:, 1] - 1).clip(min=0)
    has_residue = (offsets[:, 1] > offsets[:, 0]) & (after[start] <= before[last])
    spans[has_residue, 0] = residues[where[after[start[has_residue]]]]
    spans[has_residue, 1] = residues[where[before[last[has_residue]]]] + 1
    return spans


def _covered(spans: np.ndarray, n_residues: int) -> np.ndarray:
    """Return (residues,) bool: True where at least one span lies."""
    edges = np.zeros(n_residues + 1, dtype=np.int64)
    np.add.at(edges, spans[:, 0], 1)
    np.add.at(edges, spans[:, 1], -1)
    return edges.cumsum()[:n_residues] > 0


def _check_cover(sequence: str, encoded: Encoded, family: Family) -> None:
    covered = _covered(encoded.spans, len(sequence))
    if not covered.all():
        at = int(np.argmin(covered))
        raise PlftError(
            f"The tokenizer ({family.title}) has no token for '{sequence[at]}' at position {at + 1}; "
            f"{np.count_nonzero(~covered)} of {len(sequence)} residues are lost. "
            "Replace the letter or choose another model."
        )


# -- the look-up table -------------------------------------------------------------------------------------------------

_LETTERS = string.ascii_uppercase + "*-."


def _letter_table(tokenizer: Any, family: Family, speller: Speller) -> LetterTable | None:
    """Build the table from single letters; None unless it gives what the tokenizer gives on a probe sequence."""
    if family.spelling in ("kmers", "lines"):
        return None
    alone = {letter: _alone(tokenizer, family, speller, letter) for letter in _LETTERS}
    parts = {letter: part for letter, part in alone.items() if part is not None}
    around = {(prefix, suffix) for prefix, _, suffix in parts.values()}
    if len(around) != 1:
        return None
    (prefix, suffix), ids = around.pop(), np.full(256, -1, dtype=np.int32)
    for letter, (_, letter_id, _) in parts.items():
        ids[ord(letter)] = letter_id
    table = LetterTable(ids, _ids(prefix), _ids(suffix))
    return table if _agrees(table, tokenizer, family, speller) else None


def _alone(tokenizer: Any, family: Family, speller: Speller, letter: str) -> Alone | None:
    """Token ids before, of and after a sequence of one letter; None when the letter is not exactly one token."""
    try:
        encoded = _through_tokenizer(tokenizer, family, speller, [letter])[0]
    except PlftError:  # the tokenizer drops this letter; a sequence that holds it meets the same error later
        return None
    where = np.flatnonzero(encoded.spans[:, 1] > encoded.spans[:, 0])
    if len(where) != 1:
        return None
    at, ids = int(where[0]), encoded.input_ids.tolist()
    return tuple(ids[:at]), ids[at], tuple(ids[at + 1 :])


def _agrees(table: LetterTable, tokenizer: Any, family: Family, speller: Speller) -> bool:
    """Compare table and tokenizer on shuffled letters.

    Unknown letters stand apart in the probe: tokenizers run neighbouring ones together into a single unknown token,
    the table keeps one token for each residue, which is what residue labels need.
    """
    letters = [letter for letter in _LETTERS if table.ids[ord(letter)] >= 0]
    unknown = [letter for letter in letters if table.ids[ord(letter)] == _unknown_id(tokenizer)]
    known = [letter for letter in letters if letter not in unknown]
    if not known:
        return False
    shuffled = np.random.default_rng(0).choice(known, size=8 * len(known)).tolist()
    apart = "".join(letter + known[i % len(known)] for i, letter in enumerate(unknown))
    probe = "".join(known + shuffled) + apart
    fast, slow = table.encode(probe), _through_tokenizer(tokenizer, family, speller, [probe])[0]
    same_ids = fast is not None and np.array_equal(fast.input_ids, slow.input_ids)
    return same_ids and fast is not None and np.array_equal(fast.spans, slow.spans)


def _unknown_id(tokenizer: Any) -> int:
    unknown = getattr(tokenizer, "unk_token_id", None)
    return -1 if unknown is None else int(unknown)
