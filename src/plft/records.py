"""Sequence files -> records: what a row says about one sequence; whole data sets with their splits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from plft.alphabet import tidy
from plft.errors import PlftError, did_you_mean, first_three
from plft.formats import COMPRESSED, FASTA, READERS, SPLIT_NAMES, Reader, Row, reader_of, rows_of, split_name
from plft.labels import Label, as_text, fits_residues, is_missing, number, printable, shown


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence of a file, with what the file says about it.

    sequence: upper case, no white space, as in the file otherwise.  label: text; a tuple for several label columns; a
    list from JSON lines and Parquet; None where there is none.  split: train, valid, test or another name.  mask: one
    character per residue, "0" where the label does not count.  extra: other columns that were asked for, and the
    other KEY=VALUE words of a FASTA header.  file: its name without folder.  row: from 1, blank lines not counted.
    """

    id: str
    sequence: str
    label: Label | None = None
    split: str | None = None
    mask: str | None = None
    weight: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    row: int = 1

    @property
    def place(self) -> str:
        """Where the record comes from, for messages: ``train.csv, row 7 (id seq3)``."""
        return place_of(self.file, self.row, self.id)


def place_of(file: str, row: int, name: str = "") -> str:
    """Return ``train.csv, row 7 (id seq3)`` as one printable line; without a name of its own the id is left out."""
    known = f" (id {printable(name)})" if name and name != str(row) else ""
    return f"{file}, row {row}{known}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns, looked up without regard to case where that is unambiguous.

    label: a tuple means several label columns.  mask, weight: None where there is none.  extra: further columns to keep
    in ``Record.extra``.  required: those among the others that must be there, beside the sequence, ``extra`` and the
    labels of labelled records; None means all that differ from the default.
    """

    sequence: str = "sequence"
    label: str | tuple[str, ...] = "label"
    id: str = "id"
    split: str = "split"
    mask: str | None = "mask"
    weight: str | None = "weight"
    extra: tuple[str, ...] = ()
    required: tuple[str, ...] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The label columns as a tuple."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)

    def must_be_there(self, labelled: bool | None) -> set[str]:
        """Return the columns whose absence is an error. ``labelled``: as in ``read_records``."""
        defaults = {each.default for each in fields(Columns)}
        named = {self.sequence, *self.extra, *(self.required or ())}
        if labelled is not False and self.required is None:
            named |= {name for name in _single(self) if name not in defaults}
        if labelled or (labelled is None and self.labels != ("label",)):
            named |= set(self.labels)
        return named


# --- rows -> records


NO_SEQUENCE = frozenset({"", "nan", "NaN", "None", "null", "NULL", "<NA>"})


@dataclass(frozen=True)
class Layout:
    """The key of each column in the rows of one file; None where the column is absent."""

    sequence: str
    labels: tuple[str | None, ...]
    id: str | None
    split: str | None
    mask: str | None
    weight: str | None
    extra: Mapping[str, str]


def _key(name: str, keys: Sequence[str], file: str) -> str | None:
    if name in keys:
        return name
    close = [key for key in keys if key.strip().lower() == name.lower()]
    if len(close) > 1:
        raise PlftError(f"{file}: columns {first_three(list(map(shown, close)))} could all be '{name}'. Rename them.")
    return close[0] if close else None


def no_such_column(file: str, name: str, keys: Iterable[str]) -> PlftError:
    """Build the error for a column that is not there: the columns there are, and the nearest guess."""
    known = [printable(key) for key in keys]
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    guess = did_you_mean(name, known) or " Rename one, or name the column to use."
    return PlftError(f"{file}: no column '{name}'. Columns: {listed or 'none'}.{guess}")


def _layout(keys: Sequence[str], columns: Columns, labelled: bool | None, reader: Reader, file: str) -> Layout:
    found = {name: _key(name, keys, file) for name in (*_single(columns), *columns.labels, *columns.extra)}
    required = columns.must_be_there(labelled) if reader.same_columns else {columns.sequence}
    for name in (columns.sequence, *sorted(required)):
        if name in required and found[name] is None:
            raise no_such_column(file, name, keys)
    labels = tuple(found[name] for name in columns.labels) if labelled is not False else ()
    extra = {name: key for name in columns.extra if (key := found[name]) is not None}
    if reader.keeps_all:
        extra |= {key: key for key in keys if key not in found.values()}
    sequence, id_key, split = (found[name] for name in (columns.sequence, columns.id, columns.split))
    # nothing is learned or scored without labels, so a column that is called so means something else
    mask, weight = (found.get(name or "") if labelled is not False else None for name in (columns.mask, columns.weight))
    return Layout(sequence or "", labels, id_key, split, mask, weight, extra)


def _single(columns: Columns) -> tuple[str, ...]:
    names = (columns.sequence, columns.id, columns.split, columns.mask, columns.weight)
    return tuple(name for name in names if name is not None)


def read_records(path: str | Path, columns: Columns | None = None, *, labelled: bool | None = None) -> Iterator[Record]:
    """Read a file as a stream of records, in constant memory.

    labelled: True requires the label column, False leaves labels out, None takes them where they are.  A column that
    FASTA or JSON lines never mention is reported when the file ends.  Raises PlftError for everything wrong with the
    file: at once where the file is missing or of an unknown kind, at the row otherwise.
    """
    path = Path(path)
    columns = columns or Columns()
    if not path.is_file():
        raise _no_such_file(path)
    reader = reader_of(path)
    if reader is FASTA:
        columns = replace(columns, sequence="sequence", id="id")
    return _records(path, reader, columns, labelled)


def _no_such_file(path: Path) -> PlftError:
    if path.is_dir():
        return PlftError(f"{path} is a folder. Name a file in it.")
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return PlftError(f"No such file: {path}.{did_you_mean(path.name, siblings)}")


def _records(path: Path, reader: Reader, columns: Columns, labelled: bool | None) -> Iterator[Record]:
    layouts: dict[tuple[str, ...], Layout] = {}
    row = 0
    for row, values in enumerate(rows_of(path, reader), start=1):
        keys = tuple(values)
        if keys not in layouts:
            layouts[keys] = _layout(keys, columns, labelled, reader, path.name)
        yield _record(path.name, row, values, layouts[keys])
    if not row:
        what = "is empty" if not path.stat().st_size else "holds no sequences"
        raise PlftError(f"{path.name}: {what}. Give a file with at least one sequence.")
    ever = {key.strip().lower() for keys in layouts for key in keys}
    for name in sorted(columns.must_be_there(labelled)):
        if name.lower() not in ever:
            raise no_such_column(path.name, name, sorted(ever))


def _record(file: str, row: int, values: Row, layout: Layout) -> Record:
    name = _cell(values, layout.id).strip() or str(row)
    place = (file, row, name)
    label = _label(values, layout.labels, place)
    sequence = _sequence(values.get(layout.sequence), place)
    if sequence.endswith("*") and not fits_residues(label, len(sequence)):  # a stop codon
        sequence = sequence[:-1]
    return Record(
        id=name,
        sequence=sequence,
        label=label,
        split=split_name(_cell(values, layout.split)) or None,
        mask=_mask(values.get(layout.mask) if layout.mask else None, place),
        weight=_weight(_cell(values, layout.weight), place),
        extra={name: values[key] for name, key in layout.extra.items()},
        file=file,
        row=row,
    )


Place = tuple[str, int, str]


def _cell(values: Row, key: str | None) -> str:
    return as_text(values.get(key)) if key is not None else ""


def _sequence(value: object, place: Place) -> str:
    if value is not None and not isinstance(value, str | float):
        raise PlftError(f"{place_of(*place)}: the sequence is not text but {shown(value)}. Check the sequence column.")
    text = as_text(value).strip()
    if text in NO_SEQUENCE:
        raise PlftError(f"{place_of(*place)}: has no sequence. Fill it in, or remove the row.")
    sequence = tidy(text)
    if not (sequence.isascii() and sequence.isprintable()) or not (sequence[0].isalpha() or _has_letter(sequence)):
        raise PlftError(f"{place_of(*place)}: {shown(text)} is not a sequence. Check the sequence column.")
    return sequence


def _has_letter(sequence: str) -> bool:
    return any(letter.isalpha() for letter in sequence)


def _label(values: Row, keys: Sequence[str | None], place: Place) -> Label | None:
    if len(keys) > 1:
        return tuple(_cell(values, key) for key in keys)
    value = values.get(keys[0]) if keys and keys[0] is not None else None
    if isinstance(value, list):
        if any(isinstance(entry, list | dict | bytes) for entry in value):
            raise PlftError(f"{place_of(*place)}: the label is a list of lists or objects. Give a flat list.")
        return value
    if isinstance(value, dict | bytes):
        raise PlftError(f"{place_of(*place)}: the label is neither text, a number nor a list. Check the label column.")
    return as_text(value) or None


MASK_VALUES = {"0": "0", "0.0": "0", "False": "0", "1": "1", "1.0": "1", "True": "1"}


def _mask(value: object, place: Place) -> str | None:
    if isinstance(value, list):
        mask = "".join(MASK_VALUES.get(as_text(entry), "?") for entry in value)
    else:
        mask = "".join(as_text(value).replace(",", " ").split())
    if not mask.strip("01"):
        return mask or None
    raise PlftError(f"{place_of(*place)}: the mask {shown(mask)} may hold only 0 and 1, one for each residue.")


def _weight(text: str, place: Place) -> float | None:
    if is_missing(text):
        return None
    weight = number(text)
    if weight is None or not math.isfinite(weight) or weight < 0:
        raise PlftError(f"{place_of(*place)}: the weight {shown(text)} is not a number of at least 0. Correct it.")
    return weight


# --- whole data sets


FILE_NAME = re.compile(r"\w[\w .+-]{0,60}")  # no slash: predictions/<split>.csv must stay inside the run folder
MOST_SPLITS = 20  # more than that is a column of something else


def load_data(
    file: str | Path,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    columns: Columns | None = None,
    *,
    labelled: bool | None = None,
) -> list[Record]:
    """Read a file with its valid and test files, or a folder that holds train, valid (dev, val) and test files.

    Records get their split from the split column, otherwise from the file; ``valid`` and ``test`` always mean what
    they say, and replace those of a folder.  A single file without a split column gives records without a split.
    Raises PlftError as ``read_records`` does, and for a folder that holds no train file or two for the same split.
    """
    records = _all_records(Path(file), valid, test, columns or Columns(), labelled)
    splits = list(dict.fromkeys(record.split for record in records if record.split))
    if len(splits) > MOST_SPLITS:
        raise PlftError(
            f"{printable(Path(file).name)}: {len(splits)} different splits ({first_three(list(map(shown, splits)))}); "
            "expected a few such as train, valid and test. Check the split column."
        )
    unfit = [shown(split) for split in splits if not FILE_NAME.fullmatch(split)]
    if unfit:
        raise PlftError(
            f"{printable(Path(file).name)}: the split {first_three(unfit)} cannot name the file of its predictions. "
            "Use letters, digits, - and _."
        )
    return records


def _all_records(
    path: Path, valid: str | Path | None, test: str | Path | None, columns: Columns, labelled: bool | None
) -> list[Record]:
    named = {name: part for name, part in (("valid", valid), ("test", test)) if part is not None}
    if path.is_dir():  # a file that is named takes the place of the folder's own
        parts = {split: part for split, part in files_of_folder(path).items() if split not in named}
        records = [record for split, part in parts.items() for record in _with_split(part, columns, labelled, split)]
    else:
        records = _with_split(path, columns, labelled, "train" if named else None)
    # These two need no split column, even where the user named one for the main file.
    unsplit = replace(columns, split=Columns.split)
    for name, part in named.items():
        records += [replace(each, split=name) for each in read_records(part, unsplit, labelled=labelled)]
    return records


def _with_split(path: Path, columns: Columns, labelled: bool | None, split: str | None) -> list[Record]:
    records = read_records(path, columns, labelled=labelled)
    return [record if record.split or split is None else replace(record, split=split) for record in records]


def files_of_folder(folder: Path) -> dict[str, Path]:
    """Find the data files of a folder: split name -> path, train first.

    ``dev.csv`` is the valid split; ``train_sequences.fasta`` the train split where there is no ``train.fasta``;
    otherwise ``test_hard.csv`` becomes a split of its own.  Other files are left alone.
    """
    stems = {path: path.name.split(".")[0] for path in sorted(folder.iterdir()) if _is_data(path)}
    exact = [(SPLIT_NAMES[stem.lower()], path) for path, stem in stems.items() if stem.lower() in SPLIT_NAMES]
    for split, path in exact:
        others = [other.name for name, other in exact if name == split and other != path]
        if others:
            raise PlftError(f"{folder}: both {path.name} and {others[0]} could be the {split} split. Remove one.")
    parts = dict(exact)
    rest = [(path, stem) for path, stem in stems.items() if path not in parts.values() and _split_word(stem)]
    for path, stem in rest:
        alone = [_split_word(other) for _, other in rest].count(_split_word(stem)) == 1
        parts[_split_word(stem) if alone and _split_word(stem) not in parts else stem] = path
    if "train" not in parts:
        names = first_three([path.name for path in stems]) or "no data file"
        raise PlftError(f"{folder}: holds no train file (it holds {names}). Name one file, or call one train.csv.")
    order = ["train", "valid", "test"]
    return dict(sorted(parts.items(), key=lambda part: (order.index(part[0]) if part[0] in order else 3, part[0])))


def _is_data(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    return path.is_file() and bool(suffixes) and suffixes[-1] in READERS


def _split_word(stem: str) -> str:
    return SPLIT_NAMES.get(stem.lower().replace("-", "_").split("_")[0], "")
