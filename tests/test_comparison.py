"""plft compare: what it runs, that it goes on where it was killed, and what its table says."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import plft as package
import small_run
from commandline import plft
from fakes import StopAt
from plft import comparison
from plft.comparison import compare
from plft.comparison_data import read_data_set, unique
from plft.config import make_config
from plft.errors import PlftError
from plft.labels import TaskType
from plft.outputs import read_outputs, write_outputs
from plft.standings import refuse_other_classes

QUICK = {
    "model": {"head_dropout": 0.3},
    "training": {"epochs": 1, "batch_residues": 200, "precision": "fp32", "early_stopping": None, "save_steps": 3},
    "calibration": {"neighbours": 0},
}
WITHOUT = QUICK | {"baselines": {"run": False}}
CLOCK = ("seconds", "peak_memory")
TINY = "scratch:tiny-esm2"


@dataclass(frozen=True)
class Finished:
    """A comparison, and what was said on the way."""

    folder: Path
    results: dict[str, Any]
    said: list[str]

    def row(self, tune: str) -> dict[str, Any]:
        return next(row for row in self.results["rows"] if row["tune"] == tune)

    def metrics(self, tune: str) -> list[dict[str, Any]]:
        files = sorted((self.folder / "runs/data/scratch-tiny-esm2" / tune).glob("*/metrics.json"))
        return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One model, two tuning methods, two seeds, with baselines."""
    folder = tmp_path_factory.mktemp("comparison")
    data = small_run.write_table(folder / "data.csv", TaskType.SEQ_REGRESSION, n=80)
    said: list[str] = []
    found = compare(data, [TINY], ["head", "full"], folder / "out", seeds=2, config=QUICK, say=said.append)
    return Finished(found.path, found.results, said)


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open()))


# --- what it says


def test_the_score_of_a_cell_is_the_mean_of_what_its_runs_say(finished: Finished) -> None:
    for tune in ("head", "full"):
        values = [each["splits"]["test"]["metrics"]["spearman"]["value"] for each in finished.metrics(tune)]
        row = finished.row(tune)
        assert row["value"] == pytest.approx(np.mean(values))
        assert [row["lowest"], row["highest"]] == [min(values), max(values)]
        assert row["low"] < row["value"] < row["high"]
        assert row["seeds"] == 2


def test_differences_are_to_the_frozen_model(finished: Finished) -> None:
    head, full = finished.row("head"), finished.row("full")
    assert finished.results["reference"] == "head"
    assert full["difference"]["value"] == pytest.approx(full["value"] - head["value"])
    assert head["difference"]["value"] is None
    assert full["p_corrected"] == full["p"]  # one test needs no correction
    assert full["significant"] == (full["p"] < 0.05)


def test_the_best_baseline_is_a_line_of_the_table(finished: Finished) -> None:
    baselines = finished.results["data"]["data"]["baselines"]
    assert {"ridge regression on composition and length", f"frozen backbone with ridge regression, {TINY}"} <= {
        each["title"] for each in baselines
    }
    values = [each["value"] for each in baselines]
    assert values == sorted(values, reverse=True)
    full = finished.row("full")
    assert full["over_baseline"]["value"] == pytest.approx(full["value"] - values[0])
    assert "best baseline" in (finished.folder / "report.html").read_text()
    assert all(each["baselines"] == {} for tune in ("head", "full") for each in finished.metrics(tune))


def test_cost_stands_beside_quality(finished: Finished) -> None:
    for row in finished.results["rows"]:
        assert row["seconds"] > 0
        assert 0 < row["trainable"] <= row["parameters"]
    assert finished.row("head")["trainable"] < finished.row("full")["trainable"] == finished.row("full")["parameters"]


def test_the_csv_has_one_row_for_each_cell(finished: Finished) -> None:
    rows = table(finished.folder / "comparison.csv")
    assert [(row["data"], row["model"], row["tune"]) for row in rows] == [("data", TINY, t) for t in ("head", "full")]
    assert float(rows[1]["difference_low"]) == finished.row("full")["difference"]["low"]
    assert rows[0]["difference"] == rows[0]["p"] == ""


def test_runs_are_ordinary_run_folders_on_one_test_set(finished: Finished) -> None:
    runs = sorted((finished.folder / "runs/data/scratch-tiny-esm2").glob("*/*"))
    assert [each.relative_to(runs[0].parents[1]).as_posix() for each in runs] == [
        *("full/seed-0", "full/seed-1", "head/seed-0", "head/seed-1")
    ]
    ids = {tuple(row["id"] for row in table(each / "predictions/test.csv")) for each in runs}
    assert len(ids) == 1
    assert not [each for each in runs if (each / "checkpoints").exists()]
    assert plft("evaluate", str(runs[0]), "--json").code == 0


def test_the_page_and_the_heat_map_stand_alone(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert (finished.folder / "heatmap.svg").read_text().startswith("<svg")
    shown = f"{finished.row('full')['difference']['value']:+.3f}".replace("-", "−")
    assert shown in page
    assert shown in (finished.folder / "heatmap.svg").read_text()


# --- going on


def test_the_same_command_again_trains_nothing_and_says_the_same(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(comparison, "write_baselines", lambda *_, **__: pytest.fail("baselines trained again"))
    data = finished.folder.parent / "data.csv"
    again = compare(data, [TINY], ["head", "full"], finished.folder, seeds=2, config=QUICK)
    assert again.results == finished.results


def without_clock(folder: Path) -> list[dict[str, str]]:
    """comparison.csv without what differs from run to run."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in table(folder / "comparison.csv")]


def test_a_run_that_was_broken_off_is_taken_up_and_the_table_is_that_of_an_undisturbed_one(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(finished.folder, tmp_path / "out"))
    broken = out / "runs/data/scratch-tiny-esm2/full/seed-1"
    shutil.rmtree(broken)
    data, real = finished.folder.parent / "data.csv", comparison.train

    def go_on() -> None:
        compare(data, [TINY], ["head", "full"], out, seeds=2, config=QUICK)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options | {"callbacks": [StopAt(4)]})

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go_on()
    assert (broken / "checkpoints").exists()
    go_on()
    assert without_clock(out) == without_clock(finished.folder)


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_table_of_an_undisturbed_one(finished: Finished, tmp_path: Path) -> None:
    arguments = [str(finished.folder.parent / "data.csv"), [TINY], ["head", "full"], QUICK]
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    script = Path(__file__).with_name("interrupted_comparison.py")
    words = [sys.executable, script, tmp_path / "arguments.json", tmp_path / "out", "step-2-4", "between-2"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True, cwd=script.parent)
    assert done.stdout.split() == ["-9", "-9", "0"], done.stderr
    environment = finished.folder / "runs/data/scratch-tiny-esm2/full/seed-0/environment.json"
    assert (
        json.loads(environment.read_text())["steps"] > 4 > QUICK["training"]["save_steps"]
    )  # killed behind a checkpoint
    assert without_clock(tmp_path / "out") == without_clock(finished.folder)


def test_an_interrupted_comparison_shows_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    real, begun = comparison.train, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        begun.append(arguments)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(comparison, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(data, [TINY], ["head", "full"], tmp_path / "out", seeds=1, config=WITHOUT)
    results = json.loads((tmp_path / "out/comparison.json").read_text())
    assert results["missing"] == [f"data, {TINY}, full, seed 0"]
    assert results["rows"][0]["value"] is not None
    assert results["rows"][1]["value"] is None
    assert "1 run is missing" in (tmp_path / "out/report.html").read_text()
    assert "not yet" in (tmp_path / "out/heatmap.svg").read_text()


# --- failures


def test_what_a_model_cannot_do_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    out = tmp_path / "out"
    words = ["--models", TINY, "--tunes", "last-9,head", "--seeds", "1", "-o", str(out)]
    done = plft("compare", str(data), *words, "--set", "training.max_steps=1", "--set", "baselines.run=false")
    assert done.code == 1
    assert "1 of 2 combinations failed; the first: " in done.err
    results = json.loads((out / "comparison.json").read_text())
    assert "blocks" in results["rows"][0]["problem"]
    assert results["rows"][0]["value"] is None
    assert results["rows"][1]["value"] is not None
    assert "failed" in (out / "heatmap.svg").read_text()
    assert results["missing"] == []


def test_a_run_that_fails_does_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    real = comparison.train

    def failing(config: Any, *arguments: Any, **options: Any) -> Any:
        if config.tuning.method == "head":
            raise PlftError("The loss is not a number.")
        return real(config, *arguments, **options)

    monkeypatch.setattr(comparison, "train", failing)
    found = compare(data, [TINY], ["head", "full"], tmp_path / "out", seeds=1, config=WITHOUT).results
    assert found["rows"][0]["problem"] == "seed 0: The loss is not a number."
    assert found["rows"][1]["value"] is not None
    assert found["rows"][1]["difference"]["value"] is None
    monkeypatch.setattr(comparison, "train", real)
    again = compare(data, [TINY], ["head", "full"], tmp_path / "out", seeds=1, config=WITHOUT).results
    assert again["rows"][0]["problem"] == ""
    assert again["rows"][1]["difference"]["value"] is not None


def test_the_other_seeds_of_a_cell_count_where_one_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    real = comparison.train

    def failing(config: Any, *arguments: Any, **options: Any) -> Any:
        if config.training.seed == 1:
            raise PlftError("Training diverged.")
        return real(config, *arguments, **options)

    monkeypatch.setattr(comparison, "train", failing)
    (row,) = compare(data, [TINY], ["full"], tmp_path / "out", seeds=3, config=WITHOUT).results["rows"]
    assert row["seeds"] == 2
    assert row["problem"] == "seed 1: Training diverged."
    assert "2 of 3 seeds" in (tmp_path / "out/report.html").read_text()


def test_a_score_that_is_undefined_is_said_to_be(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "out")
    for seed in (0, 1):
        file = tmp_path / f"out/runs/data/scratch-tiny-esm2/full/seed-{seed}/predictions/test.safetensors"
        outputs, targets = read_outputs(file)
        write_outputs(file, [0 * each for each in outputs], targets)  # a constant has no correlation with anything
    data = finished.folder.parent / "data.csv"
    compare(data, [TINY], ["head", "full"], tmp_path / "out", seeds=2, config=QUICK)
    text = (tmp_path / "out/comparison.json").read_text()
    assert "NaN" not in text
    row = json.loads(text)["rows"][1]
    assert (row["value"], row["difference"]["value"], row["p"], row["significant"]) == (None, None, None, False)
    assert "undefined" in (tmp_path / "out/heatmap.svg").read_text()
    assert "undefined" in (tmp_path / "out/report.html").read_text()


def test_runs_on_other_test_labels_are_not_compared(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "out")
    file = tmp_path / "out/runs/data/scratch-tiny-esm2/full/seed-1/predictions/test.safetensors"
    outputs, targets = read_outputs(file)
    write_outputs(file, outputs, [each + 1 for each in targets])
    data = finished.folder.parent / "data.csv"
    rows = compare(data, [TINY], ["head", "full"], tmp_path / "out", seeds=2, config=QUICK).results["rows"]
    assert rows[1]["seeds"] == 1
    assert "not tested on the same labels" in rows[1]["problem"]


def test_a_bug_is_not_taken_for_a_reason_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(comparison, "train", broken)
    data = small_run.write_table(tmp_path / "data.csv")
    with pytest.raises(RuntimeError):
        compare(data, [TINY], ["head"], tmp_path / "out", seeds=1, config=WITHOUT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tunes": ["head", "lroa"]}, "Did you mean 'lora'"),
        ({"models": ["scratch:tiny-esm3"]}, "scratch"),
        ({"models": [TINY, TINY]}, "named twice"),
        ({"tunes": []}, "no tuning method"),
        ({"seeds": 0}, "1 or more"),
        ({"by": "random"}, "has splits already"),
        ({"by": "group", "folds": 2}, "plft split .* --by group"),
        ({"by": "homologie", "folds": 2}, "Did you mean 'homology'"),
        ({"config": {"training": {"epochs": -1}}}, "training.epochs"),
        ({"data": "nothing.csv"}, "nothing.csv"),
    ],
)
def test_what_can_be_checked_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    asked: dict[str, Any] = {"data": data, "models": [TINY], "tunes": ["head"], "seeds": 1, "config": WITHOUT}
    with pytest.raises(PlftError, match=message):
        compare(out=tmp_path / "out", **(asked | changes))
    assert not (tmp_path / "out").exists()


def test_a_test_part_without_labels_is_refused(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    rows = table(data)
    with data.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | ({"label": ""} if row["split"] == "test" else {}) for row in rows)
    with pytest.raises(PlftError, match="test part of data holds no label"):
        compare(data, [TINY], ["head"], tmp_path / "out", seeds=1, config=WITHOUT)
    assert not (tmp_path / "out").exists()


def test_folds_with_other_classes_are_not_pooled() -> None:
    refuse_other_classes([["a", "b"], ["a", "b"]])
    with pytest.raises(PlftError, match="different classes"):
        refuse_other_classes([["a", "b"], ["a", "c"]])


def test_another_command_on_the_same_folder_is_refused_with_what_differs(finished: Finished) -> None:
    data = finished.folder.parent / "data.csv"
    with pytest.raises(PlftError, match=re.escape("tunes was head, full, now head, lora")):
        compare(data, [TINY], ["head", "lora"], finished.folder, seeds=2, config=QUICK)
    other = QUICK | {"training": QUICK["training"] | {"epochs": 2}}
    with pytest.raises(PlftError, match=re.escape("settings.training.epochs was 1.0, now 2.0")):
        compare(data, [TINY], ["head", "full"], finished.folder, seeds=2, config=other)
    with pytest.raises(PlftError, match="is not a comparison"):
        compare(data, [TINY], ["head"], data.parent, seeds=2, config=QUICK)


# --- several data sets, folds


def test_several_data_sets_are_columns_of_the_heat_map(tmp_path: Path) -> None:
    files = [
        small_run.write_table(tmp_path / name / "data.csv", task)
        for name, task in (("a", TaskType.SEQ_CLASSIFICATION), ("b", TaskType.SEQ_REGRESSION))
        if (tmp_path / name).mkdir() is None
    ]
    words = ["--models", TINY, "--tunes", "full", "--seeds", "1", "--set", "training.max_steps=1"]
    done = plft(
        "compare", *map(str, files), *words, "--set", "baselines.run=false", "-o", str(tmp_path / "out"), "--json"
    )
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert {name: each["metric"] for name, each in results["data"].items()} == {"data": "mcc", "data-2": "spearman"}
    assert results["reference"] == "full"
    drawn = (tmp_path / "out/heatmap.svg").read_text()
    assert {"data", "data-2", "MCC", "Spearman"} <= set(re.findall(r">([^<>]+)</text>", drawn))


def with_folds(path: Path, values: list[Any], column: str = "fold") -> Path:
    rows = table(small_run.write_table(path, TaskType.SEQ_REGRESSION))
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["id", "sequence", "label", column])
        writer.writeheader()
        for at, row in enumerate(rows):
            del row["split"]
            writer.writerow(row | {column: values[at % len(values)]})
    return path


def test_the_test_sequences_of_all_folds_are_scored_together(tmp_path: Path) -> None:
    data = with_folds(tmp_path / "data.csv", [1, 2, 3])
    out = compare(data, [TINY], ["full"], tmp_path / "out", seeds=1, config=WITHOUT)
    runs = sorted((out.path / "runs/data/scratch-tiny-esm2/full").iterdir())
    assert [each.name for each in runs] == ["seed-0-fold-1", "seed-0-fold-2", "seed-0-fold-3"]
    rows = [row for each in runs for row in table(each / "predictions/test.csv")]
    assert Counter(row["id"] for row in rows) == Counter(row["id"] for row in table(data))
    expected = spearmanr(*([float(row[name]) for row in rows] for name in ("label", "prediction"))).statistic
    assert out.results["rows"][0]["value"] == pytest.approx(expected)
    assert out.results["data"]["data"]["folds"] == 3


def data_set(file: Path, folds: int | None = None, by: str | None = None) -> Any:
    return read_data_set("data", make_config({"data": {"file": str(file)}}), folds, by)


def test_folds_of_the_file_are_used_and_each_is_tested_once(tmp_path: Path) -> None:
    file = with_folds(tmp_path / "data.csv", [0, 1])
    found = data_set(file)
    assert found.folds == (1, 2)
    numbers = [int(row["fold"]) + 1 for row in table(file)]
    for fold, split in zip(found.folds, found.splits, strict=True):
        assert [each == "test" for each in split] == [number == fold for number in numbers]
        assert 0 < split.count("valid") < split.count("train")
    with pytest.raises(PlftError, match="with 2 folds, not 5"):
        data_set(file, folds=5)
    assert data_set(file, folds=1).folds == ()


def test_a_fold_column_of_names_is_left_alone(tmp_path: Path) -> None:
    file = with_folds(tmp_path / "data.csv", ["a.1", "b.4", "c.37"])
    assert data_set(file).folds == ()
    assert data_set(file, folds=4).folds == (1, 2, 3, 4)


def test_sequences_in_no_fold_are_left_out_and_said(tmp_path: Path) -> None:
    found = data_set(with_folds(tmp_path / "data.csv", [1, 2, ""]))
    assert len(found.records) == 40
    assert "20 sequences are in no fold and are left out" in found.sentence


def test_every_seed_has_the_same_split_where_the_file_has_none(tmp_path: Path) -> None:
    file = with_folds(tmp_path / "data.csv", ["x"], column="other")
    found = data_set(file, by="random")
    assert set(found.splits[0]) == {"train", "valid", "test"}
    assert found.tested == "test"
    config = found.read_from(tmp_path / "data.jsonl", None)
    found.write(tmp_path / "data.jsonl")
    written = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert [row["split"] for row in written] == list(found.splits[0])
    assert [row["label"] for row in written] == [row["label"] for row in table(file)]
    assert config.split_column == "split"


def test_names_of_folders_are_unique_and_plain() -> None:
    assert unique(["a/B", "a-b", "../x y", ""]) == ["a-B", "a-b-2", "x-y", "unnamed"]


def test_compare_is_part_of_the_package() -> None:
    assert package.compare is compare
