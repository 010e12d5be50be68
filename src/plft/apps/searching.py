"""`plft tune`: settings searched on the validation part, and one run with the best of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plft.apps import STARTED
from plft.errors import PlftError


def tune(
    data: Annotated[
        str | None, typer.Argument(help="Table, FASTA or folder (may also come from --config).", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the search.")] = Path("search"),
    model: Annotated[str | None, typer.Option(help="Anything that plft train --model takes.")] = None,
    task: Annotated[str | None, typer.Option(help="As for plft train; by default decided from the labels.")] = None,
    tune: Annotated[str | None, typer.Option(help="head, lora, dora, qlora, ia3, adapter, last-N or full.")] = None,
    trials: Annotated[
        int | None, typer.Option(help="How many settings are tried: 20, or with --minutes as many as fit.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time for everything, the final run included.")] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            help="Search this instead: training.learning_rate=1e-5..1e-3, tuning.rank=4,8,16, or a key alone.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search and of every training.")] = None,
    valid: Annotated[str | None, typer.Option(help="File with the validation part.")] = None,
    test: Annotated[str | None, typer.Option(help="File with the test part.")] = None,
    sequence_column: Annotated[str | None, typer.Option("--sequence-column", help="Sequence column.")] = None,
    label_column: Annotated[list[str] | None, typer.Option("--label-column", help="Label column.")] = None,
    split_column: Annotated[
        str | None, typer.Option("--split-column", help="Column that says train, valid or test.")
    ] = None,
    missing: Annotated[
        str | None, typer.Option("--missing", help="Sentinel of a missing label, for example 999.")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that the model brings along (needs a pinned revision)."),
    ] = False,
    config: Annotated[Path | None, typer.Option("--config", help="YAML configuration; flags override it.")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="Any setting, fixed: section.key=value.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Search learning rate, head and the like on the validation part; train the best once more and score it on test.

    The same command again goes on with a search that was interrupted; more --trials or --minutes prolong it.
    """
    from plft import console
    from plft.apps.cli import data_values, quiet_libraries
    from plft.config import assigned, configured
    from plft.trials import check_optuna

    flags = {
        "data": data_values(data, valid, test, sequence_column, label_column, split_column, missing),
        "model": {"name": model, "trust_remote_code": trust_remote_code or None},
        "tuning": {"method": tune},
        "training": {"seed": seed},
    }
    chosen = configured(config, flags, task, set or [])
    if chosen is None:
        raise PlftError("Nothing to train on: name a file, plft tune DATA --out search, or data.file in --config.")
    check_optuna()
    quiet_libraries()
    from plft.apps.progress import TrialProgress
    from plft.search import tune as run_search

    with console.progress_bar() as bar:
        found = run_search(
            chosen,
            out,
            trials=trials,
            minutes=minutes,
            search=search or (),
            fixed=[assigned(each)[0] for each in set or []],
            say=console.say,
            callbacks=[TrialProgress(bar)],
            command=shlex.join(["plft", *sys.argv[1:]]),
            started=STARTED,
        )
    show(found, json)


def show(found: Any, json: bool) -> None:
    """Print the best settings, what they gained, and the next command."""
    from plft import console
    from plft.apps.results import show_metrics
    from plft.search_report import sentences, settings_table

    summary = found.summary
    if json:
        console.as_json(summary)
        return
    content = settings_table(summary)
    console.table("best settings", content.header, content.rows)
    show_metrics(found.best.metrics)
    console.result("\n" + " ".join(sentences(summary)))
    page, best = found.path / "report.html", found.best.path
    console.result(f"\nreport: {page}\nbest run: {best}\nnext: plft predict {best} SEQUENCES.fasta -o predictions.csv")
