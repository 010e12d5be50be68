"""Baselines beside a run of `plft train`: what they leave, what they never see, and what is said of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import small_run
from commandline import plft
from plft.baseline_run import frozen_states, problem_of, with_states
from plft.baselines import NoTimeError
from plft.labels import TaskType
from plft.metrics import evaluate
from plft.pipeline import embed, train
from plft.preparation import prepare
from plft.records import Record

ON = {"baselines": {"run": True}, "training": {"epochs": 1}}


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with baselines, made on the command line, beside its data and what it printed."""
    folder = tmp_path_factory.mktemp("baselines")
    data = small_run.write_table(folder / "data.csv", n=100)
    words = ["--model", "scratch:tiny-esm2", "--tune", "full", "--epochs", "1", "--out", str(folder / "run")]
    done = plft("train", str(data), *words)
    assert done.code == 0, done.err
    (folder / "out.txt").write_text(done.out)
    return folder / "run"


def test_metrics_json_holds_each_baseline_with_intervals_and_the_paired_difference(finished: Path) -> None:
    found = metrics_of(finished)
    assert list(found["baselines"]) == ["constant", "composition", "kmers", "neighbour", "frozen"]
    assert found["baselines_left_out"] == {}
    for baseline in found["baselines"].values():
        assert set(baseline["splits"]) == {"valid", "test"}
        for split, each in baseline["splits"].items():
            own, gain = found["splits"][split]["metrics"]["mcc"], each["difference"]
            assert gain["metric"] == "mcc"
            assert gain["value"] == pytest.approx(own["value"] - each["metrics"]["mcc"]["value"])
            assert gain["low"] <= gain["value"] <= gain["high"]
            assert set(each["metrics"]) == set(found["splits"][split]["metrics"])


def test_the_console_ends_with_the_first_sentence_of_the_report(finished: Path) -> None:
    said = [line for line in (finished.parent / "out.txt").read_text().splitlines() if "best baseline" in line]
    assert len(said) == 1
    page = (finished / "report.html").read_text()
    assert f'<p class="lead">{said[0]}</p>' in page
    assert page.index(said[0]) < page.index("<strong>")
    assert "frozen backbone with logistic regression" in page
    assert "best baseline" in (finished / "README.md").read_text()


def test_the_constant_is_the_majority_of_train(finished: Path) -> None:
    rows = list(csv.DictReader((finished.parent / "data.csv").open()))
    train_labels = [row["label"] for row in rows if row["split"] == "train"]
    majority = max(sorted(set(train_labels)), key=train_labels.count)
    test_labels = [row["label"] for row in rows if row["split"] == "test"]
    accuracy = metrics_of(finished)["baselines"]["constant"]["splits"]["test"]["metrics"]["accuracy"]["value"]
    assert accuracy == pytest.approx(test_labels.count(majority) / len(test_labels))


def test_what_the_test_part_holds_changes_nothing_that_a_baseline_learns(finished: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((finished.parent / "data.csv").open()))
    other = {"no": "yes", "yes": "maybe", "maybe": "no"}
    with (tmp_path / "data.csv").open("w", newline="") as handle:
        table = csv.DictWriter(handle, list(rows[0]))
        table.writeheader()
        for row in rows:
            is_test = row["split"] == "test"
            changes = {"label": other[row["label"]], "sequence": row["sequence"][::-1]} if is_test else {}
            table.writerow(row | changes)
    words = ["--model", "scratch:tiny-esm2", "--tune", "full", "--epochs", "1", "--out", str(tmp_path / "run")]
    done = plft("train", str(tmp_path / "data.csv"), *words)
    assert done.code == 0, done.err
    for name, before in metrics_of(finished)["baselines"].items():
        after = metrics_of(tmp_path / "run")["baselines"][name]
        assert after["settings"] == before["settings"]
        assert after["splits"]["valid"]["metrics"] == before["splits"]["valid"]["metrics"]
        assert name == "constant" or after["splits"]["test"] != before["splits"]["test"]


@pytest.mark.parametrize("task", [each for each in TaskType if each is not TaskType.SEQ_CLASSIFICATION])
def test_every_task_has_its_baselines(task: TaskType, tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", task)
    run = train(small_run.config(data, task=task.value, **ON), tmp_path / "run")
    found = metrics_of(run.path)["baselines"]
    expected = {"constant", "window", "frozen"} if task.is_residue else {"constant", "composition", "kmers", "frozen"}
    assert expected <= set(found)
    if task.is_residue:  # the grid's residue labels are read off the residue itself
        metric = {TaskType.TOKEN_CLASSIFICATION: "accuracy", TaskType.TOKEN_REGRESSION: "r2"}[task]
        assert found["window"]["splits"]["test"]["metrics"][metric]["value"] > 0.95


def test_no_baselines_where_none_are_wanted(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    run = train(small_run.config(data, training={"epochs": 1}), tmp_path / "run")
    assert metrics_of(run.path)["baselines"] == {}
    assert "best baseline" not in (run.path / "report.html").read_text()
    assert "aselines" not in (run.path / "README.md").read_text()


def test_what_takes_too_long_is_left_out_and_said(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    said: list[str] = []
    settings = {"baselines": {"run": True, "minutes": 1e-7}, "training": {"epochs": 1}}
    run = train(small_run.config(data, **settings), tmp_path / "run", say=said.append)
    left_out = metrics_of(run.path)["baselines_left_out"]
    assert "k-mer logistic regression" in left_out
    assert "no k-mer logistic regression among the baselines: the time for baselines was used up" in said
    assert "Not trained: majority class" in (run.path / "report.html").read_text()


def test_frozen_features_are_those_of_plft_embed(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", n=20)
    prepared = prepare(small_run.config(data))
    states_of, width = frozen_states(prepared)
    records = prepared.parts["train"]
    embed("scratch:tiny-esm2", data, tmp_path / "embedded.csv")
    embedded = {row.pop("id"): row for row in csv.DictReader((tmp_path / "embedded.csv").open())}
    expected = np.array([[float(each) for each in embedded[record.id].values()] for record in records])
    assert expected.shape[1] == width
    assert np.allclose(states_of(records), expected, atol=1e-5)


def test_a_backbone_too_slow_for_the_budget_is_left_out_or_learns_from_fewer_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_run.write_table(tmp_path / "data.csv", n=1000)
    prepared = prepare(small_run.config(data, training={"metric": "mcc"}))
    labels = [prepared.labels.encode(each) for each in prepared.parts["test"]]
    outputs = [np.eye(3)[int(each)] for each in labels]
    evaluations = {"test": evaluate(prepared.task, outputs, labels, prepared.labels.classes, resamples=0)}
    problem, parts = problem_of(prepared, evaluations)
    monkeypatch.setattr("plft.baseline_run.seconds_per_residue", lambda *_: 0.01)
    with pytest.raises(NoTimeError, match="its hidden states take"):
        with_states(problem, parts, prepared, 60.0)
    residues = {name: sum(len(each.sequence) for each in part) for name, part in prepared.parts.items()}
    enough = 0.01 * (residues["test"] + residues["valid"] + 0.9 * residues["train"]) / 0.6
    fewer, _, note = with_states(problem, parts, prepared, enough)
    assert 500 <= len(fewer.train.sequences) < 600
    assert note == f"states of {len(fewer.train.sequences)} of 600 training sequences"


def test_no_sequence_goes_through_the_frozen_backbone_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_run.write_table(tmp_path / "data.csv", n=60)
    prepared = prepare(small_run.config(data, training={"metric": "mcc"}))
    answered = {}
    for name in ("valid", "test"):
        labels = [prepared.labels.encode(each) for each in prepared.parts[name]]
        outputs = [np.eye(3)[int(each)] for each in labels]
        answered[name] = evaluate(prepared.task, outputs, labels, prepared.labels.classes, resamples=0)
    seen: list[str] = []

    def states_of(records: Sequence[Record]) -> list[np.ndarray]:
        seen.extend(each.id for each in records)
        return [np.zeros(4) for _ in records]

    monkeypatch.setattr("plft.baseline_run.frozen_states", lambda _: (states_of, 4))
    monkeypatch.setattr("plft.baseline_run.seconds_per_residue", lambda *_: 1e-9)
    problem, parts = problem_of(prepared, answered)
    _, asked, _ = with_states(problem, parts, prepared, 60.0)
    assert all(len(list(asked[name].hidden)) == len(parts[name].sequences) for name in answered)
    assert sorted(seen) == sorted(each.id for part in prepared.parts.values() for each in part)


def test_a_baseline_that_memory_cannot_hold_is_left_out_and_the_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("plft.baseline_run.frozen_states", too_large)
    data = small_run.write_table(tmp_path / "data.csv")
    run = train(small_run.config(data, baselines={"run": True}, training={"epochs": 1}), tmp_path / "run")
    assert "out of memory" in metrics_of(run.path)["baselines_left_out"].values()
    assert "kmers" in metrics_of(run.path)["baselines"]
