"""Running out of memory: the same results, in smaller pieces."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import grid
import small_run
import tiny
from plft.batching import Collator
from plft.dataset import build_dataset
from plft.errors import PlftError
from plft.labels import LabelSpace, TaskType
from plft.memory import (
    Pieces,
    activation_bytes,
    free_bytes,
    in_pieces,
    pieces_that_fit,
    ran_out_of_memory,
)
from plft.model import PLMTaskModel
from plft.pipeline import train


@pytest.fixture
def small_memory(monkeypatch):
    """A machine that holds a given number of tokens; returns the sizes of the batches that it ran."""
    ran: list[int] = []

    def limit(tokens: int) -> list[int]:
        forward = PLMTaskModel.forward

        def checked(model, input_ids, *arguments, **named):
            if input_ids.numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            ran.append(len(input_ids))
            return forward(model, input_ids, *arguments, **named)

        monkeypatch.setattr(PLMTaskModel, "forward", checked)
        return ran

    return limit


@pytest.mark.parametrize("task", [TaskType.SEQ_CLASSIFICATION, TaskType.TOKEN_REGRESSION])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_where_memory_runs_out_is_the_same_training(tmp_path, small_memory, task, accumulation):
    data = small_run.write_table(tmp_path / "data.csv", task)
    settings = {"model": {"head_dropout": 0.0}, "training": {"accumulation": accumulation}}
    config = small_run.config(data, **settings)
    train(config, tmp_path / "roomy")
    ran = small_memory(100)  # batches hold up to 200 tokens
    train(config, tmp_path / "tight")
    assert max(ran) > 1
    roomy, tight = (small_run.history(tmp_path / name) for name in ("roomy", "tight"))
    for row, same in zip(tight, roomy, strict=True):
        assert row == pytest.approx(same, rel=1e-3, abs=1e-5, nan_ok=True)
    found, expected = (load_file(tmp_path / name / "model/trained.safetensors") for name in ("tight", "roomy"))
    assert all(torch.allclose(found[name], each, atol=1e-4) for name, each in expected.items())
    metrics = [(tmp_path / name / "predictions/test.csv").read_text().count("\n") for name in ("roomy", "tight")]
    assert metrics[0] == metrics[1] > 1


def test_a_sequence_that_does_not_fit_at_all_is_one_clear_error(tmp_path, small_memory):
    data = small_run.write_table(tmp_path / "data.csv")
    small_memory(2)
    with pytest.raises(PlftError, match="Memory does not hold the training of a single sequence"):
        train(small_run.config(data), tmp_path / "run")


def test_pieces_hold_every_sequence_once_without_the_padding_of_others():
    checkpoint, task = tiny.checkpoint("esm2"), TaskType.TOKEN_CLASSIFICATION
    records = grid.records("esm2", task, 7)
    labels = LabelSpace.fit(task, records)
    dataset = build_dataset(
        records, checkpoint.residue_tokenizer, labels, is_residue_task=True, max_residues=1000, extra_columns=()
    )
    batch = Collator(dataset)([dataset[index] for index in range(7)])
    pieces = list(in_pieces(batch | {"names": list("abcdefg"), "whole": torch.tensor(1.0)}, 3))
    assert [len(each["input_ids"]) for each in pieces] == [3, 2, 2]
    assert "".join(name for each in pieces for name in each["names"]) == "abcdefg"
    assert all(each["whole"] == 1 for each in pieces)
    assert torch.equal(torch.cat([each["sequence_weights"] for each in pieces]), batch["sequence_weights"])
    for each in pieces:
        assert each["input_ids"].shape == each["attention_mask"].shape
        assert each["attention_mask"].any(0).all()
    assert len(list(in_pieces(batch, 99))) == 7


def test_other_errors_are_not_mistaken_for_a_lack_of_memory():
    assert not ran_out_of_memory(RuntimeError("shape mismatch"))
    assert ran_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))

    def broken(batch):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        Pieces().run(0, {"input_ids": torch.zeros(2, 2)}, broken, lambda: None)


def test_a_batch_that_memory_would_not_hold_begins_in_pieces(tmp_path, monkeypatch):
    config = tiny.checkpoint("esm2").config
    needed = activation_bytes(config, 200, 50, "fp32")
    assert needed == 68 * config.hidden_size * 200 * config.num_hidden_layers
    monkeypatch.setattr("plft.memory.free_bytes", lambda: needed)
    assert pieces_that_fit(needed) == 2
    assert pieces_that_fit(needed // 2) == 1
    assert pieces_that_fit(5 * needed) == 8
    assert (
        activation_bytes(config, 200, 50, "fp32", frozen=config.num_hidden_layers - 1) * config.num_hidden_layers
        == needed
    )
    assert activation_bytes(config, 200, 50, "fp32", frozen=None) == 0
    monkeypatch.setattr("plft.memory.free_bytes", lambda: needed // 4)
    ran = []
    run = Pieces.run
    monkeypatch.setattr(Pieces, "run", lambda pieces, *rest: ran.append(pieces.count) or run(pieces, *rest))
    train(small_run.config(small_run.write_table(tmp_path / "data.csv"), training={"max_steps": 2}), tmp_path / "run")
    assert len(ran) == 2
    assert min(ran) > 1


def test_files_in_the_cache_of_the_system_count_as_free_and_the_limit_of_a_container_holds(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 5000 kB\n")
    monkeypatch.setattr("plft.memory.MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("plft.memory.GROUP", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert free_bytes() == 5_120_000
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 500000\n")
    assert free_bytes() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() == 5_120_000


STEPS = """
import resource
import sys
import torch
from plft.memory import keep_freed_memory

def step():
    kept = [torch.ones(2**22) for _ in range(4)]

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_used_again():
    """Beside a process whose C library returns every large block (by itself it learns to return fewer)."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    cleared = {}
    for way in ("kept", "returned"):
        command = [sys.executable, "-c", STEPS, way]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        cleared[way] = int(done.stdout)
    if cleared["returned"] < 100e6:
        pytest.skip("pages are so large here that clearing them is not seen")
    assert cleared["kept"] < cleared["returned"] / 3
