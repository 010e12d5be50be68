"""A language model trained from scratch or further, top to bottom: what `plft pretrain` and `plft adapt` do."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from plft.attention import can_pack
from plft.budget import Budget
from plft.checkpoints import quiet_transformers
from plft.config import LanguageModelConfig, language_model_config, read_yaml, to_yaml
from plft.errors import PlftError
from plft.language_card import write_language_card
from plft.language_preparation import Prepared, Say, autocast, device, is_first, prepare, processes
from plft.ngrams import ngram_perplexities
from plft.preparation import quiet
from plft.pretraining import Journal, LanguageModelTrainer, Stream, arguments, mean_loss
from plft.runfolder import check_place, new_folder, write_json, write_text
from plft.training import check_tracker, last_checkpoint, leave_process_group

LOOK, FINAL_LOOK = 60_000, 600_000  # held-out tokens read at each evaluation on the way, and before and after
SAVING = 15  # seconds kept for counting and saving at the end
OWN_FILES = (
    "pretraining.yaml",
    "choices.json",
    "held_out.json",
    "history.jsonl",
    "metrics.json",
    "README.md",
    "curve.svg",
)
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
)


def run_language_model(
    config: LanguageModelConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = quiet,
    callbacks: Sequence[TrainerCallback] = (),
    started: float | None = None,
) -> dict[str, Any]:
    """Train a language model and leave it in a folder that `--model` takes; returns what metrics.json holds.

    out: gets config.json, model.safetensors and the tokenizer, as transformers reads them; metrics.json, history.jsonl,
    pretraining.yaml and a model card.  started: a `time.monotonic()` that a budget in minutes counts from.
    Raises PlftError for files, models and budgets that cannot be used.
    """
    started = time.monotonic() if started is None else started
    try:
        if is_first():
            open_folder(config, out, resume, overwrite)
        if config.report_to is not None:
            check_tracker(config.report_to)
        set_seed(config.seed)
        prepared = prepare(config, out, say, started, resume)
        look = LOOK if prepared.checkpoint.is_scratch else FINAL_LOOK
        began = time.monotonic()
        before = perplexities(prepared, look)
        reserve = (time.monotonic() - began) * FINAL_LOOK / look + SAVING
        trainer = make_trainer(prepared, out, started, reserve, callbacks)
        with quiet_transformers():
            trainer.go_on(last_checkpoint(out / "checkpoints") if resume else None)
        metrics = describe(prepared, trainer, before, perplexities(prepared, FINAL_LOOK))
        if is_first():
            save(prepared, out, metrics)
        return metrics
    finally:
        leave_process_group()


# -- the folder --------------------------------------------------------------------------------------------------------


def open_folder(config: LanguageModelConfig, out: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder and write the settings into it; to resume, they have to be those that are there."""
    check_place(out)
    kept = kept_config(out) if resume else None
    if kept is not None:
        names = [name for name in type(kept).model_fields if getattr(kept, name) != getattr(config, name)]
        if names:
            raise PlftError(f"{out} was begun with other settings ({', '.join(names[:3])}). Resume with the same ones.")
        return
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise PlftError(f"{out} exists already. Choose another --out, or pass --overwrite, or --resume.")
    remove_language_model(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "pretraining.yaml", to_yaml(config))


def kept_config(out: Path) -> LanguageModelConfig | None:
    """The settings that a folder was begun with; None where nothing was begun."""
    file = out / "pretraining.yaml"
    return language_model_config(read_yaml(file)) if file.is_file() else None


def remove_language_model(out: Path) -> None:
    """Delete what an earlier run left in a folder, and only that."""
    for name in ("checkpoints", "adapter"):
        shutil.rmtree(out / name, ignore_errors=True)
    for pattern in (*OWN_FILES, *MODEL_FILES, "model*.safetensors*"):
        for each in out.glob(pattern):
            each.unlink()


def save(prepared: Prepared, out: Path, metrics: dict[str, Any]) -> None:
    """Write model and tokenizer as transformers reads them (config.json, the mark of a model, last), and the card."""
    model: Any = prepared.task.model
    tuned = prepared.config.method == "lora"
    with new_folder(out / ".finished") as partial, quiet_transformers():
        if tuned and prepared.config.keep_adapter:
            model.save_pretrained(partial / "adapter")
        plain = model.merge_and_unload() if tuned else model
        if can_pack(plain):
            plain.set_attn_implementation("sdpa")
        plain.to("cpu").save_pretrained(partial)
        prepared.checkpoint.tokenizer.save_pretrained(partial)
    finished = out / ".finished"
    shutil.rmtree(out / "adapter", ignore_errors=True)
    for each in sorted(finished.iterdir(), key=lambda each: each.name == "config.json"):
        os.replace(each, out / each.name)
    finished.rmdir()
    write_json(out / "metrics.json", metrics)
    write_language_card(out)


# -- training and measuring --------------------------------------------------------------------------------------------


def make_trainer(
    prepared: Prepared, out: Path, started: float, reserve: float, callbacks: Sequence[TrainerCallback]
) -> LanguageModelTrainer:
    """The Trainer with its stream of batches, its budget and its journal."""
    config, choices, held_out = prepared.config, prepared.choices, prepared.data.held_out
    steps = config.steps
    if config.residues is not None:
        steps = max(1, math.ceil(config.residues / (choices.step_tokens * processes())))
    args = arguments(
        config,
        out / "checkpoints",
        steps=steps,
        learning_rate=choices.learning_rate,
        accumulation=choices.accumulation,
        precision=choices.precision,
    )
    trainer = LanguageModelTrainer(
        prepared.task,
        args,
        Stream(prepared.crops, prepared.recipe, args.process_index, args.world_size),
        lambda: prepared.batches(held_out, LOOK) if len(held_out) else iter(()),
        Budget(
            steps,
            config.minutes,
            config.warmup_share,
            config.decay_share,
            config.save_minutes,
            config.save_steps,
            started=started,
            reserve=reserve,
        ),
    )
    for each in (*callbacks, Journal(out / "history.jsonl", trainer)):
        trainer.add_callback(each)
    return trainer


def perplexities(prepared: Prepared, most: int) -> dict[str, float]:
    """Perplexity of the held-out parts, in the objective's own terms, over at most about `most` tokens each."""
    prepared.task.to(device())
    found = {}
    for name, part in prepared.data.measured.items():
        loss, _ = mean_loss(prepared.task, prepared.batches(part, most), lambda: autocast(prepared.choices.precision))
        found[name] = math.exp(loss)
    return found


def describe(
    prepared: Prepared, trainer: LanguageModelTrainer, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """What metrics.json says."""
    data, checkpoint, facts = prepared.data, prepared.checkpoint, prepared.data.corpus.facts
    n_symbols = int(prepared.recipe.symbols.is_special.size)
    return {
        "schema": 1,
        "model": {"name": checkpoint.lasting_name, "family": checkpoint.family.title, "sha256": checkpoint.sha256},
        "objective": checkpoint.family.objective,
        "parameters": sum(each.numel() for each in prepared.task.parameters()),
        "data": {
            "files": facts.files,
            "sequences": facts.sequences,
            "residues": facts.residues,
            "duplicates": facts.duplicates,
            "held_out": len(data.held_out),
        },
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens_read,
        "minutes": trainer.budget.seconds / 60,
        "hardware": hardware(),
        "choices": vars(prepared.choices),
        "predicted_share": trainer.predicted_share,
        "perplexity": {"before": before, "after": after},
        "counting": ngram_perplexities(data.train, data.held_out, n_symbols) if len(data.held_out) else {},
        "sentences": prepared.sentences,
    }


def hardware() -> str:
    """The machine in words: the GPU's name, or the processor's with the threads in use."""
    if torch.cuda.is_available():
        return f"{processes()} x {torch.cuda.get_device_name()}"
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
