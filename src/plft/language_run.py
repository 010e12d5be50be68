"""A language model trained from scratch or further, top to bottom: what `plft pretrain` and `plft adapt` do."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback, set_seed

from plft.attention import can_pack
from plft.budget import LOOK, Budget
from plft.checkpoints import quiet_transformers
from plft.config import LanguageModelConfig, language_model_config, read_yaml, to_yaml
from plft.errors import PlftError
from plft.language_card import write_language_card
from plft.language_preparation import Prepared, Say, agreed, autocast, device, prepare, worker_bytes
from plft.memory import free_bytes, keep_freed_memory
from plft.ngrams import ngram_perplexities
from plft.objectives import perplexity
from plft.preparation import quiet
from plft.pretraining import Journal, LanguageModelTrainer, Stream, arguments, mean_loss
from plft.ranks import is_first, processes
from plft.runfolder import check_place, new_folder, write_json, write_text
from plft.together import most_workers, train_together
from plft.training import check_tracker, has_accelerator, last_checkpoint, leave_process_group

FIRST_LOOK = 4000  # held-out tokens read to see how long it takes
FINAL_LOOK = 600_000  # before and after
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
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
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
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise PlftError("Language models cannot be trained under FSDP yet. Launch with --multi_gpu instead (DDP).")
    shared: Any = (config, out, resume, overwrite, started)
    own: dict[str, Any] = {"say": say, "callbacks": callbacks}
    if config.workers == 1 or processes() > 1:
        return _run(*shared, **own)
    if has_accelerator():
        begun = f"This run was begun by {config.workers} processes on a CPU: resume it there. " if resume else ""
        raise PlftError(f"{begun}--workers is for machines without a GPU; for several GPUs use accelerate launch.")
    return train_together(config.workers, _run, *shared, **own)


def _run(
    config: LanguageModelConfig,
    out: Path,
    resume: bool,
    overwrite: bool,
    started: float,
    say: Say = quiet,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """As `run_language_model`, in each process."""
    try:
        check_out(config, out, resume, overwrite)
        if config.report_to is not None:
            check_tracker(config.report_to)
        if not has_accelerator():
            keep_freed_memory()
        set_seed(config.seed)
        prepared = prepare(config, out, say, started, resume)
        look, reserve = affordable_look(prepared)
        prepared = replace(prepared, choices=replace(prepared.choices, look=look))
        before = perplexities(prepared, look)
        if is_first():
            claim(prepared, out, resume)
        trainer = make_trainer(prepared, out, started, reserve, callbacks)
        with quiet_transformers():
            trainer.go_on(last_checkpoint(out / "checkpoints") if resume else None)
        metrics = describe(prepared, trainer, before, perplexities(prepared, look))
        if is_first():
            trainer.journal.close(metrics["perplexity"]["after"].get("held_out"))
            save(prepared, out, metrics)
        return metrics
    finally:
        leave_process_group()


# -- the folder --------------------------------------------------------------------------------------------------------


def check_out(config: LanguageModelConfig, out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that must not be written to, before any work is done; nothing is changed yet.

    To resume, the settings have to be those that are there; to overwrite, the folder has to be one of ours.
    """
    if resume and overwrite:
        raise PlftError("--resume goes on with a model and --overwrite replaces it. Give only one of them.")
    check_place(out)
    kept = kept_config(out)
    if resume and kept is not None:
        names = [name for name in type(kept).model_fields if getattr(kept, name) != getattr(config, name)]
        if names:
            raise PlftError(f"{out} was begun with other settings ({', '.join(names[:3])}). Resume with the same ones.")
        if (out / "metrics.json").exists() and last_checkpoint(out / "checkpoints") is None:
            raise PlftError(
                f"{out} is finished and its checkpoints are gone. Pass --overwrite instead, to train it anew."
            )
        return
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise PlftError(f"{out} exists already. Choose another --out, or pass --overwrite, or --resume.")
    if kept is None:
        raise PlftError(f"{out} holds no pretraining.yaml, so plft did not make it. Choose another --out.")
    if Path(config.model).resolve() == out.resolve():
        raise PlftError(f"{out} is the model to go on from, which would be replaced. Choose another --out.")


def claim(prepared: Prepared, out: Path, resume: bool) -> None:
    """Make the folder, without what an earlier run left in it, and write down settings and decisions."""
    if not (resume and kept_config(out) is not None):
        remove_language_model(out)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "pretraining.yaml", to_yaml(prepared.config))  # first: it says whose folder this is
    for name, content in {"held_out.json": prepared.data.kept, "choices.json": vars(prepared.choices)}.items():
        if content is not None and not (out / name).exists():
            write_json(out / name, content)


def fitting_workers(config: LanguageModelConfig) -> int:
    """Processes that get the most out of a budget; in steps or residues one, and the model is the same everywhere."""
    alone = config.minutes is None or processes() > 1 or has_accelerator()
    return 1 if alone else most_workers(free_bytes(), worker_bytes(config))


def kept_config(out: Path) -> LanguageModelConfig | None:
    """The settings that a folder was begun with; None where nothing was begun."""
    file = out / "pretraining.yaml"
    return language_model_config(read_yaml(file)) if file.is_file() else None


def remove_language_model(out: Path) -> None:
    """Delete what an earlier run left in a folder, and only that; last of all what says whose folder it is."""
    for folder in (out / "checkpoints", out / "adapter"):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    for pattern in (*MODEL_FILES, *reversed(OWN_FILES)):
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
        for settings in (plain.config, getattr(plain, "generation_config", None)):
            if settings is not None and hasattr(settings, "use_cache"):  # off in training alone
                settings.use_cache = getattr(prepared.checkpoint.config, "use_cache", True)
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
    """The Trainer with its stream of batches, its budget and its journal.

    A look on the way takes at most a fifth of the time of those before and after.
    """
    config, choices, held_out = prepared.config, prepared.choices, prepared.data.held_out
    steps, guess = config.steps, None
    if config.residues is not None:
        steps = max(1, math.ceil(config.residues / (choices.step_tokens * processes())))
    if config.minutes is not None:
        until = started + 60 * config.minutes - reserve
        left = agreed(lambda: until - time.monotonic())
        guess = max(1, int(left * (choices.tokens_per_second or 1) / choices.step_tokens))
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
        lambda: prepared.batches(held_out, min(LOOK, choices.look // 5)) if len(held_out) else iter(()),
        Budget(
            steps,
            config.minutes,
            config.warmup_share,
            config.decay_share,
            config.save_minutes,
            config.save_steps,
            started=started,
            reserve=reserve,
            guess=guess,
        ),
        choices.optimizer,
    )
    trainer.journal = Journal(out / "history.jsonl", trainer)
    for each in (*callbacks, trainer.journal):
        trainer.add_callback(each)
    return trainer


def affordable_look(prepared: Prepared) -> tuple[int, float]:
    """How many tokens of each held-out part to measure before and after, and the seconds to keep for the end.

    Within a budget in minutes each measurement may take a twentieth of it.
    """
    if prepared.config.minutes is None or not prepared.data.measured:
        return FINAL_LOOK, SAVING
    began = time.monotonic()
    perplexities(prepared, FIRST_LOOK)
    taken = time.monotonic() - began
    per_token = agreed(lambda: taken) / FIRST_LOOK
    affordable = min(FINAL_LOOK, int(0.05 * 60 * prepared.config.minutes / per_token))
    look = prepared.choices.look or max(FIRST_LOOK, affordable)  # of a resumed run as before
    largest = max(part.n_tokens for part in prepared.data.measured.values())
    return look, 1.2 * per_token * min(look, largest) + SAVING


def perplexities(prepared: Prepared, most: int) -> dict[str, float]:
    """Perplexity of the held-out parts, in the objective's own terms, over at most about `most` tokens each."""
    prepared.task.to(device())
    found = {}
    for name, part in prepared.data.measured.items():
        loss, count = mean_loss(
            prepared.task, prepared.batches(part, most), lambda: autocast(prepared.choices.precision)
        )
        if count:  # of a few short sequences it may be that none is masked
            found[name] = perplexity(loss)
    if prepared.data.is_clean and "held_out" in found:
        found["clean"] = found["held_out"]
    return found


def describe(
    prepared: Prepared, trainer: LanguageModelTrainer, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """What metrics.json says."""
    data, checkpoint, facts = prepared.data, prepared.checkpoint, prepared.data.corpus.facts
    return {
        "schema": 1,
        "model": {
            "name": checkpoint.lasting_name,
            "revision": checkpoint.revision,
            "family": checkpoint.family.title,
            "sha256": checkpoint.sha256,
        },
        "objective": checkpoint.family.objective,
        "parameters": sum(each.numel() for name, each in prepared.task.named_parameters() if "lora_" not in name),
        "data": {
            "files": facts.files,
            "sequences": facts.sequences,
            "residues": facts.residues,
            "duplicates": facts.duplicates,
            "held_out": data.held_out.n_stretches,
        },
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens_read,
        "minutes": trainer.budget.seconds / 60,
        "hardware": hardware(),
        "choices": {name: value for name, value in vars(prepared.choices).items() if name != "store"},
        "predicted_share": trainer.predicted_share,
        "perplexity": {"before": before, "after": after},
        "counting": ngram_perplexities(data.train, data.held_out, prepared.recipe.symbols.is_special)
        if len(data.held_out) and is_first()
        else {},
        "sentences": prepared.sentences,
    }


def hardware() -> str:
    """The machine in words: the GPU's name, or the processor's with the threads in use."""
    if torch.cuda.is_available():
        return f"{processes()} x {torch.cuda.get_device_name()}"
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    threads = f"{torch.get_num_threads()} threads" + (f" in each of {processes()} processes" if processes() > 1 else "")
    return f"{named or platform.processor() or platform.machine()}, {threads}"
