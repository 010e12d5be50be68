"""plft score-lm: how well a language model predicts the sequences of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def score_lm(
    model: Annotated[str, typer.Argument(help="Anything that --model takes.", show_default=False)],
    data: Annotated[
        str, typer.Argument(help="FASTA or table (csv, tsv, jsonl, parquet) of sequences.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Table of scores per sequence to write: csv, tsv, jsonl or parquet."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="exact or one-pass; by default exact where that takes few passes.")
    ] = None,
    batch_residues: Annotated[
        int | None, typer.Option(min=1, help="Tokens per batch, padding included; by default as many as are fast.")
    ] = None,
    sequence_column: Annotated[str | None, typer.Option("--sequence-column", help="Sequence column.")] = None,
    id_column: Annotated[str | None, typer.Option("--id-column", help="Column of the identifiers.")] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that the model brings along (needs a pinned revision)."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Perplexity of sequences under a language model: per sequence in a table, in total on the last line."""
    from plft import console, perplexity
    from plft.apps.cli import quiet_libraries
    from plft.batching import INFERENCE_BUDGET
    from plft.pipeline import check_files
    from plft.records import Columns, read_records

    quiet_libraries()
    if out is not None:
        check_files(data, out)
    budget = batch_residues or INFERENCE_BUDGET
    named = (id_column,) if id_column else ()
    columns = Columns(sequence_column or "sequence", id=id_column or "id", required=named)
    records = read_records(data, columns, labelled=False)
    language = perplexity.load(model, trust_remote_code)
    with console.progress_bar() as bar:
        task = bar.add_task("inputs of the model", total=None)
        found = perplexity.write_scores(
            language, records, out, method, budget=budget, each_batch=lambda n: bar.advance(task, n)
        )
    for sentence in found.sentences:
        console.say(sentence)
    if json:
        console.as_json({"model": model, "family": language.family.name, **found.to_json()})
        return
    if out is not None:
        console.result(str(out))
    if language.has_pieces:
        console.result(f"perplexity per residue {found.perplexity_per_residue:.6g}")
    console.result(f"perplexity {found.perplexity:.6g}")
