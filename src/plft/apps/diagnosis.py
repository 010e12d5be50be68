"""What `plft doctor` and `plft models` show: versions, device, threads, optional features; what is known by name."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata

EXTRAS = {
    "bitsandbytes": "qlora (pip install 'plft[quant]')",
    "optuna": "plft tune (pip install 'plft[hpo]')",
    "tensorboard": "tracking (pip install 'plft[track]')",
}


def diagnose() -> dict[str, str]:
    """Facts by name, as text."""
    import torch

    from plft.families import FAMILIES
    from plft.homology import find_mmseqs
    from plft.training import choose_precision

    packages = ("plft", "torch", "transformers", "peft", "accelerate", "numpy")
    content = {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
    content["device"] = device_name()
    content["threads"] = str(torch.get_num_threads())
    content["mixed precision"] = ", ".join(choose_precision("auto", FAMILIES["esm2"]))
    for package, feature in EXTRAS.items():
        there = importlib.util.find_spec(package) is not None
        content[package] = metadata.version(package) if there else f"missing; needed for {feature}"
    program = find_mmseqs()
    wanted = "missing; needed for exact splits and checks by homology (pip install 'plft[homology]')"
    content["MMseqs2"] = wanted if program is None else str(program)
    return content


def device_name() -> str:
    """The accelerator, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return "Apple GPU" if torch.backends.mps.is_available() else f"CPU ({platform.machine()})"


def catalogue() -> dict[str, dict[str, str]]:
    """What is known by name: one table per kind, name -> what it is."""
    from plft.checkpoints import SHORT_NAMES
    from plft.families import FAMILIES
    from plft.heads import HEADS
    from plft.metrics import METRICS
    from plft.scratch import ARCHITECTURES
    from plft.tasks import TASKS
    from plft.tuning import METHODS

    return {
        "families": {each.name: each.title for each in FAMILIES.values()},
        "scratch models (--model scratch:NAME)": {
            name: FAMILIES[each.family].title for name, each in ARCHITECTURES.items()
        },
        "short names (--model NAME)": dict(SHORT_NAMES),
        "tuning methods (--tune)": {each.name: each.title for each in METHODS.values()},
        "heads (--head)": {each.name: each.title for each in HEADS.values()},
        "tasks (--task)": {name: each.title for name, each in TASKS.items()},
        "metrics": {name: each.meaning for name, each in METRICS.items()},
    }
