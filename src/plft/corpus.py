"""Sequence files -> tokens on disk, once; and the crops of them that an epoch of pretraining sees.

Nothing here grows with the corpus but files: tokens are memory-mapped, and the order of an epoch is computed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock

from plft.alphabet import ALPHABETS, check_alphabet, clean, reverse_complement
from plft.errors import PlftError
from plft.records import read_records
from plft.tokens import ResidueTokenizer

FORMAT = 5
OTHER_PARTS = ("valid", "test")
BLOCK = 8192  # residues by default: longer sequences are kept as several entries, so that no single one is large
TRUE_START, TRUE_END = 1, 2
_BATCH = 256  # entries tokenised together
_SHARD = 1_000_000  # entries looked at together
_HELD_CROPS = 512  # read before their pages go back to the system: each brings its neighbours, 64 kB in all


@dataclass(frozen=True)
class CorpusFacts:
    """What went into a corpus.

    sequences, residues: in the files.  duplicates: exact copies left out.  entries: stored stretches, both strands
    counted.  tokens: in them, special tokens not counted.  unknown: letters that were replaced.  other_parts: sequences
    that the files mark as valid or test, left out.
    """

    sequences: int
    residues: int
    duplicates: int
    entries: int
    tokens: int
    unknown: int
    files: dict[str, str]
    both_strands: bool
    other_parts: int = 0


class Corpus:
    """Tokens of many sequences in a folder, memory-mapped.

    Entry i holds `lengths[i]` tokens without special ones.  `flags[i]` says whether it begins and ends where its
    sequence does (`TRUE_START`, `TRUE_END`), `hashes[i]` what its letters were, the same for both strands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / "facts.json").read_text())
        self.facts, self.dtype = CorpusFacts(**content["facts"]), np.dtype(content["dtype"])
        table = np.memmap(folder / "entries.bin", dtype=_ENTRY, mode="r") if self.facts.entries else np.empty(0, _ENTRY)
        self.starts, self.lengths, self.flags, self.hashes = (table[name] for name in _ENTRY.names or ())
        self._reads = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def _tokens(self) -> mmap.mmap:
        with (self.folder / "tokens.bin").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        return mapped

    def read(self, entry: int, first: int, last: int) -> np.ndarray:
        """Tokens first to last (excluded) of an entry: (last - first,) int64."""
        self._reads += 1
        if self._reads % _HELD_CROPS == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._tokens.madvise(mmap.MADV_DONTNEED)  # pages of the file only; they are read again when needed
        at = int(self.starts[entry]) + first
        return np.frombuffer(self._tokens, self.dtype, last - first, at * self.dtype.itemsize).astype(np.int64)


_ENTRY = np.dtype([("start", "<i8"), ("length", "<i8"), ("flag", "u1"), ("hash", "<u8")])


# -- building ----------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where tokenised corpora are kept: $PLFT_CACHE, else plft in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PLFT_CACHE") or Path(base) / "plft")


def tokenise(
    files: Sequence[Path],
    tokenizer: ResidueTokenizer,
    folder: Path | None = None,
    *,
    both_strands: bool = False,
    block: int = BLOCK,
    to_learn: bool = False,
) -> Corpus:
    """Tokenise sequence files into a store, or open the one that an earlier call made of the same content, in order.

    Of several processes that want the same store one makes it, and the others wait.

    files: any format that `plft check` reads.  folder: keeps the stores, by default `cache_folder()`.
    both_strands: DNA is stored in both directions.  block: residues that an entry holds at most.  to_learn: leave out
    what the files mark as valid or test.  Exact duplicates are left out and counted.
    Raises PlftError for unreadable files, a wrong alphabet, and files without a sequence.
    """
    for file in files:
        read_records(file, labelled=False)  # names the nearest file where this one is missing
    digests: dict[str, str] = {}
    for at, file in enumerate(files):
        before = sum(each.name == file.name for each in files[:at])
        digests[f"{file.name} ({before + 1})" if before else file.name] = _digest(file)
    builder = _Builder(tokenizer, both_strands, block, to_learn)
    key = builder.key([*digests.values()])
    target = (folder or cache_folder()) / "corpora" / key
    if not _is_whole(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{key}.lock"):
            if not _is_whole(target):
                _make(target, builder, files, digests)
    corpus = Corpus(target)
    corpus.facts = replace(corpus.facts, files=digests)  # they may have other names by now
    return corpus


def _is_whole(store: Path) -> bool:
    """Whether a store is there with all its bytes: a machine may have failed, or a cleaner have passed."""
    try:
        sizes = json.loads((store / "facts.json").read_text())["bytes"]
        return all((store / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _make(target: Path, builder: _Builder, files: Sequence[Path], digests: dict[str, str]) -> None:
    """Make a store beside its place, without what a builder that was killed has left there, and move it."""
    beside = target.with_name(f".{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        builder.build(beside, files, digests)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise PlftError(f"{file} cannot be read ({error.strerror}). Name a sequence file.") from error


@dataclass(frozen=True, slots=True)
class _Block:
    """A stretch of a sequence. hash: of its letters, even; plus one for the other strand."""

    letters: str
    flag: int
    hash: int


class _Builder:
    """Writes one store: tokens and entries as they come, then the entries again without the duplicates."""

    def __init__(self, tokenizer: ResidueTokenizer, both_strands: bool, block: int, to_learn: bool) -> None:
        self.tokenizer, self.both_strands, self.block, self.to_learn = tokenizer, both_strands, block, to_learn
        self.alphabet = ALPHABETS[tokenizer.family.alphabet]
        self.dtype = np.dtype(
            "u1" if len(tokenizer.tokenizer) <= 256 else "<u2" if len(tokenizer.tokenizer) <= 65536 else "<i4"
        )
        self.sequences = self.residues = self.unknown = self.written = self.other_parts = 0

    def key(self, digests: list[str]) -> str:
        """Name of the store: the same for the same content of files, tokenizer and settings."""
        vocabulary = sorted(self.tokenizer.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        settings = [self.tokenizer.family.name, self.both_strands, self.to_learn]
        content = [FORMAT, self.block, digests, vocabulary, *settings]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]

    def build(self, folder: Path, files: Sequence[Path], digests: dict[str, str]) -> None:
        """Read, tokenise, write, and leave the facts as the last file."""
        with (folder / "tokens.bin").open("wb") as tokens, (folder / "all.bin").open("wb") as entries:
            blocks = (block for file in files for block in self.blocks(file))
            while batch := list(islice(blocks, _BATCH)):
                self.write(batch, tokens, entries)
        if not self.sequences:
            names = ", ".join(file.name for file in files)
            raise PlftError(f"{names}: every sequence is marked as valid or test. Check the split.")
        duplicates = _keep_first(folder)
        kept = np.memmap(folder / "entries.bin", dtype=_ENTRY, mode="r")
        facts = CorpusFacts(
            sequences=self.sequences,
            residues=self.residues,
            duplicates=duplicates,
            entries=len(kept),
            tokens=int(kept["length"].sum()),
            unknown=self.unknown,
            files=digests,
            both_strands=self.both_strands,
            other_parts=self.other_parts,
        )
        sizes = {name: (folder / name).stat().st_size for name in ("tokens.bin", "entries.bin")}
        content = {"facts": asdict(facts), "dtype": self.dtype.str, "bytes": sizes}
        (folder / "facts.json").write_text(json.dumps(content))

    def blocks(self, file: Path) -> Iterator[_Block]:
        """The sequences of a file, cleaned, in stretches of at most `block` letters."""
        check_alphabet((each.sequence[:10_000] for each in read_records(file, labelled=False)), self.alphabet)
        for record in read_records(file, labelled=False):
            if self.to_learn and record.split in OTHER_PARTS:
                self.other_parts += 1
                continue
            cleaned = clean(record.sequence, self.alphabet)
            self.sequences += 1
            self.residues += len(cleaned.sequence)
            self.unknown += cleaned.n_unknown
            yield from _cut(cleaned.sequence, self.block)

    def write(self, batch: Iterable[_Block], tokens: IO[bytes], entries: IO[bytes]) -> None:
        """Append the tokens of some blocks, and one entry for each strand."""
        both = [each for block in batch for each in self.strands(block)]
        bodies = self.tokenizer.bodies([each.letters for each in both])
        table = np.zeros(len(both), _ENTRY)
        lengths = np.array([len(body) for body in bodies])
        table["start"] = self.written + np.cumsum(lengths) - lengths
        table["length"], table["flag"] = lengths, [each.flag for each in both]
        table["hash"] = [each.hash for each in both]
        self.written += int(lengths.sum())
        tokens.write(np.concatenate(bodies).astype(self.dtype).tobytes())
        entries.write(table.tobytes())

    def strands(self, block: _Block) -> list[_Block]:
        """The block, and its reverse complement where both are wanted."""
        if not self.both_strands:
            return [block]
        flag = (TRUE_START if block.flag & TRUE_END else 0) | (TRUE_END if block.flag & TRUE_START else 0)
        return [block, _Block(reverse_complement(block.letters), flag, block.hash | 1)]


def _cut(sequence: str, block: int) -> Iterator[_Block]:
    for start in range(0, len(sequence), block):
        letters = sequence[start : start + block]
        flag = (TRUE_START if start == 0 else 0) | (TRUE_END if start + block >= len(sequence) else 0)
        digest = hashlib.blake2b(letters.encode(), digest_size=8, salt=bytes([flag])).digest()
        yield _Block(letters, flag, int.from_bytes(digest, "little") & ~1)


def _keep_first(folder: Path) -> int:
    """Write entries.bin without the entries whose hash came before; return how many sequences' blocks were left out.

    Works on one range of hashes at a time, and marks in a file, so that memory does not grow with their number.
    """
    table = np.memmap(folder / "all.bin", dtype=_ENTRY, mode="r")
    keep = np.memmap(folder / "keep.bin", dtype=bool, mode="w+", shape=table.shape)
    chunks = [slice(start, start + _SHARD) for start in range(0, len(table), _SHARD)]

    def of_shard(chunk: slice, shard: int) -> np.ndarray:
        mine = (table["hash"][chunk] >> np.uint64(1)) % np.uint64(len(chunks)) == shard
        return chunk.start + np.flatnonzero(mine)

    for shard in range(len(chunks)):
        inside = np.concatenate([of_shard(chunk, shard) for chunk in chunks])
        keep[inside[np.unique(table["hash"][inside], return_index=True)[1]]] = True
    with (folder / "entries.bin").open("wb") as file:
        for chunk in chunks:
            file.write(table[chunk][keep[chunk]].tobytes())
    duplicates = sum(int((~keep[chunk] & (table["hash"][chunk] % np.uint64(2) == 0)).sum()) for chunk in chunks)
    for name in ("all.bin", "keep.bin"):
        (folder / name).unlink()
    return duplicates


# -- parts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Some entries of a corpus. entries: their numbers, or None for all that `without` does not name (few, sorted)."""

    corpus: Corpus
    entries: np.ndarray | None = None
    without: np.ndarray | None = None

    @cached_property
    def _gaps(self) -> np.ndarray:
        """For the k-th entry left out: how many entries that stay come before it."""
        left_out = np.empty(0, np.int64) if self.without is None else self.without
        return left_out - np.arange(len(left_out))

    def __len__(self) -> int:
        if self.entries is not None:
            return len(self.entries)
        return len(self.corpus) - len(self._gaps)

    @property
    def n_stretches(self) -> int:
        """Entries, both strands of a stretch counted once."""
        return len(self) // (2 if self.corpus.facts.both_strands else 1)

    def entry(self, number: np.ndarray) -> np.ndarray:
        """The corpus' entries for numbers within the part."""
        if self.entries is not None:
            return self.entries[number]
        return number + np.searchsorted(self._gaps, number, side="right")

    def lengths(self, first: int, last: int) -> np.ndarray:
        """Tokens of the part's entries first to last (excluded)."""
        return np.asarray(self.corpus.lengths[self.entry(np.arange(first, last))])

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of all entries, special ones not counted."""
        return sum(int(self.lengths(a, min(a + _SHARD, len(self))).sum()) for a in range(0, len(self), _SHARD))


def hold_out(corpus: Corpus, share: float = 0.02, most: int = 2000, seed: int = 0) -> np.ndarray:
    """Choose entries to hold out: (entries,) int64.

    Both strands of a stretch stay together. Whichever hashes come first after mixing with the seed are held out, and in
    that order: at most `share` of the stretches and at most `most`, at least one where there are two or more.
    """
    strands = 2 if corpus.facts.both_strands else 1
    n_groups = len(corpus) // strands
    wanted = min(most, n_groups - 1, max(1, round(share * n_groups))) if n_groups > 1 else 0
    if not wanted:
        return np.empty(0, np.int64)
    key = mix(np.array([seed], np.uint64))
    first, held_out = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, len(corpus), _SHARD):
        mixed = mix((corpus.hashes[start : start + _SHARD] >> np.uint64(1)) ^ key)
        first = np.concatenate([first, mixed])
        held_out = np.concatenate([held_out, np.arange(start, start + len(mixed))])
        kept = np.argsort(first, kind="stable")[: wanted * strands]
        first, held_out = first[kept], held_out[kept]
    return held_out


def without_copies(corpus: Corpus, of: Corpus) -> tuple[Part, int]:
    """The entries of a corpus that are in no entry of another, and how many were left out."""
    shared = np.zeros(len(corpus), dtype=bool)
    for start in range(0, len(of), _SHARD):
        shared |= np.isin(corpus.hashes, of.hashes[start : start + _SHARD])
    return Part(corpus, np.flatnonzero(~shared)), int(shared.sum())


def write_fasta(part: Part, letters: np.ndarray, file: Path) -> None:
    """Write a part of a corpus of single letters as FASTA, named by entry, one strand of each stretch.

    letters: (vocabulary,) ASCII codes.
    """
    with file.open("wb") as handle:
        for number in range(0, len(part), _BATCH):
            entries = part.entry(np.arange(number, min(number + _BATCH, len(part))))
            for entry in entries[part.corpus.hashes[entries] % np.uint64(2) == 0]:
                tokens = part.corpus.read(int(entry), 0, int(part.corpus.lengths[entry]))
                handle.write(b">%d\n%s\n" % (entry, letters[tokens].tobytes()))


# -- crops -------------------------------------------------------------------------------------------------------------


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers one to one (the finaliser of splitmix64, Steele et al. 2014)."""
    values = values.astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffled(numbers: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a random order of 0 to n - 1, fixed by the key, puts these numbers; nothing of size n is made.

    A Feistel network of six rounds on the next power of four, walked until the number is below n again.
    """
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    low = (np.uint64(1) << half) - np.uint64(1)
    result = numbers.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & low
        for turn in range(6):
            left, right = right, left ^ (mix(right + np.uint64((key * 6 + turn) * 0x9E3779B97F4A7C15 % 2**64)) & low)
        result[outside] = (left << half) | right
        outside = result >= np.uint64(n)
    return result.astype(np.int64)


class Crops:
    """The crops of a part, epoch after epoch, in an order fixed by the seed.

    size: tokens a crop holds at most, special tokens included.  A long entry gives several crops an epoch, one from
    each of as many equal stretches, at a random place; a short one is taken whole.
    """

    def __init__(self, part: Part, tokenizer: ResidueTokenizer, size: int, seed: int = 0) -> None:
        self.part, self.seed = part, seed
        self.before, self.after = tokenizer.around
        self.room = size - len(self.before) - len(self.after)
        if self.room < 1:
            raise PlftError(f"A crop of {size} tokens has no room for a residue. Use 64 or more.")
        self.n_until = self._count()
        self.n = int(self.n_until[-1])

    def _count(self) -> np.ndarray:
        """Crops up to and with each entry: (entries,) int64, in a file of its own that vanishes with the process."""
        with tempfile.TemporaryFile() as file:
            counts = np.memmap(file, dtype=np.int64, shape=(max(1, len(self.part)),))
        total = 0
        for start in range(0, len(self.part), _SHARD):
            lengths = self.part.lengths(start, min(start + _SHARD, len(self.part)))
            each = np.maximum(1, np.rint(lengths / self.room)).astype(np.int64)
            counts[start : start + len(each)] = total + np.cumsum(each)
            total = int(counts[start + len(each) - 1])
        return counts

    def table(self, numbers: np.ndarray) -> np.ndarray:
        """The crops with these numbers, counted on over all epochs: (n, 4) int64 of entry, first, last, draw."""
        epochs, within = np.divmod(numbers, self.n)
        windows = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            windows[mine] = shuffled(within[mine], self.n, self.seed * 1_000_003 + int(epoch))
        number = np.searchsorted(self.n_until, windows, side="right")
        entries = self.part.entry(number)
        before = np.where(number > 0, self.n_until[np.maximum(number - 1, 0)], 0)
        lengths = np.asarray(self.part.corpus.lengths[entries])
        draws = mix(windows.astype(np.uint64) + mix(epochs.astype(np.uint64) + np.uint64(self.seed << 20)))
        place = (windows - before + (draws >> np.uint64(11)) * 2.0**-53) / (self.n_until[number] - before)
        first = np.floor(place * np.maximum(lengths - self.room + 1, 1)).astype(np.int64)
        last = np.minimum(first + self.room, lengths)
        return np.stack([entries, first, last, (draws >> np.uint64(1)).astype(np.int64)], axis=1)

    def sizes(self, table: np.ndarray) -> np.ndarray:
        """Tokens of crops, special tokens included: (n,) int64."""
        entries, first, last = table[:, 0], table[:, 1], table[:, 2]
        flags, lengths = self.part.corpus.flags[entries], self.part.corpus.lengths[entries]
        starts = (first == 0) & (flags & TRUE_START > 0)
        ends = (last == lengths) & (flags & TRUE_END > 0)
        return last - first + starts * len(self.before) + ends * len(self.after)

    def read(self, row: np.ndarray) -> np.ndarray:
        """The tokens of one crop; start and end tokens only where the sequence itself starts and ends."""
        entry, first, last = int(row[0]), int(row[1]), int(row[2])
        corpus = self.part.corpus
        body, flag = corpus.read(entry, first, last), int(corpus.flags[entry])
        start = self.before if first == 0 and flag & TRUE_START else []
        end = self.after if last == int(corpus.lengths[entry]) and flag & TRUE_END else []
        return np.concatenate([np.array(start, np.int64), body, np.array(end, np.int64)])
