"""What `plft demo` runs: the main job on the simulated signal peptides that the package makes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from plft.builtin.demo import DEMO_NOTE, write_demo
from plft.config import make_config

MODEL = "scratch:esm2-0.2m"


def run_demo(
    out: Path, *, overwrite: bool, run: Callable[..., None], say: Callable[[str], None], result: Callable[[str], None]
) -> None:
    """Write the demo data beside the run folder, train on it, and predict for a few sequences nobody trained on."""
    from plft.pipeline import load

    say(DEMO_NOTE)
    data = write_demo(out.with_name(f"{out.name}-data"))["seq_classification"]
    values: dict[str, Any] = {
        "data": {"file": str(data)},
        "model": {"name": MODEL, "head": "cnn"},
        "tuning": {"method": "full"},
        "training": {"epochs": 8, "early_stopping": 3},
    }
    run(make_config(values), out, resume=False, overwrite=overwrite)
    predictor = load(out)
    for name, sequence in EXAMPLES.items():
        result(f"{name}: {sequence[:30]}... -> {predictor.predict(sequence)[0]}")


# First 70 residues of two human proteins from UniProt: serum albumin has a signal peptide, cytochrome c has none.
EXAMPLES = {
    "serum albumin (P02768)": "MKWVTFISLLFLFSSAYSRGVFRRDAHKSEVAHRFKDLGEENFKALVLIAFAQYLQQCPFEDHVKLVNEV",
    "cytochrome c (P99999)": "MGDVEKGKKIFIMKCSQCHTVEKGGKHKTGPNLHGLFGRKTGQAPGYSYTAANKNKGIIWGEDTLMEYLE",
}
