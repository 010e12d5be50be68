"""Do packed and padded training follow the same curve? The same batches in the same order, in fp32.

    python benchmarks/loss_curves.py TABLE [--model builtin:protein] [--steps 200]

Full fine-tuning on the train part, once as plft does it and once with transformers' own forward pass over padded rows.
Prints the loss of both at some steps and the largest difference at any. For models without dropout, whose masks differ.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import torch

from plft.checkpoints import resolve
from plft.config import ModelConfig, TrainingConfig, TuningConfig
from plft.dataset import build_dataset
from plft.labels import LabelSpace, guess_task
from plft.records import Record, load_data
from plft.runfolder import build_model
from plft.training import SequenceTaskTrainer, training_arguments

BUDGET = 2_048  # tokens a batch


def curve(name: str, records: list[Record], steps: int, *, packed: bool) -> list[float]:
    """The loss of each step of full fine-tuning on sequence-level labels."""
    checkpoint = resolve(name)
    labels = LabelSpace.fit(guess_task(records).task, records)
    longest = checkpoint.family.trained_residues
    dataset = build_dataset(records, checkpoint.residue_tokenizer, labels, is_residue_task=False, max_residues=longest)
    torch.manual_seed(0)
    with mock.patch("plft.model.can_pack", return_value=packed), tempfile.TemporaryDirectory() as folder:
        model = build_model(checkpoint, labels, ModelConfig(), TuningConfig(method="full"))
        assert model.packs is packed
        arguments = training_arguments(
            TrainingConfig(batch_residues=BUDGET),
            Path(folder),
            precision="fp32",
            learning_rate=1e-4,
            metric="",
            can_evaluate=False,
        )
        arguments.save_strategy, arguments.logging_steps, arguments.max_steps = "no", 1, steps
        trainer = SequenceTaskTrainer(model, arguments, train_dataset=dataset, token_budget=BUDGET)
        trainer.train()
    return [each["loss"] for each in trainer.state.log_history if "loss" in each]


def main() -> None:
    """Print both curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="builtin:protein")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    records = [each for each in load_data(options.data, labelled=True) if each.split in (None, "train")]
    packed = curve(options.model, records, options.steps, packed=True)
    padded = curve(options.model, records, options.steps, packed=False)
    print("| step | packed | padded |\n|---:|---:|---:|")
    for step in sorted({1, *(options.steps * eighth // 8 or 1 for eighth in range(1, 9))}):
        print(f"| {step} | {packed[step - 1]:.6f} | {padded[step - 1]:.6f} |")
    apart = max(abs(a - b) for a, b in zip(packed, padded, strict=True))
    print(f"\nlargest difference at any of {len(packed)} steps: {apart:.2g}")


if __name__ == "__main__":
    main()
