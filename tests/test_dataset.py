"""Records as examples: residues and tokens, windows, truncation, targets, and the data module."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from fakes import ReadsNeighbours, ReadsTokens, Unchanged
from plft.batching import collate
from plft.dataset import SequenceDataModule, answers_for, build_dataset, longest_input, residue_to_token, windows
from plft.errors import PlftError
from plft.families import FAMILIES
from plft.labels import LabelSpace, TaskType
from plft.model import PLMTaskModel, infer
from plft.records import Record
from plft.tokens import family_of

# --- residues and tokens


def test_one_token_per_residue_is_counted_off() -> None:
    assert residue_to_token(np.array([[0, 0], [0, 1], [1, 2], [0, 0]]), 2).tolist() == [1, 2]


def test_a_token_of_several_residues_answers_for_each_of_them() -> None:
    assert residue_to_token(np.array([[0, 0], [0, 3], [3, 5]]), 5).tolist() == [1, 1, 1, 2, 2]


def test_of_overlapping_words_the_one_centred_on_a_residue_answers_for_it() -> None:
    threes = np.array([[0, 0], [0, 3], [1, 4], [2, 5], [0, 0]])
    assert residue_to_token(threes, 5).tolist() == [1, 1, 2, 3, 3]


def test_a_residue_without_a_token_is_an_error() -> None:
    with pytest.raises(PlftError, match="leaves residue 2 without a token"):
        residue_to_token(np.array([[0, 1], [2, 3]]), 3)


def words_of(family: str, sequence: str) -> list[str]:
    """For every residue the letters of the token that should answer for it, worked out from the spelling alone."""
    if family == "dnabert":  # words of three: the middle one
        return [sequence[max(0, min(at - 1, len(sequence) - 3)) :][:3] for at in range(len(sequence))]
    if family == "nucleotide-transformer":  # words of six, then single letters
        whole = len(sequence) // 6 * 6
        return [sequence[at // 6 * 6 :][:6] if at < whole else sequence[at] for at in range(len(sequence))]
    return list(sequence)


@pytest.mark.parametrize("family", tiny.TINY)
def test_each_residue_meets_the_token_that_covers_it(family: str) -> None:
    """A backbone that returns token ids, behind the tokenizer, a shuffled batch and the model's own gathering."""
    checkpoint = tiny.checkpoint(family)
    sequences = [tiny.sequence(checkpoint, length) for length in (31, 12, 25, 14)]
    records = [Record(str(at), each, " ".join("0" * len(each))) for at, each in enumerate(sequences)]
    labels = LabelSpace(TaskType.TOKEN_REGRESSION, columns=("label",), mean=(0.0,), scale=(1.0,))
    dataset = build_dataset(records, checkpoint.residue_tokenizer, labels, is_residue_task=True, max_residues=100)
    model = PLMTaskModel(TaskType.TOKEN_REGRESSION, ReadsTokens(checkpoint.config), Unchanged())
    shuffled = [2, 0, 3, 1]
    batch = collate([dataset[at] for at in shuffled], labels, dataset.pad_token_id, True)
    logits = model(**batch).logits[..., 0].int()
    for row, at in enumerate(shuffled):
        ids = logits[row, : len(sequences[at])].tolist()
        tokens = checkpoint.tokenizer.convert_ids_to_tokens(ids)
        read = [token.replace("Ġ", "").replace("▁", "") for token in tokens]
        if family in ("mistral-dna", "protgpt2"):  # learned pieces: side by side they are the sequence
            pieces = [piece for place, piece in enumerate(read) if place == 0 or piece_starts(dataset[at], place)]
            assert "".join(pieces).replace("Ċ", "") == sequences[at]
        else:
            assert read == words_of(family, sequences[at])


def piece_starts(example, place: int) -> bool:
    return example.residue_tokens[place] != example.residue_tokens[place - 1]


# --- windows


@given(st.integers(1, 500), st.integers(1, 120))
def test_windows_answer_for_each_residue_exactly_once(n_residues: int, longest: int) -> None:
    cuts = windows(n_residues, longest)
    answers = answers_for(cuts)
    assert [at for first, last in answers for at in range(first, last)] == list(range(n_residues))
    for (start, stop), (first, last) in zip(cuts, answers, strict=True):
        assert stop - start == min(longest, n_residues)
        assert start <= first <= last <= stop


@given(st.integers(101, 500))
def test_every_answer_but_at_the_ends_has_context_on_both_sides(n_residues: int) -> None:
    cuts = windows(n_residues, 100)
    for (start, stop), (first, last) in zip(cuts, answers_for(cuts), strict=True):
        assert first - start >= 12 or first == 0
        assert stop - last >= 12 or last == n_residues


def residue_records(*lengths: int) -> list[Record]:
    letters = np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), size=sum(lengths) + 1)
    return [
        Record(f"s{at}", "".join(letters[at : at + length]), " ".join(str(value) for value in range(length)))
        for at, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("family", ["esm2", "prostt5", "prott5"])
def test_windows_stitched_together_equal_one_long_window(family: str) -> None:
    checkpoint = tiny.checkpoint(family)
    records = residue_records(70, 12, 41)
    model = PLMTaskModel(TaskType.TOKEN_REGRESSION, ReadsNeighbours(checkpoint.config), FirstPlusSquares())
    labels = LabelSpace(TaskType.TOKEN_REGRESSION, columns=("label",), mean=(0.0,), scale=(1.0,))

    def predicted(max_residues: int) -> list[np.ndarray]:
        dataset = build_dataset(
            records, checkpoint.residue_tokenizer, labels, is_residue_task=True, max_residues=max_residues
        )
        assert len(dataset) == (3 if max_residues == 100 else 9)
        assert dataset.windowed == (0 if max_residues == 100 else 2)
        assert [target.tolist() for target in dataset.targets()] == [list(range(n)) for n in (70, 12, 41)]
        return infer(model, dataset, labels, budget=90)

    for whole, stitched in zip(predicted(100), predicted(20), strict=True):
        np.testing.assert_array_equal(whole, stitched)


class FirstPlusSquares(Unchanged):
    """Mixes the three channels of `ReadsNeighbours` into one."""

    def forward(self, hidden_states: torch.Tensor, attention_mask=None, **extra: object) -> torch.Tensor:
        left, own, right = hidden_states.unbind(-1)
        return (own + left / 100 + right**2 / 10_000).unsqueeze(-1)


def test_a_window_learns_only_what_it_answers_for() -> None:
    checkpoint = tiny.checkpoint("esm2")
    labels = LabelSpace(TaskType.TOKEN_REGRESSION, columns=("label",), mean=(0.0,), scale=(1.0,))
    dataset = build_dataset(
        residue_records(50), checkpoint.residue_tokenizer, labels, is_residue_task=True, max_residues=20
    )
    targets = collate(list(dataset), labels, dataset.pad_token_id, True)["labels"]
    assert targets[~targets.isnan()].tolist() == list(range(50))


# --- what is too long


def test_a_sequence_too_long_loses_its_end_and_is_counted() -> None:
    checkpoint = tiny.checkpoint("esm2")
    records = [Record("long", "MKTAYIAKQR", "a"), Record("short", "MKT", "b")]
    labels = LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, records)
    dataset = build_dataset(records, checkpoint.residue_tokenizer, labels, is_residue_task=False, max_residues=8)
    assert (dataset.truncated, dataset.windowed) == (1, 0)
    assert checkpoint.tokenizer.decode(dataset[0].input_ids).replace(" ", "") == "<cls>MKTAYIAK<eos>"
    assert len(dataset) == 2


def test_residues_in_unknown_tokens_are_counted() -> None:
    """DNABERT's words of six: every one that holds an N is unknown, and all residues in them with it."""
    records = [Record("s", "ACGTACGTACGTNACGTACGTACGT", "a"), Record("t", "ACGTACGTACGTACGT", "b")]
    labels = LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, records)
    tokenizer = tiny.checkpoint("dnabert").residue_tokenizer
    dataset = build_dataset(records, tokenizer, labels, is_residue_task=False, max_residues=100)
    k = tiny.checkpoint("dnabert").family.kmer
    assert dataset.unread == 2 * k - 1


def test_what_the_tokenizer_has_to_cut_counts_as_truncated_too() -> None:
    """1024 tokens hold a varying number of letters where tokens are learned pieces: only the tokenizer knows."""
    checkpoint = tiny.checkpoint("protgpt2")
    letters = "".join(np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), size=3000))
    assert checkpoint.residue_tokenizer.encode(letters).n_cut > 0
    records = [Record("long", letters, "1"), Record("short", "MKTAYIAK", "0")]
    labels = LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, records)
    dataset = build_dataset(records, checkpoint.residue_tokenizer, labels, is_residue_task=False, max_residues=10_000)
    assert dataset.truncated == 1
    residues = [Record("long", letters, " ".join("1" * 3000)), Record("short", "MKTA", "1 2 3 4")]
    numbers = LabelSpace.fit(TaskType.TOKEN_REGRESSION, residues)
    dataset = build_dataset(residues, checkpoint.residue_tokenizer, numbers, is_residue_task=True, max_residues=10_000)
    assert (dataset.truncated, len(dataset[0].residue_tokens)) == (1, 3000), "every residue has an answer nevertheless"


def test_the_longest_input_is_the_users_within_the_models_limit() -> None:
    assert longest_input(FAMILIES["esm2"]) == FAMILIES["esm2"].trained_residues
    assert longest_input(FAMILIES["esm2"], 3000) == 3000
    limited = tiny.checkpoint("esm1b").family
    with pytest.raises(PlftError, match=r"max_residues 2000: .* takes at most \d+ residues"):
        longest_input(limited, 2000)


# --- targets, weights, extra columns


def test_targets_weights_and_extra_columns_follow_their_record() -> None:
    checkpoint = tiny.checkpoint("esm2")
    records = [
        Record("a", "MKT", "no", weight=2.0, extra={"ph": "7", "unused": "x"}),
        Record("b", "MKTAY", "yes", extra={"ph": "5"}),
        Record("c", "MK", None, extra={"ph": "6"}),
    ]
    labels = LabelSpace.fit(TaskType.SEQ_CLASSIFICATION, records)
    dataset = build_dataset(
        records,
        checkpoint.residue_tokenizer,
        labels,
        is_residue_task=False,
        max_residues=100,
        extra_columns=("ph",),
    )
    assert [int(each.label) for each in dataset] == [0, 1, -100]
    assert [each.weight for each in dataset] == [2.0, 1.0, 1.0]
    assert [dict(each.extra) for each in dataset] == [{"ph": "7"}, {"ph": "5"}, {"ph": "6"}]
    assert dataset.lengths.tolist() == [5, 7, 4]


def test_a_record_without_an_extra_column_is_named() -> None:
    checkpoint = tiny.checkpoint("esm2")
    records = [Record("a", "MKT", "no", extra={}, file="data.csv", row=3)]
    with pytest.raises(PlftError, match=r"data.csv, row 3 \(id a\): .*'ph'"):
        build_dataset(
            records, checkpoint.residue_tokenizer, None, is_residue_task=False, max_residues=9, extra_columns=("ph",)
        )


# --- the data module


def write_parts(folder: Path, label: str = "label") -> dict[str, str]:
    parts = {
        "train": [("MKUAY", 0), ("ACDEFGH", 1), ("WWYKL", 0)],
        "valid": [("MKTAYI", 1)],
        "test": [("MKTA", 0), ("ACD", 1)],
    }
    for name, rows in parts.items():
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([("sequence", label), *rows])
    return {name: str(folder / f"{name}.csv") for name in parts}


def test_the_data_module_spells_with_a_function_of_the_users(tmp_path: Path) -> None:
    files = write_parts(tmp_path)
    tokenizer = tiny.checkpoint("protbert").tokenizer
    module = SequenceDataModule(
        files["train"],
        files["valid"],
        tokenizer,
        preprocess_fn=lambda sequence: " ".join(sequence.replace("U", "X")),
        max_length=64,
        test_file=files["test"],
    )
    sets = module.get_datasets()
    assert {name: len(each) for name, each in sets.items()} == {"train": 3, "validation": 1, "test": 2}
    assert tokenizer.convert_ids_to_tokens(sets["train"][0].input_ids.tolist()) == [
        *["[CLS]", "M", "K", "X", "A", "Y", "[SEP]"]
    ]
    assert module.task is TaskType.SEQ_CLASSIFICATION


def test_max_length_counts_tokens_special_ones_included(tmp_path: Path) -> None:
    files = write_parts(tmp_path)
    module = SequenceDataModule(files["train"], files["valid"], tiny.checkpoint("esm2").tokenizer, max_length=6)
    assert module.get_datasets()["train"].lengths.tolist() == [6, 6, 6]
    assert module.get_datasets()["train"].truncated == 3


def test_the_data_module_takes_other_columns_and_a_file_without_validation(tmp_path: Path) -> None:
    files = write_parts(tmp_path, label="target")
    module = SequenceDataModule(
        files["train"], None, tiny.checkpoint("esm2").tokenizer, label_column="target", task="seq_regression"
    )
    assert list(module.get_datasets()) == ["train"]
    assert module.labels.columns == ("target",)
    assert module.labels.task is TaskType.SEQ_REGRESSION


TOLD_BY_THE_TOKENIZER = tuple(family for family in tiny.KNOWN if family not in ("esm1b", "mistral-dna"))


@pytest.mark.parametrize("name", TOLD_BY_THE_TOKENIZER)
def test_the_family_is_read_off_the_tokenizer_alone(name: str) -> None:
    assert family_of(tiny.checkpoint(name).tokenizer).name == tiny.checkpoint(name).family.name


@pytest.mark.parametrize("name", tiny.KNOWN)
def test_sequences_are_spelled_without_a_config_as_with_it(tmp_path: Path, name: str) -> None:
    checkpoint = tiny.checkpoint(name)
    rows = [(tiny.sequence(checkpoint, length), length % 2) for length in (11, 14, 17)]
    with (tmp_path / "train.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("sequence", "label"), *rows])

    def ids(config: object) -> list[list[int]]:
        module = SequenceDataModule(tmp_path / "train.csv", None, checkpoint.tokenizer, config=config)
        return [each.input_ids.tolist() for each in module.get_datasets()["train"]]

    assert ids(None) == ids(checkpoint.config)


def test_rare_letters_and_prefixes_follow_the_family_without_a_config(tmp_path: Path) -> None:
    files = write_parts(tmp_path)

    def tokens(name: str) -> list[str]:
        tokenizer = tiny.checkpoint(name).tokenizer
        module = SequenceDataModule(files["train"], files["valid"], tokenizer)
        return tokenizer.convert_ids_to_tokens(module.get_datasets()["train"][0].input_ids.tolist())

    assert tokens("protbert") == ["[CLS]", "M", "K", "X", "A", "Y", "[SEP]"]
    assert tokens("prostt5") == ["<AA2fold>", "▁M", "▁K", "▁X", "▁A", "▁Y", "</s>"]


def test_a_tokenizer_from_a_folder_brings_its_config(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tiny.save(tiny.checkpoint("esm1b"), tmp_path / "model")
    assert family_of(AutoTokenizer.from_pretrained(folder)).max_tokens == tiny.checkpoint("esm1b").family.max_tokens


def test_a_tokenizer_that_tells_nothing_asks_for_the_config(tmp_path: Path) -> None:
    files, checkpoint = write_parts(tmp_path), tiny.checkpoint("generic")
    with pytest.raises(PlftError, match="Pass config="):
        SequenceDataModule(files["train"], None, checkpoint.tokenizer)
    SequenceDataModule(files["train"], None, checkpoint.tokenizer, config=checkpoint.config)
    SequenceDataModule(files["train"], None, checkpoint.tokenizer, preprocess_fn=str)


def test_the_data_module_counts_foreign_letters_and_keeps_other_splits(tmp_path: Path) -> None:
    rows = [("MK1A", 0, "train"), ("MK#T", 1, "train"), ("MKT", 1, "test_hard"), ("MKV", 0, "val")]
    with (tmp_path / "data.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("sequence", "label", "split"), *rows])
    module = SequenceDataModule(tmp_path / "data.csv", None, tiny.checkpoint("esm2").tokenizer)
    assert [(name, len(each)) for name, each in module.get_datasets().items()] == [
        *[("train", 2), ("validation", 1), ("test_hard", 1)]
    ]
    assert module.unknown_letters == 2


# --- extra columns


def extra_dataset(records: list[Record], labels: LabelSpace | None, column: str, is_residue_task: bool):
    tokenizer = tiny.checkpoint("esm2").residue_tokenizer
    return build_dataset(
        records, tokenizer, labels, is_residue_task=is_residue_task, max_residues=8, extra_columns=(column,)
    )


def test_values_per_residue_are_cut_with_their_sequence() -> None:
    plddt = list(range(10))
    residues = [Record("a", "MKTAYIAKQR", " ".join(["1", "2"] * 5), extra={"plddt": plddt})]
    labels = LabelSpace.fit(TaskType.TOKEN_REGRESSION, residues)
    windowed = extra_dataset(residues, labels, "plddt", is_residue_task=True)
    assert [each.extra["plddt"] for each in windowed] == [plddt[:8], plddt[2:]]
    whole = [Record("a", "MKTAYIAKQR", "1", extra={"plddt": plddt}), Record("b", "MKTA", "2", extra={"plddt": [0] * 9})]
    truncated = extra_dataset(whole, LabelSpace.fit(TaskType.SEQ_REGRESSION, whole), "plddt", is_residue_task=False)
    assert [len(each.extra["plddt"]) for each in truncated] == [8, 9]


def test_an_extra_column_may_not_be_called_like_an_argument_of_the_model() -> None:
    with pytest.raises(PlftError, match=r"argument 'labels' of its own\. Rename the column"):
        extra_dataset([Record("a", "MKT", extra={"labels": "1"})], None, "labels", is_residue_task=False)
