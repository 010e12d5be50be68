"""plft compare: models x tuning methods x seeds over one data set or several."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plft.errors import PlftError


def compare(
    data: Annotated[
        list[str], typer.Argument(help="Data sets: tables, FASTA files or folders, one or several.", show_default=False)
    ],
    models: Annotated[
        str, typer.Option(help="Models, with commas between: builtin:protein,scratch:esm2-1m.", show_default=False)
    ],
    tunes: Annotated[
        str, typer.Option(help="Tuning methods, with commas between; head is what the others are compared with.")
    ] = "head,lora,full",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the comparison.")] = Path("comparison"),
    seeds: Annotated[int, typer.Option(help="How often each run is repeated with another seed.")] = 3,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validation; without it the file's column fold, or its splits. 1: its splits."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="How folds, or splits where there are none, are made: stratified (the default), random, homology, "
            "mutations or position."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="As for plft train; auto by default.")] = None,
    sequence_column: Annotated[str | None, typer.Option("--sequence-column", help="Sequence column.")] = None,
    label_column: Annotated[
        list[str] | None, typer.Option("--label-column", help="Label column; give it several times for several.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML configuration of every run; flags override it.")
    ] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="Any setting of every run: section.key=value.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Train models x tuning methods x seeds, and compare them: one table, one heat map, paired statistics.

    The same command on the same folder goes on where it was interrupted.
    """
    from plft import console
    from plft.apps.cli import data_values, quiet_libraries
    from plft.apps.progress import TrialProgress
    from plft.comparison import compare as run_comparison
    from plft.config import merged

    columns = data_values(None, sequence_column=sequence_column, label_column=label_column)
    varied = (("model", "name"), ("tuning", "method"))
    values = merged(config, {"data": columns}, task, set or [], varied=varied)
    quiet_libraries()
    with console.progress_bar() as bar:
        comparison = run_comparison(
            data,
            _names(models),
            _names(tunes),
            out,
            seeds=seeds,
            folds=folds,
            by=by,
            config=values,
            say=console.say,
            watch=lambda: [TrialProgress(bar)],
            command=shlex.join(["plft", *sys.argv[1:]]),
        )
    results = comparison.results
    if json:
        console.as_json(results)
    else:
        _show(results, out)
    failed = [row for row in results["rows"] if row["problem"]]
    if failed:
        raise PlftError(
            f"{len(failed)} of {len(results['rows'])} combinations failed; the first: {failed[0]['problem']} "
            "Correct what you can, and give the same command again."
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _show(results: dict[str, Any], out: Path) -> None:
    """Tables and verdicts, then where the page is."""
    from plft import console
    from plft.comparison_page import counted, score_table, verdict

    for name in results["data"]:
        table = score_table(results, name)
        console.result("")
        console.table(name, table.header[:4], [row[:4] for row in table.flat()])  # what fits a terminal
    console.result("")
    console.result("in parentheses: 95 % intervals")
    console.result("")
    for name in results["data"]:
        console.result(verdict(results, name))
    if counted(results):
        console.result(counted(results))
    console.result(f"\nreport: {out / 'report.html'}\nheat map: {out / 'heatmap.svg'}, table: {out / 'comparison.csv'}")
