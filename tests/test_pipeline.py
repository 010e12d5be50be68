"""The whole run: what it may delete, what it refuses to go on with, and who consents to foreign code."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import plft as library
import small_run
import tiny
from commandline import plft
from plft.errors import PlftError
from plft.pipeline import evaluate, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run beside its data."""
    folder = tmp_path_factory.mktemp("finished")
    data = small_run.write_table(folder / "data.csv")
    settings = {"tuning": {"method": "lora"}, "training": {"epochs": 1}}
    return train(small_run.config(data, **settings), folder / "run").path


def test_overwriting_a_run_leaves_every_other_file_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    data = small_run.write_table(tmp_path / "run" / "data.csv")
    (tmp_path / "run" / "run.yaml").write_text("task: auto\n")
    (tmp_path / "run" / "notes.md").write_text("mine")
    before = data.read_bytes()
    train(small_run.config(data, training={"max_steps": 1}), tmp_path / "run", overwrite=True)
    assert data.read_bytes() == before
    assert (tmp_path / "run" / "notes.md").read_text() == "mine"


def test_evaluate_and_resume_refuse_data_that_have_changed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    config = (tmp_path / "copy" / "run" / "run.yaml").read_text()
    (tmp_path / "copy" / "run" / "run.yaml").write_text(config.replace(str(finished.parent), str(tmp_path / "copy")))
    assert evaluate(tmp_path / "copy" / "run")["split"] == "test"
    with (tmp_path / "copy" / "data.csv").open("a") as handle:
        handle.write("new,ACDEFGHIKLMN,yes,test\n")
    with pytest.raises(PlftError, match="have changed since the run began"):
        evaluate(tmp_path / "copy" / "run")
    done = plft("train", "--out", str(tmp_path / "copy" / "run"), "--resume")
    assert done.code == 1
    assert "have changed since the run began" in done.err


def test_an_adapter_with_missing_or_foreign_weights_is_refused(finished: Path, tmp_path: Path) -> None:
    for at, change in enumerate((lambda name: name.endswith("lora_B.weight"), lambda name: True)):
        folder = tmp_path / str(at)
        shutil.copytree(finished, folder)
        file = folder / "model" / "adapter" / "adapter_model.safetensors"
        state = load_file(file)
        kept = {name: each for name, each in state.items() if not change(name)} if at == 0 else None
        save_file(kept if kept is not None else {name: each[:1] for name, each in state.items()}, file)
        with pytest.raises(PlftError, match="is missing or does not fit this model"):
            library.load(folder)


def test_a_run_folder_cannot_consent_to_foreign_code_for_whoever_loads_it(finished: Path, tmp_path: Path) -> None:
    base = tiny.save(tiny.checkpoint("esm2"), tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"auto_map": {"AutoModel": "code.Model"}}))
    (base / "code.py").write_text("raise SystemExit('foreign code ran')\n")
    shutil.copytree(finished, tmp_path / "run")
    card_file = tmp_path / "run" / "model" / "plft.json"
    card = json.loads(card_file.read_text())
    card |= {"backbone": None, "base": {"name": str(base), "revision": None, "sha256": None, "trust_remote_code": True}}
    card_file.write_text(json.dumps(card))
    with pytest.raises(PlftError, match="trust-remote-code"):
        library.load(tmp_path / "run")


class Scale(nn.Module):
    """A head of the user's own with one weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden_states.mean(1))


def test_two_runs_with_the_same_head_object_do_not_share_its_weights(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    head = Scale(32)
    before = head.linear.weight.detach().clone()
    train(small_run.config(data, training={"max_steps": 2}), tmp_path / "run", head=head)
    assert torch.equal(head.linear.weight, before)


def test_split_takes_rows_whose_keys_differ(tmp_path: Path) -> None:
    rows = [
        {"sequence": f"ACDEFGHIKL{letter}", "label": "ab"[at % 2]} for at, letter in enumerate("ACDEFGHIKLMNPQRSTVWY")
    ]
    rows[3]["note"] = "only here"
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = plft("split", str(tmp_path / "data.jsonl"), "-o", str(tmp_path / "split.csv"))
    assert done.code == 0, done.err
    assert (tmp_path / "split.csv").read_text().splitlines()[0] == "sequence,label,split,note"


def test_a_mistyped_run_folder_is_not_taken_for_a_model_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.fasta").write_text(">a\nMKTAYIAK\n")
    for name in ("r5", "./runs/r5"):
        done = plft("predict", name, "new.fasta", "-o", "out.csv")
        assert done.code == 1
        assert f"There is no run folder '{name}'" in done.err


def test_prediction_says_how_many_letters_it_mapped(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.fasta").write_text(">a\nMKTAYIAKJJ*QRQISFVK\n")
    done = plft("predict", str(finished), str(tmp_path / "new.fasta"), "-o", str(tmp_path / "out.csv"))
    assert done.code == 0, done.err
    assert "3 letters are not in the alphabet" in done.err


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    words = ["train", str(data), "--model", "scratch:tiny-esm2", "--epochs", "5000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "plft", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "plft train --resume goes on" in err


def test_max_steps_does_not_lengthen_a_run(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    train(small_run.config(data, training={"epochs": 1, "max_steps": 500}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["epochs"] == 1


def test_scoring_training_sequences_is_said(finished: Path) -> None:
    done = plft("evaluate", str(finished), str(finished.parent / "data.csv"), "--split", "train")
    assert done.code == 0, done.err
    assert "36 of these 36 sequences were trained on" in done.err


def test_saved_files_may_be_read_by_others(finished: Path) -> None:
    assert all(each.stat().st_mode & 0o044 == 0o044 for each in (finished / "model").rglob("*.safetensors"))


def test_running_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("plft.pipeline.build", exhausted)
    data = small_run.write_table(tmp_path / "data.csv")
    done = plft("train", str(data), "--model", "scratch:tiny-esm2", "--out", str(tmp_path / "run"))
    assert done.code == 1
    assert "Lower training.batch_residues" in done.err


def test_resume_refuses_other_settings(finished: Path) -> None:
    done = plft("train", "--out", str(finished), "--resume", "--epochs", "4")
    assert done.code == 1
    assert "but training.epochs changed" in done.err


def test_another_file_is_scored_although_the_data_of_the_run_are_gone(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    config = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(config.replace(str(finished.parent), str(tmp_path / "gone")))
    done = plft("evaluate", str(run), str(tmp_path / "copy" / "data.csv"), "--split", "train")
    assert done.code == 0, done.err
    assert "were trained on" not in done.err


def test_prediction_in_bf16_is_near_that_in_fp32_and_has_to_be_asked_for(finished: Path, tmp_path: Path) -> None:
    exact, default, fast = (library.load(finished, **how) for how in ({"precision": "fp32"}, {}, {"precision": "bf16"}))
    sequences = ["ACDEFGHIKLMNPQRSTVWY" * n for n in (1, 2, 3)]
    expected, same, near = (np.stack(each.probabilities(sequences)) for each in (exact, default, fast))
    assert np.array_equal(same, expected)
    assert not np.array_equal(near, expected)
    assert np.allclose(near, expected, atol=0.02)
    result = plft("predict", str(finished), str(finished.parent / "data.csv"), "-o", "p.csv", "--precision", "bf61")
    assert result.code == 1
    assert "bf16" in result.err


def test_adapters_are_merged_for_prediction(finished: Path) -> None:
    names = [name for name, _ in library.load(finished).model.named_parameters()]
    assert names
    assert not any("lora" in name for name in names)
