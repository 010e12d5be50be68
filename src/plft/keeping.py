"""Training on what the frozen part of a model makes of each sequence: when it pays, and for how long that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from plft.attention import without_adapters
from plft.batching import Collator, evaluation_budget, most_tokens
from plft.config import TrainingConfig
from plft.corpus import cache_folder
from plft.dataset import SequenceDataset
from plft.features import DTYPES, bytes_needed, fits, keep, key_of
from plft.model import autocast
from plft.parallel import side_by_side, workers_for
from plft.preparation import Say
from plft.training import SequenceTaskTrainer


@contextmanager
def kept_features(
    trainer: SequenceTaskTrainer, settings: TrainingConfig, say: Say, folder: Path | None = None
) -> Iterator[None]:
    """While this lasts a trainer trains on what the frozen part of its model made of each sequence, where that pays.

    It pays where several epochs read it again and the disk has room. The files are deleted in the end, unless
    `settings.keep_features` says otherwise; those of a run that was killed serve the one that resumes it.
    folder: where they are kept, instead of the cache; whoever names one deletes it.
    """
    model = trainer.model
    prefix = getattr(model, "prefix", None)
    datasets = [each for each in (trainer.train_dataset, trainer.eval_dataset) if each is not None]
    if settings.features == "off" or prefix is None or prefix.blocks == 0 or epochs(trainer, settings) < 2:
        return (yield)
    if trainer.args.world_size > 1 or trainer.is_fsdp_enabled:
        return (yield)
    width = without_adapters(model.backbone).config.hidden_size
    like = torch.empty(width, dtype=DTYPES["bf16" if settings.features == "bf16" else "fp32"])
    stays = settings.keep_features or folder is not None
    folder = folder or cache_folder() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    how = f"{like.dtype} {trainer.precision} {pooling_of(model.head) if prefix.pooled else ''}".rstrip()
    files = [folder / f"{key_of(model.backbone, each, prefix, how)}.bin" for each in datasets]
    sizes = [bytes_needed(each, prefix, like) for each in datasets]
    part = "whole backbone" if prefix.blocks is None else f"first {prefix.blocks} blocks"
    if not fits(folder, sum(size for size, file in zip(sizes, files, strict=True) if not file.exists())):
        say(f"the {part} is frozen, but the disk has no room to keep its output ({sum(sizes) / 1e6:,.1f} MB)")
        return (yield)
    say(f"the {part} is frozen: its output is computed once and kept ({sum(sizes) / 1e6:,.1f} MB)")
    budget = evaluation_budget(trainer.token_budget)
    try:
        for dataset, file in zip(datasets, files, strict=True):
            dataset.features = keep(states_of(trainer, dataset), dataset, prefix, file, like, budget)
        model.kept_prefix = prefix
        yield
    finally:
        model.kept_prefix = None
        for dataset in datasets:
            dataset.features = None
        for file in files if not stays else ():
            file.unlink(missing_ok=True)
    return None


def pooling_of(head: nn.Module) -> str:
    """The name of a pooling without weights, or nothing: mean and max of the same states are not the same."""
    return str(getattr(getattr(getattr(head, "pooling", None), "function", None), "__name__", ""))


def epochs(trainer: SequenceTaskTrainer, settings: TrainingConfig) -> float:
    """How often a run goes through its sequences at most."""
    if settings.max_steps is None:
        return settings.epochs
    steps = len(trainer.get_train_dataloader()) / settings.accumulation
    return min(settings.epochs, settings.max_steps / steps)


def states_of(trainer: SequenceTaskTrainer, dataset: SequenceDataset) -> Callable[[list[list[int]]], Iterator[Tensor]]:
    """A function from batches of indices to what the frozen part of the model makes of those examples."""
    collator, model, device = Collator(dataset), trainer.model, trainer.args.device

    def states(indices: list[int]) -> Tensor:
        inputs = collator([dataset[index] for index in indices])
        inputs = {key: each.to(device) if isinstance(each, Tensor) else each for key, each in inputs.items()}
        with torch.no_grad(), autocast(device, trainer.precision):
            return model.frozen_states(**inputs).cpu()

    def all_states(batches: list[list[int]]) -> Iterator[Tensor]:
        is_whole = model.prefix.blocks is None
        workers = workers_for(model, most_tokens(batches, dataset.lengths)) if is_whole else 1
        return side_by_side(states, batches, workers)

    model.eval()
    return all_states
