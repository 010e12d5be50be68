"""Every wrong input of the table gives its one line and exit code 1, and changes nothing on the disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import content_of, plft
from wrong_inputs import CASES, GOOD, MODELS, Case

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on good.csv, with a checkpoint after each of its two steps; to be copied and broken."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "good.csv").write_text(GOOD)
    words = f"train {folder}/good.csv --model scratch:tiny-esm2 --max-steps 2 --out {folder}/run"
    result = plft(*words.split(), "--set", "training.save_steps=1")
    assert result.code == 0, result.err
    return folder / "run"


@pytest.fixture(scope="module")
def local_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models as transformers folders, by the name under which a case finds them."""
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / name) for name, make in MODELS.items()}


def arrange(case: Case, folder: Path, finished_run: Path, local_models: dict[str, Path]) -> None:
    """Write the files of a case: good.csv always, a finished run or a model where it asks for one, then its own."""
    (folder / "good.csv").write_text(GOOD)
    for name in case.needs:
        shutil.copytree(finished_run if name == "run" else local_models[name], folder / name)
    for name, content in case.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    if case.breaks is not None:
        case.breaks(folder)


def matches(pattern: str, line: str) -> bool:
    """Whether a line is the pattern, in which "..." stands for any text."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), line) is not None


@pytest.mark.parametrize("name", BY_NAME)
def test_a_wrong_input_gives_one_line_and_leaves_everything_as_it_was(
    name: str,
    tmp_path: Path,
    finished_run: Path,
    local_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = BY_NAME[name]
    arrange(case, tmp_path, finished_run, local_models)
    monkeypatch.chdir(tmp_path)
    before = content_of(tmp_path)
    result = plft(*shlex.split(case.command))
    *said, last = result.err.strip().splitlines()
    assert result.code == 1, result.err
    assert matches(f"Error: {case.says}", last), last
    assert all(line.startswith("·") for line in said), result.err
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "the file does not exist",
        "an option that there is not",
        pytest.param("trained weights cut short", marks=pytest.mark.slow),  # imports torch anew
    ],
)
def test_the_installed_command_ends_with_one_line_and_exit_code_1(
    name: str, tmp_path: Path, finished_run: Path, local_models: dict[str, Path]
) -> None:
    case = BY_NAME[name]
    arrange(case, tmp_path, finished_run, local_models)
    words = [str(Path(sys.executable).with_name("plft")), *shlex.split(case.command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert matches(f"Error: {case.says}\n", result.stderr), result.stderr
    assert result.stdout == ""


def test_every_case_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(CASES)


@pytest.mark.parametrize("unlabelled", ["valid", "test"])
def test_a_split_without_labels_is_predicted_but_not_scored(unlabelled: str, tmp_path: Path) -> None:
    rows = (row.split(",") for row in GOOD.splitlines())
    table = "\n".join(f"{row[0]},{'' if row[2] == unlabelled else row[1]},{row[2]}" for row in rows)
    (tmp_path / "part.csv").write_text(table)
    run = tmp_path / "run"
    words = f"train {tmp_path}/part.csv --task seq_classification --model scratch:tiny-esm2 --max-steps 1 --out {run}"
    result = plft(*words.split())
    assert result.code == 0, result.err
    assert f"{unlabelled} holds no label, so it is not scored" in result.err
    scored = json.loads((run / "metrics.json").read_text())["splits"]
    assert set(scored) == {"valid", "test"} - {unlabelled}
    assert (run / f"predictions/{unlabelled}.csv").exists()


def test_names_of_classes_may_look_like_truth_values_or_numbers(tmp_path: Path) -> None:
    from plft.config import load_config, make_config, set_values

    file = tmp_path / "run.yaml"
    file.write_text("data: {file: good.csv}\ntraining: {class_weights: {yes: 2, no: 1}}\n")
    assert make_config(load_config(file)).training.class_weights == {"yes": 2.0, "no": 1.0}
    values = set_values({"data": {"file": "good.csv"}}, ["training.class_weights={0: 1, 1: 5}"])
    assert make_config(values).training.class_weights == {"0": 1.0, "1": 5.0}


def test_what_nobody_foresaw_ends_with_a_traceback_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall_over(*words: object, **options: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("plft.records.load_data", fall_over)
    result = plft("check", "good.csv")
    assert result.code == 2
    assert "ZeroDivisionError: on purpose" in result.err
    assert "This is a bug in plft" in result.err
