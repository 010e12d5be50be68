"""`plft train --plan`: close to what then happens, and nothing is written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import small_run
from commandline import plft
from plft.pipeline import train
from plft.planning import plan
from plft.preparation import quiet


@pytest.mark.parametrize(
    ("tuning", "training"),
    [
        ({"method": "full"}, {"epochs": 4}),
        ({"method": "head"}, {"epochs": 6}),
        ({"method": "lora"}, {"max_steps": 5}),
        ({"method": "head"}, {"max_steps": 1}),
    ],
)
def test_a_plan_counts_what_the_run_then_does(tmp_path: Path, tuning: dict, training: dict) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    config = small_run.config(data, tuning=tuning, training=training)
    found = plan(config)
    assert not (tmp_path / "run").exists()
    train(config, tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["steps"] == found["steps"]
    assert environment["parameters"] == {"trainable": found["trainable"], "total": found["parameters"]}
    assert found["memory"] > 1e8
    assert 0 < found["seconds"] < 600


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_a_plan_is_within_30_percent_of_the_time_that_training_then_takes(tmp_path: Path, method: str) -> None:
    data = small_run.write_table(tmp_path / "data.csv", n=1500)
    settings = {"model": {"name": "scratch:esm2-1m"}, "training": {"epochs": 3, "batch_residues": 2000}}
    config = small_run.config(data, tuning={"method": method}, **settings)
    ratios = []
    for attempt in range(3):  # the machine may be busy with something else for a while
        expected = plan(config)["seconds"]
        started = time.monotonic()
        train(config, tmp_path / str(attempt), say=quiet)
        ratios.append(expected / (time.monotonic() - started))
    assert any(0.7 < ratio < 1.3 for ratio in ratios), ratios


def test_the_command_says_what_a_run_would_take_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_run.write_table(tmp_path / "data.csv")
    command = ["train", "data.csv", "--model", "scratch:tiny-esm2", "--tune", "full", "--plan"]
    shown = plft(*command)
    assert shown.code == 0
    for expected in ("parameters train (100.00%)", "steps", "on this machine", "GB of memory", "Nothing was written"):
        assert expected in shown.out + shown.err
    assert {each.name for each in tmp_path.iterdir()} == {"data.csv"}
    found = json.loads(plft(*command, "--json").out)
    assert found["trainable"] == found["parameters"]


def test_a_plan_for_data_that_cannot_be_read_is_one_clear_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = plft("train", "nothing.csv", "--plan")
    assert shown.code == 1
    assert "nothing.csv" in shown.err
