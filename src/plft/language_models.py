"""A checkpoint with its language-model head: the model that pretraining trains and perplexity is measured with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from plft.checkpoints import BROKEN, Checkpoint, check_loaded, first_line, quiet_transformers
from plft.errors import PlftError

AUTO_CLASSES: dict[str, Any] = {
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "span": AutoModelForSeq2SeqLM,
}


def load_language_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint in fp32 with the head of its family's own objective (`family.objective`).

    A scratch model's weights are drawn with the checkpoint's seed; the global random state is left as it was.
    Raises PlftError for a checkpoint without such a head (an encoder alone), and for damaged weights.
    """
    auto = AUTO_CLASSES[checkpoint.family.objective]
    config = copy.deepcopy(checkpoint.config)
    config.use_cache = False
    if type(config) not in auto._model_mapping and not checkpoint.trust_remote_code:
        raise PlftError(
            f"{checkpoint.name}: transformers has no {checkpoint.family.objective} language model of type "
            f"'{config.model_type}'. Choose another model."
        )
    if checkpoint.folder is None:
        return _fresh(auto, config, checkpoint)
    return _load(auto, config, checkpoint, checkpoint.folder)


def _fresh(auto: Any, config: Any, checkpoint: Checkpoint) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checkpoint.seed)
        return auto.from_config(config, trust_remote_code=checkpoint.trust_remote_code)


def _load(auto: Any, config: Any, checkpoint: Checkpoint, folder: Path) -> PreTrainedModel:
    try:
        with quiet_transformers():
            model, info = auto.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                dtype=torch.float32,
                trust_remote_code=checkpoint.trust_remote_code,
            )
    except (SafetensorError, OSError, *BROKEN) as error:
        raise PlftError(
            f"{checkpoint.name}: its weights cannot be loaded ({first_line(error)}). Copy the model again."
        ) from error
    _check_head(checkpoint, model, info)
    return model


def _check_head(checkpoint: Checkpoint, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Say in its own words that the head is missing; ESM's contact head is not needed, and stays untrained."""
    missing = {key for key in info["missing_keys"] if "contact_head" not in key}
    learned = {key for key, _ in model.named_parameters()}
    without_head = missing & learned and all(not key.startswith(model.base_model_prefix + ".") for key in missing)
    if without_head or (checkpoint.family.objective == "span" and any("decoder" in key for key in missing)):
        raise PlftError(
            f"{checkpoint.name} holds no language-model head ({sorted(missing)[0]} is missing), so its own objective "
            "cannot be computed. Choose the checkpoint that was saved with it."
        )
    check_loaded(checkpoint.name, model, {**info, "missing_keys": missing})
