"""Model + sequences -> predictions, streamed: constant memory, order kept, every input answered."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from plft.alphabet import ALPHABETS, clean, tidy, unknown_letters
from plft.batching import INFERENCE_BUDGET
from plft.certainty import Certainty
from plft.dataset import SequenceDataset, build_dataset
from plft.errors import PlftError
from plft.families import Family
from plft.labels import LabelSpace
from plft.model import infer
from plft.peaks import give_back
from plft.records import Record
from plft.tables import Row, TableWriter
from plft.tokens import ResidueTokenizer
from plft.tuning import has_4bit_layers

CHUNK_RESIDUES = 400_000  # of the sequences held and sorted by length at a time
CHUNK_RECORDS = 4096  # at most: of short ones the outputs take more room


@dataclass(frozen=True)
class Predictor:
    """A trained model with all that is needed to answer for a raw sequence.

    model: takes batches of `batching.collate` and returns logits.  max_residues: see `data.max_residues`.
    unknown_letters: "map" or "error".  budget: tokens per batch, padding included.  certainty: how outputs are
    calibrated, and what the validation part says of them.
    """

    model: nn.Module
    tokenizer: ResidueTokenizer
    labels: LabelSpace
    family: Family
    max_residues: int
    unknown_letters: str = "map"
    extra_columns: tuple[str, ...] = ()
    precision: str = "fp32"
    budget: int = INFERENCE_BUDGET
    certainty: Certainty = field(default_factory=Certainty)

    @property
    def is_residue_task(self) -> bool:
        """Whether there is an output per residue."""
        return self.labels.task.is_residue

    def tidied(self, record: Record) -> Record:
        """The record with its letters fit for the family; a letter that is not allowed is a PlftError."""
        policy = "error" if self.unknown_letters == "error" else "map"  # an input is never dropped without an answer
        alphabet = ALPHABETS[self.family.alphabet]
        return replace(record, sequence=clean(tidy(record.sequence), alphabet, policy, record.place).sequence)

    def count_unknown(self, records: Iterable[Record]) -> int:
        """Letters of the records that the family's alphabet lacks."""
        alphabet = ALPHABETS[self.family.alphabet]
        return sum(len(unknown_letters(tidy(each.sequence), alphabet)) for each in records)

    def dataset(self, records: Sequence[Record], *, labelled: bool, unseen: str = "error") -> SequenceDataset:
        """Tokenise records for this model."""
        return build_dataset(
            [self.tidied(each) for each in records],
            self.tokenizer,
            self.labels if labelled else None,
            is_residue_task=self.is_residue_task,
            max_residues=self.max_residues,
            unseen=unseen,
            extra_columns=self.extra_columns,
        )

    def outputs(self, dataset: SequenceDataset, each_batch: Callable[[int], Any] | None = None) -> list[np.ndarray]:
        """Outputs per record: calibrated probabilities (classes,) or values (columns,).

        Residues come first in residue tasks.
        """
        return self.certainty.calibrated(self.raw(dataset, each_batch)[0])

    def raw(
        self, dataset: SequenceDataset, each_batch: Callable[[int], Any] | None = None, with_states: bool = False
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Outputs per record before calibration and, where asked for, the mean hidden states (records, width)."""
        states: list[np.ndarray] | None = [] if with_states else None
        options = {"budget": self.budget, "precision": self.precision, "each_batch": each_batch}
        outputs = infer(self.model, dataset, self.labels, **options, states=states)  # type: ignore[arg-type]
        return outputs, np.stack(states).astype(np.float32) if states else None

    def stream(
        self, records: Iterable[Record], each_batch: Callable[[int], Any] | None = None
    ) -> Iterator[tuple[Record, np.ndarray]]:
        """Answer for each record in order, holding only a chunk of them at a time."""
        for chunk in chunks(records, CHUNK_RESIDUES):
            yield from zip(chunk, self.outputs(self.dataset(chunk, labelled=False), each_batch), strict=True)

    def predict(self, sequences: str | Iterable[str | Record]) -> list[Any]:
        """Predictions for sequences given as text or records, in their order.

        One entry per sequence: a class name, a number (a dict of numbers for several columns), a list of class names
        for multi-label, and for residue tasks a list with one entry per residue.
        """
        given = [sequences] if isinstance(sequences, str) else sequences
        records = (as_record(each, index) for index, each in enumerate(given, start=1))
        return [self.readable(output) for _, output in self.stream(records)]

    def probabilities(self, sequences: str | Iterable[str | Record]) -> list[np.ndarray]:
        """Raw outputs for sequences, in their order: see `outputs`."""
        given = [sequences] if isinstance(sequences, str) else sequences
        records = (as_record(each, index) for index, each in enumerate(given, start=1))
        return [output for _, output in self.stream(records)]

    def readable(self, output: np.ndarray) -> Any:
        """One output as class names or numbers."""
        labels = self.labels
        if labels.task.is_multilabel:
            return [name for name, p in zip(labels.classes, output, strict=True) if p >= 0.5]
        if labels.task.is_classification:
            best = output.argmax(-1)
            return [labels.classes[index] for index in best] if self.is_residue_task else labels.classes[int(best)]
        if self.is_residue_task:
            return [float(value) for value in output]
        values = dict(zip(labels.columns, (float(value) for value in output), strict=True))
        return values if len(values) > 1 else next(iter(values.values()))

    def rows(self, record: Record, output: np.ndarray, beside: Row, target: np.ndarray | None = None) -> Iterator[Row]:
        """The rows of the prediction table for one record: one, or one per residue.

        beside: cells of the sequence that every row ends with, as `Certainty.distance_cells` makes them; may be empty.
        """
        if not self.is_residue_task:
            yield {"id": record.id, **self.cells(output, target, beside)} | beside
            return
        for position, letter in enumerate(record.sequence):
            at = None if target is None else target[position]
            place = {"id": record.id, "position": position + 1, "residue": letter}
            yield place | self.cells(output[position], at, beside) | beside

    def cells(self, output: Any, target: Any, beside: Row) -> Row:
        """Label (where known), prediction, interval or set, and probabilities of one output."""
        labels = self.labels
        if labels.task.is_regression:
            values = np.atleast_1d(output)
            return number_cells(labels.columns, values, target) | self.certainty.interval_cells(labels, values, beside)
        if labels.task.is_multilabel:
            chosen = joined_classes(labels.classes, np.asarray(output) >= 0.5)
            true = None if target is None else joined_classes(labels.classes, target)
        else:
            chosen = labels.classes[int(np.argmax(output))]
            true = None if target is None else labels.classes[int(target)] if target >= 0 else ""
        row = {} if target is None else {"label": true}
        row["prediction"] = chosen
        row |= self.certainty.set_cells(labels, np.asarray(output))
        return row | {f"probability_{name}": round(float(p), 6) for name, p in zip(labels.classes, output, strict=True)}


def joined_classes(classes: Sequence[str], target: np.ndarray) -> str:
    """The classes of a multi-label target joined by ``|``: "|" for none of them, "" when the label is missing.

    A class of which nothing is known while others are known is followed by ``?``.
    """
    if np.isnan(target).all():
        return ""
    there = [(name, present) for name, present in zip(classes, target, strict=True) if present != 0]
    return "|".join(f"{name}?" if np.isnan(present) else name for name, present in there) or "|"


def number_cells(columns: Sequence[str], values: np.ndarray, target: np.ndarray | None) -> Row:
    """label and prediction of a regression; with several columns label_<column> and prediction_<column>."""
    row: Row = {}
    targets = None if target is None else np.atleast_1d(target)
    for index, column in enumerate(columns):
        suffix = f"_{column}" if len(columns) > 1 else ""
        if targets is not None:
            row[f"label{suffix}"] = "" if np.isnan(targets[index]) else float(f"{targets[index]:.7g}")
        row[f"prediction{suffix}"] = float(f"{values[index]:.7g}")
    return row


def as_record(given: str | Record, number: int) -> Record:
    """Wrap a plain sequence in a record whose id is its number; an empty sequence is a PlftError."""
    if isinstance(given, Record):
        return given
    sequence = tidy(given)
    if not sequence:
        raise PlftError(f"Sequence {number} is empty. Every input needs at least one residue.")
    return Record(str(number), sequence, None, None, None, None, {}, "sequences", number)


def chunks(records: Iterable[Record], residues: int) -> Iterator[list[Record]]:
    """Cut a stream of records into lists of about that many residues, and of CHUNK_RECORDS at most.

    Memory that work on a list left behind is given back before the next one, or it would grow over a proteome.
    """
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.sequence)
        if size >= residues or len(chunk) == CHUNK_RECORDS:
            yield chunk
            chunk, size = [], 0
            give_back()
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Answered:
    """How many sequences were answered, how many of them were truncated or cut into windows, and at what length."""

    sequences: int = 0
    truncated: int = 0
    windowed: int = 0
    max_residues: int = 0
    unknown_letters: int = 0

    def plus(self, more: Answered) -> Answered:
        """Both together."""
        return Answered(
            self.sequences + more.sequences,
            self.truncated + more.truncated,
            self.windowed + more.windowed,
            more.max_residues,
            self.unknown_letters + more.unknown_letters,
        )

    @property
    def sentences(self) -> list[str]:
        """What the user should know, as sentences."""
        longer = f"sequences are longer than {self.max_residues} residues and"
        found = [f"{self.sequences:,} sequences answered"]
        found += [f"{self.truncated:,} {longer} were answered from their first part"] if self.truncated else []
        letters = f"{self.unknown_letters:,} letters are not in the alphabet and were read as X or N"
        found += [letters] if self.unknown_letters else []
        return found + ([f"{self.windowed:,} {longer} were answered in overlapping windows"] if self.windowed else [])


# records, outputs and counts of a chunk, and the cells that the rows of each record get beside the predictor's own
Answers = tuple[list[Record], list[np.ndarray], Answered, list[Row]]


T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in their order; while one is worked on, the next is made in another thread."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as reader:
        coming: Future[Any] = reader.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, iterator, end)
            yield item


Chunk = tuple[list[Record], SequenceDataset]


def tokenised(predictor: Predictor, records: Iterable[Record], residues: int) -> Iterator[Chunk]:
    """Chunks of the records, as the model reads them."""
    for chunk in chunks(records, residues):
        yield chunk, predictor.dataset(chunk, labelled=False)


def answer(
    predictor: Predictor, chunk: list[Record], dataset: SequenceDataset, each_batch: Callable[[int], Any] | None = None
) -> Answers:
    """A chunk of records with the outputs for each, and what happened to them."""
    certainty = predictor.certainty
    raw, states = predictor.raw(dataset, each_batch, with_states=certainty.neighbours is not None)
    letters = predictor.count_unknown(chunk)
    counts = Answered(len(chunk), dataset.truncated, dataset.windowed, predictor.max_residues, letters)
    return chunk, certainty.calibrated(raw), counts, certainty.distance_cells(states, len(chunk))


def answers(
    predictor: Predictor,
    records: Iterable[Record],
    each_batch: Callable[[int], Any] | None = None,
    workers: int = 1,
    again: Callable[[], Predictor] | None = None,
) -> Iterator[Answers]:
    """Answer chunk by chunk, in the order of the records; only a few chunks are held at a time.

    workers: processes that share the work; each calls `again` (picklable) for a predictor of its own.
    """
    if workers > 1 and again is not None:
        return _answers_by_workers(again, records, workers, each_batch)
    return (answer(predictor, *each, each_batch) for each in ahead(tokenised(predictor, records, CHUNK_RESIDUES)))


def _answers_by_workers(
    load: Callable[[], Predictor], records: Iterable[Record], workers: int, each_batch: Callable[[int], Any] | None
) -> Iterator[Answers]:
    threads = max(1, torch.get_num_threads() // workers)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_work, initargs=(load, threads)) as pool:
        waiting: deque[Future[Answers]] = deque()
        try:
            for chunk in chunks(records, CHUNK_RESIDUES // workers):
                waiting.append(pool.submit(_work, chunk))
                if len(waiting) > 2 * workers:
                    yield _told(waiting.popleft().result(), each_batch)
            while waiting:
                yield _told(waiting.popleft().result(), each_batch)
        except BrokenProcessPool:
            raise PlftError("A worker was ended, most likely for want of memory. Take fewer --workers.") from None
        finally:
            for each in waiting:
                each.cancel()


_predictor: Predictor | None = None  # of a worker process


def _begin_work(load: Callable[[], Predictor], threads: int) -> None:
    global _predictor
    torch.set_num_threads(threads)
    _predictor = load()


def _work(chunk: list[Record]) -> Answers:
    assert _predictor is not None
    give_back()  # `chunks` does so in the process that reads
    return answer(_predictor, chunk, _predictor.dataset(chunk, labelled=False))


def _told(answers: Answers, each_batch: Callable[[int], Any] | None) -> Answers:
    if each_batch is not None:
        each_batch(len(answers[0]))
    return answers


def write_predictions(
    answers: Iterable[Answers], path: str | Path, rows: Callable[[Record, np.ndarray, Row], Iterable[Row]]
) -> Answered:
    """Stream answers into a table, beside the target first; returns what was answered.

    rows: (record, output, cells beside it) -> rows of the table, for example `Predictor.rows`.  A chunk is written
    while the next one is computed.
    """
    total = Answered()
    with TableWriter(path) as write, ThreadPoolExecutor(1) as writer:

        def put(chunk: list[Record], outputs: list[np.ndarray], beside: list[Row]) -> None:
            answered = zip(chunk, outputs, beside, strict=True)
            write(row for record, output, cells in answered for row in rows(record, output, cells))

        writing: Future[None] | None = None
        for chunk, outputs, counts, beside in answers:
            if writing is not None:
                writing.result()
            writing = writer.submit(put, chunk, outputs, beside)
            total = total.plus(counts)
        if writing is not None:
            writing.result()
    return total


def choose_device(model: Any) -> torch.device:
    """Move the model to the best device there is and return it; 4-bit models stay where they were loaded."""
    name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if has_4bit_layers(model):
        device = next(model.backbone.parameters()).device
        model.head.to(device)  # only the backbone is quantised, and only it was placed by transformers
        return device
    model.to(name)
    return torch.device(name)
