"""The files of a comparison: numbers (json, csv), the heat map, and one self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml
from markupsafe import Markup

from plft.comparison_plan import REFERENCE
from plft.findings import Table, duration, in_words, interval_in_words
from plft.heatmap import Group, Legend, Tile, heat_map
from plft.metrics import METRICS
from plft.report import render
from plft.runfolder import write_json, write_text
from plft.standings import Standings, table_rows
from plft.tables import TableWriter

TEMPLATE = "comparison.html.j2"
LEAST_SCALE = 0.05  # the scale of colours reaches at least this far, so that tiny differences look tiny
MARK = "●"
Results = Mapping[str, Any]
Row = Mapping[str, Any]


def write_results(standings: Standings) -> dict[str, Any]:
    """Write comparison.json, comparison.csv, heatmap.svg and report.html, each in one go; returns the first."""
    folder, results = standings.folder, standings.to_json()
    write_json(folder.results_file, results)
    with TableWriter(folder.table_file) as write:
        write(table_rows(results))
    write_text(folder.heat_map_file, str(draw(results, on_paper=True)) + "\n")
    write_text(folder.report_file, render(TEMPLATE, page(results, standings.plan.decided())))
    return results


# --- numbers in words


def signed(value: float | None, metric: str) -> str:
    """Write a difference with its sign, or nothing where there is none."""
    if value is None:
        return ""
    text = in_words(value, metric)
    return text if value < 0 else f"+{text}"


def p_in_words(p: float | None) -> str:
    """Write a p value with two digits, or as below the thousandth."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def in_bytes(n: int | None) -> str:
    """Write an amount of memory."""
    if n is None:
        return ""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def rows_of(results: Results, data: str) -> list[Row]:
    """The rows of one data set."""
    return [row for row in results["rows"] if row["data"] == data]


def is_better(difference: float, metric: str) -> bool:
    """Whether a difference is to the good."""
    return (difference > 0) == METRICS[metric].higher_is_better


# --- tables


@dataclass(frozen=True)
class ModelTable:
    """Rows under the name of their model: (model, rows) each, every row as wide as the header.  No model, no name."""

    header: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]

    def flat(self) -> list[tuple[str, ...]]:
        """The rows with those of a model indented below its name."""
        rows = []
        for model, lines in self.groups:
            rows += [(model, *("" for _ in self.header[1:]))] if model else []
            rows += [(f"  {first}" if model else first, *rest) for first, *rest in lines]
        return rows


def _grouped(
    results: Results, data: str, header: tuple[str, ...], cells: Callable[[Row], tuple[str, ...]]
) -> ModelTable:
    rows = rows_of(results, data)
    models = dict.fromkeys(row["model"] for row in rows)
    return ModelTable(
        header, tuple((name, tuple(cells(row) for row in rows if row["model"] == name)) for name in models)
    )


def score_table(results: Results, data: str) -> ModelTable:
    """Scores and differences of one data set with their intervals, the best baseline in the last line."""
    about, n_seeds = results["data"][data], len(results["seeds"])
    metric, spread = about["metric"] or "", ("worst to best seed",) if n_seeds > 1 else ()

    def cells(row: Row) -> tuple[str, ...]:
        mark = f" {MARK}" if row["significant"] else ""
        return (
            *(row["tune"], _with_interval(row, metric) if row["value"] is not None else _why_not(row)),
            *(_signed_interval(row["difference"], metric), p_in_words(row["p_corrected"]) + mark),
            *((_over_seeds(row, metric, n_seeds),) if spread else ()),
        )

    header = ("", title_of(results, data) or "score", f"minus {results['reference']}", "p (Holm)", *spread)
    table = _grouped(results, data, header, cells)
    best = [
        ("best baseline", _with_interval(each, metric), "", "", *("" for _ in spread)) for each in about["baselines"]
    ]
    return replace(table, groups=(*table.groups, *([("", (best[0],))] if best else [])))


def _why_not(row: Row) -> str:
    """Say why there is no score."""
    return "failed" if row["problem"] else "undefined" if row["seeds"] else "not yet"


def _over_seeds(row: Row, metric: str, n_seeds: int) -> str:
    """Write the scores of the worst and the best seed, and how many there are where some are missing."""
    ends = [row["lowest"], row["highest"]]
    if metric in METRICS and not METRICS[metric].higher_is_better:
        ends.reverse()
    spread = " to ".join(in_words(end, metric) for end in ends) if row["seeds"] > 1 else ""
    return spread if row["seeds"] == n_seeds else f"{spread} ({row['seeds']} of {n_seeds} seeds)".strip()


def cost_table(results: Results, data: str) -> ModelTable:
    """What each cell of one data set cost, and what it gave over the best baseline."""
    about = results["data"][data]
    metric, has_memory = about["metric"] or "", any(row["peak_memory"] for row in results["rows"])

    def cells(row: Row) -> tuple[str, ...]:
        n, total = row["trainable"], row["parameters"]
        return (
            *(row["tune"], in_words(row["value"], metric) if row["value"] is not None else ""),
            *((_signed_interval(row["over_baseline"], metric),) if about["baselines"] else ()),
            *(duration(row["seconds"]), f"{n:,} ({100 * n / total:.3g} %)" if n else ""),
            *((in_bytes(row["peak_memory"]),) if has_memory else ()),
        )

    over = ("minus best baseline",) if about["baselines"] else ()
    memory = ("peak memory",) if has_memory else ()
    header = ("", title_of(results, data) or "score", *over, "time per seed", "parameters trained", *memory)
    return _grouped(results, data, header, cells)


# --- sentences


def verdict(results: Results, data: str) -> str:
    """Say of one data set what is best, and whether it is better than the reference and the best baseline."""
    about, rows = results["data"][data], [row for row in rows_of(results, data) if row["value"] is not None]
    metric = about["metric"] or ""
    if not rows or metric not in METRICS:
        return f"{data}: there is no result yet."
    sign = 1 if METRICS[metric].higher_is_better else -1
    best = max(rows, key=lambda row: sign * row["value"])
    interval, value = interval_in_words(best, metric), in_words(best["value"], metric)
    said = f"{data}: best is {best['model']} with {best['tune']}, {METRICS[metric].title} {value}"
    said += f" (95 % interval {interval})." if interval else "."
    gain = best["difference"]
    if gain["value"] is not None:
        strength = "significant" if best["significant"] else "not significant"
        said += (
            f" That is {signed(gain['value'], metric)} against {results['reference']} of the same model ({strength})."
        )
    over, baselines = best["over_baseline"], about["baselines"]
    if over["value"] is not None:
        told_apart = over["low"] is not None and (over["low"] > 0 or over["high"] < 0)
        end = "" if told_apart else ", which cannot be told apart from none"
        title = f"{baselines[0]['title']} ({in_words(baselines[0]['value'], metric)})"
        said += f" Against the best baseline, {title}, it is {_signed_interval(over, metric)}{end}."
    return said


def _with_interval(entry: Row, metric: str) -> str:
    interval = interval_in_words(entry, metric)
    return in_words(entry["value"], metric) + (f" ({interval})" if interval else "")


def _signed_interval(entry: Row, metric: str) -> str:
    interval = interval_in_words(entry, metric)
    return signed(entry["value"], metric) + (f" ({interval})" if interval else "")


def counted(results: Results) -> str:
    """Say in how many cells fine-tuning was better or worse than the reference."""
    tests = [row for row in results["rows"] if row["p"] is not None]
    if not tests:
        return ""
    marked = [row for row in tests if row["significant"]]
    better = sum(is_better(row["difference"]["value"], row["metric"]) for row in marked)
    return (
        f"Of {_plural(len(tests), 'difference')} from {results['reference']}, {better} are significantly better and "
        f"{len(marked) - better} significantly worse (p < 0.05 after Holm's correction)."
    )


def warnings(results: Results) -> list[str]:
    """What failed, and what is not there yet."""
    failed = [
        f"{row['data']}, {row['model']}, {row['tune']}: {row['problem']}" for row in results["rows"] if row["problem"]
    ]
    missing, verb = results["missing"], "is" if len(results["missing"]) == 1 else "are"
    listed = "; ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
    left = [f"{_plural(len(missing), 'run')} {verb} missing: {listed}"]
    return failed + (left if missing else [])


def notes(results: Results) -> list[str]:
    """How the numbers were made."""
    n_seeds, tests = len(results["seeds"]), results["significance"]["tests"]
    resamples = [about["resamples"] for about in results["data"].values() if about["resamples"]]
    found = [
        f"Scores are means over {n_seeds} seeds." if n_seeds > 1 else "One seed: how much seeds matter is not known.",
        f"Intervals: 95 % bootstrap over test sequences{' and seeds' if n_seeds > 1 else ''}, "
        f"{min(resamples, default=0):,} resamples that all runs share; differences are paired.",
    ]
    if any(about["folds"] for about in results["data"].values()):
        found.append(
            "Folds: the test sequences of all folds are scored together, each predicted by a model that never saw it."
        )
    if tests:
        found.append(f"p values are two-sided, and corrected for {_plural(tests, 'test')} by Holm's procedure.")
    if resamples and tests * 2 / (min(resamples) + 1) >= results["significance"]["level"]:
        found.append("With so few resamples and so many tests no difference can become significant.")
    if n_seeds > 1:
        found.append(f"With {n_seeds} seeds the share of the seeds in an interval is itself uncertain.")
    return [*found, *(f"{name}: {about['division']}" for name, about in results["data"].items())]


# --- the heat map


def draw(results: Results, *, on_paper: bool = False) -> Markup:
    """Draw the heat map: models by tuning methods where there is one data set, else data sets in the columns."""
    names, rows = list(results["data"]), results["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    tunes = list(dict.fromkeys(row["tune"] for row in rows))
    tiles = {(row["data"], row["model"], row["tune"]): tile_of(results, row) for row in rows}
    if len(names) == 1:
        columns = [(tune, "") for tune in tunes]
        groups = [Group("", [(model, [tiles[names[0], model, tune] for tune in tunes]) for model in models])]
    else:
        columns = [(name, title_of(results, name)) for name in names]
        groups = [
            Group(model, [(tune, [tiles[name, model, tune] for name in names]) for tune in tunes]) for model in models
        ]
    summary = " ".join([counted(results), *words(results)])
    return heat_map(columns, groups, legend_of(results), summary, on_paper=on_paper)


def title_of(results: Results, data: str) -> str:
    """The metric of a data set."""
    metric = results["data"][data]["metric"]
    return METRICS[metric].title if metric in METRICS else ""


def scale_of(results: Results, metric: str) -> float:
    """The difference at the ends of the scale: the largest one, of all metrics that live between -1 and 1 together."""
    alike = {metric}
    if METRICS[metric].higher_is_better:
        alike = {name for name, row in METRICS.items() if row.higher_is_better}
    gains = [row["difference"]["value"] for row in results["rows"] if row["metric"] in alike]
    known = [abs(gain) for gain in gains if gain is not None]
    return max([LEAST_SCALE if METRICS[metric].higher_is_better else 0.0, *known]) or 1.0


def tile_of(results: Results, row: Row) -> Tile:
    """One cell: the difference to the reference above the score; of the reference the score alone."""
    metric, gain = row["metric"] or "", row["difference"]["value"]
    if row["value"] is None:
        return Tile(_why_not(row))
    if gain is None:
        is_reference = row["tune"] == results["reference"]
        return Tile(in_words(row["value"], metric), "reference" if is_reference else "no reference")
    shade = gain / scale_of(results, metric) * (1 if METRICS[metric].higher_is_better else -1)
    return Tile(signed(gain, metric), in_words(row["value"], metric), shade, row["significant"])


def legend_of(results: Results) -> Legend:
    """The scale, and what number, colour and dot mean."""
    metrics = sorted({row["metric"] for row in results["rows"] if row["difference"]["value"] is not None})
    if not metrics:
        return Legend(None, ["The score of each model."])
    reference, tests = results["reference"], _plural(results["significance"]["tests"], "test")
    frozen = "the same model, frozen" if reference == REFERENCE else "the same model"
    score = METRICS[metrics[0]].title if len(metrics) == 1 else "score"
    mean = ", mean over seeds" if len(results["seeds"]) > 1 else ""
    words = (
        f"Large: {score} minus that of {reference} ({frozen}); blue is better, orange is worse. Small: {score}{mean}.",
        f"{MARK} significant: p < 0.05, corrected for {tests} (Holm).",
    )
    if len(metrics) > 1 and not all(METRICS[metric].higher_is_better for metric in metrics):
        return Legend(("worse", "better"), (*words, "Errors have a scale of their own for each metric."))
    reach = scale_of(results, metrics[0]) * (1 if METRICS[metrics[0]].higher_is_better else -1)
    return Legend((signed(-reach, metrics[0]), signed(reach, metrics[0])), words)


def words(results: Results) -> list[str]:
    """The verdict on each data set."""
    return [verdict(results, name) for name in results["data"]]


# --- the page


def page(results: Results, decided: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that the page's template shows."""
    names = list(results["data"])
    models, tunes = ({row[name] for row in results["rows"]} for name in ("model", "tune"))
    sizes = [_plural(len(names), "data set"), _plural(len(models), "model"), _plural(len(tunes), "tuning method")]
    sizes.append(_plural(len(results["seeds"]), "seed"))
    return {
        "title": f"What fine-tuning changed on {', '.join(names)}",
        "sizes": " × ".join(sizes),
        "verdicts": words(results),
        "counted": counted(results),
        "warnings": warnings(results),
        "heat_map": draw(results),
        "parts": [
            {"name": name, "title": title_of(results, name), "about": results["data"][name]}
            | {
                "scores": score_table(results, name),
                "cost": cost_table(results, name),
                "baselines": baseline_table(results, name),
            }
            for name in names
        ],
        "notes": notes(results),
        "config": yaml.safe_dump(dict(decided), sort_keys=False, allow_unicode=True),
    }


def baseline_table(results: Results, data: str) -> Table | None:
    """All baselines of a data set, best first."""
    about = results["data"][data]
    metric = about["metric"] or ""
    rows = [
        (each["title"], each["settings"], in_words(each["value"], metric), interval_in_words(each, metric))
        for each in about["baselines"]
    ]
    return Table(("baseline", "settings", title_of(results, data), "95 % interval"), tuple(rows), 2) if rows else None


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")
