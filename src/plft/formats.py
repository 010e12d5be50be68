"""File formats -> rows: CSV, TSV, JSON lines, Parquet and FASTA, compressed or not, one mapping per row."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from plft.errors import PlftError, first_three
from plft.labels import printable, shown

Row = Mapping[str, Any]

# --- opening


MAGIC: dict[bytes, tuple[str, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": (".gz", gzip.open),
    b"BZh": (".bz2", bz2.open),
    b"\xfd7zXZ\x00": (".xz", lzma.open),
}
COMPRESSED = tuple(suffix for suffix, _ in MAGIC.values())
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def _decompressed(file: IO[bytes], path: Path) -> IO[bytes]:
    """Wrap a file by what its first bytes say, so that a compressed file without the suffix is read too."""
    head = file.read(6)
    file.seek(0)
    for magic, (suffix, opener) in MAGIC.items():
        # "BZh" alone could also be the start of a text.
        if head.startswith(magic) and (suffix == path.suffix.lower() or not magic.isascii()):
            return opener(file)
    if head and path.suffix.lower() in COMPRESSED:
        raise PlftError(
            f"{path.name}: ends in {path.suffix} but is not compressed. Remove that ending, or compress it."
        )
    return file


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, line ends included; UTF-8, with or without a byte-order mark."""
    with path.open("rb") as file, io.TextIOWrapper(_decompressed(file, path), "utf-8-sig", newline="") as text:
        for line in text:
            if "\0" in line:
                raise PlftError(f"{path.name}: holds a NUL byte, so it is not UTF-8 text. Save it as UTF-8 text.")
            yield line


SPLIT_NAMES = {
    "val": "valid",
    "dev": "valid",
    "validation": "valid",
    "valid": "valid",
    "training": "train",
    "train": "train",
    "testing": "test",
    "test": "test",
}


def split_name(text: str) -> str:
    """Return train, valid or test for the usual spellings (dev, Validation, ...); other names stay as they are."""
    return SPLIT_NAMES.get(text.strip().lower(), text.strip())


# --- one reader per format: a path -> rows


def _delimited(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        # The default limit of 131,072 characters is shorter than many genomes.
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        table = csv.reader(_lines(path), delimiter=delimiter, strict=True)
        try:
            yield from _mappings(path, table, delimiter)
        except csv.Error as error:
            raise PlftError(
                f"{path.name}, line {table.line_num}: {_one_line(error)}. Check the quotes there."
            ) from error

    return rows


def _mappings(path: Path, table: Iterator[list[str]], delimiter: str) -> Iterator[Row]:
    filled = (values for values in table if values and (len(values) > 1 or values[0].strip()))
    header = [name.strip() for name in next(filled, [])]
    _refuse_twice(path, header)
    _refuse_other_delimiter(path, header, delimiter)
    for row, values in enumerate(filled, start=1):
        if len(values) != len(header):
            raise _wrong_number_of_fields(path, row, len(values), len(header))
        yield dict(zip(header, values, strict=True))


def _refuse_twice(path: Path, header: Sequence[str]) -> None:
    twice = [shown(name) for index, name in enumerate(header) if name and name in header[:index]]
    if twice:
        raise PlftError(f"{path.name}: several columns are named {first_three(twice)}. Give each its own name.")


def _refuse_other_delimiter(path: Path, header: Sequence[str], delimiter: str) -> None:
    other = {",": "a comma", "\t": "a tab", ";": "a semicolon"}
    for sign, name in other.items():
        if len(header) == 1 and sign != delimiter and sign in header[0]:
            raise PlftError(
                f"{path.name}: columns seem to be separated by {name}. Use commas in .csv files and tabs in .tsv files."
            )


def _wrong_number_of_fields(path: Path, row: int, n_fields: int, n_columns: int) -> PlftError:
    hint = "Put values that hold the separator in double quotes." if n_fields > n_columns else "Add the missing ones."
    return PlftError(f"{path.name}, row {row}: {n_fields} fields where the header has {n_columns}. {hint}")


def _json_lines(path: Path) -> Iterator[Row]:
    lines = (line for line in _lines(path) if line.strip())
    for row, line in enumerate(lines, start=1):
        if row == 1 and line.lstrip().startswith("["):
            raise PlftError(f"{path.name}: is one JSON array. Write one JSON object per line instead.")
        yield _json_object(path, row, line)


def _json_object(path: Path, row: int, line: str) -> Row:
    try:
        found = json.loads(line)
        if "\\u" in line:
            # Half of a surrogate pair is valid JSON but no text: it could never be written again.
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PlftError(f"{path.name}, row {row}: broken JSON ({_one_line(error)}). Correct that line.") from error
    if not isinstance(found, dict):
        raise PlftError(f"{path.name}, row {row}: is not a JSON object. Write one object with its keys per line.")
    return found


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _refuse_twice(path, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    # Damaged files also surface as the built-in errors of the conversion to Python values.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError, MemoryError, TypeError) as error:
        raise PlftError(f"{path.name}: cannot be read as Parquet ({_one_line(error)}). Write it anew.") from error


FASTA_ALIASES = {"target": "label", "set": "split"}
FASTA_LABELS = {"label", "target"}
FASTA_KEYS = {"label", "split", "mask", "weight", "validation", *FASTA_ALIASES}


def _fasta(path: Path) -> Iterator[Row]:
    """Yield the entries of a FASTA file.

    Read here rather than by dnaio, which decodes in the encoding of the locale, refuses byte-order marks and letters
    outside ASCII in headers, and leaves out lines that start with ``#``.
    """
    header: str | None = None
    parts: list[str] = []
    for line in _lines(path):
        text = line.strip()
        if text.startswith(">"):
            if header is not None:
                yield _fasta_row(header, parts)
            header, parts = text[1:], []
        elif text and header is None and not text.startswith(";"):
            raise PlftError(f"{path.name}: starts with {shown(text, 20)}, but FASTA starts with '>'. Check the format.")
        elif header is not None:
            parts.append(text)
    if header is not None:
        yield _fasta_row(header, parts)


def _fasta_row(header: str, parts: Sequence[str]) -> Row:
    name, *words = header.split() or [""]
    for word, after in pairwise(words):
        if word.partition("=")[0].lower() in FASTA_LABELS and "=" in word and "=" not in after:
            raise PlftError(f">{name}: the label {shown(f'{word} {after}')} holds a space. Use commas or another sign.")
    pairs = (word.split("=", 1) for word in words if "=" in word)
    found = {key.lower() if key.lower() in FASTA_KEYS else key: value for key, value in pairs}
    for alias, key in FASTA_ALIASES.items():
        if alias in found:
            found.setdefault(key, found.pop(alias))
    # biotrainer marks the validation part inside SET=train.
    if found.pop("validation", "").lower() == "true" and split_name(found.get("split", "train")) == "train":
        found["split"] = "valid"
    return {**found, "id": name, "sequence": "".join(parts)}


@dataclass(frozen=True)
class Reader:
    """How files of one format are read.

    rows: a path -> one mapping per row.  same_columns: every row has the same keys.  keeps_all: further keys become
    extras unasked.  compressible: may end in .gz, .bz2 or .xz.
    """

    title: str
    rows: Callable[[Path], Iterator[Row]]
    same_columns: bool = True
    keeps_all: bool = False
    compressible: bool = True


_CSV = Reader("CSV", _delimited(","))
_JSON = Reader("JSON lines", _json_lines, same_columns=False)
FASTA = Reader("FASTA", _fasta, same_columns=False, keeps_all=True)
READERS: dict[str, Reader] = {
    ".csv": _CSV,
    ".tsv": Reader("TSV", _delimited("\t")),
    ".jsonl": _JSON,
    ".json": _JSON,
    ".parquet": Reader("Parquet", _parquet, compressible=False),
    ".fasta": FASTA,
    ".fa": FASTA,
    ".faa": FASTA,
    ".fna": FASTA,
    ".fas": FASTA,
}


def reader_of(path: Path) -> Reader:
    """Return the reader for a file by its ending; PlftError for an ending that no reader knows."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSED
    reader = READERS.get((suffixes[:-1] if packed else suffixes)[-1:][0] if len(suffixes) > packed else "")
    if reader is None or (packed and not reader.compressible):
        known = ", ".join(READERS)
        raise PlftError(f"{path.name}: unknown kind of file. Known endings: {known}, all but .parquet also with .gz.")
    return reader


def rows_of(path: Path, reader: Reader) -> Iterator[Row]:
    """Yield the rows; whatever the libraries below raise about a damaged file becomes a PlftError."""
    try:
        yield from reader.rows(path)
    except UnicodeDecodeError as error:
        raise PlftError(f"{path.name}: is not UTF-8 text ({error.reason}). Save it as UTF-8 text.") from error
    except DAMAGED as error:
        raise PlftError(f"{path.name}: is damaged or cut short ({_one_line(error)}). Fetch it again.") from error
    except OSError as error:
        raise PlftError(f"{path.name}: cannot be read ({_one_line(error)}).") from error


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()).rstrip("."), 160)
