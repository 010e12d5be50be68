"""plft split: a split or fold column for a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from plft.errors import PlftError


def split(
    data: Annotated[
        str, typer.Argument(help="Table (csv, tsv, jsonl, parquet) or FASTA file, without splits.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Table to write (csv, tsv, jsonl, parquet).", show_default=False)
    ],
    by: Annotated[str, typer.Option(help="random, stratified, group, homology, mutations or position.")] = "stratified",
    group: Annotated[
        str | None, typer.Option(help="Column of the groups that must stay together (--by group).")
    ] = None,
    identity: Annotated[
        float | None,
        typer.Option(help="Identity from which sequences are related (--by homology); 0.3, for DNA and RNA 0.8."),
    ] = None,
    coverage: Annotated[
        float, typer.Option(help="Share of a sequence that the alignment spans (--by homology).")
    ] = 0.8,
    wild_type: Annotated[
        str | None,
        typer.Option("--wild-type", help="Reference of a mutational scan: a sequence or a file; else the consensus."),
    ] = None,
    valid: Annotated[float, typer.Option(help="Share of the validation part.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the test part.")] = 0.1,
    folds: Annotated[
        int | None, typer.Option(help="Write a column fold, 1 to this number, instead of train, valid and test.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    task: Annotated[str | None, typer.Option("--task", help="Task that the labels are for, or auto.")] = None,
    sequence_column: Annotated[str | None, typer.Option("--sequence-column", help="Sequence column.")] = None,
    label_column: Annotated[
        list[str] | None, typer.Option("--label-column", help="Label column; give it several times for several.")
    ] = None,
) -> None:
    """Add a split or fold column to a table; equal sequences always stay in one part."""
    from plft import console
    from plft.homology import COVERAGE
    from plft.labels import TaskType, guess_task
    from plft.records import Columns, load_data
    from plft.splits import assign_folds, assign_splits
    from plft.tables import TableWriter

    path = Path(data)
    if path.resolve() == out.resolve():
        raise PlftError(f"{out} is the input, which would be replaced. Choose another --out.")
    if group is not None and by != "group":
        raise PlftError(f"--group {group} has no effect with --by {by}. Ask for --by group, or leave it out.")
    if (identity is not None or coverage != COVERAGE) and by != "homology":
        raise PlftError(f"--identity and --coverage have no effect with --by {by}. Ask for --by homology.")
    if path.is_dir():
        raise PlftError(f"{data} is a folder, whose files are splits already. Give one table or FASTA file.")
    TableWriter(out)  # refuses what it cannot write before the work is done
    labels = tuple(label_column or ["label"])
    columns = Columns(
        sequence=sequence_column or "sequence",
        label=labels if len(labels) > 1 else labels[0],
        extra=(group,) if group else (),
    )
    records = load_data(path, columns=columns)
    labelled = any(each.label is not None for each in records)
    guessed = guess_task(records).task if labelled else TaskType.SEQ_CLASSIFICATION
    asked: dict[str, Any] = {
        "by": by if labelled or by != "stratified" else "random",
        "task": guessed if task in (None, "auto") else TaskType.named(str(task)),
        "seed": seed,
        "group": group,
        "identity": identity,
        "coverage": coverage,
        "wild_type": _sequence_of(wild_type),
    }
    if folds is not None:
        numbered = assign_folds(records, folds, **asked)
        _write(path, out, "fold", [number or None for number in numbered.numbers])
        console.say(numbered.sentence)
        console.result(str(out))
        return
    made = assign_splits(records, valid=valid, test=test, **asked)
    _write(path, out, "split", [record.split for record in made.records])
    console.say(made.sentence)
    flags = "".join(f" --label-column {name}" for name in label_column or [])
    flags += f" --sequence-column {sequence_column}" if sequence_column else ""
    console.result(f"{out}\nnext: plft train {out}{flags} --out RUN")


def _sequence_of(wild_type: str | None) -> str | None:
    """The reference: the first sequence of a file, or the letters themselves."""
    from plft.alphabet import tidy
    from plft.records import read_records

    if wild_type is None:
        return None
    if not Path(wild_type).suffix:
        return tidy(wild_type)
    first = next(iter(read_records(wild_type, labelled=False)), None)
    if first is None:
        raise PlftError(f"{wild_type}: holds no sequence. Give the wild type as letters or in a FASTA file.")
    return first.sequence


def _write(path: Path, out: Path, column: str, values: Sequence[object]) -> None:
    """Write the rows of a table again, with one more column."""
    from plft.formats import reader_of, rows_of
    from plft.tables import TableWriter

    rows: Iterable[Any] = zip(rows_of(path, reader_of(path)), values, strict=True)
    table = [{**row, column: value} for row, value in rows]
    names = list(dict.fromkeys(name for row in table for name in row))  # JSON lines and FASTA may differ by row
    lists = [name for row in table for name, each in row.items() if isinstance(each, list)]
    if lists and out.suffix in (".csv", ".tsv"):
        raise PlftError(f"{path.name}: '{lists[0]}' holds lists, which {out.suffix} cannot. Write .jsonl or .parquet.")
    with TableWriter(out) as write:
        write({name: row.get(name) for name in names} for row in table)
