"""The whole run: what it may delete, what it refuses to go on with, and who consents to foreign code."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
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
from fakes import StopAt
from plft.apps.failures import unforeseen
from plft.errors import PlftError
from plft.evaluation import evaluate
from plft.labels import TaskType
from plft.pipeline import columns_of, embed, predict, train


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


@pytest.mark.usefixtures("unscored")
def test_two_runs_with_the_same_head_object_do_not_share_its_weights(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    head = Scale(32)
    before = head.linear.weight.detach().clone()
    train(small_run.config(data, training={"max_steps": 2}), tmp_path / "run", head=head)
    assert torch.equal(head.linear.weight, before)


def test_split_refuses_what_it_cannot_write_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("plft.splits.assign_splits", never)
    (tmp_path / "a.fasta").write_text(">a\nMKTA\n>b\nMKTC\n>c\nMKTD\n")
    done = plft("split", str(tmp_path / "a.fasta"), "-o", str(tmp_path / "b.fasta"))
    assert done.code == 1
    assert "'.fasta'" in done.err


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


def test_a_bad_record_at_the_end_is_told_before_the_work_is_done(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("id,sequence\n" + "a,MKTAYIAK\n" * 300 + "last,\n")
    computed: list[int] = []
    for answer in (predict, embed):
        with pytest.raises(PlftError, match=r"row 301 \(id last\): has no sequence"):
            answer(finished, tmp_path / "new.csv", tmp_path / "out.csv", each_batch=computed.append)
    assert not computed


def test_label_columns_named_in_another_order_are_those_of_the_run(tmp_path: Path) -> None:
    pick = np.random.default_rng(0)
    names, rows = ("zinc", "iron"), []
    for at in range(24):
        sequence = "".join(pick.choice(list("ACDEFGHIKLMNPQRSTVWY"), 12))
        rows.append(f"{sequence},{at / 10},{100 - at},{'train' if at < 16 else 'valid' if at < 20 else 'test'}")
    data = tmp_path / "data.csv"
    data.write_text("\n".join(["sequence,zinc,iron,split", *rows]) + "\n")
    settings = {"task": "seq_regression", "data": {"label_column": list(names)}, "training": {"max_steps": 1}}
    run = train(small_run.config(data, **settings), tmp_path / "run").path
    expected = evaluate(run, data)["metrics"]
    for model in (run, run / "model"):  # the model alone knows the names too
        for given in (None, names, names[::-1]):
            assert evaluate(model, data, columns=columns_of(model, labels=given))["metrics"] == expected, (model, given)


def test_the_report_names_a_head_of_ones_own(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    run = train(small_run.config(data, training={"max_steps": 1}), tmp_path / "run", head=Scale(32))
    assert "Scale" in (run.path / "report.html").read_text()


def test_prediction_says_how_many_letters_it_mapped(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.fasta").write_text(">a\nMKTAYIAKJJ*QRQISFVK\n")
    done = plft("predict", str(finished), str(tmp_path / "new.fasta"), "-o", str(tmp_path / "out.csv"))
    assert done.code == 0, done.err
    assert "3 letters are not in the alphabet" in done.err


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    words = ["train", str(data), "--model", "scratch:tiny-esm2", "--epochs", "5000", "--out", str(tmp_path / "run")]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job starts with it ignored
    process = subprocess.Popen(
        [sys.executable, "-m", "plft", *words], stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
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


def rewritten(data: Path, target: Path, header: str) -> Path:
    """The table with other names of columns."""
    _, *rows = data.read_text().splitlines()
    target.write_text("\n".join([header, *rows]) + "\n")
    return target


def test_another_file_needs_no_column_but_sequence_and_label(tmp_path: Path) -> None:
    data = rewritten(small_run.write_table(tmp_path / "a.csv"), tmp_path / "data.csv", "name,sequence,label,part")
    columns = {"data": {"id_column": "name", "split_column": "part"}, "training": {"max_steps": 1}}
    run = train(small_run.config(data, **columns), tmp_path / "run").path
    other = tmp_path / "other.csv"
    other.write_text("sequence,label\n" + "".join(f"{row.split(',')[1]},no\n" for row in data.read_text().split()[1:]))
    assert evaluate(run, other)["n"] == 60
    named = rewritten(data, tmp_path / "named.csv", "name,protein,answer,part")
    done = plft("evaluate", str(run), str(named), "--sequence-column", "protein", "--label-column", "answer", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["split"] == "test"  # the run's own split column was read
    assert json.loads(done.out)["metrics"] == evaluate(run)["metrics"]
    embedded = ["--sequence-column", "protein", "-o", str(tmp_path / "e.csv")]
    assert plft("embed", str(run), str(named), *embedded).code == 0
    assert (tmp_path / "e.csv").read_text().splitlines()[1].startswith(data.read_text().splitlines()[1].split(",")[0])


def test_masks_of_a_run_are_kept_where_only_the_label_has_another_name(tmp_path: Path) -> None:
    rows = [("ACDEFGHIKL", "H" * 5 + "C" * 5, part) for part in ("train", "train", "valid", "test")]
    table = [f"{sequence[at:] + sequence[:at]},{label},{'1' * 6 + '0' * 4},{part}" for at, (sequence, label, part)
             in enumerate(rows)]  # fmt: skip
    data = tmp_path / "data.csv"
    data.write_text("\n".join(["sequence,label,seen,split", *table]) + "\n")
    settings = {"task": "token_classification", "data": {"mask_column": "seen"}, "training": {"max_steps": 1}}
    run = train(small_run.config(data, **settings), tmp_path / "run").path
    other = rewritten(data, tmp_path / "other.csv", "sequence,answer,seen,split")
    done = plft("evaluate", str(run), str(other), "--label-column", "answer", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["n_scored"] == evaluate(run)["n_scored"] == 6


def test_a_run_without_a_test_part_is_scored_on_valid(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    data.write_text("".join(line for line in data.read_text().splitlines(True) if not line.endswith(",test\n")))
    run = train(small_run.config(data, training={"max_steps": 1}), tmp_path / "run").path
    assert evaluate(run)["split"] == "valid"


def test_another_file_may_hold_classes_that_the_run_leaves_out(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    settings = {"data": {"unseen_classes": "drop"}, "training": {"max_steps": 1}}
    run = train(small_run.config(data, **settings), tmp_path / "run").path
    other = tmp_path / "other.csv"
    other.write_text(data.read_text() + "new,ACDEFGHIKLMN,perhaps,test\n")
    said: list[str] = []
    assert evaluate(run, other, say=said.append)["n_scored"] == evaluate(run)["n_scored"]
    assert any("perhaps (1)" in sentence for sentence in said)


def test_where_valid_cannot_be_judged_no_epoch_is_left_out(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    one_class = re.sub(r",\w+,valid", ",yes,valid", data.read_text())
    (tmp_path / "one.csv").write_text(one_class)
    said: list[str] = []
    settings = {"training": {"epochs": 6, "early_stopping": 1}}
    run = train(small_run.config(tmp_path / "one.csv", **settings), tmp_path / "run", say=said.append).path
    assert json.loads((run / "environment.json").read_text())["epochs"] == 6
    assert any("is undefined on valid" in sentence for sentence in said)


def test_a_column_without_labels_in_test_is_no_obstacle(tmp_path: Path) -> None:
    rows = small_run.write_table(tmp_path / "a.csv", TaskType.SEQ_REGRESSION).read_text().splitlines()
    second = ["kcat", *("" if row.endswith("test") else str(at % 7) for at, row in enumerate(rows[1:]))]
    (tmp_path / "data.csv").write_text("\n".join(map(",".join, zip(rows, second, strict=True))))
    settings = {"data": {"label_column": ["label", "kcat"]}, "training": {"max_steps": 1}}
    run = train(small_run.config(tmp_path / "data.csv", **settings), tmp_path / "run").path
    assert "redicted against true" in (run / "report.html").read_text()


@pytest.mark.usefixtures("unscored")
def test_weights_of_sequences_are_said(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    rows = data.read_text().splitlines()
    data.write_text("\n".join([rows[0] + ",Weight", *(f"{row},{at % 3 + 1}" for at, row in enumerate(rows[1:]))]))
    said: list[str] = []
    train(small_run.config(data, training={"max_steps": 1}), tmp_path / "run", say=said.append)
    assert "sequences are weighted by the column 'weight', from 1 to 3" in said


def test_time_and_memory_of_an_interrupted_run_count(tmp_path: Path) -> None:
    config = small_run.config(small_run.write_table(tmp_path / "data.csv"), training={"epochs": 3})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", callbacks=[StopAt(8)])
    file = tmp_path / "run" / "environment.json"
    kept = json.loads(file.read_text())
    assert kept["seconds"] > 0
    file.write_text(json.dumps(kept | {"seconds": 1000.0, "peak_memory": 2**50}))
    train(config, tmp_path / "run", resume=True)
    done = json.loads(file.read_text())
    assert done["seconds"] > 1000
    assert done["peak_memory"] == 2**50


def test_files_that_are_no_data_do_not_change_a_folder_of_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = small_run.write_table(tmp_path / "all.csv").read_text().splitlines(True)
    for part in ("train", "valid", "test"):
        kept = [row for row in rows[1:] if row.endswith(f",{part}\n")]
        (tmp_path / "data" / f"{part}.csv").write_text("".join([rows[0], *kept]))
    run = train(small_run.config(tmp_path / "data", training={"max_steps": 1}), tmp_path / "run").path
    (tmp_path / "data" / ".DS_Store").write_text("...")
    assert evaluate(run)["split"] == "test"


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


@pytest.mark.parametrize(
    ("command", "advice"), [("train", "training.batch_residues"), ("predict", "--workers"), ("score-lm", "--batch")]
)
def test_running_out_of_memory_in_numpy_is_no_bug_either(
    command: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plft", command])
    assert unforeseen(MemoryError("Unable to allocate 9 GiB")) == 1
    assert advice in capsys.readouterr().err


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
