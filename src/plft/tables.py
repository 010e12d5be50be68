"""Rows -> table files, written beside the target and renamed into place."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from plft.errors import PlftError, look_up

Row = dict[str, Any]


class TableWriter:
    """Writes rows to CSV, TSV, JSON lines or Parquet beside the target and renames them into place at the end.

    Used as a context manager; after an error nothing is left behind and an existing file is untouched.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.open_table = look_up("table format", self.path.suffix.lower(), WRITERS)
        self.partial = self.path.with_name(f".{self.path.name}.part")
        if self.path.is_dir():
            raise PlftError(f"{self.path} is a folder. Name the file to write.")

    def __enter__(self) -> Callable[[Iterable[Row]], None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.table = self.open_table(self.partial)
        except OSError as error:
            raise PlftError(f"{self.path} cannot be written: {error.strerror}. Choose another place.") from None
        return self.table.write

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.table.close()
            if kind is None:
                os.replace(self.partial, self.path)
        except OSError as full_disk:
            error = error or full_disk
        finally:
            self.partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise PlftError(f"{self.path} cannot be written: {error.strerror}. Choose another place.") from error


class DelimitedTable:
    """Rows as comma- or tab-separated text; the header comes from the first row."""

    def __init__(self, file: Path, delimiter: str = ",") -> None:
        self.handle: IO[str] = file.open("w", newline="", encoding="utf-8")
        self.delimiter = delimiter
        self.writer: Any = None

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        for row in rows:
            if self.writer is None:
                self.writer = csv.DictWriter(self.handle, list(row), delimiter=self.delimiter, lineterminator="\n")
                self.writer.writeheader()
            self.writer.writerow(row)

    def close(self) -> None:
        """Finish the file."""
        self.handle.close()


class JsonTable:
    """Rows as one JSON object a line."""

    def __init__(self, file: Path) -> None:
        self.handle: IO[str] = file.open("w", encoding="utf-8")

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        for row in rows:
            self.handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Finish the file."""
        self.handle.close()


ROW_GROUP = 50_000


class ParquetTable:
    """Rows as Parquet, in row groups of up to ROW_GROUP rows."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.writer: Any = None

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        remaining = iter(rows)
        while batch := list(islice(remaining, ROW_GROUP)):
            try:
                table = pa.Table.from_pylist(batch, schema=None if self.writer is None else self.writer.schema)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                reason = str(error).splitlines()[0]
                raise PlftError(f"A column holds values of several kinds ({reason}). Write .csv or .jsonl.") from error
            if self.writer is None:
                self.writer = pq.ParquetWriter(self.file, table.schema)
            self.writer.write_table(table)

    def close(self) -> None:
        """Finish the file; without rows it is a table without columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.writer is not None:
            self.writer.close()
        else:
            pq.write_table(pa.table({}), self.file)


WRITERS: Mapping[str, Callable[[Path], Any]] = {
    ".csv": DelimitedTable,
    ".tsv": lambda file: DelimitedTable(file, "\t"),
    ".jsonl": JsonTable,
    ".parquet": ParquetTable,
}
