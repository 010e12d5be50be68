"""Families in different parts: searched once more between the parts, and moved where they are still related."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from plft import homology
from plft.alphabet import Alphabet

Group = tuple[int, ...]  # indices of records that must not be parted
MOST_ROUNDS = 10  # in practice the second or third search finds nothing


def members_of(numbers: Iterable[Hashable]) -> list[Group]:
    """Return the positions of each number, in the order of first occurrence."""
    members: dict[Hashable, list[int]] = {}
    for index, number in enumerate(numbers):
        members.setdefault(number, []).append(index)
    return [tuple(group) for group in members.values()]


@dataclass(frozen=True)
class Apart:
    """The part of each record, and how many records changed theirs."""

    parts: list[str]
    n_moved: int


@dataclass(frozen=True)
class Separation:
    """Searches between parts, more thoroughly than families were made, and moves families that are still related."""

    sequences: Sequence[str]
    alphabet: Alphabet
    identity: float
    coverage: float

    def keep_apart(self, groups: Sequence[Group], parts: Sequence[str]) -> Apart:
        """Move families to train, or among folds to the larger family's fold, until no search finds a relation."""
        part = np.array(parts, dtype=object)
        number = np.empty(len(part), dtype=np.int64)
        for at, group in enumerate(groups):
            number[list(group)] = at
        home = np.array([part[group[0]] for group in groups], dtype=object)
        fresh = np.ones(len(part), dtype=bool)
        for _ in range(MOST_ROUNDS):
            linked = self._related_families(part, fresh, number)
            if not len(linked):
                break
            home = _moved_together(groups, home, linked)
            fresh = part != home[number]
            part = home[number]
        return Apart(part.tolist(), int((part != np.array(parts, dtype=object)).sum()))

    def _related_families(self, part: np.ndarray, fresh: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Return pairs of families, (pairs, 2), that are related and in different parts; valid and test may be.

        fresh: records that were not yet searched where they are now.
        """
        found = [np.zeros((0, 2), dtype=np.int64)]
        for name in sorted(set(part.tolist()) - {"train"}):
            inside = part == name
            outside = part == "train" if "train" in part else ~inside
            for queries, targets in ((inside & fresh, outside), (inside & ~fresh, outside & fresh)):
                query, target = np.flatnonzero(queries), np.flatnonzero(targets)
                pairs = self._pairs(query, target)
                found.append(np.stack([number[query[pairs.query]], number[target[pairs.target]]], axis=1))
        return np.unique(np.concatenate(found), axis=0)

    def _pairs(self, query: np.ndarray, target: np.ndarray) -> homology.Pairs:
        sequences = self.sequences
        queries, targets = [sequences[at] for at in query], [sequences[at] for at in target]
        return homology.pairs(queries, targets, self.alphabet, self.identity, self.coverage, either=True)


def _moved_together(groups: Sequence[Group], home: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """Return the part of each family after linked ones joined: train where one is there, else the largest one's."""
    links = (np.ones(len(linked)), (linked[:, 0], linked[:, 1]))
    joined = connected_components(coo_matrix(links, shape=(len(groups),) * 2), directed=False)[1]
    moved = home.copy()
    members = members_of(joined.tolist())
    for families in (each for each in members if len(each) > 1):
        largest = max(families, key=lambda at: (home[at] == "train", len(groups[at]), -at))
        moved[list(families)] = home[largest]
    return moved
