"""Prediction: streamed, every input answered in its order, written atomically, the same in every format."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import tiny
from fakes import ReadsTokens, Unchanged
from plft import prediction
from plft.errors import PlftError
from plft.labels import LabelSpace, TaskType
from plft.model import PLMTaskModel
from plft.pipeline import embed
from plft.prediction import Predictor, answers, chunks, joined_classes, write_predictions
from plft.records import Record


class CountsLetters(nn.Module):
    """A head that answers with the share of residues whose token is A's, and with the rest: (batch, 2) logits."""

    def __init__(self, a: int, n_outputs: int = 2) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.a, self.n_outputs = a, n_outputs

    def forward(self, hidden_states, attention_mask=None, **extra):
        mask = attention_mask.float()
        share = ((hidden_states[..., 0] == self.a) * mask).sum(1) / mask.sum(1)
        return torch.stack([share, 1 - share, share - 1][: self.n_outputs], dim=-1)


def written(predictor, records, path, each_batch=None):
    """Predictions written to a file."""
    return write_predictions(answers(predictor, records, each_batch), path, predictor.rows)


def predictor_for(task: str, *, n_outputs: int = 2, **options: object) -> Predictor:
    """A predictor whose answers can be told from the sequence."""
    checkpoint, kind = tiny.checkpoint("esm2"), TaskType(task)
    head = Unchanged() if kind.is_residue else CountsLetters(checkpoint.tokenizer.convert_tokens_to_ids("A"), n_outputs)
    if kind.is_regression:
        columns = ("label",) if n_outputs == 1 or kind.is_residue else tuple(f"c{at}" for at in range(n_outputs))
        labels = LabelSpace(kind, columns=columns, mean=(0.0,) * len(columns), scale=(1.0,) * len(columns))
    else:
        labels = LabelSpace(kind, ("much A", "little A", "none")[:n_outputs])
    model = PLMTaskModel(kind, ReadsTokens(checkpoint.config), head).eval()
    settings = {"max_residues": 100, "budget": 64} | options
    return Predictor(model, checkpoint.residue_tokenizer, labels, checkpoint.family, **settings)


def share_of_a(sequence: str) -> float:
    return sequence.count("A") / len(sequence)


def some_records(n: int = 40) -> list[Record]:
    random = np.random.default_rng(0)
    sequences = ["".join(random.choice(list("AKLM"), size=length)) for length in random.integers(1, 60, n)]
    return [Record(f"s{at}", each) for at, each in enumerate(sequences)]


# --- streaming


def test_every_input_is_answered_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "CHUNK_RESIDUES", 100)
    records = some_records()
    answers = list(predictor_for("seq_regression", n_outputs=1).stream(records))
    assert [record.id for record, _ in answers] == [each.id for each in records]
    for record, output in answers:
        assert output.tolist() == pytest.approx([share_of_a(record.sequence)])


def test_only_a_chunk_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prediction, "CHUNK_RESIDUES", 100)
    taken = answered = 0

    def records() -> Iterator[Record]:
        nonlocal taken
        for at in range(200):
            taken += 1
            assert taken - answered <= 31, "a chunk of ten is computed, one is read ahead, one is begun"
            yield Record(str(at), "MKTAYIAKQR")

    def count(n: int) -> None:
        nonlocal answered
        answered += n

    done = written(predictor_for("seq_classification"), records(), tmp_path / "out.csv", count)
    assert (taken, answered, done.sequences) == (200, 200, 200)


def test_the_next_chunk_is_read_and_the_last_one_written_while_one_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prediction, "CHUNK_RESIDUES", 10)
    third_is_read, first_is_written = threading.Event(), threading.Event()

    def records() -> Iterator[Record]:
        for at in range(4):
            if at == 3:
                third_is_read.set()
            yield Record(str(at), "MKTAYIAKQR")

    predictor = predictor_for("seq_classification")

    def rows(record: Record, output: np.ndarray, beside: dict[str, object]) -> Iterator[dict[str, object]]:
        first_is_written.set()
        return predictor.rows(record, output, beside)

    computed = 0

    def computing(n: int) -> None:
        nonlocal computed
        computed += n
        if computed == 3:  # the fourth is being read, the first was written
            assert third_is_read.wait(10)
            assert first_is_written.wait(10)

    done = write_predictions(answers(predictor, records(), computing), tmp_path / "out.csv", rows)
    assert done.sequences == 4


def test_chunks_hold_about_so_many_residues() -> None:
    sizes = [
        [len(each.sequence) for each in chunk] for chunk in chunks((Record("", "A" * n) for n in (4, 4, 4, 9, 1)), 8)
    ]
    assert sizes == [[4, 4], [4, 9], [1]]


def test_chunks_of_short_sequences_end_at_a_number_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "CHUNK_RECORDS", 3)
    assert [len(chunk) for chunk in chunks([Record(str(at), "M") for at in range(7)], 100)] == [3, 3, 1]


def test_long_sequences_are_answered_and_counted(tmp_path: Path) -> None:
    records = [Record("long", "A" * 90 + "K" * 90), Record("short", "AK")]
    whole = written(predictor_for("seq_regression", n_outputs=1), records, tmp_path / "a.csv")
    assert (whole.truncated, whole.windowed) == (1, 0)
    residues = written(predictor_for("token_regression"), records, tmp_path / "b.csv")
    assert (residues.truncated, residues.windowed) == (0, 1)
    rows = read(tmp_path / "b.csv")
    assert [int(row["position"]) for row in rows] == [*range(1, 181), 1, 2]
    vocabulary = tiny.checkpoint("esm2").tokenizer.get_vocab()
    assert [float(row["prediction"]) for row in rows] == [vocabulary[row["residue"]] for row in rows]


# --- what goes in


def test_letters_are_tidied_and_foreign_ones_mapped() -> None:
    predictor = predictor_for("seq_regression", n_outputs=1)
    assert predictor.predict(["aka\n", "AJ*A"]) == pytest.approx([2 / 3, 1 / 2])


def test_foreign_letters_are_an_error_where_the_run_says_so() -> None:
    predictor = predictor_for("seq_regression", n_outputs=1, unknown_letters="error")
    with pytest.raises(PlftError, match=r"row 2.*'J'"):
        predictor.predict(["AKA", "AJA"])


def test_a_run_that_dropped_records_still_answers_every_input() -> None:
    predictor = predictor_for("seq_regression", n_outputs=1, unknown_letters="drop")
    assert len(predictor.predict(["AKA", "AJA"])) == 2


def test_an_empty_sequence_is_an_error() -> None:
    with pytest.raises(PlftError, match="Sequence 2 is empty"):
        predictor_for("seq_classification").predict(["MKT", "  "])


def test_missing_extra_columns_are_named() -> None:
    predictor = predictor_for("seq_classification", extra_columns=("ph",))
    with pytest.raises(PlftError, match="nothing for the extra column 'ph'"):
        predictor.predict(["MKT"])


# --- what comes out


def test_predictions_are_what_the_task_is_about() -> None:
    sequence = "AAK"
    assert predictor_for("seq_classification").predict(sequence) == ["much A"]
    assert predictor_for("seq_regression", n_outputs=1).predict(sequence) == [pytest.approx(2 / 3)]
    assert predictor_for("seq_regression", n_outputs=2).predict(sequence) == [pytest.approx({"c0": 2 / 3, "c1": 1 / 3})]
    assert predictor_for("seq_multilabel", n_outputs=3).predict(sequence) == [["much A", "little A"]]
    vocabulary = tiny.checkpoint("esm2").tokenizer.get_vocab()
    assert predictor_for("token_regression").predict(sequence) == [[vocabulary[letter] for letter in sequence]]


def test_probabilities_are_those_of_the_task() -> None:
    (two,) = predictor_for("seq_classification").probabilities(["AAK"])
    np.testing.assert_allclose(two, torch.tensor([2 / 3, 1 / 3]).softmax(-1), rtol=1e-5)
    (each,) = predictor_for("seq_multilabel").probabilities(["AAK"])
    np.testing.assert_allclose(each, torch.tensor([2 / 3, 1 / 3]).sigmoid(), rtol=1e-5)


def test_no_class_and_no_label_are_told_apart() -> None:
    classes = ("a", "b")
    assert joined_classes(classes, np.array([1.0, 1.0])) == "a|b"
    assert joined_classes(classes, np.array([0.0, 0.0])) == "|"
    assert joined_classes(classes, np.array([np.nan, np.nan])) == ""
    assert joined_classes(classes, np.array([1.0, np.nan])) == "a|b?"
    assert joined_classes(classes, np.array([0.0, np.nan])) == "b?"
    assert joined_classes(classes, np.array([True, False])) == "a"


def read(file: Path) -> list[dict[str, object]]:
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t" if file.suffix == ".tsv" else ","))


@pytest.mark.parametrize("task", ["seq_classification", "seq_regression", "token_regression", "seq_multilabel"])
def test_all_formats_hold_the_same(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "CHUNK_RESIDUES", 100)
    tables = {}
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        written(predictor_for(task), some_records(), tmp_path / f"out{suffix}")
        tables[suffix] = [{key: str(value) for key, value in row.items()} for row in read(tmp_path / f"out{suffix}")]
    assert tables[".csv"] == tables[".tsv"] == tables[".jsonl"] == tables[".parquet"]
    first = tables[".csv"][0]
    assert next(iter(first)) == "id"
    if task == "seq_classification":
        assert list(first) == ["id", "prediction", "probability_much A", "probability_little A"]


# --- atomic files


def test_a_table_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("what was there before\n")

    def interrupted() -> Iterator[Record]:
        yield Record("a", "MKT")
        assert target.read_text() == "what was there before\n"
        raise PlftError("proteins.fasta, row 2: broken.")

    with pytest.raises(PlftError, match="broken"):
        written(predictor_for("seq_classification"), interrupted(), target)
    assert target.read_text() == "what was there before\n"
    assert [each.name for each in tmp_path.iterdir()] == ["out.csv"], "nothing is left behind"


def test_an_error_while_writing_ends_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "CHUNK_RESIDUES", 100)

    def full(record: Record, output: np.ndarray, beside: dict[str, object]) -> Iterator[dict[str, object]]:
        raise OSError(28, "No space left on device")
        yield {}

    with pytest.raises(PlftError, match=r"out\.csv cannot be written"):
        write_predictions(answers(predictor_for("seq_classification"), some_records()), tmp_path / "out.csv", full)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_parquet_come_in_large_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plft.tables.ROW_GROUP", 30)
    written(predictor_for("seq_classification"), some_records(), tmp_path / "out.parquet")
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [30, 10]


def test_an_unknown_format_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    def never() -> Iterator[Record]:
        raise AssertionError("nothing may be read")
        yield

    with pytest.raises(PlftError, match=r"Unknown table format '.xlsx'. Known: .csv, .tsv, .jsonl, .parquet"):
        written(predictor_for("seq_classification"), never(), tmp_path / "out.xlsx")


def test_no_records_give_an_empty_table_that_can_be_read(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        done = written(predictor_for("seq_classification"), [], tmp_path / f"out{suffix}")
        assert done.sequences == 0
        assert read(tmp_path / f"out{suffix}") == []


def test_several_workers_write_the_file_that_one_writes(tmp_path):
    checkpoint = tiny.checkpoint("esm2")
    tiny.save(checkpoint, tmp_path / "model")
    rows = [Record(str(n), "ACDEFGHIKLMNPQRSTVWY" * (1 + n % 3), None, None, None, None, {}, "f", n) for n in range(40)]
    (tmp_path / "s.fasta").write_text("".join(f">{each.id}\n{each.sequence}\n" for each in rows))
    told: list[int] = []
    with_one = embed(str(tmp_path / "model"), tmp_path / "s.fasta", tmp_path / "one.csv")
    with_two = embed(
        str(tmp_path / "model"), tmp_path / "s.fasta", tmp_path / "two.csv", workers=2, each_batch=told.append
    )
    assert with_one == with_two
    assert sum(told) == 40
    one, two = ((tmp_path / name).read_text().splitlines() for name in ("one.csv", "two.csv"))
    assert len(one) == len(two) == 41
    for line, same in zip(one[1:], two[1:], strict=True):
        assert line.split(",")[0] == same.split(",")[0]
        assert np.allclose([*map(float, line.split(",")[1:])], [*map(float, same.split(",")[1:])], atol=1e-5)
