"""What a run keeps of its test set, and that its metrics follow from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import small_run
from plft.errors import PlftError
from plft.labels import TaskType
from plft.metrics import evaluate
from plft.outputs import read_outputs, write_outputs
from plft.pipeline import train
from plft.runfolder import RunFolder


@pytest.mark.parametrize("task", list(TaskType))
def test_the_metrics_of_a_run_follow_from_what_it_kept(task: TaskType, tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", task)
    run = train(small_run.config(data, task=task.value, training={"max_steps": 2}), tmp_path / "run")
    found = run.metrics
    for split in ("valid", "test"):
        outputs, targets = read_outputs(RunFolder(run.path).outputs_file(split))
        again = evaluate(task, outputs, targets, found["classes"], found["columns"])
        assert json.loads(json.dumps(again.to_json())) == found["splits"][split]


def test_outputs_of_any_shape_come_back_as_they_were(tmp_path: Path) -> None:
    outputs = [np.array([0.1, 0.9]), np.array([1 / 3, 2 / 3])]
    targets = [np.asarray(1), np.asarray(-100)]
    write_outputs(tmp_path / "a.safetensors", outputs, targets)
    residues = [np.ones((3, 2), np.float32), np.zeros((5, 2), np.float32)]
    labels = [np.arange(3), np.arange(5)]
    write_outputs(tmp_path / "b.safetensors", residues, labels)
    for name, given in (("a", (outputs, targets)), ("b", (residues, labels))):
        for ours, theirs in zip(read_outputs(tmp_path / f"{name}.safetensors"), given, strict=True):
            assert [each.shape for each in ours] == [each.shape for each in theirs]
            assert all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))
            assert ours[0].dtype == theirs[0].dtype


def test_outputs_may_be_laid_out_by_columns(tmp_path: Path) -> None:
    outputs = [np.asfortranarray(np.arange(n * 3.0).reshape(n, 3)) for n in (4, 2)]
    write_outputs(tmp_path / "a.safetensors", outputs, [np.arange(4), np.arange(2)])
    found, _ = read_outputs(tmp_path / "a.safetensors")
    assert all(np.array_equal(*pair) for pair in zip(found, outputs, strict=True))


def test_a_missing_or_damaged_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlftError, match="is missing"):
        read_outputs(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PlftError, match="damaged"):
        read_outputs(tmp_path / "bad.safetensors")
