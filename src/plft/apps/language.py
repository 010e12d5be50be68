"""`plft pretrain` and `plft adapt`: a language model from scratch, or further on sequences of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plft.apps import STARTED
from plft.errors import PlftError

if TYPE_CHECKING:
    from plft.config import LanguageModelConfig

Files = Annotated[
    list[str],
    typer.Argument(help="Sequence files (FASTA or table, gzipped or not), one or several.", show_default=False),
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder of the new model.", show_default=False)]
Valid = Annotated[
    list[str] | None, typer.Option("--valid", help="Held-out sequence file; without it a part of FILES is held out.")
]
Minutes = Annotated[float | None, typer.Option(help="Budget in minutes, everything included.")]
Steps = Annotated[int | None, typer.Option(help="Budget in optimiser steps.")]
Residues = Annotated[int | None, typer.Option(help="Budget in tokens read; a residue is a token, or part of one.")]
Crop = Annotated[int | None, typer.Option(help="Longest stretch read at a time, in tokens.")]
BatchResidues = Annotated[int | None, typer.Option(help="Tokens per forward pass.")]
StepResidues = Annotated[int | None, typer.Option(help="Tokens per optimiser step (accumulated).")]
Rate = Annotated[float | None, typer.Option(help="Share of tokens that is predicted.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
BothStrands = Annotated[
    bool | None, typer.Option("--both-strands/--one-strand", help="Read DNA in both directions (DNA: yes).")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that train together on a CPU; with --minutes by default one for each core."),
]
SaveMinutes = Annotated[float | None, typer.Option(help="Minutes between checkpoints.")]
SaveSteps = Annotated[int | None, typer.Option(help="Steps between checkpoints instead.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the model brings along (needs a pinned revision).")
]
ReportTo = Annotated[str | None, typer.Option(help="A tracker, for example tensorboard.")]
Seed = Annotated[int | None, typer.Option(help="Seed.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, with the same settings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting of pretraining.yaml: key=value, for example decay_share=0.5."),
]


def pretrain(
    files: Files,
    out: Out,
    arch: Annotated[
        str, typer.Option(help="Architecture: esm2-1m, esm2-6x192x3 (blocks x width x heads), dna-1m, t5-1m, ...")
    ] = "esm2-1m",
    valid: Valid = None,
    minutes: Minutes = None,
    steps: Steps = None,
    residues: Residues = None,
    crop: Crop = None,
    batch_residues: BatchResidues = None,
    step_residues: StepResidues = None,
    rate: Rate = None,
    learning_rate: LearningRate = None,
    biases: Annotated[bool, typer.Option("--biases/--no-biases", help="Train the biases of linear layers.")] = True,
    both_strands: BothStrands = None,
    precision: Precision = None,
    workers: Workers = None,
    save_minutes: SaveMinutes = None,
    save_steps: SaveSteps = None,
    trust_remote_code: TrustRemoteCode = False,
    report_to: ReportTo = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    set: Set = None,
    json: Json = False,
) -> None:
    """Train a language model from random weights, within a budget of minutes, steps or residues."""
    model = arch if arch.startswith("scratch:") else f"scratch:{arch}"
    _run(_given(locals()), out, resume, overwrite, json)


def adapt(
    files: Files,
    model: Annotated[str, typer.Option(help="The model to go on from: a folder, a hub id, builtin:protein.")],
    out: Out,
    valid: Valid = None,
    general: Annotated[
        list[str] | None, typer.Option("--general", help="Sequence file on which forgetting is measured.")
    ] = None,
    method: Annotated[str, typer.Option(help="full (all weights) or lora.")] = "full",
    rank: Annotated[int | None, typer.Option(help="Rank of LoRA.")] = None,
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="lora: leave the adapter beside the merged model.")
    ] = False,
    minutes: Minutes = None,
    steps: Steps = None,
    residues: Residues = None,
    crop: Crop = None,
    batch_residues: BatchResidues = None,
    step_residues: StepResidues = None,
    rate: Rate = None,
    learning_rate: LearningRate = None,
    both_strands: BothStrands = None,
    precision: Precision = None,
    workers: Workers = None,
    save_minutes: SaveMinutes = None,
    save_steps: SaveSteps = None,
    trust_remote_code: TrustRemoteCode = False,
    report_to: ReportTo = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    set: Set = None,
    json: Json = False,
) -> None:
    """Go on training a model on sequences of your own, with the objective it was trained with."""
    given = _given(locals())
    asked, chosen = given.get("rank"), given["method"]
    if asked is not None and chosen != "lora":
        raise PlftError(f"--rank {asked} has no effect with --method {chosen}. Ask for --method lora, or leave it out.")
    _run(given, out, resume, overwrite, json)


_NOT_SETTINGS = ("out", "arch", "resume", "overwrite", "json", "set")


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings among a command's flags, without those that were not given; `--set` has the last word."""
    from plft.config import assigned

    given = {name: value for name, value in flags.items() if value is not None and name not in _NOT_SETTINGS}
    return given | dict(map(assigned, flags["set"] or []))


def _run(values: dict[str, Any], out: Path, resume: bool, overwrite: bool, json: bool) -> None:
    """Train with progress on the console, then show what was reached."""
    from plft import console
    from plft.apps.cli import quiet_libraries
    from plft.apps.progress import PretrainingProgress
    from plft.language_run import run_language_model
    from plft.ranks import is_first

    config = _config(values, out if resume else None)
    quiet_libraries()
    with console.progress_bar() as bar:
        metrics = run_language_model(
            config,
            out,
            resume=resume,
            overwrite=overwrite,
            say=console.say,
            callbacks=[PretrainingProgress(bar)],
            started=STARTED,
        )
    if json:
        console.as_json(metrics)
    elif is_first():
        console.language_model_table(metrics)
        console.result(f"\nmodel: {out}\nnext: plft train DATA --model {out} --out RUN")


def _config(values: dict[str, Any], resumed: Path | None) -> LanguageModelConfig:
    """The settings: of the folder that is taken up again where no budget is given, else as given."""
    from plft.config import language_model_config
    from plft.language_run import fitting_workers, kept_config

    budget = {"minutes", "steps", "residues"} & values.keys()
    kept = kept_config(resumed) if resumed is not None else None
    if kept is not None and not budget:
        values = values | {name: getattr(kept, name) for name in ("minutes", "steps", "residues")}
    elif not budget:
        raise PlftError("Say how long to train: --minutes 30, --steps 2000 or --residues 20000000.")
    config = language_model_config(values)
    if "workers" in values:
        return config
    return config.model_copy(update={"workers": fitting_workers(config) if kept is None else kept.workers})
