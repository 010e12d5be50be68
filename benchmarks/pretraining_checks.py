"""Promises of pretraining that are too large for the tests, on real sequences.

    python benchmarks/pretraining_checks.py DATA_FOLDER WORK_FOLDER [--only interrupted] [--workers 2] [--minutes 10]

interrupted: a run that is killed three times ends with the weights of one that is not.  adapted: what `plft adapt`
gains on a family and loses elsewhere, for a masked and a causal model, within --minutes each.  memory: the peak of a
run over 1 GB of sequences beside that of one over 10 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PLFT = (sys.executable, "-m", "plft")
CORPUS, HELD_OUT = "pretrain_protein/train.fasta.gz", "pretrain_protein/valid.fasta.gz"
STEPS, SAVED = 90, 10
KILLED_AT = (18, 45, 72)


def plft(*arguments: object) -> None:
    """Run a command to its end; its output goes past this program's."""
    subprocess.run([*PLFT, *map(str, arguments)], check=True, stdout=sys.stderr)


def steps_done(folder: Path) -> int:
    """The last step in history.jsonl."""
    file = folder / "history.jsonl"
    rows = file.read_text().splitlines() if file.exists() else []
    return json.loads(rows[-1])["step"] if rows else 0


def interrupted(options: argparse.Namespace) -> None:
    """Kill a run three times with all its processes, and compare its weights with those of an undisturbed one."""
    files = [options.data / CORPUS, "--valid", options.data / HELD_OUT, "--arch", "esm2-1m"]
    budget = ["--steps", STEPS, "--save-steps", SAVED, "--workers", options.workers]
    whole, killed = options.work / "whole", options.work / "killed"
    plft("pretrain", *files, *budget, "--out", whole, "--overwrite")
    shutil.rmtree(killed, ignore_errors=True)
    for step in KILLED_AT:
        command = [*PLFT, "pretrain", *map(str, [*files, *budget, "--out", killed, "--resume"])]
        running = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
        while steps_done(killed) < step and running.poll() is None:
            time.sleep(0.2)
        if running.poll() is not None:
            sys.exit("It ended before it was killed.")
        os.killpg(running.pid, signal.SIGKILL)
        print(f"killed after step {steps_done(killed)}, exit code {running.wait()}", flush=True)
    plft("pretrain", *files, *budget, "--out", killed, "--resume")
    same = len({(each / "model.safetensors").read_bytes() for each in (whole, killed)}) == 1
    print(f"after {STEPS} steps the weights are {'bit-identical' if same else 'DIFFERENT'}")


def adapted(options: argparse.Namespace) -> None:
    """Adapt the built-in model and a small causal one to lysozymes."""
    causal = options.work / "causal"
    if not (causal / "config.json").exists():
        budget = ["--minutes", options.minutes, "--out", causal, "--overwrite"]
        plft("pretrain", options.data / CORPUS, "--valid", options.data / HELD_OUT, "--arch", "protgpt2-1m", *budget)
    family = options.data / "lysozyme_pf00959"
    sets = ["--valid", family / "test.fasta.gz", "--general", options.data / HELD_OUT, "--minutes", options.minutes]
    for model in ("builtin:protein", causal):
        out = options.work / f"lysozymes-{Path(model).name}"
        plft("adapt", family / "train.fasta.gz", "--model", model, *sets, "--out", out, "--overwrite")
        metrics = json.loads((out / "metrics.json").read_text())
        before, after = metrics["perplexity"]["before"], metrics["perplexity"]["after"]
        for part in before:
            change = after[part] / before[part] - 1
            print(f"{model}, {metrics['objective']}, {part}: {before[part]:.2f} to {after[part]:.2f} ({change:+.1%})")
        print(*(line for line in metrics["sentences"] if "copies" in line), sep="\n")


def write_sequences(file: Path, n_bytes: int) -> Path:
    """A FASTA file of about this size, its proteins cut from a long random one at random places."""
    draw = random.Random(0)
    letters = "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=5_000_000))
    written = number = 0
    with file.open("w") as handle:
        while written < n_bytes:
            start, length = draw.randrange(len(letters) - 2000), draw.randint(50, 1000)
            written += handle.write(f">{number}\n{letters[start : start + length]}\n")
            number += 1
    return file


def memory(options: argparse.Namespace) -> None:
    """Peak memory of a run, from the files to the saved model, for two sizes of corpus; each makes its store anew."""
    for n_bytes in (10_000_000, 1_000_000_000):
        file = options.work / f"{n_bytes}.fasta"
        if not file.exists():
            write_sequences(file, n_bytes)
        command = [*PLFT, "pretrain", str(file), "--arch", "esm2-1m", "--steps", "40"]
        command += ["--set", "held_out_share=0"]  # without the search for homologs, a program of its own
        command += ["--out", str(options.work / "memory"), "--overwrite"]
        began, store = time.monotonic(), options.work / f"store-{time.time_ns()}"
        running = subprocess.Popen(command, stdout=sys.stderr, env=os.environ | {"PLFT_CACHE": str(store)})
        _, status, used = os.wait4(running.pid, 0)
        running.returncode, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - began
        peak = used.ru_maxrss * 1024 / 1e6
        print(f"{n_bytes:,} bytes: peak {peak:,.0f} MB, {seconds:.0f} s, exit code {running.returncode}")
        shutil.rmtree(store)


CHECKS = {"interrupted": interrupted, "adapted": adapted, "memory": memory}


def main() -> None:
    """Run the checks asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=CHECKS, action="append")
    parser.add_argument("--workers", type=int, default=2, help="of interrupted")
    parser.add_argument("--minutes", type=float, default=10, help="of each run of adapted")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only or CHECKS:
        CHECKS[name](options)


if __name__ == "__main__":
    main()
