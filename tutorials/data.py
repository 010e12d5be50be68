"""Which data a tutorial takes: the published set where the environment variable PLFT_DATA names a folder that holds it,
else a small simulated one of the same kind, whose numbers are then no result.

This is the only place that decides. `data.either(a, b)` takes a with the published set and b with the simulated one, so
that a tutorial can be tried in a minute.
"""

from __future__ import annotations

import csv
import gzip
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from plft.alphabet import PROTEIN
from plft.apps.cli import quiet_libraries
from plft.builtin.demo import BACKGROUND, demo_records
from plft.records import read_records

DATA = Path(os.environ["PLFT_DATA"]).resolve() if os.environ.get("PLFT_DATA") else None
RUNS = Path(os.environ.get("PLFT_TUTORIALS", "tutorial-runs")).resolve()
N_SIMULATED = 120


@dataclass(frozen=True)
class Data:
    """A file to work with. is_real: published data, not simulated."""

    file: str
    is_real: bool
    sentence: str

    def either(self, real: Any, simulated: Any) -> Any:
        """Return the one for published data, or the one for simulated data."""
        return real if self.is_real else simulated

    def __str__(self) -> str:
        return self.file


def workplace(name: str) -> None:
    """Make an empty folder for what a tutorial writes, and go there.

    name: the tutorial's file without ".py".  The folder lies in `tutorial-runs`, or where PLFT_TUTORIALS says.
    Libraries are kept from warning of what does not concern the reader.
    """
    quiet_libraries()
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)


def table(published: str, simulated: str, rows: Mapping[str, int] | None = None, name: str | None = None) -> Data:
    """Write a table (sequence, label, split, ...) into the current folder, and say which data it is.

    published: a file below PLFT_DATA, .csv or .csv.gz.  simulated: a row of `TABLES`.  rows: at most so many of a
    split, drawn at random, always the same ones.  name: of the new file, by default that of the published one.
    """
    path, limits = find(published), dict(rows or {})
    lines = read_csv(path) if path else simulated_rows(simulated)
    kept = drawn(lines, limits)
    file = f"{name or Path(published).name.split('.')[0]}.csv"
    write_csv(file, kept)
    sentence = f"{published}: {counts(kept, lines)}" if path else missing(published)
    return said(Data(file, path is not None, sentence))


def sequences(published: str, simulated: str, rows: int | None = None) -> Data:
    """A FASTA file in the current folder: a link to the one below PLFT_DATA, or a simulated one (see `SEQUENCES`).

    rows: at most so many of its sequences, drawn at random, always the same ones.
    """
    path = find(published)
    if path is None:
        made = SEQUENCES[simulated](random.Random(simulated))
        return said(Data(write_fasta(f"simulated_{simulated}.fasta", made), False, missing(published)))
    name = published.replace("/", "-")
    if rows is None:
        Path(name).symlink_to(path)  # so that no page shows where the data lies
        return said(Data(name, True, published))
    found = [each.sequence for each in read_records(path, labelled=False)]
    kept = random.Random(0).sample(found, min(rows, len(found)))
    file = write_fasta(f"{rows}-of-{name.removesuffix('.gz')}", kept)
    return said(Data(file, True, f"{published}: {len(kept):,} of {len(found):,}"))


def write_fasta(name: str, sequences: list[str]) -> str:
    """Write sequences with numbers for names; returns the file's name."""
    Path(name).write_text("".join(f">{at}\n{each}\n" for at, each in enumerate(sequences)), encoding="utf-8")
    return name


def folder(published: str, simulated: str) -> Data:
    """A folder of labelled FASTA files here: a link to the one below PLFT_DATA, or a simulated one (see `FOLDERS`)."""
    path, name = find(published), published.split("/")[0]
    if path:
        Path(name).symlink_to(path)
        return said(Data(name, True, published))
    name = f"simulated_{simulated}"
    Path(name).mkdir()
    for part, text in FOLDERS[simulated]().items():
        Path(name, f"{part}_sequences.fasta").write_text(text, encoding="utf-8")
    return said(Data(name, False, missing(published)))


def find(published: str) -> Path | None:
    """The file or folder below PLFT_DATA, where there is one."""
    path = DATA / published if DATA else None
    return path if path and path.exists() else None


def said(data: Data) -> Data:
    """Print which data it is."""
    print(f"Data: {data.sentence}")
    return data


def missing(published: str) -> str:
    """What is said where simulated data is taken."""
    return f"SIMULATED, as {published} is not here (set PLFT_DATA). The numbers below are no result."


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table, compressed or not."""
    packed = Path(path).read_bytes()
    text = (gzip.decompress(packed) if Path(path).suffix == ".gz" else packed).decode("utf-8")
    return list(csv.DictReader(StringIO(text)))


def write_csv(path: str | Path, lines: list[dict[str, str]]) -> None:
    """Write rows as a table."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def drawn(lines: list[dict[str, str]], limits: Mapping[str, int]) -> list[dict[str, str]]:
    """At most so many rows of each split, drawn at random, in the order they have; a split without a limit stays."""
    kept: set[int] = set()
    for split in {line.get("split", "all") for line in lines}:
        places = [at for at, line in enumerate(lines) if line.get("split", "all") == split]
        kept |= set(random.Random(0).sample(places, min(limits.get(split, len(places)), len(places))))
    return [line for at, line in enumerate(lines) if at in kept]


def counts(kept: list[dict[str, str]], lines: list[dict[str, str]]) -> str:
    """ "train 500 of 2,691, test 5,743"."""
    parts = []
    for split in dict.fromkeys(line.get("split", "all") for line in lines):
        n, of = (sum(line.get("split", "all") == split for line in each) for each in (kept, lines))
        parts.append(f"{split} {n:,}" + (f" of {of:,}" if n < of else ""))
    return ", ".join(parts)


# --- simulated data: nothing measured on it says anything about real sequences

HYDROPATHY = dict(  # Kyte and Doolittle 1982
    zip(
        "ARNDCQEGHILKMFPSTWYV",
        [18, -45, -35, -35, 25, -35, -35, -4, -32, 45, 38, -39, 19, 28, -16, -8, -7, -9, -13, 42],
        strict=True,
    )
)
LYSOZYME = (  # of the hen, P00698 without its signal peptide
    "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIVSDGNGMNAWVAWRNR"
    "CKGTDVQAWIRGCRL"
)


def hydropathies(sequence: str) -> list[float]:
    """Mean hydropathy of the seven residues around each."""
    values = [HYDROPATHY[letter] / 10 for letter in sequence]
    windows = [values[max(0, at - 3) : at + 4] for at in range(len(values))]
    return [round(sum(window) / len(window), 2) for window in windows]


def relatives(pick: random.Random, sequence: str, n: int) -> list[str]:
    """Copies of a sequence in which 10 to 50 % of the residues are others."""
    shares = [pick.uniform(0.1, 0.5) for _ in range(n)]
    return [
        "".join(pick.choices(PROTEIN.letters, BACKGROUND)[0] if pick.random() < share else at for at in sequence)
        for share in shares
    ]


def scan_rows() -> list[dict[str, str]]:
    """Variants of lysozyme at four positions; the label is how hydrophobic these have become."""
    pick, places = random.Random(0), (40, 41, 42, 56)
    letters = [pick.choices(PROTEIN.letters, k=4) for _ in range(N_SIMULATED)]
    pairs = [dict(zip(places, each, strict=True)) for each in letters]
    return [
        {
            "sequence": "".join(new.get(at, letter) for at, letter in enumerate(LYSOZYME)),
            "label": f"{sum(HYDROPATHY[letter] for letter in new.values()) / 100:.3f}",
            "split": split_of(at),
        }
        for at, new in enumerate(pairs)
    ]


def dna(pick: random.Random, motif: str) -> str:
    """Sixty random letters with a motif in them."""
    letters = "".join(pick.choices("ACGT", k=60))
    at = pick.randint(0, 60 - len(motif))
    return letters[:at] + motif + letters[at + len(motif) :]


def dna_rows() -> list[dict[str, str]]:
    """Promoters with a TATA box, and other sequences without."""
    pick = random.Random(0)
    kinds = {"promoter": "TATAAAAG", "other": ""}
    names = [pick.choice(list(kinds)) for _ in range(N_SIMULATED)]
    return [{"sequence": dna(pick, kinds[name]), "label": name, "split": split_of(at)} for at, name in enumerate(names)]


def split_of(at: int) -> str:
    """Two thirds train, one sixth valid, one sixth test."""
    return ("train", "train", "train", "train", "valid", "test")[at % 6]


def demo_rows(task: str, label: Callable[[str, str], str]) -> list[dict[str, str]]:
    """The simulated signal peptides of `plft demo`, with labels of any kind."""
    records = demo_records(task, n=N_SIMULATED)
    return [
        {"sequence": each.sequence, "label": label(each.sequence, str(each.label)), "split": str(each.split)}
        for each in records
    ]


TABLES: dict[str, Callable[[], list[dict[str, str]]]] = {
    "seq_classification": lambda: demo_rows("seq_classification", lambda _, label: label),
    "seq_regression": lambda: demo_rows("seq_classification", lambda seq, _: f"{sum(hydropathies(seq)[:25]) / 25:.3f}"),
    "token_classification": lambda: demo_rows("token_classification", lambda _, label: label),
    "token_regression": lambda: demo_rows("seq_classification", lambda seq, _: " ".join(map(str, hydropathies(seq)))),
    "scan": scan_rows,
    "dna": dna_rows,
}
SEQUENCES: dict[str, Callable[[random.Random], list[str]]] = {
    "proteins": lambda pick: [each.sequence for each in demo_records(n=300)],
    "other_proteins": lambda pick: [each.sequence for each in demo_records(n=60, seed=1)],
    "family": lambda pick: relatives(pick, LYSOZYME, 80),
    "other_family": lambda pick: relatives(pick, LYSOZYME, 20),
    "dna": lambda pick: [dna(pick, "TATAAAAG") for _ in range(300)],
}


def sites() -> dict[str, str]:
    """FASTA files of windows around a tyrosine, half of them with acidic residues near it; labels in the headers."""
    pick, texts = random.Random(0), {"train": "", "test": ""}
    for at in range(N_SIMULATED):
        label = at % 2
        near = [*PROTEIN.letters, *("DE" * 12 if label else "")]
        sides = ["".join(pick.choices(near, k=8)) for _ in range(2)]
        ends = ["".join(pick.choices(PROTEIN.letters, BACKGROUND, k=8)) for _ in range(2)]
        window = f"{ends[0]}{sides[0]}Y{sides[1]}{ends[1]}"
        texts["test" if at % 6 == 5 or at % 6 == 2 else "train"] += f">site{at} LABEL={label}\n{window}\n"
    return texts


FOLDERS: dict[str, Callable[[], dict[str, str]]] = {"sites": sites}


def simulated_rows(kind: str) -> list[dict[str, str]]:
    """A simulated table of a kind."""
    return TABLES[kind]()
