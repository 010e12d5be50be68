"""Relatives of training sequences in the other splits."""

import json
import random

import pytest

from commandline import plft
from plft.errors import PlftError
from plft.leakage import band_names, band_of, find_leakage
from plft.records import Record, load_data

PICK = random.Random(0)
WHOLE = ["".join(PICK.choices("ACDEFGHIKLMNPQRSTVWY", k=120)) for _ in range(6)]


def altered(sequence: str) -> str:
    """Replace two residues of every ten."""
    return "".join(("W" if letter != "W" else "A") if at % 10 < 2 else letter for at, letter in enumerate(sequence))


ROWS = [
    ("t1", WHOLE[0], "train"),
    ("t2", WHOLE[1], "train"),
    ("v1", WHOLE[2], "valid"),
    ("e1", WHOLE[0], "test"),  # equal
    ("e2", altered(WHOLE[1]), "test"),  # 80 %
    ("e3", WHOLE[3], "test"),
    ("h1", WHOLE[4], "test_hard"),
]
RECORDS = [
    Record(name, sequence, "0", split, file="d.csv", row=row) for row, (name, sequence, split) in enumerate(ROWS, 1)
]


def test_bands_follow_the_identity() -> None:
    assert band_names() == ["none", "below 30 %", "30-50 %", "50-70 %", "70-90 %", "90-100 %", "100 %"]
    bands = [band_of(identity) for identity in (0, 0.29, 0.3, 0.69, 0.7, 0.999, 1.0)]
    assert bands == ["none", "below 30 %", "30-50 %", "50-70 %", "70-90 %", "90-100 %", "100 %"]


@pytest.mark.parametrize("without_mmseqs", [False, True], ids=["as it is here", "without MMseqs2"])
def test_relatives_of_train_are_counted_and_listed_nearest_first(
    without_mmseqs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_mmseqs:
        monkeypatch.setattr("plft.homology.find_mmseqs", lambda: None)
    found = find_leakage(RECORDS)
    assert list(found.splits) == ["valid", "test", "test_hard"]
    test = found.splits["test"]
    assert (test.n, test.related, found.splits["valid"].related, found.splits["test_hard"].related) == (3, 2, 0, 0)
    assert {name: count for name, count in test.bands.items() if count} == {"none": 1, "70-90 %": 1, "100 %": 1}
    assert [(each.id, each.train_id) for each in test.relatives] == [("e1", "t1"), ("e2", "t2")]
    assert test.relatives[0].place == "d.csv, row 4 (id e1)"
    assert ("k-mers" in found.method) == without_mmseqs or not without_mmseqs
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_without_train_or_without_another_split_there_is_nothing_to_compare() -> None:
    with pytest.raises(PlftError, match="needs a train split and at least one other"):
        find_leakage(RECORDS[:2])


def test_check_prints_the_bands_and_the_first_relatives(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plft.homology.find_mmseqs", lambda: None)
    table = tmp_path / "d.csv"
    table.write_text("id,sequence,split,label\n" + "".join(f"{name},{seq},{split},0\n" for name, seq, split in ROWS))
    shown = plft("check", str(table), "--leakage")
    assert shown.code == 0, shown.err
    assert (
        "2 of 3 sequences (66.7%) in test are related to train at 30 % identity over 80 % of a sequence." in shown.out
    )
    assert "d.csv, row 4 (id e1) to d.csv, row 1 (id t1): 100.0 %" in shown.out
    told = json.loads(plft("check", str(table), "--leakage", "--identity", "0.9", "--json").out)
    assert (told["leakage"]["splits"]["test"]["related"], told["leakage"]["identity"]) == (1, 0.9)


@pytest.mark.slow
def test_the_lysozymes_share_417_sequences_between_train_and_test(real_data) -> None:
    folder = real_data / "lysozyme_pf00959"
    train, test = folder / "train.fasta.gz", folder / "test.fasta.gz"
    records = load_data(train, test=test)
    from plft.audit import audit

    assert audit(records).shared["test&train"] == 417
