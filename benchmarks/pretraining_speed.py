"""How near pretraining comes to what its matrix products alone would take.

    python benchmarks/pretraining_speed.py FASTA [--arch esm2-1m] [--workers 2] [--rounds 5]

Both are measured in turn: `plft pretrain` as it is, by the speed that it logs, and a loop of matrix products of the
same shapes and number, attention's included, on all threads, each on matrices of its own. With --cached one pair of
matrices serves all products of a shape, so that they lie in the processor's cache more often than the model's can. The
median of the ratios within a turn counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from plft.config import language_model_config
from plft.language_preparation import Prepared, prepare
from plft.language_run import fitting_workers
from plft.memory import keep_freed_memory

PASSES = 16  # batches whose products are measured
STEPS = 61  # of training, logged every 20


def products(prepared: Prepared, batch: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """(left, right, how often) of every matrix product in one forward and backward pass over a packed batch.

    A linear layer is three products, with the input, for the gradient of the input and for that of the weights;
    attention is two forward and four backward for every run of equal lengths. All are in the precision of training.
    """
    config = prepared.task.config
    width, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens, predicted = batch["input_ids"].numel(), int((batch["labels"] >= 0).sum())
    dtype = torch.bfloat16 if prepared.choices.precision == "bf16" else torch.float32

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    found = []
    linear = [(tokens, width, width, 4 * blocks), (tokens, width, inner, blocks), (tokens, inner, width, blocks)]
    for n, inside, outside, count in [*linear, (predicted, width, width, 1), (predicted, width, config.vocab_size, 1)]:
        x, w, g = random(n, inside), random(outside, inside), random(n, outside)
        found += [(x, w.T, count), (g, w, count), (g.T, x, count)]
    head = width // config.num_attention_heads
    for length, count in batch["packing"].runs:
        q = random(count * config.num_attention_heads, length, head)
        scores = random(len(q), length, length)
        found += [(q, q.transpose(1, 2), 2 * blocks), (scores, q, 4 * blocks)]
    return found


def pretrain(options: argparse.Namespace, workers: int) -> float:
    """Tokens per second that `plft pretrain` logs; the first steps do not count."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "plft", "pretrain", options.fasta, "--arch", options.arch]
        command += ["--steps", str(STEPS), "--workers", str(workers), "--set", "held_out_share=0", "--out", folder]
        subprocess.run([*command, "--overwrite"], check=True, capture_output=True)
        rows = [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]
    return statistics.median(row["tokens_per_second"] for row in rows[1:] if "tokens_per_second" in row)


def multiply(shapes: list[tuple[torch.Tensor, torch.Tensor, int]], cached: bool) -> float:
    """Seconds of the matrix products alone. cached: all of a shape with the same two matrices."""
    pairs = [
        (left, right) if cached else (left.clone(), right.clone())
        for left, right, count in shapes
        for _ in range(count)
    ]
    began = time.perf_counter()
    for left, right in pairs:
        left @ right
    return time.perf_counter() - began


def main() -> None:
    """Measure in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta")
    parser.add_argument("--arch", default="esm2-1m")
    parser.add_argument("--workers", type=int, default=None, help="by default as many as with a budget in minutes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cached", action="store_true", help="one pair of matrices for all products of a shape")
    options = parser.parse_args()
    keep_freed_memory()  # as training does
    values = {"files": [options.fasta], "model": f"scratch:{options.arch}", "steps": 1, "held_out_share": 0}
    timed = language_model_config(values | {"steps": None, "minutes": 1})
    workers = options.workers or fitting_workers(timed)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(language_model_config(values), Path(folder), print, time.monotonic(), False)
    batches = prepared.recipe.cut(prepared.crops)
    sample = [prepared.recipe.batch(prepared.crops, rows) for rows in itertools.islice(batches, PASSES)]
    shapes = [products(prepared, batch) for batch in sample]
    tokens = sum(batch["input_ids"].numel() for batch in sample)
    real, bare = [], []
    for _ in range(options.rounds):
        real.append(pretrain(options, workers))
        multiply(shapes[0], options.cached)
        bare.append(tokens / sum(multiply(each, options.cached) for each in shapes))
    ratio = [a / b for a, b in zip(real, bare, strict=True)]
    machine = f"{torch.get_num_threads()} threads, {workers} processes, {prepared.choices.precision}"
    print(f"{machine}, {options.arch}, batches of {prepared.choices.batch_tokens:,} tokens")
    print(f"training            {statistics.median(real):>9,.0f} tokens/s")
    print(f"products alone      {statistics.median(bare):>9,.0f} tokens/s")
    print(f"ratio               {statistics.median(ratio):>9.1%}  ({min(ratio):.1%} to {max(ratio):.1%})")


if __name__ == "__main__":
    main()
