"""Simulated signal peptides: a small data set that needs no download, made from published rules.

Real signal peptides have a positively charged n-region, a hydrophobic h-region and a polar c-region that ends in the
(-3, -1) rule of von Heijne (1983, Eur J Biochem 133:17; 1986, Nucleic Acids Res 14:4683): small residues, mostly
alanine, at -3 and -1 from the cleavage site.  The sequences here follow these rules and nothing else: no number
measured on them says anything about real proteins.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

from plft.alphabet import PROTEIN
from plft.errors import PlftError, look_up
from plft.records import Record

DEMO_NOTE = (
    "The demo data is simulated from published rules for signal peptides (von Heijne 1983, 1986); "
    "its numbers say nothing about real proteins."
)
DEMO_FILE = "simulated_signal_peptides.csv"
POSITIVE, NEGATIVE = "signal", "other"
MATURE = "-"

# Per cent in UniProtKB/Swiss-Prot, in the order of PROTEIN.letters.
BACKGROUND = (8.3, 1.4, 5.5, 6.7, 3.9, 7.1, 2.3, 5.9, 5.8, 9.7, 2.4, 4.1, 4.7, 3.9, 5.5, 6.6, 5.3, 6.9, 1.1, 2.9)
HYDROPHOBIC = {"L": 42, "A": 22, "V": 14, "I": 8, "F": 7, "G": 3, "C": 2, "S": 2}
AT_MINUS_3 = {"A": 50, "V": 22, "S": 12, "T": 8, "G": 4, "C": 4}
AT_MINUS_1 = {"A": 62, "G": 19, "S": 14, "C": 5}
POLAR = {"S": 18, "T": 14, "Q": 14, "G": 12, "N": 10, "E": 8, "H": 8, "D": 6, "W": 5, "Y": 5}
LARGE = {"K": 20, "R": 20, "Q": 15, "Y": 15, "W": 10, "F": 10, "N": 10}  # none fits a cleavage site

Pick = random.Random


def _letters(pick: Pick, weights: Mapping[str, float], n: int) -> str:
    return "".join(pick.choices(list(weights), list(weights.values()), k=n))


def _background(pick: Pick, n: int) -> str:
    return "".join(pick.choices(PROTEIN.letters, BACKGROUND, k=n))


def _n_region(pick: Pick) -> str:
    """Methionine, then one to five residues of which at least one is K or R."""
    rest = list(_letters(pick, POLAR, pick.randint(0, 3)) + _letters(pick, {"K": 6, "R": 4}, pick.randint(1, 2)))
    pick.shuffle(rest)
    return "M" + "".join(rest)


def _h_region(pick: Pick, shortest: int, longest: int) -> str:
    return _letters(pick, HYDROPHOBIC, pick.randint(shortest, longest))


def _c_region(pick: Pick) -> str:
    """Three to seven residues that end in A-x-A or another pair of small residues at -3 and -1."""
    before = _letters(pick, POLAR, pick.randint(0, 4))
    return before + _letters(pick, AT_MINUS_3, 1) + _letters(pick, POLAR, 1) + _letters(pick, AT_MINUS_1, 1)


def _mature(pick: Pick, n: int) -> str:
    """Residues of average composition; the first is no proline, which would stop the cleavage."""
    drawn = _background(pick, n)
    return "S" + drawn[1:] if drawn.startswith("P") else drawn


def _signal(pick: Pick, length: int) -> tuple[str, str]:
    parts = {"n": _n_region(pick), "h": _h_region(pick, 7, 15), "c": _c_region(pick)}
    peptide = "".join(parts.values())
    regions = "".join(region * len(part) for region, part in parts.items())
    return peptide + _mature(pick, length - len(peptide)), regions + MATURE * (length - len(peptide))


def _plain(pick: Pick, length: int) -> tuple[str, str]:
    return "M" + _background(pick, length - 1), MATURE * length


def _anchor(pick: Pick, length: int) -> tuple[str, str]:
    """An N-terminal membrane anchor: charged and hydrophobic like a signal, but longer and without a cleavage site."""
    start = _n_region(pick) + _h_region(pick, 14, 20) + _letters(pick, LARGE, pick.randint(5, 7))
    return start + _background(pick, length - len(start)), MATURE * length


def _scrambled(pick: Pick, length: int) -> tuple[str, str]:
    """The residues of a signal in an order that has no hydrophobic stretch."""
    sequence, regions = _signal(pick, length)
    n_signal = len(regions.rstrip(MATURE))
    orders = [pick.sample(sequence[1:n_signal], n_signal - 1) for _ in range(20)]
    calmest = min(orders, key=_longest_hydrophobic)
    return "M" + "".join(calmest) + sequence[n_signal:], MATURE * length


def _longest_hydrophobic(letters: list[str]) -> int:
    return max((len(list(run)) for fits, run in groupby(letters, "LAVIF".__contains__) if fits), default=0)


def _displaced(pick: Pick, length: int) -> tuple[str, str]:
    """A whole signal, but inside the chain, where nothing cleaves it."""
    sequence, regions = _signal(pick, length)
    n_signal = len(regions.rstrip(MATURE))
    inside = pick.randint(15, length - n_signal - 1)
    rest = sequence[n_signal:]
    return "M" + rest[: inside - 1] + sequence[:n_signal] + rest[inside - 1 : length - n_signal - 1], MATURE * length


# Half are signals. Most negatives are hard: they share the composition of a signal, not its order.
KINDS: tuple[Callable[[Pick, int], tuple[str, str]], ...] = (
    *(_signal, _plain, _signal, _anchor),
    *(_signal, _scrambled, _signal, _displaced),
)
LABELS: dict[str, Callable[[str], str]] = {
    "seq_classification": lambda regions: NEGATIVE if regions.strip(MATURE) == "" else POSITIVE,
    "token_classification": lambda regions: regions,
}


def demo_records(task: str = "seq_classification", n: int = 1200, seed: int = 0) -> list[Record]:
    """Return simulated proteins of 60 to 80 residues, half of them with a signal peptide; see ``DEMO_NOTE``.

    task: "seq_classification" labels them signal or other, "token_classification" labels every residue n, h, c or
    ``-``.  Two thirds are train, one sixth valid, one sixth test.  The same n and seed give the same records.
    Raises PlftError for another task and for fewer than 12 records.
    """
    label = look_up("demo task", task, LABELS)
    if n < 12:
        raise PlftError(f"The demo data needs at least 12 records, not {n}.")
    pick = random.Random(seed)
    made = [KINDS[index % len(KINDS)](pick, pick.randint(60, 80)) for index in range(n)]
    pick.shuffle(made)
    return [
        Record(f"sim{row:05d}", sequence, label(regions), _split(row, n), file=DEMO_FILE, row=row)
        for row, (sequence, regions) in enumerate(made, start=1)
    ]


def _split(row: int, n: int) -> str:
    if row <= n * 2 // 3:
        return "train"
    return "valid" if row <= n * 5 // 6 else "test"


def write_demo(folder: str | Path, n: int = 1200, seed: int = 0) -> dict[str, Path]:
    """Write one CSV per demo task (id, sequence, label, split) and return their paths by task."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return {task: _write(folder / f"simulated_{task}.csv", demo_records(task, n, seed)) for task in LABELS}


def _write(path: Path, records: list[Record]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("id", "sequence", "label", "split"))
        table.writerows((each.id, each.sequence, each.label, each.split) for each in records)
    return path
