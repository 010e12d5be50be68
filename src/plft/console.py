"""Everything printed. Library modules never print; they hand values and sentences to this one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from plft.ranks import is_first

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(sentence: str) -> None:
    """One fact for the user, on standard error so that standard output stays for results."""
    if is_first():
        err.print(f"[dim]·[/dim] {escape(sentence)}")


def result(text: str) -> None:
    """A line of the result, on standard output."""
    if is_first():
        out.print(escape(text))


def fail(message: str) -> None:
    """An error in one line."""
    err.print(f"[bold red]Error:[/bold red] {escape(' '.join(message.split()))}")


def as_json(content: Any) -> None:
    """Print JSON for programs."""
    if is_first():
        sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a plain table; columns of numbers are aligned right."""
    rows = [list(row) for row in rows]
    grid = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=any(columns),
    )
    for index, name in enumerate(columns):
        numeric = index > 0 and all(str(row[index])[:1].isdigit() or str(row[index])[:1] in "-+" for row in rows)
        grid.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(str(cell)) for cell in row))
    out.print(grid)


def number(value: float | None) -> str:
    """A number with four significant digits; a dash where there is none."""
    return "-" if value is None else f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3f}"


def metrics_table(title: str, metrics: Mapping[str, Mapping[str, float | None]], names: Mapping[str, str]) -> None:
    """Metrics with their 95 % intervals. names: title of each metric."""
    rows = [
        (names.get(name, name), number(row["value"]), f"{number(row['low'])} to {number(row['high'])}")
        for name, row in metrics.items()
    ]
    table(title, ("metric", "value", "95 % interval"), rows)


def language_model_table(metrics: Mapping[str, Any]) -> None:
    """What pretraining reached: perplexities before and after, beside those of counting alone."""
    titles = {"held_out": "held-out sequences", "clean": "held out, without homologs", "general": "general set"}
    before, after = metrics["perplexity"]["before"], metrics["perplexity"]["after"]
    rows = [(titles.get(name, name), number(before.get(name)), number(after[name])) for name in after]
    if rows:
        table("perplexity", ("", "before", "after"), rows)
    counted = ", ".join(f"{name} {number(value)}" for name, value in metrics["counting"].items())
    if counted:
        out.print(f"counting alone on the held-out sequences: {counted}")
    share = f"; {metrics['predicted_share']:.2%} of tokens predicted" if metrics["predicted_share"] < 0.99 else ""
    out.print(f"{metrics['tokens']:,} tokens in {metrics['steps']:,} steps, {metrics['minutes']:.1f} minutes{share}")


def evaluation_line(logs: Mapping[str, Any], metric: str) -> str:
    """One line per evaluation: epoch, validation loss, the metric that decides."""
    parts = [f"epoch {logs.get('epoch', 0):.3g}", f"valid loss {number(logs.get('eval_loss'))}"]
    parts.append(f"valid {metric} {number(logs.get(f'eval_{metric}'))}")
    return ", ".join(parts)


def findings(audit: Any, name: str) -> None:
    """What `plft check` found: counts, lengths, letters, labels, duplicates, warnings."""
    counts = ", ".join(f"{split} {count:,}" for split, count in audit.splits.items())
    lengths = audit.lengths
    shared = [f"{pair} {n:,}" for pair, n in audit.shared.items() if n]
    facts = [
        ("sequences", f"{audit.n:,} ({counts})"),
        ("alphabet", audit.alphabet),
        ("residues", f"{lengths.residues:,}"),
        (
            "lengths",
            f"{lengths.min} to {lengths.max}, median {lengths.median:g}, 5-95 % {lengths.q5:g} to {lengths.q95:g}",
        ),
        ("ambiguous letters", letters(audit.ambiguous)),
        ("unknown letters", letters(audit.unknown)),
        ("task", f"{audit.task or 'not clear'}: {audit.reason}" if audit.reason else str(audit.task)),
        ("sequences given more than once", f"{audit.duplicate_sequences:,}"),
        ("sequences with different labels", f"{audit.conflicting_labels:,}"),
        ("sequences shared between splits", ", ".join(shared) or "none"),
        ("repeated ids", f"{audit.duplicate_ids:,}"),
    ]
    table(name, ("", ""), facts)
    if audit.labels:
        out.print()
        table("labels", ("split", "values", "missing", "what they are"), label_rows(audit.labels))
    for warning in audit.warnings:
        out.print(f"[bold yellow]![/bold yellow] {escape(warning)}")


def leakage(found: Any) -> None:
    """What `plft check --leakage` found: identity to the nearest training sequence, and the first that are related."""
    bands = list(next(iter(found.splits.values())).bands)
    rows = [(split, *(f"{each.bands[band]:,}" for band in bands)) for split, each in found.splits.items()]
    out.print()
    table("identity to the nearest training sequence", ("split", *bands), rows)
    out.print(escape(found.method))
    least = f"{100 * found.identity:g} % identity over {100 * found.coverage:g} % of a sequence"
    for split, each in found.splits.items():
        share = f"{each.related:,} of {each.n:,} sequences ({each.related / each.n:.1%})"
        sign = "[bold yellow]![/bold yellow]" if each.related else "[dim]·[/dim]"
        out.print(f"{sign} {escape(f'{share} in {split} are related to train at {least}.')}")
        for one in each.relatives[:3]:
            out.print(escape(f"    {one.place} to {one.train_place}: {100 * one.identity:.1f} %"))


def letters(found: Mapping[str, Any]) -> str:
    """Letters with their counts, or "none"."""
    shown = [f"{letter} {each.count:,} in {each.sequences:,} sequences" for letter, each in list(found.items())[:8]]
    return "; ".join(shown) + (" ..." if len(found) > 8 else "") or "none"


def label_rows(labels: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """One row per split: how many labels, how many are missing, balance or range."""
    rows = []
    for split, each in labels.items():
        ranges = [f"{name} {r['min']:.4g} to {r['max']:.4g}, mean {r['mean']:.4g}" for name, r in each.ranges.items()]
        most = sorted(each.classes.items(), key=lambda pair: -pair[1])[:12]
        classes = [f"{name} {count:,}" for name, count in most] + (["..."] if len(each.classes) > 12 else [])
        rows.append((split, f"{each.n:,}", f"{each.missing:,}", "; ".join(ranges) or ", ".join(classes)))
    return rows


def progress_bar() -> Progress:
    """A progress bar on standard error; silent where that is not a terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not (err.is_terminal and is_first()),
    )
