"""Configurations from files, flags and --set."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plft.config import merged

RECORDED = {
    "data": {"file": "a.csv", "max_residues": 500},
    "model": {"name": "some/model", "revision": "abc", "head": "linear", "pooling": "mean", "head_layers": 1},
    "tuning": {"method": "lora", "rank": 4},
    "training": {"learning_rate": 5e-4, "epochs": 7, "batch_residues": 9000},
}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The run.yaml of a run."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RECORDED))
    return tmp_path / "run.yaml"


def flags(name: str | None = None, tune: str | None = None, rate: float | None = None) -> dict[str, dict[str, object]]:
    return {"model": {"name": name}, "tuning": {"method": tune}, "training": {"learning_rate": rate}}


def test_a_record_is_repeated_as_it_is(record: Path) -> None:
    assert merged(record, flags(), None, []) == RECORDED
    assert merged(record, flags("some/model", "lora"), None, []) == RECORDED


def test_what_follows_from_a_setting_that_changes_is_chosen_anew(record: Path) -> None:
    tuned = merged(record, flags(tune="full"), None, [])
    assert tuned["training"] == {"epochs": 7, "batch_residues": 9000}
    assert tuned["model"] == RECORDED["model"]
    other = merged(record, flags("another/model"), None, [])
    assert other["model"] == {"name": "another/model", "head": "linear", "pooling": "mean", "head_layers": 1}
    assert other["training"] == {"epochs": 7}
    head = merged(record, flags(), None, ["model.head=cnn"])
    assert head["model"] == {"name": "some/model", "revision": "abc", "head": "cnn"}


def test_what_is_given_with_it_is_kept(record: Path) -> None:
    tuned = merged(record, flags(tune="full", rate=1e-3), None, ["model.revision=def"])
    assert tuned["training"]["learning_rate"] == 1e-3
    assert tuned["model"]["revision"] == "def"


def test_a_configuration_of_the_users_own_is_never_forgotten(record: Path) -> None:
    own = record.with_name("mine.yaml")
    own.write_text(record.read_text())
    assert merged(own, flags(tune="full"), None, [])["training"]["learning_rate"] == 5e-4


def test_a_model_that_is_named_again_on_resume_is_the_same_one(record: Path) -> None:
    for name in ("some/model", "some/model@main"):
        assert merged(record, flags(name), None, [], resumed=True) == RECORDED
    assert merged(record, flags("another/model"), None, [], resumed=True)["model"]["name"] == "another/model"
