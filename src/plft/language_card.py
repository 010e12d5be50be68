"""The model card of a language model: data by name and checksum, budget, machine, perplexities and their curve."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from plft.budget import LOOK
from plft.config import read_yaml
from plft.language_models import AUTO_CLASSES
from plft.optimizers import OPTIMIZERS
from plft.plots import Line, line_chart
from plft.report import render
from plft.runfolder import read_json, write_text

TITLES = {
    "held_out": "held-out sequences",
    "clean": "held-out sequences without homologs in training",
    "general": "general set",
}
MEANING = {
    "masked": "Perplexity of masked tokens, {rate:.0%} of them at a time, in crops of {crop} tokens.",
    "causal": "Perplexity of each token of the sequence given those before it, in crops of {crop} tokens.",
    "span": "Perplexity of residues cut out, {rate:.0%} of them at a time as in training, in crops of {crop} tokens.",
}
STYLE = """<style>
text { font: 12px sans-serif; fill: #444 } .grid { stroke: #ddd }
.line { stroke: #0072b2; stroke-width: 1.8; fill: none }
.dots { stroke: #0072b2; stroke-width: 6; stroke-linecap: round }
</style>"""


def write_language_card(folder: Path, name: str = "") -> Path:
    """Write README.md and curve.svg from metrics.json, history.jsonl and pretraining.yaml; return the card's path.

    name: what `--model` takes for it, by default the folder's.
    """
    metrics = read_json(folder / "metrics.json")
    settings = read_yaml(folder / "pretraining.yaml")
    curve = held_out_curve(folder / "history.jsonl")
    if curve:
        write_text(folder / "curve.svg", curve_picture(curve))
    context = {
        "front_matter": yaml.safe_dump(_front_matter(metrics), sort_keys=False),
        "title": name or folder.resolve().name,
        "headline": _headline(metrics),
        "facts": _facts(metrics, settings),
        "perplexity": _perplexity(metrics),
        "meaning": MEANING[metrics["objective"]].format(rate=settings["rate"], crop=metrics["choices"]["crop"]),
        "curve": [(f"{row['tokens']:,}", f"{row['seconds'] / 60:.1f}", f"{row['perplexity']:.2f}") for row in curve],
        "look": f"{LOOK:,}",
        "files": list(metrics["data"]["files"].items()),
        "sentences": metrics["sentences"],
        "model_in_shell": shlex.quote(name or folder.resolve().name),
        "builtin": folder.name if name else "",
        "folder_in_python": "folder" if name else json.dumps(folder.resolve().name),
        "auto_class": AUTO_CLASSES[metrics["objective"]].__name__,
        "limits": _limits(metrics),
    }
    write_text(folder / "README.md", render("language_card.md.j2", context))
    return folder / "README.md"


def held_out_curve(history: Path) -> list[dict[str, float]]:
    """Tokens read, seconds and perplexity at every evaluation that history.jsonl holds."""
    rows = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
    return [
        {"tokens": row["tokens"], "seconds": row["seconds"], "perplexity": row["held_out_perplexity"]}
        for row in rows
        if "held_out_perplexity" in row
    ]


def curve_picture(curve: list[dict[str, float]]) -> str:
    """The curve as a stand-alone SVG."""
    line = Line("held out", [row["tokens"] / 1e6 for row in curve], [row["perplexity"] for row in curve], True)
    first, last = curve[0]["perplexity"], curve[-1]["perplexity"]
    summary = f"Held-out perplexity against the tokens read, from {first:.1f} to {last:.1f}."
    chart = line_chart([line], ("million tokens read", "held-out perplexity"), summary)
    start = chart.index(">") + 1
    head = str(chart)[:start].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="560" ')
    return f"{head}{STYLE}{str(chart)[start:]}\n"


def _front_matter(metrics: dict[str, Any]) -> dict[str, Any]:
    return {"library_name": "transformers", "tags": ["biology", "language-model", metrics["objective"], "plft"]}


def _headline(metrics: dict[str, Any]) -> str:
    after, counting = metrics["perplexity"]["after"], metrics["counting"]
    if "held_out" not in after:
        held_out = metrics["data"]["held_out"]
        why = "In what was held out nothing was masked" if held_out else "Nothing was held out"
        return f"{why}, so no perplexity was measured."
    bars = " and ".join(f"{name} {value:.2f}" for name, value in counting.items())
    return f"Perplexity {after['held_out']:.2f} on held-out sequences" + (
        f" (counting alone: {bars})." if bars else "."
    )


def _facts(metrics: dict[str, Any], settings: dict[str, Any]) -> list[tuple[str, str]]:
    choices, data = metrics["choices"], metrics["data"]
    return [
        ("begun from", "@".join(filter(None, (metrics["model"]["name"], metrics["model"].get("revision"))))),
        ("family", metrics["model"]["family"]),
        ("objective", metrics["objective"]),
        ("weights", f"{metrics['parameters']:,}"),
        ("trained", f"{metrics['tokens']:,} tokens in {metrics['steps']:,} steps, {metrics['minutes']:.1f} minutes"),
        ("machine", metrics["hardware"]),
        ("precision", choices["precision"]),
        ("optimiser", OPTIMIZERS.get(choices["optimizer"], choices["optimizer"])),
        ("peak learning rate", f"{choices['learning_rate']:.3g}"),
        ("method", settings["method"]),
        ("sequences", f"{data['sequences']:,} with {data['residues']:,} residues, {data['duplicates']:,} exact copies"),
        ("held out", f"{data['held_out']:,} sequences or stretches"),
    ]


def _perplexity(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    before, after = metrics["perplexity"]["before"], metrics["perplexity"]["after"]
    rows = [(TITLES[name], f"{before[name]:.2f}" if name in before else "", f"{after[name]:.2f}") for name in after]
    return rows + [
        (f"{name}s counted in the training part", "", f"{each:.2f}") for name, each in metrics["counting"].items()
    ]


def _limits(metrics: dict[str, Any]) -> list[str]:
    limits = [f"Sequences unlike those it was trained on: it has read {metrics['tokens']:,} tokens of them."]
    if metrics["tokens"] < 1e9 and metrics["model"]["name"].startswith("scratch:"):
        limits.append("Work where a large published model can be had: this one was trained on a small budget.")
    if "clean" not in metrics["perplexity"]["after"]:
        limits.append(
            "Being judged by its held-out perplexity alone: training may hold homologs of held-out sequences."
        )
    if "general" in metrics["perplexity"]["after"]:
        limits.append("Sequences outside its family, on which it may have forgotten (see the general set above).")
    return limits
