"""The page of a search: best settings, what they gained, and every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plft import __version__
from plft.findings import Table, in_words, interval_in_words
from plft.metrics import METRICS
from plft.plots import Line, line_chart
from plft.report import Figure, render
from plft.runfolder import write_text
from plft.search_space import written


def write_search_report(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write report.html. summary: the content of search.json."""
    write_text(folder / "report.html", render("search.html.j2", page(folder, summary)))


def page(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the page's template shows."""
    metric = METRICS[summary["metric"]].title
    counts = ", ".join(f"{count} {state}" for state, count in summary["counts"].items() if count)
    return {
        "title": f"{summary['model']}, {summary['method']}, on {summary['data']}",
        "sentences": sentences(summary),
        "settings": settings_table(summary),
        "figures": [score_figure(summary)] if scored(summary) else [],
        "trials": trial_table(summary),
        "counts": f"{counts}; {summary['seconds'] / 60:.1f} minutes. Trials are compared by {metric} on valid.",
        "has_importance": bool(summary["importance"]),
        "final": final_of_best(summary),
        "version": __version__,
    }


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the search found and how far that can be trusted; the first sentence is the result."""
    if summary["best"] is None:
        return ["No trial was completed yet."]
    name, n = summary["metric"], len(summary["trials"])
    title, best, usual = METRICS[name].title, summary["best"]["score"], summary["default"]["score"]
    said = [
        f"The best of {n} trials, number {summary['best']['trial']}, reached {title} {in_words(best, name)} on valid."
    ]
    if summary["best"]["trial"] == 1:
        said = [f"No trial was better than the default settings: {title} {in_words(best, name)} on valid."]
    elif usual is not None:
        said[0] = said[0][:-1] + f"; the default settings reach {in_words(usual, name)}."
    if n > 1:
        said.append("The best of many is chosen on these very sequences, so this score is optimistic.")
    return said + final_sentences(summary)


def final_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the run with the best settings says: on test, and on whether the gain on valid may be chance."""
    splits, name = (final_of_best(summary) or {}).get("splits", {}), summary["metric"]
    title, usual, said = METRICS[name].title, summary["default"]["score"], []
    valid = splits.get("valid", {})
    changed = summary["best"]["trial"] != 1
    if changed and usual is not None and valid.get("low") is not None and valid["low"] <= usual <= valid["high"]:
        interval = interval_in_words(valid, name)
        said.append(
            f"The score of the default settings lies within the 95 % interval of the best ({interval}): the gain "
            "may be chance."
        )
    for split, each in splits.items():
        if split != "valid":
            interval = interval_in_words(each, name)
            said.append(
                f"Trained once more, the best settings reach {title} {in_words(each['value'], name)}"
                f"{f' (95 % interval {interval})' if interval else ''} on {split}, which no trial has seen."
            )
    return said


def final_of_best(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The run with the best settings, where it is finished and no later trial was better."""
    final, best = summary["final"], summary["best"]
    return final if final and best and final["trial"] == best["trial"] and "run" in final else None


def settings_table(summary: Mapping[str, Any]) -> Table:
    """Best and default value of every setting, and where it was searched."""
    best, usual = (summary["best"] or {}).get("settings", {}), summary["default"]["settings"]
    importance = summary["importance"]
    header = ("setting", "best", "default", "searched", *(("importance",) if importance else ()))
    rows = []
    for key, searched in summary["searched"].items():
        cells = [written(values[key]) if key in values else "no effect" for values in (best, usual)]
        share = [f"{100 * importance.get(key, 0):.0f} %"] if importance else []
        rows.append((key, *cells, searched, *share))
    return Table(header, tuple(rows), n_text=4)


def trial_table(summary: Mapping[str, Any]) -> Table:
    """Every trial, the best ones first; pruned and failed ones at the end."""
    name, keys = summary["metric"], list(summary["searched"])
    order = ("complete", "pruned", "failed")
    sign = -1 if summary["higher_is_better"] else 1
    ranked = sorted(summary["trials"], key=lambda each: (order.index(each["state"]), sign * (each["score"] or 0)))
    rows = tuple(trial_cells(each, name, keys) for each in ranked)
    header = ("trial", "state", *(key.partition(".")[2] for key in keys), f"valid {METRICS[name].title}", "seconds")
    return Table(header, rows, n_text=2)


def trial_cells(trial: Mapping[str, Any], metric: str, keys: Sequence[str]) -> tuple[str, ...]:
    """One row of the table of trials."""
    settings = trial["settings"]
    state = f"{trial['state']}: {trial['reason']}" if trial["state"] == "failed" else trial["state"]
    score = in_words(trial["score"], metric) if trial["score"] is not None else ""
    cells = [written(settings[key]) if key in settings else "" for key in keys]
    return (str(trial["number"]), state, *cells, score, f"{trial['seconds']:.1f}")


def scored(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Trials with a score."""
    return [each for each in summary["trials"] if each["score"] is not None]


def score_figure(summary: Mapping[str, Any]) -> Figure:
    """The score of each trial, and the best one so far."""
    title, better = METRICS[summary["metric"]].title, max if summary["higher_is_better"] else min
    complete = [each for each in scored(summary) if each["state"] == "complete"]
    pruned = [each for each in scored(summary) if each["state"] == "pruned"]
    found = [each["score"] for each in complete]
    so_far = Line(
        "best so far", [each["number"] for each in complete], [better(found[: at + 1]) for at in range(len(found))]
    )
    lines = [each for each in (so_far, dots("complete", complete), dots("pruned", pruned)) if len(each.x)]
    legend = tuple((at, each.name) for at, each in enumerate(lines))
    caption = f"{title} on valid by trial; the first trial has the default settings."
    return Figure(line_chart(lines, ("trial", f"valid {title}"), caption), caption, legend)


def dots(name: str, trials: Sequence[Mapping[str, Any]]) -> Line:
    """One dot per trial."""
    scores = [each["score"] for each in trials]
    return Line(name, [each["number"] for each in trials], scores, with_marks=True, joined=False)
