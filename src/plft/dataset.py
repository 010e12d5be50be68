"""Records + family + task -> token ids and targets. This module owns the map between residues and tokens.

Targets stay aligned with residues, never with tokens: for residue tasks the model gathers, for every residue, the
hidden state of the token that covers it. Special tokens, k-mers and merged letters therefore cannot shift a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from plft.alphabet import ALPHABETS, clean
from plft.errors import PlftError
from plft.families import Family, recognise, residues_that_fit
from plft.labels import LabelSpace, TaskType, guess_task, is_known
from plft.records import Columns, Record, load_data
from plft.tokens import Encoded, ResidueTokenizer, family_of

OVERLAP_SHARE = 0.25  # of a window's residues are shared with the next one
# what a model is called with, next to the extra columns
RESERVED_COLUMNS = frozenset(
    {
        *("input_ids", "attention_mask", "inputs_embeds", "residue_mask", "residue_tokens", "hidden_states"),
        *("labels", "features", "sequence_weights", "num_items_in_batch"),
        *("output_hidden_states", "output_means", "output_attentions", "return_dict"),
    }
)


@dataclass(frozen=True, slots=True)
class Example:
    """One input of the model: a record, or one window of a long record.

    record: index into the records.  start: first residue of the window.  input_ids: (tokens,) int32.
    residue_tokens: (residues,) int32, the token that covers each residue.  label: raw units, cut to the window; None
    when unlabelled.  scored: [from, to), the residues this window answers for, so that overlaps count once.
    features: (tokens, width) or (1, width), what the frozen part of a model makes of it, where that is kept.
    """

    record: int
    start: int
    input_ids: np.ndarray
    residue_tokens: np.ndarray
    scored: tuple[int, int]
    label: np.ndarray | None = None
    weight: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    features: Any = None


class SequenceDataset(Sequence[Example]):
    """Examples ready for batching, and all that batching needs to know about them.

    labels: how targets are read; None for unlabelled sequences.  truncated, windowed: how many records were too long.
    unread: residues in tokens that the model does not know.
    lengths: (examples,) int64, tokens per example.
    """

    def __init__(
        self,
        examples: list[Example],
        *,
        labels: LabelSpace | None,
        pad_token_id: int,
        is_residue_task: bool,
        truncated: int = 0,
        windowed: int = 0,
        unread: int = 0,
    ) -> None:
        self.examples = examples
        self.labels = labels
        self.pad_token_id = pad_token_id
        self.is_residue_task = is_residue_task
        self.truncated = truncated
        self.windowed = windowed
        self.unread = unread
        self.lengths = np.array([len(each.input_ids) for each in examples], dtype=np.int64)
        self.features: Any = None  # what `features.keep` left: indexed like the examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        if self.features is None:
            return self.examples[index]
        return replace(self.examples[index], features=self.features[index])

    def per_record(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Join outputs per example into outputs per record: windows are stitched where each one answers.

        outputs[i] belongs to example i: (residues, ...) in residue tasks.
        """
        if not self.is_residue_task:
            return list(outputs)
        parts: dict[int, list[np.ndarray]] = {}
        for each, output in zip(self.examples, outputs, strict=True):
            parts.setdefault(each.record, []).append(output[each.scored[0] : each.scored[1]])
        return [pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in parts.values()]

    @cached_property
    def has_labels(self) -> bool:
        """Whether any label is known, so that there is something to score."""
        return any(is_known(each.label).any() for each in self.examples if each.label is not None)

    def targets(self) -> list[np.ndarray]:
        """Targets per record in raw units, as `LabelSpace.encode` gives them."""
        return self.per_record([each.label for each in self.examples if each.label is not None])


def class_counts(dataset: SequenceDataset, labels: LabelSpace) -> list[int]:
    """Training targets per class, in the order of `labels.classes`."""
    values = np.concatenate([np.atleast_1d(each) for each in dataset.targets()])
    if labels.task.is_multilabel:
        return [int(count) for count in np.nansum(np.stack(dataset.targets()), axis=0)]
    return [int((values == index).sum()) for index in range(len(labels.classes))]


def residue_to_token(spans: np.ndarray, n_residues: int) -> np.ndarray:
    """For every residue the token that covers it; where several do (overlapping k-mers), the one centred nearest.

    spans: (tokens, 2) int, token i covers residues spans[i, 0] up to spans[i, 1] (empty for special tokens).
    Returns (n_residues,) int32. A residue that no token covers is a PlftError.
    """
    sizes = spans[:, 1] - spans[:, 0]
    covering = np.flatnonzero(sizes > 0)
    if len(covering) == n_residues and (sizes[covering] == 1).all():
        return covering.astype(np.int32)
    tokens = np.full(n_residues, -1, dtype=np.int32)
    nearest = np.full(n_residues, np.inf)
    for token in covering:
        start, stop = spans[token]
        distance = np.abs(np.arange(start, stop) - (start + stop - 1) / 2)
        closer = distance < nearest[start:stop]
        nearest[start:stop][closer] = distance[closer]
        tokens[start:stop][closer] = token
    if (tokens < 0).any():
        raise PlftError(f"The tokenizer leaves residue {int(np.argmin(tokens)) + 1} without a token.")
    return tokens


def windows(n_residues: int, longest: int) -> list[tuple[int, int]]:
    """Cut [0, n_residues) into overlapping windows of at most `longest` residues; one window where it fits."""
    if n_residues <= longest:
        return [(0, n_residues)]
    step = max(1, int(longest * (1 - OVERLAP_SHARE)))
    count = -(-(n_residues - longest) // step) + 1
    starts = np.linspace(0, n_residues - longest, count).round().astype(int)
    return [(int(start), int(start) + longest) for start in starts]


def answers_for(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The residues each window answers for: overlaps are halved, so that every residue is answered exactly once."""
    edges = [cuts[0][0]]
    edges += [(left[1] + right[0]) // 2 for left, right in pairwise(cuts)]
    edges.append(cuts[-1][1])
    return list(pairwise(edges))


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a record that one example holds: residues [start, stop), answering for [first, last) of them."""

    record: int
    start: int
    stop: int
    answers: tuple[int, int]


def build_dataset(
    records: Sequence[Record],
    tokenizer: ResidueTokenizer,
    labels: LabelSpace | None,
    *,
    is_residue_task: bool,
    max_residues: int,
    unseen: str = "error",
    extra_columns: Sequence[str] = (),
) -> SequenceDataset:
    """Tokenise records and attach their targets.

    labels: None for prediction.  max_residues: longer sequences lose their end (sequence tasks) or become overlapping
    windows (residue tasks), never silently: the counts are in the result.  unseen: "error" or "missing" for classes
    that training never saw.  Each sequence gives at least one example, in order.
    """
    check_extra_columns(extra_columns)
    pieces = list(pieces_of(records, max_residues, is_residue_task))
    targets = [None if labels is None else labels.encode(record, unseen=unseen) for record in records]
    encoded = tokenizer.encode_all(records[each.record].sequence[each.start : each.stop] for each in pieces)
    examples = [
        example(records[piece.record], piece, tokens, targets[piece.record], is_residue_task, extra_columns)
        for piece, tokens in zip(pieces, encoded, strict=True)
    ]
    too_long = {index for index, record in enumerate(records) if len(record.sequence) > max_residues}
    cut_by_tokenizer = {piece.record for piece, tokens in zip(pieces, encoded, strict=True) if tokens.n_cut}
    return SequenceDataset(
        examples,
        labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        is_residue_task=is_residue_task,
        truncated=len(cut_by_tokenizer if is_residue_task else too_long | cut_by_tokenizer),
        windowed=len(too_long) if is_residue_task else 0,
        unread=sum(tokenizer.unknown_residues(tokens) for tokens in encoded),
    )


def pieces_of(records: Sequence[Record], max_residues: int, is_residue_task: bool) -> Iterator[Piece]:
    """One piece per record, or the overlapping windows of a long one in residue tasks."""
    for index, record in enumerate(records):
        length = len(record.sequence)
        cuts = windows(length, max_residues) if is_residue_task else [(0, min(length, max_residues))]
        for (start, stop), answers in zip(cuts, answers_for(cuts), strict=True):
            yield Piece(index, start, stop, (answers[0] - start, answers[1] - start))


def example(
    record: Record,
    piece: Piece,
    tokens: Encoded,
    target: np.ndarray | None,
    is_residue_task: bool,
    extra_columns: Sequence[str],
) -> Example:
    """One tokenised piece with its part of the target."""
    return Example(
        record=piece.record,
        start=piece.start,
        input_ids=tokens.input_ids,
        residue_tokens=residue_to_token(tokens.spans, piece.stop - piece.start),
        scored=piece.answers,
        label=target[piece.start : piece.stop] if target is not None and is_residue_task else target,
        weight=1.0 if record.weight is None else record.weight,
        extra={name: extra_value(record, name, piece) for name in extra_columns},
    )


def check_extra_columns(names: Iterable[str]) -> None:
    """Refuse extra columns that would take the place of the model's own arguments."""
    taken = sorted(RESERVED_COLUMNS.intersection(names))
    if taken:
        raise PlftError(f"extra columns: the model has an argument '{taken[0]}' of its own. Rename the column.")


def extra_value(record: Record, column: str, piece: Piece) -> Any:
    """What a record holds in an extra column, a list with a value per residue cut to the piece.

    Raises PlftError where it holds nothing.
    """
    if column not in record.extra:
        raise PlftError(
            f"{record.place}: nothing for the extra column '{column}', which the head needs. "
            "Predict from a file with that column, or from Records."
        )
    value = record.extra[column]
    per_residue = isinstance(value, list | tuple | np.ndarray) and len(value) == len(record.sequence)
    return value[piece.start : piece.stop] if per_residue else value


def longest_input(family: Family, wanted: int | None = None) -> int:
    """Residues of the longest input: what the user wants within the family's hard limit, else the family's own."""
    if wanted is None:
        return family.trained_residues
    limit = residues_that_fit(family)
    if limit is not None and wanted > limit:
        raise PlftError(f"data.max_residues {wanted}: {family.title} takes at most {limit} residues.")
    return wanted


class SequenceDataModule:
    """Train, validation and test sets from files, tokenised for one model; the entry point for your own scripts.

    tokenizer: any transformers tokenizer.  preprocess_fn: turns a sequence into the text the tokenizer expects; by
    default what the recognised family needs (ProtBert: spaces between residues, U Z O B as X).  max_length: in tokens,
    special ones included.  task: a TaskType, its name, or "auto".  optional_features: columns handed to the head as
    keyword arguments.  config: the model's; without it the family is read off the tokenizer and its folder.
    Letters outside the alphabet are read as X or N; `unknown_letters` says how many.
    """

    def __init__(
        self,
        train_file: str | Path,
        val_file: str | Path | None,
        tokenizer: Any,
        preprocess_fn: Callable[[str], str] | None = None,
        max_length: int = 1024,
        test_file: str | Path | None = None,
        sequence_column: str = "sequence",
        label_column: str = "label",
        optional_features: Iterable[str] | None = None,
        task: TaskType | str = "auto",
        config: Any = None,
    ) -> None:
        extra = tuple(optional_features or ())
        columns = Columns(sequence=sequence_column, label=label_column, extra=extra)
        records = load_data(train_file, val_file, test_file, columns, labelled=True)
        self.tokenizer = tokenizer
        self.family = spelling_family(tokenizer, config, preprocess_fn)
        self.residue_tokenizer = ResidueTokenizer(tokenizer, self.family, preprocess=preprocess_fn)
        alphabet = ALPHABETS[self.family.alphabet]
        cleaned = [clean(each.sequence, alphabet, "map") for each in records]
        self.unknown_letters = sum(each.n_unknown for each in cleaned)
        records = [replace(each, sequence=new.sequence) for each, new in zip(records, cleaned, strict=True)]
        parts: dict[str, list[Record]] = {"train": [], "valid": [], "test": []}
        for each in records:
            parts.setdefault(each.split or "train", []).append(each)
        self.task = guess_task(records).task if task == "auto" else TaskType.named(task)
        self.labels = LabelSpace.fit(self.task, parts["train"], columns=columns.labels)
        self.datasets = {
            "validation" if name == "valid" else name: build_dataset(
                part,
                self.residue_tokenizer,
                self.labels,
                is_residue_task=self.task.is_residue,
                max_residues=self.residue_tokenizer.residues_within(max_length),
                extra_columns=extra,
            )
            for name, part in parts.items()
            if part
        }

    def get_datasets(self) -> dict[str, SequenceDataset]:
        """The tokenised sets by name: "train", "validation" and, where given, "test" and other splits of the files."""
        return self.datasets


def spelling_family(tokenizer: Any, config: Any, preprocess_fn: Callable[[str], str] | None) -> Family:
    """The family whose spelling a tokenizer expects; a PlftError where it cannot be told and nobody spells instead."""
    family = family_of(tokenizer, config)
    if family is None and preprocess_fn is None:
        raise PlftError(
            "Neither vocabulary nor special tokens of the tokenizer say how its model wants sequences spelled. "
            "Pass config= (the model's), or preprocess_fn= (a function from sequence to text)."
        )
    return family or recognise(None, tokenizer.get_vocab())
