"""What `plft demo` runs: the main job on the simulated signal peptides that the package makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plft.builtin.demo import DEMO_NOTE, LABELS, write_demo
from plft.config import RunConfig, make_config
from plft.errors import look_up

MODEL = {"name": "scratch:tiny-esm2", "head": "cnn", "head_width": 64, "head_kernel": 9}
EPOCHS = 10
MODEL_NOTE = (
    "The model starts from random weights (scratch:), so it knows only what it learns here; "
    "for work of your own start from a pretrained model (plft models lists names)."
)
NOTES = (DEMO_NOTE, MODEL_NOTE)

# First residues of human proteins from UniProt; the first two begin with a signal peptide of 18 and 24 residues.
EXAMPLES = {
    "P02768 serum albumin (has a signal peptide)": (
        "MKWVTFISLLFLFSSAYSRGVFRRDAHKSEVAHRFKDLGEENFKALVLIAFAQYLQQCPFEDHVKLVNEV"
    ),
    "P01308 insulin (has a signal peptide)": "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGG",
    "P99999 cytochrome c (has none)": "MGDVEKGKKIFIMKCSQCHTVEKGGKHKTGPNLHGLFGRKTGQAPGYSYTAANKNKGIIWGEDTLMEYLE",
    "P0CG47 ubiquitin (has none)": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLV",
}


def use_one_thread() -> None:
    """Compute on one core: the threads of so small a model mostly wait, and the numbers come out the same."""
    import torch

    torch.set_num_threads(1)


def demo_config(out: Path, task: str) -> RunConfig:
    """Write the demo data beside the run folder and return the configuration that trains on it.

    task: seq_classification or token_classification; another one is a PlftError.
    """
    look_up("demo task", task, LABELS)
    files = write_demo(data_folder(out))
    return make_config(
        {
            "task": task,
            "data": {"file": str(files[task])},
            "model": MODEL,
            "tuning": {"method": "full"},
            "training": {"epochs": EPOCHS, "early_stopping": None},
        }
    )


def data_folder(out: Path) -> Path:
    """The folder of the demo data that belongs to a run folder."""
    return out.with_name(f"{out.name}-data")


def write_examples(out: Path) -> Path:
    """Write the example proteins as FASTA beside the demo data and return the path."""
    path = data_folder(out) / "examples.fasta"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in EXAMPLES.items()), encoding="utf-8")
    return path


def example_lines(run: Path) -> Iterator[str]:
    """What the trained model says about the example proteins: a class with its probability, or a region per residue."""
    from plft.pipeline import load

    predictor = load(run)
    sequences = list(EXAMPLES.values())
    answers = zip(EXAMPLES.items(), predictor.predict(sequences), predictor.probabilities(sequences), strict=True)
    for (name, sequence), answer, probabilities in answers:
        if predictor.is_residue_task:
            yield f"{name}\n  {sequence}\n  {''.join(answer)}"
        else:
            yield f"{name}: {answer} (probability {probabilities.max():.2f})"
