"""`plft demo`: ends with predictions and a report, and says what its numbers are worth."""

from __future__ import annotations

import json
import re

import pytest
import torch

from commandline import plft
from plft.apps import demonstration


@pytest.fixture(autouse=True)
def short_demo(monkeypatch, tmp_path):
    """The demo on 60 sequences for one epoch, run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demonstration, "EPOCHS", 1)
    monkeypatch.setattr(demonstration, "N_SEQUENCES", 60)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_it_ends_with_predictions_a_report_and_what_pretraining_is_worth(tmp_path):
    result = plft("demo", "--out", "d")
    assert result.code == 0, result.err
    assert re.search(r"^P02768 .+: (signal|other) \(probability 0\.\d\d\)$", result.out, re.MULTILINE)
    *_, report, following = result.out.splitlines()
    assert report == "report: d/report.html"
    assert (tmp_path / "d" / "report.html").is_file()
    assert plft(*following.removeprefix("next: plft ").split()).code == 0
    assert "simulated" in result.err
    table = result.out[result.out.index("what pretraining is worth here") :].splitlines()
    assert [line.partition("  ")[0] for line in table[2:5]] == [trial.title for trial in demonstration.trials()]
    for line, folder in zip(table[2:5], ("d-scratch", "d-head", "d"), strict=True):
        scores = json.loads((tmp_path / folder / "metrics.json").read_text())["splits"]["test"]["metrics"]
        assert f"MCC {scores['mcc']['value']:.2f}" in line


def test_the_trials_differ_in_weights_and_tuning_alone():
    scratch, head, lora = demonstration.trials()
    assert scratch.model.startswith("scratch:")
    assert head.model == lora.model == "builtin:protein"
    assert (scratch.tune, head.tune, lora.tune) == ("full", "head", "lora")


def test_the_residue_demo_shows_one_region_per_residue(monkeypatch):
    main = demonstration.trials()[-1:]
    monkeypatch.setattr(demonstration, "trials", lambda: main)
    result = plft("demo", "--task", "token_classification", "--out", "d")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    for sequence in demonstration.EXAMPLES.values():
        regions = lines[lines.index(f"  {sequence}") + 1].strip()
        assert len(regions) == len(sequence)
        assert set(regions) <= set("nhc-")


def test_an_unknown_demo_task_is_refused_before_anything_is_written(tmp_path):
    result = plft("demo", "--task", "seq_regression")
    assert result.code == 1
    assert "Unknown demo task" in result.err
    assert list(tmp_path.iterdir()) == []
