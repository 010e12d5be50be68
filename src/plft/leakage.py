"""Relatives of training sequences in the other splits: what makes results look better than they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from plft import homology
from plft.alphabet import guess_alphabet
from plft.errors import PlftError
from plft.records import Record

BANDS = (0.3, 0.5, 0.7, 0.9, 1.0)  # lower edges of the identity bands above the lowest
UNRELATED = "none"


@dataclass(frozen=True)
class Relative:
    """A sequence related to a training sequence: both places, both ids, and the identity (0 to 1)."""

    place: str
    id: str
    train_place: str
    train_id: str
    identity: float


@dataclass(frozen=True)
class SplitLeakage:
    """One split against train.

    n: sequences.  related: those with a training sequence at or above the threshold.  bands: identity to the nearest
    training sequence -> how many; "none" where the search finds no alignment.  relatives: the related, nearest first.
    """

    n: int
    related: int
    bands: dict[str, int]
    relatives: tuple[Relative, ...]


@dataclass(frozen=True)
class Leakage:
    """What ``plft check --leakage`` adds: thresholds (shares), how sequences were compared, and one entry per split."""

    identity: float
    coverage: float
    method: str
    splits: dict[str, SplitLeakage]

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers."""
        plain = asdict(self)
        for each in plain["splits"].values():
            each["relatives"] = list(each["relatives"])
        return plain


def band_of(identity: float) -> str:
    """Return the name of an identity's band: ``none``, ``below 30 %``, ``30-50 %``, ..., ``100 %``."""
    if identity <= 0:
        return UNRELATED
    return next(name for low, name in zip((0.0, *BANDS)[::-1], band_names()[::-1], strict=False) if identity >= low)


def band_names() -> list[str]:
    """Return the names of all bands, the least similar first."""
    edges = [f"{100 * edge:g}" for edge in BANDS]
    between = [f"{low}-{high} %" for low, high in pairwise(edges)]
    return [UNRELATED, f"below {edges[0]} %", *between, f"{edges[-1]} %"]


def find_leakage(
    records: Sequence[Record], identity: float | None = None, coverage: float = homology.COVERAGE
) -> Leakage:
    """Search the sequences of every other split against those of train.

    identity: from where on a sequence counts as related; None means 0.3 for protein and 0.8 for DNA and RNA.
    coverage: of the searched sequence.  Raises PlftError where train or the other splits are missing, and as
    `homology.nearest`.
    """
    train = [record for record in records if record.split == "train"]
    others = [record for record in records if record.split not in ("train", None)]
    if not train or not others:
        raise PlftError(
            "Leakage needs a train split and at least one other. Give --valid or --test, or plft split first."
        )
    alphabet = guess_alphabet(record.sequence for record in records)
    threshold = homology.IDENTITY[alphabet.name] if identity is None else identity
    homology.check_thresholds(threshold, coverage)
    found = homology.nearest(
        [record.sequence for record in others], [record.sequence for record in train], alphabet, coverage=coverage
    )
    names = sorted({str(record.split) for record in others}, key=lambda name: (name != "valid", name != "test", name))
    splits = {}
    for name in names:
        at = np.flatnonzero([record.split == name for record in others])
        splits[name] = _one_split(
            [others[index] for index in at], train, found.identity[at], found.target[at], threshold
        )
    return Leakage(threshold, coverage, homology.method_sentence(), splits)


def _one_split(
    records: Sequence[Record], train: Sequence[Record], identity: np.ndarray, target: np.ndarray, threshold: float
) -> SplitLeakage:
    counts = Counter(map(band_of, identity.tolist()))
    related = [index for index in np.argsort(-identity, kind="stable").tolist() if identity[index] >= threshold]
    relatives = []
    for index in related:
        record, near = records[index], train[target[index]]
        relatives.append(Relative(record.place, record.id, near.place, near.id, round(float(identity[index]), 3)))
    return SplitLeakage(len(records), len(related), {name: counts[name] for name in band_names()}, tuple(relatives))
