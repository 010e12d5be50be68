"""Training: resume, several processes, accumulation, early stopping, weights, precision, checkpointing, seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_run

from plft.config import make_config
from plft.pipeline import train

HERE = Path(__file__).parent
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


# --- resume


def kill_and_resume(tmp_path: Path, moments: list[str], **sections: object) -> Path:
    """An undisturbed run, and one run per moment that was killed then and resumed; returns the folder of all."""
    values = small_run.values(small_run.write_table(tmp_path / "data.csv"), **sections)
    (tmp_path / "config.json").write_text(json.dumps(values))
    pairs = [part for moment in ["never", *moments] for part in (str(tmp_path / moment), moment)]
    command = [sys.executable, str(HERE / "interrupted.py"), str(tmp_path / "config.json"), *pairs]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["never", "0", *(word for moment in moments for word in (moment, "-9"))], done.stderr
    for moment in moments:
        train(make_config(values), tmp_path / moment, resume=True)
    return tmp_path


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical weights, equal metrics, predictions and history."""
    for file in ("model/trained.safetensors", "metrics.json", "predictions/test.csv"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), (other.name, file)
    assert small_run.history(one) == small_run.history(other), other.name


def test_a_run_killed_at_any_moment_resumes_to_the_same_result(tmp_path: Path) -> None:
    moments = ["step-1", "step-5", "save-6", "step-8", "save-12", "scoring"]  # 6 steps an epoch, a checkpoint every 3
    kill_and_resume(tmp_path, moments, training={"save_steps": 3})
    for moment in moments:
        assert_same_run(tmp_path / "never", tmp_path / moment)
    evaluated = [row["step"] for row in small_run.history(tmp_path / "step-8") if "valid_loss" in row]
    assert evaluated == [3, 6, 9, 12]


def test_lora_with_accumulation_resumes_to_the_same_result(tmp_path: Path) -> None:
    moments = ["step-2", "save-4"]
    training = {"save_steps": 2, "accumulation": 2, "batch_residues": 120, "max_steps": 7}
    kill_and_resume(tmp_path, moments, tuning={"method": "lora", "dropout": 0.2}, training=training)
    for moment in moments:
        assert_same_run(tmp_path / "never", tmp_path / moment)
        adapter = "model/adapter/adapter_model.safetensors"
        assert (tmp_path / "never" / adapter).read_bytes() == (tmp_path / moment / adapter).read_bytes()


def test_a_run_that_stopped_early_does_not_train_on_when_it_is_resumed(tmp_path: Path) -> None:
    training = {"epochs": 9, "early_stopping": 1, "learning_rate": 1e-9}  # never better than after the first epoch
    kill_and_resume(tmp_path, ["save-12", "scoring"], training=training)
    for moment in ("save-12", "scoring"):
        assert_same_run(tmp_path / "never", tmp_path / moment)
    assert small_run.history(tmp_path / "scoring")[-1]["step"] == 12


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path) -> None:
    from plft.training import last_checkpoint

    for name, state in (("checkpoint-9", '{"step": 9}'), ("checkpoint-10", '{"ste'), ("checkpoint-11", None)):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert last_checkpoint(tmp_path / "checkpoint-11") is None
