"""Configurations from files, flags and --set."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plft.config import make_config, merged

CHOSEN = {
    "data": {"file": "a.csv", "max_residues": 500},
    "model": {"name": "some/model", "revision": "abc", "head": "mlp", "pooling": "mean", "head_layers": 1},
    "tuning": {"method": "lora", "rank": 4},
    "training": {"learning_rate": 5e-4, "epochs": 7, "batch_residues": 9000},
}
RECORDED = make_config(CHOSEN).model_dump(mode="json")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The run.yaml of a run, where every key is explicit."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RECORDED))
    return tmp_path / "run.yaml"


def without(section: str, *keys: str) -> dict[str, object]:
    return {key: each for key, each in RECORDED[section].items() if key not in keys}


def flags(name: str | None = None, tune: str | None = None, rate: float | None = None) -> dict[str, dict[str, object]]:
    return {"model": {"name": name}, "tuning": {"method": tune}, "training": {"learning_rate": rate}}


def test_a_record_is_repeated_as_it_is(record: Path) -> None:
    assert merged(record, flags(), None, []) == RECORDED
    assert merged(record, flags("some/model", "lora"), None, []) == RECORDED


def test_what_follows_from_a_setting_that_changes_is_chosen_anew(record: Path) -> None:
    tuned = merged(record, flags(tune="full"), None, [])
    assert tuned["training"] == without("training", "learning_rate")
    assert tuned["model"] == RECORDED["model"]
    other = merged(record, flags("another/model"), None, [])
    assert other["model"] == without("model", "revision") | {"name": "another/model"}
    assert other["training"] == without("training", "learning_rate", "batch_residues")
    assert other["data"] == without("data", "max_residues")
    head = merged(record, flags(), None, ["model.head=cnn"])
    assert head["model"] == without("model", "pooling", "head_layers") | {"head": "cnn"}


def test_what_is_given_with_it_is_kept(record: Path) -> None:
    tuned = merged(record, flags(tune="full", rate=1e-3), None, ["model.revision=def"])
    assert tuned["training"]["learning_rate"] == 1e-3
    assert tuned["model"]["revision"] == "def"


def test_a_configuration_of_the_users_own_is_never_forgotten(tmp_path: Path) -> None:
    own = tmp_path / "run.yaml"
    own.write_text(yaml.safe_dump(CHOSEN))
    assert merged(own, flags(tune="full"), None, [])["training"] == CHOSEN["training"]


def test_a_model_that_is_named_again_on_resume_is_the_same_one(record: Path) -> None:
    for name in ("some/model", "some/model@main"):
        assert merged(record, flags(name), None, [], resumed=True) == RECORDED
    assert merged(record, flags("another/model"), None, [], resumed=True)["model"]["name"] == "another/model"


def test_what_is_varied_is_chosen_anew_for_each_value(record: Path) -> None:
    values = merged(record, flags(), None, ["data.max_residues=300"], varied=(("model", "name"), ("tuning", "method")))
    assert values["training"] == without("training", "learning_rate", "batch_residues")
    assert values["model"] == without("model", "revision")
    assert values["data"]["max_residues"] == 300


@pytest.mark.parametrize(("given", "kept"), [(999, "999"), (-1.5, "-1.5"), ("NA", "NA"), (None, None)])
def test_a_sentinel_may_be_a_number(given: object, kept: object) -> None:
    assert make_config({"data": {"file": "a.csv", "missing": given}}).data.missing == kept
