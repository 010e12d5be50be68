"""Certainty of a whole run: what is kept in the model folder, columns of predictions, and folders from before."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import plft as library
import small_run
from commandline import plft
from plft.errors import PlftError
from plft.evaluation import evaluate
from plft.labels import TaskType
from plft.pipeline import train
from plft.runfolder import export_model, load_predictor


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three classes beside its data."""
    folder = tmp_path_factory.mktemp("finished")
    return train(small_run.config(small_run.write_table(folder / "data.csv", n=100)), folder / "run").path


def predict(run: Path, folder: Path, split: str = "test") -> list[dict[str, str]]:
    """What `plft predict` writes for a split of the run's own data."""
    test = [row for row in rows_of(run.parent / "data.csv") if row["split"] == split]
    (folder / "new.csv").write_text("id,sequence\n" + "".join(f"{r['id']},{r['sequence']}\n" for r in test))
    done = plft("predict", str(run), str(folder / "new.csv"), "-o", str(folder / "out.csv"))
    assert done.code == 0, done.err
    return rows_of(folder / "out.csv")


def test_predict_writes_the_columns_that_the_run_wrote(finished: Path, tmp_path: Path) -> None:
    own = [{k: v for k, v in row.items() if k != "label"} for row in rows_of(finished / "predictions/test.csv")]
    assert list(own[0])[:3] == ["id", "prediction", "set"]
    assert list(own[0])[-2:] == ["distance", "far"]
    assert predict(finished, tmp_path) == own


def test_the_probabilities_of_the_files_are_the_calibrated_ones(finished: Path) -> None:
    predictor = load_predictor(finished / "model")
    card = json.loads((finished / "model/calibration.json").read_text())
    assert card["calibration"]["method"] == "temperature"
    row = rows_of(finished / "predictions/test.csv")[0]
    sequence = next(r["sequence"] for r in rows_of(finished.parent / "data.csv") if r["id"] == row["id"])
    raw = predictor.raw(predictor.dataset([library.Record("a", sequence)], labelled=False))[0][0].astype(float)
    powers = raw ** (1 / card["calibration"]["temperature"][0])
    written = [float(row[f"probability_{name}"]) for name in predictor.labels.classes]
    assert written == pytest.approx(powers / powers.sum(), abs=2e-6)
    assert row["prediction"] == predictor.labels.classes[int(raw.argmax())]
    limit = 1 - card["conformal"]["reach"][0]
    likely = {n for n, p in zip(predictor.labels.classes, written, strict=True) if p >= limit} | {row["prediction"]}
    assert set(row["set"].split("|")) == likely


def test_an_exported_folder_answers_the_same(finished: Path, tmp_path: Path) -> None:
    export_model(finished / "model", tmp_path / "exported")
    records = [library.Record("a", "MKTAYIAKQRQISFVKSHFSRQ"), library.Record("b", "ACDEFGHIKL")]
    ours, theirs = (load_predictor(folder) for folder in (finished / "model", tmp_path / "exported"))
    for mine, other in zip(ours.probabilities(records), theirs.probabilities(records), strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    assert ours.certainty.conformal == theirs.certainty.conformal
    assert np.array_equal(ours.certainty.neighbours.states, theirs.certainty.neighbours.states)


def test_metrics_say_the_error_before_and_after_and_the_coverage(finished: Path) -> None:
    found = json.loads((finished / "metrics.json").read_text())["calibration"]
    assert (found["method"], found["fitted_on"], found["level"]) == ("temperature", "valid", 0.9)
    for split in ("valid", "test"):
        entry = found["splits"][split]
        assert {"before", "after", "bins", "coverage", "size", "far"} <= set(entry)
    inside = [row["label"] in row["set"].split("|") for row in rows_of(finished / "predictions/test.csv")]
    assert found["splits"]["test"]["coverage"]["value"] == pytest.approx(np.mean(inside))
    far = [row["far"] == "true" for row in rows_of(finished / "predictions/valid.csv")]
    assert found["splits"]["valid"]["far"] == pytest.approx(np.mean(far))


def test_the_report_shows_the_diagram(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "<h2>Certainty</h2>" in page
    assert "Reliability on test: calibration error" in page


def test_the_main_metric_does_not_change_with_the_temperature(finished: Path) -> None:
    written = json.loads((finished / "metrics.json").read_text())["splits"]["test"]["metrics"]
    again = evaluate(finished)["metrics"]
    assert again["mcc"] == written["mcc"]
    assert again["roc_auc"] == written["roc_auc"]


def test_a_folder_from_before_calibration_answers_without(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "old")
    for name in ("calibration.json", "neighbours.safetensors"):
        (tmp_path / "old/run/model" / name).unlink()
    assert "set" not in predict(tmp_path / "old/run", tmp_path)[0]
    metrics = json.loads((tmp_path / "old/run/metrics.json").read_text())
    del metrics["calibration"]
    (tmp_path / "old/run/metrics.json").write_text(json.dumps(metrics))
    done = plft("report", str(tmp_path / "old/run"))
    assert done.code == 0, done.err
    assert "Certainty" not in (tmp_path / "old/run/report.html").read_text()


@pytest.mark.parametrize("text", ['{"calibration": {}}', '{"calibration": {"method": "x"}, "far_above": null}', "[]"])
def test_a_damaged_calibration_is_one_line(finished: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    (tmp_path / "model/calibration.json").write_text(text)
    with pytest.raises(PlftError, match=r"calibration\.json is damaged"):
        load_predictor(tmp_path / "model")


def test_a_model_folder_that_lost_its_neighbours_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    (tmp_path / "model/neighbours.safetensors").unlink()
    with pytest.raises(PlftError, match=r"neighbours\.safetensors is missing"):
        load_predictor(tmp_path / "model")


def test_a_regression_has_intervals_around_its_predictions(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", TaskType.SEQ_REGRESSION, n=60)
    run = train(small_run.config(data, task="seq_regression"), tmp_path / "run").path
    rows = rows_of(run / "predictions/test.csv")
    card = json.loads((run / "model/calibration.json").read_text())
    reach, typical = card["conformal"]["reach"][0], card["typical_distance"]
    assert typical == pytest.approx(
        np.median([float(r["distance"]) for r in rows_of(run / "predictions/valid.csv")]), 1e-3
    )
    for row in rows:  # half of the width is the same everywhere, half grows with the distance to training
        half = reach * (1 + float(row["distance"]) / typical) / 2
        low, middle, high = (float(row[name]) for name in ("low", "prediction", "high"))
        assert (middle - low, high - middle) == (pytest.approx(half, rel=1e-3), pytest.approx(half, rel=1e-3))
    entry = json.loads((run / "metrics.json").read_text())["calibration"]["splits"]["test"]
    assert entry["width"][0] == pytest.approx(
        np.mean([float(row["high"]) - float(row["low"]) for row in rows]), rel=1e-3
    )
    inside = [float(row["low"]) <= float(row["label"]) <= float(row["high"]) for row in rows]
    assert entry["coverage"]["value"] == pytest.approx(np.mean(inside))
    assert predict(run, tmp_path)[0].keys() == {"id", "prediction", "low", "high", "distance", "far"}


def test_without_distances_all_intervals_are_equally_wide(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", TaskType.SEQ_REGRESSION, n=60)
    config = library.make_config(
        small_run.values(data, task="seq_regression", training={"max_steps": 1}) | {"calibration": {"neighbours": 0}}
    )
    rows = rows_of(train(config, tmp_path / "run").path / "predictions/test.csv")
    assert len({round(float(row["high"]) - float(row["low"]), 3) for row in rows}) == 1


def test_a_folder_from_before_typical_distances_keeps_its_intervals(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", TaskType.SEQ_REGRESSION, n=60)
    run = train(small_run.config(data, task="seq_regression"), tmp_path / "run").path
    card = json.loads((run / "model/calibration.json").read_text())
    del card["typical_distance"]
    (run / "model/calibration.json").write_text(json.dumps(card))
    rows = predict(run, tmp_path)
    half = card["conformal"]["reach"][0]
    assert all(float(row["high"]) - float(row["prediction"]) == pytest.approx(half, rel=1e-3) for row in rows)


def test_residues_have_sets_and_the_distance_of_their_sequence(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", TaskType.TOKEN_CLASSIFICATION, n=60)
    run = train(small_run.config(data, task="token_classification"), tmp_path / "run").path
    rows = rows_of(run / "predictions/test.csv")
    assert {"set", "distance", "far"} <= rows[0].keys()
    assert all(len({row["distance"] for row in rows if row["id"] == name}) == 1 for name in {r["id"] for r in rows})
    assert predict(run, tmp_path) == [{k: v for k, v in row.items() if k != "label"} for row in rows]


def test_what_is_switched_off_leaves_no_columns(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    off = {"method": "none", "level": None, "neighbours": 0}
    config = library.make_config(small_run.values(data, training={"max_steps": 1}) | {"calibration": off})
    run = train(config, tmp_path / "run").path
    assert list(rows_of(run / "predictions/test.csv")[0])[:4] == ["id", "label", "prediction", "probability_maybe"]
    assert not (run / "model/neighbours.safetensors").exists()
    found = json.loads((run / "metrics.json").read_text())["calibration"]
    assert (found["method"], found["level"], found["far_above"]) == ("none", None, None)
    assert found["splits"]["test"]["before"] == found["splits"]["test"]["after"]


def test_long_proteins_of_a_residue_task_have_one_distance_over_their_windows(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv", TaskType.TOKEN_CLASSIFICATION, n=40)
    short = {"file": str(data), "max_residues": 12}
    run = train(small_run.config(data, data=short, task="token_classification"), tmp_path / "run").path
    predictor = load_predictor(run / "model")
    record = library.Record("long", "MKTAYIAKQRQISFVKSHFSRQMKTAYIAKQRQISFVK")
    outputs, states = predictor.raw(predictor.dataset([record], labelled=False), with_states=True)
    assert (len(outputs), states.shape) == (1, (1, 32))
