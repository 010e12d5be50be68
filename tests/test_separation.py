"""Families in different parts that a search between the parts still relates."""

from collections.abc import Sequence

import numpy as np
import pytest

from plft import homology
from plft.alphabet import PROTEIN
from plft.separation import Separation, members_of

SEQUENCES = ["A", "B", "C", "D", "E", "F"]
GROUPS = [(0, 1, 2), (3,), (4,), (5,)]


def searched(monkeypatch: pytest.MonkeyPatch, related: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Let a search find these pairs, either way round; returns the list of what is asked."""
    asked: list[tuple[str, str]] = []

    def pairs(queries: Sequence[str], targets: Sequence[str], *_: object, either: bool) -> homology.Pairs:
        assert either  # a fragment in train of a test sequence is a relation too
        asked.extend((query, target) for query in queries for target in targets)
        found = [
            (at, to)
            for at, query in enumerate(queries)
            for to, target in enumerate(targets)
            if (query, target) in related or (target, query) in related
        ]
        columns = np.array(found, dtype=np.int64).reshape(-1, 2)
        return homology.Pairs(columns[:, 0], columns[:, 1], np.ones(len(found)))

    monkeypatch.setattr("plft.separation.homology.pairs", pairs)
    return asked


def separation() -> Separation:
    return Separation(SEQUENCES, PROTEIN, 0.3, 0.8)


def test_parts_without_a_relation_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = searched(monkeypatch, {("A", "B")})
    parts = ["train", "train", "train", "train", "valid", "test"]
    apart = separation().keep_apart(GROUPS, parts)
    assert (apart.parts, apart.n_moved) == (parts, 0)
    assert sorted(asked) == sorted((query, target) for query in "EF" for target in "ABCD")


def test_a_family_related_to_train_moves_there_and_what_is_related_to_it_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched(monkeypatch, {("D", "E"), ("E", "F")})  # D in train; F was in test beside E
    apart = separation().keep_apart(GROUPS, ["valid", "valid", "valid", "train", "test", "test"])
    assert apart.parts == ["valid", "valid", "valid", "train", "train", "train"]
    assert apart.n_moved == 2


def test_among_folds_the_smaller_family_moves_to_the_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    searched(monkeypatch, {("A", "D")})
    apart = separation().keep_apart(GROUPS, ["1", "1", "1", "2", "2", "3"])
    assert (apart.parts, apart.n_moved) == (["1", "1", "1", "1", "2", "3"], 1)


def test_later_rounds_search_only_what_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = searched(monkeypatch, {("D", "E")})
    separation().keep_apart(GROUPS, ["valid", "valid", "valid", "train", "test", "test"])
    assert sorted(asked) == sorted(
        [(query, "D") for query in "ABCEF"] + [(query, "E") for query in "ABCF"]  # E moved to train
    )


def test_members_are_listed_in_order_of_first_occurrence() -> None:
    assert members_of([2, 0, 2, 1, 0]) == [(0, 2), (1, 4), (3,)]
