"""Processes that a run starts itself, against one process that takes as much in a step."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import tiny
from fakes import StopAt
from plft.config import language_model_config
from plft.errors import PlftError
from plft.language_preparation import worker_bytes
from plft.language_run import fitting_workers, run_language_model
from plft.ranks import processes
from plft.together import most_workers, train_together


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("corpus") / "proteins.fasta"
    file.write_text("".join(f">s{n}\n{'MKTAYIAKQRQISFVKSHFSRQ'[n % 7 :] * (1 + n % 4)}\n" for n in range(200)))
    return str(file)


def settings(corpus: str, **others):
    values = {"files": [corpus], "model": "scratch:tiny-esm2", "steps": 6, "crop": 64, "batch_residues": 256}
    values |= {"step_residues": 1024, "valid": [corpus], "precision": "fp32"} | others
    return language_model_config(values)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """A run of two processes: its folder and its metrics."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    return folder, run_language_model(settings(corpus, workers=2, save_steps=2), folder)


def test_workers_learn_what_one_process_learns_that_takes_as_much_in_a_step(tmp_path, corpus, undisturbed):
    one = run_language_model(settings(corpus), tmp_path / "one")
    folder, two = undisturbed
    expected, found = weights(tmp_path / "one"), weights(folder)
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in expected)
    assert two["steps"] == one["steps"]
    assert (two["tokens"], two["predicted_share"]) == (one["tokens"], one["predicted_share"])
    assert two["perplexity"]["before"] == pytest.approx(one["perplexity"]["before"], rel=1e-4)
    assert "2 processes" in two["hardware"]
    assert processes() == 1  # and this process is alone again
    assert not dist.is_initialized()


def test_workers_that_are_interrupted_end_with_the_weights_of_undisturbed_ones(tmp_path, corpus, undisturbed):
    config = settings(corpus, workers=2, save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run_language_model(config, tmp_path / "broken", resume=True, callbacks=[StopAt(3)])
    run_language_model(config, tmp_path / "broken", resume=True)
    expected, found = weights(undisturbed[0]), weights(tmp_path / "broken")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def _meet(leaver: int) -> None:
    dist.init_process_group("gloo")
    if int(os.environ["RANK"]) == leaver:
        os._exit(9)
    try:
        while True:
            dist.all_reduce(torch.ones(1))
            time.sleep(0.1)
    finally:
        dist.destroy_process_group()


def test_a_worker_that_was_ended_is_a_line_for_the_user():
    with pytest.raises(PlftError, match="Take fewer --workers"):
        train_together(2, _meet, 1)
    assert "RANK" not in os.environ


@pytest.mark.parametrize(("threads", "gib", "expected"), [(4, 64, 4), (4, 7, 2), (4, 1, 1), (64, 1000, 8)])
def test_there_are_as_many_workers_as_threads_and_memory_allow(threads, gib, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert most_workers(gib * 2**30) == expected


def budgeted(model: str = "scratch:tiny-esm2", **budget):
    return language_model_config({"files": ["some.fasta"], "model": model} | budget)


def test_only_a_budget_in_minutes_starts_workers_unasked(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("plft.language_run.free_bytes", lambda: sys.maxsize)
    assert fitting_workers(budgeted(minutes=5)) == 4
    assert fitting_workers(budgeted(steps=5)) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher has started them
    assert fitting_workers(budgeted(minutes=5)) == 1


def test_a_large_model_has_fewer_workers(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("plft.language_run.free_bytes", lambda: 32 * 2**30)
    assert fitting_workers(budgeted("scratch:esm2-1m", minutes=5)) == 8
    assert fitting_workers(budgeted("scratch:esm2-35m", minutes=5)) == 4
    assert fitting_workers(budgeted("scratch:esm2-650m", minutes=5)) == 1
    assert fitting_workers(budgeted("no-such-model", minutes=5)) == 8  # refused when it is read


@pytest.mark.parametrize("family", tiny.TINY)
def test_what_a_process_takes_is_known_for_every_family(family):
    assert 2**29 < worker_bytes(budgeted(f"scratch:tiny-{family}", steps=1)) < 2**30


def test_workers_are_for_machines_without_a_gpu(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("plft.language_run.has_accelerator", lambda: True)
    with pytest.raises(PlftError, match="accelerate launch"):
        run_language_model(settings(corpus, workers=2), tmp_path / "m")


def test_what_keeps_a_worker_from_starting_is_the_error(monkeypatch):
    def refuse(_: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    with pytest.raises(OSError, match="no more processes"):
        train_together(2, _meet, 1)
