"""What `plft doctor` finds: versions, device, threads, optional features."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata

EXTRAS = {"bitsandbytes": "qlora (pip install 'plft[quant]')", "tensorboard": "tracking (pip install 'plft[track]')"}


def diagnose() -> dict[str, str]:
    """Facts by name, as text."""
    import torch

    from plft.families import FAMILIES
    from plft.training import choose_precision

    packages = ("plft", "torch", "transformers", "peft", "accelerate", "numpy")
    content = {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
    content["device"] = device_name()
    content["threads"] = str(torch.get_num_threads())
    content["mixed precision"] = ", ".join(choose_precision("auto", FAMILIES["esm2"]))
    for package, feature in EXTRAS.items():
        there = importlib.util.find_spec(package) is not None
        content[package] = metadata.version(package) if there else f"missing; needed for {feature}"
    return content


def device_name() -> str:
    """The accelerator, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return "Apple GPU" if torch.backends.mps.is_available() else f"CPU ({platform.machine()})"
